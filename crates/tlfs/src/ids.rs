//! Identifiers of partitions, virtual processors, ports and connections.

/// Partition id (TLFS 4.1).
pub type HvPartitionId = u64;
/// Virtual processor index within a partition (TLFS 7.1).
pub type HvVpIndex = u32;
/// Port id: 24 significant bits (TLFS 11.3).
pub type HvPortId = u32;
/// Connection id: 24 significant bits (TLFS 11.4).
pub type HvConnectionId = u32;

/// No partition.
pub const HV_PARTITION_ID_INVALID: HvPartitionId = 0;
/// The calling partition.
pub const HV_PARTITION_ID_SELF: HvPartitionId = u64::MAX;
/// The calling virtual processor.
pub const HV_VP_INDEX_SELF: HvVpIndex = 0xFFFF_FFFE;
/// Any virtual processor of the partition, as a port's target.
pub const HV_ANY_VP: HvVpIndex = 0xFFFF_FFFF;

/// Significant bits of a port or connection id.
pub const HV_PORT_ID_MASK: u32 = 0x00FF_FFFF;

/// Bytes in a page.
pub const HV_PAGE_SIZE: usize = 4096;
/// log2 of [`HV_PAGE_SIZE`].
pub const HV_PAGE_SHIFT: u32 = 12;
/// 4 KiB pages in a 2 MiB page.
pub const HV_LARGE_PAGE_PAGES: u64 = 512;
