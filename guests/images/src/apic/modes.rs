//! xAPIC, x2APIC and disabled: the ways between them, and what each has (Intel SDM 3A 11.12).

use guest_kit::apic::{self, BASE_ENABLE, BASE_X2APIC, MMIO, icr, register};
use guest_kit::cpu::{self, msr, rdmsr, wrmsr};
use guest_kit::trap::{attempt, vector};
use guest_kit::{check, check_eq, check_fault, check_ok, memory, options, report, smp};

use crate::ipi;

fn base() -> u64 {
    rdmsr(msr::APIC_BASE)
}

pub fn reset_state() {
    let base = base();
    check_eq!(
        base & 0x000f_ffff_ffff_f000,
        MMIO,
        "the registers are at their place"
    );
    check!(base & BASE_ENABLE != 0, "the APIC is enabled");
    check!(
        base & apic::BASE_BSP != 0,
        "this is the bootstrap processor"
    );
    let id = cpu::cpuid(1, 0).ebx >> 24;
    check_eq!(apic::id(), id, "APIC id as in CPUID");
    if smp::start() > 1 {
        let mine = smp::run_on(1, || (apic::id(), cpu::cpuid(1, 0).ebx >> 24)).unwrap_or((0, 1));
        check_eq!(mine.0, mine.1, "another processor's APIC id as in CPUID");
        check!(mine.0 != id, "is another");
    }
    check_fault!(
        attempt(|| wrmsr(msr::APIC_BASE, base | 1)),
        vector::GP,
        0,
        "#GP: reserved bits of the APIC base"
    );
    check_fault!(
        attempt(|| wrmsr(msr::APIC_BASE, base | 1 << 60)),
        vector::GP,
        0,
        "#GP: base beyond the physical width"
    );
    if !apic::x2apic() {
        check_fault!(
            attempt(|| rdmsr(0x802)),
            vector::GP,
            0,
            "#GP: x2APIC register in xAPIC mode"
        );
    }
}

/// Reports and returns false where there is no x2APIC.
fn available(test: &str) -> bool {
    if !apic::has_x2apic() {
        report::skip(test, "no x2APIC in CPUID");
    }
    apic::has_x2apic()
}

/// Switches every processor to x2APIC mode.
fn enter_x2apic() {
    smp::start();
    smp::run_everywhere(
        &|_| {
            wrmsr(msr::APIC_BASE, base() | BASE_ENABLE | BASE_X2APIC);
            apic::enable();
        },
        5000,
    );
}

pub fn transitions() {
    if !available("transitions") {
        return;
    }
    let start = base() & !(BASE_ENABLE | BASE_X2APIC);
    let gp = vector::GP;
    macro_rules! forbidden {
        ($value:expr, $name:literal) => {
            check_fault!(
                attempt(|| wrmsr(msr::APIC_BASE, $value)),
                gp,
                0,
                "#GP: {}",
                $name
            );
        };
    }
    if !apic::x2apic() {
        forbidden!(start | BASE_X2APIC, "from xAPIC to an invalid state");
        wrmsr(msr::APIC_BASE, start | BASE_ENABLE | BASE_X2APIC);
    }
    check!(apic::x2apic(), "x2APIC mode");
    let id = cpu::cpuid(1, 0).ebx >> 24;
    check_eq!(rdmsr(0x802), u64::from(id), "the same APIC id");
    forbidden!(start | BASE_ENABLE, "from x2APIC back to xAPIC");
    forbidden!(start | BASE_X2APIC, "from x2APIC to an invalid state");
    check_ok!(
        attempt(|| wrmsr(msr::APIC_BASE, base())),
        "x2APIC written again"
    );
    wrmsr(msr::APIC_BASE, start);
    check_eq!(base() & (BASE_ENABLE | BASE_X2APIC), 0, "disabled");
    check_eq!(cpu::feature_1d(9), false, "CPUID then shows no APIC");
    check_fault!(
        attempt(|| rdmsr(0x802)),
        gp,
        0,
        "#GP: x2APIC register while disabled"
    );
    forbidden!(start | BASE_X2APIC, "from disabled to an invalid state");
    forbidden!(start | BASE_ENABLE | BASE_X2APIC, "from disabled to x2APIC");
    wrmsr(msr::APIC_BASE, start | BASE_ENABLE);
    check!(cpu::feature_1d(9), "xAPIC again");
    check_eq!(apic::id(), id, "with the same id");
    apic::enable();
    enter_x2apic();
    check_eq!(
        smp::run_everywhere(&|_| assert!(apic::x2apic()), 5000),
        true,
        "x2APIC everywhere"
    );
}

pub fn x2apic_registers() {
    if !available("x2apic_registers") {
        return;
    }
    enter_x2apic();
    let gp = vector::GP;
    let id = rdmsr(0x802);
    check_eq!(
        rdmsr(0x80d),
        id >> 4 << 16 | 1 << (id & 15),
        "the logical id follows from the id"
    );
    for (name, register) in [
        ("id", 0x802),
        ("version", 0x803),
        ("PPR", 0x80a),
        ("LDR", 0x80d),
        ("ISR", 0x810),
        ("TMR", 0x818),
        ("IRR", 0x820),
        ("current count", 0x839),
    ] {
        check_ok!(attempt(|| rdmsr(register)), "{name} is readable");
        check_fault!(
            attempt(|| wrmsr(register, 0)),
            gp,
            0,
            "#GP: write to {name}"
        );
    }
    for register in [0x800, 0x801, 0x80e, 0x831, 0x840, 0x8ff] {
        check_fault!(
            attempt(|| rdmsr(register)),
            gp,
            0,
            "#GP: read of {register:#x}"
        );
        check_fault!(
            attempt(|| wrmsr(register, 0)),
            gp,
            0,
            "#GP: write of {register:#x}"
        );
    }
    check_fault!(attempt(|| rdmsr(0x80b)), gp, 0, "#GP: EOI is write-only");
    check_fault!(
        attempt(|| wrmsr(0x80b, 1)),
        gp,
        0,
        "#GP: EOI of anything but 0"
    );
    check_fault!(
        attempt(|| rdmsr(0x83f)),
        gp,
        0,
        "#GP: SELF IPI is write-only"
    );
    check_fault!(
        attempt(|| wrmsr(0x808, 0x100)),
        gp,
        0,
        "#GP: reserved bits of the TPR"
    );
    check_fault!(
        attempt(|| wrmsr(0x80f, 1 << 20)),
        gp,
        0,
        "#GP: reserved bits of the SVR"
    );
    check_fault!(
        attempt(|| wrmsr(0x828, 1)),
        gp,
        0,
        "#GP: ESR of anything but 0"
    );
    check_fault!(
        attempt(|| wrmsr(0x830, 1 << 20)),
        gp,
        0,
        "#GP: reserved bits of the ICR"
    );
    check_fault!(
        attempt(|| wrmsr(0x83e, 0x10)),
        gp,
        0,
        "#GP: reserved bits of the divider"
    );
    check_fault!(
        attempt(|| wrmsr(0x83f, 0x100)),
        gp,
        0,
        "#GP: reserved bits of SELF IPI"
    );
    wrmsr(0x830, (0xfffe << 32) | u64::from(icr::ASSERT) | 0x91);
    check_eq!(
        rdmsr(0x830) >> 32,
        0xfffe,
        "the ICR is one register of 64 bits"
    );
}

pub fn x2apic_interrupts() {
    if !available("x2apic_interrupts") {
        return;
    }
    enter_x2apic();
    ipi::fixed();
    ipi::non_maskable();
    crate::local::priorities();
    // The SELF IPI register.
    guest_kit::trap::set_handler(0x97, crate::local::note);
    wrmsr(0x83f, 0x97);
    check!(
        apic::bit(register::IRR, 0x97),
        "SELF IPI requests the vector"
    );
    cpu::interrupt_window();
    check!(apic::bit(register::ISR, 0x97), "which is taken");
    apic::eoi();
}

/// Last: the first processor's APIC goes off and on again.
pub fn disabled() {
    let before = base();
    let plain = before & !(BASE_ENABLE | BASE_X2APIC);
    wrmsr(msr::APIC_BASE, plain);
    if !options::lenient() {
        check_eq!(
            memory::read32(MMIO + 0x30),
            u32::MAX,
            "nothing answers at its place"
        );
    }
    wrmsr(msr::APIC_BASE, plain | BASE_ENABLE);
    apic::enable();
    crate::local::priorities();
}
