//! The hypervisor object: its partitions, and the calls of its embedder.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use spin::{Mutex, RwLock};
use tlfs::{
    HV_HYPERCALL_MSR_LOCKED, HV_PAGE_MSR_ENABLE, HV_PAGE_SHIFT, HV_PAGE_SIZE, HV_X64_MSR_SIEFP,
    HV_X64_MSR_SIMP, HvHypercallControl, HvHypercallResult, HvMapGpaFlags,
    HvPartitionCreationFlags, HvPartitionId, HvPartitionPrivilegeMask, HvStatus, HvVpIndex,
};
use zerocopy::IntoBytes;

use crate::gpa::{GpaSpace, OverlayKind};
use crate::hypercall::{Context, LentProcessor, find_call};
use crate::partition::{Partition, PartitionState, ROOT_PARTITION_ID};
use crate::vp::msr::overlay_of;
use crate::vp::{Vp, VpPages};
use crate::{GpaMap, HypervisorConfig, Platform, Processor, ProcessorVendor, RunOutcome};

/// A hypervisor with its root partition and all others.
pub struct Hypervisor {
    platform: Arc<dyn Platform>,
    config: HypervisorConfig,
    partitions: RwLock<BTreeMap<HvPartitionId, Arc<Partition>>>,
    next_partition: AtomicU64,
    /// Pages in any pool: they must not be mapped into a guest or deposited
    /// twice.
    pub(crate) deposited: Mutex<BTreeSet<u64>>,
}

impl Hypervisor {
    /// A hypervisor whose only partition is the root, with all privileges.
    pub fn new(platform: Arc<dyn Platform>, config: HypervisorConfig) -> Self {
        let root = Partition::new(
            &*platform,
            ROOT_PARTITION_ID,
            None,
            HvPartitionCreationFlags::empty(),
            HvPartitionPrivilegeMask::all(),
        );
        *root.state.lock() = PartitionState::Active;
        let partitions = BTreeMap::from([(ROOT_PARTITION_ID, Arc::new(root))]);
        Self {
            platform,
            config,
            partitions: RwLock::new(partitions),
            next_partition: AtomicU64::new(ROOT_PARTITION_ID + 1),
            deposited: Mutex::default(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &HypervisorConfig {
        &self.config
    }

    pub(crate) fn platform(&self) -> &dyn Platform {
        &*self.platform
    }

    /// A hypercall of the root partition: the transport of `winhv` when
    /// hosted. `input` and `output` are the parameter pages' bytes (for fast
    /// calls the 16 or 112 bytes of the registers). A rep call is worked off
    /// whole. The result is HV_HYPERCALL_RESULT.
    ///
    /// Registers that the processor has itself need
    /// [`Hypervisor::root_hypercall_for_vp`]; here they answer
    /// INVALID_VP_STATE.
    pub fn root_hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64 {
        self.dispatch_root(control, input, output, None)
    }

    /// The same, from the thread that owns a virtual processor's
    /// [`Processor`] and lends it: its registers can be read and written, its
    /// addresses translated.
    pub fn root_hypercall_for_vp(
        &self,
        control: u64,
        input: &[u8],
        output: &mut [u8],
        (partition, vp): (HvPartitionId, HvVpIndex),
        cpu: &mut dyn Processor,
    ) -> u64 {
        self.dispatch_root(
            control,
            input,
            output,
            Some(LentProcessor { partition, vp, cpu }),
        )
    }

    fn dispatch_root(
        &self,
        control: u64,
        input: &[u8],
        output: &mut [u8],
        cpu: Option<LentProcessor<'_>>,
    ) -> u64 {
        let control = HvHypercallControl(control);
        let result = |status, reps| HvHypercallResult::new(status, reps).0;
        let call = match find_call(control) {
            Ok(call) => call,
            Err(status) => return result(status, 0),
        };
        let Some(root) = self.partition(ROOT_PARTITION_ID) else {
            return result(HvStatus::OPERATION_FAILED, 0);
        };
        let (input_size, output_size) = (call.input_size(control), call.output_size(control));
        let (Some(input), Some(output)) = (input.get(..input_size), output.get_mut(..output_size))
        else {
            return result(HvStatus::INVALID_HYPERCALL_INPUT, 0);
        };
        let cpu = cpu.map(|lent| LentProcessor {
            partition: lent.partition,
            vp: lent.vp,
            cpu: &mut *lent.cpu,
        });
        let mut context = Context {
            hypervisor: self,
            caller: root,
            vp: None,
            cpu,
        };
        let progress = call.run(&mut context, control, control.rep_count(), input, output);
        match progress.status {
            Ok(()) => result(HvStatus::SUCCESS, progress.reps),
            Err(status) => result(status, progress.reps),
        }
    }

    /// Runs a virtual processor on the calling thread until its parent is
    /// needed. `cpu` must be the one object that stands for it.
    pub fn run_vp(
        &self,
        partition: HvPartitionId,
        vp: HvVpIndex,
        cpu: &mut dyn Processor,
    ) -> RunOutcome {
        let Some(partition) = self.partition(partition) else {
            return RunOutcome::Deleted;
        };
        let Some(vp) = partition.vp(vp) else {
            return RunOutcome::Deleted;
        };
        crate::vp::execute(self, partition, vp, cpu)
    }

    /// Whether a virtual processor that is halted has something to do: look
    /// before going to sleep.
    pub fn vp_has_work(&self, partition: HvPartitionId, vp: HvVpIndex) -> bool {
        let Some(partition) = self.partition(partition) else {
            return true;
        };
        let Some(vp) = partition.vp(vp) else {
            return true;
        };
        let armed = vp.state.lock().armed;
        let due = armed.is_some_and(|time| time <= partition.clock.now(self.platform()));
        vp.has_requests() || due
    }

    /// A partition's guest-physical address space as it is now; `None` when
    /// there is no such partition.
    pub fn gpa_map(&self, partition: HvPartitionId) -> Option<Arc<GpaMap>> {
        Some(self.partition(partition)?.gpa_map())
    }

    /// A partition's reference time, 100 ns since its creation.
    pub fn reference_time(&self, partition: HvPartitionId) -> Option<u64> {
        Some(self.partition(partition)?.clock.now(self.platform()))
    }

    /// Where a partition is in its life.
    pub fn partition_state(&self, partition: HvPartitionId) -> Option<PartitionState> {
        let partition = self.partition(partition)?;
        let state = *partition.state.lock();
        Some(state)
    }

    pub(crate) fn partition(&self, id: HvPartitionId) -> Option<Arc<Partition>> {
        self.partitions.read().get(&id).cloned()
    }

    /// Creates a child of `parent`.
    pub(crate) fn add_partition(
        &self,
        parent: HvPartitionId,
        flags: HvPartitionCreationFlags,
    ) -> HvPartitionId {
        let id = self.next_partition.fetch_add(1, Ordering::Relaxed);
        let privileges = self.config.child_privileges;
        let child = Partition::new(&*self.platform, id, Some(parent), flags, privileges);
        self.partitions.write().insert(id, Arc::new(child));
        id
    }

    pub(crate) fn remove_partition(&self, id: HvPartitionId) {
        self.partitions.write().remove(&id);
    }

    /// Ids of a partition's children, ascending.
    pub(crate) fn children(&self, parent: HvPartitionId) -> Vec<HvPartitionId> {
        let partitions = self.partitions.read();
        partitions
            .values()
            .filter(|p| p.parent == Some(parent))
            .map(|p| p.id)
            .collect()
    }

    /// All partitions.
    pub(crate) fn all_partitions(&self) -> Vec<Arc<Partition>> {
        self.partitions.read().values().cloned().collect()
    }

    /// Writes zeros over a page of the hypervisor's.
    pub(crate) fn clear_page(&self, page: u64) -> Result<(), HvStatus> {
        self.platform
            .write(page << HV_PAGE_SHIFT, &[0; HV_PAGE_SIZE])
            .map_err(|_| HvStatus::OPERATION_FAILED)
    }

    /// Fills the hypercall page: ENDBR64; VMCALL or VMMCALL; RET; INT3 up to
    /// the end.
    pub(crate) fn fill_hypercall_page(&self, page: u64) -> Result<(), HvStatus> {
        let call = match self.config.vendor {
            ProcessorVendor::Intel => [0x0F, 0x01, 0xC1],
            ProcessorVendor::Amd => [0x0F, 0x01, 0xD9],
        };
        let mut code = [0xCC; HV_PAGE_SIZE];
        code[..4].copy_from_slice(&[0xF3, 0x0F, 0x1E, 0xFA]);
        code[4..7].copy_from_slice(&call);
        code[7] = 0xC3;
        self.platform
            .write(page << HV_PAGE_SHIFT, &code)
            .map_err(|_| HvStatus::OPERATION_FAILED)
    }

    /// Places or removes an overlay as a page MSR says. A page beyond the
    /// guest's address width is nowhere to be seen.
    fn place_overlay(
        &self,
        partition: &Partition,
        kind: OverlayKind,
        msr: u64,
        spa_page: u64,
        rights: HvMapGpaFlags,
    ) {
        let gpa_page = msr >> HV_PAGE_SHIFT;
        let width = u32::from(self.config.physical_address_bits);
        let visible = msr & HV_PAGE_MSR_ENABLE != 0 && gpa_page >> (width - HV_PAGE_SHIFT) == 0;
        partition.update_gpa(self.platform(), |space: &mut GpaSpace| {
            if visible {
                space.set_overlay(kind, gpa_page, spa_page, rights);
            } else {
                space.remove_overlay(kind);
            }
        });
    }

    /// HV_X64_MSR_GUEST_OS_ID: 0 takes the hypercall page away, unless it is
    /// locked.
    pub(crate) fn set_guest_os_id(&self, partition: &Partition, value: u64) {
        let disable = {
            let mut guest = partition.guest.lock();
            guest.os_id = value;
            let enabled = guest.hypercall & HV_PAGE_MSR_ENABLE != 0;
            let disable = value == 0 && enabled && guest.hypercall & HV_HYPERCALL_MSR_LOCKED == 0;
            if disable {
                guest.hypercall &= !HV_PAGE_MSR_ENABLE;
            }
            disable
        };
        if disable {
            partition.update_gpa(self.platform(), |space| {
                space.remove_overlay(OverlayKind::Hypercall);
            });
        }
    }

    /// HV_X64_MSR_HYPERCALL. False when it is locked, or when it names a page
    /// beyond the guest's address width (TLFS 3.13: #GP); without a guest OS
    /// id the page stays disabled.
    pub(crate) fn set_hypercall_msr(&self, partition: &Partition, value: u64) -> bool {
        let (value, page) = {
            let mut guest = partition.guest.lock();
            if guest.hypercall & HV_HYPERCALL_MSR_LOCKED != 0 {
                return guest.hypercall == value;
            }
            let width = u32::from(self.config.physical_address_bits);
            if value & HV_PAGE_MSR_ENABLE != 0 && value >> width != 0 {
                return false;
            }
            let value = if guest.os_id == 0 {
                value & !HV_PAGE_MSR_ENABLE
            } else {
                value
            };
            guest.hypercall = value;
            (value, guest.pages.map_or(0, |[hypercall, _]| hypercall))
        };
        let kind = OverlayKind::Hypercall;
        self.place_overlay(partition, kind, value, page, HvMapGpaFlags::READ_EXECUTE);
        true
    }

    /// Whether the hypercall page is seen at a guest page number.
    pub(crate) fn is_hypercall_page(&self, partition: &Partition, gpa_page: u64) -> bool {
        let msr = partition.guest.lock().hypercall;
        msr & HV_PAGE_MSR_ENABLE != 0 && msr >> HV_PAGE_SHIFT == gpa_page
    }

    /// HV_X64_MSR_REFERENCE_TSC.
    pub(crate) fn set_reference_tsc_msr(&self, partition: &Partition, value: u64) {
        let page = {
            let mut guest = partition.guest.lock();
            guest.reference_tsc = value;
            guest.pages.map_or(0, |[_, tsc]| tsc)
        };
        self.refresh_reference_tsc(partition);
        let rights = HvMapGpaFlags::READABLE;
        self.place_overlay(partition, OverlayKind::ReferenceTsc, value, page, rights);
    }

    /// Writes the reference TSC page anew. Guests read the sequence before
    /// and after; it is 0 in between, which sends them to the MSR.
    pub(crate) fn refresh_reference_tsc(&self, partition: &Partition) {
        let Some([_, page]) = partition.guest.lock().pages else {
            return;
        };
        let spa = page << HV_PAGE_SHIFT;
        let contents = partition.clock.page();
        let body = contents.as_bytes();
        let written = self
            .platform
            .store_u32(spa, 0)
            .and_then(|()| self.platform.write(spa + 4, &body[4..]))
            .and_then(|()| self.platform.store_u32(spa, contents.tsc_sequence));
        // The page was written when the partition was initialized; memory
        // that has vanished since cannot be told to the guest.
        debug_assert!(written.is_ok());
    }

    /// SIMP, SIEFP or VP assist page of a virtual processor.
    pub(crate) fn set_vp_page(&self, partition: &Partition, vp: &Vp, index: u32, value: u64) {
        let page = {
            let mut state = vp.state.lock();
            let VpPages {
                messages,
                event_flags,
                assist,
            } = state.pages;
            match index {
                HV_X64_MSR_SIMP => {
                    state.synic.simp = value;
                    messages
                }
                HV_X64_MSR_SIEFP => {
                    state.synic.siefp = value;
                    event_flags
                }
                _ => {
                    state.assist = value;
                    assist
                }
            }
        };
        let rights = HvMapGpaFlags::READABLE | HvMapGpaFlags::WRITABLE;
        self.place_overlay(partition, overlay_of(index, vp.index), value, page, rights);
    }
}
