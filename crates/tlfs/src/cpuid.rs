//! CPUID leaves of the hypervisor (TLFS chapter 2).

/// Hypervisor present: CPUID 1 ECX bit 31.
pub const CPUID_1_ECX_HYPERVISOR: u32 = 1 << 31;
/// Vendor id and highest leaf.
pub const HV_CPUID_VENDOR_AND_MAX: u32 = 0x4000_0000;
/// Interface signature.
pub const HV_CPUID_INTERFACE: u32 = 0x4000_0001;
/// Hypervisor version.
pub const HV_CPUID_VERSION: u32 = 0x4000_0002;
/// Privileges and features.
pub const HV_CPUID_FEATURES: u32 = 0x4000_0003;
/// Recommendations.
pub const HV_CPUID_ENLIGHTENMENT_INFO: u32 = 0x4000_0004;
/// Implementation limits.
pub const HV_CPUID_IMPLEMENTATION_LIMITS: u32 = 0x4000_0005;
/// Hardware features in use.
pub const HV_CPUID_HARDWARE_FEATURES: u32 = 0x4000_0006;
/// CPU management features (root only).
pub const HV_CPUID_CPU_MANAGEMENT: u32 = 0x4000_0007;
/// Nested features.
pub const HV_CPUID_NESTED_FEATURES: u32 = 0x4000_000A;
/// Isolation configuration.
pub const HV_CPUID_ISOLATION: u32 = 0x4000_000C;
/// Virtualization stack vendor.
pub const HV_CPUID_VS_VENDOR: u32 = 0x4000_0080;
/// Virtualization stack interface.
pub const HV_CPUID_VS_INTERFACE: u32 = 0x4000_0081;
/// Virtualization stack properties.
pub const HV_CPUID_VS_PROPERTIES: u32 = 0x4000_0082;

/// "Micr", "osof", "t Hv": EBX, ECX, EDX of leaf 0x40000000.
pub const HV_VENDOR_SIGNATURE: [u32; 3] = [0x7263_694D, 0x666F_736F, 0x7648_2074];
/// "Hv#1": EAX of leaf 0x40000001.
pub const HV_INTERFACE_SIGNATURE: u32 = 0x3123_7648;
/// "VS#1": EAX of leaf 0x40000081.
pub const HV_VS_INTERFACE_SIGNATURE: u32 = 0x3123_5356;

bitflags::bitflags! {
    /// CPUID 0x40000003 EDX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HvFeatures: u32 {
        /// Hypervisor-assisted guest debugging.
        const GUEST_DEBUGGING = 1 << 1;
        /// Performance monitor.
        const PERF_MONITOR = 1 << 2;
        /// Physical CPU dynamic partitioning.
        const CPU_DYNAMIC_PARTITIONING = 1 << 3;
        /// Hypercall input in XMM registers.
        const XMM_HYPERCALL_INPUT = 1 << 4;
        /// Virtual guest idle state.
        const GUEST_IDLE = 1 << 5;
        /// Hypervisor sleep state.
        const HYPERVISOR_SLEEP = 1 << 6;
        /// NUMA distance query.
        const NUMA_DISTANCE = 1 << 7;
        /// Frequency MSRs.
        const FREQUENCY_REGS = 1 << 8;
        /// Synthetic machine checks.
        const SYNTHETIC_MACHINE_CHECK = 1 << 9;
        /// Guest crash MSRs.
        const GUEST_CRASH_REGS = 1 << 10;
        /// Debug MSRs.
        const DEBUG_REGS = 1 << 11;
        /// NPIEP.
        const NPIEP = 1 << 12;
        /// HvCallDisableHypervisor.
        const DISABLE_HYPERVISOR = 1 << 13;
        /// Extended GVA ranges in flush lists.
        const EXTENDED_GVA_RANGES = 1 << 14;
        /// Hypercall output in XMM registers.
        const XMM_HYPERCALL_OUTPUT = 1 << 15;
        /// SINT polling mode.
        const SINT_POLLING = 1 << 17;
        /// The hypercall MSR can be locked.
        const HYPERCALL_MSR_LOCK = 1 << 18;
        /// Direct synthetic timers.
        const DIRECT_SYNTHETIC_TIMERS = 1 << 19;
    }
}

bitflags::bitflags! {
    /// CPUID 0x40000004 EAX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HvEnlightenmentHints: u32 {
        /// Hypercall for address space switches.
        const AS_SWITCH = 1 << 0;
        /// Hypercall for local TLB flushes.
        const LOCAL_TLB_FLUSH = 1 << 1;
        /// Hypercall for remote TLB flushes.
        const REMOTE_TLB_FLUSH = 1 << 2;
        /// MSRs for EOI, ICR and TPR.
        const APIC_MSRS = 1 << 3;
        /// MSR for reset.
        const RESET_MSR = 1 << 4;
        /// Relaxed timing.
        const RELAXED_TIMING = 1 << 5;
        /// DMA remapping.
        const DMA_REMAPPING = 1 << 6;
        /// Interrupt remapping.
        const INTERRUPT_REMAPPING = 1 << 7;
        /// x2APIC MSRs.
        const X2APIC_MSRS = 1 << 8;
        /// Auto-EOI is deprecated.
        const DEPRECATE_AUTO_EOI = 1 << 9;
        /// Synthetic cluster IPI hypercall.
        const CLUSTER_IPI = 1 << 10;
        /// Hypercalls with sparse VP sets.
        const EX_PROCESSOR_MASKS = 1 << 11;
        /// Running nested.
        const NESTED = 1 << 12;
        /// INT instead of MBEC for system calls.
        const INT_FOR_MBEC_SYSCALLS = 1 << 13;
        /// Enlightened VMCS.
        const ENLIGHTENED_VMCS = 1 << 14;
        /// Synced timeline.
        const SYNCED_TIMELINE = 1 << 15;
        /// Direct local flush of everything.
        const DIRECT_LOCAL_FLUSH_ENTIRE = 1 << 17;
        /// No core is shared but by SMT siblings.
        const NO_NONARCH_CORE_SHARING = 1 << 18;
    }
}

impl HvEnlightenmentHints {
    /// Hints of a hypervisor that owns its virtual APICs and TLBs: 0xE24.
    pub const DEFAULT: Self = Self::from_bits_truncate(0xE24);
}

bitflags::bitflags! {
    /// CPUID 0x40000006 EAX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HvHardwareFeatures: u32 {
        /// APIC overlay assist.
        const APIC_OVERLAY = 1 << 0;
        /// MSR bitmaps.
        const MSR_BITMAPS = 1 << 1;
        /// Architectural performance counters.
        const PERFORMANCE_COUNTERS = 1 << 2;
        /// Second level address translation.
        const SLAT = 1 << 3;
        /// DMA remapping.
        const DMA_REMAPPING = 1 << 4;
        /// Interrupt remapping.
        const INTERRUPT_REMAPPING = 1 << 5;
    }
}
