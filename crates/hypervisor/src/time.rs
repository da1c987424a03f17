//! Partition reference time (TLFS 12.2 to 12.5): one time line for the
//! counter MSR, the TSC page and the synthetic timers.

use spin::Mutex;
use tlfs::{HV_REFERENCE_TIME_HZ, HvReferenceTscPage};

use crate::{Platform, Processor};

/// A partition's reference clock, in units of 100 ns.
#[derive(Debug)]
pub(crate) struct ReferenceClock {
    frequency: u64,
    scale: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Guest TSC minus host TSC (wrapping), once a VP has run.
    tsc_offset: Option<u64>,
    /// Added to the scaled guest TSC.
    offset: i64,
    frozen: Option<u64>,
    /// Of the TSC page; never 0 while time runs.
    sequence: u32,
}

impl ReferenceClock {
    /// A clock at 0.
    pub(crate) fn new(platform: &dyn Platform) -> Self {
        let frequency = platform.tsc_frequency().max(HV_REFERENCE_TIME_HZ + 1);
        let scale = ((u128::from(HV_REFERENCE_TIME_HZ) << 64) / u128::from(frequency)) as u64;
        let offset = -(scaled(platform.tsc(), scale) as i64);
        let state = State {
            tsc_offset: None,
            offset,
            frozen: None,
            sequence: 1,
        };
        Self {
            frequency,
            scale,
            state: Mutex::new(state),
        }
    }

    /// The guest TSC's frequency, Hz.
    pub(crate) fn frequency(&self) -> u64 {
        self.frequency
    }

    /// Reference time now.
    pub(crate) fn now(&self, platform: &dyn Platform) -> u64 {
        let state = self.state.lock();
        state
            .frozen
            .unwrap_or_else(|| self.time(&state, platform.tsc()))
    }

    fn time(&self, state: &State, host_tsc: u64) -> u64 {
        let guest_tsc = host_tsc.wrapping_add(state.tsc_offset.unwrap_or(0));
        scaled(guest_tsc, self.scale).wrapping_add_signed(state.offset)
    }

    /// Learns the guest TSC's offset from a virtual processor, once: the
    /// first to run. Returns whether it did.
    pub(crate) fn adopt_tsc(&self, platform: &dyn Platform, cpu: &dyn Processor) -> bool {
        if self.state.lock().tsc_offset.is_some() {
            return false;
        }
        let tsc_offset = measure_offset(platform, cpu);
        let mut state = self.state.lock();
        if state.tsc_offset.is_some() {
            return false;
        }
        let host_tsc = platform.tsc();
        let time = self.time(&state, host_tsc);
        state.tsc_offset = Some(tsc_offset);
        self.set_time(&mut state, host_tsc, time);
        true
    }

    fn set_time(&self, state: &mut State, host_tsc: u64, time: u64) {
        let guest_tsc = host_tsc.wrapping_add(state.tsc_offset.unwrap_or(0));
        state.offset = time.wrapping_sub(scaled(guest_tsc, self.scale)) as i64;
        state.sequence = state.sequence.wrapping_add(1).max(1);
    }

    /// Stops or continues time.
    pub(crate) fn freeze(&self, platform: &dyn Platform, frozen: bool) {
        let mut state = self.state.lock();
        match (frozen, state.frozen) {
            (true, None) => state.frozen = Some(self.time(&state, platform.tsc())),
            (false, Some(time)) => {
                state.frozen = None;
                self.set_time(&mut state, platform.tsc(), time);
            }
            _ => {}
        }
    }

    /// Whether time stands.
    pub(crate) fn is_frozen(&self) -> bool {
        self.state.lock().frozen.is_some()
    }

    /// Sets the time; only while it stands. Returns whether it was set.
    pub(crate) fn set_frozen_time(&self, time: u64) -> bool {
        let mut state = self.state.lock();
        let standing = state.frozen.is_some();
        if standing {
            state.frozen = Some(time);
        }
        standing
    }

    /// What the reference TSC page holds now.
    pub(crate) fn page(&self) -> HvReferenceTscPage {
        let state = self.state.lock();
        HvReferenceTscPage {
            tsc_sequence: if state.frozen.is_some() {
                0
            } else {
                state.sequence
            },
            reserved1: 0,
            tsc_scale: self.scale,
            tsc_offset: state.offset,
        }
    }

    /// The reference time `ticks` of TSC after `now`, rounded up.
    pub(crate) fn after_ticks(&self, now: u64, ticks: u64) -> u64 {
        let units = u128::from(ticks) * u128::from(HV_REFERENCE_TIME_HZ);
        let units = units.div_ceil(u128::from(self.frequency));
        now.saturating_add(u64::try_from(units).unwrap_or(u64::MAX))
    }
}

fn scaled(tsc: u64, scale: u64) -> u64 {
    ((u128::from(tsc) * u128::from(scale)) >> 64) as u64
}

/// Guest TSC minus host TSC, from the closest of a few pairs of readings.
fn measure_offset(platform: &dyn Platform, cpu: &dyn Processor) -> u64 {
    let mut best = (u64::MAX, 0);
    for _ in 0..8 {
        let before = platform.tsc();
        let guest = cpu.tsc();
        let width = platform.tsc().wrapping_sub(before);
        if width < best.0 {
            best = (width, guest.wrapping_sub(before.wrapping_add(width / 2)));
        }
    }
    best.1
}
