//! What a channel's thread waits at.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Wakes one thread, which can wait for a descriptor at the same time. Costs
/// no system call while nobody waits.
pub(super) struct Doorbell {
    event: OwnedFd,
    awaited: AtomicBool,
}

impl Doorbell {
    /// # Errors
    ///
    /// Where the process has no descriptor left.
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            event,
            awaited: AtomicBool::new(false),
        })
    }

    /// Wakes who waits, or is about to.
    pub(super) fn ring(&self) {
        if self.awaited.swap(false, Ordering::SeqCst) {
            // It cannot be full: it is rung once for each wait.
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// To be called before the last look at what is waited for: from here on
    /// no [`Doorbell::ring`] is missed.
    pub(super) fn prepare(&self) {
        self.awaited.store(true, Ordering::SeqCst);
    }

    /// There is no need to wait after all.
    pub(super) fn cancel(&self) {
        self.awaited.store(false, Ordering::SeqCst);
    }

    /// Waits until it is rung, `other` is readable, or the time is over; also
    /// for no reason at times.
    pub(super) fn wait(&self, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let own = PollFd::new(&self.event, PollFlags::IN);
        let second = other.unwrap_or(self.event.as_fd());
        let mut both = [own, PollFd::from_borrowed_fd(second, PollFlags::IN)];
        let count = 1 + usize::from(other.is_some());
        // Interrupted waits are waits for no reason.
        let _ = poll(&mut both[..count], timeout.as_ref());
        self.awaited.store(false, Ordering::SeqCst);
        if both[0].revents().contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.event, &mut [0; 8]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn no_ring_after_prepare_is_missed() {
        let bell = Arc::new(Doorbell::new().unwrap());
        for _ in 0..100 {
            bell.prepare();
            let other = bell.clone();
            let thread = std::thread::spawn(move || other.ring());
            bell.wait(None, None);
            thread.join().unwrap();
        }
    }

    #[test]
    fn waits_end_by_time_and_by_descriptors() {
        let bell = Doorbell::new().unwrap();
        let start = Instant::now();
        // Not awaited: nothing is left behind.
        bell.ring();
        bell.prepare();
        bell.wait(None, Some(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20));
        let other = Doorbell::new().unwrap();
        other.prepare();
        other.ring();
        bell.prepare();
        bell.wait(Some(other.event.as_fd()), None);
    }
}
