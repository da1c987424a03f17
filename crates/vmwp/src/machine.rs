//! One VM between two resets: a partition with its chipset and the threads of
//! its processors.

use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::thread;

use tlfs::{HvInterruptControl, HvInterruptType, HvRegisterName as Name, HvRegisterValue};
use tlfs::{HvX64SegmentRegister, HvX64TableRegister};
use vdev::acpi::{AcpiConfig, build_tables};
use vdev::{
    Chipset, ChipsetConfig, ChipsetEvent, Clock, DeliveryMode, FwCfgConfig, InterruptRequest,
    InterruptSink, SystemClock, TestDeviceConfig,
};
use vid::{
    CrashReport, InterceptHandler, Partition, PartitionConfig, RamRange, VirtualProcessor, VpStop,
};
use vmbus::bus::{Bus, BusConfig, PartitionHost};

use crate::components::Components;
use crate::config::{VmConfig, VmError, VmExit};
use crate::control::{ControlPoint, Running};
use crate::disks::Disks;
use crate::loader::{EntryState, LoadPlan, MemoryMap, SegmentRegister, TableRegister, layout};
use crate::serial::SerialConsole;
use crate::test_device;

/// Addresses that VMBus devices may use, below the I/O APIC.
const LOW_MMIO: std::ops::Range<u64> = 0xf800_0000..0xfec0_0000;
/// Addresses above all RAM that VMBus devices may use: 4 GiB worth.
const HIGH_MMIO_SIZE: u64 = 4 << 30;

/// Where a PC's firmware begins: F000:FFF0. Guests on hardware-reduced ACPI
/// without EFI jump there to reset.
const RESET_VECTOR_GPA: u64 = 0xf_fff0;
/// MOV DX,0CF9h; MOV AL,2; OUT DX,AL; MOV AL,6; OUT DX,AL; HLT; JMP to the HLT.
const RESET_VECTOR: [u8; 12] = [
    0xba, 0xf9, 0x0c, 0xb0, 0x02, 0xee, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd,
];

/// How a run between two resets ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// For good.
    Exit(VmExit),
    /// The guest asks for a reset.
    Reset,
    /// Partita cannot go on.
    Failed(String),
    /// A checked processor has found a difference.
    Difference(String),
}

/// The first reason to end wins.
#[derive(Default)]
pub(crate) struct EndSlot {
    end: Mutex<Option<End>>,
    changed: Condvar,
}

impl EndSlot {
    pub(crate) fn set(&self, end: End) {
        let mut slot = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(end);
        self.changed.notify_all();
    }

    fn wait(&self) -> End {
        let mut slot = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(end) = &*slot {
                return end.clone();
            }
            slot = self
                .changed
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Answers intercepts out of the chipset.
struct Devices {
    chipset: Arc<Chipset>,
    partition: Arc<Partition>,
    end: Arc<EndSlot>,
    timer: OnceLock<thread::Thread>,
}

impl Devices {
    fn event(&self, event: ChipsetEvent) {
        match event {
            ChipsetEvent::PowerOff => self.finish(End::Exit(VmExit::PoweredOff)),
            ChipsetEvent::Reset => self.finish(End::Reset),
            ChipsetEvent::DebugExit { code } => self.finish(End::Exit(VmExit::DebugExit { code })),
            ChipsetEvent::HvTestDevice(request) => test_device::carry_out(&self.partition, request),
            ChipsetEvent::DeadlineChanged => {
                if let Some(timer) = self.timer.get() {
                    timer.unpark();
                }
            }
        }
    }

    fn finish(&self, end: End) {
        self.end.set(end);
        self.partition.stop();
    }

    /// Raises device interrupts as they come due, until the partition stops.
    fn keep_time(&self, clock: &dyn Clock) {
        while !self.partition.stopped() {
            match self.chipset.next_deadline() {
                Some(deadline) => {
                    let wait = deadline.saturating_sub(clock.monotonic());
                    if wait.is_zero() {
                        self.chipset.expire();
                    } else {
                        thread::park_timeout(wait);
                    }
                }
                None => thread::park(),
            }
        }
    }
}

impl InterceptHandler for Devices {
    fn io_read(&self, port: u16, size: u8) -> u32 {
        self.chipset.io_read(port, size)
    }

    fn io_write(&self, port: u16, size: u8, value: u32) {
        if let Some(event) = self.chipset.io_write(port, size, value) {
            self.event(event);
        }
    }

    fn mmio_read(&self, gpa: u64, size: u8) -> u64 {
        self.chipset.mmio_read(gpa, size)
    }

    fn mmio_write(&self, gpa: u64, size: u8, value: u64) {
        self.chipset.mmio_write(gpa, size, value);
    }

    fn eoi(&self, vector: u8) {
        self.chipset.eoi(vector);
    }
}

/// The chipset's interrupts become virtual interrupts of the partition.
struct ToPartition(OnceLock<Weak<Partition>>);

impl InterruptSink for ToPartition {
    fn assert(&self, request: InterruptRequest) {
        let Some(partition) = self.0.get().and_then(Weak::upgrade) else {
            return;
        };
        let kind = match request.mode {
            DeliveryMode::Fixed => HvInterruptType::FIXED,
            DeliveryMode::LowestPriority => HvInterruptType::LOWEST_PRIORITY,
            DeliveryMode::Smi => HvInterruptType::SMI,
            DeliveryMode::Nmi => HvInterruptType::NMI,
            DeliveryMode::Init => HvInterruptType::INIT,
            DeliveryMode::ExtInt => HvInterruptType::EXT_INT,
        };
        let control = HvInterruptControl::new(kind, request.level, request.logical);
        let destination = u64::from(request.destination);
        if let Err(error) = partition.assert_interrupt(control, destination, request.vector) {
            // The guest programmed it: an illegal vector, or nobody there.
            tracing::debug!(%error, ?request, "interrupt not delivered");
        }
    }

    fn set_extint(&self, asserted: bool) {
        let Some(partition) = self.0.get().and_then(Weak::upgrade) else {
            return;
        };
        if asserted {
            let control = HvInterruptControl::new(HvInterruptType::LOCAL_INT0, false, false);
            if let Err(error) = partition.assert_interrupt(control, 0, 0) {
                tracing::debug!(%error, "LINT0 not asserted");
            }
        }
    }
}

/// Boots the VM once and runs it to its end or reset.
pub(crate) fn run_once(
    config: &VmConfig,
    plan: &LoadPlan<'_>,
    console: &SerialConsole,
    disks: &Disks,
    point: &ControlPoint,
) -> Result<End, VmError> {
    let map = MemoryMap::for_size(config.memory_bytes);
    let ram = map.ranges().iter().map(|r| RamRange {
        gpa: r.start,
        size: r.end - r.start,
    });
    let partition_config = PartitionConfig {
        processors: config.processors,
        ram: ram.collect(),
        processor_mode: config.processor_mode,
    };
    let (partition, mut processors) = Partition::new(&partition_config).map_err(vm_error)?;
    load(&partition, plan)?;
    place_acpi(&partition, config, &map)?;
    partition
        .write_guest(RESET_VECTOR_GPA, &RESET_VECTOR)
        .map_err(vm_error)?;

    let sink = Arc::new(ToPartition(OnceLock::new()));
    // A new lock is empty.
    let _ = sink.0.set(Arc::downgrade(&partition));
    let clock = Arc::new(SystemClock::new());
    let chipset = Arc::new(Chipset::new(
        chipset_config(config, console),
        sink,
        clock.clone(),
    ));
    console.connect(Some(chipset.clone()));

    let bus = start_bus(&partition, config.processors)?;
    disks
        .connect(&bus, &partition, config.processors)
        .map_err(vm_error)?;
    let components = Components::offer(&bus, &partition).map_err(vm_error)?;

    let end = Arc::new(EndSlot::default());
    let timer = OnceLock::new();
    let devices = Devices {
        chipset,
        partition: partition.clone(),
        end: end.clone(),
        timer,
    };
    for processor in &mut processors {
        processor.set_registers(&memory_types()).map_err(vm_error)?;
        if processor.index() == 0 {
            processor
                .set_registers(&entry_registers(&plan.entry))
                .map_err(vm_error)?;
        }
        processor.resume().map_err(vm_error)?;
    }
    point.set_running(Some(Running {
        partition: Arc::downgrade(&partition),
        chipset: Arc::downgrade(&devices.chipset),
        end: Arc::downgrade(&end),
        components,
    }));
    if config.stop.is_requested() {
        point.end(End::Exit(VmExit::EndedByUser));
    }
    let end = thread::scope(|scope| {
        let devices = &devices;
        let clock = &clock;
        let timekeeper = thread::Builder::new()
            .name("devices".into())
            .spawn_scoped(scope, || {
                // Set once: this is the only thread that does.
                let _ = devices.timer.set(thread::current());
                devices.keep_time(&**clock);
            });
        match timekeeper {
            Ok(_) => {}
            Err(error) => devices.finish(End::Failed(error.to_string())),
        }
        for processor in processors {
            let name = format!("vp{}", processor.index());
            let started = thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, move || run_processor(processor, devices));
            if let Err(error) = started {
                devices.finish(End::Failed(format!(
                    "a processor's thread did not start: {error}"
                )));
            }
        }
        let end = devices.end.wait();
        partition.stop();
        if let Some(timer) = devices.timer.get() {
            timer.unpark();
        }
        end
    });
    point.set_running(None);
    partition.set_notification_sink(None);
    bus.stop();
    disks.disconnect();
    console.connect(None);
    Ok(end)
}

/// The VMBus between the partition and its devices in the root.
fn start_bus(partition: &Arc<Partition>, processors: u32) -> Result<Bus, VmError> {
    let host = Arc::new(PartitionHost::new(partition.clone(), processors));
    let bus = Bus::start(host, BusConfig::default()).map_err(vm_error)?;
    let handle = bus.handle();
    let sink = move |notification| handle.notify(notification).is_ok();
    partition.set_notification_sink(Some(Arc::new(sink)));
    Ok(bus)
}

fn run_processor(mut processor: VirtualProcessor, devices: &Devices) {
    match processor.run(devices) {
        VpStop::Stopped => {}
        VpStop::Reset => devices.finish(End::Reset),
        VpStop::TripleFault {
            rip,
            rsp_cr2_cr3: [rsp, cr2, cr3],
        } => {
            let report = format!(
                "triple fault on processor {} at RIP {rip:#018x} (RSP {rsp:#x}, CR2 {cr2:#x}, \
                 CR3 {cr3:#x})",
                processor.index()
            );
            devices.finish(End::Exit(VmExit::Crashed { report }));
        }
        VpStop::Crash(crash) => {
            let report = crash_report(&crash);
            devices.finish(End::Exit(VmExit::Crashed { report }));
        }
        VpStop::Difference(report) => devices.finish(End::Difference(report)),
        VpStop::Unexpected(what) => {
            devices.finish(End::Failed(format!(
                "processor {} stopped: {what}",
                processor.index()
            )));
        }
    }
    if let Some((steps, excused)) = processor.checked() {
        tracing::info!(steps, excused, "translator and interpreter compared");
    }
    tracing::debug!(
        vp = processor.index(),
        retired = processor.retired(),
        "processor stopped"
    );
}

/// What the guest reported through the crash MSRs, for a person.
fn crash_report(crash: &CrashReport) -> String {
    let [p0, p1, p2, p3, p4] = crash.parameters;
    let mut report = format!(
        "it reported a crash on processor {}: {p0:#x} {p1:#x} {p2:#x} {p3:#x} {p4:#x}",
        crash.vp_index
    );
    if let Some(message) = &crash.message {
        report.push('\n');
        // What a guest says may hold anything; a terminal gets text only.
        let text = String::from_utf8_lossy(message);
        report.extend(
            text.chars()
                .filter(|c| *c == '\n' || *c == '\t' || !c.is_control()),
        );
    }
    report
}

fn vm_error(error: impl std::fmt::Display) -> VmError {
    VmError::Vm(error.to_string())
}

fn load(partition: &Partition, plan: &LoadPlan<'_>) -> Result<(), VmError> {
    for segment in &plan.segments {
        partition
            .write_guest(segment.gpa, segment.bytes())
            .map_err(vm_error)?;
    }
    // The partition's memory is new, so what must be zero is.
    Ok(())
}

fn place_acpi(partition: &Partition, config: &VmConfig, map: &MemoryMap) -> Result<(), VmError> {
    let top = map
        .ranges()
        .last()
        .map_or(0, |range| range.end)
        .max(layout::MMIO_GAP_END);
    let tables = build_tables(&AcpiConfig {
        processors: config.processors,
        base_gpa: layout::ACPI_GPA,
        low_mmio: Some(LOW_MMIO),
        high_mmio: Some(top..top + HIGH_MMIO_SIZE),
        pm_timer: config.test_device,
        ..AcpiConfig::default()
    });
    let tables = tables.map_err(vm_error)?;
    partition
        .write_guest(tables.base_gpa, &tables.blob)
        .map_err(vm_error)
}

fn chipset_config(config: &VmConfig, console: &SerialConsole) -> ChipsetConfig {
    let processors = config.processors as u16;
    ChipsetConfig {
        com1: Some(console.port()),
        com2: None,
        legacy_pic_pit: config.test_device,
        test_devices: config.test_device.then_some(TestDeviceConfig {
            fw_cfg: FwCfgConfig {
                ram_size: config.memory_bytes,
                processors,
                max_processors: processors,
            },
        }),
    }
}

/// The memory type registers as a PC's firmware leaves them: everything
/// write-back but the legacy video area.
fn memory_types() -> Vec<(Name, HvRegisterValue)> {
    const ENABLED_WRITE_BACK: u64 = 0xc06;
    const WRITE_BACK: u64 = 0x0606_0606_0606_0606;
    const FIXED_RANGES: u32 = 11;
    const VIDEO: u32 = 2;
    let mut registers = vec![(Name::MTRR_DEF_TYPE, ENABLED_WRITE_BACK.into())];
    for index in 0..FIXED_RANGES {
        let value = if index == VIDEO { 0 } else { WRITE_BACK };
        registers.push((Name(Name::MTRR_FIX64K00000.0 + index), value.into()));
    }
    registers
}

/// The boot processor's registers as the plan wants them.
fn entry_registers(entry: &EntryState) -> Vec<(Name, HvRegisterValue)> {
    let segment = |register: &SegmentRegister| {
        HvRegisterValue::from(HvX64SegmentRegister {
            base: register.base,
            limit: register.limit,
            selector: register.selector,
            attributes: register.attributes,
        })
    };
    let table = |register: &TableRegister| {
        HvRegisterValue::from(HvX64TableRegister {
            pad: [0; 3],
            limit: register.limit,
            base: register.base,
        })
    };
    let mut registers: Vec<(Name, HvRegisterValue)> = vec![
        (Name::GDTR, table(&entry.gdtr)),
        (Name::IDTR, table(&entry.idtr)),
        (Name::CS, segment(&entry.cs)),
        (Name::TR, segment(&entry.tr)),
        (Name::LDTR, segment(&entry.ldtr)),
    ];
    for name in [Name::DS, Name::ES, Name::FS, Name::GS, Name::SS] {
        registers.push((name, segment(&entry.data)));
    }
    let words = [
        (Name::EFER, entry.efer),
        (Name::CR4, entry.cr4),
        (Name::CR3, entry.cr3),
        (Name::CR0, entry.cr0),
        (Name::RIP, entry.rip),
        (Name::RSP, entry.rsp),
        (Name::RFLAGS, entry.rflags),
        (Name::RAX, entry.rax),
        (Name::RBX, entry.rbx),
        (Name::RSI, entry.rsi),
        (Name::RCX, 0),
        (Name::RDX, 0),
        (Name::RBP, 0),
        (Name::RDI, 0),
    ];
    registers.extend(words.map(|(name, value)| (name, value.into())));
    registers
}
