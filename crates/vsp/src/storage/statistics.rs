//! What a controller has done.

use super::scsi::{MAX_LUNS, op};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts of one logical unit since the controller was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LunStatistics {
    /// Reads that succeeded.
    pub reads: u64,
    /// Writes that succeeded.
    pub writes: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Ranges given back or overwritten with a pattern.
    pub unmaps: u64,
    /// Commands that failed.
    pub errors: u64,
}

/// Counts of a controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControllerStatistics {
    /// Requests that were answered, for units that exist or not.
    pub requests: u64,
    /// Packets or requests that made no sense.
    pub malformed: u64,
    /// Logical units, with their LUNs.
    pub luns: Vec<(u8, LunStatistics)>,
}

#[derive(Default)]
struct Lun {
    reads: AtomicU64,
    writes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    flushes: AtomicU64,
    unmaps: AtomicU64,
    errors: AtomicU64,
}

impl Lun {
    fn snapshot(&self) -> LunStatistics {
        LunStatistics {
            reads: self.reads.load(Relaxed),
            writes: self.writes.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            flushes: self.flushes.load(Relaxed),
            unmaps: self.unmaps.load(Relaxed),
            errors: self.errors.load(Relaxed),
        }
    }
}

/// Counters that all threads add to.
pub(super) struct Counters {
    requests: AtomicU64,
    malformed: AtomicU64,
    luns: Vec<Lun>,
}

impl Default for Counters {
    fn default() -> Self {
        let luns = (0..MAX_LUNS).map(|_| Lun::default()).collect();
        Self {
            requests: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            luns,
        }
    }
}

impl Counters {
    /// A request without sense. True for the first and then ever more seldom,
    /// so that a guest cannot fill the log.
    pub(super) fn malformed(&self) -> bool {
        (self.malformed.fetch_add(1, Relaxed) + 1).is_power_of_two()
    }

    /// A request was answered: bytes moved, or it failed.
    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// A unit has answered a command.
    pub(super) fn command(&self, lun: u8, opcode: u8, moved: Option<usize>) {
        let Some(lun) = self.luns.get(usize::from(lun)) else {
            return;
        };
        let Some(moved) = moved else {
            lun.errors.fetch_add(1, Relaxed);
            return;
        };
        match opcode {
            op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => {
                lun.reads.fetch_add(1, Relaxed);
                lun.bytes_read.fetch_add(moved as u64, Relaxed);
            }
            op::WRITE_6
            | op::WRITE_10
            | op::WRITE_12
            | op::WRITE_16
            | op::WRITE_VERIFY_10
            | op::WRITE_VERIFY_12
            | op::WRITE_VERIFY_16 => {
                lun.writes.fetch_add(1, Relaxed);
                lun.bytes_written.fetch_add(moved as u64, Relaxed);
            }
            op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
                lun.flushes.fetch_add(1, Relaxed);
            }
            op::UNMAP | op::WRITE_SAME_10 | op::WRITE_SAME_16 => {
                lun.unmaps.fetch_add(1, Relaxed);
            }
            _ => {}
        }
    }

    /// The counts now, of these units.
    pub(super) fn snapshot(&self, luns: &[u8]) -> ControllerStatistics {
        let of = |&lun: &u8| Some((lun, self.luns.get(usize::from(lun))?.snapshot()));
        ControllerStatistics {
            requests: self.requests.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            luns: luns.iter().filter_map(of).collect(),
        }
    }
}
