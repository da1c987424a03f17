//! The structures of a VHD file (Microsoft, "Virtual Hard Disk Image Format Specification",
//! version 1.0). Integers are big-endian.

use std::time::{Duration, SystemTime};

use uuid::Uuid;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Unit of every offset and size of the format.
pub(super) const SECTOR: u64 = 512;
pub(super) const FOOTER_LEN: u64 = 512;
pub(super) const HEADER_LEN: u64 = 1024;
/// Largest disk that the format's implementations take: 2040 GiB.
pub(super) const MAX_SIZE: u64 = 2040 << 30;
pub(super) const TYPE_FIXED: u32 = 2;
pub(super) const TYPE_DYNAMIC: u32 = 3;
pub(super) const TYPE_DIFFERENCING: u32 = 4;
/// BAT entry of a block that is not in the file.
pub(super) const UNUSED: u32 = u32::MAX;
const VERSION: u32 = 0x0001_0000;
/// Seconds from 1970 to the format's epoch, 2000-01-01 UTC.
const EPOCH: u64 = 946_684_800;

/// The hard disk footer, last in every file and first in all but fixed ones.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Footer {
    cookie: [u8; 8],
    features: U32,
    version: U32,
    /// File offset of the dynamic disk header; all ones for fixed disks.
    pub(super) data_offset: U64,
    pub(super) timestamp: U32,
    creator: [u8; 4],
    creator_version: U32,
    creator_os: [u8; 4],
    original_size: U64,
    pub(super) current_size: U64,
    cylinders: U16,
    heads: u8,
    sectors_per_track: u8,
    pub(super) disk_type: U32,
    checksum: U32,
    pub(super) unique_id: [u8; 16],
    saved_state: u8,
    reserved: [u8; 427],
}

impl Footer {
    pub(super) fn new(size: u64, disk_type: u32, unique_id: Uuid) -> Self {
        let mut footer = Self::new_zeroed();
        footer.cookie = *b"conectix";
        footer.features = 2.into();
        footer.version = VERSION.into();
        footer.data_offset = u64::MAX.into();
        footer.timestamp = now().into();
        // Readers take the size from the geometry, which rounds, for creators that they do not
        // know; for this one they take it from the size field.
        footer.creator = *b"win ";
        footer.creator_version = 0x000a_0000.into();
        footer.creator_os = *b"Wi2k";
        footer.original_size = size.into();
        footer.disk_type = disk_type.into();
        footer.unique_id = unique_id.into_bytes();
        footer.set_size(size);
        footer
    }

    /// Sets size and geometry.
    pub(super) fn set_size(&mut self, size: u64) {
        self.current_size = size.into();
        let (cylinders, heads, sectors) = geometry(size / SECTOR);
        (self.cylinders, self.heads, self.sectors_per_track) = (cylinders.into(), heads, sectors);
    }

    /// A footer with the right cookie, version and checksum.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let footer = Self::read_from_bytes(bytes).ok()?;
        let valid = footer.cookie == *b"conectix"
            && footer.version.get() >> 16 == VERSION >> 16
            && footer.checksum.get() == sum(bytes, 64);
        valid.then_some(footer)
    }

    pub(super) fn encode(mut self) -> [u8; FOOTER_LEN as usize] {
        self.checksum = sum(self.as_bytes(), 64).into();
        let mut bytes = [0; FOOTER_LEN as usize];
        bytes.copy_from_slice(self.as_bytes());
        bytes
    }
}

/// Where a parent's name lies.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct LocatorEntry {
    /// `W2ru`: relative path, `W2ku`: absolute path, both UTF-16LE.
    pub(super) code: [u8; 4],
    pub(super) space: U32,
    pub(super) length: U32,
    reserved: U32,
    pub(super) offset: U64,
}

impl LocatorEntry {
    pub(super) fn new(code: [u8; 4], offset: u64, length: u32, space: u32) -> Self {
        let (reserved, offset) = (0.into(), offset.into());
        Self {
            code,
            space: space.into(),
            length: length.into(),
            reserved,
            offset,
        }
    }
}

/// The dynamic disk header.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct DynamicHeader {
    cookie: [u8; 8],
    data_offset: U64,
    pub(super) table_offset: U64,
    version: U32,
    pub(super) max_entries: U32,
    pub(super) block_size: U32,
    checksum: U32,
    pub(super) parent_id: [u8; 16],
    pub(super) parent_timestamp: U32,
    reserved: U32,
    parent_name: [u8; 512],
    pub(super) locators: [LocatorEntry; 8],
    reserved2: [u8; 256],
}

impl DynamicHeader {
    pub(super) fn new(table_offset: u64, max_entries: u32, block_size: u32) -> Self {
        let mut header = Self::new_zeroed();
        header.cookie = *b"cxsparse";
        header.data_offset = u64::MAX.into();
        header.table_offset = table_offset.into();
        header.version = VERSION.into();
        header.max_entries = max_entries.into();
        header.block_size = block_size.into();
        header
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let header = Self::read_from_bytes(bytes).ok()?;
        let valid = header.cookie == *b"cxsparse"
            && header.version.get() >> 16 == VERSION >> 16
            && header.checksum.get() == sum(bytes, 36);
        valid.then_some(header)
    }

    pub(super) fn encode(mut self) -> [u8; HEADER_LEN as usize] {
        self.checksum = sum(self.as_bytes(), 36).into();
        let mut bytes = [0; HEADER_LEN as usize];
        bytes.copy_from_slice(self.as_bytes());
        bytes
    }

    /// Stores the parent's file name, UTF-16BE, cut at 255 units.
    pub(super) fn set_parent_name(&mut self, name: &str) {
        self.parent_name = [0; 512];
        let units = name.encode_utf16().take(255);
        for (out, unit) in self.parent_name.chunks_exact_mut(2).zip(units) {
            out.copy_from_slice(&unit.to_be_bytes());
        }
    }
}

/// Ones' complement of the sum of all bytes but the four at `field`.
fn sum(bytes: &[u8], field: usize) -> u32 {
    let counted = bytes
        .iter()
        .enumerate()
        .filter(|(i, _)| !(field..field + 4).contains(i));
    !counted.fold(0u32, |sum, (_, b)| sum.wrapping_add(u32::from(*b)))
}

/// Seconds since 2000, as the format counts.
pub(super) fn now() -> u32 {
    let since =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH));
    since.map_or(0, |d| d.as_secs() as u32)
}

/// Cylinders, heads and sectors per track for a number of sectors, by the specification's
/// appendix: the nearest geometry that an ATA controller of the time could address.
fn geometry(sectors: u64) -> (u16, u8, u8) {
    let total = sectors.min(65_535 * 16 * 255) as u32;
    let (mut per_track, mut heads, mut cylinder_heads);
    if total >= 65_535 * 16 * 63 {
        (per_track, heads) = (255, 16);
        cylinder_heads = total / per_track;
    } else {
        per_track = 17;
        cylinder_heads = total / per_track;
        heads = cylinder_heads.div_ceil(1024).max(4);
        if cylinder_heads >= heads * 1024 || heads > 16 {
            (per_track, heads) = (31, 16);
            cylinder_heads = total / per_track;
        }
        if cylinder_heads >= heads * 1024 {
            (per_track, heads) = (63, 16);
            cylinder_heads = total / per_track;
        }
    }
    (
        (cylinder_heads / heads) as u16,
        heads as u8,
        per_track as u8,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_checksums() {
        assert_eq!(
            (size_of::<Footer>(), size_of::<DynamicHeader>()),
            (512, 1024)
        );
        let mut bytes = Footer::new(1 << 30, TYPE_DYNAMIC, Uuid::new_v4()).encode();
        assert!(Footer::parse(&bytes).is_some());
        bytes[200] ^= 1;
        assert!(Footer::parse(&bytes).is_none());
        let mut bytes = DynamicHeader::new(1536, 4, 2 << 20).encode();
        assert!(DynamicHeader::parse(&bytes).is_some());
        bytes[70] ^= 1;
        assert!(DynamicHeader::parse(&bytes).is_none());
    }

    #[test]
    fn geometry_follows_the_appendix() {
        assert_eq!(geometry(65_535 * 16 * 255 + 5), (65_535, 16, 255));
        assert_eq!(geometry(2048), (30, 4, 17));
        // 1 GiB, the value that other tools compute.
        assert_eq!(geometry(2_097_152), (2080, 16, 63));
    }
}
