//! Memory: pools, guest-physical address spaces, access by the parent (TLFS
//! chapters 6 and 8).

use crate::{HvPartitionId, HvProximityDomainInfo};

bitflags::bitflags! {
    /// HV_MAP_GPA_FLAGS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct HvMapGpaFlags: u32 {
        /// Readable.
        const READABLE = 0x1;
        /// Writable.
        const WRITABLE = 0x2;
        /// Executable by supervisors.
        const KERNEL_EXECUTABLE = 0x4;
        /// Executable by users.
        const USER_EXECUTABLE = 0x8;
        /// Rights may be adjusted later.
        const ADJUSTABLE = 0x8000;
        /// No access at all; the page counts as mapped.
        const NO_ACCESS = 0x1_0000;
        /// No overlay on this page.
        const NO_OVERLAY = 0x10_0000;
        /// Not cached.
        const NOT_CACHED = 0x20_0000;
        /// 2 MiB pages.
        const LARGE_PAGE = 0x8000_0000;
    }
}

impl HvMapGpaFlags {
    /// All rights.
    pub const ALL_RIGHTS: Self = Self::from_bits_truncate(0xF);
    /// Read and execute.
    pub const READ_EXECUTE: Self = Self::from_bits_truncate(0xD);
}

/// HV_UNMAP_GPA_LARGE_PAGE: unmap 2 MiB pages.
pub const HV_UNMAP_GPA_LARGE_PAGE: u32 = 0x2;

wire! {
    /// Fixed part of HV_INPUT_DEPOSIT_MEMORY (0x48); page numbers follow.
    pub struct HvInputDepositMemory {
        /// Whose pool.
        pub partition_id: HvPartitionId,
    }
}

wire! {
    /// Input of HvCallWithdrawMemory (0x49) and HvCallGetMemoryBalance (0x4A).
    pub struct HvInputMemoryPool {
        /// Whose pool.
        pub partition_id: HvPartitionId,
        /// NUMA hint.
        pub proximity_domain_info: HvProximityDomainInfo,
    }
}

wire! {
    /// HV_OUTPUT_GET_MEMORY_BALANCE.
    pub struct HvOutputGetMemoryBalance {
        /// Free pages.
        pub pages_available: u64,
        /// Pages in use.
        pub pages_in_use: u64,
    }
}

wire! {
    /// Fixed part of HV_INPUT_MAP_GPA_PAGES (0x4B); source pages follow.
    pub struct HvInputMapGpaPages {
        /// The partition.
        pub target_partition_id: HvPartitionId,
        /// First page in its space.
        pub target_gpa_base: u64,
        /// [`HvMapGpaFlags`].
        pub map_flags: u32,
        /// Padding.
        pub padding: u32,
    }
}

wire! {
    /// HV_INPUT_UNMAP_GPA_PAGES (0x4C).
    pub struct HvInputUnmapGpaPages {
        /// The partition.
        pub target_partition_id: HvPartitionId,
        /// First page in its space.
        pub target_gpa_base: u64,
        /// [`HV_UNMAP_GPA_LARGE_PAGE`].
        pub unmap_flags: u32,
        /// Padding.
        pub padding: u32,
    }
}

wire! {
    /// Fixed part of HV_INPUT_MAP_SPARSE_GPA_PAGES (0x6E).
    pub struct HvInputMapSparseGpaPages {
        /// The partition.
        pub target_partition_id: HvPartitionId,
        /// [`HvMapGpaFlags`].
        pub map_flags: u32,
        /// Padding.
        pub padding: u32,
    }
}

wire! {
    /// HV_GPA_MAPPING: an element of HvCallMapSparseGpaPages.
    pub struct HvGpaMapping {
        /// Page in the target's space.
        pub target_gpa_page: u64,
        /// Page in the caller's space.
        pub source_gpa_page: u64,
    }
}

/// Most bytes that HvCallReadGpa and HvCallWriteGpa move.
pub const HV_READ_WRITE_GPA_MAX_SIZE: usize = 16;

open_enum! {
    /// HV_ACCESS_GPA_RESULT_CODE.
    pub struct HvAccessGpaResultCode(u32) {
        /// Done.
        SUCCESS = 0,
        /// Not mapped.
        UNMAPPED = 1,
        /// Not readable.
        READ_INTERCEPT = 2,
        /// Not writable.
        WRITE_INTERCEPT = 3,
        /// An overlay that may not be accessed.
        ILLEGAL_OVERLAY_ACCESS = 4,
    }
}

wire! {
    /// HV_INPUT_READ_GPA (0x53).
    pub struct HvInputReadGpa {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The VP whose view counts.
        pub vp_index: u32,
        /// 1 to 16.
        pub byte_count: u32,
        /// First byte; must not cross a page.
        pub base_gpa: u64,
        /// HV_ACCESS_GPA_CONTROL_FLAGS.
        pub control_flags: u64,
    }
}

wire! {
    /// HV_OUTPUT_READ_GPA.
    pub struct HvOutputReadGpa {
        /// What happened.
        pub result_code: HvAccessGpaResultCode,
        /// Reserved.
        pub reserved: u32,
        /// The bytes.
        pub data: [u8; HV_READ_WRITE_GPA_MAX_SIZE],
    }
}

wire! {
    /// HV_INPUT_WRITE_GPA (0x54).
    pub struct HvInputWriteGpa {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The VP whose view counts.
        pub vp_index: u32,
        /// 1 to 16.
        pub byte_count: u32,
        /// First byte; must not cross a page.
        pub base_gpa: u64,
        /// HV_ACCESS_GPA_CONTROL_FLAGS.
        pub control_flags: u64,
        /// The bytes.
        pub data: [u8; HV_READ_WRITE_GPA_MAX_SIZE],
    }
}

wire! {
    /// HV_OUTPUT_WRITE_GPA.
    pub struct HvOutputWriteGpa {
        /// What happened.
        pub result_code: HvAccessGpaResultCode,
        /// Reserved.
        pub reserved: u32,
    }
}

bitflags::bitflags! {
    /// HV_TRANSLATE_GVA_CONTROL_FLAGS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HvTranslateGvaFlags: u64 {
        /// Check read rights.
        const VALIDATE_READ = 0x1;
        /// Check write rights.
        const VALIDATE_WRITE = 0x2;
        /// Check execute rights.
        const VALIDATE_EXECUTE = 0x4;
        /// Ignore the privilege level.
        const PRIVILEGE_EXEMPT = 0x8;
        /// Set accessed and dirty bits.
        const SET_PAGE_TABLE_BITS = 0x10;
        /// Hold off TLB flushes.
        const TLB_FLUSH_INHIBIT = 0x20;
        /// Check as a supervisor.
        const SUPERVISOR_ACCESS = 0x40;
        /// Check as a user.
        const USER_ACCESS = 0x80;
    }
}

wire! {
    /// HV_INPUT_TRANSLATE_VIRTUAL_ADDRESS (0x52, 0xAC).
    pub struct HvInputTranslateVirtualAddress {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The VP.
        pub vp_index: u32,
        /// Padding.
        pub padding: u32,
        /// [`HvTranslateGvaFlags`]; bits 56 to 63 select a VTL.
        pub control_flags: u64,
        /// Guest-virtual page number.
        pub gva_page: u64,
    }
}

open_enum! {
    /// HV_TRANSLATE_GVA_RESULT_CODE.
    pub struct HvTranslateGvaResultCode(u32) {
        /// Done.
        SUCCESS = 0,
        /// No present page-table entry.
        PAGE_NOT_PRESENT = 1,
        /// Rights forbid the access.
        PRIVILEGE_VIOLATION = 2,
        /// Reserved bits are set.
        INVALID_PAGE_TABLE_FLAGS = 3,
        /// The GPA is not mapped.
        GPA_UNMAPPED = 4,
        /// The GPA is not readable.
        GPA_NO_READ_ACCESS = 5,
        /// The GPA is not writable.
        GPA_NO_WRITE_ACCESS = 6,
    }
}

wire! {
    /// HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS.
    pub struct HvOutputTranslateVirtualAddress {
        /// What happened.
        pub result_code: HvTranslateGvaResultCode,
        /// Bits 0 to 7 cache type (6 write-back), bit 8 overlay page.
        pub attributes: u32,
        /// Guest-physical page number.
        pub gpa_page: u64,
    }
}

wire! {
    /// HV_OUTPUT_TRANSLATE_VIRTUAL_ADDRESS_EX.
    pub struct HvOutputTranslateVirtualAddressEx {
        /// What happened.
        pub result_code: HvTranslateGvaResultCode,
        /// Bits 0 to 7 cache type (6 write-back), bit 8 overlay page.
        pub attributes: u32,
        /// Reserved.
        pub reserved: u64,
        /// HV_X64_PENDING_EVENT of the fault that the access would raise.
        pub event_info: [u64; 4],
        /// Guest-physical page number.
        pub gpa_page: u64,
        /// Reserved.
        pub reserved1: u64,
    }
}
