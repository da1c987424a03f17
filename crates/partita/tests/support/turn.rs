//! One VM at a time.

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// The right to run a VM, given back when dropped.
///
/// VMs of several tests at once would take each other's processors, and a
/// guest that gets no time tells of stalls. The lock is a file's, so that
/// tests in other processes wait too.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits until nobody else runs a VM.
    pub(crate) fn wait() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("one-vm-at-a-time");
        let lock = File::create(path).expect("a lock file in the target folder");
        flock(&lock, FlockOperation::LockExclusive).expect("the lock can be taken");
        Self { _lock: lock }
    }
}
