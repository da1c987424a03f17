//! Partitions: their states, their rights and what belongs to them (TLFS
//! chapter 4).

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use spin::{Mutex, RwLock};
use tlfs::{
    HvInterceptAccessMask, HvPartitionCreationFlags, HvPartitionId, HvPartitionPrivilegeMask,
    HvStatus, HvVpIndex,
};

use crate::gpa::GpaSpace;
use crate::pool::Pool;
use crate::synic::{Connection, Port};
use crate::time::ReferenceClock;
use crate::vp::{FlushSet, Requests, Vp, wait_until_out};
use crate::{GpaMap, Platform};

/// Id of the root partition.
pub const ROOT_PARTITION_ID: HvPartitionId = 1;

/// Where a partition is in its life. A deleted one is not found any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionState {
    /// Created; early properties may be set, memory deposited.
    Created,
    /// Initialized: has memory and virtual processors.
    Active,
    /// Finalized: all it had is in its pool, to be withdrawn.
    Finalized,
}

/// What the guest has set up for its whole partition.
#[derive(Debug, Default)]
pub(crate) struct GuestInterface {
    /// HV_X64_MSR_GUEST_OS_ID.
    pub(crate) os_id: u64,
    /// HV_X64_MSR_HYPERCALL.
    pub(crate) hypercall: u64,
    /// HV_X64_MSR_REFERENCE_TSC.
    pub(crate) reference_tsc: u64,
    /// HV_X64_MSR_TSC_INVARIANT_CONTROL.
    pub(crate) tsc_invariant: u64,
    /// System pages of the hypercall page and of the reference TSC page.
    pub(crate) pages: Option<[u64; 2]>,
}

/// A CPUID result that the parent registered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuidResult {
    pub(crate) vp: Option<HvVpIndex>,
    pub(crate) leaf: u32,
    pub(crate) subleaf: Option<u32>,
    /// EAX, EBX, ECX, EDX and the bits of each that count.
    pub(crate) values: [(u32, u32); 4],
}

/// Intercepts that the parent installed.
#[derive(Debug, Default)]
pub(crate) struct Intercepts {
    pub(crate) all_msrs: Option<HvInterceptAccessMask>,
    pub(crate) msrs: BTreeMap<u32, HvInterceptAccessMask>,
    pub(crate) all_cpuid: bool,
    pub(crate) cpuid: BTreeMap<u32, ()>,
    pub(crate) hypercalls: bool,
    pub(crate) results: Vec<CpuidResult>,
}

impl Intercepts {
    /// Whether an access to an MSR is the parent's.
    pub(crate) fn takes_msr(&self, index: u32, access: HvInterceptAccessMask) -> bool {
        self.all_msrs.is_some_and(|mask| mask.contains(access))
            || self
                .msrs
                .get(&index)
                .is_some_and(|mask| mask.contains(access))
    }

    /// Whether a CPUID leaf is the parent's.
    pub(crate) fn takes_cpuid(&self, leaf: u32) -> bool {
        self.all_cpuid || self.cpuid.contains_key(&leaf)
    }
}

/// One partition.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) id: HvPartitionId,
    pub(crate) parent: Option<HvPartitionId>,
    pub(crate) flags: HvPartitionCreationFlags,
    privileges: AtomicU64,
    pub(crate) suspended: AtomicBool,
    pub(crate) state: Mutex<PartitionState>,
    pub(crate) properties: Mutex<BTreeMap<u32, u64>>,
    pub(crate) intercepts: Mutex<Intercepts>,
    pub(crate) pool: Mutex<Pool>,
    gpa: Mutex<GpaSpace>,
    gpa_map: RwLock<Arc<GpaMap>>,
    vps: RwLock<BTreeMap<HvVpIndex, Arc<Vp>>>,
    pub(crate) ports: Mutex<BTreeMap<u32, Port>>,
    pub(crate) connections: Mutex<BTreeMap<u32, Connection>>,
    pub(crate) clock: ReferenceClock,
    pub(crate) guest: Mutex<GuestInterface>,
}

impl Partition {
    pub(crate) fn new(
        platform: &dyn Platform,
        id: HvPartitionId,
        parent: Option<HvPartitionId>,
        flags: HvPartitionCreationFlags,
        privileges: HvPartitionPrivilegeMask,
    ) -> Self {
        Self {
            id,
            parent,
            flags,
            privileges: AtomicU64::new(privileges.bits()),
            suspended: AtomicBool::new(false),
            state: Mutex::new(PartitionState::Created),
            properties: Mutex::default(),
            intercepts: Mutex::default(),
            pool: Mutex::default(),
            gpa: Mutex::default(),
            gpa_map: RwLock::default(),
            vps: RwLock::default(),
            ports: Mutex::default(),
            connections: Mutex::default(),
            clock: ReferenceClock::new(platform),
            guest: Mutex::default(),
        }
    }

    pub(crate) fn privileges(&self) -> HvPartitionPrivilegeMask {
        HvPartitionPrivilegeMask::from_bits_truncate(self.privileges.load(Ordering::Relaxed))
    }

    pub(crate) fn set_privileges(&self, privileges: HvPartitionPrivilegeMask) {
        self.privileges.store(privileges.bits(), Ordering::Relaxed);
    }

    /// Whether the partition has all of `privileges`.
    pub(crate) fn may(&self, privileges: HvPartitionPrivilegeMask) -> bool {
        self.privileges().contains(privileges)
    }

    /// Fails unless the partition is in `state`.
    pub(crate) fn require(&self, state: PartitionState) -> Result<(), HvStatus> {
        if *self.state.lock() == state {
            Ok(())
        } else {
            Err(HvStatus::INVALID_PARTITION_STATE)
        }
    }

    /// The present guest-physical space.
    pub(crate) fn gpa_map(&self) -> Arc<GpaMap> {
        self.gpa_map.read().clone()
    }

    /// Changes the guest-physical space; when it returns, no virtual
    /// processor uses the old one any more.
    pub(crate) fn update_gpa(&self, platform: &dyn Platform, change: impl FnOnce(&mut GpaSpace)) {
        {
            let mut space = self.gpa.lock();
            change(&mut space);
            let map = space.publish();
            *self.gpa_map.write() = map;
        }
        let vps = self.all_vps();
        for vp in &vps {
            vp.request(platform, Requests::GPA);
        }
        wait_until_out(platform, vps.iter().map(Arc::as_ref), Requests::GPA);
    }

    /// The virtual processor `index`.
    pub(crate) fn vp(&self, index: HvVpIndex) -> Option<Arc<Vp>> {
        self.vps.read().get(&index).cloned()
    }

    /// All virtual processors, by index.
    pub(crate) fn all_vps(&self) -> Vec<Arc<Vp>> {
        self.vps.read().values().cloned().collect()
    }

    /// How many virtual processors there are.
    pub(crate) fn vp_count(&self) -> u32 {
        self.vps.read().len() as u32
    }

    /// Adds a virtual processor; false when the index is taken.
    pub(crate) fn add_vp(&self, vp: Vp) -> bool {
        let mut vps = self.vps.write();
        let free = !vps.contains_key(&vp.index);
        if free {
            vps.insert(vp.index, Arc::new(vp));
        }
        free
    }

    /// Takes a virtual processor away; it leaves the guest first.
    pub(crate) fn remove_vp(&self, platform: &dyn Platform, index: HvVpIndex) -> Option<Arc<Vp>> {
        let vp = self.vps.write().remove(&index)?;
        vp.request(platform, Requests::DELETED);
        let vps = core::iter::once(vp.as_ref());
        wait_until_out(platform, vps, Requests::DELETED);
        Some(vp)
    }

    /// Asks every virtual processor to look at its state anew.
    pub(crate) fn notify_vps(&self, platform: &dyn Platform) {
        for vp in self.all_vps() {
            vp.request(platform, Requests::EVENT);
        }
    }

    /// Flushes translations of `vps`; when it returns, none of them uses one
    /// that was to go.
    pub(crate) fn flush(&self, platform: &dyn Platform, vps: &[Arc<Vp>], flush: &FlushSet) {
        for vp in vps {
            vp.request_flush(platform, flush);
        }
        wait_until_out(platform, vps.iter().map(Arc::as_ref), Requests::FLUSH);
    }

    /// A numeric property, or `default`.
    pub(crate) fn property(&self, code: tlfs::HvPartitionPropertyCode, default: u64) -> u64 {
        self.properties
            .lock()
            .get(&code.0)
            .copied()
            .unwrap_or(default)
    }
}
