//! Tests of the hypervisor against a processor that plays a script.

mod abi;
mod calls;
mod cpuid;
mod flush;
mod gpa;
mod intercepts;
mod interrupts;
mod partitions;
mod registers;
mod synic;
mod time;

use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::vec;
use std::vec::Vec;

use tlfs::*;
use winhv::{Transport, WinHv};
use zerocopy::IntoBytes;

use crate::processor::*;
use crate::*;

pub(super) const MEMORY_PAGES: u64 = 4096;
pub(super) const TSC_HZ: u64 = 2_500_000_000;

/// Memory, a clock that is set by hand, and records of what was asked.
pub(super) struct FakePlatform {
    memory: Mutex<Vec<u8>>,
    pub(super) tsc: Arc<AtomicU64>,
    pub(super) kicks: Mutex<Vec<u32>>,
    pub(super) kicked: Arc<[AtomicBool; 8]>,
    pub(super) timers: Mutex<BTreeMap<u32, Option<u64>>>,
    pub(super) notifications: Mutex<Vec<RootNotification>>,
}

impl FakePlatform {
    pub(super) fn new() -> Self {
        Self {
            memory: Mutex::new(vec![0; (MEMORY_PAGES << 12) as usize]),
            tsc: Arc::new(AtomicU64::new(1_000_000)),
            kicks: Mutex::default(),
            kicked: Arc::default(),
            timers: Mutex::default(),
            notifications: Mutex::default(),
        }
    }

    /// Lets `units` of 100 ns pass.
    pub(super) fn advance(&self, units: u64) {
        self.tsc
            .fetch_add(units * (TSC_HZ / 10_000_000), Ordering::SeqCst);
    }

    pub(super) fn bytes(&self, spa: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.read(spa, &mut data).unwrap();
        data
    }
}

impl Platform for FakePlatform {
    fn read(&self, spa: u64, data: &mut [u8]) -> Result<(), BadSpa> {
        let start = usize::try_from(spa).map_err(|_| BadSpa)?;
        let memory = self.memory.lock().unwrap();
        let source = memory
            .get(start..)
            .and_then(|m| m.get(..data.len()))
            .ok_or(BadSpa)?;
        data.copy_from_slice(source);
        Ok(())
    }

    fn write(&self, spa: u64, data: &[u8]) -> Result<(), BadSpa> {
        let start = usize::try_from(spa).map_err(|_| BadSpa)?;
        let mut memory = self.memory.lock().unwrap();
        let end = start.checked_add(data.len()).ok_or(BadSpa)?;
        memory
            .get_mut(start..end)
            .ok_or(BadSpa)?
            .copy_from_slice(data);
        Ok(())
    }

    fn fetch_or_u32(&self, spa: u64, bits: u32) -> Result<u32, BadSpa> {
        let old = self.load_u32(spa)?;
        self.store_u32(spa, old | bits)?;
        Ok(old)
    }

    fn load_u32(&self, spa: u64) -> Result<u32, BadSpa> {
        let mut data = [0; 4];
        self.read(spa, &mut data)?;
        Ok(u32::from_le_bytes(data))
    }

    fn store_u32(&self, spa: u64, value: u32) -> Result<(), BadSpa> {
        self.write(spa, &value.to_le_bytes())
    }

    fn tsc(&self) -> u64 {
        self.tsc.load(Ordering::SeqCst)
    }

    fn tsc_frequency(&self) -> u64 {
        TSC_HZ
    }

    fn kick(&self, _partition: HvPartitionId, vp: HvVpIndex) {
        self.kicks.lock().unwrap().push(vp);
        self.kicked[vp as usize].store(true, Ordering::SeqCst);
    }

    fn arm_timer(&self, _partition: HvPartitionId, vp: HvVpIndex, time: Option<u64>) {
        self.timers.lock().unwrap().insert(vp, time);
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn root_port_notify(&self, notification: RootNotification) -> bool {
        let mut notifications = self.notifications.lock().unwrap();
        let room = notifications.len() < ROOT_QUEUE;
        if room {
            notifications.push(notification);
        }
        room
    }
}

/// What the root's ports take until a test looks.
pub(super) const ROOT_QUEUE: usize = 8;

/// One step of a script: the guest does something, then exits.
pub(super) type Step = Box<dyn FnOnce(&mut FakeProcessor) -> Exit + Send>;

/// A processor that plays a script, and halts at its end.
pub(super) struct FakeProcessor {
    pub(super) script: VecDeque<Step>,
    pub(super) gprs: [u64; 16],
    pub(super) xmms: [u128; 16],
    pub(super) mode: CpuMode,
    pub(super) cpl: u8,
    pub(super) tsc: Arc<AtomicU64>,
    pub(super) tsc_offset: u64,
    pub(super) registers: BTreeMap<HvRegisterName, HvRegisterValue>,
    pub(super) interruptible: bool,
    pub(super) injections: Vec<Injection>,
    pub(super) completions: Vec<Completion>,
    pub(super) flushes: Vec<TlbFlush>,
    pub(super) space_changes: usize,
    pub(super) interrupt_window: bool,
    pub(super) resets: Vec<bool>,
    pub(super) startups: Vec<u8>,
    pub(super) runs: usize,
}

impl FakeProcessor {
    pub(super) fn new(platform: &FakePlatform) -> Self {
        let names = [
            HvRegisterName::RIP,
            HvRegisterName::RFLAGS,
            HvRegisterName::CR0,
        ];
        Self {
            script: VecDeque::new(),
            gprs: [0; 16],
            xmms: [0; 16],
            mode: CpuMode::Long64,
            cpl: 0,
            tsc: platform.tsc.clone(),
            tsc_offset: 0,
            registers: names.map(|name| (name, HvRegisterValue(0x1234))).into(),
            interruptible: true,
            injections: Vec::new(),
            completions: Vec::new(),
            flushes: Vec::new(),
            space_changes: 0,
            interrupt_window: false,
            resets: Vec::new(),
            startups: Vec::new(),
            runs: 0,
        }
    }

    pub(super) fn then(&mut self, step: impl FnOnce(&mut Self) -> Exit + Send + 'static) {
        self.script.push_back(Box::new(step));
    }

    pub(super) fn exits(&mut self, exits: &[Exit]) {
        for exit in exits.iter().copied() {
            self.then(move |_| exit);
        }
    }

    /// A hypercall with 64-bit registers.
    pub(super) fn hypercall(&mut self, control: u64, input: u64, output: u64) {
        self.then(move |cpu| {
            cpu.gprs[1] = control;
            cpu.gprs[2] = input;
            cpu.gprs[8] = output;
            Exit::Hypercall
        });
    }
}

impl Processor for FakeProcessor {
    fn run(&mut self) -> Exit {
        self.runs += 1;
        match self.script.pop_front() {
            Some(step) => step(self),
            None => Exit::Halt,
        }
    }

    fn complete(&mut self, completion: Completion) {
        self.completions.push(completion);
    }

    fn inject(&mut self, event: Injection) {
        self.injections.push(event);
    }

    fn interruptibility(&self) -> Interruptibility {
        Interruptibility {
            interrupt: self.interruptible,
            nmi: true,
        }
    }

    fn request_interrupt_window(&mut self, requested: bool) {
        self.interrupt_window = requested;
    }

    fn request_nmi_window(&mut self, _requested: bool) {}

    fn gpr(&self, index: usize) -> u64 {
        self.gprs[index]
    }

    fn set_gpr(&mut self, index: usize, value: u64) {
        self.gprs[index] = value;
    }

    fn xmm(&self, index: usize) -> u128 {
        self.xmms[index]
    }

    fn set_xmm(&mut self, index: usize, value: u128) {
        self.xmms[index] = value;
    }

    fn cpl(&self) -> u8 {
        self.cpl
    }

    fn mode(&self) -> CpuMode {
        self.mode
    }

    fn register(&self, name: HvRegisterName) -> Option<HvRegisterValue> {
        self.registers.get(&name).copied()
    }

    fn set_register(
        &mut self,
        name: HvRegisterName,
        value: HvRegisterValue,
    ) -> Result<(), InvalidRegister> {
        if value.0 == 0xBAD {
            return Err(InvalidRegister::InvalidValue);
        }
        let slot = self
            .registers
            .get_mut(&name)
            .ok_or(InvalidRegister::UnknownName)?;
        *slot = value;
        Ok(())
    }

    fn reset(&mut self, power_on: bool) {
        self.resets.push(power_on);
    }

    fn startup(&mut self, vector: u8) {
        self.startups.push(vector);
    }

    fn flush_tlb(&mut self, flush: TlbFlush) {
        self.flushes.push(flush);
    }

    fn gpa_space_changed(&mut self) {
        self.space_changes += 1;
    }

    fn translate(&mut self, gva: u64, access: TranslateAccess) -> Result<u64, TranslateError> {
        match gva >> 12 {
            0xBAD => Err(TranslateError::NotPresent),
            0xFEE if access.write => Err(TranslateError::PrivilegeViolation),
            _ => Ok(gva),
        }
    }

    fn tsc(&self) -> u64 {
        self.tsc
            .load(Ordering::SeqCst)
            .wrapping_add(self.tsc_offset)
    }

    fn instruction_bytes(&self) -> InstructionBytes {
        InstructionBytes {
            bytes: [0x90; 16],
            length: 2,
        }
    }
}

/// The transport of the root.
#[derive(Clone)]
pub(super) struct Root(pub(super) Arc<Hypervisor>);

impl Transport for Root {
    fn hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64 {
        self.0.root_hypercall(control, input, output)
    }
}

/// A hypervisor with one child. The child's guest pages 0 to 255 are system
/// pages 0x100 to 0x1FF; its pool is at 0x800.
pub(super) struct Machine {
    pub(super) platform: Arc<FakePlatform>,
    pub(super) hypervisor: Arc<Hypervisor>,
    pub(super) winhv: WinHv<Root>,
    pub(super) child: HvPartitionId,
}

pub(super) const RAM_SPA_PAGE: u64 = 0x100;
pub(super) const RAM_PAGES: u64 = 0x100;

impl Machine {
    /// With all privileges but those that make it a root.
    pub(super) fn new(vps: u32) -> Self {
        Self::with_privileges(
            vps,
            HvPartitionPrivilegeMask::all() - HvPartitionPrivilegeMask::CPU_MANAGEMENT,
        )
    }

    pub(super) fn with_privileges(vps: u32, privileges: HvPartitionPrivilegeMask) -> Self {
        let platform = Arc::new(FakePlatform::new());
        let config = HypervisorConfig::default();
        let hypervisor = Arc::new(Hypervisor::new(platform.clone(), config));
        let winhv = WinHv::new(Root(hypervisor.clone()));
        let flags =
            HvPartitionCreationFlags::LAPIC_ENABLED | HvPartitionCreationFlags::X2APIC_CAPABLE;
        let child = winhv.create_partition(flags).unwrap();
        let code = HvPartitionPropertyCode::PRIVILEGE_FLAGS;
        winhv
            .set_partition_property(child, code, privileges.bits())
            .unwrap();
        winhv
            .deposit_memory(child, 0x800..0x800 + 2 + 3 * u64::from(vps))
            .unwrap();
        winhv.initialize_partition(child).unwrap();
        winhv
            .map_gpa_pages(
                child,
                0,
                RAM_SPA_PAGE..RAM_SPA_PAGE + RAM_PAGES,
                HvMapGpaFlags::ALL_RIGHTS,
            )
            .unwrap();
        for vp in 0..vps {
            winhv.create_vp(child, vp).unwrap();
            winhv.set_explicit_suspend(child, vp, false).unwrap();
        }
        Self {
            platform,
            hypervisor,
            winhv,
            child,
        }
    }

    pub(super) fn cpu(&self) -> FakeProcessor {
        FakeProcessor::new(&self.platform)
    }

    /// Runs a virtual processor, waking it from the halt that ends scripts.
    pub(super) fn run(&self, vp: u32, cpu: &mut FakeProcessor) -> RunOutcome {
        if let Some(vp) = self
            .hypervisor
            .partition(self.child)
            .and_then(|child| child.vp(vp))
        {
            vp.state.lock().halt = crate::vp::Halt::None;
        }
        self.resume(vp, cpu)
    }

    /// Runs a virtual processor, halted or not.
    pub(super) fn resume(&self, vp: u32, cpu: &mut FakeProcessor) -> RunOutcome {
        self.hypervisor.run_vp(self.child, vp, cpu)
    }

    /// Runs one exit on VP 0; its completion.
    pub(super) fn exit(&self, cpu: &mut FakeProcessor, exit: Exit) -> Option<Completion> {
        cpu.completions.clear();
        cpu.exits(&[exit]);
        let outcome = self.run(0, cpu);
        assert_eq!(outcome, RunOutcome::Halted);
        cpu.completions.pop()
    }

    pub(super) fn wrmsr(&self, cpu: &mut FakeProcessor, index: u32, value: u64) {
        let completion = self.exit(cpu, Exit::WriteMsr { index, value });
        assert_eq!(completion, Some(Completion::Done), "WRMSR {index:#x}");
    }

    pub(super) fn wrmsr_faults(&self, cpu: &mut FakeProcessor, index: u32, value: u64) {
        let completion = self.exit(cpu, Exit::WriteMsr { index, value });
        let fault = Completion::Fault(Exception::GENERAL_PROTECTION);
        assert_eq!(completion, Some(fault), "WRMSR {index:#x}");
    }

    pub(super) fn rdmsr(&self, cpu: &mut FakeProcessor, index: u32) -> Option<u64> {
        match self.exit(cpu, Exit::ReadMsr { index }) {
            Some(Completion::Value(value)) => Some(value),
            Some(Completion::Fault(Exception::GENERAL_PROTECTION)) => None,
            other => panic!("RDMSR {index:#x}: {other:?}"),
        }
    }

    pub(super) fn write_guest(&self, gpa: u64, data: &[u8]) {
        self.platform
            .write(gpa + (RAM_SPA_PAGE << 12), data)
            .unwrap();
    }

    pub(super) fn read_guest(&self, gpa: u64, length: usize) -> Vec<u8> {
        self.platform.bytes(gpa + (RAM_SPA_PAGE << 12), length)
    }

    /// System address behind a guest page now.
    pub(super) fn spa(&self, gpa: u64) -> u64 {
        let map = self.hypervisor.gpa_map(self.child).unwrap();
        map.lookup(gpa >> 12).unwrap().spa_page << 12
    }

    /// The guest sets the hypercall page up at guest page 0x10.
    pub(super) fn enable_hypercalls(&self, cpu: &mut FakeProcessor) {
        self.wrmsr(cpu, HV_X64_MSR_GUEST_OS_ID, 0x8100_0000_0000_0000);
        self.wrmsr(cpu, HV_X64_MSR_HYPERCALL, HvPageMsr::enabled_at(0x10).0);
    }

    /// A hypercall of VP 0 through memory: input at 0x20000, output at
    /// 0x21000; its result.
    pub(super) fn guest_call(&self, cpu: &mut FakeProcessor, control: u64, input: &[u8]) -> u64 {
        self.write_guest(0x20000, input);
        cpu.hypercall(control, 0x20000, 0x21000);
        cpu.gprs[0] = u64::MAX;
        assert_eq!(self.run(0, cpu), RunOutcome::Halted);
        cpu.gprs[0]
    }

    pub(super) fn enable_apic(&self, vp: u32) {
        let partition = self.hypervisor.partition(self.child).unwrap();
        let vp = partition.vp(vp).unwrap();
        let mut effects = Vec::new();
        vp.state
            .lock()
            .apic
            .write_mmio(0xF0, 0x1FF, 0, &mut effects);
    }
}

pub(super) fn status<T: core::fmt::Debug>(result: Result<T, winhv::HvError>) -> HvStatus {
    result.unwrap_err().status
}
