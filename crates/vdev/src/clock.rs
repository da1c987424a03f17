//! The two clocks that devices live by.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// A source of time for devices.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment, never going backwards: the time of
    /// [`Chipset::next_deadline`](crate::Chipset::next_deadline).
    fn monotonic(&self) -> Duration;

    /// Wall time since 1970-01-01 00:00:00 UTC.
    fn wall(&self) -> Duration;
}

/// The host's clocks; monotonic time starts when this is created.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Starts a clock at zero.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall(&self) -> Duration {
        // A host clock before 1970 is as wrong as one that stands there.
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
    }
}

/// A clock that only moves when it is told to; for tests and replays.
#[derive(Debug)]
pub struct ManualClock {
    nanoseconds: AtomicU64,
    wall_start: Duration,
}

impl ManualClock {
    /// A clock at monotonic zero and the given wall time.
    pub fn new(wall_start: Duration) -> Self {
        Self {
            nanoseconds: AtomicU64::new(0),
            wall_start,
        }
    }

    /// Moves both clocks forward. Fractions of a nanosecond do not exist, and
    /// what exceeds 584 years is cut off.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Duration {
        self.wall_start + self.monotonic()
    }
}
