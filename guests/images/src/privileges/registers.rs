//! Synthetic registers: present exactly when the privilege is.

use guest_kit::cpu::{cpuid, rdmsr, wrmsr};
use guest_kit::hyperv::{self, call, msr, raw, status, status_of};
use guest_kit::trap::{attempt, vector};
use guest_kit::{apic, check, check_eq, check_fault, check_ok, cpu, memory, println, smp, time};

pub fn unknown() {
    for register in [
        0x4000_0004u32,
        0x4000_0011,
        0x4000_00a0,
        0x4000_0200,
        0x4000_1000,
        0x4fff_ffff,
        0x1234,
        0xc000_1234,
        0xffff_ffff,
    ] {
        if guest_kit::options::lenient() {
            return guest_kit::report::skip("unknown registers", "lenient emulator");
        }
        check_fault!(
            attempt(|| rdmsr(register)),
            vector::GP,
            0,
            "#GP: read of {register:#x}"
        );
        check_fault!(
            attempt(|| wrmsr(register, 0)),
            vector::GP,
            0,
            "#GP: write of {register:#x}"
        );
    }
}

/// Registers, the bit of CPUID 0x4000_0003:EAX that gives them, and a bit of EDX that must be set
/// too (or none).
const READABLE: [(&str, u32, u32, Option<u32>); 14] = [
    ("VP_RUNTIME", msr::VP_RUNTIME, 0, None),
    ("TIME_REF_COUNT", msr::TIME_REF_COUNT, 1, None),
    ("SCONTROL", msr::SCONTROL, 2, None),
    ("SVERSION", msr::SVERSION, 2, None),
    ("SINT15", msr::SINT0 + 15, 2, None),
    ("STIMER0_CONFIG", msr::STIMER0_CONFIG, 3, None),
    ("TPR", msr::TPR, 4, None),
    ("VP_ASSIST_PAGE", msr::VP_ASSIST_PAGE, 4, None),
    ("HYPERCALL", msr::HYPERCALL, 5, None),
    ("VP_INDEX", msr::VP_INDEX, 6, None),
    ("RESET", msr::RESET, 7, None),
    ("REFERENCE_TSC", msr::REFERENCE_TSC, 9, None),
    ("TSC_FREQUENCY", msr::TSC_FREQUENCY, 11, Some(8)),
    (
        "TSC_INVARIANT_CONTROL",
        msr::TSC_INVARIANT_CONTROL,
        15,
        None,
    ),
];

pub fn by_privilege() {
    if !hyperv::required("by_privilege") {
        return;
    }
    let features = cpuid(0x4000_0003, 0);
    for (name, register, bit, extra) in READABLE {
        let granted = features.eax >> bit & 1 != 0
            && extra.is_none_or(|extra| features.edx >> extra & 1 != 0);
        if granted {
            check_ok!(attempt(|| rdmsr(register)), "{name} is readable");
        } else {
            check_fault!(attempt(|| rdmsr(register)), vector::GP, 0, "#GP: {name}");
        }
    }
    if features.eax >> 8 & 1 == 0 {
        check_fault!(
            attempt(|| rdmsr(0x4000_00e0)),
            vector::GP,
            0,
            "#GP: statistics page"
        );
    }
    if features.edx >> 11 & 1 == 0 {
        check_fault!(
            attempt(|| rdmsr(0x4000_00f1)),
            vector::GP,
            0,
            "#GP: debug register"
        );
    }
    if features.eax >> 13 & 1 == 0 {
        check_fault!(
            attempt(|| rdmsr(0x4000_0106)),
            vector::GP,
            0,
            "#GP: reenlightenment"
        );
    }
}

pub fn contents() {
    if !hyperv::required("contents") {
        return;
    }
    let own = rdmsr(msr::VP_INDEX);
    check!(
        own < cpuid(0x4000_0005, 0).eax.into(),
        "VP index {own} is below the maximum"
    );
    check_fault!(
        attempt(|| wrmsr(msr::VP_INDEX, 0)),
        vector::GP,
        0,
        "#GP: write to VP_INDEX"
    );
    let features = cpuid(0x4000_0003, 0);
    if features.eax & 1 != 0 {
        let before = rdmsr(msr::VP_RUNTIME);
        time::delay_us(50_000);
        let after = rdmsr(msr::VP_RUNTIME);
        check!(after > before, "VP_RUNTIME runs while the VP does");
        check_fault!(
            attempt(|| wrmsr(msr::VP_RUNTIME, 0)),
            vector::GP,
            0,
            "#GP: VP_RUNTIME"
        );
    }
    if features.eax >> 7 & 1 != 0 {
        check_eq!(rdmsr(msr::RESET) & 1, 0, "RESET reads 0");
    }
}

pub fn crash() {
    if !hyperv::required("crash") {
        return;
    }
    if cpuid(0x4000_0003, 0).edx >> 10 & 1 == 0 {
        check_fault!(
            attempt(|| rdmsr(msr::CRASH_CTL)),
            vector::GP,
            0,
            "#GP: crash registers"
        );
        return;
    }
    for index in 0..5u32 {
        let value = 0xfeed_0000 + u64::from(index);
        wrmsr(msr::CRASH_P0 + index, value);
        check_eq!(
            rdmsr(msr::CRASH_P0 + index),
            value,
            "crash parameter {index}"
        );
        wrmsr(msr::CRASH_P0 + index, 0);
    }
    // Bit 63: a crash can be notified.
    check_eq!(
        rdmsr(msr::CRASH_CTL) >> 63,
        1,
        "crash control offers notification"
    );
}

pub fn assist_page() {
    if !hyperv::required("assist_page") {
        return;
    }
    if cpuid(0x4000_0003, 0).eax >> 4 & 1 == 0 {
        return println!("NOTE: no VP assist page here");
    }
    let page = memory::page();
    memory::write64(page + 0x800, 0x9999);
    check_eq!(rdmsr(msr::VP_ASSIST_PAGE), 0, "VP_ASSIST_PAGE starts at 0");
    wrmsr(msr::VP_ASSIST_PAGE, page | 1);
    check_eq!(rdmsr(msr::VP_ASSIST_PAGE), page | 1, "it keeps its value");
    check_eq!(memory::read64(page + 0x800), 0, "the page is zero at first");
    wrmsr(msr::VP_ASSIST_PAGE, page);
    check_eq!(
        memory::read64(page + 0x800),
        0x9999,
        "disabling uncovers the RAM"
    );
}

/// Reading GUEST_IDLE sleeps until an interrupt, with the interrupt flag in either state.
pub fn guest_idle() {
    if !hyperv::required("guest_idle") {
        return;
    }
    if cpuid(0x4000_0003, 0).eax >> 10 & 1 == 0 {
        check_fault!(
            attempt(|| rdmsr(msr::GUEST_IDLE)),
            vector::GP,
            0,
            "#GP: GUEST_IDLE"
        );
        return;
    }
    apic::enable();
    guest_kit::trap::set_handler(0xd7, |_| apic::eoi());
    let ticks = (rdmsr(msr::APIC_FREQUENCY) / 100) as u32;
    apic::write(apic::register::TIMER_DIVIDE, 0b1011);
    apic::write(apic::register::LVT_TIMER, 0xd7);
    let start = cpu::rdtsc();
    apic::write(apic::register::TIMER_INITIAL, ticks);
    rdmsr(msr::GUEST_IDLE);
    let slept = (cpu::rdtsc() - start) / (time::tsc_hz() / 1_000_000);
    check!(slept >= 9_000, "slept until the timer: {slept} us");
    check!(
        apic::bit(apic::register::IRR, 0xd7),
        "the interrupt is pending, not taken"
    );
    cpu::interrupt_window();
}

pub fn hypercalls() {
    if !hyperv::required("hypercalls") {
        return;
    }
    hyperv::enable_hypercalls();
    let output = memory::page();
    let input = hyperv::place(&[0; 64]);
    let features = cpuid(0x4000_0003, 0);
    let privileged: [(&str, u64); 6] = [
        ("CreatePartition", 0x40),
        ("GetPartitionId", u64::from(call::GET_PARTITION_ID)),
        ("GetMemoryBalance", 0x4a),
        ("CreatePort", 0x95),
        ("ConnectPort", 0x96),
        ("DepositMemory", 0x48 | 1 << 32),
    ];
    for (name, control) in privileged {
        check_eq!(
            status_of(raw(control, input, output)),
            status::ACCESS_DENIED,
            "{name}"
        );
    }
    // Only a partition's parent may: refused as such, or because there is no such partition.
    for (name, control) in [
        ("InitializePartition", 0x41),
        ("DeletePartition", 0x43),
        ("GetNextChildPartition", 0x47),
        ("MapGpaPages", 0x4b | 1 << 32),
        ("CreateVp", 0x4e),
    ] {
        let refused = status_of(raw(control, input, output));
        check!(
            matches!(
                refused,
                status::ACCESS_DENIED | status::INVALID_PARTITION_ID
            ),
            "{name}: {refused:#x}"
        );
    }
    if features.ebx >> 17 & 1 == 0 {
        let set = hyperv::place(&[hyperv::SELF, 0xffff_fffe, 0x9_0003, 0, 0, 0]);
        let control = hyperv::rep_control(call::SET_VP_REGISTERS, 0, 1);
        check_eq!(
            status_of(raw(control, set, 0)),
            status::ACCESS_DENIED,
            "SetVpRegisters"
        );
    }
    if features.ebx >> 21 & 1 == 0 {
        let start = hyperv::place(&[hyperv::SELF, u64::from(hyperv::vp_index())]);
        let refused = status_of(raw(u64::from(call::START_VP), start, 0));
        check_eq!(refused, status::ACCESS_DENIED, "StartVirtualProcessor");
    }
    if smp::start() > 1 {
        check_eq!(
            smp::run_on(1, || status_of(raw(0x40, input, output))),
            Some(status::ACCESS_DENIED),
            "CreatePartition from another processor"
        );
    }
}
