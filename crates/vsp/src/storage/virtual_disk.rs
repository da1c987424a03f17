//! Virtual disk files as media.

use super::direct;
use super::medium::{COPY_SIZE, DataRange, FileRange, Medium, MediumError, MediumInfo};
use disk::{Access, DiskError, DiskKind, Extent, Mapping, Place, VirtualDisk};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// A chain of differencing disks is not followed further for transfers in
/// place; the disk itself reads what lies deeper.
const MAX_CHAIN: usize = 64;

/// A virtual disk as the medium of a logical unit. Data moves between the
/// file and the guest's pages in place wherever both sides permit.
pub struct DiskMedium {
    disk: Arc<dyn VirtualDisk>,
    read_only: bool,
}

impl DiskMedium {
    /// The disk, which the guest may write if the disk itself can be written.
    pub fn new(disk: Arc<dyn VirtualDisk>) -> Self {
        Self {
            disk,
            read_only: false,
        }
    }

    /// The disk, which the guest may only read.
    pub fn read_only(disk: Arc<dyn VirtualDisk>) -> Self {
        Self {
            disk,
            read_only: true,
        }
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<dyn VirtualDisk> {
        &self.disk
    }

    fn check_writable(&self) -> Result<(), MediumError> {
        if self.read_only {
            Err(MediumError::ReadOnly)
        } else {
            Ok(())
        }
    }
}

impl From<DiskError> for MediumError {
    fn from(error: DiskError) -> Self {
        match error.root() {
            DiskError::ReadOnly => Self::ReadOnly,
            DiskError::OutOfRange { .. } => Self::OutOfRange,
            DiskError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::Full(Box::new(error))
            }
            _ => Self::Io(Box::new(error)),
        }
    }
}

/// Reads with one copy more, in bounded parts.
fn copy_in(disk: &dyn VirtualDisk, offset: u64, data: DataRange<'_>) -> Result<(), MediumError> {
    let mut copy = vec![0; data.len().min(COPY_SIZE)];
    let mut done = 0;
    while done < data.len() {
        let part = data.part(done, copy.len());
        let copy = &mut copy[..part.len()];
        disk.read(offset + done as u64, &mut [IoSliceMut::new(copy)])?;
        part.write(0, copy)?;
        done += part.len();
    }
    Ok(())
}

/// Writes with one copy more, in bounded parts.
fn copy_out(
    disk: &dyn VirtualDisk,
    offset: u64,
    data: DataRange<'_>,
    fua: bool,
) -> Result<(), MediumError> {
    let mut copy = vec![0; data.len().min(COPY_SIZE)];
    let mut done = 0;
    while done < data.len() {
        let part = data.part(done, copy.len());
        let copy = &mut copy[..part.len()];
        part.read(0, copy)?;
        disk.write(offset + done as u64, &[IoSlice::new(copy)], fua)?;
        done += part.len();
    }
    Ok(())
}

/// Reads a file's bytes straight into the buffer's memory. False where the
/// buffer has no memory to write to.
fn file_to_buffer(
    file: std::os::fd::BorrowedFd<'_>,
    at: u64,
    data: DataRange<'_>,
) -> Result<bool, MediumError> {
    let Some(pieces) = data.host_pieces() else {
        return Ok(false);
    };
    // SAFETY: the pieces are memory for as long as the buffer exists, which
    // `data` borrows, and a guest's memory may change at any time.
    let result = unsafe { direct::read_at(file, at, &pieces) };
    data.written();
    result?;
    Ok(true)
}

/// Reads through a chain of disks.
fn read_chain(
    disk: &dyn VirtualDisk,
    offset: u64,
    data: DataRange<'_>,
    depth: usize,
) -> Result<(), MediumError> {
    let Some(file) = disk.file().filter(|_| depth < MAX_CHAIN) else {
        return copy_in(disk, offset, data);
    };
    let mapping = disk.map(offset, data.len() as u64, Access::Read)?;
    for extent in &mapping.extents {
        let skip = (extent.offset.saturating_sub(offset)) as usize;
        let part = data.part(skip, usize::try_from(extent.len).unwrap_or(usize::MAX));
        match extent.place {
            Place::File(at) => {
                if !file_to_buffer(file, at, part)? {
                    copy_in(disk, extent.offset, part)?;
                }
            }
            Place::Zero => part.zero()?,
            Place::Parent => match disk.parent() {
                Some(parent) => read_parent(&*parent, extent.offset, part, depth + 1)?,
                None => copy_in(disk, extent.offset, part)?,
            },
        }
    }
    Ok(())
}

/// Reads a parent, which may be smaller than its child.
fn read_parent(
    parent: &dyn VirtualDisk,
    offset: u64,
    data: DataRange<'_>,
    depth: usize,
) -> Result<(), MediumError> {
    let inside = parent
        .virtual_size()
        .saturating_sub(offset)
        .min(data.len() as u64) as usize;
    if inside > 0 {
        read_chain(parent, offset, data.part(0, inside), depth)?;
    }
    data.part(inside, data.len()).zero()?;
    Ok(())
}

impl DiskMedium {
    /// Writes the parts that have their place in the file already.
    fn write_in_place(&self, offset: u64, data: DataRange<'_>) -> Result<(), MediumError> {
        let (Some(file), Some(_)) = (self.disk.file(), data.host_pieces()) else {
            return copy_out(&*self.disk, offset, data, false);
        };
        let mapping = self.disk.map(offset, data.len() as u64, Access::Write)?;
        let mut rest = Vec::new();
        for extent in &mapping.extents {
            let skip = (extent.offset.saturating_sub(offset)) as usize;
            let part = data.part(skip, usize::try_from(extent.len).unwrap_or(usize::MAX));
            match (extent.place, part.host_pieces()) {
                (Place::File(at), Some(pieces)) => {
                    // SAFETY: the pieces are memory for as long as the buffer
                    // exists, which `data` borrows.
                    unsafe { direct::write_at(file, at, &pieces) }?;
                }
                _ => rest.push((extent.offset, part)),
            }
        }
        // New blocks may have to wait until nobody holds a mapping.
        drop(mapping);
        for (offset, part) in rest {
            copy_out(&*self.disk, offset, part, false)?;
        }
        Ok(())
    }
}

/// A range that lies in the disk's own file.
struct DiskRange {
    /// Keeps the blocks where they are.
    _mapping: Mapping,
    disk: Arc<dyn VirtualDisk>,
    extents: Vec<(u64, u64)>,
}

impl DiskRange {
    fn new(disk: &Arc<dyn VirtualDisk>, offset: u64, length: u64, access: Access) -> Option<Self> {
        disk.file()?;
        // What fails here fails again where it is told why.
        let mapping = disk.map(offset, length, access).ok()?;
        let in_file = |extent: &Extent| match extent.place {
            Place::File(at) => Some((at, extent.len)),
            Place::Zero | Place::Parent => None,
        };
        let extents = mapping.extents.iter().map(in_file).collect::<Option<_>>()?;
        Some(Self {
            _mapping: mapping,
            disk: disk.clone(),
            extents,
        })
    }
}

impl FileRange for DiskRange {
    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.disk.file()
    }

    fn extents(&self) -> &[(u64, u64)] {
        &self.extents
    }
}

impl Medium for DiskMedium {
    fn info(&self) -> MediumInfo {
        let info = self.disk.info();
        let read_only = self.read_only || info.read_only;
        MediumInfo {
            size: info.virtual_size,
            logical_sector: info.logical_sector_size,
            physical_sector: info.physical_sector_size.max(info.logical_sector_size),
            read_only,
            unmap: !read_only,
            unmap_granularity: if info.kind == DiskKind::Fixed {
                0
            } else {
                info.block_size
            },
            identity: info.identity.map(uuid::Uuid::into_bytes),
        }
    }

    fn read(&self, offset: u64, data: DataRange<'_>) -> Result<(), MediumError> {
        read_chain(&*self.disk, offset, data, 0)
    }

    fn write(&self, offset: u64, data: DataRange<'_>, fua: bool) -> Result<(), MediumError> {
        self.check_writable()?;
        self.write_in_place(offset, data)?;
        // A write in place may lie in a block whose own allocation is not
        // durable yet: only the disk can make both so.
        if fua { Ok(self.disk.flush()?) } else { Ok(()) }
    }

    fn file_range(&self, offset: u64, length: u64, write: bool) -> Option<Box<dyn FileRange>> {
        let access = match write {
            true if self.read_only => return None,
            true => Access::Write,
            false => Access::Read,
        };
        let range = DiskRange::new(&self.disk, offset, length, access)?;
        Some(Box::new(range))
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(self.disk.flush()?)
    }

    fn unmap(&self, offset: u64, length: u64) -> Result<(), MediumError> {
        self.check_writable()?;
        Ok(self.disk.unmap(offset, length)?)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), MediumError> {
        self.check_writable()?;
        Ok(self.disk.write_zeroes(offset, length)?)
    }
}

#[cfg(test)]
#[path = "virtual_disk_tests.rs"]
mod tests;
