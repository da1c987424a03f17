//! Names of virtual processor registers (TLFS 7.7, HV_REGISTER_NAME).

open_enum! {
    /// HV_REGISTER_NAME.
    pub struct HvRegisterName(u32) {
        /// Bit 0: suspended by the parent.
        EXPLICIT_SUSPEND = 0x00000000,
        /// Bit 0: suspended because of an intercept.
        INTERCEPT_SUSPEND = 0x00000001,
        /// Instruction emulation hints.
        INSTRUCTION_EMULATION_HINTS = 0x00000002,
        /// Bit 0: suspended by the root scheduler.
        DISPATCH_SUSPEND = 0x00000003,
        /// Activity: see `HvInternalActivity`.
        INTERNAL_ACTIVITY_STATE = 0x00000004,
        /// CPUID 0x40000002.
        HYPERVISOR_VERSION = 0x00000100,
        /// CPUID 0x40000003.
        PRIVILEGES_AND_FEATURES_INFO = 0x00000200,
        /// CPUID 0x40000004.
        FEATURES_INFO = 0x00000201,
        /// CPUID 0x40000005.
        IMPLEMENTATION_LIMITS_INFO = 0x00000202,
        /// CPUID 0x40000006.
        HARDWARE_FEATURES_INFO = 0x00000203,
        /// CPUID 0x40000007.
        CPU_MANAGEMENT_FEATURES_INFO = 0x00000204,
        /// CPUID 0x40000008.
        SVM_FEATURES_INFO = 0x00000205,
        /// CPUID 0x40000009.
        SKIP_LEVEL_FEATURES_INFO = 0x00000206,
        /// CPUID 0x4000000a.
        NESTED_VIRT_FEATURES_INFO = 0x00000207,
        /// CPUID 0x4000000b.
        IPT_FEATURES_INFO = 0x00000208,
        /// Crash parameter 0.
        GUEST_CRASH_P0 = 0x00000210,
        /// Crash parameter 1.
        GUEST_CRASH_P1 = 0x00000211,
        /// Crash parameter 2.
        GUEST_CRASH_P2 = 0x00000212,
        /// Crash parameter 3.
        GUEST_CRASH_P3 = 0x00000213,
        /// Crash parameter 4.
        GUEST_CRASH_P4 = 0x00000214,
        /// Crash control.
        GUEST_CRASH_CTL = 0x00000215,
        /// TSC frequency, Hz.
        PROCESSOR_CLOCK_FREQUENCY = 0x00000240,
        /// APIC timer frequency, Hz.
        INTERRUPT_CLOCK_FREQUENCY = 0x00000241,
        /// Guest idle.
        GUEST_IDLE = 0x00000250,
        /// Event to be injected.
        PENDING_INTERRUPTION = 0x00010002,
        /// Interrupt shadow and NMI mask.
        INTERRUPT_STATE = 0x00010003,
        /// Pending event, first half.
        PENDING_EVENT0 = 0x00010004,
        /// Pending event, second half.
        PENDING_EVENT1 = 0x00010005,
        /// Deliverability notifications.
        DELIVERABILITY_NOTIFICATIONS = 0x00010006,
        /// RAX.
        RAX = 0x00020000,
        /// RCX.
        RCX = 0x00020001,
        /// RDX.
        RDX = 0x00020002,
        /// RBX.
        RBX = 0x00020003,
        /// RSP.
        RSP = 0x00020004,
        /// RBP.
        RBP = 0x00020005,
        /// RSI.
        RSI = 0x00020006,
        /// RDI.
        RDI = 0x00020007,
        /// R8.
        R8 = 0x00020008,
        /// R9.
        R9 = 0x00020009,
        /// R10.
        R10 = 0x0002000A,
        /// R11.
        R11 = 0x0002000B,
        /// R12.
        R12 = 0x0002000C,
        /// R13.
        R13 = 0x0002000D,
        /// R14.
        R14 = 0x0002000E,
        /// R15.
        R15 = 0x0002000F,
        /// RIP.
        RIP = 0x00020010,
        /// RFLAGS.
        RFLAGS = 0x00020011,
        /// XMM0.
        XMM0 = 0x00030000,
        /// XMM1.
        XMM1 = 0x00030001,
        /// XMM2.
        XMM2 = 0x00030002,
        /// XMM3.
        XMM3 = 0x00030003,
        /// XMM4.
        XMM4 = 0x00030004,
        /// XMM5.
        XMM5 = 0x00030005,
        /// XMM6.
        XMM6 = 0x00030006,
        /// XMM7.
        XMM7 = 0x00030007,
        /// XMM8.
        XMM8 = 0x00030008,
        /// XMM9.
        XMM9 = 0x00030009,
        /// XMM10.
        XMM10 = 0x0003000A,
        /// XMM11.
        XMM11 = 0x0003000B,
        /// XMM12.
        XMM12 = 0x0003000C,
        /// XMM13.
        XMM13 = 0x0003000D,
        /// XMM14.
        XMM14 = 0x0003000E,
        /// XMM15.
        XMM15 = 0x0003000F,
        /// x87 register 0.
        FP_MMX0 = 0x00030010,
        /// x87 register 1.
        FP_MMX1 = 0x00030011,
        /// x87 register 2.
        FP_MMX2 = 0x00030012,
        /// x87 register 3.
        FP_MMX3 = 0x00030013,
        /// x87 register 4.
        FP_MMX4 = 0x00030014,
        /// x87 register 5.
        FP_MMX5 = 0x00030015,
        /// x87 register 6.
        FP_MMX6 = 0x00030016,
        /// x87 register 7.
        FP_MMX7 = 0x00030017,
        /// x87 control and status.
        FP_CONTROL_STATUS = 0x00030018,
        /// MXCSR and x87 data pointer.
        XMM_CONTROL_STATUS = 0x00030019,
        /// CR0.
        CR0 = 0x00040000,
        /// CR2.
        CR2 = 0x00040001,
        /// CR3.
        CR3 = 0x00040002,
        /// CR4.
        CR4 = 0x00040003,
        /// CR8.
        CR8 = 0x00040004,
        /// XFEM.
        XFEM = 0x00040005,
        /// Intermediate CR0.
        INTERMEDIATE_CR0 = 0x00041000,
        /// Intermediate CR3.
        INTERMEDIATE_CR3 = 0x00041002,
        /// Intermediate CR4.
        INTERMEDIATE_CR4 = 0x00041003,
        /// Intermediate CR8.
        INTERMEDIATE_CR8 = 0x00041004,
        /// DR0.
        DR0 = 0x00050000,
        /// DR1.
        DR1 = 0x00050001,
        /// DR2.
        DR2 = 0x00050002,
        /// DR3.
        DR3 = 0x00050003,
        /// DR6.
        DR6 = 0x00050004,
        /// DR7.
        DR7 = 0x00050005,
        /// ES, a segment.
        ES = 0x00060000,
        /// CS, a segment.
        CS = 0x00060001,
        /// SS, a segment.
        SS = 0x00060002,
        /// DS, a segment.
        DS = 0x00060003,
        /// FS, a segment.
        FS = 0x00060004,
        /// GS, a segment.
        GS = 0x00060005,
        /// LDTR, a segment.
        LDTR = 0x00060006,
        /// TR, a segment.
        TR = 0x00060007,
        /// IDTR, a table.
        IDTR = 0x00070000,
        /// GDTR, a table.
        GDTR = 0x00070001,
        /// TSC MSR.
        TSC = 0x00080000,
        /// EFER MSR.
        EFER = 0x00080001,
        /// KERNEL_GS_BASE MSR.
        KERNEL_GS_BASE = 0x00080002,
        /// APIC_BASE MSR.
        APIC_BASE = 0x00080003,
        /// PAT MSR.
        PAT = 0x00080004,
        /// SYSENTER_CS MSR.
        SYSENTER_CS = 0x00080005,
        /// SYSENTER_EIP MSR.
        SYSENTER_EIP = 0x00080006,
        /// SYSENTER_ESP MSR.
        SYSENTER_ESP = 0x00080007,
        /// STAR MSR.
        STAR = 0x00080008,
        /// LSTAR MSR.
        LSTAR = 0x00080009,
        /// CSTAR MSR.
        CSTAR = 0x0008000A,
        /// SFMASK MSR.
        SFMASK = 0x0008000B,
        /// INITIAL_APIC_ID MSR.
        INITIAL_APIC_ID = 0x0008000C,
        /// MTRR_CAP MSR.
        MTRR_CAP = 0x0008000D,
        /// MTRR_DEF_TYPE MSR.
        MTRR_DEF_TYPE = 0x0008000E,
        /// Variable MTRR base 0.
        MTRR_PHYS_BASE0 = 0x00080010,
        /// Variable MTRR base 1.
        MTRR_PHYS_BASE1 = 0x00080011,
        /// Variable MTRR base 2.
        MTRR_PHYS_BASE2 = 0x00080012,
        /// Variable MTRR base 3.
        MTRR_PHYS_BASE3 = 0x00080013,
        /// Variable MTRR base 4.
        MTRR_PHYS_BASE4 = 0x00080014,
        /// Variable MTRR base 5.
        MTRR_PHYS_BASE5 = 0x00080015,
        /// Variable MTRR base 6.
        MTRR_PHYS_BASE6 = 0x00080016,
        /// Variable MTRR base 7.
        MTRR_PHYS_BASE7 = 0x00080017,
        /// Variable MTRR base 8.
        MTRR_PHYS_BASE8 = 0x00080018,
        /// Variable MTRR base 9.
        MTRR_PHYS_BASE9 = 0x00080019,
        /// Variable MTRR base 10.
        MTRR_PHYS_BASEA = 0x0008001A,
        /// Variable MTRR base 11.
        MTRR_PHYS_BASEB = 0x0008001B,
        /// Variable MTRR base 12.
        MTRR_PHYS_BASEC = 0x0008001C,
        /// Variable MTRR base 13.
        MTRR_PHYS_BASED = 0x0008001D,
        /// Variable MTRR base 14.
        MTRR_PHYS_BASEE = 0x0008001E,
        /// Variable MTRR base 15.
        MTRR_PHYS_BASEF = 0x0008001F,
        /// Variable MTRR mask 0.
        MTRR_PHYS_MASK0 = 0x00080040,
        /// Variable MTRR mask 1.
        MTRR_PHYS_MASK1 = 0x00080041,
        /// Variable MTRR mask 2.
        MTRR_PHYS_MASK2 = 0x00080042,
        /// Variable MTRR mask 3.
        MTRR_PHYS_MASK3 = 0x00080043,
        /// Variable MTRR mask 4.
        MTRR_PHYS_MASK4 = 0x00080044,
        /// Variable MTRR mask 5.
        MTRR_PHYS_MASK5 = 0x00080045,
        /// Variable MTRR mask 6.
        MTRR_PHYS_MASK6 = 0x00080046,
        /// Variable MTRR mask 7.
        MTRR_PHYS_MASK7 = 0x00080047,
        /// Variable MTRR mask 8.
        MTRR_PHYS_MASK8 = 0x00080048,
        /// Variable MTRR mask 9.
        MTRR_PHYS_MASK9 = 0x00080049,
        /// Variable MTRR mask 10.
        MTRR_PHYS_MASKA = 0x0008004A,
        /// Variable MTRR mask 11.
        MTRR_PHYS_MASKB = 0x0008004B,
        /// Variable MTRR mask 12.
        MTRR_PHYS_MASKC = 0x0008004C,
        /// Variable MTRR mask 13.
        MTRR_PHYS_MASKD = 0x0008004D,
        /// Variable MTRR mask 14.
        MTRR_PHYS_MASKE = 0x0008004E,
        /// Variable MTRR mask 15.
        MTRR_PHYS_MASKF = 0x0008004F,
        /// Fixed MTRR.
        MTRR_FIX64K00000 = 0x00080070,
        /// Fixed MTRR.
        MTRR_FIX16K80000 = 0x00080071,
        /// Fixed MTRR.
        MTRR_FIX16KA0000 = 0x00080072,
        /// Fixed MTRR.
        MTRR_FIX4KC0000 = 0x00080073,
        /// Fixed MTRR.
        MTRR_FIX4KC8000 = 0x00080074,
        /// Fixed MTRR.
        MTRR_FIX4KD0000 = 0x00080075,
        /// Fixed MTRR.
        MTRR_FIX4KD8000 = 0x00080076,
        /// Fixed MTRR.
        MTRR_FIX4KE0000 = 0x00080077,
        /// Fixed MTRR.
        MTRR_FIX4KE8000 = 0x00080078,
        /// Fixed MTRR.
        MTRR_FIX4KF0000 = 0x00080079,
        /// Fixed MTRR.
        MTRR_FIX4KF8000 = 0x0008007A,
        /// TSC_AUX MSR.
        TSC_AUX = 0x0008007B,
        /// BNDCFGS MSR.
        BNDCFGS = 0x0008007C,
        /// DEBUG_CTL MSR.
        DEBUG_CTL = 0x0008007D,
        /// MCOUNT MSR.
        MCOUNT = 0x0008007E,
        /// ACOUNT MSR.
        ACOUNT = 0x0008007F,
        /// SPEC_CTRL.
        SPEC_CTRL = 0x00080084,
        /// PRED_CMD.
        PRED_CMD = 0x00080085,
        /// VIRT_SPEC_CTRL.
        VIRT_SPEC_CTRL = 0x00080086,
        /// TSC_VIRTUAL_OFFSET.
        TSC_VIRTUAL_OFFSET = 0x00080087,
        /// TSX_CTRL.
        TSX_CTRL = 0x00080088,
        /// MC_UPDATE_PATCH_LEVEL.
        MC_UPDATE_PATCH_LEVEL = 0x00080089,
        /// XSS.
        XSS = 0x0008008B,
        /// U_CET.
        U_CET = 0x0008008C,
        /// S_CET.
        S_CET = 0x0008008D,
        /// SSP.
        SSP = 0x0008008E,
        /// PL0_SSP.
        PL0_SSP = 0x0008008F,
        /// PL1_SSP.
        PL1_SSP = 0x00080090,
        /// PL2_SSP.
        PL2_SSP = 0x00080091,
        /// PL3_SSP.
        PL3_SSP = 0x00080092,
        /// INTERRUPT_SSP_TABLE_ADDR.
        INTERRUPT_SSP_TABLE_ADDR = 0x00080093,
        /// TSC_VIRTUAL_MULTIPLIER.
        TSC_VIRTUAL_MULTIPLIER = 0x00080094,
        /// TSC_DEADLINE.
        TSC_DEADLINE = 0x00080095,
        /// TSC_ADJUST.
        TSC_ADJUST = 0x00080096,
        /// Local APIC register, x2APIC MSR 0x802.
        APIC_ID = 0x00084802,
        /// Local APIC register, x2APIC MSR 0x803.
        APIC_VERSION = 0x00084803,
        /// Local APIC register, x2APIC MSR 0x808.
        APIC_TPR = 0x00084808,
        /// Local APIC register, x2APIC MSR 0x80A.
        APIC_PPR = 0x0008480A,
        /// Local APIC register, x2APIC MSR 0x80B.
        APIC_EOI = 0x0008480B,
        /// Local APIC register, x2APIC MSR 0x80D.
        APIC_LDR = 0x0008480D,
        /// Local APIC register, x2APIC MSR 0x80F.
        APIC_SPURIOUS = 0x0008480F,
        /// Local APIC register, x2APIC MSR 0x810.
        APIC_ISR0 = 0x00084810,
        /// Local APIC register, x2APIC MSR 0x818.
        APIC_TMR0 = 0x00084818,
        /// Local APIC register, x2APIC MSR 0x820.
        APIC_IRR0 = 0x00084820,
        /// Local APIC register, x2APIC MSR 0x828.
        APIC_ESR = 0x00084828,
        /// Local APIC register, x2APIC MSR 0x830.
        APIC_ICR = 0x00084830,
        /// Local APIC register, x2APIC MSR 0x832.
        APIC_LVT_TIMER = 0x00084832,
        /// Local APIC register, x2APIC MSR 0x833.
        APIC_LVT_THERMAL = 0x00084833,
        /// Local APIC register, x2APIC MSR 0x834.
        APIC_LVT_PERFMON = 0x00084834,
        /// Local APIC register, x2APIC MSR 0x835.
        APIC_LVT_LINT0 = 0x00084835,
        /// Local APIC register, x2APIC MSR 0x836.
        APIC_LVT_LINT1 = 0x00084836,
        /// Local APIC register, x2APIC MSR 0x837.
        APIC_LVT_ERROR = 0x00084837,
        /// Local APIC register, x2APIC MSR 0x838.
        APIC_INIT_COUNT = 0x00084838,
        /// Local APIC register, x2APIC MSR 0x839.
        APIC_CURRENT_COUNT = 0x00084839,
        /// Local APIC register, x2APIC MSR 0x83E.
        APIC_DIVIDE = 0x0008483E,
        /// Local APIC register, x2APIC MSR 0x83F.
        APIC_SELF_IPI = 0x0008483F,
        /// Time spent in the guest, 100 ns.
        VP_RUNTIME = 0x00090000,
        /// Hypercall MSR.
        HYPERCALL = 0x00090001,
        /// Guest OS id.
        GUEST_OS_ID = 0x00090002,
        /// VP index.
        VP_INDEX = 0x00090003,
        /// Reference time, 100 ns.
        TIME_REF_COUNT = 0x00090004,
        /// CPU management version.
        CPU_MANAGEMENT_VERSION = 0x00090007,
        /// Synthetic EOI MSR.
        SYNTHETIC_EOI = 0x00090010,
        /// Synthetic ICR MSR.
        SYNTHETIC_ICR = 0x00090011,
        /// Synthetic TPR MSR.
        SYNTHETIC_TPR = 0x00090012,
        /// VP assist page.
        VP_ASSIST_PAGE = 0x00090013,
        /// Root scheduler signals.
        VP_ROOT_SIGNAL_COUNT = 0x00090014,
        /// Reference TSC page.
        REFERENCE_TSC = 0x00090017,
        /// VP configuration.
        VP_CONFIG = 0x00090018,
        /// Sequence of the reference TSC page.
        REFERENCE_TSC_SEQUENCE = 0x0009001A,
        /// Synthetic interrupt source 0.
        SINT0 = 0x000A0000,
        /// Synthetic interrupt source 1.
        SINT1 = 0x000A0001,
        /// Synthetic interrupt source 2.
        SINT2 = 0x000A0002,
        /// Synthetic interrupt source 3.
        SINT3 = 0x000A0003,
        /// Synthetic interrupt source 4.
        SINT4 = 0x000A0004,
        /// Synthetic interrupt source 5.
        SINT5 = 0x000A0005,
        /// Synthetic interrupt source 6.
        SINT6 = 0x000A0006,
        /// Synthetic interrupt source 7.
        SINT7 = 0x000A0007,
        /// Synthetic interrupt source 8.
        SINT8 = 0x000A0008,
        /// Synthetic interrupt source 9.
        SINT9 = 0x000A0009,
        /// Synthetic interrupt source 10.
        SINT10 = 0x000A000A,
        /// Synthetic interrupt source 11.
        SINT11 = 0x000A000B,
        /// Synthetic interrupt source 12.
        SINT12 = 0x000A000C,
        /// Synthetic interrupt source 13.
        SINT13 = 0x000A000D,
        /// Synthetic interrupt source 14.
        SINT14 = 0x000A000E,
        /// Synthetic interrupt source 15.
        SINT15 = 0x000A000F,
        /// SCONTROL.
        SCONTROL = 0x000A0010,
        /// SVERSION.
        SVERSION = 0x000A0011,
        /// SIEFP.
        SIEFP = 0x000A0012,
        /// SIMP.
        SIMP = 0x000A0013,
        /// EOM.
        EOM = 0x000A0014,
        /// SIRBP.
        SIRBP = 0x000A0015,
        /// Configuration of synthetic timer 0.
        STIMER0_CONFIG = 0x000B0000,
        /// Count of synthetic timer 0.
        STIMER0_COUNT = 0x000B0001,
        /// Configuration of synthetic timer 1.
        STIMER1_CONFIG = 0x000B0002,
        /// Count of synthetic timer 1.
        STIMER1_COUNT = 0x000B0003,
        /// Configuration of synthetic timer 2.
        STIMER2_CONFIG = 0x000B0004,
        /// Count of synthetic timer 2.
        STIMER2_COUNT = 0x000B0005,
        /// Configuration of synthetic timer 3.
        STIMER3_CONFIG = 0x000B0006,
        /// Count of synthetic timer 3.
        STIMER3_COUNT = 0x000B0007,
        /// Partita's extension, outside the ranges of the TLFS. Writing it answers the
        /// instruction that an intercept suspended: the value read for IN, RDMSR and
        /// loads; EAX, EBX, ECX, EDX from the low bits up for CPUID; RAX for a
        /// hypercall; anything for stores. When `INTERCEPT_SUSPEND` is then cleared,
        /// the instruction retires with it. Cleared without an answer, the VP goes on
        /// at its RIP.
        INTERCEPT_COMPLETION = 0xF0000000,
    }
}

impl HvRegisterName {
    /// General register 0 (RAX) to 15 (R15) in the processor's numbering.
    pub const fn gpr(index: u32) -> Self {
        Self(Self::RAX.0 + (index & 15))
    }

    /// XMM register 0 to 15.
    pub const fn xmm(index: u32) -> Self {
        Self(Self::XMM0.0 + (index & 15))
    }

    /// Synthetic interrupt source 0 to 15.
    pub const fn sint(index: u32) -> Self {
        Self(Self::SINT0.0 + (index & 15))
    }
}
