//! Exits: what the processor could not finish alone.

use tlfs::{HV_PAGE_SHIFT, HV_PAGE_SIZE, HvInterceptAccessMask};

use super::intercept::{self, Access};
use super::run::Execution;
use super::{Halt, InterceptKind, RunOutcome};
use crate::processor::{Completion, Exception, Exit};

impl Execution<'_> {
    /// Answers an exit; what the hypervisor cannot answer is an intercept.
    pub(super) fn handle_exit(&mut self, exit: Exit) -> Option<RunOutcome> {
        match exit {
            Exit::Hypercall => self.hypercall(),
            Exit::Cpuid {
                leaf,
                subleaf,
                default,
            } => self.cpuid(leaf, subleaf, default),
            Exit::ReadMsr { index } => self.read_msr(index),
            Exit::WriteMsr { index, value } => self.write_msr(index, value),
            Exit::ReadCr8 => {
                let tpr = self.vp.state.lock().apic.tpr();
                self.complete(Completion::Value(u64::from(tpr >> 4)))
            }
            Exit::WriteCr8 { value } => {
                self.vp.state.lock().apic.set_tpr(value << 4);
                self.complete(Completion::Done)
            }
            Exit::IoRead { port, size } => {
                let message = intercept::io_port(self, port, size, None);
                Some(self.intercept(InterceptKind::Read, message))
            }
            Exit::IoWrite { port, size, value } => {
                let message = intercept::io_port(self, port, size, Some(value));
                Some(self.intercept(InterceptKind::Write, message))
            }
            Exit::MmioRead { gpa, size } => self.mmio_read(gpa, size),
            Exit::MmioWrite { gpa, size, value } => self.mmio_write(gpa, size, value),
            Exit::Halt => {
                self.vp.state.lock().halt = Halt::Hlt;
                None
            }
            Exit::InterruptWindow | Exit::Kicked => None,
            Exit::TripleFault => {
                let message = intercept::unrecoverable(self);
                Some(self.intercept(InterceptKind::Event, message))
            }
        }
    }

    /// Completes the exit's instruction and goes on.
    pub(super) fn complete(&mut self, completion: Completion) -> Option<RunOutcome> {
        self.cpu.complete(completion);
        None
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32, default: [u32; 4]) -> Option<RunOutcome> {
        let hypervisor = self.hypervisor;
        let values = super::cpuid::cpuid(
            hypervisor.config(),
            &self.partition,
            &self.vp,
            (leaf, subleaf),
            default,
        );
        if self.partition.intercepts.lock().takes_cpuid(leaf) {
            let message = intercept::cpuid(self, values);
            return Some(self.intercept(InterceptKind::Cpuid, message));
        }
        self.complete(Completion::Cpuid(values))
    }

    fn read_msr(&mut self, index: u32) -> Option<RunOutcome> {
        if let Some(completion) = self.read_own_msr(index) {
            return self.complete(completion);
        }
        if self
            .partition
            .intercepts
            .lock()
            .takes_msr(index, HvInterceptAccessMask::READ)
        {
            let message = intercept::msr(self, index, None);
            return Some(self.intercept(InterceptKind::Read, message));
        }
        let completion = self.unimplemented_msr(Completion::Value(0));
        self.complete(completion)
    }

    fn write_msr(&mut self, index: u32, value: u64) -> Option<RunOutcome> {
        if let Some(completion) = self.write_own_msr(index, value) {
            return self.complete(completion);
        }
        if self
            .partition
            .intercepts
            .lock()
            .takes_msr(index, HvInterceptAccessMask::WRITE)
        {
            let message = intercept::msr(self, index, Some(value));
            return Some(self.intercept(InterceptKind::Write, message));
        }
        let completion = self.unimplemented_msr(Completion::Done);
        self.complete(completion)
    }

    /// Offset in the APIC's register page, if the address is there.
    fn apic_offset(&self, gpa: u64) -> Option<u16> {
        let base = self.vp.state.lock().apic.mmio_base()?;
        let offset = (gpa as usize & (HV_PAGE_SIZE - 1)) as u16;
        (base >> HV_PAGE_SHIFT == gpa >> HV_PAGE_SHIFT).then_some(offset)
    }

    fn mmio_read(&mut self, gpa: u64, size: u8) -> Option<RunOutcome> {
        let Some(offset) = self.apic_offset(gpa) else {
            let access = Access {
                gpa,
                size,
                write: None,
            };
            let message = intercept::memory(self, access);
            return Some(self.intercept(InterceptKind::Read, message));
        };
        let value = self.with_apic(|apic, now, _| {
            // Aligned 32-bit loads are architectural; narrower ones see
            // their bytes of the register.
            u64::from(apic.read_mmio(offset & !3, now)) >> (8 * (offset & 3))
        });
        self.complete(Completion::Value(value & low_bytes(size)))
    }

    fn mmio_write(&mut self, gpa: u64, size: u8, value: u64) -> Option<RunOutcome> {
        let Some(offset) = self.apic_offset(gpa) else {
            // A store to the hypercall page faults (TLFS 3.13).
            if self
                .hypervisor
                .is_hypercall_page(&self.partition, gpa >> HV_PAGE_SHIFT)
            {
                return self.complete(Completion::Fault(Exception::GENERAL_PROTECTION));
            }
            let access = Access {
                gpa,
                size,
                write: Some(value),
            };
            let message = intercept::memory(self, access);
            return Some(self.intercept(InterceptKind::Write, message));
        };
        if offset & 3 == 0 && size >= 4 {
            self.with_apic(|apic, now, effects| {
                apic.write_mmio(offset, value as u32, now, effects);
            });
        }
        self.complete(Completion::Done)
    }
}

/// A mask of the low `size` bytes.
fn low_bytes(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
}
