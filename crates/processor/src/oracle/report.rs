//! What a run found.

use super::instance::Case;
use super::{Mode, Outcome};
use iced_x86::{Code, Decoder, DecoderOptions, Formatter, IntelFormatter};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Mismatches printed in full per form.
const SHOWN: usize = 2;

/// Collects the results of all forms.
pub(super) struct Report {
    seed: u64,
    mode: Mode,
    reasons: BTreeMap<&'static str, Vec<Code>>,
    cases: BTreeMap<String, u64>,
    mismatches: BTreeMap<String, Vec<String>>,
}

impl Report {
    pub(super) fn new(seed: u64, mode: Mode) -> Self {
        Self {
            seed,
            mode,
            reasons: BTreeMap::new(),
            cases: BTreeMap::new(),
            mismatches: BTreeMap::new(),
        }
    }

    pub(super) fn left_out(&mut self, code: Code, reason: &'static str) {
        self.reasons.entry(reason).or_default().push(code);
    }

    pub(super) fn covered(&mut self, code: Code, cases: u64) {
        self.cases.insert(format!("{code:?}"), cases);
    }

    pub(super) fn mismatch(&mut self, code: Code, difference: String) {
        self.mismatches
            .entry(format!("{code:?}"))
            .or_default()
            .push(difference);
    }

    /// Prints the forms left out, and panics if any form differs or had too
    /// few cases to mean something.
    pub(super) fn finish(self, runs: u64) {
        println!("{:?}: {} forms, {runs} runs", self.mode, self.cases.len());
        for (reason, codes) in &self.reasons {
            println!("left out, {reason}:\n  {codes:?}");
        }
        let most = self.cases.values().copied().max().unwrap_or(0);
        let thin: Vec<_> = self.cases.iter().filter(|&(_, &n)| n * 4 < most).collect();
        let mut text = String::new();
        for (form, found) in &self.mismatches {
            let _ = writeln!(text, "{form}: {} mismatches", found.len());
            for difference in found.iter().take(SHOWN) {
                let _ = writeln!(text, "{difference}");
            }
        }
        assert!(text.is_empty(), "seed {:#x}\n{text}", self.seed);
        assert!(thin.is_empty(), "forms with few cases: {thin:?}");
    }
}

fn packed(outcome: &Outcome) -> u64 {
    outcome
        .selectors
        .iter()
        .fold(0, |all, &one| all << 16 | u64::from(one))
}

/// Instruction, start and both outcomes.
pub(super) fn difference(
    case: &Case,
    mode: Mode,
    native: &Outcome,
    guest: &Outcome,
    memory: Option<(u64, u8, u8)>,
) -> String {
    let mut text = String::new();
    let bits = mode.bits();
    let mut decoder = Decoder::with_ip(bits, &case.code, case.registers.rip, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let mut line = String::new();
        formatter.format(&instruction, &mut line);
        let _ = writeln!(text, "    {line}");
    }
    let _ = writeln!(text, "    code {:02x?}", case.code);
    let names = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    let rows = names.iter().enumerate().map(|(i, name)| {
        (
            *name,
            case.registers.gpr[i],
            native.registers.gpr[i],
            guest.registers.gpr[i],
        )
    });
    let tail = [
        (
            "rip",
            case.registers.rip,
            native.registers.rip,
            guest.registers.rip,
        ),
        (
            "rflags",
            case.registers.rflags,
            native.registers.rflags,
            guest.registers.rflags,
        ),
        ("cs", 0, u64::from(native.cs), u64::from(guest.cs)),
        ("ds es gs", 0, packed(native), packed(guest)),
        (
            "vector",
            0,
            u64::from(native.vector),
            u64::from(guest.vector),
        ),
        ("error", 0, u64::from(native.error), u64::from(guest.error)),
        ("address", 0, native.address, guest.address),
    ];
    for (name, before, host, interpreter) in rows.chain(tail) {
        let mark = if host == interpreter { ' ' } else { '*' };
        if before != host || mark == '*' || before != 0 && name != "rip" {
            let _ = writeln!(
                text,
                "  {mark} {name:7} before {before:016x} native {host:016x} guest {interpreter:016x}"
            );
        }
    }
    if let Some((at, host, interpreter)) = memory {
        let _ = writeln!(
            text,
            "  * memory {at:#x}: native {host:02x} guest {interpreter:02x}"
        );
    }
    if let Some(stuck) = guest.stuck {
        let _ = writeln!(text, "  * guest: {stuck}");
    }
    text
}
