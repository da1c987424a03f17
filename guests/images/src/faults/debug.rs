//! #DB: single step, breakpoints, DR6 and DR7, the resume flag (Intel SDM 3B 17).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use guest_kit::cpu::{self, cr4, flags};
use guest_kit::trap::{Frame, attempt, clear_handler, set_handler, vector};
use guest_kit::{check_eq, insn, memory};

use crate::{at, expect_fault};

const BS: u64 = 1 << 14;
const BD: u64 = 1 << 13;
/// DR6 bits that are always set (and DR7's).
const DR6_ONES: u64 = 0xffff_0ff0;

static HITS: AtomicUsize = AtomicUsize::new(0);
static RIPS: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];
static STATUS: AtomicU64 = AtomicU64::new(0);
static SAVED_FLAGS: AtomicU64 = AtomicU64::new(0);

/// Notes where and why, and lets breakpoints pass once.
fn note(frame: &mut Frame) {
    let hit = HITS.fetch_add(1, SeqCst);
    if hit < RIPS.len() {
        RIPS[hit].store(frame.rip, SeqCst);
    }
    STATUS.fetch_or(cpu::read_dr6() & !DR6_ONES, SeqCst);
    if hit == 0 {
        SAVED_FLAGS.store(frame.rflags, SeqCst);
    }
    cpu::write_dr6(DR6_ONES);
    frame.rflags |= flags::RF;
}

fn begin() {
    HITS.store(0, SeqCst);
    STATUS.store(0, SeqCst);
    cpu::write_dr6(DR6_ONES);
    set_handler(vector::DB, note);
}

fn end() -> (usize, u64) {
    clear_handler(vector::DB);
    cpu::write_dr7(0x400);
    (HITS.load(SeqCst), STATUS.load(SeqCst))
}

pub fn single_step() {
    begin();
    let start: u64;
    insn!(
        "pushfq", "or dword ptr [rsp], 0x100", "popfq",
        "lea {start}, [rip]",
        "nop",
        "pushfq", "and dword ptr [rsp], 0xfffffeff", "popfq",
        "nop",
        start = out(reg) start,
    );
    // After POPFQ the first instruction completes and traps; the last to trap is the one that
    // clears TF, whose flag was still set when it began.
    check_eq!(end(), (5, BS), "single step traps after each instruction");
    check_eq!(RIPS[0].load(SeqCst), start, "the first trap is after LEA");
    check_eq!(RIPS[1].load(SeqCst), start + 1, "the second is after NOP");
    check_eq!(
        SAVED_FLAGS.load(SeqCst) & flags::TF,
        flags::TF,
        "the saved flags contain TF"
    );
}

pub fn single_step_repeat() {
    begin();
    let page = memory::page();
    let at: u64;
    insn!(
        "lea {at}, [rip + 2f]",
        "pushfq", "or dword ptr [rsp], 0x100", "popfq",
        "2:", "rep stosb",
        "pushfq", "and dword ptr [rsp], 0xfffffeff", "popfq",
        at = out(reg) at,
        inout("rdi") page => _, inout("rcx") 3u64 => _, in("al") 7u8,
    );
    check_eq!(end(), (6, BS), "REP traps after each repetition");
    let rips = [0, 1, 2].map(|hit: usize| RIPS[hit].load(SeqCst) - at);
    check_eq!(
        rips,
        [0, 0, 2],
        "RIP stays at REP until the last repetition"
    );
}

pub fn single_step_shadow() {
    begin();
    let after: u64;
    insn!(
        "mov {data:e}, ss",
        "lea {after}, [rip + 2f]",
        "pushfq", "or dword ptr [rsp], 0x100", "popfq",
        "mov ss, {data:e}",
        "nop",
        "2:", "pushfq", "and dword ptr [rsp], 0xfffffeff", "popfq",
        after = out(reg) after, data = out(reg) _,
    );
    check_eq!(end(), (4, BS), "MOV SS holds back one trap");
    check_eq!(
        RIPS[0].load(SeqCst),
        after,
        "the trap comes behind the next instruction"
    );
}

pub fn instruction_breakpoint() {
    begin();
    let (at, ran): (u64, u64);
    insn!(
        "lea {at}, [rip + 2f]",
        "xor {ran:e}, {ran:e}",
        "mov dr0, {at}",
        "mov {scratch:e}, 0x402",
        "mov dr7, {scratch}",
        "2:", "inc {ran}",
        "mov {scratch:e}, 0x400",
        "mov dr7, {scratch}",
        at = out(reg) at, ran = out(reg) ran, scratch = out(reg) _,
    );
    check_eq!(end(), (1, 1), "execution breakpoint, DR6.B0");
    check_eq!(RIPS[0].load(SeqCst), at, "it comes before the instruction");
    check_eq!(ran, 1, "RF lets the instruction pass once");
}

pub fn data_breakpoints() {
    let page = memory::page();
    let write4 = 0x400 | 1 << 3 | 0b1101 << 20;
    let access8 = 0x400 | 1 << 5 | 0b1011 << 24;
    cpu::write_dr1(page + 4);
    begin();
    cpu::write_dr7(write4);
    memory::read32(page + 4);
    check_eq!(end(), (0, 0), "a read does not trip a write breakpoint");
    begin();
    cpu::write_dr7(write4);
    memory::write8(page + 7, 1);
    check_eq!(end(), (1, 2), "write to the last byte, DR6.B1");
    begin();
    cpu::write_dr7(write4);
    memory::write8(page + 8, 1);
    memory::write8(page + 3, 1);
    check_eq!(end(), (0, 0), "writes beside the range");
    begin();
    cpu::write_dr7(write4);
    memory::write64(page, 1);
    check_eq!(end(), (1, 2), "write that covers the range");
    cpu::write_dr2(page + 8);
    begin();
    cpu::write_dr7(access8);
    memory::read8(page + 15);
    check_eq!(end(), (1, 4), "read trips an access breakpoint, DR6.B2");
    let next: u64;
    begin();
    cpu::write_dr7(access8);
    insn!("lea {n}, [rip + 2f]", "mov [{p}], {n}", "2:", n = out(reg) next, p = in(reg) page + 8);
    check_eq!(end(), (1, 4), "write trips it too");
    check_eq!(RIPS[0].load(SeqCst), next, "data breakpoints are traps");
    begin();
    insn!(
        "mov dr7, {on}", "mov ecx, 4", "rep stosb", "mov dr7, {off}",
        on = in(reg) access8, off = in(reg) 0x400u64,
        inout("rdi") page + 6 => _, out("rcx") _, in("al") 0u8,
    );
    check_eq!(end(), (2, 4), "REP STOSB trips once per matching byte");
}

pub fn io_breakpoint() {
    let value4 = cpu::read_cr4();
    cpu::write_cr4(value4 | cr4::DE);
    cpu::write_dr3(0xe0);
    begin();
    cpu::write_dr7(0x400 | 1 << 7 | 0b0010 << 28);
    cpu::outb(0xe0, 0x12);
    check_eq!(end(), (1, 8), "I/O breakpoint, DR6.B3");
    expect_fault(
        "#UD: DR4 with CR4.DE",
        at!("mov {v}, dr4"; v = out(reg) _),
        vector::UD,
        0,
    );
    cpu::write_cr4(value4);
    let alias: u64;
    insn!("mov {0}, dr5", out(reg) alias);
    check_eq!(alias, cpu::read_dr7(), "DR5 is DR7 without CR4.DE");
}

pub fn registers() {
    expect_fault(
        "#GP: high half of DR7",
        at!("mov dr7, {v}"; v = in(reg) 1u64 << 32 | 0x400),
        vector::GP,
        0,
    );
    expect_fault(
        "#GP: high half of DR6",
        at!("mov dr6, {v}"; v = in(reg) 1u64 << 32),
        vector::GP,
        0,
    );
    cpu::write_dr6(0);
    check_eq!(cpu::read_dr6() & 0xffff_1ff0, DR6_ONES, "fixed bits of DR6");
    cpu::write_dr7(0);
    check_eq!(cpu::read_dr7(), 0x400, "fixed bit of DR7");
    // General detect: any access to a debug register faults, and the flag is cleared.
    cpu::write_dr6(DR6_ONES);
    let outcome = at!(["mov dr7, {on}"] "mov {off}, dr0"; on = in(reg) 0x2400u64, off = out(reg) _);
    let status = outcome.0.as_ref().map_or_else(|fault| fault.dr6, |()| 0);
    expect_fault("#DB: general detect", outcome, vector::DB, 0);
    check_eq!(status & BD, BD, "DR6.BD");
    check_eq!(cpu::read_dr7(), 0x400, "delivery clears DR7.GD");
    cpu::write_dr6(DR6_ONES);
}

pub fn resume_flag() {
    let fault = attempt(|| insn!("ud2"));
    check_eq!(
        fault.map_err(|fault| fault.rflags & flags::RF),
        Err(flags::RF),
        "a fault saves RF set"
    );
    let trap = attempt(|| insn!("int3"));
    check_eq!(
        trap.map_err(|fault| fault.rflags & flags::RF),
        Err(0),
        "a trap saves RF clear"
    );
    check_eq!(cpu::read_flags() & flags::RF, 0, "PUSHF never shows RF");
}
