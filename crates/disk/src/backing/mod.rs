//! The file below a virtual disk.
//!
//! Everything above speaks to a [`Backing`]: a host file or block device ([`FileBacking`]) in
//! production, and a simulated one ([`SimBacking`]) that loses power in tests.

mod file;
mod lock;
mod sim;

pub use file::FileBacking;
pub use sim::{Crash, SimBacking};

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

/// Bytes of zeros that are written at once where the host cannot zero a range by itself.
const ZERO_CHUNK: usize = 64 << 10;

/// A byte array with a length that outlives the process once flushed. All calls are positional
/// and may run at the same time from many threads.
pub trait Backing: Send + Sync {
    /// Fills all of `bufs` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the range reaches past the end; otherwise the host's error.
    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()>;

    /// Writes all of `bufs` at `offset`, growing the file when needed. Not durable until
    /// [`flush`](Self::flush).
    ///
    /// # Errors
    /// The host's error; some of the bytes may then have been written.
    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()>;

    /// Makes every completed write, and the length, durable.
    ///
    /// # Errors
    /// The host's error: nothing written since the last flush is then certain.
    fn flush(&self) -> io::Result<()>;

    /// The length in bytes.
    ///
    /// # Errors
    /// The host's error.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// The host's error.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts or grows (with zeros) the file to `len` bytes.
    ///
    /// # Errors
    /// The host's error.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes a range inside the file read as zeros and gives its space back where the host can.
    ///
    /// # Errors
    /// The host's error.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Gives the space of a range back where that costs nothing. The range reads as zeros or as
    /// before.
    ///
    /// # Errors
    /// The host's error.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.punch_hole(offset, len)
    }

    /// Makes a range inside the file read as zeros and keeps its space.
    ///
    /// # Errors
    /// The host's error.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = [0u8; ZERO_CHUNK];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(ZERO_CHUNK as u64);
            self.write_at(offset + done, &[IoSlice::new(&zeros[..n as usize])])?;
            done += n;
        }
        Ok(())
    }

    /// Reserves space for a range, so that writing it later cannot run out of space. Hosts that
    /// cannot reserve do nothing.
    ///
    /// # Errors
    /// The host's error, `StorageFull` for example.
    fn reserve(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// The descriptor for asynchronous I/O straight to the file, if there is one.
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// [`Backing::read_at`] into one buffer.
pub(crate) fn read_exact(file: &dyn Backing, offset: u64, buf: &mut [u8]) -> crate::Result<()> {
    use crate::error::IoContext;
    file.read_at(offset, &mut [IoSliceMut::new(buf)])
        .at("read", offset)
}

/// [`Backing::write_at`] from one buffer.
pub(crate) fn write_all(file: &dyn Backing, offset: u64, buf: &[u8]) -> crate::Result<()> {
    use crate::error::IoContext;
    file.write_at(offset, &[IoSlice::new(buf)])
        .at("write", offset)
}

/// [`Backing::flush`] with this crate's error.
pub(crate) fn flush(file: &dyn Backing) -> crate::Result<()> {
    use crate::error::IoContext;
    file.flush().at("flush the file", 0)
}

/// Bytes that are reserved between two reports of progress.
const RESERVE_STEP: u64 = 256 << 20;

/// [`Backing::reserve`] in steps, so that it can be stopped.
pub(crate) fn reserve(
    file: &dyn Backing,
    offset: u64,
    len: u64,
    progress: &mut crate::ProgressFn<'_>,
) -> crate::Result<()> {
    use crate::error::IoContext;
    let mut done = 0;
    while done < len {
        crate::progress::report(progress, done, len)?;
        let step = (len - done).min(RESERVE_STEP);
        let at = offset + done;
        file.reserve(at, step).at("reserve space", at)?;
        done += step;
    }
    Ok(())
}

/// [`Backing::len`] with this crate's error.
pub(crate) fn len(file: &dyn Backing) -> crate::Result<u64> {
    use crate::error::IoContext;
    file.len().at("read the length of the file", 0)
}
