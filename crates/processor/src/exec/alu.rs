//! ADD, ADC, SUB, SBB, AND, OR, XOR, CMP, TEST, INC, DEC, NEG, NOT.

use crate::Vp;
use crate::arith::{self, Binary, Unary};
use crate::decode::Selected;
use crate::exec::by_size;
use crate::fault::{Step, Stop};
use crate::flags::ArithFlags;
use crate::memory::Word;
use crate::mmu::Access;
use crate::op::{Op, OpFn, prefix};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// A [`Word`] that arithmetic knows.
pub(crate) trait Number: Word {
    /// `O` at this width.
    fn binary<O: Binary>(self, other: Self, flags: &mut ArithFlags) -> Self;
    /// `O` at this width.
    fn unary<O: Unary>(self, flags: &mut ArithFlags) -> Self;
}

macro_rules! number {
    ($type:ty, $run:ident) => {
        impl Number for $type {
            #[inline(always)]
            fn binary<O: Binary>(self, other: Self, flags: &mut ArithFlags) -> Self {
                O::$run(self, other, flags)
            }
            #[inline(always)]
            fn unary<O: Unary>(self, flags: &mut ArithFlags) -> Self {
                O::$run(self, flags)
            }
        }
    };
}
number!(u8, run8);
number!(u16, run16);
number!(u32, run32);
number!(u64, run64);

pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run = match instruction.mnemonic() {
        Mnemonic::Add => binary::<arith::Add>(instruction, op),
        Mnemonic::Adc => binary::<arith::Adc>(instruction, op),
        Mnemonic::Sub => binary::<arith::Sub>(instruction, op),
        Mnemonic::Sbb => binary::<arith::Sbb>(instruction, op),
        Mnemonic::And => binary::<arith::And>(instruction, op),
        Mnemonic::Or => binary::<arith::Or>(instruction, op),
        Mnemonic::Xor => binary::<arith::Xor>(instruction, op),
        Mnemonic::Cmp => binary::<arith::Cmp>(instruction, op),
        Mnemonic::Test => binary::<arith::Test>(instruction, op),
        Mnemonic::Inc => unary::<arith::Inc>(instruction, op),
        Mnemonic::Dec => unary::<arith::Dec>(instruction, op),
        Mnemonic::Neg => unary::<arith::Neg>(instruction, op),
        Mnemonic::Not => unary::<arith::Not>(instruction, op),
        _ => return None,
    };
    Selected::plain(run)
}

macro_rules! binary_form {
    ($type:ty, $operation:ident, $first:ident, $second:ident) => {
        match ($first, $second) {
            (OpKind::Register, OpKind::Register) => register_register::<$operation, $type>,
            (OpKind::Register, OpKind::Memory) => register_memory::<$operation, $type>,
            (OpKind::Memory, OpKind::Register) => memory_register::<$operation, $type>,
            (OpKind::Memory, _) => memory_immediate::<$operation, $type>,
            _ => register_immediate::<$operation, $type>,
        }
    };
}

fn binary<O: Binary + 'static>(instruction: &Instruction, op: &mut Op) -> OpFn {
    let first = instruction.op0_kind();
    let second = instruction.op1_kind();
    if first == OpKind::Register {
        op.dst = crate::decode::register_number(instruction.op0_register());
        if second == OpKind::Register {
            op.src = crate::decode::register_number(instruction.op1_register());
        }
    } else if second == OpKind::Register {
        op.src = crate::decode::register_number(instruction.op1_register());
    }
    by_size!(op, binary_form!(O, first, second))
}

fn register_register<O: Binary, T: Number>(vp: &mut Vp, op: &Op) -> Step {
    let (a, b) = (vp.reg::<T>(op.dst), vp.reg::<T>(op.src));
    let result = a.binary::<O>(b, &mut vp.state.arith);
    if O::WRITES {
        vp.set_reg(op.dst, result);
    }
    Ok(())
}

fn register_immediate<O: Binary, T: Number>(vp: &mut Vp, op: &Op) -> Step {
    let a = vp.reg::<T>(op.dst);
    let result = a.binary::<O>(T::narrow(op.imm), &mut vp.state.arith);
    if O::WRITES {
        vp.set_reg(op.dst, result);
    }
    Ok(())
}

fn register_memory<O: Binary, T: Number>(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, T::SIZE, Access::Read)?;
    let b = vp.load::<T>(linear)?;
    let a = vp.reg::<T>(op.dst);
    let result = a.binary::<O>(b, &mut vp.state.arith);
    if O::WRITES {
        vp.set_reg(op.dst, result);
    }
    Ok(())
}

fn memory_register<O: Binary, T: Number>(vp: &mut Vp, op: &Op) -> Step {
    let b = vp.reg::<T>(op.src);
    to_memory::<O, T>(vp, op, b)
}

fn memory_immediate<O: Binary, T: Number>(vp: &mut Vp, op: &Op) -> Step {
    to_memory::<O, T>(vp, op, T::narrow(op.imm))
}

#[inline(always)]
fn to_memory<O: Binary, T: Number>(vp: &mut Vp, op: &Op, b: T) -> Step {
    if !O::WRITES {
        let linear = vp.linear(op, T::SIZE, Access::Read)?;
        let a = vp.load::<T>(linear)?;
        a.binary::<O>(b, &mut vp.state.arith);
        return Ok(());
    }
    let linear = vp.linear(op, T::SIZE, Access::Write)?;
    if op.prefix & prefix::LOCK != 0
        && let Some((at, page)) = vp.modify(linear, T::SIZE)?
    {
        O::locked(at, b.widen(), T::SIZE, &mut vp.state.arith);
        vp.wrote(page);
        return Ok(());
    }
    update(vp, linear, |a: T, flags| a.binary::<O>(b, flags))
}

/// Replaces what is at `linear` by what `change` makes of it.
#[inline(always)]
pub(crate) fn update<T: Word>(
    vp: &mut Vp,
    linear: u64,
    change: impl FnOnce(T, &mut ArithFlags) -> T,
) -> Step {
    match vp.modify(linear, T::SIZE)? {
        Some((at, page)) => {
            let result = change(T::load(at), &mut vp.state.arith);
            result.store(at);
            vp.wrote(page);
            Ok(())
        }
        None => update_apart(vp, linear, change),
    }
}

/// Load and store apart: across two pages, or memory-mapped I/O. Flags change
/// only once the store has succeeded.
#[cold]
fn update_apart<T: Word>(
    vp: &mut Vp,
    linear: u64,
    change: impl FnOnce(T, &mut ArithFlags) -> T,
) -> Step {
    let _split = crate::exec::locked::split_lock();
    let old = vp.load::<T>(linear)?;
    let mut flags = vp.state.arith;
    let result = change(old, &mut flags);
    vp.store(linear, result)?;
    vp.state.arith = flags;
    Ok(())
}

macro_rules! unary_form {
    ($type:ty, $operation:ident, $memory:expr) => {
        if $memory {
            unary_memory::<$operation, $type>
        } else {
            unary_register::<$operation, $type>
        }
    };
}

fn unary<O: Unary + 'static>(instruction: &Instruction, op: &mut Op) -> OpFn {
    if instruction.op0_kind() == OpKind::Register {
        op.dst = crate::decode::register_number(instruction.op0_register());
    }
    let memory = op.has_memory();
    by_size!(op, unary_form!(O, memory))
}

fn unary_register<O: Unary, T: Number>(vp: &mut Vp, op: &Op) -> Step {
    let a = vp.reg::<T>(op.dst);
    let result = a.unary::<O>(&mut vp.state.arith);
    vp.set_reg(op.dst, result);
    Ok(())
}

fn unary_memory<O: Unary, T: Number>(vp: &mut Vp, op: &Op) -> Result<(), Stop> {
    let linear = vp.linear(op, T::SIZE, Access::Write)?;
    if op.prefix & prefix::LOCK != 0
        && let Some((at, page)) = vp.modify(linear, T::SIZE)?
    {
        O::locked(at, T::SIZE, &mut vp.state.arith);
        vp.wrote(page);
        return Ok(());
    }
    update(vp, linear, |a: T, flags| a.unary::<O>(flags))
}
