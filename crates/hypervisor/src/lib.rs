#![no_std]
//! The hypervisor: partitions, virtual processors, guest-physical address
//! spaces, hypercalls, the synthetic interrupt controller, timers, local
//! APICs and intercepts, as the TLFS describes them.
//!
//! It knows no operating system. What it needs from the machine comes through
//! [`Platform`]; instructions are executed by a [`Processor`] per virtual
//! processor, on whichever thread calls [`Hypervisor::run_vp`].
//!
//! # Which MSRs are whose
//!
//! The processor keeps the architectural MSRs of execution itself (EFER,
//! STAR, SYSENTER, PAT, MTRRs, TSC, ...). All others exit: the hypervisor
//! answers the synthetic ones (0x4000_0000 on), IA32_APIC_BASE,
//! IA32_TSC_DEADLINE and the x2APIC range; the rest goes to the parent where
//! it installed an intercept, and faults otherwise.
//!
//! # Locks
//!
//! Each virtual processor has one state lock; no code holds two of them. A
//! thread that waits for virtual processors to leave the guest waits for
//! nothing that takes a lock (see `vp::activity`).

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod apic;
mod config;
mod gpa;
mod guest_memory;
mod hypercall;
mod hypervisor;
mod interrupt;
mod partition;
pub mod platform;
mod pool;
pub mod processor;
mod synic;
mod time;
mod vp;

#[cfg(test)]
mod tests;

pub use config::{HypervisorConfig, ProcessorVendor};
pub use gpa::{GpaExtent, GpaMap, GpaTranslation};
pub use hypervisor::Hypervisor;
pub use partition::{PartitionState, ROOT_PARTITION_ID};
pub use platform::{BadSpa, Platform, RootNotification};
pub use processor::Processor;
pub use vp::{CrashReport, RunOutcome};
