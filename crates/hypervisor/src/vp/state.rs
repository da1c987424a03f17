//! The part of a virtual processor that its lock protects.

use alloc::collections::VecDeque;

use tlfs::HvInternalActivity;

use super::RunOutcome;
use crate::apic::LocalApic;
use crate::processor::Exception;
use crate::synic::Synic;

/// System pages that a virtual processor has from its partition's pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VpPages {
    /// Behind HV_X64_MSR_SIMP.
    pub(crate) messages: u64,
    /// Behind HV_X64_MSR_SIEFP.
    pub(crate) event_flags: u64,
    /// Behind HV_X64_MSR_VP_ASSIST_PAGE.
    pub(crate) assist: u64,
}

/// Why a virtual processor stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    /// It does not.
    None,
    /// HLT: until an interrupt is delivered.
    Hlt,
    /// HV_X64_MSR_GUEST_IDLE: until an interrupt is pending.
    Idle,
}

/// The kind of answer that an intercept waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InterceptKind {
    /// A value.
    Read,
    /// No more than that it is done.
    Write,
    /// Four registers.
    Cpuid,
    /// RAX.
    Hypercall,
    /// The instruction is executed anew.
    Retry,
    /// No instruction waits (triple fault).
    Event,
}

/// An intercept that the parent has not answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingIntercept {
    pub(crate) kind: InterceptKind,
    pub(crate) answer: Option<u128>,
}

/// State of one virtual processor.
#[derive(Debug)]
pub(crate) struct VpState {
    pub(crate) apic: LocalApic,
    pub(crate) synic: Synic,
    pub(crate) pages: VpPages,
    /// HV_X64_MSR_VP_ASSIST_PAGE. The "no EOI required" bit of the page is
    /// never set: every EOI reaches the APIC.
    pub(crate) assist: u64,
    pub(crate) crash: [u64; 5],
    /// Reenlightenment control and TSC emulation control.
    pub(crate) reenlightenment: [u64; 2],
    pub(crate) explicit_suspend: bool,
    pub(crate) intercept_suspend: bool,
    pub(crate) intercept: Option<PendingIntercept>,
    /// Set by the parent; becomes the fault of an intercepted instruction.
    pub(crate) pending_exception: Option<Exception>,
    pub(crate) pending_init: bool,
    /// NMIs that wait to be injected, at most [`super::NMIS_WAITING`].
    pub(crate) pending_nmis: u8,
    /// Vector of an external (8259) interrupt.
    pub(crate) ext_int: Option<u8>,
    pub(crate) halt: Halt,
    pub(crate) wait_for_sipi: bool,
    pub(crate) interrupt_window: bool,
    pub(crate) nmi_window: bool,
    /// TSC ticks spent in the guest.
    pub(crate) run_ticks: u64,
    /// What `Platform::arm_timer` was last told.
    pub(crate) armed: Option<u64>,
    /// Outcomes that wait to be returned. Only the VP's own exits add to it,
    /// at most one each, so it stays short.
    pub(crate) outcomes: VecDeque<RunOutcome>,
}

impl VpState {
    /// A virtual processor as created: suspended until the parent starts it;
    /// all but the bootstrap processor wait for a start-up IPI too.
    pub(crate) fn new(apic: LocalApic, pages: VpPages, bootstrap: bool) -> Self {
        Self {
            apic,
            synic: Synic::default(),
            pages,
            assist: 0,
            crash: [0; 5],
            reenlightenment: [0; 2],
            explicit_suspend: true,
            intercept_suspend: false,
            intercept: None,
            pending_exception: None,
            pending_init: false,
            pending_nmis: 0,
            ext_int: None,
            halt: Halt::None,
            wait_for_sipi: !bootstrap,
            interrupt_window: false,
            nmi_window: false,
            run_ticks: 0,
            armed: None,
            outcomes: VecDeque::new(),
        }
    }

    /// HvRegisterInternalActivityState.
    pub(crate) fn internal_activity(&self) -> HvInternalActivity {
        let mut activity = HvInternalActivity::empty();
        activity.set(HvInternalActivity::STARTUP_SUSPEND, self.wait_for_sipi);
        activity.set(HvInternalActivity::HALT_SUSPEND, self.halt == Halt::Hlt);
        activity.set(HvInternalActivity::IDLE_SUSPEND, self.halt == Halt::Idle);
        activity
    }

    /// Sets what [`Self::internal_activity`] reads.
    pub(crate) fn set_internal_activity(&mut self, activity: HvInternalActivity) {
        self.wait_for_sipi = activity.contains(HvInternalActivity::STARTUP_SUSPEND);
        self.halt = if activity.contains(HvInternalActivity::HALT_SUSPEND) {
            Halt::Hlt
        } else if activity.contains(HvInternalActivity::IDLE_SUSPEND) {
            Halt::Idle
        } else {
            Halt::None
        };
    }
}
