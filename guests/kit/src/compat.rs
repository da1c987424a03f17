//! 32-bit code in compatibility mode at privilege level 0.

use crate::insn;
use crate::segments::selector;

/// Calls 32-bit code through a far pointer with `value` in EAX; it ends with a far return and
/// leaves its result in EAX. The code must lie below 4 GiB.
pub fn call(entry: u64, value: u32) -> u32 {
    call_through(selector::CODE32, entry, value)
}

/// As [`call`], with the code (or call gate) selector given.
pub fn call_through(code: u16, entry: u64, value: u32) -> u32 {
    let pointer = entry & 0xffff_ffff | u64::from(code) << 32;
    let result: u32;
    insn!(
        "push rbx",
        "push rbp",
        "call fword ptr [{pointer}]",
        "pop rbp",
        "pop rbx",
        pointer = in(reg) &raw const pointer,
        inout("eax") value => result,
        out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
        out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        out("r12") _, out("r13") _, out("r14") _, out("r15") _,
    );
    result
}
