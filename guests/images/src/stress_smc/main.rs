//! Code that changes all the time: every change must be seen by whoever executes it next.
//! `seconds=N` on the command line sets the whole duration (default 5).
#![no_std]
#![no_main]

mod cross;
mod generated;
mod patched;

use guest_kit::{cpu, guest, insn, options, time};

guest!(
    "stress-smc",
    patched::immediate,
    patched::next_instruction,
    patched::own_loop,
    patched::across_pages,
    patched::jump_target,
    patched::data_beside_code,
    patched::string_copy,
    patched::alias,
    patched::remapped,
    generated::programs,
    generated::chains,
    cross::synchronised,
    cross::breakpoint_protocol,
);

/// Each test's share of the time, as an end in TSC units.
pub(crate) fn end() -> u64 {
    cpu::rdtsc() + time::tsc_hz() / 1000 * (options::number("seconds", 5) * 1000 / 13)
}

/// Calls code that returns a number in EAX.
pub(crate) fn run(code: u64) -> u32 {
    let result: u32;
    insn!(
        "call {code}", code = in(reg) code,
        out("rax") result, out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
        out("r8") _, out("r9") _, out("r10") _, out("r11") _,
    );
    result
}

/// Serialises the processor, as cross-modifying code demands.
pub(crate) fn serialise() {
    cpu::cpuid(0, 0);
}

/// A small generator of numbers (xorshift), seeded alike in every run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }
}

/// Repeats `step` until the time is up; gives the number of rounds and of failures.
pub(crate) fn repeat(mut step: impl FnMut(u32) -> bool) -> (u32, u32) {
    let end = end();
    let (mut rounds, mut failures) = (0, 0);
    while cpu::rdtsc() < end {
        for _ in 0..50 {
            rounds += 1;
            failures += u32::from(!step(rounds));
        }
    }
    (rounds, failures)
}

/// Reports a test's rounds and failures.
pub(crate) fn result(name: &str, (rounds, failures): (u32, u32)) {
    guest_kit::check!(rounds > 0, "{name}: {rounds} rounds");
    guest_kit::check_eq!(failures, 0, "{name}: every change was seen");
}
