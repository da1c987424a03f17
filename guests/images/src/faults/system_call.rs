//! SYSCALL/SYSRET and SYSENTER/SYSEXIT.

use guest_kit::cpu::{self, msr};
use guest_kit::memory;
use guest_kit::segments::selector;
use guest_kit::trap::{attempt, vector};
use guest_kit::{check_eq, check_fault, insn, report, user};

core::arch::global_asm!(
    ".text",
    ".code64",
    ".global faults_syscall, faults_syscall_user, faults_sysret32_user, faults_saved",
    ".global faults_sysenter, faults_sysenter_user, faults_syscall_to_32",
    // Kernel side: keep what SYSCALL left, go back.
    "faults_syscall:",
    "mov [faults_saved], rcx",
    "mov [faults_saved + 8], r11",
    "mov ax, cs",
    "movzx eax, ax",
    "mov [faults_saved + 16], rax",
    "mov ax, ss",
    "movzx eax, ax",
    "mov [faults_saved + 24], rax",
    "pushfq",
    "pop rax",
    "mov [faults_saved + 32], rax",
    "sysretq",
    "faults_syscall_user:",
    "mov rdx, rsp",
    "stc",
    "syscall",
    // Back in user mode: tell the selectors and the carry flag.
    "setc al",
    "movzx eax, al",
    "shl eax, 16",
    "mov cx, cs",
    "movzx ecx, cx",
    "or eax, ecx",
    "cmp rdx, rsp",
    "jne 2f",
    "int 0x81",
    "2: ud2",
    // SYSRET to 32-bit code.
    "faults_syscall_to_32:",
    "lea ecx, [faults_sysret32_user]",
    "sysret",
    ".code32",
    "faults_sysret32_user:",
    "mov eax, cs",
    ".byte 0x40", // INC EAX in 32-bit code, a prefix in 64-bit code
    "int 0x81",
    ".code64",
    "faults_sysenter:",
    "mov [faults_saved], rsp",
    "mov ax, cs",
    "movzx eax, ax",
    "mov [faults_saved + 8], rax",
    "mov rcx, rdi",
    "lea rdx, [rip + 3f]",
    "rex64 sysexit",
    "3: mov ax, cs",
    "movzx eax, ax",
    "int 0x81",
    "faults_sysenter_user:",
    "mov rdi, rsp",
    "sysenter",
    "ud2",
    ".bss",
    ".balign 8",
    "faults_saved: .skip 64",
    ".text",
);

unsafe extern "C" {
    static faults_syscall: u8;
    static faults_syscall_user: u8;
    static faults_syscall_to_32: u8;
    static faults_sysenter: u8;
    static faults_sysenter_user: u8;
    static faults_saved: u8;
}

const SCE: u64 = 1;

fn saved(index: u64) -> u64 {
    memory::read64((&raw const faults_saved) as u64 + index * 8)
}

/// SYSCALL enters with 0x08/0x10; SYSRET leaves with 0x20+16 | 3 and 0x20+8 | 3 (32-bit: 0x20 | 3).
fn setup(target: u64) {
    cpu::wrmsr(msr::EFER, cpu::rdmsr(msr::EFER) | SCE);
    cpu::wrmsr(msr::STAR, 0x20u64 << 48 | u64::from(selector::CODE64) << 32);
    cpu::wrmsr(msr::LSTAR, target);
    cpu::wrmsr(msr::FMASK, 1);
}

pub fn syscall() {
    setup((&raw const faults_syscall) as u64);
    let entry = (&raw const faults_syscall_user) as u64;
    let ended = user::enter(selector::USER_CODE64, entry, user::stack(), 2, 0);
    check_eq!(
        (ended.vector, ended.rax),
        (
            vector::USER_RETURN,
            1 << 16 | u64::from(selector::USER_CODE64)
        ),
        "SYSRET restores flags and loads the user code selector"
    );
    check_eq!(
        ended.ss,
        u64::from(selector::USER_DATA),
        "SYSRET loads the user stack selector"
    );
    // MOV RDX,RSP is 3 bytes, STC 1, SYSCALL 2.
    check_eq!(saved(0), entry + 6, "RCX holds the return address");
    check_eq!(saved(1) & 1, 1, "R11 holds the flags");
    check_eq!(
        (saved(2), saved(3)),
        (u64::from(selector::CODE64), u64::from(selector::DATA)),
        "SYSCALL loads the kernel selectors"
    );
    check_eq!(saved(4) & 1, 0, "FMASK clears flags");
}

pub fn syscall_disabled() {
    cpu::wrmsr(msr::EFER, cpu::rdmsr(msr::EFER) & !SCE);
    let entry = (&raw const faults_syscall_user) as u64;
    let ended = user::enter(selector::USER_CODE64, entry, user::stack(), 2, 0);
    check_eq!(
        (ended.vector, ended.error),
        (vector::UD, 0),
        "#UD: SYSCALL without EFER.SCE"
    );
    check_fault!(
        attempt(|| insn!("sysretq")),
        vector::UD,
        0,
        "SYSRET without EFER.SCE"
    );
    cpu::wrmsr(msr::EFER, cpu::rdmsr(msr::EFER) | SCE);
}

pub fn sysret_compat() {
    setup((&raw const faults_syscall_to_32) as u64);
    let entry = (&raw const faults_syscall_user) as u64;
    let ended = user::enter(selector::USER_CODE64, entry, user::stack(), 2, 0);
    check_eq!(
        (ended.vector, ended.rax & 0xffff, ended.cs),
        (
            vector::USER_RETURN,
            u64::from(selector::USER_CODE32) + 1,
            u64::from(selector::USER_CODE32)
        ),
        "32-bit SYSRET runs compatibility code"
    );
}

pub fn sysenter() {
    if !cpu::feature_1d(11) {
        return report::skip("SYSENTER", "not in CPUID");
    }
    let entry = (&raw const faults_sysenter_user) as u64;
    let run = || user::enter(selector::USER_CODE64, entry, user::stack(), 2, 0);
    cpu::wrmsr(msr::SYSENTER_CS, 0);
    let ended = run();
    if cpu::is_amd() && ended.vector == vector::UD {
        // AMD's processors have SYSENTER in legacy mode only (AMD APM 3).
        return report::pass("#UD: SYSENTER in long mode, as AMD documents");
    }
    check_eq!(
        (ended.vector, ended.error),
        (vector::GP, 0),
        "#GP: SYSENTER with a null selector"
    );
    let stack = memory::page() + 0x1000;
    cpu::wrmsr(msr::SYSENTER_CS, u64::from(selector::CODE64));
    cpu::wrmsr(msr::SYSENTER_ESP, stack);
    cpu::wrmsr(msr::SYSENTER_EIP, (&raw const faults_sysenter) as u64);
    let ended = run();
    check_eq!(
        (ended.vector, ended.rax),
        (vector::USER_RETURN, u64::from(selector::CODE64) + 32 + 3),
        "SYSEXIT returns to 64-bit user code"
    );
    check_eq!(
        (saved(0), saved(1)),
        (stack, u64::from(selector::CODE64)),
        "SYSENTER loads RSP and CS"
    );
    cpu::wrmsr(msr::SYSENTER_CS, 0);
    check_fault!(
        attempt(|| insn!("rex64 sysexit")),
        vector::GP,
        0,
        "#GP: SYSEXIT with a null selector"
    );
}
