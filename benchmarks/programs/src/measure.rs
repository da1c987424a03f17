//! How long one operation of a program takes.

use std::io;
use std::time::{Duration, Instant};

use crate::catalogue::{Program, Setting};

/// Batches that the time is divided into. Many, so that the median passes over those that
/// something else on the machine disturbed.
const BATCHES: u32 = 40;
/// The same for two threads, which have to meet before each batch.
const BATCHES_OF_TWO: u32 = 10;
/// Fewest batches, however slow they are.
const MIN_BATCHES: usize = 3;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Measured {
    /// Nanoseconds per operation: the median of the batches.
    pub(crate) ns_per_operation: f64,
    /// Checksum of the fixed work.
    pub(crate) checksum: u64,
}

/// Runs a program: the fixed work for the checksum, ever larger batches until one takes its share
/// of `budget` (which warms caches and translators up), then batches of that size for `budget`.
pub(crate) fn measure(
    program: &Program,
    setting: &Setting,
    budget: Duration,
) -> io::Result<Measured> {
    let mut work = (program.start)(setting)?;
    let checksum = work(program.fixed)?;
    let mut batch = |operations: u64| -> io::Result<Duration> {
        let start = Instant::now();
        std::hint::black_box(work(operations)?);
        Ok(start.elapsed())
    };
    let batches = if program.processors == 1 {
        BATCHES
    } else {
        BATCHES_OF_TWO
    };
    let share = budget / batches;
    let mut operations = 1;
    loop {
        let mut took = batch(operations)?;
        if took >= share {
            // Once may be an accident.
            took = batch(operations)?;
            if took >= share {
                break;
            }
        }
        operations = larger(operations, took, share);
    }
    let mut samples = Vec::new();
    let mut total = Duration::ZERO;
    while total < budget || samples.len() < MIN_BATCHES {
        let took = batch(operations)?;
        total += took;
        samples.push(took.as_nanos() as f64 / operations as f64);
    }
    Ok(Measured {
        ns_per_operation: median(&mut samples),
        checksum,
    })
}

/// A number of operations that comes nearer to `share` than what took `took`, at most eightfold.
fn larger(operations: u64, took: Duration, share: Duration) -> u64 {
    let factor = share.as_secs_f64() * 1.1 / took.as_secs_f64().max(1e-9);
    let next = operations as f64 * factor.clamp(1.0, 8.0);
    (next.ceil() as u64).max(operations + 1)
}

/// The middle of the samples; the mean of the two in the middle of an even number.
fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    if samples.len().is_multiple_of(2) {
        f64::midpoint(samples[middle - 1], samples[middle])
    } else {
        samples[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_counts() {
        assert_eq!(median(&mut [9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 100.0]), 3.0);
    }

    #[test]
    fn batches_grow_towards_their_share() {
        let ms = Duration::from_millis;
        assert_eq!(larger(1, ms(0), ms(100)), 8);
        assert!((220..=221).contains(&larger(100, ms(50), ms(100))));
        assert_eq!(larger(1, ms(99), ms(100)), 2);
    }

    #[test]
    fn a_program_is_timed_and_summed() {
        let program = Program {
            name: "sleep",
            group: "test",
            processors: 1,
            operation: "a millisecond",
            fixed: 3,
            start: |_| {
                Ok(Box::new(|operations| {
                    std::thread::sleep(Duration::from_millis(operations));
                    Ok(operations)
                }))
            },
        };
        let setting = Setting {
            busybox: "".into(),
            folder: "".into(),
        };
        let result = measure(&program, &setting, Duration::from_millis(50)).unwrap();
        assert_eq!(result.checksum, 3);
        assert!((1e6..5e6).contains(&result.ns_per_operation), "{result:?}");
    }
}
