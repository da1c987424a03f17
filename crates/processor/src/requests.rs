//! How other threads get a running processor's attention.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is shared with other threads. Emitted code reads `go` at every loop
/// head and leaves when it is 0: a zero can be tested for without flags.
#[derive(Debug)]
struct Shared {
    go: AtomicU32,
    kicked: AtomicBool,
}

/// The flag by which other threads interrupt a running [`crate::Vp`].
#[derive(Clone, Debug)]
pub struct Requests(Arc<Shared>);

impl Default for Requests {
    fn default() -> Self {
        Self(Arc::new(Shared {
            go: AtomicU32::new(1),
            kicked: AtomicBool::new(false),
        }))
    }
}

impl Requests {
    /// Makes [`crate::Vp::run`] return [`crate::Exit::Kicked`] soon.
    pub fn kick(&self) {
        self.0.kicked.store(true, Ordering::SeqCst);
        self.look();
    }

    /// Makes the processor look around soon, without an exit.
    pub(crate) fn look(&self) {
        self.0.go.store(0, Ordering::SeqCst);
    }

    /// Somebody wants attention.
    #[inline(always)]
    pub fn pending(&self) -> bool {
        self.0.go.load(Ordering::Relaxed) == 0
    }

    /// Acknowledges; true if it was a kick.
    pub(crate) fn take(&self) -> bool {
        self.0.go.store(1, Ordering::SeqCst);
        self.0.kicked.swap(false, Ordering::SeqCst)
    }

    /// The word that emitted code looks at.
    pub(crate) fn word(&self) -> *const AtomicU32 {
        &raw const self.0.go
    }
}

/// A sleeping processor may be asked for this much; then for everything.
const MOST_ASKED: usize = 1024;

/// A page whose translations for stores must go: its number in the code map
/// ([`u32::MAX`]: every page), and where it lies in this process.
pub(crate) type Protected = (u32, usize);

/// What the processors of a partition must know of each other to cache code.
///
/// A processor is *inside* while it may execute emitted stores. One that is to
/// give up its translations for stores to a page finds the page in `protect`:
/// it looks there whenever it goes inside, so that whoever waits need only see
/// it outside once. Going inside is a plain store followed by a plain load; the
/// one who asks makes all threads pass a barrier between its own store and
/// load, so one of the two sees the other.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    pub requests: Requests,
    inside: AtomicBool,
    asked: AtomicBool,
    protect: Mutex<Vec<Protected>>,
}

impl Peer {
    /// Goes inside; false (and outside still) when there is something to do
    /// first: see [`Peer::take`].
    #[inline]
    pub(crate) fn enter(&self) -> bool {
        self.inside.store(true, Ordering::Relaxed);
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        if self.asked.load(Ordering::Relaxed) {
            self.leave();
            return false;
        }
        true
    }

    /// Goes outside.
    #[inline]
    pub(crate) fn leave(&self) {
        self.inside.store(false, Ordering::Release);
    }

    /// The pages to protect. The caller is outside.
    pub(crate) fn take(&self) -> Vec<Protected> {
        let mut list = self.protect.lock().unwrap_or_else(PoisonError::into_inner);
        self.asked.store(false, Ordering::SeqCst);
        std::mem::take(&mut *list)
    }

    /// Asks for a page's protection.
    pub(crate) fn ask(&self, page: Protected) {
        let mut list = self.protect.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() >= MOST_ASKED {
            list.clear();
            list.push((u32::MAX, 0));
        }
        list.push(page);
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Waits until the processor has been outside since [`Peer::ask`] and a
    /// barrier in all threads.
    pub(crate) fn wait(&self) {
        let mut rounds = 0u32;
        while self.inside.load(Ordering::Acquire) && self.asked.load(Ordering::Acquire) {
            self.requests.look();
            rounds += 1;
            if rounds > 64 {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}
