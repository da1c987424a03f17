//! A block device, or a file in its place, open for direct I/O.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Unit of what is read and written, in bytes; each begins with its number.
pub(crate) const PAGE: usize = 4096;

/// The device.
pub(crate) struct Device {
    file: File,
    size: u64,
}

impl Device {
    /// Opens it past the page cache.
    pub(crate) fn open(path: &str, write: bool) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }

    /// Requests of `bytes` that it has room for, side by side.
    pub(crate) fn slots(&self, bytes: usize) -> u64 {
        self.size / bytes as u64
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Memory on page borders, as direct I/O needs it.
pub(crate) struct Buffer {
    address: *mut u8,
    length: usize,
}

impl Buffer {
    /// `length` bytes of zeros, a multiple of [`PAGE`].
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping of memory, wherever the kernel wants it.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = address.cast();
        Ok(Self { address, length })
    }

    /// Where it is, for the kernel.
    pub(crate) fn address(&self) -> u64 {
        self.address.expose_provenance() as u64
    }

    /// How long it is.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Writes the pages' numbers, the first being `page`.
    pub(crate) fn number(&mut self, page: u64) {
        for (number, at) in (page..).zip((0..self.length).step_by(PAGE)) {
            // SAFETY: `at` is within the mapping, and on a page border.
            unsafe { self.address.add(at).cast::<u64>().write_volatile(number) };
        }
    }

    /// Whether the pages have their numbers.
    pub(crate) fn is_numbered(&self, page: u64) -> bool {
        (page..)
            .zip((0..self.length).step_by(PAGE))
            .all(|(number, at)| {
                // SAFETY: as above.
                unsafe { self.address.add(at).cast::<u64>().read_volatile() == number }
            })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping is this buffer's, and nobody uses it any more.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_numbered() {
        let mut buffer = Buffer::new(3 * PAGE).unwrap();
        assert!(!buffer.is_numbered(7));
        buffer.number(7);
        assert!(buffer.is_numbered(7));
        assert!(!buffer.is_numbered(8));
        assert_eq!(
            (buffer.len(), buffer.address() % PAGE as u64),
            (3 * PAGE, 0)
        );
    }
}
