//! The kernel's queues: the one place where it is told to work on memory
//! while this process goes on.

use super::cursor::Direction;
use io_uring::{IoUring, opcode, types};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// Requests that can be handed over with one system call.
const SUBMISSIONS: u32 = 256;
/// Requests that can be on their way.
pub(crate) const CAPACITY: u32 = 1024;

/// Whoever carries out reads and writes while others go on.
pub(crate) trait Queue {
    /// Adds a read or write to those that [`Queue::submit`] hands over. False
    /// where there is no room.
    ///
    /// # Safety
    ///
    /// Until the request has come back from [`Queue::next`]: the vectors stay
    /// where they are and as they are, and what they describe is memory that
    /// may be read, and for [`Direction::FromFile`] be written, at any time.
    /// The descriptor must be open until the request was handed over.
    unsafe fn push(
        &mut self,
        token: u64,
        direction: Direction,
        file: RawFd,
        offset: u64,
        vectors: &[libc::iovec],
    ) -> bool;

    /// Hands over what was added. What the kernel does not take now stays for
    /// the next time.
    ///
    /// # Errors
    ///
    /// What the kernel says, if it will not take anything ever.
    fn submit(&mut self) -> io::Result<()>;

    /// Requests that were added and not yet handed over.
    fn staged(&self) -> usize;

    /// Waits until a request has come back; hands over what was added.
    ///
    /// # Errors
    ///
    /// What the kernel says, if no wait is possible.
    fn wait(&mut self) -> io::Result<()>;

    /// A request that has come back: its token, and its result as system
    /// calls have it.
    fn next(&mut self) -> Option<(u64, i32)>;

    /// Readable when a request has come back.
    fn readiness(&self) -> BorrowedFd<'_>;
}

/// io_uring.
pub(crate) struct Ring {
    ring: IoUring,
    /// Requests that were added and not yet handed over.
    staged: usize,
}

impl Ring {
    /// Queues for [`CAPACITY`] requests.
    ///
    /// # Errors
    ///
    /// Where the kernel has none, or refuses it to this process.
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_clamp()
            .setup_cqsize(CAPACITY)
            .build(SUBMISSIONS)?;
        if !ring.params().is_feature_nodrop() {
            // Results could get lost.
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { ring, staged: 0 })
    }

    /// Errors that pass by themselves, once results are taken or memory is
    /// free.
    fn passes(error: &io::Error) -> bool {
        let passing = [libc::EINTR, libc::EAGAIN, libc::EBUSY];
        error
            .raw_os_error()
            .is_some_and(|code| passing.contains(&code))
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(want) {
            Ok(_) => {}
            Err(error) if Self::passes(&error) => {}
            Err(error) => return Err(error),
        }
        self.staged = self.ring.submission().len();
        Ok(())
    }
}

impl Queue for Ring {
    unsafe fn push(
        &mut self,
        token: u64,
        direction: Direction,
        file: RawFd,
        offset: u64,
        vectors: &[libc::iovec],
    ) -> bool {
        let file = types::Fd(file);
        let Ok(count) = u32::try_from(vectors.len()) else {
            return false;
        };
        let entry = match direction {
            Direction::FromFile => opcode::Readv::new(file, vectors.as_ptr(), count)
                .offset(offset)
                .build(),
            Direction::ToFile => opcode::Writev::new(file, vectors.as_ptr(), count)
                .offset(offset)
                .build(),
        };
        let entry = entry.user_data(token);
        if self.ring.submission().is_full() && self.enter(0).is_err() {
            return false;
        }
        // SAFETY: the caller's promise; a copy of the entry goes into the
        // queue.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        self.staged += usize::from(pushed.is_ok());
        pushed.is_ok()
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.staged > 0 {
            self.enter(0)?;
        }
        Ok(())
    }

    fn staged(&self) -> usize {
        self.staged
    }

    fn wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    fn next(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        Some((entry.user_data(), entry.result()))
    }

    fn readiness(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}
