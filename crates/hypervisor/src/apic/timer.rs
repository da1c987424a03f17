//! The APIC timer: one-shot and periodic counting of the divided APIC clock,
//! and the TSC deadline (Intel SDM 3A, "APIC Timer").
//!
//! All of it is arithmetic on the guest's TSC; nothing runs by itself. Counts
//! are kept as absolute ticks of the undivided APIC clock, so a periodic
//! timer does not drift however late it is looked at.

use super::registers::{DIVIDE_WRITABLE, LVT_TIMER_MODE};

/// What LVT timer bits 18:17 select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// The reserved encoding: the timer stands still.
    Reserved,
}

impl TimerMode {
    pub(super) fn from_lvt(lvt: u32) -> Self {
        match (lvt & LVT_TIMER_MODE) >> 17 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }

    fn counts(self) -> bool {
        matches!(self, Self::OneShot | Self::Periodic)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Timer {
    tsc_frequency: u64,
    apic_frequency: u64,
    initial: u32,
    divide: u32,
    /// When the running count reaches zero, in undivided APIC clock ticks.
    expiry: Option<u64>,
    deadline: u64,
}

impl Timer {
    /// Frequencies in Hz; zero is taken as one, so that hostile or missing
    /// values cannot divide by zero.
    pub(super) fn new(tsc_frequency: u64, apic_frequency: u64) -> Self {
        Self {
            tsc_frequency: tsc_frequency.max(1),
            apic_frequency: apic_frequency.max(1),
            initial: 0,
            divide: 0,
            expiry: None,
            deadline: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.tsc_frequency, self.apic_frequency);
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    pub(super) fn deadline(&self) -> u64 {
        self.deadline
    }

    pub(super) fn set_deadline(&mut self, tsc: u64) {
        self.deadline = tsc;
    }

    /// Starts counting down from `count`; zero stops the timer.
    pub(super) fn start(&mut self, count: u32, mode: TimerMode, now_tsc: u64) {
        if !mode.counts() {
            return;
        }
        self.initial = count;
        self.restart(count, now_tsc);
    }

    /// Continues a count without touching the initial count.
    pub(super) fn restart(&mut self, count: u32, now_tsc: u64) {
        let ticks = u64::from(count) << self.shift();
        self.expiry = (count != 0).then(|| self.ticks(now_tsc).saturating_add(ticks));
    }

    pub(super) fn set_initial(&mut self, count: u32) {
        self.initial = count;
    }

    /// The current count.
    pub(super) fn current(&self, mode: TimerMode, now_tsc: u64) -> u32 {
        let Some(expiry) = self.expiry else { return 0 };
        let now = self.ticks(now_tsc);
        let left = match mode {
            TimerMode::OneShot => expiry.saturating_sub(now),
            TimerMode::Periodic => self.next_period(expiry, now).saturating_sub(now),
            TimerMode::TscDeadline | TimerMode::Reserved => 0,
        };
        // A TSC that went backwards can leave more than was started with.
        let count = left.div_ceil(1 << self.shift());
        u32::try_from(count).map_or(self.initial, |count| count.min(self.initial))
    }

    /// Changes the divisor; a running count continues at the new rate.
    pub(super) fn set_divide(&mut self, value: u32, mode: TimerMode, now_tsc: u64) {
        let current = self.current(mode, now_tsc);
        self.divide = value & DIVIDE_WRITABLE;
        if self.expiry.is_some() {
            self.restart(current, now_tsc);
        }
    }

    /// Entering or leaving TSC-deadline mode disarms the timer; the two
    /// counting modes share a running count.
    pub(super) fn change_mode(&mut self, old: TimerMode, new: TimerMode) {
        if old != new && !(old.counts() && new.counts()) {
            self.initial = 0;
            self.expiry = None;
            self.deadline = 0;
        }
    }

    /// Brings the timer up to `now_tsc`; whether it expired since the last
    /// call. Missed periods count as one.
    pub(super) fn expire(&mut self, mode: TimerMode, now_tsc: u64) -> bool {
        if mode == TimerMode::TscDeadline {
            let due = self.deadline != 0 && now_tsc >= self.deadline;
            if due {
                self.deadline = 0;
            }
            return due;
        }
        let now = self.ticks(now_tsc);
        let Some(expiry) = self.expiry.filter(|&expiry| expiry <= now) else {
            return false;
        };
        self.expiry = match mode {
            TimerMode::Periodic => Some(self.next_period(expiry, now)),
            _ => None,
        };
        mode.counts()
    }

    /// The guest TSC at which [`Timer::expire`] next has something to do.
    pub(super) fn next(&self, mode: TimerMode) -> Option<u64> {
        match mode {
            TimerMode::TscDeadline => (self.deadline != 0).then_some(self.deadline),
            TimerMode::OneShot | TimerMode::Periodic => self.expiry.map(|e| self.tsc_at(e)),
            TimerMode::Reserved => None,
        }
    }

    /// Keeps a running count in place when the guest's TSC is changed.
    pub(super) fn rebase(&mut self, old_tsc: u64, new_tsc: u64) {
        let (old, new) = (self.ticks(old_tsc), self.ticks(new_tsc));
        self.expiry = self
            .expiry
            .map(|e| e.saturating_sub(old).saturating_add(new));
    }

    /// The first end of a period after `now`.
    fn next_period(&self, expiry: u64, now: u64) -> u64 {
        if expiry > now {
            return expiry;
        }
        let period = (u64::from(self.initial) << self.shift()).max(1);
        let missed = (now - expiry) / period + 1;
        expiry.saturating_add(missed.saturating_mul(period))
    }

    /// Log2 of the divisor: encodings 0 to 6 are 2 to 128 and 7 is 1.
    fn shift(&self) -> u32 {
        let encoding = (self.divide & 3) | (self.divide >> 1 & 4);
        (encoding + 1) & 7
    }

    fn ticks(&self, tsc: u64) -> u64 {
        let ticks =
            u128::from(tsc) * u128::from(self.apic_frequency) / u128::from(self.tsc_frequency);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The first TSC value at which [`Timer::ticks`] is at least `ticks`.
    fn tsc_at(&self, ticks: u64) -> u64 {
        let tsc = (u128::from(ticks) * u128::from(self.tsc_frequency))
            .div_ceil(u128::from(self.apic_frequency));
        u64::try_from(tsc).unwrap_or(u64::MAX)
    }
}
