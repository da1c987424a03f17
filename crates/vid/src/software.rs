//! The software processor as the hypervisor's [`Processor`].

use crate::registers;
use hypervisor::processor::{
    Completion, CpuMode, Exception, Exit, Injection, InstructionBytes, Interruptibility,
    InvalidRegister, Processor, TlbFlush, TranslateAccess, TranslateError,
};
use processor::{Event, Vp, rflags, seg};
use tlfs::{HvRegisterName, HvRegisterValue};

/// A [`Vp`] behind the hypervisor's trait.
pub(crate) struct SoftwareProcessor(pub(crate) Vp);

impl Processor for SoftwareProcessor {
    fn run(&mut self) -> Exit {
        exit(self.0.run())
    }

    fn complete(&mut self, completion: Completion) {
        self.0.complete(match completion {
            Completion::Done => processor::Completion::Done,
            Completion::Retry => processor::Completion::Retry,
            Completion::Value(value) => processor::Completion::Value(value),
            Completion::Cpuid(values) => processor::Completion::Cpuid(values),
            Completion::Fault(Exception { vector, error_code }) => processor::Completion::Fault {
                vector,
                error: error_code.unwrap_or(0),
            },
        });
    }

    fn inject(&mut self, event: Injection) {
        self.0.inject(match event {
            Injection::Interrupt(vector) => Event::Interrupt(vector),
            Injection::Nmi => Event::Nmi,
            Injection::Exception(Exception { vector, error_code }) => Event::Exception {
                vector,
                error: error_code.unwrap_or(0),
            },
        });
    }

    fn interruptibility(&self) -> Interruptibility {
        Interruptibility {
            interrupt: self.0.can_interrupt(),
            nmi: self.0.can_nmi(),
        }
    }

    fn request_interrupt_window(&mut self, requested: bool) {
        self.0.request_interrupt_window(requested);
    }

    fn request_nmi_window(&mut self, requested: bool) {
        self.0.request_nmi_window(requested);
    }

    fn gpr(&self, index: usize) -> u64 {
        if index < 16 {
            self.0.state().gpr[index]
        } else {
            0
        }
    }

    fn set_gpr(&mut self, index: usize, value: u64) {
        if index < 16 {
            self.0.set_general(index, value);
        }
    }

    fn xmm(&self, index: usize) -> u128 {
        self.0.state().fpu.xmm(index)
    }

    fn set_xmm(&mut self, index: usize, value: u128) {
        self.0.set_xmm(index, value);
    }

    fn cpl(&self) -> u8 {
        self.0.state().cpl
    }

    fn mode(&self) -> CpuMode {
        let state = self.0.state();
        if !state.protected() {
            CpuMode::Real
        } else if state.system_flags & rflags::VM != 0 {
            CpuMode::Virtual8086
        } else if !state.long_mode() {
            CpuMode::Protected
        } else if state.seg[seg::CS].long() {
            CpuMode::Long64
        } else {
            CpuMode::Compatibility
        }
    }

    fn register(&self, name: HvRegisterName) -> Option<HvRegisterValue> {
        registers::get(&self.0, name)
    }

    fn set_register(
        &mut self,
        name: HvRegisterName,
        value: HvRegisterValue,
    ) -> Result<(), InvalidRegister> {
        registers::set(&mut self.0, name, value)
    }

    fn reset(&mut self, power_on: bool) {
        self.0.reset(power_on);
    }

    fn startup(&mut self, vector: u8) {
        self.0.startup(vector);
    }

    fn flush_tlb(&mut self, flush: TlbFlush) {
        match flush {
            TlbFlush::All | TlbFlush::NonGlobal => self.0.flush_tlb(),
            TlbFlush::Page(linear) => self.0.flush_page(linear),
        }
    }

    fn gpa_space_changed(&mut self) {
        self.0.gpa_space_changed();
    }

    fn translate(&mut self, gva: u64, access: TranslateAccess) -> Result<u64, TranslateError> {
        let request = processor::TranslateRequest {
            write: access.write,
            execute: access.execute,
            user: access.user,
            exempt: access.exempt,
            mark: access.set_page_table_bits,
        };
        self.0.translate(gva, request).map_err(|error| match error {
            processor::TranslateFailure::NotPresent => TranslateError::NotPresent,
            processor::TranslateFailure::Protection => TranslateError::PrivilegeViolation,
            processor::TranslateFailure::Reserved => TranslateError::InvalidPageTableFlags,
            processor::TranslateFailure::NoMemory => TranslateError::GpaUnmapped,
        })
    }

    fn tsc(&self) -> u64 {
        processor::tsc().wrapping_add(self.0.state().tsc_offset)
    }

    fn instruction_bytes(&self) -> InstructionBytes {
        // The software processor tells the decoded access itself; nobody has
        // to decode the instruction again.
        InstructionBytes::default()
    }
}

fn exit(exit: processor::Exit) -> Exit {
    use processor::Exit as From;
    match exit {
        From::Hypercall => Exit::Hypercall,
        From::Cpuid {
            leaf,
            subleaf,
            default,
        } => Exit::Cpuid {
            leaf,
            subleaf,
            default,
        },
        From::ReadMsr { index } => Exit::ReadMsr { index },
        From::WriteMsr { index, value } => Exit::WriteMsr { index, value },
        From::ReadCr8 => Exit::ReadCr8,
        From::WriteCr8 { value } => Exit::WriteCr8 { value },
        From::IoRead { port, size } => Exit::IoRead { port, size },
        From::IoWrite { port, size, value } => Exit::IoWrite { port, size, value },
        From::MmioRead { gpa, size } => Exit::MmioRead { gpa, size },
        From::MmioWrite { gpa, size, value } => Exit::MmioWrite { gpa, size, value },
        From::Halt => Exit::Halt,
        From::InterruptWindow => Exit::InterruptWindow,
        From::Kicked => Exit::Kicked,
        From::TripleFault => Exit::TripleFault,
    }
}
