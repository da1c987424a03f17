//! Handlers of system instructions and of everything that loads segments.

use super::{
    control_registers, debug, event, far, flags_image, iret, msr, port, segment, syscall, system,
    system_tables as tables,
};
use crate::decode::Selected;
use crate::op::{Op, OpFn};
use crate::state::seg;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// The handler for an instruction of this theme.
pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    segments(instruction, op)
        .or_else(|| far_transfers(instruction, op))
        .or_else(|| events(instruction))
        .or_else(|| descriptor_tables(instruction, op))
        .or_else(|| ports(instruction, op))
        .or_else(|| control(instruction, op))
        .or_else(|| misc(instruction, op))
}

fn number(register: Register) -> u8 {
    match register {
        Register::ES => seg::ES as u8,
        Register::CS => seg::CS as u8,
        Register::SS => seg::SS as u8,
        Register::DS => seg::DS as u8,
        Register::FS => seg::FS as u8,
        Register::GS => seg::GS as u8,
        other => other.number() as u8,
    }
}

/// MOV, PUSH and POP of segment registers, far pointer loads.
fn segments(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let first = instruction.op0_register();
    let second = instruction.op1_register();
    match instruction.mnemonic() {
        Mnemonic::Mov if first.is_segment_register() => {
            op.dst = number(first);
            op.src = number(second);
            if first == Register::CS {
                return None;
            }
            Some(Selected {
                run: segment::mov_to_segment,
                ends: first == Register::SS,
            })
        }
        Mnemonic::Mov if second.is_segment_register() => {
            op.dst = number(second);
            op.src = number(first);
            Selected::plain(segment::mov_from_segment)
        }
        Mnemonic::Push if first.is_segment_register() => {
            op.dst = number(first);
            op.size = stack_size(instruction);
            Selected::plain(segment::push_segment)
        }
        Mnemonic::Pop if first.is_segment_register() => {
            op.dst = number(first);
            op.size = stack_size(instruction);
            Some(Selected {
                run: segment::pop_segment,
                ends: first == Register::SS,
            })
        }
        name => {
            op.aux = match name {
                Mnemonic::Lds => seg::DS,
                Mnemonic::Les => seg::ES,
                Mnemonic::Lfs => seg::FS,
                Mnemonic::Lgs => seg::GS,
                Mnemonic::Lss => seg::SS,
                _ => return None,
            } as u8;
            op.dst = number(first);
            op.size = first.size() as u8;
            Some(Selected {
                run: segment::load_far_pointer,
                ends: name == Mnemonic::Lss,
            })
        }
    }
}

/// Bytes that a push or pop moves.
fn stack_size(instruction: &Instruction) -> u8 {
    instruction.stack_pointer_increment().unsigned_abs() as u8
}

fn far_transfers(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let (run, size): (OpFn, u8) = match instruction.code() {
        Code::Jmp_ptr1616 => (far::jump_direct, 2),
        Code::Jmp_ptr1632 => (far::jump_direct, 4),
        Code::Jmp_m1616 => (far::jump_indirect, 2),
        Code::Jmp_m1632 => (far::jump_indirect, 4),
        Code::Jmp_m1664 => (far::jump_indirect, 8),
        Code::Call_ptr1616 => (far::call_direct, 2),
        Code::Call_ptr1632 => (far::call_direct, 4),
        Code::Call_m1616 => (far::call_indirect, 2),
        Code::Call_m1632 => (far::call_indirect, 4),
        Code::Call_m1664 => (far::call_indirect, 8),
        Code::Retfw | Code::Retfw_imm16 => (far::return_far, 2),
        Code::Retfd | Code::Retfd_imm16 => (far::return_far, 4),
        Code::Retfq | Code::Retfq_imm16 => (far::return_far, 8),
        Code::Iretw => (iret::iret, 2),
        Code::Iretd => (iret::iret, 4),
        Code::Iretq => (iret::iret, 8),
        _ => return None,
    };
    match instruction.op0_kind() {
        OpKind::FarBranch16 => {
            op.imm = u64::from(instruction.far_branch16());
            op.disp = u64::from(instruction.far_branch_selector());
        }
        OpKind::FarBranch32 => {
            op.imm = u64::from(instruction.far_branch32());
            op.disp = u64::from(instruction.far_branch_selector());
        }
        _ => {}
    }
    op.size = size;
    Selected::last(run)
}

fn events(instruction: &Instruction) -> Option<Selected> {
    Selected::last(match instruction.mnemonic() {
        Mnemonic::Int => event::int_n,
        Mnemonic::Int3 => event::int3,
        Mnemonic::Into => event::into,
        Mnemonic::Int1 => event::int1,
        Mnemonic::Syscall => syscall::syscall,
        Mnemonic::Sysenter => syscall::sysenter,
        _ => return None,
    })
}

fn descriptor_tables(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run: OpFn = match instruction.mnemonic() {
        Mnemonic::Sgdt => tables::sgdt,
        Mnemonic::Sidt => tables::sidt,
        Mnemonic::Lgdt => tables::lgdt,
        Mnemonic::Lidt => tables::lidt,
        Mnemonic::Sldt => tables::sldt,
        Mnemonic::Str => tables::str,
        Mnemonic::Lldt => tables::lldt,
        Mnemonic::Ltr => tables::ltr,
        Mnemonic::Lar => tables::lar,
        Mnemonic::Lsl => tables::lsl,
        Mnemonic::Verr => tables::verr,
        Mnemonic::Verw => tables::verw,
        Mnemonic::Arpl => tables::arpl,
        _ => return None,
    };
    match instruction.code() {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 => op.size = 2,
        Code::Lgdt_m1632 | Code::Lidt_m1632 => op.size = 4,
        _ => {}
    }
    registers(instruction, op);
    Selected::plain(run)
}

/// Puts ModRM.rm into `src` and ModRM.reg into `dst` for two-operand forms
/// that name the register operand first (LAR) or last (ARPL).
fn registers(instruction: &Instruction, op: &mut Op) {
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    match instruction.mnemonic() {
        Mnemonic::Lar | Mnemonic::Lsl => {
            op.dst = number(first);
            op.src = number(second);
            op.size = first.size() as u8;
        }
        Mnemonic::Arpl => {
            op.src = number(first);
            op.dst = number(second);
        }
        _ => {
            op.src = number(first);
            if first != Register::None {
                op.size = first.size() as u8;
            }
        }
    }
}

fn ports(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let (run, size): (OpFn, u8) = match instruction.code() {
        Code::In_AL_imm8 => (port::in_immediate, 1),
        Code::In_AX_imm8 => (port::in_immediate, 2),
        Code::In_EAX_imm8 => (port::in_immediate, 4),
        Code::In_AL_DX => (port::in_dx, 1),
        Code::In_AX_DX => (port::in_dx, 2),
        Code::In_EAX_DX => (port::in_dx, 4),
        Code::Out_imm8_AL => (port::out_immediate, 1),
        Code::Out_imm8_AX => (port::out_immediate, 2),
        Code::Out_imm8_EAX => (port::out_immediate, 4),
        Code::Out_DX_AL => (port::out_dx, 1),
        Code::Out_DX_AX => (port::out_dx, 2),
        Code::Out_DX_EAX => (port::out_dx, 4),
        Code::Insb_m8_DX => (port::ins, 1),
        Code::Insw_m16_DX => (port::ins, 2),
        Code::Insd_m32_DX => (port::ins, 4),
        Code::Outsb_DX_m8 => (port::outs, 1),
        Code::Outsw_DX_m16 => (port::outs, 2),
        Code::Outsd_DX_m32 => (port::outs, 4),
        _ => return None,
    };
    if matches!(instruction.mnemonic(), Mnemonic::Out) {
        op.imm = u64::from(instruction.immediate8());
    }
    for i in 0..instruction.op_count() {
        op.address_size = match instruction.op_kind(i) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => 8,
            _ => continue,
        };
        op.segment = number(instruction.memory_segment());
    }
    op.size = size;
    // A port may change anything, the A20 gate and reset included.
    Selected::last(run)
}

fn control(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    let run: OpFn = match instruction.mnemonic() {
        Mnemonic::Mov if second.is_cr() || second.is_dr() => {
            op.dst = second.number() as u8;
            op.src = first.number() as u8;
            op.size = first.size() as u8;
            if second.is_cr() {
                control_registers::mov_from_cr
            } else {
                debug::mov_from_debug
            }
        }
        Mnemonic::Mov if first.is_cr() || first.is_dr() => {
            op.dst = first.number() as u8;
            op.src = second.number() as u8;
            op.size = second.size() as u8;
            return Selected::last(if first.is_cr() {
                control_registers::mov_to_cr
            } else {
                debug::mov_to_debug
            });
        }
        Mnemonic::Clts => return Selected::last(control_registers::clts),
        Mnemonic::Lmsw => {
            op.src = number(first);
            return Selected::last(control_registers::lmsw);
        }
        Mnemonic::Smsw => {
            op.src = number(first);
            if first != Register::None {
                op.size = first.size() as u8;
            }
            control_registers::smsw
        }
        Mnemonic::Xgetbv => control_registers::xgetbv,
        Mnemonic::Xsetbv => return Selected::last(control_registers::xsetbv),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => {
            op.size = stack_size(instruction);
            flags_image::pushf
        }
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => {
            op.size = stack_size(instruction);
            return Selected::last(flags_image::popf);
        }
        Mnemonic::Cli => flags_image::cli,
        Mnemonic::Sti => return Selected::last(flags_image::sti),
        Mnemonic::Clac => flags_image::clac,
        Mnemonic::Stac => flags_image::stac,
        _ => return None,
    };
    Selected::plain(run)
}

fn misc(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let first = instruction.op0_register();
    let (run, ends): (OpFn, bool) = match instruction.mnemonic() {
        Mnemonic::Hlt => (system::hlt, true),
        Mnemonic::Cpuid => (system::cpuid, true),
        Mnemonic::Vmcall | Mnemonic::Vmmcall => (system::hypercall, true),
        Mnemonic::Rdtsc => (system::rdtsc, false),
        Mnemonic::Rdtscp => (system::rdtscp, false),
        Mnemonic::Rdpmc => (system::rdpmc, false),
        Mnemonic::Rdpid => {
            op.src = number(first);
            (system::rdpid, false)
        }
        Mnemonic::Rdmsr => (msr::rdmsr, true),
        Mnemonic::Wrmsr => (msr::wrmsr, true),
        Mnemonic::Sysret | Mnemonic::Sysretq => {
            op.size = if instruction.code() == Code::Sysretq {
                8
            } else {
                4
            };
            (syscall::sysret, true)
        }
        Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            op.size = if instruction.code() == Code::Sysexitq {
                8
            } else {
                4
            };
            (syscall::sysexit, true)
        }
        Mnemonic::Invlpg => (system::invlpg, true),
        Mnemonic::Invpcid => {
            op.dst = number(first);
            (system::invpcid, true)
        }
        // Without WBNOINVD its F3 prefix means nothing.
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd | Mnemonic::Invd => (system::wbinvd, false),
        // Hints, and what is one while shadow stacks are not there.
        Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Cldemote
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1 => (system::no_operation, false),
        Mnemonic::Swapgs => (system::swapgs, false),
        Mnemonic::Pause => (system::pause, false),
        Mnemonic::Rsm | Mnemonic::Monitor | Mnemonic::Mwait => (system::undefined, true),
        name @ (Mnemonic::Rdfsbase
        | Mnemonic::Rdgsbase
        | Mnemonic::Wrfsbase
        | Mnemonic::Wrgsbase) => {
            op.src = number(first);
            op.size = first.size() as u8;
            let fs = matches!(name, Mnemonic::Rdfsbase | Mnemonic::Wrfsbase);
            op.aux = if fs { seg::FS } else { seg::GS } as u8;
            let reads = matches!(name, Mnemonic::Rdfsbase | Mnemonic::Rdgsbase);
            (
                if reads {
                    system::read_base
                } else {
                    system::write_base
                },
                false,
            )
        }
        _ => return None,
    };
    Some(Selected { run, ends })
}
