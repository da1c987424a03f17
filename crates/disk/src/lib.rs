//! Virtual disk files: VHDX, VHD and raw.
//!
//! Three layers, each used by the next:
//!
//! * [`backing`]: the file below, real ([`backing::FileBacking`], locked against other processes)
//!   or simulated with power cuts ([`backing::SimBacking`]);
//! * [`VirtualDisk`]: a disk as a guest sees it, implemented by [`Vhdx`], [`Vhd`] and [`RawDisk`].
//!   Calls block and may run at once from any number of threads. Requests to allocated space share
//!   one of many locks; only allocation, flushing of metadata and resizing take a lock alone.
//!   [`VirtualDisk::map`] tells where ranges lie, for I/O straight to the file;
//! * [`ops`]: whole files, as a command line or a management service handles them.
//!
//! Files are not trusted: a corrupt or hostile image gives an error that names the structure and
//! its offset, before anything is written.

pub mod backing;
mod error;
mod iov;
mod lease;
pub mod ops;
mod pieces;
mod progress;
mod raw;
mod types;
mod vhd;
mod vhdx;

pub use error::{DiskError, Result};
pub use ops::{CheckReport, CreateOptions, OpenOptions, RebaseMode};
pub use progress::{Progress, ProgressFn, no_progress};
pub use raw::RawDisk;
pub use types::*;
pub use vhd::Vhd;
pub use vhdx::{OpenNotes, ParentResolver, Vhdx};
