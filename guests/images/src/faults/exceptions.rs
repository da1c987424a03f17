//! Exceptions of instructions at privilege level 0 (Intel SDM 3A 6.15).

use guest_kit::cpu::{self, cr0, cr4};
use guest_kit::trap::{attempt, vector};
use guest_kit::{check, check_ok, insn, memory, options, report};

use crate::{at, expect, expect_fault};

const NON_CANONICAL: u64 = 0x8000_0000_0000;

pub fn divide() {
    expect_fault(
        "#DE: division by zero",
        at!("div ecx"; inout("eax") 5 => _, inout("edx") 0 => _, in("ecx") 0),
        vector::DE,
        0,
    );
    expect_fault(
        "#DE: quotient too large",
        at!("div ecx"; inout("eax") 0 => _, inout("edx") 5 => _, in("ecx") 5),
        vector::DE,
        0,
    );
    expect_fault(
        "#DE: smallest number by -1",
        at!("idiv rcx"; inout("rax") 1u64 << 63 => _, inout("rdx") -1i64 => _, in("rcx") -1i64),
        vector::DE,
        0,
    );
    expect_fault(
        "#DE: 8-bit overflow",
        at!("div cl"; inout("ax") 0x200u16 => _, in("cl") 1u8),
        vector::DE,
        0,
    );
    check_ok!(
        attempt(|| insn!("div ecx", inout("eax") 7 => _, inout("edx") 0 => _, in("ecx") 2)),
        "division that fits"
    );
}

pub fn software_interrupts() {
    expect("#BP: INT3", at!("int3";), vector::BP, 0, 1);
    expect(
        "#BP: INT 3 in two bytes",
        at!(".byte 0xcd, 3";),
        vector::BP,
        0,
        2,
    );
    expect("#OF: INT 4", at!("int 4";), vector::OF, 0, 2);
    expect("INT 0x40", at!("int 0x40";), 0x40, 0, 2);
    expect("INT 0xff", at!("int 0xff";), 0xff, 0, 2);
    expect("#DB: INT1", at!(".byte 0xf1";), vector::DB, 0, 1);
}

pub fn invalid_opcode() {
    let ud = vector::UD;
    expect_fault("#UD: UD2", at!("ud2";), ud, 0);
    expect_fault("#UD: UD1", at!(".byte 0x0f, 0xb9, 0xc0";), ud, 0);
    expect_fault(
        "#UD: LOCK on a register",
        at!(".byte 0xf0, 0x01, 0xc8";),
        ud,
        0,
    );
    expect_fault("#UD: LOCK on MOV", at!(".byte 0xf0, 0x89, 0x00";), ud, 0);
    expect_fault("#UD: LOCK on NOP", at!(".byte 0xf0, 0x90";), ud, 0);
    expect_fault("#UD: PUSH ES in 64-bit mode", at!(".byte 0x06";), ud, 0);
    expect_fault("#UD: DAA in 64-bit mode", at!(".byte 0x27";), ud, 0);
    expect_fault("#UD: PUSHA in 64-bit mode", at!(".byte 0x60";), ud, 0);
    expect_fault("#UD: INTO in 64-bit mode", at!(".byte 0xce";), ud, 0);
    expect_fault(
        "#UD: direct far jump in 64-bit mode",
        at!(".byte 0xea";),
        ud,
        0,
    );
    expect_fault("#UD: MOV to CS", at!(".byte 0x8e, 0xc8";), ud, 0);
    expect_fault(
        "#UD: MOV to a sixth segment",
        at!(".byte 0x8e, 0xf0";),
        ud,
        0,
    );
    expect_fault("#UD: MOV from CR1", at!(".byte 0x0f, 0x20, 0xc8";), ud, 0);
    expect_fault("#UD: MOV from CR5", at!(".byte 0x0f, 0x20, 0xe8";), ud, 0);
    expect_fault("#UD: LEA of a register", at!(".byte 0x8d, 0xc0";), ud, 0);
    expect_fault(
        "#UD: CMPXCHG8B of a register",
        at!(".byte 0x0f, 0xc7, 0xc8";),
        ud,
        0,
    );
    expect_fault(
        "#GP: instruction of 16 bytes",
        at!(".fill 15, 1, 0x2e", "nop";),
        vector::GP,
        0,
    );
    check_ok!(
        attempt(|| insn!(".fill 14, 1, 0x2e", "nop")),
        "instruction of 15 bytes"
    );
    expect_fault(
        "#UD: SSE without OSFXSR",
        at!(["mov cr4, {off}"] "xorps xmm0, xmm0", "mov cr4, {on}";
            off = in(reg) cpu::read_cr4() & !cr4::OSFXSR, on = in(reg) cpu::read_cr4()),
        ud,
        0,
    );
    expect_fault(
        "#UD: SSE with EM",
        at!(["mov cr0, {off}"] "xorps xmm0, xmm0", "mov cr0, {on}";
            off = in(reg) cpu::read_cr0() | cr0::EM, on = in(reg) cpu::read_cr0()),
        ud,
        0,
    );
    if cpu::feature_1c(26) {
        expect_fault(
            "#UD: XGETBV without OSXSAVE",
            at!(["mov cr4, {off}"] "xgetbv", "mov cr4, {on}"; in("ecx") 0, out("eax") _,
                out("edx") _,
                off = in(reg) cpu::read_cr4() & !cr4::OSXSAVE, on = in(reg) cpu::read_cr4()),
            ud,
            0,
        );
    }
}

pub fn device_not_available() {
    let normal = cpu::read_cr0() & !(cr0::TS | cr0::EM);
    macro_rules! with_cr0 {
        ($value:expr, $code:literal) => {
            at!(["mov cr0, {value}"] $code, "mov cr0, {normal}";
                value = in(reg) $value, normal = in(reg) normal)
        };
    }
    let nm = vector::NM;
    expect_fault(
        "#NM: x87 with TS",
        with_cr0!(normal | cr0::TS, "fnop"),
        nm,
        0,
    );
    expect_fault(
        "#NM: SSE with TS",
        with_cr0!(normal | cr0::TS, "xorps xmm0, xmm0"),
        nm,
        0,
    );
    expect_fault(
        "#NM: MMX with TS",
        with_cr0!(normal | cr0::TS, "emms"),
        nm,
        0,
    );
    expect_fault(
        "#NM: x87 with EM",
        with_cr0!(normal | cr0::EM, "fnop"),
        nm,
        0,
    );
    expect_fault(
        "#UD: MMX with EM",
        with_cr0!(normal | cr0::EM, "emms"),
        vector::UD,
        0,
    );
    expect_fault(
        "#NM: WAIT with MP and TS",
        with_cr0!(normal | cr0::TS | cr0::MP, "fwait"),
        nm,
        0,
    );
    check_ok!(
        with_cr0!((normal | cr0::TS) & !cr0::MP, "fwait").0,
        "WAIT with TS but without MP"
    );
    check_ok!(with_cr0!(normal | cr0::TS, "lfence").0, "LFENCE with TS");
}

pub fn general_protection() {
    let misaligned = memory::page() + 8;
    let gp = vector::GP;
    expect_fault(
        "#GP: read at a non-canonical address",
        at!("mov rax, [rcx]"; in("rcx") NON_CANONICAL, out("rax") _),
        gp,
        0,
    );
    expect_fault(
        "#SS: RBP-based read at a non-canonical address",
        at!(["push rbp", "mov rbp, rcx"] "mov rax, [rbp]", "pop rbp";
            in("rcx") NON_CANONICAL, out("rax") _),
        vector::SS,
        0,
    );
    expect_fault(
        "#SS: push at a non-canonical address",
        at!(["mov rdx, rsp", "mov rsp, rcx"] "push rax", "mov rsp, rdx";
            in("rcx") NON_CANONICAL + 0x1000, out("rdx") _),
        vector::SS,
        0,
    );
    expect_fault(
        "#GP: near jump to a non-canonical address",
        at!("jmp rcx"; in("rcx") NON_CANONICAL),
        gp,
        0,
    );
    expect_fault(
        "#GP: MOVAPS misaligned",
        at!("movaps xmm0, [rcx]"; in("rcx") misaligned, out("xmm0") _),
        gp,
        0,
    );
    expect_fault(
        "#GP: CMPXCHG16B misaligned",
        at!(["push rbx"] "cmpxchg16b [rdi]", "pop rbx"; in("rdi") misaligned,
            inout("rax") 0u64 => _, inout("rdx") 0u64 => _, in("rcx") 0u64),
        gp,
        0,
    );
    expect_fault(
        "#GP: FXSAVE misaligned",
        at!("fxsave [rcx]"; in("rcx") misaligned),
        gp,
        0,
    );
    expect_fault(
        "#GP: RDMSR of nothing",
        at!("rdmsr"; in("ecx") 0x1234_5678, out("eax") _, out("edx") _),
        gp,
        0,
    );
    expect_fault(
        "#GP: WRMSR of nothing",
        at!("wrmsr"; in("ecx") 0x1234_5678, in("eax") 0, in("edx") 0),
        gp,
        0,
    );
    expect_fault(
        "#GP: non-canonical value for an address MSR",
        at!("wrmsr"; in("ecx") cpu::msr::LSTAR, in("eax") 0, in("edx") 0x8000),
        gp,
        0,
    );
    let reserved = 0x8000_0000u32 | 0x1f80;
    expect_fault(
        "#GP: LDMXCSR with reserved bits",
        at!("ldmxcsr [{m}]"; m = in(reg) &raw const reserved),
        gp,
        0,
    );
    expect_fault(
        "#GP: reserved EFER bits",
        at!("wrmsr"; in("ecx") cpu::msr::EFER, in("eax") 0x2d01 | 2, in("edx") 0),
        gp,
        0,
    );
}

pub fn control_registers() {
    let (value0, value4) = (cpu::read_cr0(), cpu::read_cr4());
    macro_rules! write_cr0 {
        ($value:expr) => {
            at!("mov cr0, {value}", "mov cr0, {old}";
                value = in(reg) $value, old = in(reg) value0)
        };
    }
    macro_rules! write_cr4 {
        ($value:expr) => {
            at!("mov cr4, {value}", "mov cr4, {old}";
                value = in(reg) $value, old = in(reg) value4)
        };
    }
    let gp = vector::GP;
    if options::lenient() {
        return report::skip("control registers", "lenient emulator");
    }
    expect_fault("#GP: CR0.PG without PE", write_cr0!(value0 & !1), gp, 0);
    expect_fault(
        "#GP: CR0.NW without CD",
        write_cr0!(value0 & !cr0::CD | cr0::NW),
        gp,
        0,
    );
    expect_fault("#GP: CR0 high half", write_cr0!(value0 | 1 << 32), gp, 0);
    expect_fault(
        "#GP: CR0.PG cleared in 64-bit mode",
        write_cr0!(value0 & !cr0::PG),
        gp,
        0,
    );
    expect_fault(
        "#GP: CR4.PAE cleared in long mode",
        write_cr4!(value4 & !cr4::PAE),
        gp,
        0,
    );
    expect_fault("#GP: CR4 reserved bit", write_cr4!(value4 | 1 << 31), gp, 0);
    expect_fault("#GP: CR4 high half", write_cr4!(value4 | 1 << 40), gp, 0);
    expect_fault(
        "#GP: CR3 beyond the physical width",
        at!("mov cr3, {value}"; value = in(reg) cpu::read_cr3() | 1 << 62),
        gp,
        0,
    );
    expect_fault(
        "#GP: CR8 above 15",
        at!("mov cr8, {v}"; v = in(reg) 16u64),
        gp,
        0,
    );
    expect_fault(
        "#GP: EFER.LME cleared with paging on",
        at!("wrmsr"; in("ecx") cpu::msr::EFER,
            in("eax") cpu::rdmsr(cpu::msr::EFER) & !0x100, in("edx") 0),
        gp,
        0,
    );
    if cpu::feature_1c(17) {
        expect_fault(
            "#GP: CR4.PCIDE with a PCID in CR3",
            at!(["mov cr3, {cr3}"] "mov cr4, {value}", "mov cr4, {old}";
                cr3 = in(reg) cpu::read_cr3() | 1,
                value = in(reg) value4 | cr4::PCIDE, old = in(reg) value4),
            gp,
            0,
        );
    }
    cpu::write_cr0(value0);
    let status: u64;
    insn!("smsw {0}", out(reg) status);
    check!(status == value0, "SMSW reads CR0");
    insn!("lmsw {0:x}", in(reg) (value0 & !1 | cr0::TS) as u16);
    check!(
        cpu::read_cr0() == value0 | cr0::TS,
        "LMSW sets TS and cannot clear PE"
    );
    insn!("clts");
    check!(cpu::read_cr0() == value0, "CLTS");
    cpu::write_cr8(5);
    check!(cpu::read_cr8() == 5, "CR8 keeps its value");
    cpu::write_cr8(0);
}

pub fn floating_point() {
    let unmasked: u16 = 0x037f & !4;
    let normal: u16 = 0x037f;
    expect_fault(
        "#MF: unmasked division by zero, at the next waiting instruction",
        at!(["fninit", "fldcw [{cw}]", "fldz", "fld1", "fdivrp st(1), st", "nop"] "fwait";
            cw = in(reg) &raw const unmasked),
        vector::MF,
        0,
    );
    check_ok!(
        attempt(|| insn!(
            "fninit", "fldcw [{cw}]", "fldz", "fld1", "fdivrp st(1), st", "fnclex", "fwait",
            "fldcw [{old}]", "fninit",
            cw = in(reg) &raw const unmasked, old = in(reg) &raw const normal,
        )),
        "FNCLEX drops the pending exception"
    );
    insn!("fninit");
    let zero_unmasked: u32 = 0x1f80 & !0x200;
    let default: u32 = 0x1f80;
    expect_fault(
        "#XM: unmasked division by zero",
        at!(["ldmxcsr [{mx}]", "xorps xmm0, xmm0", "cvtsi2ss xmm1, {mx:e}"] "divss xmm1, xmm0",
            "ldmxcsr [{old}]";
            mx = in(reg) &raw const zero_unmasked, old = in(reg) &raw const default,
            out("xmm0") _, out("xmm1") _),
        vector::XM,
        0,
    );
    insn!("ldmxcsr [{}]", in(reg) &raw const default);
    let value4 = cpu::read_cr4();
    expect_fault(
        "#UD: unmasked SIMD exception without OSXMMEXCPT",
        at!(["ldmxcsr [{mx}]", "xorps xmm0, xmm0", "cvtsi2ss xmm1, {mx:e}", "mov cr4, {off}"]
            "divss xmm1, xmm0", "mov cr4, {on}", "ldmxcsr [{old}]";
            mx = in(reg) &raw const zero_unmasked, old = in(reg) &raw const default,
            off = in(reg) value4 & !cr4::OSXMMEXCPT, on = in(reg) value4,
            out("xmm0") _, out("xmm1") _),
        vector::UD,
        0,
    );
    insn!("ldmxcsr [{}]", in(reg) &raw const default);
}

pub fn alignment() {
    // #AC is for privilege level 3 only: here AC changes nothing.
    let address = memory::page() + 1;
    let normal = cpu::read_cr0();
    check_ok!(
        attempt(|| insn!(
            "mov cr0, {am}", "pushfq", "or dword ptr [rsp], 0x40000", "popfq",
            "mov rax, [{address}]", "pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq",
            "mov cr0, {normal}",
            am = in(reg) normal | cr0::AM, normal = in(reg) normal, address = in(reg) address,
            out("rax") _,
        )),
        "misaligned access with AC at privilege level 0"
    );
    // A locked access may straddle a page.
    let pages = memory::pages(2);
    memory::write64(pages + 0xffc, 41);
    insn!("lock inc qword ptr [{}]", in(reg) pages + 0xffc);
    check!(
        memory::read64(pages + 0xffc) == 42,
        "locked increment across a page boundary"
    );
}
