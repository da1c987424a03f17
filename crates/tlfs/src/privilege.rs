//! Partition privileges (TLFS 4.2.2).

bitflags::bitflags! {
    /// HV_PARTITION_PRIVILEGE_MASK. The low half is CPUID 0x40000003 EAX, the
    /// high half EBX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HvPartitionPrivilegeMask: u64 {
        /// HV_X64_MSR_VP_RUNTIME.
        const ACCESS_VP_RUNTIME_REG = 1 << 0;
        /// HV_X64_MSR_TIME_REF_COUNT.
        const ACCESS_PARTITION_REFERENCE_COUNTER = 1 << 1;
        /// SynIC MSRs.
        const ACCESS_SYNIC_REGS = 1 << 2;
        /// Synthetic timer MSRs.
        const ACCESS_SYNTHETIC_TIMER_REGS = 1 << 3;
        /// EOI, ICR, TPR and VP assist page MSRs.
        const ACCESS_INTR_CTRL_REGS = 1 << 4;
        /// Guest OS id and hypercall MSRs.
        const ACCESS_HYPERCALL_MSRS = 1 << 5;
        /// HV_X64_MSR_VP_INDEX.
        const ACCESS_VP_INDEX = 1 << 6;
        /// HV_X64_MSR_RESET.
        const ACCESS_RESET_REG = 1 << 7;
        /// Statistics MSRs.
        const ACCESS_STATS_REG = 1 << 8;
        /// HV_X64_MSR_REFERENCE_TSC.
        const ACCESS_PARTITION_REFERENCE_TSC = 1 << 9;
        /// HV_X64_MSR_GUEST_IDLE.
        const ACCESS_GUEST_IDLE_REG = 1 << 10;
        /// TSC and APIC frequency MSRs.
        const ACCESS_FREQUENCY_REGS = 1 << 11;
        /// Debug MSRs.
        const ACCESS_DEBUG_REGS = 1 << 12;
        /// Reenlightenment MSRs.
        const ACCESS_REENLIGHTENMENT_CONTROLS = 1 << 13;
        /// Root scheduler MSRs.
        const ACCESS_ROOT_SCHEDULER_REG = 1 << 14;
        /// HV_X64_MSR_TSC_INVARIANT_CONTROL.
        const ACCESS_TSC_INVARIANT_CONTROLS = 1 << 15;
        /// Create partitions.
        const CREATE_PARTITIONS = 1 << 32;
        /// HvCallGetPartitionId.
        const ACCESS_PARTITION_ID = 1 << 33;
        /// Deposit, withdraw and balance.
        const ACCESS_MEMORY_POOL = 1 << 34;
        /// Adjust message buffers.
        const ADJUST_MESSAGE_BUFFERS = 1 << 35;
        /// HvCallPostMessage.
        const POST_MESSAGES = 1 << 36;
        /// HvCallSignalEvent.
        const SIGNAL_EVENTS = 1 << 37;
        /// HvCallCreatePort.
        const CREATE_PORT = 1 << 38;
        /// HvCallConnectPort.
        const CONNECT_PORT = 1 << 39;
        /// Statistics pages.
        const ACCESS_STATS = 1 << 40;
        /// Debugging.
        const DEBUGGING = 1 << 43;
        /// Processor management: the mark of the root partition.
        const CPU_MANAGEMENT = 1 << 44;
        /// Profiler configuration.
        const CONFIGURE_PROFILER = 1 << 45;
        /// VP exit tracing.
        const VP_EXIT_TRACING = 1 << 46;
        /// Extended GVA ranges in flush lists.
        const ENABLE_EXTENDED_GVA_RANGES = 1 << 47;
        /// Virtual secure mode.
        const ACCESS_VSM = 1 << 48;
        /// HvCallGetVpRegisters and HvCallSetVpRegisters on itself.
        const ACCESS_VP_REGISTERS = 1 << 49;
        /// XMM fast hypercall output.
        const FAST_HYPERCALL_OUTPUT = 1 << 51;
        /// Extended hypercalls, 0x8001 and on.
        const ENABLE_EXTENDED_HYPERCALLS = 1 << 52;
        /// HvCallStartVirtualProcessor and HvCallGetVpIndexFromApicId.
        const START_VIRTUAL_PROCESSOR = 1 << 53;
        /// The partition is isolated from its host.
        const ISOLATION = 1 << 54;
    }
}

impl HvPartitionPrivilegeMask {
    /// What an enlightened child needs and what every stock guest can use:
    /// CPUID 0x40000003 EAX 0x8EFF, EBX 0x30.
    pub const CHILD_DEFAULT: Self = Self::from_bits_truncate(0x0000_0030_0000_8EFF);
}
