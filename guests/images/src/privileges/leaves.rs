//! CPUID as a guest of this interface must see it (TLFS 2.4).

use guest_kit::cpu::{self, cpuid};
use guest_kit::{check, check_eq, hyperv, println};

pub fn hypervisor() {
    if !hyperv::required("hypervisor") {
        return;
    }
    check!(
        cpu::feature_1c(31),
        "CPUID.1:ECX says that there is a hypervisor"
    );
    let vendor = cpuid(0x4000_0000, 0);
    check!(
        (0x4000_0005..=0x4000_ffff).contains(&vendor.eax),
        "highest leaf {:#x}",
        vendor.eax
    );
    check_eq!(cpuid(0x4000_0001, 0).eax, 0x3123_7648, "interface Hv#1");
    for leaf in [0x4000_0000, 0x4000_0003, 0x4000_0004] {
        check_eq!(
            cpuid(leaf, 7),
            cpuid(leaf, 0),
            "leaf {leaf:#x} ignores the subleaf"
        );
    }
    for leaf in (0x4000_0100..0x4001_0000u32).step_by(0x100) {
        let other = cpuid(leaf, 0);
        if (other.ebx, other.ecx, other.edx) == (0x4b4d_564b, 0x564b_4d56, 0x4d) {
            guest_kit::report::fail("another hypervisor's signature", leaf, "none");
        }
    }
    check!(
        cpuid(0x4000_0005, 0).eax >= guest_kit::boot::processors() as u32,
        "maximum of VPs"
    );
}

pub fn features() {
    if !hyperv::required("features") {
        return;
    }
    let features = cpuid(0x4000_0003, 0);
    println!(
        "NOTE: features {:#x} {:#x} {:#x} {:#x}, hints {:#x}",
        features.eax,
        features.ebx,
        features.ecx,
        features.edx,
        cpuid(0x4000_0004, 0).eax
    );
    check_eq!(
        features.eax & 0x60,
        0x60,
        "hypercall and VP-index registers"
    );
    check_eq!(
        features.ebx & 0x30,
        0x30,
        "messages may be posted, events signalled"
    );
    // CreatePartitions, AccessPartitionId, AccessMemoryPool, CreatePort, AccessStats,
    // CpuManagement, ConfigureProfiler, Isolation: not for a child.
    check_eq!(features.ebx & 0x40_3147, 0, "no privileges of a parent");
    let hints = cpuid(0x4000_0004, 0);
    check_eq!(hints.eax & 1 << 12, 0, "not nested");
    check_eq!(
        hints.eax & (1 << 9) != 0 || features.eax & 4 != 0,
        true,
        "automatic EOI is deprecated, or there is a SynIC to do it"
    );
}

pub fn processor() {
    let highest = cpuid(0, 0).eax;
    check!(highest >= 7, "basic leaves up to {highest:#x}");
    check_eq!(
        cpuid(highest, 0),
        cpuid(highest, 0),
        "the highest leaf is stable"
    );
    let extended = cpuid(0x8000_0000, 0).eax;
    check!(
        extended >= 0x8000_0008,
        "extended leaves up to {extended:#x}"
    );
    let bits = cpu::physical_bits();
    check!((36..=52).contains(&bits), "{bits} physical address bits");
    // x86-64-v2: SSE3, SSSE3, CX16, SSE4.1, SSE4.2, POPCNT.
    let wanted = 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23;
    check_eq!(cpuid(1, 0).ecx & wanted, wanted, "x86-64-v2 in leaf 1");
    // FPU, TSC, MSR, PAE, CX8, APIC, SEP, PGE, CMOV, MMX, FXSR, SSE, SSE2.
    let basic = 1
        | 1 << 4
        | 1 << 5
        | 1 << 6
        | 1 << 8
        | 1 << 9
        | 1 << 11
        | 1 << 13
        | 1 << 15
        | 7 << 23
        | 1 << 26;
    check_eq!(cpuid(1, 0).edx & basic, basic, "the basic features");
    // SYSCALL, NX, long mode.
    let long = 1 << 11 | 1 << 20 | 1 << 29;
    check_eq!(
        cpuid(0x8000_0001, 0).edx & long,
        long,
        "the long-mode features"
    );
    let xsave = cpuid(1, 0).ecx;
    let value4 = cpu::read_cr4();
    if xsave >> 26 & 1 != 0 {
        check_eq!(xsave >> 27 & 1, 0, "OSXSAVE is clear before CR4.OSXSAVE");
        cpu::write_cr4(value4 | cpu::cr4::OSXSAVE);
        check_eq!(cpuid(1, 0).ecx >> 27 & 1, 1, "OSXSAVE follows CR4.OSXSAVE");
        cpu::write_cr4(value4);
    }
}
