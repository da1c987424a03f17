//! Whether a virtual processor executes guest instructions, and how another
//! thread makes sure that it no longer does.
//!
//! A thread that changes what a virtual processor has cached sets a request
//! bit, then looks at the activity. The virtual processor announces that it
//! enters the guest, then looks at the request bits. Both orders are
//! sequentially consistent, so one of the two sees the other. A virtual
//! processor that is outside the guest is not waited for, also not one that
//! waits itself: two that wait for each other cannot exist.

use core::sync::atomic::{AtomicU64, Ordering};

const STATE_MASK: u64 = 3;
const IDLE: u64 = 0;
const IN_HYPERVISOR: u64 = 1;
const IN_GUEST: u64 = 2;
const EPOCH: u64 = 4;

/// The activity of one virtual processor.
#[derive(Debug, Default)]
pub(crate) struct Activity(AtomicU64);

impl Activity {
    fn change(&self, state: u64) {
        // Only the thread that runs the virtual processor changes it.
        let epoch = (self.0.load(Ordering::SeqCst) & !STATE_MASK).wrapping_add(EPOCH);
        self.0.store(epoch | state, Ordering::SeqCst);
    }

    /// Claims the virtual processor for a thread; false when another has it.
    pub(crate) fn claim(&self) -> bool {
        let old = self.0.load(Ordering::SeqCst);
        let new = (old & !STATE_MASK).wrapping_add(EPOCH) | IN_HYPERVISOR;
        old & STATE_MASK == IDLE
            && self
                .0
                .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
    }

    pub(crate) fn enter_guest(&self) {
        self.change(IN_GUEST);
    }

    pub(crate) fn leave_guest(&self) {
        self.change(IN_HYPERVISOR);
    }

    pub(crate) fn release(&self) {
        self.change(IDLE);
    }

    /// Whether requests will be seen without a kick.
    pub(crate) fn in_hypervisor(&self) -> bool {
        self.0.load(Ordering::SeqCst) & STATE_MASK == IN_HYPERVISOR
    }

    /// The stay in the guest that is under way, if any.
    pub(crate) fn guest_stay(&self) -> Option<u64> {
        let now = self.0.load(Ordering::SeqCst);
        (now & STATE_MASK == IN_GUEST).then_some(now)
    }

    /// Whether a stay seen before is over.
    pub(crate) fn has_left(&self, stay: u64) -> bool {
        self.0.load(Ordering::SeqCst) != stay
    }
}
