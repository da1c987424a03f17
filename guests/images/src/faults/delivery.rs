//! Delivery of interrupts: gates, double faults, stacks and IRET.

use guest_kit::cpu::{self, flags};
use guest_kit::memory::{self, Tables, pte};
use guest_kit::segments::{self, selector, stack};
use guest_kit::trap::{self, attempt, vector};
use guest_kit::{check, check_eq, check_fault, check_ok, insn, user};

use crate::{at, expect_fault};

/// Error-code bits: an external event caused it; the index is into the IDT.
const EXT: u64 = 1;
const IDT: u64 = 2;
/// Page-fault error-code bit: an instruction fetch, reported because EFER.NXE is set.
const FETCH: u64 = 16;
/// A mapped-nowhere address of the kit's tables.
const UNMAPPED: u64 = 0x70_0000_0000;

fn clear_present(number: u8) {
    let gate = trap::idt() + u64::from(number) * 16;
    memory::write64(gate, memory::read64(gate) & !(1 << 47));
}

pub fn gates() {
    clear_present(0x60);
    expect_fault(
        "#NP: INT through an absent gate",
        at!("int 0x60";),
        vector::NP,
        (0x60 * 8) | IDT,
    );
    trap::reset_gate(0x60);
    clear_present(vector::UD);
    expect_fault(
        "#NP: exception through an absent gate sets EXT",
        at!("ud2";),
        vector::NP,
        (u64::from(vector::UD) * 8) | IDT | EXT,
    );
    trap::reset_gate(vector::UD);
    let mut short = [0u8; 10];
    short[..2].copy_from_slice(&(0x60u16 * 16 - 1).to_le_bytes());
    short[2..].copy_from_slice(&trap::idt().to_le_bytes());
    insn!("lidt [{}]", in(reg) short.as_ptr());
    expect_fault(
        "#GP: INT beyond the IDT",
        at!("int 0x60";),
        vector::GP,
        (0x60 * 8) | IDT,
    );
    trap::load();
    trap::set_gate(0x60, selector::DATA, trap::entry(0x60), 0, 0, 0xe);
    expect_fault(
        "#GP: gate to a data segment",
        at!("int 0x60";),
        vector::GP,
        u64::from(selector::DATA),
    );
    trap::set_gate(0x60, selector::CODE32, trap::entry(0x60), 0, 0, 0xe);
    expect_fault(
        "#GP: gate to 32-bit code in long mode",
        at!("int 0x60";),
        vector::GP,
        u64::from(selector::CODE32),
    );
    trap::set_gate(0x60, 0, trap::entry(0x60), 0, 0, 0xe);
    expect_fault("#GP: gate to null", at!("int 0x60";), vector::GP, 0);
    trap::set_gate(0x60, selector::CODE64, trap::entry(0x60), 0, 0, 0x5);
    expect_fault(
        "#GP: gate of a wrong type",
        at!("int 0x60";),
        vector::GP,
        (0x60 * 8) | IDT,
    );
    trap::reset_gate(0x60);
    interrupt_flag();
}

fn interrupt_flag() {
    // The handler's own flags, through the saved flags of a fault inside it.
    check_eq!(
        flags_in_handler(0xe) & (flags::IF | flags::TF),
        0,
        "interrupt gate clears IF"
    );
    check_eq!(
        flags_in_handler(0xf) & flags::IF,
        flags::IF,
        "trap gate keeps IF"
    );
    trap::reset_gate(0x61);
}

/// The flags with which a gate of this kind starts its handler, IF being set.
fn flags_in_handler(kind: u8) -> u64 {
    let handler: u64;
    insn!(
        "lea {0}, [rip + 2f]", "jmp 3f",
        "2:", "pushfq", "pop rax", "iretq", "3:",
        out(reg) handler,
    );
    trap::set_gate(0x61, selector::CODE64, handler, 0, 0, kind);
    let seen: u64;
    insn!("sti", "int 0x61", "cli", out("rax") seen);
    seen
}

pub fn double_fault() {
    clear_present(vector::GP);
    expect_fault(
        "#DF: #NP while delivering #GP",
        at!("mov rax, [rcx]"; in("rcx") 1u64 << 63, out("rax") _),
        vector::DF,
        0,
    );
    trap::reset_gate(vector::GP);
    clear_present(vector::PF);
    expect_fault(
        "#DF: #NP while delivering #PF",
        at!("mov rax, [rcx]"; in("rcx") UNMAPPED, out("rax") _),
        vector::DF,
        0,
    );
    trap::reset_gate(vector::PF);
    clear_present(vector::DE);
    expect_fault(
        "#DF: #NP while delivering #DE",
        at!("div ecx"; in("ecx") 0, inout("eax") 0 => _, inout("edx") 0 => _),
        vector::DF,
        0,
    );
    trap::reset_gate(vector::DE);
    stack_faults();
}

/// Faults while the frame is pushed.
fn stack_faults() {
    let ist = segments::tss() + 36 + 8 * u64::from(stack::FREE - 1);
    let normal = memory::read64(ist);
    memory::write64(ist, UNMAPPED + 0x1000);
    trap::set_gate(
        0x60,
        selector::CODE64,
        trap::entry(0x60),
        stack::FREE,
        0,
        0xe,
    );
    let outcome = attempt(|| insn!("int 0x60"));
    check_eq!(
        outcome.map_err(|f| f.cr2),
        Err(UNMAPPED + 0xff8),
        "CR2 of a push by INT"
    );
    check_fault!(outcome, vector::PF, 2, "#PF while INT pushes");
    let pf = vector::PF;
    trap::set_gate(pf, selector::CODE64, trap::entry(pf), stack::FREE, 0, 0xe);
    check_fault!(
        attempt(|| memory::read8(UNMAPPED)),
        vector::DF,
        0,
        "#DF: #PF while delivering #PF"
    );
    trap::reset_gate(pf);
    let gp = vector::GP;
    trap::set_gate(gp, selector::CODE64, trap::entry(gp), stack::FREE, 0, 0xe);
    check_fault!(
        attempt(|| memory::read8(1 << 63)),
        vector::PF,
        2,
        "#PF while delivering #GP is handled serially"
    );
    trap::reset_gate(gp);
    memory::write64(ist, 1 << 63);
    check_fault!(
        attempt(|| insn!("int 0x60")),
        vector::SS,
        0,
        "#SS: non-canonical IST"
    );
    memory::write64(ist, normal);
    trap::reset_gate(0x60);
}

pub fn invalid_task_state() {
    // IST 5 ends at offset 75 of the task state segment.
    segments::reload_task(74);
    trap::set_gate(
        0x60,
        selector::CODE64,
        trap::entry(0x60),
        stack::FREE,
        0,
        0xe,
    );
    expect_fault(
        "#TS: IST beyond the task state segment",
        at!("int 0x60";),
        vector::TS,
        u64::from(selector::TASK),
    );
    segments::reload_task(103);
    check_fault!(
        attempt(|| insn!("int 0x60")),
        0x60,
        0,
        "IST within the task state segment"
    );
    trap::reset_gate(0x60);
}

pub fn stacks() {
    const FRAME: u64 = 22 * 8;
    let tss = segments::tss();
    let (rsp0, ist) = (memory::read64(tss + 4), memory::read64(tss + 36 + 8 * 4));
    trap::set_gate(0x60, selector::CODE64, trap::entry(0x60), 0, 3, 0xe);
    let from_user = user::call(|| {
        insn!("int 0x60");
        0
    });
    match from_user {
        Err(fault) => {
            check_eq!(
                fault.frame,
                rsp0 - FRAME,
                "interrupt from user mode uses RSP0"
            );
            check_eq!(
                (fault.cs, fault.ss),
                (
                    u64::from(selector::USER_CODE64),
                    u64::from(selector::USER_DATA)
                ),
                "it saves the user selectors"
            );
        }
        Ok(value) => guest_kit::report::fail("INT from user mode", value, "interrupt"),
    }
    // Without a stack switch the old stack is aligned to 16 bytes first.
    let mut used = 0u64;
    let place = &raw mut used as u64;
    let outcome = attempt(|| {
        insn!("mov [{p}], rsp", "sub rsp, 8", "int 0x60", "add rsp, 8", p = in(reg) place);
    });
    let rsp = memory::read64(place);
    check_eq!(
        outcome.map_err(|fault| (fault.frame, fault.rsp)),
        Err((((rsp - 8) & !15) - FRAME, rsp - 8)),
        "interrupt on the same stack aligns RSP to 16"
    );
    trap::set_gate(
        0x60,
        selector::CODE64,
        trap::entry(0x60),
        stack::FREE,
        3,
        0xe,
    );
    check_eq!(
        attempt(|| insn!("int 0x60")).map_err(|fault| fault.frame),
        Err(ist - FRAME),
        "IST switches the stack at privilege level 0 too"
    );
    trap::reset_gate(0x60);
}

macro_rules! iret {
    ($ss:expr, $rsp:expr, $flags:expr, $cs:expr, $rip:expr) => {
        at!(["push {ss}", "push {rsp}", "push {flags}", "push {cs}", "push {rip}"] "iretq";
            ss = in(reg) $ss as u64, rsp = in(reg) $rsp as u64, flags = in(reg) $flags as u64,
            cs = in(reg) $cs as u64, rip = in(reg) $rip as u64)
    };
}

pub fn interrupt_return() {
    let (code, data) = (selector::CODE64, selector::DATA);
    let gp = vector::GP;
    expect_fault("#GP: IRET to null", iret!(data, 0, 2, 0, 0), gp, 0);
    expect_fault(
        "#GP: IRET to data",
        iret!(data, 0, 2, data, 0),
        gp,
        u64::from(data),
    );
    expect_fault(
        "#GP: IRET to non-canonical RIP",
        iret!(data, 0, 2, code, 1u64 << 63),
        gp,
        0,
    );
    expect_fault(
        "#GP: IRET outward with a privileged SS",
        iret!(data, 0, 2, selector::USER_CODE64, 0),
        gp,
        u64::from(data),
    );
    expect_fault(
        "#GP: IRET to user mode with null SS",
        iret!(3, 0, 2, selector::USER_CODE32, 0),
        gp,
        0,
    );
    expect_fault(
        "#GP: IRET with NT in long mode",
        at!(["push {ss}", "push 0", "push 2", "push {cs}", "push 0",
             "pushfq", "or dword ptr [rsp], 0x4000", "popfq"] "iretq";
            ss = in(reg) u64::from(data), cs = in(reg) u64::from(code)),
        gp,
        0,
    );
    insn!("pushfq", "and dword ptr [rsp], 0xffffbfff", "popfq");
    let (rsp, expected): (u64, u64);
    insn!(
        "mov {old}, rsp",
        "lea {target}, [rip + 2f]",
        "push 0x10", "push {old}", "sub qword ptr [rsp], 64", "push 0x202", "push 8",
            "push {target}",
        "iretq",
        "2:", "pushfq", "pop {target}", "cli",
        "mov {new}, rsp",
        "mov rsp, {old}",
        "sub {old}, {new}",
        old = out(reg) rsp, new = out(reg) _, target = out(reg) expected,
    );
    check_eq!(rsp, 64, "IRETQ loads RSP at the same privilege level");
    check!(expected & flags::IF != 0, "IRETQ loads the interrupt flag");
    nmi_free_return();
    user_page();
}

/// IRET to a page that is not there: the fault is the user's.
fn user_page() {
    let tables = Tables::sharing_identity();
    let outcome = {
        tables.load();
        let ended = user::enter(selector::USER_CODE64, UNMAPPED, user::stack(), 2, 0);
        Tables::boot().load();
        ended
    };
    check_eq!(
        (outcome.vector, outcome.error, outcome.cr2, outcome.rip),
        (vector::PF, pte::U | FETCH, UNMAPPED, UNMAPPED),
        "#PF: fetch in user mode after IRET"
    );
    let ended = user::enter(selector::USER_CODE64, 0x10_0000, UNMAPPED, 0x202, 0);
    check!(
        ended.rflags & flags::IF != 0,
        "user mode runs with the flags that IRET loaded"
    );
    cpu::cli();
}

fn nmi_free_return() {
    check_ok!(
        attempt(|| insn!(
            "mov {t}, rsp", "push 0", "push {t}", "pushfq", "push 8",
            "lea {u}, [rip + 2f]", "push {u}", "iretq", "2:", "mov {d:e}, 0x10", "mov ss, {d:e}",
            t = out(reg) _, u = out(reg) _, d = out(reg) _,
        )),
        "IRETQ with null SS at privilege level 0"
    );
}
