//! What the hypervisor asks of the machine below it. Hosted, `vid` implements
//! this over a memfd and threads; on bare metal the boot layer would.

/// The machine under the hypervisor.
///
/// System-physical addresses (SPA) are the root partition's guest-physical
/// addresses: the root's space is mapped one to one. All accesses are checked
/// by the implementation; an SPA outside memory is an error, never undefined.
pub trait Platform: Send + Sync {
    /// Copies from system-physical memory.
    fn read(&self, spa: u64, data: &mut [u8]) -> Result<(), BadSpa>;

    /// Copies to system-physical memory.
    fn write(&self, spa: u64, data: &[u8]) -> Result<(), BadSpa>;

    /// Atomic `fetch_or` on an aligned 32-bit word; the old value.
    fn fetch_or_u32(&self, spa: u64, bits: u32) -> Result<u32, BadSpa>;

    /// Atomic load of an aligned 32-bit word, ordered as `Acquire`.
    fn load_u32(&self, spa: u64) -> Result<u32, BadSpa>;

    /// Atomic store of an aligned 32-bit word, ordered as `Release`.
    fn store_u32(&self, spa: u64, value: u32) -> Result<(), BadSpa>;

    /// The host's time-stamp counter (guests' counters are this plus an
    /// offset).
    fn tsc(&self) -> u64;

    /// Its frequency, Hz.
    fn tsc_frequency(&self) -> u64;

    /// Makes a virtual processor leave [`crate::Processor::run`] soon, or
    /// wakes it if it is halted. May be called from any thread, also for a
    /// virtual processor that is not running.
    fn kick(&self, partition: tlfs::HvPartitionId, vp: tlfs::HvVpIndex);

    /// Asks for a kick at `reference_time` (100 ns units, the partition's
    /// reference counter), or for none. One deadline per VP: a new one
    /// replaces the old.
    fn arm_timer(
        &self,
        partition: tlfs::HvPartitionId,
        vp: tlfs::HvVpIndex,
        reference_time: Option<u64>,
    );

    /// Called while waiting for another thread (a spin hint, or a yield to
    /// the host's scheduler).
    fn relax(&self);

    /// A message or event for a port that the root owns. False when it was
    /// not taken since too many wait: the sender is to try again.
    fn root_port_notify(&self, notification: RootNotification) -> bool;
}

/// What reached a port of the root partition. Hosted, the root has no virtual
/// processors of its own whose SynIC could take it, so the platform is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootNotification {
    /// HvCallPostMessage to a message port.
    Message {
        /// The port.
        port: tlfs::HvPortId,
        /// Message type as posted (bit 31 clear).
        message_type: u32,
        /// Payload, at most 240 bytes.
        payload: alloc::vec::Vec<u8>,
    },
    /// HvCallSignalEvent to an event port.
    Event {
        /// The port.
        port: tlfs::HvPortId,
        /// Flag number, the port's base added.
        flag: u16,
    },
}

/// A system-physical address has no memory behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadSpa;
