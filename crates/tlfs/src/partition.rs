//! Partitions: creation, states, properties (TLFS chapters 4 and 5).

use crate::HvPartitionId;

bitflags::bitflags! {
    /// HV_PARTITION_CREATION_FLAGS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HvPartitionCreationFlags: u64 {
        /// Sibling VPs are SMT threads.
        const SMT_ENABLED = 1 << 0;
        /// The guest may nest.
        const NESTED_CAPABLE = 1 << 1;
        /// GPA space may use 1 GiB pages.
        const GPA_SUPER_PAGES = 1 << 4;
        /// Exo partition.
        const EXO_PARTITION = 1 << 8;
        /// The hypervisor virtualizes the local APIC.
        const LAPIC_ENABLED = 1 << 13;
        /// Intercept message pages are used.
        const INTERCEPT_MESSAGE_PAGE = 1 << 19;
        /// Hypercall doorbell page.
        const HYPERCALL_DOORBELL_PAGE = 1 << 20;
        /// The APIC has x2APIC mode.
        const X2APIC_CAPABLE = 1 << 22;
    }
}

open_enum! {
    /// HV_PARTITION_PROPERTY_CODE.
    pub struct HvPartitionPropertyCode(u32) {
        /// Privilege mask; early.
        PRIVILEGE_FLAGS = 0x0001_0000,
        /// Synthetic processor features; early.
        SYNTHETIC_PROC_FEATURES = 0x0001_0001,
        /// 1 suspends all VPs.
        SUSPEND = 0x0002_0000,
        /// CPU reserve, 0 to 0x10000.
        CPU_RESERVE = 0x0002_0001,
        /// CPU cap, 0 to 0x10000.
        CPU_CAP = 0x0002_0002,
        /// CPU weight, 1 to 10000.
        CPU_WEIGHT = 0x0002_0003,
        /// CPU group.
        CPU_GROUP_ID = 0x0002_0004,
        /// 1 stops reference time.
        TIME_FREEZE = 0x0003_0003,
        /// Reference time; may be set while frozen.
        REFERENCE_TIME = 0x0003_0005,
        /// Pages of virtual TLB.
        VIRTUAL_TLB_PAGE_COUNT = 0x0005_0000,
        /// VSM configuration.
        VSM_CONFIG = 0x0005_0001,
        /// Zero memory on reset.
        ZERO_MEMORY_ON_RESET = 0x0005_0002,
        /// VPs per socket.
        PROCESSORS_PER_SOCKET = 0x0005_0003,
        /// Dirty page tracking.
        GPA_PAGE_ACCESS_TRACKING = 0x0005_0005,
        /// Physical address bits that are implemented.
        IMPLEMENTED_PHYSICAL_ADDRESS_BITS = 0x0005_0010,
        /// 0: unknown MSRs fault; 1: reads give 0, writes are ignored.
        UNIMPLEMENTED_MSR_ACTION = 0x0005_0017,
        /// Processor vendor.
        PROCESSOR_VENDOR = 0x0006_0000,
        /// XSAVE features.
        PROCESSOR_XSAVE_FEATURES = 0x0006_0002,
        /// CLFLUSH line size.
        PROCESSOR_CL_FLUSH_SIZE = 0x0006_0003,
        /// Changes to CPUID 0x40000004 EAX.
        ENLIGHTENMENT_MODIFICATIONS = 0x0006_0004,
        /// Compatibility version.
        COMPATIBILITY_VERSION = 0x0006_0005,
        /// Guest-physical address width; early.
        PHYSICAL_ADDRESS_WIDTH = 0x0006_0006,
        /// XSAVE states.
        XSAVE_STATES = 0x0006_0007,
        /// Largest XSAVE area.
        MAX_XSAVE_DATA_SIZE = 0x0006_0008,
        /// TSC frequency, Hz.
        PROCESSOR_CLOCK_FREQUENCY = 0x0006_0009,
        /// Processor features, bank 0.
        PROCESSOR_FEATURES0 = 0x0006_000A,
        /// Processor features, bank 1.
        PROCESSOR_FEATURES1 = 0x0006_000B,
        /// What the guest wrote into HV_X64_MSR_GUEST_OS_ID.
        GUEST_OS_ID = 0x0007_0000,
        /// Virtualization features for nesting.
        PROCESSOR_VIRTUALIZATION_FEATURES = 0x0008_0000,
        /// Capabilities of the parent.
        VMM_CAPABILITIES = 0x0009_0007,
    }
}

wire! {
    /// HV_PROXIMITY_DOMAIN_INFO.
    pub struct HvProximityDomainInfo {
        /// NUMA domain.
        pub domain_id: u32,
        /// Bit 0 preferred, bit 31 valid.
        pub flags: u32,
    }
}

wire! {
    /// HV_INPUT_CREATE_PARTITION (0x40).
    pub struct HvInputCreatePartition {
        /// [`HvPartitionCreationFlags`].
        pub flags: u64,
        /// NUMA hint.
        pub proximity_domain_info: HvProximityDomainInfo,
        /// Compatibility version.
        pub compatibility_version: u32,
        /// Padding.
        pub padding: u32,
        /// Processor features to be hidden.
        pub disabled_processor_features: [u64; 2],
        /// XSAVE features to be hidden.
        pub disabled_xsave_features: u64,
        /// Isolation; 0 for none.
        pub isolation_properties: u64,
    }
}

wire! {
    /// A partition id and no more: output of 0x40 and 0x46, input of 0x41 to
    /// 0x43.
    pub struct HvPartitionIdParameter {
        /// The partition.
        pub partition_id: HvPartitionId,
    }
}

wire! {
    /// HV_INPUT_GET_PARTITION_PROPERTY (0x44).
    pub struct HvInputGetPartitionProperty {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The property.
        pub property_code: HvPartitionPropertyCode,
        /// Padding.
        pub padding: u32,
    }
}

wire! {
    /// HV_OUTPUT_GET_PARTITION_PROPERTY.
    pub struct HvOutputGetPartitionProperty {
        /// The value.
        pub property_value: u64,
    }
}

wire! {
    /// HV_INPUT_SET_PARTITION_PROPERTY (0x45).
    pub struct HvInputSetPartitionProperty {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The property.
        pub property_code: HvPartitionPropertyCode,
        /// Padding.
        pub padding: u32,
        /// The value.
        pub property_value: u64,
    }
}

wire! {
    /// HV_INPUT_GET_NEXT_CHILD_PARTITION (0x47).
    pub struct HvInputGetNextChildPartition {
        /// The parent.
        pub parent_id: HvPartitionId,
        /// The last child returned, 0 at first.
        pub previous_child_id: HvPartitionId,
    }
}
