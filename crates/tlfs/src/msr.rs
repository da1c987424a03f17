//! Synthetic MSRs (TLFS appendix C) and the architectural ones that the
//! hypervisor answers.

/// Guest OS id.
pub const HV_X64_MSR_GUEST_OS_ID: u32 = 0x40000000;
/// Hypercall page: bit 0 enable, bit 1 locked, bits 12 to 63 page number.
pub const HV_X64_MSR_HYPERCALL: u32 = 0x40000001;
/// VP index.
pub const HV_X64_MSR_VP_INDEX: u32 = 0x40000002;
/// Bit 0 resets the partition.
pub const HV_X64_MSR_RESET: u32 = 0x40000003;
/// Time in the guest, 100 ns.
pub const HV_X64_MSR_VP_RUNTIME: u32 = 0x40000010;
/// Reference counter, 100 ns.
pub const HV_X64_MSR_TIME_REF_COUNT: u32 = 0x40000020;
/// Reference TSC page.
pub const HV_X64_MSR_REFERENCE_TSC: u32 = 0x40000021;
/// TSC frequency, Hz.
pub const HV_X64_MSR_TSC_FREQUENCY: u32 = 0x40000022;
/// APIC timer frequency, Hz.
pub const HV_X64_MSR_APIC_FREQUENCY: u32 = 0x40000023;
/// NPIEP configuration.
pub const HV_X64_MSR_NPIEP_CONFIG: u32 = 0x40000040;
/// Fast EOI.
pub const HV_X64_MSR_EOI: u32 = 0x40000070;
/// Fast ICR.
pub const HV_X64_MSR_ICR: u32 = 0x40000071;
/// Fast TPR.
pub const HV_X64_MSR_TPR: u32 = 0x40000072;
/// VP assist page.
pub const HV_X64_MSR_VP_ASSIST_PAGE: u32 = 0x40000073;
/// SynIC control.
pub const HV_X64_MSR_SCONTROL: u32 = 0x40000080;
/// SynIC version.
pub const HV_X64_MSR_SVERSION: u32 = 0x40000081;
/// Event flags page.
pub const HV_X64_MSR_SIEFP: u32 = 0x40000082;
/// Message page.
pub const HV_X64_MSR_SIMP: u32 = 0x40000083;
/// End of message.
pub const HV_X64_MSR_EOM: u32 = 0x40000084;
/// Event ring page.
pub const HV_X64_MSR_SIRBP: u32 = 0x40000085;
/// First of 16 synthetic interrupt sources.
pub const HV_X64_MSR_SINT0: u32 = 0x40000090;
/// Last of 16 synthetic interrupt sources.
pub const HV_X64_MSR_SINT15: u32 = 0x4000009F;
/// First of four timers' configuration and count pairs.
pub const HV_X64_MSR_STIMER0_CONFIG: u32 = 0x400000B0;
/// Count of timer 0.
pub const HV_X64_MSR_STIMER0_COUNT: u32 = 0x400000B1;
/// Last of the timers' MSRs.
pub const HV_X64_MSR_STIMER3_COUNT: u32 = 0x400000B7;
/// Reading it idles until an interrupt.
pub const HV_X64_MSR_GUEST_IDLE: u32 = 0x400000F0;
/// First crash parameter.
pub const HV_X64_MSR_CRASH_P0: u32 = 0x40000100;
/// Last crash parameter.
pub const HV_X64_MSR_CRASH_P4: u32 = 0x40000104;
/// Crash control.
pub const HV_X64_MSR_CRASH_CTL: u32 = 0x40000105;
/// Reenlightenment control.
pub const HV_X64_MSR_REENLIGHTENMENT_CONTROL: u32 = 0x40000106;
/// TSC emulation control.
pub const HV_X64_MSR_TSC_EMULATION_CONTROL: u32 = 0x40000107;
/// TSC emulation status.
pub const HV_X64_MSR_TSC_EMULATION_STATUS: u32 = 0x40000108;
/// Bit 0 exposes the invariant TSC.
pub const HV_X64_MSR_TSC_INVARIANT_CONTROL: u32 = 0x40000118;

/// IA32_APIC_BASE.
pub const MSR_IA32_APIC_BASE: u32 = 0x1B;
/// IA32_TSC_DEADLINE.
pub const MSR_IA32_TSC_DEADLINE: u32 = 0x6E0;
/// First x2APIC MSR.
pub const MSR_X2APIC_FIRST: u32 = 0x800;
/// Last x2APIC MSR.
pub const MSR_X2APIC_LAST: u32 = 0x8FF;

/// Enable bit of MSRs that place a page.
pub const HV_PAGE_MSR_ENABLE: u64 = 1;
/// Lock bit of [`HV_X64_MSR_HYPERCALL`].
pub const HV_HYPERCALL_MSR_LOCKED: u64 = 2;
/// Crash control: bit 63, the guest reports a crash.
pub const HV_CRASH_CTL_NOTIFY: u64 = 1 << 63;
/// Crash control: bit 62, P3 and P4 are address and size of a message.
pub const HV_CRASH_CTL_NOTIFY_MSG: u64 = 1 << 62;

/// An MSR that places an overlay page: bit 0 enable, bits 1 to 11 preserved,
/// bits 12 to 63 the page number (hypercall, SIMP, SIEFP, VP assist,
/// reference TSC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvPageMsr(pub u64);

impl HvPageMsr {
    /// Enables the page at guest page number `page`.
    pub const fn enabled_at(page: u64) -> Self {
        Self(page << 12 | HV_PAGE_MSR_ENABLE)
    }

    /// Whether the page is enabled.
    pub const fn enabled(self) -> bool {
        self.0 & HV_PAGE_MSR_ENABLE != 0
    }

    /// The guest page number.
    pub const fn page(self) -> u64 {
        self.0 >> 12
    }
}
