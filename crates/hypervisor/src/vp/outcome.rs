//! Why a virtual processor came back to its parent.

use alloc::boxed::Box;
use alloc::vec::Vec;

use tlfs::HvMessage;

/// Why [`crate::Hypervisor::run_vp`] returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// The parent is asked: an intercept message in the TLFS's layout. The VP
    /// stays suspended (register `INTERCEPT_SUSPEND`) until the parent sets
    /// `INTERCEPT_COMPLETION` or a pending event and clears the suspension.
    /// A triple fault comes as UNRECOVERABLE_EXCEPTION.
    Intercept(Box<HvMessage>),
    /// A level-triggered interrupt ended: the I/O APICs must look whether it
    /// is asserted still. Run the VP again.
    ApicEoi {
        /// The vector that ended.
        vector: u8,
    },
    /// Nothing to do until a kick. Sleep unless
    /// [`crate::Hypervisor::vp_has_work`], then run again.
    Halted,
    /// Like `Halted`, but the VP waits for its start-up IPI.
    WaitForSipi,
    /// Suspended explicitly, by the partition's property, or because an
    /// intercept is unanswered. Sleep until a kick or until resumed.
    Suspended,
    /// The VP or its partition is no more.
    Deleted,
    /// The guest asked for a reset (HV_X64_MSR_RESET).
    Reset,
    /// The guest reported a crash (HV_X64_MSR_CRASH_CTL). It runs on when run
    /// again.
    Crash(Box<CrashReport>),
}

/// What a crashing guest told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashReport {
    /// The VP.
    pub vp_index: u32,
    /// P0 to P4.
    pub parameters: [u64; 5],
    /// What was written to the control register.
    pub control: u64,
    /// The guest's message, at most 4096 bytes; unchecked bytes from the
    /// guest.
    pub message: Option<Vec<u8>>,
}
