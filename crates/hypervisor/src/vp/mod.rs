//! Virtual processors.

pub(crate) mod activity;
pub(crate) mod cpuid;
mod exit;
mod hypercall;
mod inject;
mod intercept;
pub(crate) mod msr;
mod outcome;
pub(crate) mod run;
mod startup;
mod state;

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use spin::Mutex;
use tlfs::{HvPartitionId, HvVpIndex};

use crate::partition::Partition;
use crate::processor::TlbFlush;
use crate::{Hypervisor, Platform, Processor};
use activity::Activity;
pub use outcome::{CrashReport, RunOutcome};
pub(crate) use startup::Startup;
pub(crate) use state::{Halt, InterceptKind, PendingIntercept, VpPages, VpState};

bitflags::bitflags! {
    /// What other threads ask of a virtual processor.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Requests: u32 {
        /// Interrupts, messages, timers or suspension changed: look again.
        const EVENT = 1 << 0;
        /// `Vp::flush` has something.
        const FLUSH = 1 << 1;
        /// The guest-physical space changed.
        const GPA = 1 << 2;
        /// INIT.
        const INIT = 1 << 3;
        /// `Vp::startup` has something.
        const STARTUP = 1 << 4;
        /// `Vp::nmis` is not zero.
        const NMI = 1 << 5;
        /// The virtual processor was deleted.
        const DELETED = 1 << 6;
    }
}

/// NMIs that can wait while none is being handled: the one that the processor
/// would have taken at once, and one that it would have held back behind it.
pub(crate) const NMIS_WAITING: u8 = 2;

/// Runs a virtual processor on the calling thread.
pub(crate) fn execute(
    hypervisor: &Hypervisor,
    partition: Arc<Partition>,
    vp: Arc<Vp>,
    cpu: &mut dyn Processor,
) -> RunOutcome {
    run::Execution {
        hypervisor,
        partition,
        vp,
        cpu,
    }
    .run()
}

/// One virtual processor.
#[derive(Debug)]
pub(crate) struct Vp {
    pub(crate) partition_id: HvPartitionId,
    pub(crate) index: HvVpIndex,
    pub(crate) apic_id: u32,
    pub(crate) activity: Activity,
    requests: AtomicU32,
    /// NMIs sent and not yet taken over, at most [`NMIS_WAITING`].
    nmis: AtomicU8,
    flush: Mutex<PendingFlush>,
    startup: Mutex<Option<Startup>>,
    pub(crate) state: Mutex<VpState>,
}

impl Vp {
    pub(crate) fn new(partition_id: HvPartitionId, index: HvVpIndex, state: VpState) -> Self {
        Self {
            partition_id,
            index,
            apic_id: index,
            activity: Activity::default(),
            requests: AtomicU32::new(Requests::GPA.bits()),
            nmis: AtomicU8::new(0),
            flush: Mutex::default(),
            startup: Mutex::new(None),
            state: Mutex::new(state),
        }
    }

    /// Asks for something; kicks where it would not be seen otherwise.
    pub(crate) fn request(&self, platform: &dyn Platform, requests: Requests) {
        let old =
            Requests::from_bits_truncate(self.requests.fetch_or(requests.bits(), Ordering::SeqCst));
        if !old.contains(requests) && !self.activity.in_hypervisor() {
            platform.kick(self.partition_id, self.index);
        }
    }

    /// Sends an NMI.
    pub(crate) fn request_nmi(&self, platform: &dyn Platform) {
        let more = |count| (count < NMIS_WAITING).then_some(count + 1);
        let _ = self
            .nmis
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        self.request(platform, Requests::NMI);
    }

    fn take_nmis(&self) -> u8 {
        self.nmis.swap(0, Ordering::SeqCst)
    }

    /// Whether anything is asked.
    pub(crate) fn has_requests(&self) -> bool {
        self.requests.load(Ordering::SeqCst) != 0
    }

    /// Whether `requests` are still to be taken.
    fn asks(&self, requests: Requests) -> bool {
        let now = self.requests.load(Ordering::SeqCst);
        now & requests.bits() == requests.bits()
    }

    fn take_requests(&self) -> Requests {
        Requests::from_bits_truncate(self.requests.swap(0, Ordering::SeqCst))
    }

    /// Leaves a start-up IPI or a first state; the first one stands.
    pub(crate) fn request_startup(&self, platform: &dyn Platform, startup: Startup) {
        self.startup.lock().get_or_insert(startup);
        self.request(platform, Requests::STARTUP);
    }

    /// Adds to the flush that the virtual processor makes before it runs on.
    pub(crate) fn request_flush(&self, platform: &dyn Platform, flush: &FlushSet) {
        self.flush.lock().add(flush);
        self.request(platform, Requests::FLUSH);
    }
}

/// Waits until every one of `vps`, of which `requested` was asked before the
/// call, is out of the guest or has taken the request.
///
/// One that has taken it already may be back in the guest for good, and nobody
/// would kick it out: it is not waited for.
pub(crate) fn wait_until_out<'a>(
    platform: &dyn Platform,
    vps: impl Iterator<Item = &'a Vp>,
    requested: Requests,
) {
    let stays: Vec<_> = vps
        .filter_map(|vp| Some((vp, vp.activity.guest_stay()?)))
        .collect();
    for (vp, stay) in stays {
        while !vp.activity.has_left(stay) && vp.asks(requested) {
            platform.relax();
        }
    }
}

/// Single pages flushed one by one before everything is.
const MAX_FLUSH_PAGES: usize = 64;

/// What to flush.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FlushSet {
    /// Everything.
    All,
    /// All but global translations.
    NonGlobal,
    /// Pages by the address of their first byte.
    Pages(Vec<u64>),
}

#[derive(Debug, Default)]
struct PendingFlush {
    all: bool,
    non_global: bool,
    pages: BTreeSet<u64>,
}

impl PendingFlush {
    fn add(&mut self, flush: &FlushSet) {
        match flush {
            FlushSet::All => self.all = true,
            FlushSet::NonGlobal => self.non_global = true,
            FlushSet::Pages(pages) => self.pages.extend(pages),
        }
        if self.pages.len() > MAX_FLUSH_PAGES {
            self.all = true;
        }
        if self.all {
            self.pages.clear();
        }
    }

    fn apply(self, mut flush: impl FnMut(TlbFlush)) {
        if self.all {
            return flush(TlbFlush::All);
        }
        if self.non_global {
            flush(TlbFlush::NonGlobal);
        }
        for page in self.pages {
            flush(TlbFlush::Page(page));
        }
    }
}
