//! Raw files and block devices: the disk's bytes and nothing else.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backing::{self, Backing};
use crate::error::{DiskError, IoContext, Result};
use crate::iov;
use crate::lease::Lease;
use crate::types::{
    Access, DiskInfo, DiskKind, Extent, Format, Mapping, Place, VirtualDisk, check_request,
};

/// A raw disk over any backing.
pub struct RawDisk {
    file: Arc<dyn Backing>,
    size: AtomicU64,
    sector_size: u32,
    growable: bool,
}

impl RawDisk {
    /// Takes the backing as a disk with sectors of `sector_size` bytes (512, 2048 or 4096).
    /// `growable` is false for block devices. A file that ends inside a sector is a disk without
    /// that last part.
    ///
    /// # Errors
    /// [`DiskError::Invalid`] for another sector size, or what the host reports.
    pub fn new(file: Arc<dyn Backing>, sector_size: u32, growable: bool) -> Result<Self> {
        if ![512, 2048, 4096].contains(&sector_size) {
            return Err(DiskError::invalid("a sector has 512, 2048 or 4096 bytes"));
        }
        let len = backing::len(&*file)?;
        let size = AtomicU64::new(len - len % u64::from(sector_size));
        Ok(Self {
            file,
            size,
            sector_size,
            growable,
        })
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check_request(offset, len, self.virtual_size(), self.sector_size)
    }

    fn check_change(&self, offset: u64, len: u64) -> Result<()> {
        if self.file.read_only() {
            return Err(DiskError::ReadOnly);
        }
        self.check(offset, len)
    }
}

impl VirtualDisk for RawDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            format: Format::Raw,
            kind: DiskKind::Fixed,
            virtual_size: self.virtual_size(),
            file_size: self.file.len().unwrap_or_default(),
            logical_sector_size: self.sector_size,
            physical_sector_size: self.sector_size.max(4096),
            block_size: 0,
            identity: None,
            data_identity: None,
            parent: None,
            read_only: self.file.read_only(),
        }
    }

    fn virtual_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn logical_sector_size(&self) -> u32 {
        self.sector_size
    }

    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.check(offset, iov::len_mut(bufs))?;
        self.file.read_at(offset, bufs).at("read", offset)
    }

    fn write(&self, offset: u64, bufs: &[IoSlice<'_>], fua: bool) -> Result<()> {
        self.check_change(offset, iov::len(bufs))?;
        self.file.write_at(offset, bufs).at("write", offset)?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        if self.file.read_only() {
            return Ok(());
        }
        backing::flush(&*self.file)
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<()> {
        self.check_change(offset, len)?;
        self.file.discard(offset, len).at("free space", offset)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.check_change(offset, len)?;
        self.file
            .write_zeroes(offset, len)
            .at("write zeros", offset)
    }

    fn resize(&self, new_size: u64) -> Result<()> {
        self.check_change(0, 0)?;
        if !self.growable {
            return Err(DiskError::invalid("a block device keeps its size"));
        }
        if new_size < self.virtual_size() || !new_size.is_multiple_of(u64::from(self.sector_size)) {
            return Err(DiskError::invalid(
                "the new size must be larger and whole sectors",
            ));
        }
        self.file.set_len(new_size).at("grow the file", new_size)?;
        backing::flush(&*self.file)?;
        self.size.store(new_size, Ordering::Release);
        Ok(())
    }

    fn map(&self, offset: u64, len: u64, access: Access) -> Result<Mapping> {
        match access {
            Access::Read => self.check(offset, len)?,
            Access::Write => self.check_change(offset, len)?,
        }
        let extents = vec![Extent {
            offset,
            len,
            place: Place::File(offset),
        }];
        Ok(Mapping {
            extents,
            _lease: Lease::default(),
        })
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::SimBacking;

    #[test]
    fn reads_writes_zeroes_and_grows() {
        let file = Arc::new(SimBacking::from_bytes(&[5; 2048 + 17]));
        let disk = RawDisk::new(file.clone(), 512, true).expect("raw");
        assert_eq!(disk.virtual_size(), 2048);
        disk.write(512, &[IoSlice::new(&[6; 512])], true)
            .expect("write");
        disk.write_zeroes(1024, 512).expect("zero");
        disk.unmap(1536, 512).expect("unmap");
        disk.resize(4096).expect("grow");
        assert!(disk.resize(512).is_err());
        let bytes = file.crash(crate::backing::Crash::DropAll).to_bytes();
        assert_eq!(
            (bytes[0], bytes[512], bytes[1024], bytes.len()),
            (5, 6, 0, 4096)
        );
        assert!(matches!(
            disk.read(4096, &mut [IoSliceMut::new(&mut [0; 512])]),
            Err(DiskError::OutOfRange { .. })
        ));
        assert!(matches!(
            disk.write(100, &[IoSlice::new(&[0; 512])], false),
            Err(DiskError::Misaligned { .. })
        ));
    }

    #[test]
    fn a_read_only_disk_refuses_changes() {
        let file = Arc::new(SimBacking::from_bytes(&[5; 1024]).read_only_copy());
        let disk = RawDisk::new(file, 512, true).expect("raw");
        assert!(matches!(
            disk.write_zeroes(0, 512),
            Err(DiskError::ReadOnly)
        ));
        assert!(matches!(
            disk.map(0, 512, Access::Write),
            Err(DiskError::ReadOnly)
        ));
        disk.flush().expect("nothing to flush");
    }
}
