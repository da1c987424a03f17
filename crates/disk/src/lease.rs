//! Leases that keep blocks in place while requests use them.
//!
//! A request takes its blocks' shards for sharing, which costs one atomic operation and never
//! waits for other requests. Only who takes a block away (trim, compaction) needs a shard alone.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{ArcRwLockReadGuard, RawRwLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

const SHARDS: usize = 64;
/// Trimming is a hint: it gives up rather than hold a guest's request for longer than this.
const PATIENCE: Duration = Duration::from_millis(100);

/// Keeps shards on different cache lines, so that unrelated requests do not slow each other.
#[repr(align(64))]
#[derive(Debug, Default)]
pub(crate) struct Line;

/// Keeps the blocks of a [`crate::Mapping`] in place until dropped; may move between threads.
#[derive(Default)]
pub(crate) struct Lease(Vec<ArcRwLockReadGuard<RawRwLock, Line>>);

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({} shards)", self.0.len())
    }
}

/// The locks of a disk's blocks.
pub(crate) struct Shards(Box<[Arc<RwLock<Line>>]>);

impl Shards {
    pub(crate) fn new() -> Self {
        Self((0..SHARDS).map(|_| Arc::default()).collect())
    }

    fn of(&self, block: u64) -> &Arc<RwLock<Line>> {
        &self.0[(block % SHARDS as u64) as usize]
    }

    /// Keeps a block in place for one request. Recursive: a thread that holds a lease must be
    /// able to start its next request even while a trim waits for the shard.
    pub(crate) fn share(&self, block: u64) -> RwLockReadGuard<'_, Line> {
        self.of(block).read_recursive()
    }

    /// Keeps the blocks in place for as long as the lease lives.
    pub(crate) fn lease(&self, blocks: std::ops::Range<u64>) -> Lease {
        let shards = blocks.start..blocks.end.min(blocks.start.saturating_add(SHARDS as u64));
        Lease(
            shards
                .map(|block| self.of(block).read_arc_recursive())
                .collect(),
        )
    }

    /// Takes a block alone, unless requests keep it busy for too long.
    pub(crate) fn alone(&self, block: u64) -> Option<RwLockWriteGuard<'_, Line>> {
        self.of(block).try_write_for(PATIENCE)
    }

    /// Takes every block alone, unless requests keep one busy for too long. Never waits without
    /// end: who holds a lease on one shard may be waiting here for another.
    pub(crate) fn all_alone(&self) -> Option<Vec<RwLockWriteGuard<'_, Line>>> {
        self.0
            .iter()
            .map(|shard| shard.try_write_for(PATIENCE))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_holds_off_exclusive_use_and_nothing_else() {
        let shards = Shards::new();
        let lease = shards.lease(3..5);
        let _shared = shards.share(3);
        assert!(shards.alone(4).is_none());
        assert!(shards.alone(6).is_some());
        assert!(shards.all_alone().is_none());
        let other = std::thread::spawn(move || drop(lease));
        other.join().expect("thread");
        assert!(shards.alone(4).is_some());
    }
}
