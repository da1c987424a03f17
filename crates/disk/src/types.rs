//! What every virtual disk offers, whatever its format.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use uuid::Uuid;

use crate::error::{DiskError, Result};
use crate::lease::Lease;

/// A file format for virtual disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Virtual Hard Disk v2, as in MS-VHDX.
    Vhdx,
    /// Virtual Hard Disk, as in Microsoft's image format specification 1.0.
    Vhd,
    /// The disk's bytes and nothing else: a plain file or a block device.
    Raw,
}

/// How a disk's blocks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// All space is in the file from the beginning.
    Fixed,
    /// Blocks take space when they are first written.
    Dynamic,
    /// Only what differs from a parent disk is in the file.
    Differencing,
}

/// How a differencing disk names its parent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ParentInfo {
    /// Identity of the parent's contents (VHDX: its DataWriteGuid; VHD: its unique ID).
    pub linkage: Uuid,
    /// A second identity that is accepted while a merge is under way (VHDX `parent_linkage2`).
    pub linkage2: Option<Uuid>,
    /// Path from the folder of the child, as written in the file.
    pub relative_path: Option<String>,
    /// Absolute path, as written in the file.
    pub absolute_path: Option<String>,
    /// Where the parent was found, when it was opened.
    pub resolved: Option<PathBuf>,
}

impl ParentInfo {
    /// Whether a parent with these contents is the one.
    pub fn accepts(&self, data_identity: Uuid) -> bool {
        data_identity == self.linkage || Some(data_identity) == self.linkage2
    }
}

/// What is known of a disk without reading its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskInfo {
    /// The file format.
    pub format: Format,
    /// How blocks are kept.
    pub kind: DiskKind,
    /// Size of the disk as a guest sees it, in bytes.
    pub virtual_size: u64,
    /// Size of the file, in bytes.
    pub file_size: u64,
    /// Unit of addressing in bytes: 512 or 4096.
    pub logical_sector_size: u32,
    /// Unit that the medium writes best, in bytes: 512 or 4096.
    pub physical_sector_size: u32,
    /// Unit of allocation in bytes; 0 where there is none (raw, fixed VHD).
    pub block_size: u32,
    /// The disk's lasting identity (VHDX: page 83 data; VHD: unique ID).
    pub identity: Option<Uuid>,
    /// Identity of the present contents, which a child's linkage must match.
    pub data_identity: Option<Uuid>,
    /// The parent of a differencing disk.
    pub parent: Option<ParentInfo>,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Where a piece of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the disk's own file, at this byte offset.
    File(u64),
    /// Nowhere: reads as zeros.
    Zero,
    /// Not in this disk: the parent's contents at the same virtual offset are seen.
    Parent,
}

/// A piece of a disk that lies in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, as a guest counts.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where it is.
    pub place: Place,
}

/// What a caller of [`VirtualDisk::map`] wants to do at the places that it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read them.
    Read,
    /// Overwrite them in place. Only [`Place::File`] extents may be written; everything else
    /// has to go through [`VirtualDisk::write`].
    Write,
}

/// The places of a range, in order and without gaps. They stay where they are until this is
/// dropped: trimming and compacting wait for it.
#[derive(Debug)]
pub struct Mapping {
    /// The pieces of the range.
    pub extents: Vec<Extent>,
    pub(crate) _lease: Lease,
}

/// A virtual disk. Calls block; any number may run at once from different threads, and requests
/// to space that is already allocated do not wait for each other.
pub trait VirtualDisk: Send + Sync {
    /// Describes the disk as it is now.
    fn info(&self) -> DiskInfo;

    /// Size of the disk as a guest sees it, in bytes.
    fn virtual_size(&self) -> u64;

    /// Unit of addressing in bytes: 512 or 4096.
    fn logical_sector_size(&self) -> u32;

    /// Fills `bufs` from `offset`. Offset and total length are multiples of the logical sector.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::Misaligned`], or what the host reports.
    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()>;

    /// Writes `bufs` at `offset`. With `fua` (force unit access) the data is durable on return;
    /// without, after the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// As for [`read`](Self::read), and [`DiskError::ReadOnly`].
    fn write(&self, offset: u64, bufs: &[IoSlice<'_>], fua: bool) -> Result<()>;

    /// Makes every completed write, unmap and resize durable.
    ///
    /// # Errors
    /// What the host reports; nothing since the last flush is then certain.
    fn flush(&self) -> Result<()>;

    /// Tells that a range is no longer needed. What is given back reads as zeros; parts that
    /// cannot be given back keep their contents.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn unmap(&self, offset: u64, len: u64) -> Result<()>;

    /// Makes a range read as zeros, without writing them where the format allows it.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// Grows the disk to `new_size` bytes while it is in use; the new part reads as zeros.
    /// Durable on return.
    ///
    /// # Errors
    /// [`DiskError::Invalid`] for a smaller size, one that is not a whole number of sectors, or
    /// one above the format's limit.
    fn resize(&self, new_size: u64) -> Result<()>;

    /// Tells where a range lies, for I/O straight to the file. With [`Access::Write`] the disk is
    /// also made ready for being written behind its back.
    ///
    /// # Errors
    /// As for [`read`](Self::read); with [`Access::Write`] also [`DiskError::ReadOnly`].
    fn map(&self, offset: u64, len: u64, access: Access) -> Result<Mapping>;

    /// The descriptor that [`Place::File`] offsets are in, when there is one.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The disk below a differencing disk.
    fn parent(&self) -> Option<Arc<dyn VirtualDisk>> {
        None
    }

    /// Makes everything durable and leaves the file as after a clean shutdown. The disk can still
    /// be used afterwards. Dropping the disk does the same, but cannot report errors.
    ///
    /// # Errors
    /// As for [`flush`](Self::flush).
    fn close(&self) -> Result<()> {
        self.flush()
    }
}

/// Checks a request against the disk's size and sector.
pub(crate) fn check_request(offset: u64, len: u64, size: u64, sector: u32) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => {}
        _ => return Err(DiskError::OutOfRange { offset, len, size }),
    }
    let unit = u64::from(sector);
    if !offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
        return Err(DiskError::Misaligned {
            offset,
            len,
            sector,
        });
    }
    Ok(())
}

/// Appends an extent, joining it with the last one when both lie in one place.
pub(crate) fn push_extent(extents: &mut Vec<Extent>, new: Extent) {
    if let Some(last) = extents.last_mut() {
        let joins = match (last.place, new.place) {
            (Place::File(a), Place::File(b)) => a + last.len == b,
            (a, b) => a == b,
        };
        if joins {
            last.len += new.len;
            return;
        }
    }
    extents.push(new);
}

/// Reads from a parent that may be smaller than its child: zeros follow its end.
pub(crate) fn read_from_parent(
    parent: &dyn VirtualDisk,
    offset: u64,
    bufs: &mut [IoSliceMut<'_>],
) -> Result<()> {
    let (len, size) = (crate::iov::len_mut(bufs), parent.virtual_size());
    if offset.saturating_add(len) <= size {
        return parent.read(offset, bufs);
    }
    let inside = size.saturating_sub(offset).min(len);
    if inside > 0 {
        parent.read(offset, &mut crate::iov::part_mut(bufs, 0, inside))?;
    }
    crate::iov::zero(&mut crate::iov::part_mut(bufs, inside, len - inside));
    Ok(())
}
