//! Hypercalls of a guest: the registers and pages that carry them (TLFS
//! chapter 3).

use alloc::vec;
use alloc::vec::Vec;

use tlfs::{
    HV_FAST_INPUT_SIZE, HV_PAGE_MSR_ENABLE, HV_PAGE_SIZE, HV_XMM_FAST_SIZE, HvFeatures,
    HvHypercallControl, HvHypercallResult, HvPartitionPrivilegeMask, HvStatus,
};

use super::intercept::{self, Access};
use super::run::Execution;
use super::{InterceptKind, RunOutcome};
use crate::guest_memory::{self, GuestAccessError};
use crate::hypercall::{Call, Context, LentProcessor, Progress, REPS_PER_ENTRY, find_call};
use crate::processor::{Completion, CpuMode, Exception};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;
const R8: usize = 8;

/// How a hypercall ends.
enum Ending {
    /// With a result for the guest.
    Result(u64),
    /// To be continued at this rep.
    Continue(usize),
    /// The instruction faults.
    Fault(Exception),
    /// A parameter page cannot be accessed.
    Memory(GuestAccessError, bool),
    /// The parent takes unknown calls.
    Unknown,
}

impl From<HvStatus> for Ending {
    fn from(status: HvStatus) -> Self {
        Self::Result(HvHypercallResult::new(status, 0).0)
    }
}

/// The three 64-bit registers of the calling convention.
struct Words {
    control: HvHypercallControl,
    input: u64,
    output: u64,
}

impl Execution<'_> {
    pub(super) fn hypercall(&mut self) -> Option<RunOutcome> {
        let long = self.cpu.mode() == CpuMode::Long64;
        let words = self.words(long);
        match self
            .try_hypercall(long, &words)
            .unwrap_or_else(|ending| ending)
        {
            Ending::Result(result) => {
                self.set_result(long, result);
                self.complete(Completion::Done)
            }
            Ending::Continue(start) => {
                let control = words.control.with_rep_start(start).0;
                if long {
                    self.cpu.set_gpr(RCX, control);
                } else {
                    self.cpu.set_gpr(RDX, control >> 32);
                    self.cpu.set_gpr(RAX, control & u64::from(u32::MAX));
                }
                self.complete(Completion::Retry)
            }
            Ending::Fault(exception) => self.complete(Completion::Fault(exception)),
            Ending::Memory(error, write) => {
                let (GuestAccessError::Unmapped(gpa) | GuestAccessError::Denied(gpa)) = error;
                let access = Access {
                    gpa,
                    size: 0,
                    write: write.then_some(0),
                };
                let message = intercept::memory(self, access);
                Some(self.intercept(InterceptKind::Retry, message))
            }
            Ending::Unknown => {
                let message = intercept::hypercall(self);
                Some(self.intercept(InterceptKind::Hypercall, message))
            }
        }
    }

    fn words(&self, long: bool) -> Words {
        let pair = |high, low| self.cpu.gpr(high) << 32 | self.cpu.gpr(low) & u64::from(u32::MAX);
        if long {
            Words {
                control: HvHypercallControl(self.cpu.gpr(RCX)),
                input: self.cpu.gpr(RDX),
                output: self.cpu.gpr(R8),
            }
        } else {
            Words {
                control: HvHypercallControl(pair(RDX, RAX)),
                input: pair(RBX, RCX),
                output: pair(RDI, RSI),
            }
        }
    }

    fn set_result(&mut self, long: bool, result: u64) {
        if long {
            self.cpu.set_gpr(RAX, result);
        } else {
            self.cpu.set_gpr(RDX, result >> 32);
            self.cpu.set_gpr(RAX, result & u64::from(u32::MAX));
        }
    }

    /// Hypercalls are for supervisors in protected mode, once the guest has
    /// set up the interface.
    fn may_call(&self) -> bool {
        let mode = self.cpu.mode();
        let guest = self.partition.guest.lock();
        self.cpu.cpl() == 0
            && mode != CpuMode::Real
            && mode != CpuMode::Virtual8086
            && guest.os_id != 0
            && guest.hypercall & HV_PAGE_MSR_ENABLE != 0
    }

    fn try_hypercall(&mut self, long: bool, words: &Words) -> Result<Ending, Ending> {
        if !self.may_call() {
            return Err(Ending::Fault(Exception::INVALID_OPCODE));
        }
        let control = words.control;
        let call = match find_call(control) {
            Ok(call) => call,
            Err(HvStatus::INVALID_HYPERCALL_CODE)
                if self.partition.intercepts.lock().hypercalls =>
            {
                return Err(Ending::Unknown);
            }
            Err(status) => return Err(status.into()),
        };
        let input = self.read_input(call, words)?;
        let output_size = call.output_size(control);
        self.check_output(words, output_size, input.len())?;
        let mut output = vec![0; output_size];
        let end = control
            .rep_count()
            .min(control.rep_start() + REPS_PER_ENTRY);
        let mut context = Context {
            hypervisor: self.hypervisor,
            caller: self.partition.clone(),
            vp: Some(self.vp.clone()),
            cpu: Some(LentProcessor {
                partition: self.partition.id,
                vp: self.vp.index,
                cpu: &mut *self.cpu,
            }),
        };
        let progress = call.run(&mut context, control, end, &input, &mut output);
        self.finish(long, words, input.len(), &output, &progress)
    }

    fn finish(
        &mut self,
        long: bool,
        words: &Words,
        input_size: usize,
        output: &[u8],
        progress: &Progress,
    ) -> Result<Ending, Ending> {
        let wrote = progress.status.is_ok() || progress.reps > words.control.rep_start();
        if wrote && !output.is_empty() {
            self.write_output(long, words, input_size, output)?;
        }
        let status = match progress.status {
            Ok(()) => HvStatus::SUCCESS,
            Err(status) => status,
        };
        if status.is_success() && progress.reps < words.control.rep_count() {
            return Ok(Ending::Continue(progress.reps));
        }
        Ok(Ending::Result(
            HvHypercallResult::new(status, progress.reps).0,
        ))
    }

    /// Guest-physical address width, bits.
    fn gpa_width(&self) -> u32 {
        u32::from(self.hypervisor.config().physical_address_bits)
    }

    /// Reads the whole input once.
    fn read_input(&self, call: &Call, words: &Words) -> Result<Vec<u8>, Ending> {
        let size = call.input_size(words.control);
        let mut input = vec![0; size];
        if words.control.fast() {
            self.read_fast_input(words, &mut input)?;
            return Ok(input);
        }
        if size != 0 {
            check_page(words.input, size, self.gpa_width())?;
            let map = self.partition.gpa_map();
            guest_memory::read(self.platform(), &map, words.input, &mut input)
                .map_err(|error| Ending::Memory(error, false))?;
        }
        Ok(input)
    }

    fn read_fast_input(&self, words: &Words, input: &mut [u8]) -> Result<(), Ending> {
        if input.len() > HV_XMM_FAST_SIZE {
            return Err(HvStatus::INVALID_HYPERCALL_INPUT.into());
        }
        let features = self.hypervisor.config().features;
        if input.len() > HV_FAST_INPUT_SIZE && !features.contains(HvFeatures::XMM_HYPERCALL_INPUT) {
            return Err(Ending::Fault(Exception::INVALID_OPCODE));
        }
        let mut block = [0; HV_XMM_FAST_SIZE];
        block[..8].copy_from_slice(&words.input.to_le_bytes());
        block[8..16].copy_from_slice(&words.output.to_le_bytes());
        for (index, chunk) in block[16..].chunks_exact_mut(16).enumerate() {
            chunk.copy_from_slice(&self.cpu.xmm(index).to_le_bytes());
        }
        input.copy_from_slice(&block[..input.len()]);
        Ok(())
    }

    /// Checks before anything happens that the output has a place.
    fn check_output(&self, words: &Words, size: usize, input_size: usize) -> Result<(), Ending> {
        if size == 0 {
            return Ok(());
        }
        if words.control.fast() {
            let allowed = self
                .hypervisor
                .config()
                .features
                .contains(HvFeatures::XMM_HYPERCALL_OUTPUT)
                && self
                    .partition
                    .may(HvPartitionPrivilegeMask::FAST_HYPERCALL_OUTPUT);
            if !allowed || input_size.next_multiple_of(16) + size > HV_XMM_FAST_SIZE {
                return Err(HvStatus::INVALID_HYPERCALL_INPUT.into());
            }
            return Ok(());
        }
        check_page(words.output, size, self.gpa_width())?;
        guest_memory::check_writable(&self.partition.gpa_map(), words.output, size)
            .map_err(|error| Ending::Memory(error, true))
    }

    fn write_output(
        &mut self,
        long: bool,
        words: &Words,
        input_size: usize,
        output: &[u8],
    ) -> Result<(), Ending> {
        if words.control.fast() {
            self.write_fast_output(long, input_size.next_multiple_of(16), output);
            return Ok(());
        }
        let map = self.partition.gpa_map();
        guest_memory::write(self.platform(), &map, words.output, output)
            .map_err(|error| Ending::Memory(error, true))
    }

    /// Output follows the input in the registers, from a multiple of 16 bytes
    /// on.
    fn write_fast_output(&mut self, long: bool, offset: usize, output: &[u8]) {
        for (index, chunk) in output.chunks(16).enumerate() {
            let mut bytes = [0; 16];
            bytes[..chunk.len()].copy_from_slice(chunk);
            let value = u128::from_le_bytes(bytes);
            match (offset / 16 + index).checked_sub(1) {
                Some(xmm) => self.cpu.set_xmm(xmm, value),
                None if long => {
                    self.cpu.set_gpr(RDX, value as u64);
                    self.cpu.set_gpr(R8, (value >> 64) as u64);
                }
                None => {
                    let half = |shift: u32| (value >> shift) as u64 & u64::from(u32::MAX);
                    self.cpu.set_gpr(RCX, half(0));
                    self.cpu.set_gpr(RBX, half(32));
                    self.cpu.set_gpr(RSI, half(64));
                    self.cpu.set_gpr(RDI, half(96));
                }
            }
        }
    }
}

/// Parameter lists are 8-byte aligned, stay in one page, and lie within the
/// guest-physical address width.
fn check_page(gpa: u64, size: usize, width: u32) -> Result<(), Ending> {
    let offset = gpa as usize & (HV_PAGE_SIZE - 1);
    if !gpa.is_multiple_of(8) || offset + size > HV_PAGE_SIZE || gpa >> width != 0 {
        return Err(HvStatus::INVALID_ALIGNMENT.into());
    }
    Ok(())
}
