//! The machine under the hypervisor, hosted: memory, time, waking.

use crate::system_memory::SystemMemory;
use crate::timer::Timers;
use hypervisor::{BadSpa, Hypervisor, Platform, RootNotification};
use processor::Requests;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::thread::Thread;
use tlfs::{HvPartitionId, HvVpIndex};

/// The thread of a virtual processor, as others reach it.
#[derive(Clone)]
pub(crate) struct VpHandle {
    requests: Requests,
    thread: Arc<Mutex<Option<Thread>>>,
}

impl VpHandle {
    pub(crate) fn new(requests: Requests) -> Self {
        Self {
            requests,
            thread: Arc::default(),
        }
    }

    /// The calling thread is the virtual processor's from now on.
    pub(crate) fn adopt(&self) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
    }

    pub(crate) fn kick(&self) {
        self.requests.kick();
        if let Some(thread) = &*self.thread.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

/// The host as the hypervisor's machine.
pub(crate) struct HostPlatform {
    memory: Arc<SystemMemory>,
    tsc_frequency: u64,
    vps: Arc<RwLock<Vec<Option<VpHandle>>>>,
    timers: Timers,
    hypervisor: OnceLock<Weak<Hypervisor>>,
    sink: RwLock<Option<NotificationSink>>,
}

/// Takes what reaches the root's ports, on the thread of the virtual processor
/// that sent it. False when it was not taken since too many wait; the guest is
/// then told to try again.
pub type NotificationSink = Arc<dyn Fn(RootNotification) -> bool + Send + Sync>;

impl HostPlatform {
    /// A platform over `memory`.
    pub(crate) fn new(memory: Arc<SystemMemory>, tsc_frequency: u64) -> Arc<Self> {
        let vps: Arc<RwLock<Vec<Option<VpHandle>>>> = Arc::default();
        let kick = Arc::downgrade(&vps);
        let timers = Timers::new(move |vp| {
            if let Some(vps) = kick.upgrade() {
                kick_vp(&vps, vp);
            }
        });
        Arc::new(Self {
            memory,
            tsc_frequency,
            vps,
            timers,
            hypervisor: OnceLock::new(),
            sink: RwLock::default(),
        })
    }

    /// Who takes what reaches the root's ports from now on.
    pub(crate) fn set_sink(&self, sink: Option<NotificationSink>) {
        *self.sink.write().unwrap_or_else(PoisonError::into_inner) = sink;
    }

    pub(crate) fn attach(&self, hypervisor: &Arc<Hypervisor>) {
        // A platform serves one hypervisor; a second call changes nothing.
        let _ = self.hypervisor.set(Arc::downgrade(hypervisor));
    }

    pub(crate) fn add_vp(&self, index: HvVpIndex, handle: VpHandle) {
        let mut vps = self.vps.write().unwrap_or_else(PoisonError::into_inner);
        let index = index as usize;
        if vps.len() <= index {
            vps.resize(index + 1, None);
        }
        vps[index] = Some(handle);
    }

    pub(crate) fn remove_vps(&self) {
        self.vps
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Kicks every virtual processor.
    pub(crate) fn kick_all(&self) {
        for handle in self
            .vps
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .flatten()
        {
            handle.kick();
        }
    }

    /// Timer deadlines.
    pub(crate) fn timers(&self) -> &Timers {
        &self.timers
    }
}

fn kick_vp(vps: &RwLock<Vec<Option<VpHandle>>>, vp: HvVpIndex) {
    let vps = vps.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(Some(handle)) = vps.get(vp as usize) {
        handle.kick();
    }
}

impl Platform for HostPlatform {
    fn read(&self, spa: u64, data: &mut [u8]) -> Result<(), BadSpa> {
        self.memory.read(spa, data)
    }

    fn write(&self, spa: u64, data: &[u8]) -> Result<(), BadSpa> {
        self.memory.write(spa, data)
    }

    fn fetch_or_u32(&self, spa: u64, bits: u32) -> Result<u32, BadSpa> {
        self.memory.fetch_or_u32(spa, bits)
    }

    fn load_u32(&self, spa: u64) -> Result<u32, BadSpa> {
        self.memory.load_u32(spa)
    }

    fn store_u32(&self, spa: u64, value: u32) -> Result<(), BadSpa> {
        self.memory.store_u32(spa, value)
    }

    fn tsc(&self) -> u64 {
        processor::tsc()
    }

    fn tsc_frequency(&self) -> u64 {
        self.tsc_frequency
    }

    fn kick(&self, _partition: HvPartitionId, vp: HvVpIndex) {
        kick_vp(&self.vps, vp);
    }

    fn arm_timer(&self, partition: HvPartitionId, vp: HvVpIndex, reference_time: Option<u64>) {
        let hypervisor = self.hypervisor.get().and_then(Weak::upgrade);
        let now = hypervisor.and_then(|hypervisor| hypervisor.reference_time(partition));
        let delay = reference_time.map(|time| time.saturating_sub(now.unwrap_or(time)));
        self.timers.arm(vp, delay);
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn root_port_notify(&self, notification: RootNotification) -> bool {
        let sink = self.sink.read().unwrap_or_else(PoisonError::into_inner);
        // What comes while nobody listens is nobody's.
        sink.as_ref().is_none_or(|sink| sink(notification))
    }
}
