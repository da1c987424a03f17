//! Ends programs that do not end, and asks for attention at random instants.

use crate::Requests;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Programs that take longer than this interpreted are not compared.
pub(super) const INTERPRETED: Duration = Duration::from_secs(2);
/// Code that overwrites itself all the time may take longer translated.
pub(super) const TRANSLATED: Duration = Duration::from_secs(40);

#[derive(Default)]
struct Shared {
    running: Mutex<Option<(Instant, Requests)>>,
    expired: AtomicBool,
    over: AtomicBool,
}

/// A thread that kicks what runs for too long.
pub(super) struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(super) fn new() -> Self {
        let shared = Arc::new(Shared::default());
        let for_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            while !for_thread.over.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(100));
                let running = for_thread
                    .running
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if let Some((end, requests)) = &*running
                    && Instant::now() > *end
                {
                    for_thread.expired.store(true, Ordering::SeqCst);
                    requests.kick();
                }
            }
        });
        Self {
            shared,
            thread: Some(thread),
        }
    }

    fn set(&self, running: Option<(Instant, Requests)>) {
        let mut slot = self
            .shared
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *slot = running;
        self.shared.expired.store(false, Ordering::SeqCst);
    }

    /// A program starts that may take so long.
    pub(super) fn start(&self, requests: Requests, limit: Duration) {
        self.set(Some((Instant::now() + limit, requests)));
    }

    /// It has ended.
    pub(super) fn stop(&self) {
        self.set(None);
    }

    /// It has taken too long.
    pub(super) fn expired(&self) -> bool {
        self.shared.expired.load(Ordering::SeqCst)
    }

    /// Kicks now and then until the result is dropped.
    pub(super) fn kick(&self, requests: Requests) -> Kicker {
        let shared = Arc::new((AtomicBool::new(false), AtomicU32::new(0)));
        let for_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let mut wait = 0x9e37_79b9u32;
            while !for_thread.0.load(Ordering::Relaxed) {
                wait = wait.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                for _ in 0..wait >> 21 {
                    std::hint::spin_loop();
                }
                requests.kick();
                if for_thread.1.fetch_add(1, Ordering::Relaxed) % 64 == 63 {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        });
        Kicker {
            shared,
            thread: Some(thread),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// See [`Watch::kick`].
pub(super) struct Kicker {
    shared: Arc<(AtomicBool, AtomicU32)>,
    thread: Option<JoinHandle<()>>,
}

impl Kicker {
    /// Kicks so far.
    pub(super) fn count(&self) -> u32 {
        self.shared.1.load(Ordering::Relaxed)
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        self.shared.0.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
