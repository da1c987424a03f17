//! The structures of a VHDX file as they lie on disk (MS-VHDX 2). Integers are little-endian.

use uuid::{Uuid, uuid};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
/// Largest disk that the format allows: 64 TiB.
pub(super) const MAX_SIZE: u64 = 64 << 40;
/// No honest file is larger: the largest disk, its tables, and room to spare.
pub(super) const MAX_FILE: u64 = 128 << 40;
/// Unit in which the log records changes.
pub(super) const LOG_SECTOR: u64 = 4096;

pub(super) const FILE_ID_SIGNATURE: [u8; 8] = *b"vhdxfile";
pub(super) const HEADER_OFFSETS: [u64; 2] = [64 * KIB, 128 * KIB];
pub(super) const REGION_TABLE_OFFSETS: [u64; 2] = [192 * KIB, 256 * KIB];
pub(super) const REGION_TABLE_LEN: usize = 64 << 10;
pub(super) const METADATA_TABLE_LEN: u64 = 64 * KIB;
/// Most entries of a region or metadata table.
pub(super) const MAX_TABLE_ENTRIES: u32 = 2047;

pub(super) const REGION_BAT: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
pub(super) const REGION_METADATA: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");

pub(super) const ITEM_FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
pub(super) const ITEM_VIRTUAL_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
pub(super) const ITEM_DISK_ID: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
pub(super) const ITEM_LOGICAL_SECTOR: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
pub(super) const ITEM_PHYSICAL_SECTOR: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
pub(super) const ITEM_PARENT_LOCATOR: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
pub(super) const LOCATOR_TYPE_VHDX: Uuid = uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");

/// GUID as stored: the first three fields little-endian.
pub(super) type RawGuid = [u8; 16];

pub(super) fn guid(raw: RawGuid) -> Uuid {
    Uuid::from_bytes_le(raw)
}

macro_rules! on_disk {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub(super) struct $name { $(pub(super) $field: $type),* }
    };
}

on_disk! {
    /// MS-VHDX 2.2.2: written in turns at 64 and 128 KiB.
    Header {
        signature: [u8; 4],
        checksum: U32,
        sequence: U64,
        file_write: RawGuid,
        data_write: RawGuid,
        log: RawGuid,
        log_version: U16,
        version: U16,
        log_length: U32,
        log_offset: U64,
        reserved: [u8; 4016],
    }
}

on_disk! {
    /// MS-VHDX 2.2.3.
    RegionTableHeader { signature: [u8; 4], checksum: U32, count: U32, reserved: U32 }
}

on_disk! {
    /// MS-VHDX 2.2.3.
    RegionEntry { guid: RawGuid, offset: U64, length: U32, required: U32 }
}

on_disk! {
    /// MS-VHDX 2.6.1.
    MetadataHeader { signature: [u8; 8], reserved: U16, count: U16, reserved2: [u8; 20] }
}

on_disk! {
    /// MS-VHDX 2.6.1.2. Flags: bit 0 user item, bit 1 of the virtual disk, bit 2 required.
    MetadataEntry { item: RawGuid, offset: U32, length: U32, flags: U32, reserved: U32 }
}

pub(super) const ITEM_IS_USER: u32 = 1;
pub(super) const ITEM_IS_VIRTUAL_DISK: u32 = 2;
pub(super) const ITEM_IS_REQUIRED: u32 = 4;

on_disk! {
    /// MS-VHDX 2.6.2.1. Flags: bit 0 leave blocks allocated (fixed), bit 1 has a parent.
    FileParameters { block_size: U32, flags: U32 }
}

pub(super) const LEAVE_BLOCKS_ALLOCATED: u32 = 1;
pub(super) const HAS_PARENT: u32 = 2;

on_disk! {
    /// MS-VHDX 2.6.2.6.
    LocatorHeader { locator_type: RawGuid, reserved: U16, count: U16 }
}

on_disk! {
    /// MS-VHDX 2.6.2.6.2; offsets count from the locator header.
    LocatorEntry { key_offset: U32, value_offset: U32, key_length: U16, value_length: U16 }
}

on_disk! {
    /// MS-VHDX 2.3.1.1.
    LogHeader {
        signature: [u8; 4],
        checksum: U32,
        entry_length: U32,
        tail: U32,
        sequence: U64,
        descriptor_count: U32,
        reserved: U32,
        log_guid: RawGuid,
        flushed_file_offset: U64,
        last_file_offset: U64,
    }
}

on_disk! {
    /// MS-VHDX 2.3.1.2 (`zero`) and 2.3.1.3 (`desc`). For `zero`, `leading` is the length; for
    /// `desc`, `trailing` and `leading` are the ends of the sector that the data sector has no
    /// room for.
    LogDescriptor {
        signature: [u8; 4],
        trailing: [u8; 4],
        leading: [u8; 8],
        file_offset: U64,
        sequence: U64,
    }
}

on_disk! {
    /// MS-VHDX 2.3.1.4.
    LogDataSector { signature: [u8; 4], sequence_high: U32, data: [u8; 4084], sequence_low: U32 }
}

/// CRC-32C of a structure whose own checksum field, four bytes at offset 4, counts as zero.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let Some((head, rest)) = bytes.split_at_checked(8) else {
        return crc32c::crc32c(bytes);
    };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..4]), &[0; 4]);
    crc32c::crc32c_append(crc, rest)
}

/// The numbers that follow from block and sector size (MS-VHDX 2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes in a payload block: a power of two, 1 to 256 MiB.
    pub(super) block_size: u64,
    /// Bytes in a logical sector: 512 or 4096.
    pub(super) sector_size: u32,
    /// Whether unwritten space shows a parent.
    pub(super) has_parent: bool,
}

impl Geometry {
    /// Payload blocks per sector bitmap block.
    pub(super) fn chunk_ratio(&self) -> u64 {
        (u64::from(self.sector_size) << 23) / self.block_size
    }

    /// Payload blocks of a disk of `size` bytes.
    pub(super) fn blocks(&self, size: u64) -> u64 {
        size.div_ceil(self.block_size)
    }

    /// BAT index of a payload block.
    pub(super) fn payload_index(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio()
    }

    /// BAT index of the sector bitmap block of a chunk.
    pub(super) fn bitmap_index(&self, chunk: u64) -> u64 {
        chunk * (self.chunk_ratio() + 1) + self.chunk_ratio()
    }

    /// BAT entries of a disk of `size` bytes.
    pub(super) fn bat_entries(&self, size: u64) -> u64 {
        let blocks = self.blocks(size);
        if self.has_parent {
            blocks.div_ceil(self.chunk_ratio()) * (self.chunk_ratio() + 1)
        } else {
            blocks + blocks.saturating_sub(1) / self.chunk_ratio()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_specification() {
        assert_eq!(size_of::<Header>(), 4096);
        assert_eq!(size_of::<RegionTableHeader>(), 16);
        assert_eq!(size_of::<RegionEntry>(), 32);
        assert_eq!(size_of::<MetadataHeader>(), 32);
        assert_eq!(size_of::<MetadataEntry>(), 32);
        assert_eq!(size_of::<LocatorHeader>(), 20);
        assert_eq!(size_of::<LocatorEntry>(), 12);
        assert_eq!(size_of::<LogHeader>(), 64);
        assert_eq!(size_of::<LogDescriptor>(), 32);
        assert_eq!(size_of::<LogDataSector>(), 4096);
    }

    #[test]
    fn bat_indexes_interleave_bitmap_blocks() {
        let geometry = Geometry {
            block_size: 32 * MIB,
            sector_size: 512,
            has_parent: false,
        };
        assert_eq!(geometry.chunk_ratio(), 128);
        assert_eq!(geometry.payload_index(127), 127);
        assert_eq!(geometry.payload_index(128), 129);
        assert_eq!(geometry.bitmap_index(0), 128);
        assert_eq!(geometry.bitmap_index(1), 257);
        assert_eq!(geometry.bat_entries(128 * 32 * MIB), 128);
        assert_eq!(geometry.bat_entries(129 * 32 * MIB), 130);
        let child = Geometry {
            has_parent: true,
            ..geometry
        };
        assert_eq!(child.bat_entries(1), 129);
        let big = Geometry {
            block_size: MIB,
            sector_size: 4096,
            has_parent: false,
        };
        assert_eq!(big.chunk_ratio(), 32768);
    }

    #[test]
    fn the_checksum_ignores_its_own_field() {
        let mut bytes = [7u8; 64];
        let before = checksum(&bytes);
        bytes[4..8].fill(99);
        assert_eq!(checksum(&bytes), before);
        bytes[8] = 0;
        assert_ne!(checksum(&bytes), before);
    }
}
