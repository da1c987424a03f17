//! 32-bit code in compatibility mode: instructions and checks that 64-bit mode lacks.

use guest_kit::segments::{selector, set_descriptor};
use guest_kit::trap::{Fault, attempt, vector};
use guest_kit::{check_eq, check_fault, compat, insn, memory};

/// Defines 32-bit code that ends with a far return, and its address.
macro_rules! code32 {
    ($name:ident, $($line:literal),+ $(,)?) => {
        mod $name {
            core::arch::global_asm!(
                ".text",
                ".code32",
                concat!(".global faults32_", stringify!($name)),
                concat!("faults32_", stringify!($name), ":"),
                $($line,)+
                "retf",
                ".code64",
            );
            unsafe extern "C" {
                #[link_name = concat!("faults32_", stringify!($name))]
                static CODE: u8;
            }
            pub fn address() -> u64 {
                (&raw const CODE) as u64
            }
        }
    };
}

code32!(bound, ".byte 0x62, 0x05", ".long faults32_bounds", "nop");
code32!(into, "mov edx, 0x7fffffff", "add edx, eax", ".byte 0xce");
code32!(decimal, ".byte 0x27"); // DAA
code32!(adjust, ".byte 0xd5, 0x0a"); // AAD
code32!(divide_adjust, ".byte 0xd4, 0x00"); // AAM 0
code32!(
    push_all,
    "mov ecx, 0x11223344",
    ".byte 0x60",
    "xor ecx, ecx",
    ".byte 0x61",
    "mov eax, ecx"
);
code32!(increment, ".byte 0x40"); // INC EAX
code32!(read_es, "mov eax, es:[eax]");
code32!(write_es, "mov dword ptr es:[eax], 1");
code32!(read_cs, "mov eax, cs:[eax]");
code32!(alias_82, ".byte 0x82, 0xc0, 0x05"); // ADD AL, 5
code32!(
    load_es,
    ".byte 0xc4, 0x0d",
    ".long faults32_pointer",
    "mov eax, es",
    "push 0x10",
    ".byte 0x07"
); // POP ES

core::arch::global_asm!(
    ".section .data.faults32, \"aw\"",
    ".balign 8",
    ".global faults32_bounds, faults32_pointer",
    "faults32_bounds: .long -5, 10",
    "faults32_pointer: .long 0x12345678",
    ".word 0x10",
    ".text",
);

fn run(code: u64, value: u32) -> Result<u32, Fault> {
    let result = attempt(|| compat::call(code, value));
    insn!("mov es, {0:e}", in(reg) 0x10);
    result
}

pub fn exceptions() {
    check_eq!(value(run(bound::address(), 10)), Ok(10), "BOUND inside");
    check_eq!(
        value(run(bound::address(), -5i32 as u32)),
        Ok(-5i32 as u32),
        "BOUND at the edge"
    );
    check_fault!(
        run(bound::address(), 11),
        vector::BR,
        0,
        "#BR: above the bounds"
    );
    check_fault!(
        run(bound::address(), -6i32 as u32),
        vector::BR,
        0,
        "#BR: below the bounds"
    );
    check_fault!(
        run(into::address(), 1),
        vector::OF,
        0,
        "#OF: INTO with overflow"
    );
    check_eq!(
        value(run(into::address(), 0)),
        Ok(0),
        "INTO without overflow"
    );
    check_fault!(
        run(divide_adjust::address(), 1),
        vector::DE,
        0,
        "#DE: AAM 0"
    );
    let fault = run(into::address(), 1);
    check_eq!(
        fault.map_err(|fault| (fault.cs, fault.ss)),
        Err((u64::from(selector::CODE32), u64::from(selector::DATA))),
        "the saved selectors are the 32-bit code's"
    );
}

fn value(outcome: Result<u32, Fault>) -> Result<u32, (u8, u64)> {
    outcome.map_err(|fault| (fault.vector, fault.error))
}

pub fn segment_limits() {
    let slot = selector::FREE;
    let page = u64::from(memory::page() as u32);
    let (gp, np) = (vector::GP, vector::NP);
    // A byte-granular data segment of 0x1000 bytes at the page.
    let data = |access: u64, limit: u64| {
        (limit & 0xffff)
            | page << 16 & 0xff_ffff_0000
            | access << 40
            | 0x40 << 48
            | (page >> 24) << 56
    };
    let with_es = |descriptor: u64, code: u64, offset: u32| {
        set_descriptor(slot, descriptor);
        insn!("mov es, {0:x}", in(reg) slot);
        value(run(code, offset))
    };
    memory::write32(page + 0xffc, 0xabcd_1234);
    let (read, write) = (read_es::address(), write_es::address());
    check_eq!(
        with_es(data(0x93, 0xfff), read, 0xffc),
        Ok(0xabcd_1234),
        "base and last dword"
    );
    check_eq!(
        with_es(data(0x93, 0xfff), read, 0xffd),
        Err((gp, 0)),
        "#GP: beyond the limit"
    );
    check_eq!(
        with_es(data(0x93, 0xfff), write, 0x1000),
        Err((gp, 0)),
        "#GP: write beyond"
    );
    check_eq!(
        with_es(data(0x91, 0xfff), write, 0),
        Err((gp, 0)),
        "#GP: read-only segment"
    );
    check_eq!(
        with_es(data(0x91, 0xfff), read, 0xffc),
        Ok(0xabcd_1234),
        "reading it"
    );
    check_eq!(
        with_es(data(0x97, 0xfff), read, 0xffc),
        Err((gp, 0)),
        "#GP: expand-down below its limit"
    );
    check_eq!(
        with_es(data(0x97, 0xffb), read, 0xffc),
        Ok(0xabcd_1234),
        "expand-down above it"
    );
    insn!("mov es, {0:e}", in(reg) 0);
    check_eq!(
        value(run(read, 0)),
        Err((gp, 0)),
        "#GP: null segment in compatibility mode"
    );
    // Code of its own: limit, execute-only, present.
    let code =
        |access: u64, limit: u64| (limit & 0xffff) | access << 40 | (0x40 | limit >> 16 & 15) << 48;
    let through = |descriptor: u64, entry: u64, argument: u32| {
        set_descriptor(slot, descriptor);
        value(attempt(|| compat::call_through(slot, entry, argument)))
    };
    check_eq!(
        through(
            code(0x9b, 0xf_ffff) | 0x80 << 48,
            read_cs::address(),
            page as u32 + 0xffc
        ),
        Ok(0xabcd_1234),
        "reading through readable code"
    );
    check_eq!(
        through(
            code(0x99, 0xf_ffff) | 0x80 << 48,
            read_cs::address(),
            page as u32
        ),
        Err((gp, 0)),
        "#GP: reading through execute-only code"
    );
    check_eq!(
        through(code(0x9b, 0xffff), increment::address(), 1),
        Err((gp, 0)),
        "#GP: target beyond the code limit"
    );
    check_eq!(
        through(
            (code(0x9b, 0xf_ffff) | 0x80 << 48) & !(1 << 47),
            increment::address(),
            1
        ),
        Err((np, u64::from(slot))),
        "#NP: code not present"
    );
}

pub fn bcd_and_stack() {
    check_eq!(
        value(run(decimal::address(), 0x9b)).map(|v| v & 0xff),
        Ok(0x01),
        "DAA"
    );
    check_eq!(
        value(run(adjust::address(), 0x0305)).map(|v| v & 0xffff),
        Ok(35),
        "AAD"
    );
    check_eq!(
        value(run(push_all::address(), 0)),
        Ok(0x1122_3344),
        "PUSHA and POPA"
    );
    check_eq!(value(run(increment::address(), 41)), Ok(42), "one-byte INC");
    check_eq!(value(run(alias_82::address(), 1)), Ok(6), "opcode 82");
    check_eq!(
        value(run(load_es::address(), 0)).map(|v| v & 0xffff),
        Ok(0x10),
        "LES"
    );
}
