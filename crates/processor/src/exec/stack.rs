//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE (segment registers and flags are
//! elsewhere).

use crate::Vp;
use crate::decode::{Mode, Selected, register_number};
use crate::fault::Step;
use crate::mmu::Access;
use crate::op::{Op, OpFn};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic, OpKind};

pub(crate) fn select(instruction: &Instruction, op: &mut Op, mode: Mode) -> Option<Selected> {
    let size = instruction.stack_pointer_increment().unsigned_abs() as u8;
    let run: OpFn = match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pop if instruction.op0_register().is_segment_register() => {
            return None;
        }
        Mnemonic::Push => {
            op.size = size;
            match instruction.op0_kind() {
                OpKind::Register => {
                    op.dst = register_number(instruction.op0_register());
                    if size == 8 { push64 } else { push_register }
                }
                OpKind::Memory => push_memory,
                _ => push_immediate,
            }
        }
        Mnemonic::Pop => {
            op.size = size;
            match instruction.op0_kind() {
                OpKind::Register => {
                    op.dst = register_number(instruction.op0_register());
                    if size == 8 { pop64 } else { pop_register }
                }
                _ => pop_memory,
            }
        }
        Mnemonic::Pusha | Mnemonic::Pushad => {
            op.size = size / 8;
            push_all
        }
        Mnemonic::Popa | Mnemonic::Popad => {
            op.size = size / 8;
            pop_all
        }
        Mnemonic::Leave => {
            op.size = frame_size(instruction, mode);
            leave
        }
        Mnemonic::Enter => {
            op.size = frame_size(instruction, mode);
            op.imm = u64::from(instruction.immediate16());
            op.aux = instruction.immediate8_2nd() & 31;
            enter
        }
        _ => return None,
    };
    Selected::plain(run)
}

fn frame_size(instruction: &Instruction, mode: Mode) -> u8 {
    match instruction.op_code().operand_size() {
        16 => 2,
        32 => 4,
        64 => 8,
        _ => mode.bits / 8,
    }
}

fn push64(vp: &mut Vp, op: &Op) -> Step {
    let value = vp.reg::<u64>(op.dst);
    vp.push(value, 8)
}

fn pop64(vp: &mut Vp, op: &Op) -> Step {
    // The pointer moves first: POP RSP keeps what was read.
    let value = vp.pop(8)?;
    vp.set_reg(op.dst, value);
    Ok(())
}

fn push_register(vp: &mut Vp, op: &Op) -> Step {
    let value = vp.gpr(op.size, op.dst);
    vp.push(value, op.size)
}

fn pop_register(vp: &mut Vp, op: &Op) -> Step {
    let value = vp.pop(op.size)?;
    vp.set_gpr(op.size, op.dst, value);
    Ok(())
}

fn push_immediate(vp: &mut Vp, op: &Op) -> Step {
    vp.push(op.imm, op.size)
}

fn push_memory(vp: &mut Vp, op: &Op) -> Step {
    let value = vp.read_rm(op, op.size)?;
    vp.push(value, op.size)
}

fn pop_memory(vp: &mut Vp, op: &Op) -> Step {
    let value = vp.stack_peek(0, op.size)?;
    let before = vp.state.gpr[reg::RSP];
    // The destination's address is computed with the moved stack pointer.
    vp.stack_drop(u64::from(op.size));
    let result = match vp.linear(op, u64::from(op.size), Access::Write) {
        Ok(linear) => vp.store_sized(linear, op.size, value),
        Err(stop) => Err(stop),
    };
    if result.is_err() {
        vp.state.gpr[reg::RSP] = before;
    }
    result
}

fn push_all(vp: &mut Vp, op: &Op) -> Step {
    let before = vp.state.gpr[reg::RSP];
    for register in 0..8u8 {
        let value = if usize::from(register) == reg::RSP {
            before
        } else {
            vp.gpr(op.size, register)
        };
        if let Err(stop) = vp.push(value, op.size) {
            vp.state.gpr[reg::RSP] = before;
            return Err(stop);
        }
    }
    Ok(())
}

fn pop_all(vp: &mut Vp, op: &Op) -> Step {
    let mut values = [0; 8];
    for (i, value) in values.iter_mut().enumerate() {
        *value = vp.stack_peek(i as u64 * u64::from(op.size), op.size)?;
    }
    for (i, value) in values.into_iter().enumerate() {
        let register = 7 - i;
        if register != reg::RSP {
            vp.set_gpr(op.size, register as u8, value);
        }
    }
    vp.stack_drop(8 * u64::from(op.size));
    Ok(())
}

fn leave(vp: &mut Vp, op: &Op) -> Step {
    let before = vp.state.gpr[reg::RSP];
    let frame = vp.state.gpr[reg::RBP];
    vp.set_stack_pointer(frame);
    match vp.pop(op.size) {
        Ok(value) => {
            vp.set_gpr(op.size, reg::RBP as u8, value);
            Ok(())
        }
        Err(stop) => {
            vp.state.gpr[reg::RSP] = before;
            Err(stop)
        }
    }
}

fn enter(vp: &mut Vp, op: &Op) -> Step {
    let before = vp.state.gpr[reg::RSP];
    enter_frame(vp, op).map_err(|stop| {
        vp.state.gpr[reg::RSP] = before;
        vp.as_stack_fault(stop)
    })
}

fn enter_frame(vp: &mut Vp, op: &Op) -> Step {
    let size = u64::from(op.size);
    let mut frame_pointer = vp.state.gpr[reg::RBP];
    vp.push(frame_pointer, op.size)?;
    let frame = vp.state.gpr[reg::RSP];
    if op.aux > 0 {
        for _ in 1..op.aux {
            frame_pointer = frame_pointer.wrapping_sub(size);
            let at = frame_pointer & vp.stack_mask;
            let linear = vp.segment_linear(crate::state::seg::SS, at, size, Access::Read)?;
            let value = vp.load_sized(linear, op.size)?;
            vp.push(value, op.size)?;
        }
        vp.push(frame, op.size)?;
    }
    let top = vp.state.gpr[reg::RSP].wrapping_sub(op.imm);
    // The new top must be writable, though nothing is stored there.
    let linear = vp.segment_linear(
        crate::state::seg::SS,
        top & vp.stack_mask,
        size,
        Access::Write,
    )?;
    vp.check_store(linear, size)?;
    vp.set_stack_pointer(top);
    vp.set_gpr(op.size, reg::RBP as u8, frame);
    Ok(())
}
