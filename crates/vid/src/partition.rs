//! A child partition, from its creation to its end.

use crate::observer::{HypercallObserver, observe};
use crate::platform::{HostPlatform, NotificationSink, VpHandle};
use crate::software::SoftwareProcessor;
use crate::space::ChildSpace;
use crate::system_memory::{PAGE_SIZE, SystemMemory};
use crate::virtual_processor::VirtualProcessor;
use hypervisor::{Hypervisor, HypervisorConfig, ProcessorVendor};
use processor::{Config, ProcessorMode, Vp};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tlfs::{
    HvInterruptControl, HvInterruptType, HvMapGpaFlags, HvMessage, HvPartitionCreationFlags,
    HvPartitionId, HvPartitionPropertyCode, HvPortInfo, HvPortType, HvVpIndex,
};
use winhv::{HvError, HvResult, Transport, WinHv};

/// Pages that a partition's pool gets at first, and more per processor.
const POOL_PAGES: u64 = 64;
const POOL_PAGES_PER_VP: u64 = 32;
/// Pages of one large page.
const LARGE: u64 = 512;
/// The hypervisor's root partition.
const ROOT: HvPartitionId = hypervisor::ROOT_PARTITION_ID;

/// A range of guest-physical addresses with RAM behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// First guest-physical address, page-aligned.
    pub gpa: u64,
    /// Bytes, a multiple of the page size.
    pub size: u64,
}

/// What a partition consists of.
#[derive(Clone, Debug)]
pub struct PartitionConfig {
    /// Virtual processors, 1 to 64; their indexes and APIC ids are 0 and up.
    pub processors: u32,
    /// RAM, ascending and apart.
    pub ram: Vec<RamRange>,
    /// How the software processor runs code.
    pub processor_mode: ProcessorMode,
}

/// A partition could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum VidError {
    /// The host gives no memory.
    #[error("the host gives no memory for the partition: {0}")]
    Memory(#[source] std::io::Error),
    /// A hypercall failed.
    #[error("{0}")]
    Hypercall(#[from] HvError),
}

/// A guest-physical range is not all RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest-physical address {0:#x} is not RAM")]
pub struct BadGpa(pub u64);

/// `winhv`'s way to the hypervisor when hosted: a call.
struct Hosted {
    hypervisor: Arc<Hypervisor>,
    observer: Option<HypercallObserver>,
}

impl Transport for Hosted {
    fn hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64 {
        let result = self.hypervisor.root_hypercall(control, input, output);
        observe(self.observer.as_ref(), control, input, output, result)
    }
}

/// A child partition. It is deleted when dropped; its processors must have
/// stopped by then.
pub struct Partition {
    pub(crate) id: HvPartitionId,
    pub(crate) hypervisor: Arc<Hypervisor>,
    pub(crate) platform: Arc<HostPlatform>,
    winhv: WinHv<Hosted>,
    memory: Arc<SystemMemory>,
    ram: Vec<(RamRange, u64)>,
    stopped: AtomicBool,
}

impl Partition {
    /// Creates a partition with its memory and processors. The processors do
    /// not run before [`VirtualProcessor::run`].
    ///
    /// # Errors
    ///
    /// [`VidError`] where the host or the hypervisor refuses.
    pub fn new(config: &PartitionConfig) -> Result<(Arc<Self>, Vec<VirtualProcessor>), VidError> {
        Self::create(config, None)
    }

    /// [`Partition::new`], with an observer of every hypercall that is made
    /// for the partition, from its creation to its deletion.
    ///
    /// # Errors
    ///
    /// As [`Partition::new`].
    pub fn observed(
        config: &PartitionConfig,
        observer: HypercallObserver,
    ) -> Result<(Arc<Self>, Vec<VirtualProcessor>), VidError> {
        Self::create(config, Some(observer))
    }

    fn create(
        config: &PartitionConfig,
        observer: Option<HypercallObserver>,
    ) -> Result<(Arc<Self>, Vec<VirtualProcessor>), VidError> {
        let ram_bytes: u64 = config.ram.iter().map(|range| range.size).sum();
        let pool = POOL_PAGES + POOL_PAGES_PER_VP * u64::from(config.processors);
        let size = ram_bytes.next_multiple_of(LARGE * PAGE_SIZE) + pool * PAGE_SIZE;
        let memory = SystemMemory::new(size, true).map_err(VidError::Memory)?;
        let memory = Arc::new(memory);
        let platform = HostPlatform::new(memory.clone(), crate::tsc::frequency());
        let translate = config.processor_mode != ProcessorMode::Interpret;
        if translate && !processor::translator_supported() {
            tracing::warn!("this host lacks BMI2 or FSGSBASE: guest code is interpreted");
        }
        let processor = Config {
            mode: config.processor_mode,
            ..Config::default()
        };
        let hypervisor = Hypervisor::new(platform.clone(), hypervisor_config(&processor));
        let hypervisor = Arc::new(hypervisor);
        platform.attach(&hypervisor);
        let winhv = WinHv::new(Hosted {
            hypervisor: hypervisor.clone(),
            observer,
        });
        let id = winhv.create_partition(HvPartitionCreationFlags::X2APIC_CAPABLE)?;
        let mut partition = Self {
            id,
            hypervisor,
            platform,
            winhv,
            memory,
            ram: Vec::new(),
            stopped: AtomicBool::new(false),
        };
        let first_pool_page = ram_bytes.next_multiple_of(LARGE * PAGE_SIZE) / PAGE_SIZE;
        partition
            .winhv
            .deposit_memory(id, first_pool_page..first_pool_page + pool)?;
        partition.winhv.initialize_partition(id)?;
        partition.map_ram(&config.ram)?;
        for index in 0..config.processors {
            partition.winhv.create_vp(id, index)?;
        }
        let partition = Arc::new(partition);
        let processors = (0..config.processors)
            .map(|index| partition.processor(index, &processor))
            .collect();
        Ok((partition, processors))
    }

    fn map_ram(&mut self, ranges: &[RamRange]) -> Result<(), VidError> {
        let mut spa_page = 0;
        for &range in ranges {
            let (first, pages) = (range.gpa / PAGE_SIZE, range.size / PAGE_SIZE);
            let rights = HvMapGpaFlags::ALL_RIGHTS;
            // Large pages where both sides are aligned, small ones for the rest.
            let large = if first % LARGE == 0 && spa_page % LARGE == 0 {
                pages / LARGE
            } else {
                0
            };
            let list = (0..large).map(|i| spa_page + i * LARGE);
            self.winhv
                .map_gpa_pages(self.id, first, list, rights | HvMapGpaFlags::LARGE_PAGE)?;
            let done = large * LARGE;
            let list = (done..pages).map(|i| spa_page + i);
            self.winhv
                .map_gpa_pages(self.id, first + done, list, rights)?;
            self.ram.push((range, spa_page * PAGE_SIZE));
            spa_page += pages;
        }
        Ok(())
    }

    fn processor(self: &Arc<Self>, index: HvVpIndex, config: &Config) -> VirtualProcessor {
        let space = ChildSpace::new(self.hypervisor.clone(), self.memory.clone(), self.id);
        let vp = Vp::new(config.clone(), Box::new(space), self.memory.code().clone());
        let handle = VpHandle::new(vp.requests());
        self.platform.add_vp(index, handle.clone());
        VirtualProcessor::new(self.clone(), index, SoftwareProcessor(vp), handle)
    }

    /// Who is told of hypercalls.
    pub(crate) fn observer(&self) -> Option<&HypercallObserver> {
        self.winhv.transport().observer.as_ref()
    }

    /// The partition's id.
    pub fn id(&self) -> HvPartitionId {
        self.id
    }

    /// The system memory behind the partition.
    pub fn memory(&self) -> &Arc<SystemMemory> {
        &self.memory
    }

    /// Who takes what reaches the root's ports from now on. Without anybody,
    /// it is lost.
    pub fn set_notification_sink(&self, sink: Option<NotificationSink>) {
        self.platform.set_sink(sink);
    }

    /// Copies into the guest's RAM.
    ///
    /// # Errors
    ///
    /// [`BadGpa`] when not all of the range is RAM; nothing has been written
    /// beyond the part that is.
    pub fn write_guest(&self, gpa: u64, data: &[u8]) -> Result<(), BadGpa> {
        self.for_pieces(gpa, data.len(), |spa, piece| {
            self.memory.write(spa, &data[piece])
        })
    }

    /// Copies out of the guest's RAM.
    ///
    /// # Errors
    ///
    /// [`BadGpa`] when not all of the range is RAM.
    pub fn read_guest(&self, gpa: u64, data: &mut [u8]) -> Result<(), BadGpa> {
        self.for_pieces(gpa, data.len(), |spa, piece| {
            self.memory.read(spa, &mut data[piece])
        })
    }

    /// Cuts a guest range at the borders of the RAM ranges.
    fn for_pieces(
        &self,
        gpa: u64,
        length: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>) -> Result<(), hypervisor::BadSpa>,
    ) -> Result<(), BadGpa> {
        let mut done = 0;
        while done < length {
            let at = gpa.checked_add(done as u64).ok_or(BadGpa(gpa))?;
            let found = self
                .ram
                .iter()
                .find(|(range, _)| at.wrapping_sub(range.gpa) < range.size);
            let Some((range, spa)) = found else {
                return Err(BadGpa(at));
            };
            let offset = at - range.gpa;
            let here = (range.size - offset).min((length - done) as u64) as usize;
            each(spa + offset, done..done + here).map_err(|_| BadGpa(at))?;
            done += here;
        }
        Ok(())
    }

    /// Delivers an interrupt (HvCallAssertVirtualInterrupt).
    ///
    /// # Errors
    ///
    /// The hypervisor's status: an illegal vector, say.
    pub fn assert_interrupt(
        &self,
        control: HvInterruptControl,
        destination: u64,
        vector: u8,
    ) -> HvResult {
        self.winhv
            .assert_virtual_interrupt(self.id, control, destination, vector)
    }

    /// Injects an NMI (HvCallAssertVirtualInterrupt with the NMI type).
    ///
    /// # Errors
    ///
    /// The hypervisor's status: no such processor, say.
    pub fn inject_nmi(&self, vp: HvVpIndex) -> HvResult {
        let control = HvInterruptControl::new(HvInterruptType::NMI, false, false);
        self.assert_interrupt(control, u64::from(vp), 0)
    }

    /// Makes a port of the child, and a connection of the root to it, both
    /// with number `id` (HvCallCreatePort, HvCallConnectPort).
    ///
    /// # Errors
    ///
    /// The hypervisor's status: a number that is taken, say.
    pub fn open_child_port(&self, id: u32, info: HvPortInfo) -> HvResult {
        let kind = info.port_type;
        self.winhv.create_port(self.id, id, ROOT, info)?;
        self.winhv
            .connect_port(ROOT, id, self.id, id, kind)
            .inspect_err(|_| {
                // The port without its connection is of no use.
                let _ = self.winhv.delete_port(self.id, id);
            })
    }

    /// Undoes [`Partition::open_child_port`].
    ///
    /// # Errors
    ///
    /// The hypervisor's status: no such connection.
    pub fn close_child_port(&self, id: u32) -> HvResult {
        self.winhv.disconnect_port(ROOT, id)?;
        self.winhv.delete_port(self.id, id)
    }

    /// Makes a port of the root, and a connection of the child to it.
    ///
    /// # Errors
    ///
    /// The hypervisor's status.
    pub fn open_root_port(&self, id: u32, connection: u32, info: HvPortInfo) -> HvResult {
        let kind = info.port_type;
        self.winhv.create_port(ROOT, id, self.id, info)?;
        self.winhv
            .connect_port(self.id, connection, ROOT, id, kind)
            .inspect_err(|_| {
                let _ = self.winhv.delete_port(ROOT, id);
            })
    }

    /// Undoes [`Partition::open_root_port`].
    ///
    /// # Errors
    ///
    /// The hypervisor's status.
    pub fn close_root_port(&self, id: u32, connection: u32) -> HvResult {
        self.winhv.disconnect_port(self.id, connection)?;
        self.winhv.delete_port(ROOT, id)
    }

    /// Connects the child to one of its own ports, so that it can signal
    /// itself or another of its processors.
    ///
    /// # Errors
    ///
    /// The hypervisor's status.
    pub fn open_loop_port(&self, port: u32, connection: u32, info: HvPortInfo) -> HvResult {
        let kind: HvPortType = info.port_type;
        self.winhv.create_port(self.id, port, self.id, info)?;
        self.winhv
            .connect_port(self.id, connection, self.id, port, kind)
            .inspect_err(|_| {
                let _ = self.winhv.delete_port(self.id, port);
            })
    }

    /// Undoes [`Partition::open_loop_port`].
    ///
    /// # Errors
    ///
    /// The hypervisor's status.
    pub fn close_loop_port(&self, port: u32, connection: u32) -> HvResult {
        self.winhv.disconnect_port(self.id, connection)?;
        self.winhv.delete_port(self.id, port)
    }

    /// Posts a message straight to a SINT (HvCallPostMessageDirect).
    ///
    /// # Errors
    ///
    /// The hypervisor's status: the SINT's queue is full, say.
    pub fn post_message(&self, vp: HvVpIndex, sint: u8, message: &HvMessage) -> HvResult {
        self.winhv.post_message_direct(self.id, vp, sint, message)
    }

    /// Sets an event flag of a SINT (HvCallSignalEventDirect); true when it
    /// was clear.
    ///
    /// # Errors
    ///
    /// The hypervisor's status: the SINT is masked, say.
    pub fn signal_event(&self, vp: HvVpIndex, sint: u8, flag: u16) -> HvResult<bool> {
        self.winhv.signal_event_direct(self.id, vp, sint, flag)
    }

    /// The vector of a SINT, if it is unmasked.
    pub fn sint_vector(&self, vp: HvVpIndex, sint: u8) -> Option<u8> {
        let name = tlfs::HvRegisterName::sint(u32::from(sint));
        let value = self.winhv.vp_register(self.id, vp, name).ok()?.as_u64();
        let masked = value & 1 << 16 != 0;
        (!masked).then_some(value as u8)
    }

    /// The partition's reference time, 100 ns units since its creation.
    pub fn reference_time(&self) -> u64 {
        self.hypervisor.reference_time(self.id).unwrap_or(0)
    }

    /// Makes every processor's [`VirtualProcessor::run`] return.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Brings those in the guest out of it; refused only where the
        // partition is gone already.
        let code = HvPartitionPropertyCode::SUSPEND;
        let _ = self.winhv.set_partition_property(self.id, code, 1);
        self.platform.kick_all();
    }

    /// [`Partition::stop`] was called.
    pub fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        self.platform.remove_vps();
        // Refused only when it is gone already.
        let _ = self.winhv.finalize_partition(self.id);
        let _ = self.winhv.delete_partition(self.id);
    }
}

fn hypervisor_config(processor: &Config) -> HypervisorConfig {
    let vendor = if processor.features.is_amd() {
        ProcessorVendor::Amd
    } else {
        ProcessorVendor::Intel
    };
    HypervisorConfig {
        vendor,
        physical_address_bits: processor.physical_bits as u8,
        ..HypervisorConfig::default()
    }
}
