//! The synthetic interrupt controller of a virtual processor (TLFS 11).

mod ports;
mod timers;

use alloc::boxed::Box;
use alloc::collections::VecDeque;

use tlfs::{
    HV_EVENT_FLAGS_COUNT, HV_EVENT_FLAGS_SIZE, HV_MESSAGE_FLAG_PENDING, HV_MESSAGE_SIZE,
    HV_PAGE_MSR_ENABLE, HV_PAGE_SHIFT, HV_PORT_MESSAGE_BUFFERS, HV_SYNIC_CONTROL_ENABLE,
    HV_SYNIC_FIRST_VALID_VECTOR, HV_SYNIC_SINT_COUNT, HV_SYNIC_STIMER_COUNT, HvMessage, HvStatus,
    HvSynicSint,
};
use zerocopy::IntoBytes;

use crate::apic::LocalApic;
use crate::vp::VpPages;
use crate::{BadSpa, Platform};
pub(crate) use ports::{Connection, Port};
use timers::Timer;

/// State of one SynIC.
#[derive(Debug)]
pub(crate) struct Synic {
    pub(crate) control: u64,
    pub(crate) siefp: u64,
    pub(crate) simp: u64,
    sints: [HvSynicSint; HV_SYNIC_SINT_COUNT],
    queues: [VecDeque<Box<HvMessage>>; HV_SYNIC_SINT_COUNT],
    timers: [Timer; HV_SYNIC_STIMER_COUNT],
}

impl Default for Synic {
    fn default() -> Self {
        Self {
            control: 0,
            siefp: 0,
            simp: 0,
            sints: [HvSynicSint::RESET; HV_SYNIC_SINT_COUNT],
            queues: Default::default(),
            timers: Default::default(),
        }
    }
}

/// What a SynIC acts on besides itself.
pub(crate) struct SynicBus<'a> {
    pub(crate) platform: &'a dyn Platform,
    pub(crate) pages: VpPages,
    pub(crate) apic: &'a mut LocalApic,
    /// Reference time.
    pub(crate) now: u64,
}

impl Synic {
    /// A source's register.
    pub(crate) fn sint(&self, index: usize) -> u64 {
        self.sints.get(index).map_or(0, |sint| sint.0)
    }

    /// Writes a source's register. False for a vector below 16 in one that is
    /// not masked.
    pub(crate) fn set_sint(&mut self, index: usize, value: u64) -> bool {
        let sint = HvSynicSint(value);
        let valid = sint.masked() || sint.polling() || sint.vector() >= HV_SYNIC_FIRST_VALID_VECTOR;
        match self.sints.get_mut(index) {
            Some(slot) if valid => *slot = sint,
            _ => return false,
        }
        true
    }

    /// Whether `vector` belongs to a source that ends it by itself.
    pub(crate) fn is_auto_eoi(&self, vector: u8) -> bool {
        self.sints
            .iter()
            .any(|s| !s.masked() && s.auto_eoi() && s.vector() == vector)
    }

    fn enabled(&self) -> bool {
        self.control & HV_SYNIC_CONTROL_ENABLE != 0
    }

    /// A source, while the controller and the page that it writes to are on.
    fn target_sint(&self, index: usize, page_msr: u64) -> Option<HvSynicSint> {
        let sint = *self.sints.get(index)?;
        let on = self.enabled() && page_msr & HV_PAGE_MSR_ENABLE != 0;
        on.then_some(sint)
    }

    /// Queues a message for a source and delivers what can be. Messages wait
    /// while their slot is taken; in that of a masked source they arrive
    /// without an interrupt (TLFS, "SynIC Messages").
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETER for a source that does not exist, INVALID_SYNIC_STATE
    /// while the controller or its message page is off, INSUFFICIENT_BUFFERS
    /// when 16 of the sender's messages wait.
    pub(crate) fn post(
        &mut self,
        index: usize,
        message: Box<HvMessage>,
        bus: &mut SynicBus<'_>,
    ) -> Result<(), HvStatus> {
        let on = self.target_sint(index, self.simp).is_some();
        let queue = self
            .queues
            .get_mut(index)
            .ok_or(HvStatus::INVALID_PARAMETER)?;
        if !on {
            return Err(HvStatus::INVALID_SYNIC_STATE);
        }
        let sender = message.header.sender;
        if queue
            .iter()
            .filter(|queued| queued.header.sender == sender)
            .count()
            >= HV_PORT_MESSAGE_BUFFERS
        {
            return Err(HvStatus::INSUFFICIENT_BUFFERS);
        }
        queue.push_back(message);
        self.deliver_sint(index, bus);
        Ok(())
    }

    /// Drops the queued messages of a sender (its port was deleted).
    pub(crate) fn drop_messages(&mut self, sender: u64) {
        for queue in &mut self.queues {
            queue.retain(|message| message.header.sender != sender);
        }
    }

    /// Delivers whatever waits and can be delivered.
    pub(crate) fn deliver(&mut self, bus: &mut SynicBus<'_>) {
        for index in 0..HV_SYNIC_SINT_COUNT {
            if self.waits(index) {
                self.deliver_sint(index, bus);
            }
        }
    }

    fn waits(&self, index: usize) -> bool {
        !self.queues[index].is_empty() || self.waiting_timer(index).is_some()
    }

    fn deliver_sint(&mut self, index: usize, bus: &mut SynicBus<'_>) {
        let Some(sint) = self.target_sint(index, self.simp) else {
            return;
        };
        let slot = bus.pages.messages << HV_PAGE_SHIFT | (index * HV_MESSAGE_SIZE) as u64;
        // A slot that cannot be accessed is not the guest's doing; its
        // messages stay queued.
        if claim_slot(bus.platform, slot) != Ok(true) {
            return;
        }
        let Some(mut message) = self.next_message(index, bus.now) else {
            return;
        };
        if self.waits(index) {
            message.header.flags |= HV_MESSAGE_FLAG_PENDING;
        }
        if write_slot(bus.platform, slot, &message) == Ok(()) && interrupts(sint) {
            bus.apic.request(sint.vector(), false);
        }
    }

    fn next_message(&mut self, index: usize, now: u64) -> Option<Box<HvMessage>> {
        self.queues[index]
            .pop_front()
            .or_else(|| self.take_timer_message(index, now))
    }

    /// Sets an event flag; whether it was clear before.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETER for a flag or source that does not exist,
    /// INVALID_SYNIC_STATE while the controller or its event page is off, or
    /// the source masked.
    pub(crate) fn signal(
        &mut self,
        index: usize,
        flag: u16,
        bus: &mut SynicBus<'_>,
    ) -> Result<bool, HvStatus> {
        if index >= HV_SYNIC_SINT_COUNT || u32::from(flag) >= HV_EVENT_FLAGS_COUNT {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let sint = self
            .target_sint(index, self.siefp)
            .filter(|sint| !sint.masked() || sint.polling())
            .ok_or(HvStatus::INVALID_SYNIC_STATE)?;
        let word = (bus.pages.event_flags << HV_PAGE_SHIFT)
            + index as u64 * HV_EVENT_FLAGS_SIZE
            + u64::from(flag / 32) * 4;
        let bit = 1 << (flag % 32);
        let old = bus
            .platform
            .fetch_or_u32(word, bit)
            .map_err(|BadSpa| HvStatus::OPERATION_FAILED)?;
        let newly = old & bit == 0;
        if newly && interrupts(sint) {
            bus.apic.request(sint.vector(), false);
        }
        Ok(newly)
    }
}

/// What arrives at the source also interrupts. A polled one counts as not
/// masked, but does not interrupt.
fn interrupts(sint: HvSynicSint) -> bool {
    !sint.masked() && !sint.polling()
}

/// Whether the slot is free; where not, marks its message "pending" so that
/// the guest tells when it is.
fn claim_slot(platform: &dyn Platform, slot: u64) -> Result<bool, BadSpa> {
    if platform.load_u32(slot)? == 0 {
        return Ok(true);
    }
    platform.fetch_or_u32(slot + 4, u32::from(HV_MESSAGE_FLAG_PENDING) << 8)?;
    // The guest may have freed the slot before it could see the flag.
    Ok(platform.load_u32(slot)? == 0)
}

/// Writes a message, its type last: that is what publishes it.
fn write_slot(platform: &dyn Platform, slot: u64, message: &HvMessage) -> Result<(), BadSpa> {
    platform.write(slot + 4, &message.as_bytes()[4..])?;
    platform.store_u32(slot, message.header.message_type.0)
}
