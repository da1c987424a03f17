//! Time for deadlines: the time stamp counter and its frequency.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{cpu, hyperv};

/// Used where nothing tells the frequency; only deadlines depend on it.
const ASSUMED_HZ: u64 = 2_000_000_000;

/// The frequency of the time stamp counter in Hz.
pub fn tsc_hz() -> u64 {
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    let known = KNOWN.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    let found = if hyperv::present() && cpu::cpuid(0x4000_0003, 0).eax >> 11 & 1 != 0 {
        cpu::rdmsr(hyperv::msr::TSC_FREQUENCY)
    } else {
        ASSUMED_HZ
    };
    KNOWN.store(found, Ordering::Relaxed);
    found
}

/// The counter value `milliseconds` from now.
pub fn deadline(milliseconds: u64) -> u64 {
    cpu::rdtsc() + tsc_hz() / 1000 * milliseconds
}

/// Waits until `condition` holds; false when it did not within `milliseconds`.
pub fn wait_for(milliseconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let end = deadline(milliseconds);
    while !condition() {
        if cpu::rdtsc() > end {
            return condition();
        }
        cpu::pause();
    }
    true
}

/// Lets `microseconds` pass.
pub fn delay_us(microseconds: u64) {
    let end = cpu::rdtsc() + tsc_hz() / 1_000_000 * microseconds;
    while cpu::rdtsc() < end {
        cpu::pause();
    }
}
