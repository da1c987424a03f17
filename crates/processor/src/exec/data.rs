//! Moves and conversions: MOV, MOVZX, MOVSX, MOVSXD, LEA, CMOVcc, SETcc, BSWAP,
//! MOVBE, the sign extensions of the accumulator, XLAT, flag bits, NOP.

use crate::Vp;
use crate::decode::{Selected, register_number};
use crate::exec::by_size;
use crate::fault::Step;
use crate::memory::Word;
use crate::mmu::Access;
use crate::op::{Op, OpFn};
use crate::state::{reg, rflags};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run: OpFn = match instruction.mnemonic() {
        Mnemonic::Mov => return mov(instruction, op),
        Mnemonic::Movzx => extend(instruction, op, false),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend(instruction, op, true),
        Mnemonic::Lea => lea,
        Mnemonic::Bswap => bswap,
        Mnemonic::Movbe => {
            op.aux = u8::from(instruction.op0_kind() == OpKind::Memory);
            movbe
        }
        Mnemonic::Cbw => cbw,
        Mnemonic::Cwde => cwde,
        Mnemonic::Cdqe => cdqe,
        Mnemonic::Cwd => cwd,
        Mnemonic::Cdq => cdq,
        Mnemonic::Cqo => cqo,
        Mnemonic::Xlatb => xlat,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Clc => |vp, _| flag(vp, |f| f.set_carry(false)),
        Mnemonic::Stc => |vp, _| flag(vp, |f| f.set_carry(true)),
        Mnemonic::Cmc => |vp, _| flag(vp, |f| f.set_carry(!f.carry())),
        Mnemonic::Cld => |vp, _| direction(vp, false),
        Mnemonic::Std => |vp, _| direction(vp, true),
        Mnemonic::Salc => salc,
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Fnop => {
            if instruction.mnemonic() == Mnemonic::Fnop {
                return None;
            }
            |_, _| Ok(())
        }
        _ => return conditional(instruction, op),
    };
    Selected::plain(run)
}

fn conditional(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let condition = instruction.condition_code();
    if condition == iced_x86::ConditionCode::None {
        return None;
    }
    let code = condition_number(condition);
    let name = instruction.mnemonic();
    let form = format!("{name:?}");
    if form.starts_with("Cmov") {
        op.aux = code;
        return Selected::plain(by_size!(op, cmov_form!()));
    }
    if form.starts_with("Set") {
        op.aux = code;
        return Selected::plain(setcc);
    }
    None
}

/// The number of a condition as Jcc encodes it.
pub(crate) fn condition_number(condition: iced_x86::ConditionCode) -> u8 {
    // iced's enumeration follows the encoding, after None.
    (condition as u8).wrapping_sub(1)
}

macro_rules! cmov_form {
    ($type:ty, ) => {
        cmov::<$type>
    };
}
use cmov_form;

fn cmov<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    let value = if op.has_memory() {
        let linear = vp.linear(op, T::SIZE, Access::Read)?;
        vp.load::<T>(linear)?
    } else {
        vp.reg::<T>(op.src)
    };
    // A 32-bit CMOV clears the upper half even where the condition fails.
    let value = if vp.state.arith.condition(op.aux) {
        value
    } else {
        vp.reg::<T>(op.dst)
    };
    vp.set_reg(op.dst, value);
    Ok(())
}

fn setcc(vp: &mut Vp, op: &Op) -> Step {
    let value = u64::from(vp.state.arith.condition(op.aux));
    vp.write_rm(op, 1, value)
}

macro_rules! mov_form {
    ($type:ty, $first:ident, $second:ident) => {
        match ($first, $second) {
            (OpKind::Register, OpKind::Register) => mov_register_register::<$type> as OpFn,
            (OpKind::Register, OpKind::Memory) => mov_register_memory::<$type>,
            (OpKind::Memory, OpKind::Register) => mov_memory_register::<$type>,
            (OpKind::Memory, _) => mov_memory_immediate::<$type>,
            _ => mov_register_immediate::<$type>,
        }
    };
}

fn mov(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let special = |register: Register| {
        register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr()
    };
    let first = instruction.op0_kind();
    let second = instruction.op1_kind();
    if special(instruction.op0_register()) || special(instruction.op1_register()) {
        return None;
    }
    if first == OpKind::Register {
        op.dst = register_number(instruction.op0_register());
    }
    if second == OpKind::Register {
        op.src = register_number(instruction.op1_register());
    }
    Selected::plain(by_size!(op, mov_form!(first, second)))
}

fn mov_register_register<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    let value = vp.reg::<T>(op.src);
    vp.set_reg(op.dst, value);
    Ok(())
}

fn mov_register_memory<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, T::SIZE, Access::Read)?;
    let value = vp.load::<T>(linear)?;
    vp.set_reg(op.dst, value);
    Ok(())
}

fn mov_memory_register<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, T::SIZE, Access::Write)?;
    let value = vp.reg::<T>(op.src);
    vp.store(linear, value)
}

fn mov_memory_immediate<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, T::SIZE, Access::Write)?;
    vp.store(linear, T::narrow(op.imm))
}

fn mov_register_immediate<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    vp.set_reg(op.dst, T::narrow(op.imm));
    Ok(())
}

macro_rules! extend_form {
    ($type:ty, $from:ident, $signed:ident) => {
        match ($from, $signed) {
            (1, false) => move_extended::<u8, $type, false> as OpFn,
            (1, true) => move_extended::<u8, $type, true>,
            (2, false) => move_extended::<u16, $type, false>,
            (2, true) => move_extended::<u16, $type, true>,
            (_, _) => move_extended::<u32, $type, true>,
        }
    };
}

fn extend(instruction: &Instruction, op: &mut Op, signed: bool) -> OpFn {
    let from = if instruction.op1_kind() == OpKind::Memory {
        instruction.memory_size().size() as u8
    } else {
        instruction.op1_register().size() as u8
    };
    op.dst = register_number(instruction.op0_register());
    op.size = instruction.op0_register().size() as u8;
    by_size!(op, extend_form!(from, signed))
}

fn move_extended<F: Word, T: Word, const SIGNED: bool>(vp: &mut Vp, op: &Op) -> Step {
    let value = if op.has_memory() {
        let linear = vp.linear(op, F::SIZE, Access::Read)?;
        vp.load::<F>(linear)?
    } else {
        vp.reg::<F>(op.src)
    };
    let mut wide = value.widen();
    if SIGNED {
        let shift = 64 - 8 * F::SIZE;
        wide = ((wide << shift) as i64 >> shift) as u64;
    }
    vp.set_reg(op.dst, T::narrow(wide));
    Ok(())
}

fn lea(vp: &mut Vp, op: &Op) -> Step {
    let offset = vp.effective(op);
    vp.set_gpr(op.size, op.dst, offset);
    Ok(())
}

fn bswap(vp: &mut Vp, op: &Op) -> Step {
    let value = match op.size {
        8 => vp.reg::<u64>(op.dst).swap_bytes(),
        4 => u64::from(vp.reg::<u32>(op.dst).swap_bytes()),
        // Undefined; processors clear it.
        _ => 0,
    };
    vp.set_gpr(op.size, op.dst, value);
    Ok(())
}

fn movbe(vp: &mut Vp, op: &Op) -> Step {
    let swap = |value: u64, size: u8| value.swap_bytes() >> (64 - 8 * u32::from(size));
    // The register operand is never ModRM.rm; aux tells the direction.
    if op.aux == 0 {
        let value = vp.read_rm(op, op.size)?;
        vp.set_gpr(op.size, op.dst, swap(value, op.size));
        return Ok(());
    }
    let value = vp.gpr(op.size, op.dst);
    vp.write_rm(op, op.size, swap(value, op.size))
}

fn cbw(vp: &mut Vp, _op: &Op) -> Step {
    let value = vp.reg::<u8>(0) as i8;
    vp.set_reg(reg::RAX as u8, value as u16);
    Ok(())
}

fn cwde(vp: &mut Vp, _op: &Op) -> Step {
    let value = vp.reg::<u16>(0) as i16;
    vp.set_reg(reg::RAX as u8, value as u32);
    Ok(())
}

fn cdqe(vp: &mut Vp, _op: &Op) -> Step {
    let value = vp.reg::<u32>(0) as i32;
    vp.set_reg(reg::RAX as u8, value as u64);
    Ok(())
}

fn cwd(vp: &mut Vp, _op: &Op) -> Step {
    let value = (vp.reg::<u16>(0) as i16) >> 15;
    vp.set_reg(reg::RDX as u8, value as u16);
    Ok(())
}

fn cdq(vp: &mut Vp, _op: &Op) -> Step {
    let value = (vp.reg::<u32>(0) as i32) >> 31;
    vp.set_reg(reg::RDX as u8, value as u32);
    Ok(())
}

fn cqo(vp: &mut Vp, _op: &Op) -> Step {
    let value = (vp.reg::<u64>(0) as i64) >> 63;
    vp.set_reg(reg::RDX as u8, value as u64);
    Ok(())
}

fn xlat(vp: &mut Vp, op: &Op) -> Step {
    let index = u64::from(vp.reg::<u8>(0));
    let offset = vp.state.gpr[reg::RBX].wrapping_add(index);
    let offset = vp.mask_address(offset, op.address_size);
    let linear = vp.segment_linear(usize::from(op.segment), offset, 1, Access::Read)?;
    let value = vp.load::<u8>(linear)?;
    vp.set_reg(0, value);
    Ok(())
}

fn lahf(vp: &mut Vp, _op: &Op) -> Step {
    let flags = (vp.state.arith.bits() & 0xd5) as u8 | 2;
    vp.set_reg(1, flags);
    Ok(())
}

fn sahf(vp: &mut Vp, _op: &Op) -> Step {
    let ah = u64::from(vp.reg::<u8>(1));
    let overflow = vp.state.arith.bits() & rflags::OF;
    vp.state.arith = crate::flags::ArithFlags::from_bits(ah & 0xd5 | overflow);
    Ok(())
}

fn flag(vp: &mut Vp, change: impl FnOnce(&mut crate::flags::ArithFlags)) -> Step {
    change(&mut vp.state.arith);
    Ok(())
}

fn direction(vp: &mut Vp, down: bool) -> Step {
    if down {
        vp.state.system_flags |= rflags::DF;
    } else {
        vp.state.system_flags &= !rflags::DF;
    }
    Ok(())
}

fn salc(vp: &mut Vp, _op: &Op) -> Step {
    let value = if vp.state.arith.carry() { 0xff } else { 0 };
    vp.set_reg::<u8>(0, value);
    Ok(())
}
