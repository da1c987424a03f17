//! The two-way signal of a channel.

use super::BusHost;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// No virtual processor: signals to the guest are off.
const NO_TARGET: u32 = u32::MAX;

/// Called at each signal, from the signalling thread.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The guest has signalled since the last wait.
    Signaled,
    /// The channel closes.
    Closed,
    /// The time is over.
    TimedOut,
}

#[derive(Default)]
struct Bell {
    /// Counts signals. Each waiter compares it with what it saw last, so any
    /// number of them can wait.
    rings: u64,
    /// Threads that wait.
    waiting: usize,
    waker: Option<Waker>,
}

/// What the bus and a channel's threads share.
pub(super) struct Link {
    host: Arc<dyn BusHost>,
    sint: u8,
    flag: u16,
    target: AtomicU32,
    closing: AtomicBool,
    bell: Mutex<Bell>,
    rung: Condvar,
}

impl Link {
    pub(super) fn new(host: Arc<dyn BusHost>, sint: u8, flag: u16, target: Option<u32>) -> Self {
        Self {
            host,
            sint,
            flag,
            target: AtomicU32::new(target.unwrap_or(NO_TARGET)),
            closing: AtomicBool::new(false),
            bell: Mutex::default(),
            rung: Condvar::new(),
        }
    }

    fn bell(&self) -> MutexGuard<'_, Bell> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_target(&self, vp: u32) {
        self.target.store(vp, Ordering::Relaxed);
    }

    pub(super) fn signal_guest(&self) {
        let vp = self.target.load(Ordering::Relaxed);
        // A guest that closes the channel may have given its flag away.
        if vp != NO_TARGET && !self.is_closing() {
            self.host.signal_event(vp, self.sint, self.flag);
        }
    }

    /// The guest has signalled.
    pub(super) fn ring(&self) {
        let (waker, awaited) = {
            let mut bell = self.bell();
            bell.rings += 1;
            (bell.waker.clone(), bell.waiting > 0)
        };
        // It would be a system call even where nobody waits.
        if awaited {
            self.rung.notify_all();
        }
        if let Some(waker) = waker {
            waker();
        }
    }

    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        self.ring();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    pub(super) fn set_waker(&self, waker: Option<Waker>) {
        self.bell().waker = waker;
    }

    /// Waits for a signal that came after `seen`.
    pub(super) fn wait(&self, seen: &mut u64, timeout: Option<Duration>) -> Wake {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut bell = self.bell();
        bell.waiting += 1;
        let wake = loop {
            if self.is_closing() {
                break Wake::Closed;
            }
            if bell.rings != *seen {
                *seen = bell.rings;
                break Wake::Signaled;
            }
            let Some(deadline) = deadline else {
                bell = self.rung.wait(bell).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break Wake::TimedOut;
            }
            let waited = self.rung.wait_timeout(bell, left);
            bell = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        bell.waiting -= 1;
        wake
    }
}
