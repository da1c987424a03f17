//! What user mode may and may not do.

use guest_kit::cpu::{self, cr0, cr4, flags};
use guest_kit::segments::{self, selector, set_descriptor};
use guest_kit::trap::{self, Fault, vector};
use guest_kit::{check, check_eq, check_fault, insn, memory, report, user};

/// Runs one instruction in user mode.
macro_rules! in_user {
    ($($code:tt)*) => {
        user::call(|| {
            insn!($($code)*);
            0
        })
    };
}

fn expect_gp(name: &str, outcome: Result<u64, Fault>) {
    check_fault!(outcome, vector::GP, 0, "#GP in user mode: {name}");
}

pub fn privileged_instructions() {
    check_eq!(
        user::call(|| 42).map_err(|fault| fault.vector),
        Ok(42),
        "user code returns"
    );
    let mut pointer = [0u8; 10];
    let place = pointer.as_mut_ptr();
    expect_gp("HLT", in_user!("hlt"));
    expect_gp("CLI", in_user!("cli"));
    expect_gp("STI", in_user!("sti"));
    expect_gp("CLTS", in_user!("clts"));
    expect_gp("INVD", in_user!("invd"));
    expect_gp("WBINVD", in_user!("wbinvd"));
    expect_gp("INVLPG", in_user!("invlpg [rax]"));
    expect_gp("LGDT", in_user!("lgdt [{}]", in(reg) place));
    expect_gp("LIDT", in_user!("lidt [{}]", in(reg) place));
    expect_gp("LLDT", in_user!("lldt {:x}", in(reg) 0));
    expect_gp("LTR", in_user!("ltr {:x}", in(reg) 0));
    expect_gp("LMSW", in_user!("lmsw {:x}", in(reg) 0));
    expect_gp("MOV from CR0", in_user!("mov {}, cr0", out(reg) _));
    expect_gp("MOV to CR3", in_user!("mov cr3, {}", in(reg) 0u64));
    expect_gp("MOV from DR7", in_user!("mov {}, dr7", out(reg) _));
    expect_gp(
        "RDMSR",
        in_user!("rdmsr", in("ecx") 0x1b, out("eax") _, out("edx") _),
    );
    expect_gp(
        "WRMSR",
        in_user!("wrmsr", in("ecx") 0x1b, in("eax") 0, in("edx") 0),
    );
    expect_gp("SWAPGS", in_user!("swapgs"));
    expect_gp("SYSRET", in_user!("sysretq", in("rcx") 0));
    expect_gp("IN", in_user!("in al, 0x80", out("al") _));
    expect_gp("OUT", in_user!("out 0x80, al"));
    expect_gp("INS", in_user!("insb", in("dx") 0x80, in("rdi") place));
    check_fault!(
        in_user!("int 0x40"),
        vector::GP,
        0x40 * 8 + 2,
        "#GP: INT through a privileged gate"
    );
    check_eq!(
        in_user!("int3").map_err(|fault| fault.vector),
        Err(vector::BP),
        "INT3 from user mode"
    );
    let kept = user::call(|| {
        insn!("pushfq", "or dword ptr [rsp], 0x3200", "popfq");
        cpu::read_flags()
    });
    check_eq!(
        kept.map_err(|fault| fault.vector)
            .map(|value| value & 0x3200),
        Ok(0),
        "POPF in user mode leaves IF and IOPL alone"
    );
}

pub fn io_permissions() {
    let tss = segments::tss();
    // A map behind the task state segment: all ones, but port 0xe0 free.
    for byte in 0..8193 {
        memory::write8(tss + 104 + byte, 0xff);
    }
    memory::write8(tss + 104 + 0xe0 / 8, 0xfe);
    segments::reload_task(104 + 8192);
    check!(
        in_user!("out dx, al", in("dx") 0xe0, in("al") 0u8).is_ok(),
        "permitted port"
    );
    expect_gp(
        "forbidden port",
        in_user!("out dx, al", in("dx") 0xe1, in("al") 0u8),
    );
    expect_gp(
        "partly forbidden port",
        in_user!("out dx, ax", in("dx") 0xe0, in("ax") 0u16),
    );
    let privileged = user::enter(
        selector::USER_CODE64,
        io_probe as extern "C" fn() as usize as u64,
        user::stack(),
        0x3002,
        0,
    );
    check_eq!(
        privileged.vector,
        vector::USER_RETURN,
        "IOPL 3 permits every port"
    );
    segments::reload_task(103);
}

extern "C" fn io_probe() {
    cpu::outb(0xe1, 0);
    insn!("sti", "cli");
}

pub fn instruction_prevention() {
    let mut store = [0u64; 2];
    let place = store.as_mut_ptr();
    let value4 = cpu::read_cr4();
    if !cpu::feature_7c(2) {
        return report::skip("UMIP", "not in CPUID");
    }
    let all = |expected: Result<u64, (u8, u64)>, name: &str| {
        let outcomes = [
            in_user!("sgdt [{}]", in(reg) place),
            in_user!("sidt [{}]", in(reg) place),
            in_user!("sldt {:x}", out(reg) _),
            in_user!("str {:x}", out(reg) _),
            in_user!("smsw {:x}", out(reg) _),
        ];
        for (outcome, instruction) in outcomes
            .into_iter()
            .zip(["SGDT", "SIDT", "SLDT", "STR", "SMSW"])
        {
            check_eq!(
                outcome.map_err(|fault| (fault.vector, fault.error)),
                expected,
                "{instruction} in user mode {name}"
            );
        }
    };
    all(Ok(0), "without UMIP");
    cpu::write_cr4(value4 | cr4::UMIP);
    all(Err((vector::GP, 0)), "with UMIP");
    insn!("sgdt [{}]", in(reg) place);
    cpu::write_cr4(value4);
}

pub fn alignment_check() {
    let address = memory::page() + 1;
    let (value0, user_code) = (cpu::read_cr0(), selector::USER_CODE64);
    let run = |rflags: u64| {
        let code = misaligned as extern "C" fn(u64) -> u64 as usize as u64;
        let ended = user::enter(user_code, code, user::stack(), rflags, address);
        (ended.vector, ended.error)
    };
    check_eq!(
        run(2 | flags::AC),
        (vector::USER_RETURN, 0),
        "misaligned access without CR0.AM"
    );
    cpu::write_cr0(value0 | cr0::AM);
    check_eq!(
        run(2 | flags::AC),
        (vector::AC, 0),
        "#AC with CR0.AM and the AC flag"
    );
    check_eq!(
        run(2),
        (vector::USER_RETURN, 0),
        "misaligned access without the AC flag"
    );
    cpu::write_cr0(value0);
}

extern "C" fn misaligned(address: u64) -> u64 {
    let value: u64;
    insn!("mov {}, [{}]", out(reg) value, in(reg) address);
    value
}

core::arch::global_asm!(
    ".text",
    ".code64",
    ".global faults_gate_target",
    "faults_gate_target:",
    // Notes the stack that the gate switched to, and returns to user mode.
    "mov rax, rsp",
    "retfq",
);

unsafe extern "C" {
    static faults_gate_target: u8;
}

pub fn call_gate() {
    let target = (&raw const faults_gate_target) as u64;
    let slot = selector::FREE + 0x10;
    let gate = |privilege: u64, present: u64| {
        let low = (target & 0xffff)
            | u64::from(selector::CODE64) << 16
            | (0x0c | privilege << 5 | present << 7) << 40
            | (target >> 16 & 0xffff) << 48;
        set_descriptor(slot, low);
        set_descriptor(slot + 8, target >> 32);
    };
    let pointer: [u16; 4] = [0, 0, slot | 3, 0];
    let call = || {
        user::call(|| {
            let value: u64;
            insn!("call fword ptr [{}]", in(reg) pointer.as_ptr(), out("rax") value);
            value
        })
    };
    gate(3, 1);
    let rsp0 = memory::read64(segments::tss() + 4);
    check_eq!(
        call().map_err(|fault| (fault.vector, fault.error)),
        Ok(rsp0 - 32),
        "call gate from user mode switches to RSP0 and pushes four words"
    );
    gate(0, 1);
    check_fault!(
        call(),
        vector::GP,
        slot,
        "#GP: call gate of privilege level 0"
    );
    gate(3, 0);
    check_fault!(call(), vector::NP, slot, "#NP: call gate not present");
    gate(3, 1);
    set_descriptor(slot + 8, 0x0c00_0000_0000);
    check_fault!(
        call(),
        vector::GP,
        slot,
        "#GP: type bits in a gate's high half"
    );
    trap::clear_handlers();
}

pub fn time_stamp_disable() {
    let value4 = cpu::read_cr4();
    check!(
        in_user!("rdtsc", out("eax") _, out("edx") _).is_ok(),
        "RDTSC in user mode"
    );
    cpu::write_cr4(value4 | cr4::TSD);
    expect_gp(
        "RDTSC with TSD",
        in_user!("rdtsc", out("eax") _, out("edx") _),
    );
    if cpu::feature_ext_d(27) {
        expect_gp(
            "RDTSCP with TSD",
            in_user!("rdtscp", out("eax") _, out("edx") _, out("ecx") _),
        );
    }
    cpu::rdtsc();
    cpu::write_cr4(value4);
}
