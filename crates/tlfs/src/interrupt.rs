//! Virtual interrupts and synthetic IPIs (TLFS chapter 10).

use crate::HvPartitionId;

open_enum! {
    /// HV_INTERRUPT_TYPE.
    pub struct HvInterruptType(u32) {
        /// Fixed.
        FIXED = 0x0,
        /// Lowest priority.
        LOWEST_PRIORITY = 0x1,
        /// SMI.
        SMI = 0x2,
        /// Remote read.
        REMOTE_READ = 0x3,
        /// NMI.
        NMI = 0x4,
        /// INIT.
        INIT = 0x5,
        /// Start-up IPI.
        SIPI = 0x6,
        /// External interrupt: the vector of a PIC.
        EXT_INT = 0x7,
        /// The LINT0 pin.
        LOCAL_INT0 = 0x8,
        /// The LINT1 pin.
        LOCAL_INT1 = 0x9,
    }
}

/// HV_INTERRUPT_CONTROL: type in bits 0 to 31, bit 32 level triggered, bit 33
/// logical destination mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvInterruptControl(pub u64);

impl HvInterruptControl {
    /// An interrupt's control word.
    pub const fn new(kind: HvInterruptType, level: bool, logical: bool) -> Self {
        Self(kind.0 as u64 | (level as u64) << 32 | (logical as u64) << 33)
    }

    /// The type.
    pub const fn kind(self) -> HvInterruptType {
        HvInterruptType(self.0 as u32)
    }

    /// Level triggered.
    pub const fn level(self) -> bool {
        self.0 & 1 << 32 != 0
    }

    /// Logical destination.
    pub const fn logical(self) -> bool {
        self.0 & 1 << 33 != 0
    }

    /// Whether reserved bits are set.
    pub const fn has_reserved(self) -> bool {
        self.0 >> 34 != 0
    }
}

wire! {
    /// HV_INPUT_ASSERT_VIRTUAL_INTERRUPT (0x94, and 0x55 of TLFS 2.0a, where
    /// the bytes behind the vector are padding).
    pub struct HvInputAssertVirtualInterrupt {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// [`HvInterruptControl`].
        pub control: u64,
        /// APIC id or logical destination.
        pub destination_address: u64,
        /// The vector.
        pub vector: u32,
        /// VTL: 0.
        pub target_vtl: u8,
        /// Must be zero.
        pub reserved0: u8,
        /// Must be zero.
        pub reserved1: u16,
    }
}

wire! {
    /// HV_INPUT_CLEAR_VIRTUAL_INTERRUPT (0x56).
    pub struct HvInputClearVirtualInterrupt {
        /// The partition.
        pub partition_id: HvPartitionId,
    }
}

wire! {
    /// HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI (0x0B).
    pub struct HvInputSendSyntheticClusterIpi {
        /// The vector, 0x10 to 0xFF.
        pub vector: u32,
        /// VTL selection: 0.
        pub target_vtl: u32,
        /// VPs 0 to 63.
        pub processor_mask: u64,
    }
}

wire! {
    /// HV_INPUT_SEND_SYNTHETIC_CLUSTER_IPI_EX (0x15), fixed part.
    pub struct HvInputSendSyntheticClusterIpiEx {
        /// The vector, 0x10 to 0xFF.
        pub vector: u32,
        /// VTL selection: 0.
        pub target_vtl: u32,
        /// HV_GENERIC_SET_FORMAT.
        pub format: u64,
        /// Banks that follow.
        pub valid_bank_mask: u64,
    }
}
