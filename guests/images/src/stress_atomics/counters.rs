//! Read-modify-write instructions with the LOCK prefix: nothing may be lost.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use guest_kit::{check, check_eq, cpu, insn, memory, report, smp};

use crate::{Line, end, together};

/// How many operations each processor did.
static DONE: [Line<AtomicU64>; smp::MAX] = [const { Line(AtomicU64::new(0)) }; smp::MAX];

fn total() -> u64 {
    DONE.iter().map(|line| line.0.swap(0, SeqCst)).sum()
}

/// Repeats `step` until the time is up and adds the number of its operations to the total.
fn hammer(step: impl Fn(usize) -> u64 + Sync) -> u64 {
    let end = end();
    together(|index| {
        let mut done = 0;
        while cpu::rdtsc() < end {
            for _ in 0..100 {
                done += step(index);
            }
        }
        DONE[index].0.store(done, SeqCst);
    });
    total()
}

pub fn additions() {
    let cell = memory::page() + 0x100;
    // Also one that straddles two cache lines.
    let split = cell + 0x3c;
    let operations = hammer(|_| {
        insn!(
            "lock add qword ptr [{c}], 1",
            "lock inc qword ptr [{s}]",
            "mov {t:e}, 2",
            "lock xadd [{c}], {t}",
            "lock sub qword ptr [{c}], 1",
            "lock adc qword ptr [{s}], 0",
            c = in(reg) cell, s = in(reg) split, t = out(reg) _,
        );
        1
    });
    check!(operations > 0, "{operations} rounds of additions");
    check_eq!(
        memory::read64(cell),
        operations * 2,
        "ADD, XADD and SUB lose nothing"
    );
    // ADC adds the carry of SUB, which is set only when the counter was 0 before: never here.
    check_eq!(
        memory::read64(split),
        operations,
        "INC across cache lines loses nothing"
    );
}

pub fn exchanges() {
    let cell = memory::page();
    let operations = hammer(|_| {
        insn!(
            "mov rax, [{c}]",
            "2:",
            "lea {t}, [rax + 3]",
            "lock cmpxchg [{c}], {t}",
            "jnz 2b",
            c = in(reg) cell, t = out(reg) _, out("rax") _,
        );
        1
    });
    check_eq!(
        memory::read64(cell),
        operations * 3,
        "{operations} CMPXCHG lose nothing"
    );
    let small = memory::page();
    let operations = hammer(|_| {
        insn!(
            "lock inc byte ptr [{c}]", "lock inc word ptr [{c} + 2]",
                "lock inc dword ptr [{c} + 4]",
            c = in(reg) small,
        );
        1
    });
    let expected = (operations & 0xff) | (operations & 0xffff) << 16 | operations << 32;
    check_eq!(
        memory::read64(small),
        expected,
        "neighbouring byte, word and doubleword counters"
    );
}

pub fn wide() {
    if !cpu::feature_1c(13) {
        return report::skip("CMPXCHG16B", "not in CPUID");
    }
    let cell = memory::page();
    let torn = AtomicU64::new(0);
    let operations = hammer(|_| {
        let (low, high): (u64, u64);
        // Both halves always hold the same number.
        insn!(
            "push rbx",
            "mov rax, [rdi]",
            "mov rdx, [rdi + 8]",
            "2:",
            "lea rbx, [rax + 1]",
            "lea rcx, [rdx + 1]",
            "lock cmpxchg16b [rdi]",
            "jnz 2b",
            "pop rbx",
            in("rdi") cell, out("rax") low, out("rdx") high, out("rcx") _,
        );
        if low != high {
            torn.fetch_add(1, Relaxed);
        }
        1
    });
    check_eq!(
        (memory::read64(cell), memory::read64(cell + 8)),
        (operations, operations),
        "{operations} CMPXCHG16B lose nothing"
    );
    check_eq!(torn.load(SeqCst), 0, "both halves change together");
}

pub fn bits() {
    let cell = memory::page();
    let bad = AtomicU64::new(0);
    let operations = hammer(|index| {
        let (before, after): (u8, u8);
        // Every processor has a bit of its own, all in one doubleword's bit string.
        insn!(
            "lock bts [{c}], {b}", "setc {x}", "lock btr [{c}], {b}", "setc {y}",
            c = in(reg) cell, b = in(reg) index as u64 * 3, x = out(reg_byte) before,
            y = out(reg_byte) after,
        );
        if (before, after) != (0, 1) {
            bad.fetch_add(1, Relaxed);
        }
        1
    });
    check!(operations > 0, "{operations} rounds of BTS and BTR");
    check_eq!(bad.load(SeqCst), 0, "each sees its own bit as it left it");
    check_eq!(
        memory::read64(cell) | memory::read64(cell + 8),
        0,
        "all bits are clear at the end"
    );
}

/// XCHG moves tokens between cells; none may vanish or double.
pub fn tokens() {
    const CELLS: u64 = 8;
    let cells = memory::page();
    for cell in 0..CELLS {
        memory::write64(cells + cell * 64, 1 << (cell * 8));
    }
    let held: [Line<AtomicU64>; smp::MAX] = [const { Line(AtomicU64::new(0)) }; smp::MAX];
    let operations = hammer(|index| {
        let mut token = held[index].0.load(Relaxed);
        for cell in 0..CELLS {
            insn!("xchg [{c}], {t}", c = in(reg) cells + cell * 64, t = inout(reg) token);
        }
        held[index].0.store(token, Relaxed);
        CELLS
    });
    let left: u64 = (0..CELLS)
        .map(|cell| memory::read64(cells + cell * 64))
        .sum();
    let carried: u64 = held.iter().map(|line| line.0.load(SeqCst)).sum();
    check_eq!(
        left + carried,
        0x0101_0101_0101_0101,
        "{operations} XCHG keep every token"
    );
}
