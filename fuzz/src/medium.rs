//! A medium on the heap that checks what a unit asks of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vsp::storage::medium::{DataRange, Medium, MediumError, MediumInfo};

/// The medium.
pub struct HeapMedium {
    data: Mutex<Vec<u8>>,
    info: MediumInfo,
    failing: bool,
    calls: AtomicU64,
}

impl HeapMedium {
    /// A medium of zeros. With `failing` every fifth call fails.
    pub fn new(size: u64, sector: u32, read_only: bool, failing: bool) -> Arc<Self> {
        Arc::new(Self {
            data: Mutex::new(vec![0; size as usize]),
            info: MediumInfo {
                size,
                logical_sector: sector,
                physical_sector: 4096,
                read_only,
                unmap: !read_only,
                unmap_granularity: 64 << 10,
                identity: None,
            },
            failing,
            calls: AtomicU64::new(0),
        })
    }

    fn data(&self) -> MutexGuard<'_, Vec<u8>> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the medium another size.
    pub fn resize(&self, size: u64) {
        self.data().resize(size as usize, 0);
    }

    /// What is at `offset`.
    pub fn contents(&self, offset: usize, length: usize) -> Vec<u8> {
        self.data()[offset..offset + length].to_vec()
    }

    /// The range in the data. Units must ask for whole sectors, and check
    /// where the medium ends; it may have become smaller since.
    fn range(&self, offset: u64, length: u64) -> Result<std::ops::Range<usize>, MediumError> {
        let sector = u64::from(self.info.logical_sector);
        assert!(
            offset.is_multiple_of(sector) && length.is_multiple_of(sector),
            "{length} bytes at {offset}"
        );
        if self.failing && self.calls.fetch_add(1, Ordering::Relaxed) % 5 == 4 {
            return Err(std::io::Error::other("as it should").into());
        }
        let end = offset.checked_add(length).expect("a range within 64 bits");
        if end > self.data().len() as u64 {
            return Err(MediumError::OutOfRange);
        }
        Ok(offset as usize..end as usize)
    }

    fn clear(&self, offset: u64, length: u64) -> Result<(), MediumError> {
        assert!(!self.info.read_only, "a read-only medium is written");
        let range = self.range(offset, length)?;
        self.data()[range].fill(0);
        Ok(())
    }
}

impl Medium for HeapMedium {
    fn info(&self) -> MediumInfo {
        MediumInfo {
            size: self.data().len() as u64,
            ..self.info.clone()
        }
    }

    fn read(&self, offset: u64, data: DataRange<'_>) -> Result<(), MediumError> {
        let range = self.range(offset, data.len() as u64)?;
        Ok(data.write(0, &self.data()[range])?)
    }

    fn write(&self, offset: u64, data: DataRange<'_>, _fua: bool) -> Result<(), MediumError> {
        assert!(!self.info.read_only, "a read-only medium is written");
        let range = self.range(offset, data.len() as u64)?;
        Ok(data.read(0, &mut self.data()[range])?)
    }

    fn flush(&self) -> Result<(), MediumError> {
        self.range(0, 0).map(|_| ())
    }

    fn unmap(&self, offset: u64, length: u64) -> Result<(), MediumError> {
        self.clear(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), MediumError> {
        self.clear(offset, length)
    }
}
