//! A processor that exits as it is told.

use hypervisor::processor::*;
use std::sync::Arc;
use tlfs::{HvRegisterName, HvRegisterValue};

use super::platform::FakePlatform;
use hypervisor::Platform;

/// Entries to the guest for one input, over which something hangs: a rep call
/// of 4095 elements that is continued after each of them, many times.
const MOST_RUNS: u32 = 200_000;
/// The exit that follows when nothing else is to happen: the hypervisor
/// always asks the parent about ports.
const IDLE: Exit = Exit::IoRead {
    port: 0x80,
    size: 1,
};

/// The processor.
pub(super) struct FakeProcessor {
    platform: Arc<FakePlatform>,
    /// RAX to R15.
    pub(super) gprs: [u64; 16],
    /// XMM0 to XMM15.
    pub(super) xmms: [u128; 16],
    /// What [`Processor::mode`] tells.
    pub(super) mode: CpuMode,
    /// What [`Processor::cpl`] tells.
    pub(super) cpl: u8,
    /// Whether events can be delivered.
    pub(super) interruptible: bool,
    /// The next exit.
    pub(super) next: Option<Exit>,
    last: Exit,
    tsc_offset: u64,
    runs: u32,
}

impl FakeProcessor {
    /// A processor in 64-bit mode.
    pub(super) fn new(platform: Arc<FakePlatform>) -> Self {
        Self {
            platform,
            gprs: [0; 16],
            xmms: [0; 16],
            mode: CpuMode::Long64,
            cpl: 0,
            interruptible: true,
            next: None,
            last: IDLE,
            tsc_offset: 0,
            runs: 0,
        }
    }
}

impl Processor for FakeProcessor {
    fn run(&mut self) -> Exit {
        self.runs += 1;
        assert!(
            self.runs < MOST_RUNS,
            "the virtual processor never comes to rest"
        );
        self.last = self.next.take().unwrap_or(IDLE);
        self.last
    }

    fn complete(&mut self, completion: Completion) {
        match (completion, self.last) {
            (Completion::Retry, exit) => self.next = Some(exit),
            (Completion::Cpuid(_), Exit::Cpuid { .. }) | (Completion::Fault(_), _) => {}
            (Completion::Value(_), Exit::ReadMsr { .. } | Exit::ReadCr8) => {}
            (Completion::Value(_), Exit::IoRead { .. } | Exit::MmioRead { .. }) => {}
            // What a parent completes may be anything; what the hypervisor
            // answers itself must fit.
            (Completion::Cpuid(_), exit) => panic!("CPUID values for {exit:?}"),
            (Completion::Done | Completion::Value(_), _) => {}
        }
    }

    fn inject(&mut self, event: Injection) {
        match event {
            // A parent may set a pending interruption whenever it likes.
            Injection::Interrupt(_) => {}
            Injection::Nmi => assert!(self.interruptible),
            Injection::Exception(_) => {}
        }
    }

    fn interruptibility(&self) -> Interruptibility {
        Interruptibility {
            interrupt: self.interruptible,
            nmi: self.interruptible,
        }
    }

    fn request_interrupt_window(&mut self, _requested: bool) {}

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
        // Every register but a few has a value, which looks like its name.
        (name.0 & 0xf != 0xf).then(|| HvRegisterValue(u128::from(name.0) << 3))
    }

    fn set_register(
        &mut self,
        name: HvRegisterName,
        value: HvRegisterValue,
    ) -> Result<(), InvalidRegister> {
        match (name.0 & 0xf, value.0 & 0xff) {
            (0xf, _) => Err(InvalidRegister::UnknownName),
            (_, 0xff) => Err(InvalidRegister::InvalidValue),
            _ => Ok(()),
        }
    }

    fn reset(&mut self, _power_on: bool) {
        self.next = None;
    }

    fn startup(&mut self, _vector: u8) {}

    fn flush_tlb(&mut self, _flush: TlbFlush) {}

    fn gpa_space_changed(&mut self) {}

    fn translate(&mut self, gva: u64, access: TranslateAccess) -> Result<u64, TranslateError> {
        match gva >> 12 & 7 {
            1 => Err(TranslateError::NotPresent),
            2 if access.write => Err(TranslateError::PrivilegeViolation),
            3 => Err(TranslateError::InvalidPageTableFlags),
            4 => Err(TranslateError::GpaUnmapped),
            _ => Ok(gva),
        }
    }

    fn tsc(&self) -> u64 {
        self.platform.tsc().wrapping_add(self.tsc_offset)
    }

    fn instruction_bytes(&self) -> InstructionBytes {
        InstructionBytes {
            bytes: [0x90; 16],
            length: 15,
        }
    }
}
