//! Shifts and rotations, single and double.

use crate::Vp;
use crate::arith::{self, Shift};
use crate::decode::{Selected, register_number};
use crate::exec::alu::update;
use crate::exec::by_size;
use crate::fault::Step;
use crate::flags::ArithFlags;
use crate::memory::Word;
use crate::mmu::Access;
use crate::op::{Op, OpFn};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic, OpKind};

/// A [`Word`] that can be shifted.
pub(crate) trait Bits: Word {
    fn shift<O: Shift>(self, count: u8, flags: &mut ArithFlags) -> Self;
}
macro_rules! bits {
    ($type:ty, $run:ident) => {
        impl Bits for $type {
            #[inline(always)]
            fn shift<O: Shift>(self, count: u8, flags: &mut ArithFlags) -> Self {
                O::$run(self, count, flags)
            }
        }
    };
}
bits!(u8, run8);
bits!(u16, run16);
bits!(u32, run32);
bits!(u64, run64);

pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run = match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift::<arith::Shl>(instruction, op),
        Mnemonic::Shr => shift::<arith::Shr>(instruction, op),
        Mnemonic::Sar => shift::<arith::Sar>(instruction, op),
        Mnemonic::Rol => shift::<arith::Rol>(instruction, op),
        Mnemonic::Ror => shift::<arith::Ror>(instruction, op),
        Mnemonic::Rcl => shift::<arith::Rcl>(instruction, op),
        Mnemonic::Rcr => shift::<arith::Rcr>(instruction, op),
        Mnemonic::Shld => double(instruction, op, false),
        Mnemonic::Shrd => double(instruction, op, true),
        _ => return None,
    };
    Selected::plain(run)
}

macro_rules! shift_form {
    ($type:ty, $operation:ident, $memory:expr, $by_cl:expr) => {
        match ($memory, $by_cl) {
            (false, false) => shift_register::<$operation, $type, false> as OpFn,
            (false, true) => shift_register::<$operation, $type, true>,
            (true, false) => shift_memory::<$operation, $type, false>,
            (true, true) => shift_memory::<$operation, $type, true>,
        }
    };
}

fn shift<O: Shift + 'static>(instruction: &Instruction, op: &mut Op) -> OpFn {
    let by_cl = instruction.op1_kind() == OpKind::Register;
    let memory = instruction.op0_kind() == OpKind::Memory;
    op.size = if memory {
        instruction.memory_size().size() as u8
    } else {
        op.dst = register_number(instruction.op0_register());
        instruction.op0_register().size() as u8
    };
    by_size!(op, shift_form!(O, memory, by_cl))
}

#[inline(always)]
fn count<const BY_CL: bool>(vp: &Vp, op: &Op) -> u8 {
    if BY_CL {
        vp.state.gpr[reg::RCX] as u8
    } else {
        op.imm as u8
    }
}

fn shift_register<O: Shift, T: Bits, const BY_CL: bool>(vp: &mut Vp, op: &Op) -> Step {
    let count = count::<BY_CL>(vp, op);
    let value = vp.reg::<T>(op.dst).shift::<O>(count, &mut vp.state.arith);
    vp.set_reg(op.dst, value);
    Ok(())
}

fn shift_memory<O: Shift, T: Bits, const BY_CL: bool>(vp: &mut Vp, op: &Op) -> Step {
    let count = count::<BY_CL>(vp, op);
    let linear = vp.linear(op, T::SIZE, Access::Write)?;
    update(vp, linear, |value: T, flags| value.shift::<O>(count, flags))
}

fn double(instruction: &Instruction, op: &mut Op, right: bool) -> OpFn {
    op.aux = u8::from(instruction.op2_kind() == OpKind::Register);
    op.dst = register_number(instruction.op1_register());
    op.size = instruction.op1_register().size() as u8;
    if right { shrd } else { shld }
}

fn shld(vp: &mut Vp, op: &Op) -> Step {
    double_shift(vp, op, false)
}

fn shrd(vp: &mut Vp, op: &Op) -> Step {
    double_shift(vp, op, true)
}

fn double_shift(vp: &mut Vp, op: &Op, right: bool) -> Step {
    let count = if op.aux != 0 {
        vp.state.gpr[reg::RCX] as u8
    } else {
        op.imm as u8
    };
    let fill = vp.gpr(op.size, op.dst);
    let apply = |value: u64, flags: &mut ArithFlags| match (op.size, right) {
        (2, false) => u64::from(arith::shld16(value as u16, fill as u16, count, flags)),
        (2, true) => u64::from(arith::shrd16(value as u16, fill as u16, count, flags)),
        (4, false) => u64::from(arith::shld32(value as u32, fill as u32, count, flags)),
        (4, true) => u64::from(arith::shrd32(value as u32, fill as u32, count, flags)),
        (_, false) => arith::shld64(value, fill, count, flags),
        (_, true) => arith::shrd64(value, fill, count, flags),
    };
    if !op.has_memory() {
        let value = vp.gpr(op.size, op.src);
        let result = apply(value, &mut vp.state.arith);
        vp.set_gpr(op.size, op.src, result);
        return Ok(());
    }
    let linear = vp.linear(op, u64::from(op.size), Access::Write)?;
    match op.size {
        2 => update(vp, linear, |v: u16, f| apply(u64::from(v), f) as u16),
        4 => update(vp, linear, |v: u32, f| apply(u64::from(v), f) as u32),
        _ => update(vp, linear, |v: u64, f| apply(v, f)),
    }
}
