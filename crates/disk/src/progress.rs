//! Telling how far a long operation is, and being told to stop.

use std::ops::ControlFlow;

use crate::error::{DiskError, Result};

/// How far an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes looked at so far.
    pub done: u64,
    /// Bytes to look at in all.
    pub total: u64,
}

/// Called as an operation goes on; `Break` stops it with [`DiskError::Cancelled`].
pub type ProgressFn<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// A callback for callers that do not care.
pub fn no_progress() -> impl FnMut(Progress) -> ControlFlow<()> {
    |_| ControlFlow::Continue(())
}

/// Reports progress.
pub(crate) fn report(progress: &mut ProgressFn<'_>, done: u64, total: u64) -> Result<()> {
    match progress(Progress { done, total }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(DiskError::Cancelled),
    }
}
