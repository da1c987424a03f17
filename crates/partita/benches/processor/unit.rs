//! Unit tests of the processor benchmark's own arithmetic, texts and options.
//!
//! They stand beside the code; the benchmark itself is compiled without a test harness, which
//! passes over them.

#![allow(dead_code, reason = "the benchmark uses what the tests do not")]

mod catalogue;
mod console;
mod document;
mod initramfs;
mod load;
mod options;
mod report;
mod results;
#[path = "../support/mod.rs"]
mod support;
