//! The differential oracle: this host's own processor.
//!
//! Every integer instruction form that user code can run is executed natively
//! and in the interpreter, on the same registers, flags and memory at the same
//! linear addresses. Afterwards everything must be equal: general registers,
//! RIP, all of RFLAGS (undefined flags too: the interpreter computes with the
//! host's instructions), every byte of memory, and how it ended: the vector,
//! error code and address of the trap or fault.
//!
//! Each run ends in an exception, if only the INT3 that fills the code page,
//! so faults are compared by the same means as results.
//!
//! Left out of the comparison, besides the forms that [`forms`] names with the
//! reason (each run prints them):
//! - what is the vendor's (these tests were made on AMD's processors): which of
//!   two faults of one instruction comes first, the alignment of far pointers,
//!   the offset of an FS or GS address that is not canonical while the linear
//!   address is ([`offset_checked`]), REP INS and REP OUTS without rights and
//!   with a count of 0;
//! - bit P of a page fault's error code in the kernel's half, which Linux hides;
//! - registers that a switch between 64-bit and other code leaves undefined:
//!   R8 to R15, and the upper half of RSP;
//! - FS in random encodings: its base is the test thread's own.
//!
//! `PARTITA_ORACLE_CASES` sets the cases per form, `PARTITA_ORACLE_SEED` the
//! seed, and `PARTITA_ORACLE_FORM` restricts a run to forms whose name
//! contains it. A mismatch prints seed, instruction and both outcomes.

mod arena;
mod encodings;
mod forms;
mod guest;
mod instance;
mod native;
mod operands;
mod random;
mod report;
mod segments;
mod sequence;

use crate::ProcessorMode;
use arena::{CODE, CODE_SIZE};
use guest::Guest;
use iced_x86::{Code, Register};
use instance::Case;
use native::Native;
pub(crate) use random::Random;
use report::Report;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Selectors of Linux: 64-bit and 32-bit user code, user data.
const CS_64: u16 = 0x33;
const CS_32: u16 = 0x23;
const SS_USER: u16 = 0x2b;
/// The GS base in both worlds.
const GS_BASE: u64 = arena::HIGH + 0x123;
/// Where Linux ends user addresses: a page before the canonical half does.
const TASK_END: u64 = 0x7fff_ffff_f000;
const INT3: u8 = 0xcc;
const DEFAULT_CASES: u64 = 2000;
const DEFAULT_SEED: u64 = 0x0070_6172_7469_7461;

/// Which code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// 64-bit.
    Long,
    /// 32-bit code in long mode.
    Compatibility,
    /// 16-bit code in long mode, in segments with a base and a limit.
    Sixteen,
}

impl Mode {
    /// The code size.
    fn bits(self) -> u32 {
        match self {
            Self::Long => 64,
            Self::Compatibility => 32,
            Self::Sixteen => 16,
        }
    }

    /// CS, SS, and DS with ES.
    fn segments(self) -> [Descriptor; 3] {
        let flat = |selector| Descriptor {
            selector,
            base: 0,
            limit: u32::MAX,
        };
        match self {
            Self::Long => [flat(CS_64), flat(SS_USER), flat(SS_USER)],
            Self::Compatibility => [flat(CS_32), flat(SS_USER), flat(SS_USER)],
            Self::Sixteen => SMALL,
        }
    }
}

/// A segment of the code under test.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    selector: u16,
    base: u64,
    limit: u32,
}

/// The 16-bit segments, in the host's local descriptor table, at selectors that
/// [`segments`] does not use. Data ends behind what is mapped.
const SMALL: [Descriptor; 3] = [
    Descriptor {
        selector: 0x87,
        base: CODE,
        limit: 0x7fff,
    },
    Descriptor {
        selector: 0x8f,
        base: arena::STACK,
        limit: 0xffff,
    },
    Descriptor {
        selector: 0x97,
        base: arena::LOW,
        limit: 0x5fff,
    },
];

/// What an instruction starts with and ends with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Registers {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Outcome {
    registers: Registers,
    cs: u16,
    /// DS, ES, GS.
    selectors: [u16; 3],
    vector: u8,
    error: u32,
    address: u64,
    /// The interpreter did something no user code can.
    stuck: Option<&'static str>,
}

impl Outcome {
    /// Drops the status flags that a fault in translated code need not show:
    /// all of them, as the faulting instruction may write them first thing
    /// when it is run again.
    fn without_dead_flags(mut self) -> Self {
        if self.vector != 3 {
            self.registers.rflags &= !crate::rflags::ARITH;
        }
        self
    }

    /// Drops what has no meaning for the vector.
    fn normalized(mut self, mode: Mode) -> Self {
        if !matches!(self.vector, 8 | 10..=14 | 17) {
            self.error = 0;
        }
        if self.vector != 14 {
            self.address = 0;
        } else if self.address >= TASK_END {
            // Linux does not tell user code which of its addresses are mapped.
            self.error |= 1;
        }
        for selector in &mut self.selectors {
            // Returning to user code makes every null selector 0.
            if *selector & !3 == 0 {
                *selector = 0;
            }
        }
        if self.cs == CS_32 || self.cs == SMALL[0].selector {
            // The upper half of RSP is undefined across a switch of modes.
            self.registers.gpr[crate::reg::RSP] &= 0xffff_ffff;
        }
        if mode != Mode::Long {
            // The upper halves, and R8 to R15, are undefined after a mode switch.
            self.registers.gpr[8..].fill(0);
        }
        self
    }
}

/// Both worlds, and what they share.
struct Oracle {
    native: Native,
    guest: Guest,
    fs_base: u64,
    /// Where the next code goes: rotating spares the host's pipeline flushes.
    written: Option<(u64, usize)>,
    runs: u64,
    mode: ProcessorMode,
}

impl Oracle {
    fn new(seed: u64, mode: ProcessorMode) -> Self {
        let fs_base = Native::fs_base();
        let native = Native::new(GS_BASE).expect("the host's memory and signals");
        let mut oracle = Self {
            native,
            guest: Guest::new(fs_base, GS_BASE, mode),
            fs_base,
            written: None,
            runs: 0,
            mode,
        };
        let mut random = Random::new(seed, 0x6d65_6d6f_7279);
        let bytes = oracle.native.view.bytes();
        bytes[..CODE_SIZE as usize].fill(INT3);
        for byte in &mut bytes[CODE_SIZE as usize..] {
            *byte = random.next() as u8;
        }
        oracle.copy_memory();
        oracle
    }

    /// Makes the guest's memory the host's.
    fn copy_memory(&mut self) {
        self.guest
            .view
            .bytes()
            .copy_from_slice(self.native.view.bytes());
        self.guest.code_changed();
    }

    /// Puts code where the case wants it, INT3 everywhere else.
    fn place(&mut self, at: u64, code: &[u8]) {
        if let Some((old, length)) = self.written.take() {
            let fill = vec![INT3; length];
            self.poke(old, &fill);
        }
        assert!(at >= CODE && at + code.len() as u64 <= CODE + CODE_SIZE);
        self.poke(at, code);
        self.written = Some((at, code.len()));
        self.guest.code_changed();
    }

    fn poke(&mut self, at: u64, bytes: &[u8]) {
        self.native.view.poke(at, bytes);
        self.guest.view.poke(at, bytes);
    }

    /// Runs a case in both worlds; `Err` describes the difference.
    fn compare(&mut self, case: &Case, mode: Mode) -> Result<(), String> {
        self.place(mode.segments()[0].base + case.registers.rip, &case.code);
        for (at, bytes) in &case.pokes {
            // Code stays what was chosen.
            if at.wrapping_add(bytes.len() as u64) <= CODE || *at >= CODE + CODE_SIZE {
                self.poke(*at, bytes);
            }
        }
        self.runs += 1;
        if self.runs.is_multiple_of(64) {
            self.guest.forget_translations();
        }
        let native = self
            .native
            .run(&case.registers, mode, case.segments)
            .normalized(mode);
        let guest = self
            .guest
            .run(&case.registers, mode, case.stepwise)
            .normalized(mode);
        let (native, guest) = match self.mode {
            ProcessorMode::Interpret => (native, guest),
            ProcessorMode::Translate | ProcessorMode::Check => {
                (native.without_dead_flags(), guest.without_dead_flags())
            }
        };
        let memory = self.memory_difference();
        if memory.is_none() && (native == guest || offset_checked(case, mode, &native, &guest)) {
            return Ok(());
        }
        self.copy_memory();
        Err(report::difference(case, mode, &native, &guest, memory))
    }

    /// The first byte that differs: address, native, guest.
    fn memory_difference(&mut self) -> Option<(u64, u8, u8)> {
        let (native, guest) = (self.native.view.bytes(), self.guest.view.bytes());
        if native == guest {
            return None;
        }
        let at = native.iter().zip(guest.iter()).position(|(a, b)| a != b)?;
        Some((arena::linear(at), native[at], guest[at]))
    }
}

/// The one difference that is the vendor's: with an FS or GS base, AMD's
/// processors raise #GP where the offset is not canonical; elsewhere only the
/// linear address, the sum with the base, is checked.
fn offset_checked(case: &Case, mode: Mode, native: &Outcome, guest: &Outcome) -> bool {
    let segment = case.first(mode).segment_prefix();
    matches!(segment, Register::FS | Register::GS)
        && native.vector == 13
        && native.registers == guest.registers
        && (guest.vector == 17 || guest.vector == 14 && guest.address >> 47 == 0x1_ffff)
}

/// The arena's addresses and the signal handlers are the process's.
fn exclusive() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else {
        return default;
    };
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{name} is not a number: {text}"))
}

/// The forms a run covers.
fn wanted(mode: Mode) -> Vec<Code> {
    let filter = std::env::var("PARTITA_ORACLE_FORM").unwrap_or_default();
    forms::all(mode)
        .into_iter()
        .filter(|code| format!("{code:?}").contains(&filter))
        .collect()
}

/// Compares every form of a mode, and that none was passed over.
fn compare_forms(mode: Mode, processor: ProcessorMode) {
    let _alone = exclusive();
    let seed = setting("PARTITA_ORACLE_SEED", DEFAULT_SEED);
    let cases = setting("PARTITA_ORACLE_CASES", DEFAULT_CASES);
    let mut oracle = Oracle::new(seed, processor);
    let mut report = Report::new(seed, mode);
    for code in wanted(mode) {
        if let Some(reason) = forms::left_out(code, mode) {
            report.left_out(code, reason);
            continue;
        }
        let mut random = Random::new(seed, code as u64);
        let mut done = 0;
        for _ in 0..cases {
            let Some(case) = instance::build(code, mode, &mut random, &mut oracle) else {
                continue;
            };
            done += 1;
            if let Err(difference) = oracle.compare(&case, mode) {
                report.mismatch(code, difference);
            }
        }
        report.covered(code, done);
    }
    report.finish(oracle.runs);
}

#[test]
fn forms_of_64_bit_mode() {
    compare_forms(Mode::Long, ProcessorMode::Interpret);
}

#[test]
fn forms_of_compatibility_mode() {
    compare_forms(Mode::Compatibility, ProcessorMode::Interpret);
}

/// Random encodings of the same forms.
fn compare_encodings(mode: Mode, processor: ProcessorMode) {
    let _alone = exclusive();
    let seed = setting("PARTITA_ORACLE_SEED", DEFAULT_SEED);
    let cases = setting("PARTITA_ORACLE_CASES", DEFAULT_CASES) * 100;
    let mut oracle = Oracle::new(seed, processor);
    let mut report = Report::new(seed, mode);
    let mut random = Random::new(seed, 0x656e_636f_6465);
    let allowed = encodings::Allowed::new(mode);
    for _ in 0..cases {
        let Some(case) = encodings::build(&allowed, mode, &mut random) else {
            continue;
        };
        if let Err(difference) = oracle.compare(&case, mode) {
            report.mismatch(case.first(mode).code(), difference);
        }
    }
    report.finish(oracle.runs);
}

#[test]
fn encodings_of_64_bit_mode() {
    compare_encodings(Mode::Long, ProcessorMode::Interpret);
}

#[test]
fn encodings_of_compatibility_mode() {
    compare_encodings(Mode::Compatibility, ProcessorMode::Interpret);
}

#[test]
fn encodings_of_16_bit_code() {
    if native::small_segments().is_err() {
        println!("not compared: this host's kernel allows no local descriptor table");
        return;
    }
    compare_encodings(Mode::Sixteen, ProcessorMode::Interpret);
}

#[test]
fn translated_encodings() {
    compare_encodings(Mode::Long, ProcessorMode::Translate);
}

#[test]
fn translated_forms() {
    compare_forms(Mode::Long, ProcessorMode::Translate);
}

#[test]
fn sequences() {
    compare_sequences(ProcessorMode::Interpret);
}

#[test]
fn translated_sequences() {
    compare_sequences(ProcessorMode::Translate);
}

fn compare_sequences(processor: ProcessorMode) {
    let _alone = exclusive();
    let seed = setting("PARTITA_ORACLE_SEED", DEFAULT_SEED);
    let cases = setting("PARTITA_ORACLE_CASES", DEFAULT_CASES) * 20;
    let mut oracle = Oracle::new(seed, processor);
    let mut report = Report::new(seed, Mode::Long);
    let mut random = Random::new(seed, 0x7365_7175);
    let pool = sequence::pool();
    for _ in 0..cases {
        let case = sequence::build(&pool, &mut random);
        if let Err(difference) = oracle.compare(&case, Mode::Long) {
            report.mismatch(Code::INVALID, difference);
        }
    }
    report.finish(oracle.runs);
}
