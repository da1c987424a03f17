//! Synthetic timers (TLFS 12.4).

use alloc::boxed::Box;

use tlfs::{
    HV_SYNIC_FIRST_VALID_VECTOR, HV_SYNIC_STIMER_COUNT, HvMessage, HvMessageType, HvStimerConfig,
    HvTimerMessagePayload,
};
use zerocopy::IntoBytes;

use super::{Synic, SynicBus};

/// One synthetic timer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timer {
    config: HvStimerConfig,
    count: u64,
    /// Reference time of the next expiration.
    expiry: Option<u64>,
    /// Expiration time of a message that waits for its slot.
    undelivered: Option<u64>,
}

impl Timer {
    /// Starts the timer if it is enabled and may run, else stops it.
    fn restart(&mut self, now: u64) {
        let usable = if self.config.is_direct() {
            self.config.vector() >= HV_SYNIC_FIRST_VALID_VECTOR
        } else {
            self.config.sint() != 0
        };
        if !usable {
            self.config = self.config.with_enable(false);
        }
        let running = self.config.enabled() && self.count != 0;
        self.expiry = running.then(|| {
            if self.config.periodic() {
                now.saturating_add(self.count)
            } else {
                self.count
            }
        });
    }

    /// Moves past an expiration that is due; its time.
    fn expire(&mut self, now: u64) -> Option<u64> {
        let expiry = self.expiry.filter(|expiry| *expiry <= now)?;
        if self.config.periodic() {
            // Periods that were missed are skipped, not caught up.
            let missed = (now - expiry) / self.count;
            self.expiry = missed
                .checked_add(1)
                .and_then(|periods| periods.checked_mul(self.count))
                .and_then(|step| expiry.checked_add(step));
        } else {
            self.expiry = None;
            self.config = self.config.with_enable(false);
        }
        Some(expiry)
    }
}

impl Synic {
    /// HV_X64_MSR_STIMERx_CONFIG.
    pub(crate) fn timer_config(&self, index: usize) -> u64 {
        self.timers.get(index).map_or(0, |timer| timer.config.0)
    }

    /// HV_X64_MSR_STIMERx_COUNT.
    pub(crate) fn timer_count(&self, index: usize) -> u64 {
        self.timers.get(index).map_or(0, |timer| timer.count)
    }

    /// Writes a configuration; false for reserved bits.
    pub(crate) fn set_timer_config(&mut self, index: usize, value: u64, now: u64) -> bool {
        let Some(timer) = self.timers.get_mut(index) else {
            return false;
        };
        if value & HvStimerConfig::RESERVED != 0 {
            return false;
        }
        timer.config = HvStimerConfig(value);
        timer.undelivered = None;
        timer.restart(now);
        true
    }

    /// Writes a count: 0 stops the timer, others start one that is
    /// auto-enabled.
    pub(crate) fn set_timer_count(&mut self, index: usize, count: u64, now: u64) {
        let Some(timer) = self.timers.get_mut(index) else {
            return;
        };
        timer.count = count;
        timer.undelivered = None;
        if count == 0 {
            timer.config = timer.config.with_enable(false);
        } else if timer.config.auto_enable() {
            timer.config = timer.config.with_enable(true);
        }
        timer.restart(now);
    }

    /// The next time at which a timer expires.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.timers.iter().filter_map(|timer| timer.expiry).min()
    }

    /// Expires the timers that are due.
    pub(crate) fn expire_timers(&mut self, bus: &mut SynicBus<'_>) {
        for timer in &mut self.timers {
            let direct = timer.config;
            let Some(expiry) = timer.expire(bus.now) else {
                continue;
            };
            if direct.is_direct() {
                bus.apic.request(direct.vector(), false);
            } else {
                timer.undelivered.get_or_insert(expiry);
            }
        }
    }

    /// The first timer whose message waits for source `sint`.
    pub(super) fn waiting_timer(&self, sint: usize) -> Option<usize> {
        (0..HV_SYNIC_STIMER_COUNT).find(|index| {
            let timer = &self.timers[*index];
            timer.undelivered.is_some() && usize::from(timer.config.sint()) == sint
        })
    }

    pub(super) fn take_timer_message(&mut self, sint: usize, now: u64) -> Option<Box<HvMessage>> {
        let index = self.waiting_timer(sint)?;
        let expiration_time = self.timers[index].undelivered.take()?;
        let payload = HvTimerMessagePayload {
            timer_index: index as u32,
            reserved: 0,
            expiration_time,
            delivery_time: now,
        };
        Some(Box::new(HvMessage::new(
            HvMessageType::TIMER_EXPIRED,
            0,
            payload.as_bytes(),
        )))
    }
}
