//! The frequency of the host's time-stamp counter.

use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How far a frequency that CPUID tells may be from the measured one, parts
/// per thousand, to be believed.
const TOLERANCE: u64 = 5;
const MEASURE: Duration = Duration::from_millis(10);

/// Hz. Taken from CPUID where it tells (leaf 0x40000010 below a hypervisor,
/// leaf 0x15 on the machine itself) and measurement agrees; measured otherwise.
pub(crate) fn frequency() -> u64 {
    static FREQUENCY: OnceLock<u64> = OnceLock::new();
    *FREQUENCY.get_or_init(|| {
        let measured = measure(MEASURE);
        match told() {
            Some(told) if told.abs_diff(measured) <= measured / 1000 * TOLERANCE => told,
            _ => measure(5 * MEASURE),
        }
    })
}

fn told() -> Option<u64> {
    if __cpuid_count(1, 0).ecx >> 31 != 0 && __cpuid_count(0x4000_0000, 0).eax >= 0x4000_0010 {
        let khz = u64::from(__cpuid_count(0x4000_0010, 0).eax);
        return (khz != 0).then_some(khz * 1000);
    }
    if __cpuid_count(0, 0).eax < 0x15 {
        return None;
    }
    let leaf = __cpuid_count(0x15, 0);
    let (ratio, crystal) = (u64::from(leaf.ebx), u64::from(leaf.ecx));
    (leaf.eax != 0 && ratio != 0 && crystal != 0).then(|| crystal * ratio / u64::from(leaf.eax))
}

fn measure(time: Duration) -> u64 {
    let (start, before) = (Instant::now(), processor::tsc());
    std::thread::sleep(time);
    let (elapsed, after) = (start.elapsed(), processor::tsc());
    let ticks = u128::from(after.wrapping_sub(before)) * 1_000_000_000;
    (ticks / elapsed.as_nanos().max(1)) as u64
}

#[cfg(test)]
mod tests {
    #[test]
    fn agrees_with_the_clock() {
        let frequency = super::frequency();
        let measured = super::measure(std::time::Duration::from_millis(30));
        assert!(
            frequency.abs_diff(measured) < frequency / 50,
            "{frequency} {measured}"
        );
    }
}
