#![no_std]
//! The hypervisor's ABI as the Top Level Functional Specification (TLFS)
//! writes it down: numbers and layouts, and nothing that acts.
//!
//! Layouts that cross the boundary are `repr(C)` and derive `zerocopy`'s
//! traits, so they can be read from and written to untrusted bytes without
//! `unsafe`. All are little-endian, as x86-64 is.
//!
//! One module per theme; everything is re-exported at the root under its
//! TLFS name.

#[macro_use]
mod macros;

mod assist;
mod cpuid;
mod flush;
mod hypercall;
mod ids;
mod intercept;
mod interrupt;
mod memory;
mod message;
mod msr;
mod partition;
mod port;
mod privilege;
mod register;
mod register_value;
mod status;
mod synic;
mod system;
mod time;
mod vp;
mod vpset;

pub use assist::*;
pub use cpuid::*;
pub use flush::*;
pub use hypercall::*;
pub use ids::*;
pub use intercept::*;
pub use interrupt::*;
pub use memory::*;
pub use message::*;
pub use msr::*;
pub use partition::*;
pub use port::*;
pub use privilege::*;
pub use register::*;
pub use register_value::*;
pub use status::*;
pub use synic::*;
pub use system::*;
pub use time::*;
pub use vp::*;
pub use vpset::*;
