//! All processors hammer shared memory; sums and orderings must come out as the architecture
//! promises. `seconds=N` on the command line sets the whole duration (default 5).
#![no_std]
#![no_main]

mod counters;
mod litmus;
mod locks;

use guest_kit::{cpu, guest, options, smp, time};

guest!(
    "stress-atomics",
    counters::additions,
    counters::exchanges,
    counters::wide,
    counters::bits,
    counters::tokens,
    locks::ticket,
    locks::peterson,
    litmus::store_buffering,
    litmus::message_passing,
    litmus::coherence,
);

/// Each test's share of the time, as an end in TSC units.
pub(crate) fn end() -> u64 {
    cpu::rdtsc() + time::tsc_hz() / 1000 * (options::number("seconds", 5) * 1000 / 10)
}

/// Runs `code` on all processors at once; reports when one does not end.
pub(crate) fn together<F: Fn(usize) + Sync>(code: F) -> usize {
    let ended = smp::run_everywhere(&code, 1000 * (options::number("seconds", 5) + 30));
    if !ended {
        guest_kit::report::fail("all processors end", false, true);
        guest_kit::report::finish();
    }
    smp::start()
}

/// A value in a cache line of its own.
#[repr(align(64))]
pub(crate) struct Line<T>(pub T);
