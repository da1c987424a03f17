//! The harnesses behind the fuzz targets.
//!
//! Each target is one function from bytes to nothing that panics (or is caught
//! by the address sanitizer, a guard page or libFuzzer's limits) when something
//! is wrong. They are in a library so that the seeds can be made by the code
//! that reads them.

pub mod component;
pub mod hypercall;
pub mod image;
mod input;
pub mod interpreter;
pub mod loader;
mod medium;
pub mod memory;
pub mod scsi;
pub mod storage;

pub use input::Input;
