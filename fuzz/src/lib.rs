//! The harnesses behind the fuzz targets.
//!
//! Each target is one function from bytes to nothing that panics (or is caught
//! by the address sanitizer, a guard page or libFuzzer's limits) when something
//! is wrong. They are in a library so that the seeds can be made by the code
//! that reads them.

pub mod hypercall;
mod input;
pub mod interpreter;
pub mod loader;
pub mod memory;

pub use input::Input;
