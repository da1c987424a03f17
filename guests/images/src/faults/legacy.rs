//! 32-bit protected mode outside long mode: its exceptions, task switches, virtual-8086 mode, and
//! real mode.

use guest_kit::legacy::{self, Fault, Outcome, Paging, set_descriptor, set_gate};
use guest_kit::segments::selector;
use guest_kit::trap::vector;
use guest_kit::{check, check_eq, memory, options, report};

/// Defines a 32-bit routine and its address; it ends with RET.
macro_rules! routine {
    ($name:ident, $($line:literal),+ $(,)?) => {
        mod $name {
            core::arch::global_asm!(
                ".text",
                ".code32",
                concat!(".global legacy_", stringify!($name)),
                concat!("legacy_", stringify!($name), ":"),
                $($line,)+
                "ret",
                ".code64",
            );
            unsafe extern "C" {
                #[link_name = concat!("legacy_", stringify!($name))]
                static CODE: u8;
            }
            pub fn address() -> u64 {
                (&raw const CODE) as u64
            }
        }
    };
}

routine!(
    sum,
    "lea eax, [eax + eax*2]",
    "mov ecx, cr0",
    "test ecx, 0x80000000",
    "jz 2f",
    "xor eax, eax",
    "2:"
);
routine!(divide, "xor edx, edx", "xor ecx, ecx", "div ecx");
routine!(load_ds, "mov ds, eax", "mov ecx, 0x10", "mov ds, ecx");
routine!(load_ss, "mov ss, eax", "mov ecx, 0x10", "mov ss, ecx");
routine!(
    read_es,
    "mov ecx, 0x50",
    "mov es, ecx",
    "mov eax, es:[eax]",
    "mov ecx, 0x10",
    "mov es, ecx"
);
routine!(bound_check, ".byte 0x62, 0x05", ".long legacy_bounds");
routine!(overflow, "add eax, 0x7fffffff", ".byte 0xce");
routine!(breakpoint, "int3");
routine!(call_task, ".byte 0x9a", ".long 0", ".word 0x50");
routine!(
    jump_task,
    ".byte 0xea",
    ".long 0",
    ".word 0x50",
    "mov eax, edi"
);
routine!(interrupt_task, "int 0x70");
routine!(
    read_null,
    "xor ecx, ecx",
    "mov es, ecx",
    "mov eax, es:[eax]"
);
routine!(
    to_user,
    // Privilege level 3 through IRET; EAX is the user's entry.
    "push 0x2b",
    "push esp",
    "push 0x202",
    "push 0x23",
    "push eax",
    "iretd"
);
routine!(user_return, "mov eax, 0x1234", "int 0x71");
routine!(user_privileged, "cli");
routine!(
    to_virtual_8086,
    // GS, FS, DS, ES, SS, ESP, EFLAGS with VM, CS, EIP for IRET; EAX holds the flags.
    "push 0",
    "push 0",
    "push 0x100",
    "push 0",
    "push 0",
    "push 0x7ff0",
    "push eax",
    "push 0",
    "push 0xa000",
    "iretd"
);

core::arch::global_asm!(
    ".section .data.legacy_tests, \"aw\"",
    ".balign 8",
    ".global legacy_bounds",
    "legacy_bounds: .long 5, 9",
    ".text",
    ".code32",
    ".global legacy_task_entry, legacy_task_result",
    // The other task: notes NT, the task register and what a nested IRET needs.
    "legacy_task_entry:",
    "pushfd",
    "pop eax",
    "mov dword ptr [legacy_task_result], eax",
    "str eax",
    "mov dword ptr [legacy_task_result + 4], eax",
    "mov dword ptr [legacy_task_result + 8], ebx",
    "iretd",
    // A second switch goes on here.
    "jmp legacy_task_entry",
    ".global legacy_task_jump",
    "legacy_task_jump:",
    "pushfd",
    "pop eax",
    "mov dword ptr [legacy_task_result], eax",
    ".byte 0xea",
    ".long 0",
    ".word 0x48",
    ".code64",
    ".section .bss.legacy_tests, \"aw\", @nobits",
    ".balign 8",
    "legacy_task_result: .skip 16",
    ".text",
);

unsafe extern "C" {
    static legacy_task_entry: u8;
    static legacy_task_jump: u8;
    static legacy_task_result: u8;
}

fn run(entry: u64, argument: u32) -> Outcome {
    legacy::run(entry, argument, Paging::default())
}

/// Vector and error code.
fn short(outcome: Outcome) -> Result<u32, (u8, u32)> {
    outcome.map_err(|fault| (fault.vector, fault.error))
}

pub fn protected_mode() {
    check_eq!(
        short(run(sum::address(), 14)),
        Ok(42),
        "32-bit code without paging"
    );
    set_gate(0x71, selector::CODE32, return_gate(), 0xee);
    let user = run(to_user::address(), user_return::address() as u32);
    check_eq!(
        user.map_err(|fault| (fault.vector, fault.cs, fault.ss, fault.eax)),
        Err((0x71, 0x23, 0x2b, 0x1234)),
        "user code calls through a gate and back"
    );
    let fault = run(to_user::address(), user_privileged::address() as u32);
    check_eq!(short(fault), Err((vector::GP, 0)), "#GP: CLI in user code");
}

/// The kit's entry for vector 0x71.
fn return_gate() -> u32 {
    unsafe extern "C" {
        static kit_legacy_vectors: u8;
    }
    (&raw const kit_legacy_vectors) as u32 + 0x71 * 16
}

pub fn protected_faults() {
    check_eq!(
        short(run(divide::address(), 1)),
        Err((vector::DE, 0)),
        "#DE"
    );
    check_eq!(
        short(run(overflow::address(), 1)),
        Err((vector::OF, 0)),
        "#OF"
    );
    check_eq!(
        short(run(breakpoint::address(), 0)),
        Err((vector::BP, 0)),
        "#BP"
    );
    check_eq!(
        run(breakpoint::address(), 0).map_err(|fault| fault.eip),
        Err(breakpoint::address() as u32 + 1),
        "#BP: EIP behind INT3"
    );
    check_eq!(
        short(run(bound_check::address(), 10)),
        Err((vector::BR, 0)),
        "#BR"
    );
    check_eq!(short(run(bound_check::address(), 9)), Ok(9), "BOUND within");
    check_eq!(
        short(run(load_ds::address(), 0xffe8)),
        Err((vector::GP, 0xffe8)),
        "#GP: selector"
    );
    set_descriptor(0x50, legacy::make_descriptor(0, 0xf_ffff, 0x13, 0xc));
    check_eq!(
        short(run(load_ds::address(), 0x50)),
        Err((vector::NP, 0x50)),
        "#NP: segment"
    );
    check_eq!(
        short(run(load_ss::address(), 0x50)),
        Err((vector::SS, 0x50)),
        "#SS: segment"
    );
    check_eq!(
        short(run(load_ss::address(), 0)),
        Err((vector::GP, 0)),
        "#GP: null SS"
    );
    if options::lenient() {
        return report::skip("segment limits", "lenient emulator");
    }
    check_eq!(
        short(run(read_null::address(), 0)),
        Err((vector::GP, 0)),
        "#GP: null segment"
    );
    let page = memory::page();
    memory::write32(page + 0xffc, 0x7777);
    set_descriptor(0x50, legacy::make_descriptor(page, 0xfff, 0x93, 4));
    check_eq!(
        short(run(read_es::address(), 0xffc)),
        Ok(0x7777),
        "segment with a base"
    );
    check_eq!(
        short(run(read_es::address(), 0xffd)),
        Err((vector::GP, 0)),
        "#GP: beyond the limit"
    );
    check_eq!(
        short(run(read_es::address(), 0xffff_fffe)),
        Err((vector::GP, 0)),
        "#GP: an access that wraps"
    );
    set_descriptor(0x50, legacy::make_descriptor(page, 0, 0x97, 4));
    check_eq!(
        short(run(read_es::address(), 0xffc)),
        Ok(0x7777),
        "expand-down segment of 4 GiB less a byte"
    );
    check_eq!(
        short(run(read_es::address(), 0)),
        Err((vector::GP, 0)),
        "#GP: its first byte"
    );
}

/// Fills a task state segment for privilege level 0.
fn make_task(entry: u64) -> u64 {
    let (task, stack) = (memory::page(), memory::page() + 0x1000);
    for (offset, value) in [
        (32, entry as u32),
        (36, 2),
        (52, 0xbeef),
        (56, stack as u32),
        (72, 0x10),
        (76, 0x18),
        (80, 0x10),
        (84, 0x10),
    ] {
        memory::write32(task + offset, value);
    }
    memory::write32(task + 100, 0x68 << 16);
    set_descriptor(0x50, legacy::make_descriptor(task, 0x67, 0x89, 0));
    task
}

fn task_result(index: u64) -> u32 {
    memory::read32((&raw const legacy_task_result) as u64 + index * 4)
}

pub fn task_switch() {
    const NT: u32 = 1 << 14;
    const BUSY: u64 = 2 << 40;
    let entry = (&raw const legacy_task_entry) as u64;
    let task = make_task(entry);
    check_eq!(
        short(run(call_task::address(), 99)),
        Ok(99),
        "a task is called and returns"
    );
    check_eq!(task_result(0) & NT, NT, "NT is set in the called task");
    check_eq!(task_result(1), 0x50, "TR is its selector");
    check_eq!(task_result(2), 0xbeef, "EBX comes from its state");
    check_eq!(
        memory::read32(task) & 0xffff,
        u32::from(legacy::TASK),
        "its link names the caller"
    );
    check_eq!(
        legacy::descriptor(0x50) & BUSY,
        0,
        "it is not busy after IRET"
    );
    let task = make_task(entry);
    set_gate(0x70, 0x50, 0, 0x85);
    check_eq!(
        short(run(interrupt_task::address(), 98)),
        Ok(98),
        "INT through a task gate"
    );
    check_eq!(task_result(0) & NT, NT, "NT is set in the interrupt's task");
    check!(
        memory::read32(task + 32) != entry as u32,
        "the task's EIP was saved"
    );
    make_task((&raw const legacy_task_jump) as u64);
    check_eq!(
        short(run(jump_task::address(), 0)),
        Ok(0),
        "jumps between tasks"
    );
    check_eq!(task_result(0) & NT, 0, "a jump does not nest");
    set_descriptor(0x50, legacy::descriptor(0x50) | BUSY);
    check_eq!(
        short(run(call_task::address(), 0)),
        Err((vector::GP, 0x50)),
        "#GP: busy task"
    );
    make_task(entry);
    set_descriptor(0x50, legacy::descriptor(0x50) & !(1 << 47));
    check_eq!(
        short(run(call_task::address(), 0)),
        Err((vector::NP, 0x50)),
        "#NP: absent task"
    );
    let task = make_task(entry);
    set_descriptor(0x50, legacy::make_descriptor(task, 0x66, 0x89, 0));
    check_eq!(
        short(run(call_task::address(), 0)),
        Err((vector::TS, 0x50)),
        "#TS: short task state"
    );
    let task = make_task(entry);
    memory::write32(task + 84, u32::from(legacy::TASK));
    check_eq!(
        short(run(call_task::address(), 0)),
        Err((vector::TS, u32::from(legacy::TASK))),
        "#TS: data segment of the new task"
    );
}

const VM: u32 = 1 << 17;

/// Runs 16-bit code at 0000:A000 in virtual-8086 mode with the given flags.
fn virtual_8086_code(code: &[u8], eflags: u32) -> Fault {
    memory::copy_to(legacy::REAL_CODE, code);
    match run(to_virtual_8086::address(), eflags | VM | 2) {
        Err(fault) => fault,
        Ok(value) => {
            report::fail("virtual-8086 mode was entered", value, ());
            Fault {
                vector: 0xff,
                error: 0,
                eip: 0,
                cs: 0,
                eflags: 0,
                esp: 0,
                ss: 0,
                cr2: 0,
                eax: 0,
            }
        }
    }
}

pub fn virtual_8086() {
    const IOPL3: u32 = 3 << 12;
    let at = legacy::REAL_CODE as u32;
    // mov ax, ds; add ax, ax; int3
    let fault = virtual_8086_code(&[0x8c, 0xd8, 0x01, 0xc0, 0xcc], IOPL3);
    check_eq!(
        (
            fault.vector,
            fault.eax & 0xffff,
            fault.eip,
            fault.cs,
            fault.ss,
            fault.esp
        ),
        (vector::BP, 0x200, at + 5, 0, 0, 0x7ff0),
        "virtual-8086 code runs, INT3 leaves it"
    );
    check_eq!(fault.eflags & VM, VM, "the saved flags have VM set");
    // mov ax, [0x10] with DS 0x100: linear 0x1010.
    memory::write32(0x1010, 0x4321);
    let fault = virtual_8086_code(&[0xa1, 0x10, 0x00, 0xcc], IOPL3);
    check_eq!(fault.eax & 0xffff, 0x4321, "segments are paragraphs");
    for (name, code) in [
        ("CLI", &[0xfau8][..]),
        ("STI", &[0xfb]),
        ("PUSHF", &[0x9c]),
        ("POPF", &[0x9d]),
        ("IRET", &[0xcf]),
        ("INT 0x21", &[0xcd, 0x21]),
    ] {
        let fault = virtual_8086_code(code, 0);
        check_eq!(
            (fault.vector, fault.error, fault.eip),
            (vector::GP, 0, at),
            "#GP: {name} in virtual-8086 mode with IOPL 0"
        );
    }
    let fault = virtual_8086_code(&[0xf4], IOPL3);
    check_eq!(
        (fault.vector, fault.error),
        (vector::GP, 0),
        "#GP: HLT in virtual-8086 mode"
    );
    let fault = virtual_8086_code(&[0x0f, 0x00, 0xc0], IOPL3);
    check_eq!(fault.vector, vector::UD, "#UD: SLDT in virtual-8086 mode");
    // pushf; pop ax; int3
    let fault = virtual_8086_code(&[0x9c, 0x58, 0xcc], IOPL3 | 0x200);
    check_eq!(
        fault.eax & 0x3200,
        0x3200,
        "PUSHF with IOPL 3 tells the flags"
    );
    // in al, dx without permission: the map lies beyond the task's limit.
    let fault = virtual_8086_code(&[0xec, 0xcc], IOPL3);
    check_eq!(
        (fault.vector, fault.error),
        (vector::GP, 0),
        "#GP: IN, whatever IOPL says"
    );
}

pub fn real_mode() {
    let run = |code: &[u8]| {
        legacy::run_real(code).map_err(|fault| (fault.vector, fault.error, fault.eip))
    };
    let done = |ax: u16| {
        Ok(legacy::RealOutcome {
            ax,
            vector: None,
            ip: 0,
        })
    };
    let clear = || memory::write32(0x502, 0);
    clear();
    // mov ax, 1234h; add ax, 1; ret
    check_eq!(
        run(&[0xb8, 0x34, 0x12, 0x05, 1, 0, 0xc3]),
        done(0x1235),
        "16-bit code"
    );
    // mov ax, 1000h; mov es, ax; mov ax, es:[4]; ret
    memory::write32(0x1_0004, 0x5678);
    check_eq!(
        run(&[0xb8, 0, 0x10, 0x8e, 0xc0, 0x26, 0xa1, 4, 0, 0xc3]),
        done(0x5678),
        "a segment is its paragraph"
    );
    // smsw ax; and ax, 1; ret
    check_eq!(
        run(&[0x0f, 0x01, 0xe0, 0x25, 1, 0, 0xc3]),
        done(0),
        "CR0.PE is clear"
    );
    // mov eax, 12345678h; shr eax, 16; ret (operand-size prefixes)
    check_eq!(
        run(&[
            0x66, 0xb8, 0x78, 0x56, 0x34, 0x12, 0x66, 0xc1, 0xe8, 16, 0xc3
        ]),
        done(0x1234),
        "32-bit operands"
    );
    let ended = |vector: u8, ip: u64| (Some(vector), ip as u16);
    let short = |code: &[u8]| run(code).map(|outcome| (outcome.vector, outcome.ip));
    let at = legacy::REAL_CODE;
    check_eq!(
        short(&[0xcd, 0x60]),
        Ok(ended(0x60, at + 2)),
        "INT through the vector table"
    );
    check_eq!(
        short(&[0x31, 0xc9, 0xf7, 0xf1]),
        Ok(ended(0, at + 2)),
        "#DE in real mode"
    );
    check_eq!(short(&[0x0f, 0x0b]), Ok(ended(6, at)), "#UD in real mode");
    if !options::lenient() {
        // mov bx, ffffh; mov ax, [bx]: a word at the segment's last byte.
        check_eq!(
            short(&[0xbb, 0xff, 0xff, 0x8b, 0x07]),
            Ok(ended(vector::GP, at + 3)),
            "#GP: beyond the segment in real mode"
        );
    }
    // The stack pointer wraps: mov sp, 0; push ax is at FFFE; then leave through INT.
    check_eq!(
        short(&[0x31, 0xe4, 0x50, 0x89, 0xe0, 0xcd, 0x61]),
        Ok(ended(0x61, at + 7)),
        "PUSH with SP 0 wraps"
    );
}
