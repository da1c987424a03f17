//! Unit tests of the storage benchmark's own arithmetic, texts and options.
//!
//! They stand beside the code; the benchmark itself is compiled without a test harness, which
//! passes over them.

#![allow(dead_code, reason = "the benchmark uses what the tests do not")]

mod console;
mod image;
mod initramfs;
mod options;
mod report;
mod results;
#[path = "../support/mod.rs"]
mod support;
mod workloads;
