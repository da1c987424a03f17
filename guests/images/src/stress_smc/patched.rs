//! One processor patches its own code.

use guest_kit::memory::{self, Tables, pte};
use guest_kit::{cpu, insn};

use crate::{repeat, result, run, serialise};

/// `mov eax, imm32; ret`.
pub fn put_constant(at: u64, value: u32) {
    memory::write8(at, 0xb8);
    memory::write32(at + 1, value);
    memory::write8(at + 5, 0xc3);
}

pub fn immediate() {
    let code = memory::page();
    put_constant(code, 0);
    result(
        "patched immediate",
        repeat(|round| {
            memory::write32(code + 1, round);
            run(code) == round
        }),
    );
    // Only one byte changes.
    put_constant(code, 0x1111_1100);
    result(
        "patched byte",
        repeat(|round| {
            memory::write8(code + 1, round as u8);
            run(code) == 0x1111_1100 | round & 0xff
        }),
    );
}

/// A store right before the instruction that it changes, in one straight line.
pub fn next_instruction() {
    let code = memory::page();
    // mov [rip + 1], ecx; mov eax, 0; ret
    memory::copy_to(code, &[0x89, 0x0d, 1, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xc3]);
    result(
        "next instruction",
        repeat(|round| {
            let seen: u32;
            insn!("call {c}", c = in(reg) code, in("ecx") round, out("rax") seen);
            seen == round
        }),
    );
    // The same with a jump between.
    memory::copy_to(
        code,
        &[0x89, 0x0d, 3, 0, 0, 0, 0xeb, 0, 0xb8, 0, 0, 0, 0, 0xc3],
    );
    result(
        "instruction behind a jump",
        repeat(|round| {
            let seen: u32;
            insn!("call {c}", c = in(reg) code, in("ecx") round, out("rax") seen);
            seen == round
        }),
    );
}

/// A loop that changes its own addend in every iteration.
pub fn own_loop() {
    let code = memory::page();
    #[rustfmt::skip]
    memory::copy_to(code, &[
        0x31, 0xc0,                   // xor eax, eax
        0x05, 0, 0, 0, 0,             // add eax, imm32        (at 2)
        0xff, 0x05, 0xf6, 0xff, 0xff, 0xff, // inc dword [rip - 10]: the immediate at 3
        0xff, 0xc9,                   // dec ecx
        0x75, 0xf1,                   // jnz -15: back to the ADD
        0xc3,
    ]);
    result(
        "loop that patches itself",
        repeat(|round| {
            let turns = round % 40 + 1;
            memory::write32(code + 3, 0);
            let sum: u32;
            insn!("call {c}", c = in(reg) code, inout("ecx") turns => _, out("rax") sum);
            sum == turns * (turns - 1) / 2
        }),
    );
}

/// An instruction that lies across two pages, changed on either side.
pub fn across_pages() {
    let pages = memory::pages(2);
    let code = pages + 0x1000 - 3;
    put_constant(code, 0);
    result(
        "instruction across pages",
        repeat(|round| {
            let value = round.wrapping_mul(0x9e37_79b9);
            if round & 1 == 0 {
                memory::write32(code + 1, value);
                return run(code) == value;
            }
            let before = memory::read32(code + 1);
            // The second page has bytes 2 and 3 of the immediate, the first has bytes 0 and 1.
            memory::write8(pages + 0x1000, value as u8);
            run(code) == before & !0xff_0000 | (value & 0xff) << 16
        }),
    );
}

pub fn jump_target() {
    let code = memory::page();
    let targets = [code + 0x100, code + 0x800, code + 0xf00];
    for (index, target) in targets.iter().enumerate() {
        put_constant(*target, 100 + index as u32);
    }
    memory::write8(code, 0xe9);
    result(
        "five-byte jump",
        repeat(|round| {
            let choice = (round % 3) as usize;
            memory::write32(code + 1, (targets[choice] - (code + 5)) as u32);
            run(code) == 100 + choice as u32
        }),
    );
    // A conditional jump becomes its opposite.
    #[rustfmt::skip]
    memory::copy_to(code, &[
        0x31, 0xc0,       // xor eax, eax (sets ZF)
        0x74, 0x05,       // jz +5        (at 2)
        0xb8, 1, 0, 0, 0, // mov eax, 1
        0xc3,
    ]);
    result(
        "inverted condition",
        repeat(|round| {
            memory::write8(code + 2, if round & 1 == 0 { 0x74 } else { 0x75 });
            run(code) == round & 1
        }),
    );
}

/// Data in the code's page changes without any change of the code.
pub fn data_beside_code() {
    let code = memory::page();
    // inc dword [rip + 0x100]; mov eax, [rip + 0xfa]; ret
    memory::copy_to(
        code,
        &[0xff, 0x05, 0, 1, 0, 0, 0x8b, 0x05, 0xfa, 0, 0, 0, 0xc3],
    );
    result(
        "counter beside the code",
        repeat(|round| run(code) == round),
    );
}

/// String instructions write code.
pub fn string_copy() {
    let (code, sources) = (memory::page(), memory::page());
    for source in 0..4u64 {
        put_constant(sources + source * 0x40, 0x1000 + source as u32);
    }
    result(
        "REP MOVSB over code",
        repeat(|round| {
            let source = sources + u64::from(round % 4) * 0x40;
            insn!(
                "rep movsb",
                inout("rsi") source => _, inout("rdi") code => _, inout("rcx") 6u64 => _,
            );
            run(code) == 0x1000 + round % 4
        }),
    );
    // The copy replaces the code behind itself.
    #[rustfmt::skip]
    memory::copy_to(code, &[
        0x48, 0x8d, 0x3d, 2, 0, 0, 0, // lea rdi, [rip + 2]
        0xf3, 0xa4,                   // rep movsb
        0, 0, 0, 0, 0, 0,             // filled by it
    ]);
    result(
        "REP MOVSB over what follows it",
        repeat(|round| {
            let source = sources + u64::from(round % 4) * 0x40;
            let seen: u32;
            insn!(
                "call {c}", c = in(reg) code,
                inout("rsi") source => _, out("rdi") _, inout("rcx") 6u64 => _, out("rax") seen,
            );
            seen == 0x1000 + round % 4
        }),
    );
}

/// Two addresses of the tests' own.
const FIRST: u64 = 0x61_0000_0000;
const SECOND: u64 = 0x61_4000_0000;

/// The change comes through another linear address of the same page.
pub fn alias() {
    let page = memory::page();
    Tables::boot().map(FIRST, page, pte::P | pte::W, 1);
    Tables::boot().map(SECOND, page, pte::P | pte::W, 1);
    cpu::invlpg(FIRST);
    cpu::invlpg(SECOND);
    put_constant(FIRST + 0x80, 0);
    result(
        "change through an alias",
        repeat(|round| {
            memory::write32(SECOND + 0x81, round);
            serialise();
            let first = run(FIRST + 0x80) == round;
            memory::write32(page + 0x81, round + 7);
            serialise();
            first && run(SECOND + 0x80) == round + 7 && run(FIRST + 0x80) == round + 7
        }),
    );
}

/// The same address maps other code.
pub fn remapped() {
    let pages = [memory::page(), memory::page(), memory::page()];
    for (index, page) in pages.iter().enumerate() {
        put_constant(*page, 500 + index as u32);
    }
    result(
        "remapped code",
        repeat(|round| {
            let choice = (round % 3) as usize;
            Tables::boot().map(FIRST, pages[choice], pte::P, 1);
            cpu::invlpg(FIRST);
            run(FIRST) == 500 + choice as u32
        }),
    );
}
