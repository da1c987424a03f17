//! Storage: synthetic SCSI controllers over the bus.
//!
//! A [`StorageController`] is one device on the bus with up to 64 disks and
//! optical drives. Requests carry SCSI commands, and their data moves
//! straight between the guest's pages and the [`medium::Medium`] where both
//! permit.
//!
//! * [`protocol`]: what guest and host exchange.
//! * [`scsi`]: the logical units, apart from any transport.
//! * [`medium`]: what a unit's data lies on; [`DiskMedium`] for virtual disks.
//! * [`memory`]: the guest's buffers.
//! * [`Io`]: how requests reach files: by io_uring, or by threads.
//!
//! Every request of a guest is taken for hostile: commands, lengths and
//! addresses are checked, what waits is bounded, and a broken ring ends its
//! channel only.

mod channel;
mod controller;
mod direct;
mod doorbell;
mod executor;
pub mod medium;
pub mod memory;
mod outbox;
pub mod protocol;
mod request;
pub mod scsi;
mod session;
mod statistics;
#[cfg(test)]
mod tests;
mod transfers;
mod uring;
mod virtual_disk;

pub use controller::{
    Attachment, ControllerConfig, ControllerHandle, DEFAULT_MAX_TRANSFER, DEFAULT_THREADS,
    StorageController, StorageVsp,
};
pub use executor::{Executor, Job, ThreadPool};
pub use scsi::LunError;
pub use statistics::{ControllerStatistics, LunStatistics};
pub use uring::Io;
pub use virtual_disk::DiskMedium;
