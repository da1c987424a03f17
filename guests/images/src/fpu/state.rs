//! FXSAVE, XSAVE, and switching state lazily with CR0.TS.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_kit::cpu::{self, cpuid, cr0, cr4};
use guest_kit::trap::{attempt, set_handler, vector};
use guest_kit::{check, check_eq, check_fault, insn, memory, report};

/// Byte offsets in the FXSAVE image.
const MXCSR: u64 = 24;
const ST0: u64 = 32;
const XMM0: u64 = 160;

fn fill(page: u64, value: u8) {
    for offset in 0..0x1000 {
        memory::write8(page + offset, value);
    }
}

pub fn fxsave() {
    let page = memory::page();
    fill(page, 0xee);
    insn!(
        "fninit", "fldpi", "movq xmm0, {v}", "movq xmm15, {v}", "fxsave64 [{p}]", "fninit",
        v = in(reg) 0x1234_5678_9abc_def0u64, p = in(reg) page, out("xmm0") _, out("xmm15") _,
    );
    check_eq!(memory::read32(page) & 0xffff, 0x37f, "FCW");
    check_eq!(memory::read32(page) >> 16, 0x3800, "FSW with TOP 7");
    check_eq!(memory::read8(page + 4), 0x80, "abridged tag word");
    check_eq!(memory::read32(page + MXCSR), 0x1f80, "MXCSR");
    check_eq!(
        memory::read64(page + ST0),
        0xc90f_daa2_2168_c235,
        "ST0's significand"
    );
    check_eq!(
        memory::read32(page + ST0 + 8) & 0xffff,
        0x4000,
        "ST0's exponent"
    );
    check_eq!(memory::read64(page + XMM0), 0x1234_5678_9abc_def0, "XMM0");
    check_eq!(
        memory::read64(page + XMM0 + 15 * 16),
        0x1234_5678_9abc_def0,
        "XMM15"
    );
    check_eq!(
        memory::read64(page + 512),
        0xeeee_eeee_eeee_eeee,
        "nothing behind 512 bytes"
    );
    // CR4.OSFXSR and CR0.TS have their say (TS in the faults image).
    let mask = memory::read32(page + 28);
    check!(mask & 0xffbf == 0xffbf, "MXCSR mask {mask:#x}");
}

pub fn fxrstor() {
    let page = memory::page();
    insn!("fninit", "fxsave64 [{}]", in(reg) page);
    memory::write64(page + XMM0, 77);
    memory::write8(page + 4, 0x01);
    memory::write64(page + ST0, 1 << 63);
    memory::write32(page + ST0 + 8, 0x3fff);
    let (seen, one): (u64, u64);
    let mut number = 0f64;
    insn!(
        "fxrstor64 [{p}]", "movq {s}, xmm0", "fld st(0)", "fstp qword ptr [{n}]", "mov {o}, [{n}]",
        "fninit",
        p = in(reg) page, n = in(reg) &raw mut number, s = out(reg) seen, o = out(reg) one,
        out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
        out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _,
        out("xmm11") _, out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
    );
    check_eq!(
        (seen, one),
        (77, 1f64.to_bits()),
        "FXRSTOR loads XMM and x87 registers"
    );
    memory::write32(page + MXCSR, 0xffff_0000);
    check_fault!(
        attempt(|| insn!("fxrstor64 [{}]", in(reg) page)),
        vector::GP,
        0,
        "#GP: FXRSTOR with reserved MXCSR bits"
    );
}

static SWITCHES: AtomicU64 = AtomicU64::new(0);

/// The #NM handler of an operating system that switches lazily.
pub fn lazy_switch() {
    set_handler(vector::NM, |frame| {
        SWITCHES.fetch_add(1, SeqCst);
        // The kit gives CR0 back as it found it, so the handler cannot clear TS for the
        // interrupted code: it notes the use and steps over the instruction.
        frame.rdx = 1;
        frame.rip += 3;
    });
    let (normal, noticed): (u64, u64) = (cpu::read_cr0(), 0);
    let noticed_after: u64;
    insn!(
        "mov cr0, {ts}",
        // MOVAPS XMM0,XMM1 is three bytes: the handler notes it and steps over it.
        "movaps xmm0, xmm1",
        "mov cr0, {normal}",
        ts = in(reg) normal | cr0::TS, normal = in(reg) normal,
        inout("rdx") noticed => noticed_after, out("xmm0") _,
    );
    check_eq!(
        (noticed_after, SWITCHES.load(SeqCst)),
        (1, 1),
        "#NM on the first use"
    );
    insn!("movaps xmm0, xmm1", out("xmm0") _);
    check_eq!(SWITCHES.load(SeqCst), 1, "none once TS is clear");
}

fn with_xsave(test: &str, code: impl FnOnce()) {
    if !cpu::feature_1c(26) {
        return report::skip(test, "not in CPUID");
    }
    let value4 = cpu::read_cr4();
    cpu::write_cr4(value4 | cr4::OSXSAVE);
    code();
    cpu::write_cr4(value4);
}

fn xgetbv() -> u64 {
    let (low, high): (u32, u32);
    insn!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high);
    u64::from(high) << 32 | u64::from(low)
}

fn xsetbv(index: u32, value: u64) {
    insn!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32);
}

pub fn xsave() {
    with_xsave("XSAVE", || {
        let supported = cpuid(0xd, 0);
        check_eq!(supported.eax & 3, 3, "x87 and SSE state are supported");
        check!(
            (576..=4096).contains(&supported.ecx),
            "area of {} bytes",
            supported.ecx
        );
        let before = xgetbv();
        check_eq!(before & 1, 1, "XCR0 has x87 at first");
        xsetbv(0, 3);
        check_eq!(xgetbv(), 3, "XCR0 keeps its value");
        check_eq!(cpuid(0xd, 0).ebx, 576, "size of the enabled state");
        let area = memory::pages(2);
        fill(area, 0);
        insn!(
            "fninit", "fldpi", "movq xmm3, {v}", "xsave64 [{a}]", "pxor xmm3, xmm3", "fninit",
            v = in(reg) 0xabcdu64, a = in(reg) area, in("eax") 3, in("edx") 0, out("xmm3") _,
        );
        check_eq!(memory::read64(area + 512), 3, "XSTATE_BV");
        check_eq!(
            memory::read64(area + 520),
            0,
            "XCOMP_BV of the standard form"
        );
        check_eq!(memory::read64(area + XMM0 + 3 * 16), 0xabcd, "XMM3");
        let back: u64;
        insn!("xrstor64 [{a}]", "movq {b}, xmm3", "fninit", a = in(reg) area, b = out(reg) back,
            in("eax") 2, in("edx") 0, out("xmm3") _);
        check_eq!(back, 0xabcd, "XRSTOR of SSE state alone");
        // A component whose bit in XSTATE_BV is clear is initialised.
        memory::write64(area + 512, 1);
        let initial: u64;
        insn!("movq xmm3, {v}", "xrstor64 [{a}]", "movq {b}, xmm3", "fninit",
            v = in(reg) 5u64, a = in(reg) area, b = out(reg) initial,
            in("eax") 2, in("edx") 0, out("xmm3") _);
        check_eq!(initial, 0, "XRSTOR initialises what is not in XSTATE_BV");
        // XSAVE writes only what is asked for.
        memory::write64(area + XMM0, 0x5555);
        memory::write64(area + 512, 2);
        insn!("xsave64 [{}]", in(reg) area, in("eax") 1, in("edx") 0);
        check_eq!(
            memory::read64(area + XMM0),
            0x5555,
            "XSAVE leaves other components alone"
        );
        check_eq!(
            memory::read64(area + 512) & 2,
            2,
            "and their bits in XSTATE_BV"
        );
        xsetbv(0, before);
    });
}

pub fn xsave_faults() {
    with_xsave("XSAVE faults", || {
        let gp = vector::GP;
        let area = memory::pages(2);
        check_fault!(attempt(|| xsetbv(0, 2)), gp, 0, "#GP: XCR0 without x87");
        check_fault!(
            attempt(|| xsetbv(0, 1 | 1 << 62)),
            gp,
            0,
            "#GP: unknown XCR0 bits"
        );
        check_fault!(attempt(|| xsetbv(0, 5)), gp, 0, "#GP: AVX without SSE");
        check_fault!(attempt(|| xsetbv(1, 3)), gp, 0, "#GP: unknown XCR");
        check_fault!(
            attempt(|| insn!("xsave64 [{}]", in(reg) area + 8, in("eax") 1, in("edx") 0)),
            gp,
            0,
            "#GP: XSAVE misaligned"
        );
        memory::write64(area + 512, 1 << 60);
        check_fault!(
            attempt(|| insn!("xrstor64 [{}]", in(reg) area, in("eax") 1, in("edx") 0)),
            gp,
            0,
            "#GP: XRSTOR with unknown bits in XSTATE_BV"
        );
        memory::write64(area + 512, 0);
        memory::write64(area + 528, 1);
        check_fault!(
            attempt(|| insn!("xrstor64 [{}]", in(reg) area, in("eax") 1, in("edx") 0)),
            gp,
            0,
            "#GP: XRSTOR with a header that is not zero"
        );
    });
}

/// Interrupts at any place must not disturb vector registers (here through the kit's own entry).
pub fn interrupts_keep_registers() {
    guest_kit::apic::enable();
    set_handler(0xd9, |_| guest_kit::apic::eoi());
    guest_kit::apic::write(guest_kit::apic::register::TIMER_DIVIDE, 0b1011);
    guest_kit::apic::write(guest_kit::apic::register::LVT_TIMER, 1 << 17 | 0xd9);
    guest_kit::apic::write(guest_kit::apic::register::TIMER_INITIAL, 100_000);
    let (sum, product): (u64, u64);
    insn!(
        "fninit", "fldz", "fld1", "pxor xmm0, xmm0", "movq xmm1, {one}", "sti",
        "2:", "fadd st(1), st", "paddq xmm0, xmm1", "dec {n}", "jnz 2b", "cli",
        "fstp st(0)", "sub rsp, 8", "fistp qword ptr [rsp]", "pop {s}", "movq {p}, xmm0", "fninit",
        one = in(reg) 1u64, n = inout(reg) 2_000_000u64 => _, s = out(reg) sum,
            p = out(reg) product,
        out("xmm0") _, out("xmm1") _,
    );
    guest_kit::apic::write(guest_kit::apic::register::TIMER_INITIAL, 0);
    cpu::interrupt_window();
    check_eq!(
        (sum, product),
        (2_000_000, 2_000_000),
        "sums across timer interrupts"
    );
}
