//! The core of the local APIC: modes, priorities, accepting, delivering and
//! ending interrupts, and the local interrupt pins.

use alloc::vec::Vec;

use super::registers::{self as reg, Lvt};
use super::timer::{Timer, TimerMode};
use super::vector_set::VectorSet;
use super::{ApicConfig, ApicEffect, ApicFault, ApicMode, DeliveryMode, Ipi, IpiTarget};

/// The local APIC of one virtual processor.
#[derive(Clone, Debug)]
pub struct LocalApic {
    pub(super) id: u32,
    pub(super) base: u64,
    bootstrap: bool,
    physical_address_width: u8,
    pub(super) tpr: u8,
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) svr: u32,
    pub(super) isr: VectorSet,
    pub(super) tmr: VectorSet,
    pub(super) irr: VectorSet,
    /// What the guest reads from the ESR: the errors up to its last write.
    pub(super) esr: u32,
    /// Errors since the guest last wrote the ESR.
    pub(super) esr_pending: u32,
    pub(super) icr: u64,
    pub(super) lvt: [u32; reg::LVT_COUNT],
    pub(super) timer: Timer,
    lint: [bool; 2],
}

impl LocalApic {
    /// An APIC as after power-on: enabled in xAPIC mode at 0xFEE00000, with
    /// the software-enable bit clear.
    pub fn new(config: &ApicConfig) -> Self {
        let mut apic = Self {
            id: config.apic_id,
            base: 0,
            bootstrap: config.bootstrap,
            physical_address_width: 52,
            tpr: 0,
            ldr: 0,
            dfr: 0,
            svr: 0,
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            irr: VectorSet::default(),
            esr: 0,
            esr_pending: 0,
            icr: 0,
            lvt: [0; reg::LVT_COUNT],
            timer: Timer::new(config.tsc_frequency, config.apic_frequency),
            lint: [false; 2],
        };
        apic.reset(true);
        apic
    }

    /// Sets the physical-address width (CPUID 0x80000008 EAX[7:0], 32 to 52
    /// bits) above which bits of IA32_APIC_BASE are reserved. It is 52 until
    /// told.
    pub fn set_physical_address_width(&mut self, bits: u8) {
        self.physical_address_width = bits.clamp(32, 52);
    }

    /// Resets the registers. An INIT (`power_on` false) keeps the APIC id,
    /// IA32_APIC_BASE and with it the mode (SDM 3A, "Local APIC State After
    /// It Receives an INIT-Reset IPI").
    pub fn reset(&mut self, power_on: bool) {
        if power_on {
            let bsp = if self.bootstrap { reg::BASE_BSP } else { 0 };
            self.base = reg::DEFAULT_BASE | reg::BASE_ENABLE | bsp;
        }
        self.tpr = 0;
        self.ldr = 0;
        self.dfr = u32::MAX;
        self.svr = 0xFF;
        self.isr = VectorSet::default();
        self.tmr = VectorSet::default();
        self.irr = VectorSet::default();
        self.esr = 0;
        self.esr_pending = 0;
        self.icr = 0;
        self.lvt = [reg::LVT_MASKED; reg::LVT_COUNT];
        self.timer.reset();
    }

    /// Sets LINT0 to ExtINT and LINT1 to NMI and enables the APIC, the
    /// "virtual wire" state in which PC firmware leaves the bootstrap
    /// processor.
    pub fn set_virtual_wire(&mut self) {
        self.svr |= reg::SVR_ENABLE;
        self.lvt[Lvt::Lint0 as usize] = 7 << 8;
        self.lvt[Lvt::Lint1 as usize] = 4 << 8;
    }

    /// The present mode.
    pub fn mode(&self) -> ApicMode {
        match (
            self.base & reg::BASE_ENABLE != 0,
            self.base & reg::BASE_EXTD != 0,
        ) {
            (false, _) => ApicMode::Disabled,
            (true, false) => ApicMode::XApic,
            (true, true) => ApicMode::X2Apic,
        }
    }

    /// MSR 0x1B, IA32_APIC_BASE.
    pub fn base_msr(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE. Registers keep their contents while the APIC is
    /// globally disabled.
    ///
    /// # Errors
    ///
    /// #GP for reserved bits and for the transitions that SDM 3A, "x2APIC
    /// State Transitions" forbids.
    pub fn set_base_msr(&mut self, value: u64) -> Result<(), ApicFault> {
        let above_width = u64::MAX << self.physical_address_width;
        if value & (reg::BASE_RESERVED_LOW | above_width) != 0 {
            return Err(ApicFault::ReservedBits);
        }
        let extended = value & reg::BASE_EXTD != 0;
        let legal = match value & reg::BASE_ENABLE != 0 {
            false => !extended,
            true if extended => self.mode() != ApicMode::Disabled,
            true => self.mode() != ApicMode::X2Apic,
        };
        if !legal {
            return Err(ApicFault::IllegalTransition);
        }
        let old = self.mode();
        self.base = value;
        if old != self.mode() {
            // The destination field moves between the two layouts.
            self.icr &= reg::ICR_LOW_WRITABLE;
        }
        Ok(())
    }

    /// Guest-physical address of the register page, in xAPIC mode.
    pub fn mmio_base(&self) -> Option<u64> {
        (self.mode() == ApicMode::XApic).then_some(self.base & reg::BASE_ADDRESS)
    }

    /// Whether the software-enable bit is set and the APIC is not globally
    /// disabled.
    pub fn is_enabled(&self) -> bool {
        self.svr & reg::SVR_ENABLE != 0 && self.mode() != ApicMode::Disabled
    }

    /// The task-priority register; CR8 is its bits 7:4.
    pub fn tpr(&self) -> u8 {
        self.tpr
    }

    /// Sets the task-priority register. Works in every mode, as CR8 does.
    pub fn set_tpr(&mut self, value: u8) {
        self.tpr = value;
    }

    /// The processor-priority register.
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= in_service >> 4 {
            self.tpr
        } else {
            in_service & 0xF0
        }
    }

    /// Accepts a fixed interrupt. A vector below 16 is recorded in the ESR
    /// and dropped; a disabled APIC accepts nothing.
    pub fn request(&mut self, vector: u8, level: bool) {
        if !self.is_enabled() {
            return;
        }
        if vector < reg::FIRST_LEGAL_VECTOR {
            self.record_error(reg::ESR_RECEIVED_ILLEGAL_VECTOR);
            return;
        }
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
        self.irr.insert(vector);
    }

    /// Whether `vector` is requested and not yet acknowledged.
    pub fn is_requested(&self, vector: u8) -> bool {
        self.irr.contains(vector)
    }

    /// Whether `vector` is in service.
    pub fn is_in_service(&self, vector: u8) -> bool {
        self.isr.contains(vector)
    }

    /// The vector that the processor would take now: the highest request
    /// whose class is above the processor priority's. Requests that were
    /// accepted stay deliverable when software disables the APIC (SDM 3A,
    /// "Local APIC State After It Has Been Software Disabled").
    pub fn deliverable(&self) -> Option<u8> {
        if self.mode() == ApicMode::Disabled {
            return None;
        }
        self.irr
            .highest()
            .filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    /// Any interrupt is requested, whatever its priority.
    pub fn has_request(&self) -> bool {
        self.mode() != ApicMode::Disabled && self.irr.highest().is_some()
    }

    /// Takes the deliverable vector into service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.acknowledge_auto_eoi()?;
        self.isr.insert(vector);
        Some(vector)
    }

    /// Takes the deliverable vector without putting it in service: for a
    /// synthetic interrupt source with auto-EOI (TLFS, "SINTx Registers").
    pub fn acknowledge_auto_eoi(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.irr.remove(vector);
        Some(vector)
    }

    /// Ends the highest interrupt in service, if there is one.
    pub fn eoi(&mut self, effects: &mut Vec<ApicEffect>) {
        let Some(vector) = self.isr.highest() else {
            return;
        };
        self.isr.remove(vector);
        if self.tmr.contains(vector) {
            effects.push(ApicEffect::EoiBroadcast { vector });
            self.end_lint_level(vector);
        }
    }

    /// Drives a local interrupt pin: 0 is LINT0, 1 is LINT1, others do not
    /// exist. What happens is up to the pin's LVT entry; for ExtINT see
    /// [`LocalApic::extint_asserted`].
    pub fn lint(&mut self, pin: u8, asserted: bool, effects: &mut Vec<ApicEffect>) {
        let index = usize::from(pin);
        let Some(line) = self.lint.get_mut(index) else {
            return;
        };
        let rising = asserted && !*line;
        *line = asserted;
        let entry = self.lint_entry(index);
        if entry & reg::LVT_MASKED != 0 || self.mode() == ApicMode::Disabled {
            return;
        }
        let mode = DeliveryMode::from_bits((entry >> 8) as u8);
        match mode {
            Some(DeliveryMode::Fixed) if is_level(index, entry) => self.assert_lint_level(index),
            _ if !rising => {}
            Some(DeliveryMode::Fixed) => self.request(entry as u8, false),
            Some(DeliveryMode::Nmi) => effects.push(ApicEffect::Nmi),
            Some(mode @ (DeliveryMode::Smi | DeliveryMode::Init)) => {
                effects.push(self_ipi(mode, entry as u8));
            }
            _ => {}
        }
    }

    /// Whether an interrupt of the 8259 pair waits on LINT0: the line is
    /// high, and LINT0 is an unmasked ExtINT or the APIC is globally
    /// disabled, which connects the line to INTR. The vector comes from the
    /// 8259's acknowledge cycle; the APIC's priorities play no part.
    pub fn extint_asserted(&self) -> bool {
        self.lint[0] && self.accepts_extint()
    }

    /// Whether LINT0 is set up to pass 8259 interrupts.
    pub fn accepts_extint(&self) -> bool {
        let entry = self.lint_entry(0);
        self.mode() == ApicMode::Disabled || entry & (reg::LVT_MODE | reg::LVT_MASKED) == 7 << 8
    }

    /// Guest TSC of the next timer expiry. A masked count is not reported:
    /// it is worked out when it is next looked at.
    pub fn next_deadline(&self) -> Option<u64> {
        let entry = self.lvt[Lvt::Timer as usize];
        let mode = TimerMode::from_lvt(entry);
        let silent = entry & reg::LVT_MASKED != 0 && mode != TimerMode::TscDeadline;
        if silent || self.mode() == ApicMode::Disabled {
            None
        } else {
            self.timer.next(mode)
        }
    }

    /// Requests the timer's interrupt if it expired by `now_tsc`.
    pub fn expire(&mut self, now_tsc: u64) {
        let entry = self.lvt[Lvt::Timer as usize];
        let expired = self.timer.expire(TimerMode::from_lvt(entry), now_tsc);
        if expired && entry & reg::LVT_MASKED == 0 {
            self.request(entry as u8, false);
        }
    }

    /// Tells the APIC that the guest's TSC was changed from `old_tsc` to
    /// `new_tsc` at this moment. Running counts go on undisturbed; a TSC
    /// deadline stays the absolute value that it is.
    pub fn rebase_tsc(&mut self, old_tsc: u64, new_tsc: u64) {
        self.timer.rebase(old_tsc, new_tsc);
    }

    /// MSR 0x6E0, IA32_TSC_DEADLINE: zero when disarmed, expired or not in
    /// TSC-deadline mode.
    pub fn tsc_deadline(&self) -> u64 {
        if self.in_deadline_mode() {
            self.timer.deadline()
        } else {
            0
        }
    }

    /// Writes IA32_TSC_DEADLINE: zero disarms; ignored outside TSC-deadline
    /// mode. A deadline in the past expires at the next
    /// [`LocalApic::expire`], so call that before the guest goes on.
    pub fn set_tsc_deadline(&mut self, value: u64) {
        if self.in_deadline_mode() {
            self.timer.set_deadline(value);
        }
    }

    /// Records an error and raises the error interrupt for a new one.
    pub(super) fn record_error(&mut self, error: u32) {
        let new = self.esr_pending & error != error;
        self.esr_pending |= error;
        let entry = self.lvt[Lvt::Error as usize];
        // An illegal vector in the error entry itself has no further effect.
        if new && entry & reg::LVT_MASKED == 0 && entry as u8 >= reg::FIRST_LEGAL_VECTOR {
            self.request(entry as u8, false);
        }
    }

    /// Sends what an ICR value says, in the present mode's layout.
    pub(super) fn send(&mut self, icr: u64, effects: &mut Vec<ApicEffect>) {
        let vector = icr as u8;
        let Some(mode) = DeliveryMode::from_bits((icr >> 8) as u8) else {
            return;
        };
        let deassert = icr & (reg::ICR_ASSERT | reg::ICR_LEVEL) == reg::ICR_LEVEL;
        match mode {
            DeliveryMode::ExtInt => return,
            DeliveryMode::Init if deassert => return,
            DeliveryMode::Fixed | DeliveryMode::LowestPriority
                if vector < reg::FIRST_LEGAL_VECTOR =>
            {
                self.record_error(reg::ESR_SEND_ILLEGAL_VECTOR);
                return;
            }
            _ => {}
        }
        let destination = match icr >> 18 & 3 {
            0 => IpiTarget::To(self.icr_destination(icr)),
            1 => IpiTarget::SelfOnly,
            2 => IpiTarget::All,
            _ => IpiTarget::AllButSelf,
        };
        effects.push(ApicEffect::Ipi(Ipi {
            destination,
            mode,
            vector,
            level_asserted: true,
            level_triggered: false,
        }));
    }

    fn in_deadline_mode(&self) -> bool {
        self.mode() != ApicMode::Disabled
            && TimerMode::from_lvt(self.lvt[Lvt::Timer as usize]) == TimerMode::TscDeadline
    }

    fn lint_entry(&self, index: usize) -> u32 {
        self.lvt[if index == 0 { Lvt::Lint0 } else { Lvt::Lint1 } as usize]
    }

    fn lint_entry_mut(&mut self, index: usize) -> &mut u32 {
        &mut self.lvt[if index == 0 { Lvt::Lint0 } else { Lvt::Lint1 } as usize]
    }

    /// Requests a level interrupt of a LINT pin once until its EOI.
    fn assert_lint_level(&mut self, index: usize) {
        let entry = self.lint_entry(index);
        let ready = entry & (reg::LVT_MASKED | reg::LVT_REMOTE_IRR) == 0;
        if self.lint[index] && ready && is_level(index, entry) {
            *self.lint_entry_mut(index) |= reg::LVT_REMOTE_IRR;
            self.request(entry as u8, true);
        }
    }

    fn end_lint_level(&mut self, vector: u8) {
        let entry = self.lint_entry(0);
        if entry & reg::LVT_REMOTE_IRR != 0 && entry as u8 == vector {
            *self.lint_entry_mut(0) &= !reg::LVT_REMOTE_IRR;
            self.assert_lint_level(0);
        }
    }

    /// Acts on a level that was already there when LINT0 was unmasked.
    pub(super) fn refresh_lint_level(&mut self) {
        self.assert_lint_level(0);
    }
}

/// Level triggering exists for fixed delivery on LINT0 alone.
fn is_level(index: usize, entry: u32) -> bool {
    index == 0 && entry & (reg::LVT_LEVEL | reg::LVT_MODE) == reg::LVT_LEVEL
}

fn self_ipi(mode: DeliveryMode, vector: u8) -> ApicEffect {
    ApicEffect::Ipi(Ipi {
        destination: IpiTarget::SelfOnly,
        mode,
        vector,
        level_asserted: true,
        level_triggered: false,
    })
}
