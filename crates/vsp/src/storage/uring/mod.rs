//! Reads and writes that the host's kernel carries out by itself: io_uring.
//!
//! * [`cursor`]: what is left of a transfer, from call to call.
//! * [`engine`]: transfers on their way, and what they need kept.
//! * [`ring`]: the kernel's queues.

pub(super) mod cursor;
pub(super) mod engine;
pub(super) mod ring;

/// How a controller's requests reach the files of its disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// With io_uring where the host permits it, otherwise with threads.
    #[default]
    Auto,
    /// With io_uring: where the host refuses it, no channel can be opened.
    Uring,
    /// With threads that block.
    Threads,
}
