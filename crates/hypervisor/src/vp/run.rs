//! The loop that runs a virtual processor.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{Halt, Requests, RunOutcome, Vp, VpState};
use crate::apic::{ApicEffect, LocalApic};
use crate::partition::Partition;
use crate::synic::{Synic, SynicBus};
use crate::{Hypervisor, Platform, Processor};

/// One virtual processor on the thread that runs it.
pub(crate) struct Execution<'a> {
    pub(crate) hypervisor: &'a Hypervisor,
    pub(crate) partition: Arc<Partition>,
    pub(crate) vp: Arc<Vp>,
    pub(crate) cpu: &'a mut dyn Processor,
}

impl Execution<'_> {
    /// Runs until the parent is needed.
    pub(crate) fn run(&mut self) -> RunOutcome {
        if !self.vp.activity.claim() {
            // Another thread runs this virtual processor.
            return RunOutcome::Suspended;
        }
        loop {
            let outcome = self.run_claimed();
            self.vp.activity.release();
            // A request that came after the last look but before the release
            // did not kick.
            let resting = matches!(outcome, RunOutcome::Halted | RunOutcome::WaitForSipi);
            if !(resting && self.vp.has_requests() && self.vp.activity.claim()) {
                return outcome;
            }
        }
    }

    pub(crate) fn platform(&self) -> &dyn Platform {
        self.hypervisor.platform()
    }

    fn run_claimed(&mut self) -> RunOutcome {
        if self
            .partition
            .clock
            .adopt_tsc(self.hypervisor.platform(), self.cpu)
        {
            self.hypervisor.refresh_reference_tsc(&self.partition);
        }
        loop {
            if let Some(outcome) = self.prepare() {
                return outcome;
            }
            self.vp.activity.enter_guest();
            if self.vp.has_requests() {
                self.vp.activity.leave_guest();
                continue;
            }
            let start = self.platform().tsc();
            let exit = self.cpu.run();
            self.vp.activity.leave_guest();
            let ticks = self.platform().tsc().wrapping_sub(start);
            {
                let mut state = self.vp.state.lock();
                state.run_ticks = state.run_ticks.wrapping_add(ticks);
            }
            if let Some(outcome) = self.handle_exit(exit) {
                return outcome;
            }
        }
    }

    /// Does what was asked, and gets the virtual processor ready to enter the
    /// guest; or says why it cannot.
    fn prepare(&mut self) -> Option<RunOutcome> {
        let requests = self.vp.take_requests();
        if requests.contains(Requests::DELETED) {
            // Stays deleted for every later call.
            self.vp
                .requests
                .fetch_or(Requests::DELETED.bits(), Ordering::SeqCst);
            return Some(RunOutcome::Deleted);
        }
        self.apply_flushes(requests);
        let vp = self.vp.clone();
        let mut guard = vp.state.lock();
        let state = &mut *guard;
        state.pending_init |= requests.contains(Requests::INIT);
        if requests.contains(Requests::NMI) {
            self.collect_nmis(state);
        }
        if let Some(outcome) = state.outcomes.pop_front() {
            self.vp
                .requests
                .fetch_or(Requests::EVENT.bits(), Ordering::SeqCst);
            return Some(outcome);
        }
        let partition_suspended = self.partition.suspended.load(Ordering::SeqCst);
        if partition_suspended || state.explicit_suspend || state.intercept_suspend {
            return Some(RunOutcome::Suspended);
        }
        self.resume_intercept(state);
        self.start_up(state);
        if state.wait_for_sipi {
            self.arm_timer(state, None);
            return Some(RunOutcome::WaitForSipi);
        }
        let now = self.expire(state);
        super::inject::inject(self.cpu, state);
        let deadline = self.next_deadline(state, now);
        self.arm_timer(state, deadline);
        (state.halt != Halt::None).then_some(RunOutcome::Halted)
    }

    /// Takes over the NMIs that were sent. While one is being handled one
    /// more can wait; two that come together while none is are both handled,
    /// as if the processor had taken the first at once.
    fn collect_nmis(&mut self, state: &mut VpState) {
        let limit = if self.cpu.interruptibility().nmi {
            super::NMIS_WAITING
        } else {
            1
        };
        let sent = self.vp.take_nmis();
        let waiting = state.pending_nmis.saturating_add(sent).min(limit);
        state.pending_nmis = state.pending_nmis.max(waiting);
    }

    fn apply_flushes(&mut self, requests: Requests) {
        if requests.contains(Requests::GPA) {
            self.cpu.gpa_space_changed();
        }
        if requests.contains(Requests::FLUSH) {
            let flush = core::mem::take(&mut *self.vp.flush.lock());
            flush.apply(|flush| self.cpu.flush_tlb(flush));
        }
    }

    /// INIT and what ends the wait after it.
    fn start_up(&mut self, state: &mut VpState) {
        if core::mem::take(&mut state.pending_init) {
            self.cpu.reset(false);
            state.apic.reset(false);
            state.halt = Halt::None;
            state.pending_nmis = 0;
            state.pending_exception = None;
            state.ext_int = None;
            state.wait_for_sipi = self.vp.index != 0;
        }
        let startup = self.vp.startup.lock().take();
        if let Some(startup) = startup
            && core::mem::take(&mut state.wait_for_sipi)
        {
            startup.apply(self.cpu);
        }
    }

    /// Expires timers and delivers messages; the reference time.
    fn expire(&mut self, state: &mut VpState) -> u64 {
        let platform = self.hypervisor.platform();
        let now = self.partition.clock.now(platform);
        state.apic.expire(self.cpu.tsc());
        let (synic, mut bus) = split(state, platform, now);
        synic.expire_timers(&mut bus);
        synic.deliver(&mut bus);
        now
    }

    fn next_deadline(&self, state: &VpState, now: u64) -> Option<u64> {
        let clock = &self.partition.clock;
        let synthetic = state.synic.next_expiry().filter(|_| !clock.is_frozen());
        let apic = state
            .apic
            .next_deadline()
            .map(|tsc| clock.after_ticks(now, tsc.saturating_sub(self.cpu.tsc())));
        synthetic.into_iter().chain(apic).min()
    }

    fn arm_timer(&self, state: &mut VpState, deadline: Option<u64>) {
        if state.armed != deadline {
            state.armed = deadline;
            self.platform()
                .arm_timer(self.partition.id, self.vp.index, deadline);
        }
    }

    /// Works on the APIC, then carries out what it asks for.
    pub(crate) fn with_apic<R>(
        &mut self,
        work: impl FnOnce(&mut LocalApic, u64, &mut Vec<ApicEffect>) -> R,
    ) -> R {
        let mut effects = Vec::new();
        let now = self.cpu.tsc();
        let result = work(&mut self.vp.state.lock().apic, now, &mut effects);
        self.hypervisor
            .apply_effects(&self.partition, &self.vp, &effects);
        result
    }

    /// Works on the SynIC at the present reference time.
    pub(crate) fn with_synic<R>(&self, work: impl FnOnce(&mut Synic, &mut SynicBus<'_>) -> R) -> R {
        let platform = self.hypervisor.platform();
        let now = self.partition.clock.now(platform);
        let mut state = self.vp.state.lock();
        let (synic, mut bus) = split(&mut state, platform, now);
        work(synic, &mut bus)
    }
}

/// The SynIC of a state, and what it acts on.
pub(crate) fn split<'a>(
    state: &'a mut VpState,
    platform: &'a dyn Platform,
    now: u64,
) -> (&'a mut Synic, SynicBus<'a>) {
    let bus = SynicBus {
        platform,
        pages: state.pages,
        apic: &mut state.apic,
        now,
    };
    (&mut state.synic, bus)
}
