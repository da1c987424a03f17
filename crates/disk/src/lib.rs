//! Virtual disk files: VHDX, VHD and raw.

pub mod backing;
mod error;
mod iov;
mod lease;
mod progress;
mod raw;
mod types;
mod vhdx;

pub use error::{DiskError, Result};
pub use progress::{Progress, ProgressFn, no_progress};
pub use raw::RawDisk;
pub use types::*;
pub use vhdx::{OpenNotes, ParentResolver, Vhdx};
