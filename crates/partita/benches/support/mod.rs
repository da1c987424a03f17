//! What the benchmarks share.

pub(crate) mod end;
pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod options;
pub(crate) mod packages;
pub(crate) mod process;
pub(crate) mod program;
pub(crate) mod qemu;
pub(crate) mod stats;
