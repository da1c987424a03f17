//! The child's guest-physical address space as the software processor reads
//! it: a snapshot of the hypervisor's map over the system memory.

use crate::system_memory::SystemMemory;
use hypervisor::{GpaMap, Hypervisor};
use processor::{Backing, GuestSpace, HostPage};
use std::sync::Arc;
use tlfs::{HvMapGpaFlags, HvPartitionId};

/// The software processor does not tell the two apart per page: a page that
/// either may execute can be fetched from.
const EXECUTABLE: HvMapGpaFlags =
    HvMapGpaFlags::KERNEL_EXECUTABLE.union(HvMapGpaFlags::USER_EXECUTABLE);

pub(crate) struct ChildSpace {
    hypervisor: Arc<Hypervisor>,
    memory: Arc<SystemMemory>,
    partition: HvPartitionId,
    map: Arc<GpaMap>,
}

impl ChildSpace {
    pub(crate) fn new(
        hypervisor: Arc<Hypervisor>,
        memory: Arc<SystemMemory>,
        partition: HvPartitionId,
    ) -> Self {
        let map = hypervisor.gpa_map(partition).unwrap_or_default();
        Self {
            hypervisor,
            memory,
            partition,
            map,
        }
    }
}

// SAFETY: pages come from `SystemMemory`, which this object keeps alive, and
// whose code map has an entry for each of its pages.
unsafe impl GuestSpace for ChildSpace {
    fn page(&mut self, page: u64) -> Option<HostPage> {
        let found = self.map.lookup(page)?;
        if !found.rights.contains(HvMapGpaFlags::READABLE) {
            return None;
        }
        let pointer = self.memory.page(found.spa_page)?;
        Some(HostPage {
            pointer,
            index: u32::try_from(found.spa_page).ok()?,
            writable: found.rights.contains(HvMapGpaFlags::WRITABLE),
            executable: found.rights.intersects(EXECUTABLE),
        })
    }

    fn refresh(&mut self) {
        self.map = self.hypervisor.gpa_map(self.partition).unwrap_or_default();
    }

    fn backing(&self) -> Option<Backing> {
        self.memory.backing().ok()
    }
}
