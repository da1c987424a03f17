//! Virtual TLB flushes (TLFS 9.4).

bitflags::bitflags! {
    /// HV_FLUSH_FLAGS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HvFlushFlags: u64 {
        /// All VPs of the partition.
        const ALL_PROCESSORS = 1 << 0;
        /// All address spaces.
        const ALL_VIRTUAL_ADDRESS_SPACES = 1 << 1;
        /// Global translations may stay.
        const NON_GLOBAL_MAPPINGS_ONLY = 1 << 2;
        /// Ranges use the extended format.
        const USE_EXTENDED_RANGE_FORMAT = 1 << 3;
    }
}

wire! {
    /// HV_INPUT_FLUSH_VIRTUAL_ADDRESS_SPACE (0x02) and the fixed part of
    /// HV_INPUT_FLUSH_VIRTUAL_ADDRESS_LIST (0x03).
    pub struct HvInputFlushVirtualAddressSpace {
        /// CR3.
        pub address_space: u64,
        /// [`HvFlushFlags`].
        pub flags: u64,
        /// VPs 0 to 63.
        pub processor_mask: u64,
    }
}

wire! {
    /// Fixed part of the Ex flushes (0x13, 0x14).
    pub struct HvInputFlushVirtualAddressSpaceEx {
        /// CR3.
        pub address_space: u64,
        /// [`HvFlushFlags`].
        pub flags: u64,
        /// HV_GENERIC_SET_FORMAT.
        pub format: u64,
        /// Banks that follow.
        pub valid_bank_mask: u64,
    }
}

/// HV_GVA_RANGE: an element of a flush list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvGvaRange(pub u64);

impl HvGvaRange {
    /// The range of the plain format: first address, pages.
    pub const fn simple(self) -> (u64, u64) {
        (self.0 & !0xFFF, (self.0 & 0xFFF) + 1)
    }

    /// The range of the extended format: first address, 4 KiB pages.
    pub const fn extended(self) -> (u64, u64) {
        let count = (self.0 & 0x7FF) + 1;
        if self.0 & 1 << 11 == 0 {
            (self.0 & !0xFFF, count)
        } else if self.0 & 1 << 12 == 0 {
            (self.0 & !0x1F_FFFF, count << 9)
        } else {
            (self.0 & !0x3FFF_FFFF, count << 18)
        }
    }
}
