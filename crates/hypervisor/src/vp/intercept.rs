//! Intercepts: messages to the parent, and its answers (TLFS 2.0a chapter 9).

use alloc::boxed::Box;

use tlfs::{
    HvInterceptAccessType, HvMessage, HvMessageType, HvRegisterName as Name,
    HvX64CpuidInterceptMessage, HvX64HypercallInterceptMessage, HvX64InterceptMessageHeader,
    HvX64IoPortInterceptMessage, HvX64MemoryInterceptMessage, HvX64MsrInterceptMessage,
    HvX64SegmentRegister, HvX64UnrecoverableExceptionMessage,
};

use super::run::Execution;
use super::{InterceptKind, PendingIntercept, RunOutcome, VpState};
use crate::processor::{Completion, CpuMode};

/// A memory access that the parent is to answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) gpa: u64,
    /// 0 when not known.
    pub(super) size: u8,
    pub(super) write: Option<u64>,
}

impl Execution<'_> {
    /// Suspends the virtual processor and hands the message out.
    pub(super) fn intercept(&mut self, kind: InterceptKind, message: HvMessage) -> RunOutcome {
        let mut state = self.vp.state.lock();
        state.intercept_suspend = true;
        state.intercept = Some(PendingIntercept { kind, answer: None });
        RunOutcome::Intercept(Box::new(message))
    }

    /// Completes the instruction of an intercept that the parent has ended.
    pub(super) fn resume_intercept(&mut self, state: &mut VpState) {
        let Some(intercept) = state.intercept.take() else {
            return;
        };
        if intercept.kind == InterceptKind::Event {
            return;
        }
        if let Some(exception) = state.pending_exception.take() {
            return self.cpu.complete(Completion::Fault(exception));
        }
        // Without an answer the virtual processor goes on at its RIP, as the
        // TLFS has it: the parent may have moved that.
        let completion = match (intercept.kind, intercept.answer) {
            (InterceptKind::Read, Some(value)) => Completion::Value(value as u64),
            (InterceptKind::Write, Some(_)) => Completion::Done,
            (InterceptKind::Cpuid, Some(value)) => Completion::Cpuid(registers(value)),
            (InterceptKind::Hypercall, Some(value)) => {
                self.cpu.set_gpr(0, value as u64);
                Completion::Done
            }
            _ => Completion::Retry,
        };
        self.cpu.complete(completion);
    }

    fn register(&self, name: Name) -> u64 {
        self.cpu.register(name).unwrap_or_default().as_u64()
    }

    fn segment(&self, name: Name) -> HvX64SegmentRegister {
        self.cpu.register(name).unwrap_or_default().as_segment()
    }
}

/// Four 32-bit registers, the first in the lowest bits.
fn registers(value: u128) -> [u32; 4] {
    [
        value as u32,
        (value >> 32) as u32,
        (value >> 64) as u32,
        (value >> 96) as u32,
    ]
}

fn header(execution: &Execution<'_>, access: HvInterceptAccessType) -> HvX64InterceptMessageHeader {
    let cpu = &*execution.cpu;
    let cr8 = execution.vp.state.lock().apic.tpr() >> 4;
    let mut execution_state = u16::from(cpu.cpl() & 3);
    execution_state |= u16::from(cpu.mode() != CpuMode::Real) << 2;
    let long = matches!(cpu.mode(), CpuMode::Long64 | CpuMode::Compatibility);
    execution_state |= u16::from(long) << 4;
    HvX64InterceptMessageHeader {
        vp_index: execution.vp.index,
        instruction_length_and_cr8: cpu.instruction_bytes().length & 0xF | cr8 << 4,
        intercept_access_type: access,
        execution_state,
        cs_segment: execution.segment(Name::CS),
        rip: execution.register(Name::RIP),
        rflags: execution.register(Name::RFLAGS),
    }
}

fn direction(write: bool) -> HvInterceptAccessType {
    if write {
        HvInterceptAccessType::WRITE
    } else {
        HvInterceptAccessType::READ
    }
}

/// X64_IO_PORT_INTERCEPT. The low bytes of RAX are the value written, also
/// for an element of OUTS.
pub(super) fn io_port(
    execution: &Execution<'_>,
    port: u16,
    size: u8,
    write: Option<u32>,
) -> HvMessage {
    let bytes = execution.cpu.instruction_bytes();
    let rax = execution.cpu.gpr(0);
    let rax = match write {
        Some(value) => {
            let mask = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 4)));
            rax & !mask | u64::from(value) & mask
        }
        None => rax,
    };
    let body = HvX64IoPortInterceptMessage {
        header: header(execution, direction(write.is_some())),
        port_number: port,
        access_info: size & 7,
        instruction_byte_count: bytes.length,
        reserved: 0,
        rax,
        instruction_bytes: bytes.bytes,
        ds_segment: execution.segment(Name::DS),
        es_segment: execution.segment(Name::ES),
        rcx: execution.cpu.gpr(1),
        rsi: execution.cpu.gpr(6),
        rdi: execution.cpu.gpr(7),
    };
    HvMessage::from_body(HvMessageType::X64_IO_PORT_INTERCEPT, &body)
}

/// UNMAPPED_GPA, or GPA_INTERCEPT where something is mapped.
pub(super) fn memory(execution: &Execution<'_>, access: Access) -> HvMessage {
    let bytes = execution.cpu.instruction_bytes();
    let body = HvX64MemoryInterceptMessage {
        header: header(execution, direction(access.write.is_some())),
        instruction_byte_count: bytes.length,
        tpr_priority: execution.vp.state.lock().apic.tpr() >> 4,
        guest_physical_address: access.gpa,
        instruction_bytes: bytes.bytes,
        access_size: access.size.into(),
        write_data: access.write.unwrap_or(0),
        ..HvX64MemoryInterceptMessage::default()
    };
    let mapped = execution
        .partition
        .gpa_map()
        .lookup(access.gpa >> tlfs::HV_PAGE_SHIFT)
        .is_some();
    let message_type = if mapped {
        HvMessageType::GPA_INTERCEPT
    } else {
        HvMessageType::UNMAPPED_GPA
    };
    HvMessage::from_body(message_type, &body)
}

/// X64_MSR_INTERCEPT.
pub(super) fn msr(execution: &Execution<'_>, index: u32, write: Option<u64>) -> HvMessage {
    let body = HvX64MsrInterceptMessage {
        header: header(execution, direction(write.is_some())),
        msr_number: index,
        reserved: 0,
        rdx: write.map_or_else(|| execution.cpu.gpr(2), |value| value >> 32),
        rax: write.map_or_else(|| execution.cpu.gpr(0), |value| value & u64::from(u32::MAX)),
    };
    HvMessage::from_body(HvMessageType::X64_MSR_INTERCEPT, &body)
}

/// X64_CPUID_INTERCEPT with what the hypervisor would answer.
pub(super) fn cpuid(execution: &Execution<'_>, default: [u32; 4]) -> HvMessage {
    let [eax, ebx, ecx, edx] = default.map(u64::from);
    let body = HvX64CpuidInterceptMessage {
        header: header(execution, HvInterceptAccessType::EXECUTE),
        rax: execution.cpu.gpr(0),
        rcx: execution.cpu.gpr(1),
        rdx: execution.cpu.gpr(2),
        rbx: execution.cpu.gpr(3),
        default_result_rax: eax,
        default_result_rcx: ecx,
        default_result_rdx: edx,
        default_result_rbx: ebx,
    };
    HvMessage::from_body(HvMessageType::X64_CPUID_INTERCEPT, &body)
}

/// HYPERCALL_INTERCEPT.
pub(super) fn hypercall(execution: &Execution<'_>) -> HvMessage {
    let gpr = |index| execution.cpu.gpr(index);
    let mut body = HvX64HypercallInterceptMessage {
        header: header(execution, HvInterceptAccessType::EXECUTE),
        rax: gpr(0),
        rbx: gpr(3),
        rcx: gpr(1),
        rdx: gpr(2),
        r8: gpr(8),
        rsi: gpr(6),
        rdi: gpr(7),
        ..HvX64HypercallInterceptMessage::default()
    };
    for (index, register) in body.xmm_registers.iter_mut().enumerate() {
        let value = execution.cpu.xmm(index);
        *register = [value as u64, (value >> 64) as u64];
    }
    HvMessage::from_body(HvMessageType::HYPERCALL_INTERCEPT, &body)
}

/// UNRECOVERABLE_EXCEPTION: a triple fault.
pub(super) fn unrecoverable(execution: &Execution<'_>) -> HvMessage {
    let header = header(execution, HvInterceptAccessType::EXECUTE);
    let body = HvX64UnrecoverableExceptionMessage { header };
    HvMessage::from_body(HvMessageType::UNRECOVERABLE_EXCEPTION, &body)
}
