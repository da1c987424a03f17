//! The root partition's memory: one memfd, mapped once.
//!
//! System-physical addresses are offsets in it. Children's RAM and the pages
//! deposited to the hypervisor are ranges of it. Untouched pages cost nothing.
//!
//! The memory is shared with processors that run guest code, so it is only
//! ever touched through raw pointers and atomics, never through references.

use hypervisor::BadSpa;
use processor::{Backing, CodeMap};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 4096;

/// The system-physical memory of this process.
pub struct SystemMemory {
    base: *mut u8,
    size: u64,
    file: OwnedFd,
    code: Arc<CodeMap>,
}

// SAFETY: the mapping lives as long as the object; all access is by raw
// pointer, atomics or `processor`'s own means, which allow races.
unsafe impl Send for SystemMemory {}
// SAFETY: as above.
unsafe impl Sync for SystemMemory {}

impl SystemMemory {
    /// `size` bytes, rounded up to pages, all zero. `shared` when more than
    /// one thread will write to them.
    ///
    /// # Errors
    ///
    /// What the host says where it gives no memory file or no address space.
    pub fn new(size: u64, shared: bool) -> io::Result<Self> {
        let size = size.next_multiple_of(PAGE_SIZE).max(PAGE_SIZE);
        let pages = usize::try_from(size / PAGE_SIZE).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let length = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let file = memfd_create("partita-memory", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, size)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &file,
                0,
            )?
        };
        let code = Arc::new(CodeMap::new(pages, shared));
        Ok(Self {
            base: base.cast(),
            size,
            file,
            code,
        })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The memory file, for sharing with another process.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// The file and where it is mapped, for processors.
    ///
    /// # Errors
    ///
    /// What the host says where the process has too many open files.
    pub(crate) fn backing(&self) -> io::Result<Backing> {
        Ok(Backing {
            file: self.file.try_clone()?,
            base: self.base,
            size: self.size,
        })
    }

    /// Which pages hold cached code.
    pub fn code(&self) -> &Arc<CodeMap> {
        &self.code
    }

    /// The address in this process of a page, by its number.
    pub(crate) fn page(&self, page: u64) -> Option<*mut u8> {
        let offset = page.checked_mul(PAGE_SIZE)?;
        (offset < self.size).then(|| self.base.wrapping_add(offset as usize))
    }

    fn range(&self, spa: u64, length: usize) -> Result<*mut u8, BadSpa> {
        let end = spa.checked_add(length as u64).ok_or(BadSpa)?;
        if end > self.size {
            return Err(BadSpa);
        }
        Ok(self.base.wrapping_add(spa as usize))
    }

    fn word(&self, spa: u64) -> Result<&AtomicU32, BadSpa> {
        let at = self.range(spa, 4)?;
        if !spa.is_multiple_of(4) {
            return Err(BadSpa);
        }
        // SAFETY: aligned, within the mapping, which lives as long as `self`;
        // concurrent accesses by guest code are single instructions.
        Ok(unsafe { AtomicU32::from_ptr(at.cast()) })
    }

    /// Tells processors that a range has been written.
    fn written(&self, spa: u64, length: usize) {
        if length > 0 {
            for page in spa / PAGE_SIZE..=(spa + length as u64 - 1) / PAGE_SIZE {
                self.code.written(page as u32);
            }
        }
    }

    /// Copies out.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] when the range is not all memory.
    pub fn read(&self, spa: u64, data: &mut [u8]) -> Result<(), BadSpa> {
        let from = self.range(spa, data.len())?;
        // SAFETY: `from` is valid for the length; the copy goes through
        // assembly, which tolerates guests writing meanwhile.
        unsafe { processor::copy_from_shared(from, data) };
        Ok(())
    }

    /// Copies in.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] when the range is not all memory.
    pub fn write(&self, spa: u64, data: &[u8]) -> Result<(), BadSpa> {
        let to = self.range(spa, data.len())?;
        // SAFETY: as in `read`.
        unsafe { processor::copy_to_shared(to, data) };
        self.written(spa, data.len());
        Ok(())
    }

    /// Atomic OR of an aligned word; the old value.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] when it is not memory or not aligned.
    pub fn fetch_or_u32(&self, spa: u64, bits: u32) -> Result<u32, BadSpa> {
        let old = self.word(spa)?.fetch_or(bits, Ordering::SeqCst);
        self.written(spa, 4);
        Ok(old)
    }

    /// Atomic load of an aligned word.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] when it is not memory or not aligned.
    pub fn load_u32(&self, spa: u64) -> Result<u32, BadSpa> {
        Ok(self.word(spa)?.load(Ordering::Acquire))
    }

    /// Atomic store of an aligned word.
    ///
    /// # Errors
    ///
    /// [`BadSpa`] when it is not memory or not aligned.
    pub fn store_u32(&self, spa: u64, value: u32) -> Result<(), BadSpa> {
        self.word(spa)?.store(value, Ordering::Release);
        self.written(spa, 4);
        Ok(())
    }
}

impl Drop for SystemMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.cast(), self.size as usize) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let memory = SystemMemory::new(8192, false).unwrap();
        memory.write(8190, &[1, 2]).unwrap();
        let mut two = [0; 2];
        memory.read(8190, &mut two).unwrap();
        assert_eq!(two, [1, 2]);
        assert_eq!(memory.write(8191, &[1, 2]), Err(BadSpa));
        assert_eq!(memory.read(u64::MAX, &mut two), Err(BadSpa));
        assert_eq!(memory.load_u32(2), Err(BadSpa));
        assert_eq!(memory.fetch_or_u32(0, 5), Ok(0));
        assert_eq!(memory.load_u32(0), Ok(5));
        assert!(memory.page(2).is_none());
    }
}
