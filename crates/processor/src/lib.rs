//! The software x86-64 processor.
//!
//! A [`Vp`] is one virtual processor: architectural state, memory management
//! unit, and a cache of decoded blocks that an interpreter runs. It executes
//! what a guest executes and leaves ([`Vp::run`] returns an [`Exit`]) for what
//! belongs to the platform: hypercalls, CPUID, foreign MSRs, ports, and
//! guest-physical addresses without memory. It knows no operating system above
//! it and no hypervisor.
//!
//! Guest and host share the instruction set. Arithmetic, atomics and vector
//! instructions execute as the host's own instructions on the guest's
//! operands, so results, flags (undefined ones too), rounding and memory
//! ordering are the machine's.
//!
//! # What to read first
//!
//! [`State`] (what a processor holds), `mmu` (how an address becomes memory),
//! `block` and `decode` (how bytes become handlers), `vp` (the run loop), then
//! the instructions by theme in `exec`.

mod arith;
mod block;
mod check;
pub mod cpuid;
mod decode;
#[cfg(test)]
mod differential;
mod exec;
mod fault;
mod flags;
mod host;
mod memory;
mod mmu;
mod native;
mod op;
#[cfg(test)]
mod oracle;
mod outside;
mod requests;
mod space;
mod state;
mod translate;
mod vp;
mod walk;

pub use fault::{Completion, Exit};
pub use flags::ArithFlags;
pub use host::{copy_from_shared, copy_to_shared, tsc};
pub use outside::{TranslateFailure, TranslateRequest};
pub use requests::Requests;
pub use space::{Backing, CodeMap, GuestSpace, HostPage};
pub use state::{Fpu, Msrs, Segment, State, Table, cr, reg, rflags, seg};
pub use translate::translator_supported;
pub use vp::{Config, Event, ProcessorMode, Vp};
