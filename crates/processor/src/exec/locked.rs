//! XCHG, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.

use crate::Vp;
use crate::arith;
use crate::decode::{Selected, register_number};
use crate::exec::alu::Number;
use crate::exec::by_size;
use crate::fault::{Step, Stop};
use crate::memory::Word;
use crate::mmu::Access;
use crate::op::{Op, OpFn, prefix};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic, OpKind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Makes read-modify-writes across two pages, which no single host
/// instruction can do, atomic among themselves.
static SPLIT: Mutex<()> = Mutex::new(());

/// Held while a read-modify-write is done as a load and a store.
pub(crate) fn split_lock() -> MutexGuard<'static, ()> {
    SPLIT.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run: OpFn = match instruction.mnemonic() {
        Mnemonic::Xchg => return exchange(instruction, op),
        Mnemonic::Xadd => {
            op.dst = register_number(instruction.op1_register());
            by_size!(op, xadd_form!())
        }
        Mnemonic::Cmpxchg => {
            op.dst = register_number(instruction.op1_register());
            by_size!(op, cmpxchg_form!())
        }
        Mnemonic::Cmpxchg8b => cmpxchg8b,
        Mnemonic::Cmpxchg16b => cmpxchg16b,
        _ => return None,
    };
    Selected::plain(run)
}

macro_rules! xadd_form {
    ($type:ty, ) => {
        xadd::<$type>
    };
}
use xadd_form;
macro_rules! cmpxchg_form {
    ($type:ty, ) => {
        cmpxchg::<$type>
    };
}
use cmpxchg_form;
macro_rules! xchg_form {
    ($type:ty, $memory:ident) => {
        if $memory {
            xchg_memory::<$type> as OpFn
        } else {
            xchg_register::<$type>
        }
    };
}

fn exchange(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let memory = op.has_memory();
    if memory {
        // Either operand may be the memory one, depending on the assembler.
        let register = if instruction.op0_kind() == OpKind::Memory {
            instruction.op1_register()
        } else {
            instruction.op0_register()
        };
        op.dst = register_number(register);
    } else {
        op.dst = register_number(instruction.op0_register());
        op.src = register_number(instruction.op1_register());
    }
    Selected::plain(by_size!(op, xchg_form!(memory)))
}

fn xchg_register<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    let (a, b) = (vp.reg::<T>(op.dst), vp.reg::<T>(op.src));
    vp.set_reg(op.dst, b);
    vp.set_reg(op.src, a);
    Ok(())
}

fn xchg_memory<T: Word>(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, T::SIZE, Access::Write)?;
    let value = vp.reg::<T>(op.dst);
    let old = match vp.modify(linear, T::SIZE)? {
        Some((at, page)) => {
            let old = arith::xchg(at, value.widen(), T::SIZE);
            vp.wrote(page);
            T::narrow(old)
        }
        None => {
            let _split = split_lock();
            let old = vp.load::<T>(linear)?;
            vp.store(linear, value)?;
            old
        }
    };
    vp.set_reg(op.dst, old);
    Ok(())
}

fn xadd<T: Number>(vp: &mut Vp, op: &Op) -> Step {
    let addend = vp.reg::<T>(op.dst);
    if !op.has_memory() {
        let old = vp.reg::<T>(op.src);
        let sum = old.binary::<arith::Add>(addend, &mut vp.state.arith);
        vp.set_reg(op.dst, old);
        vp.set_reg(op.src, sum);
        return Ok(());
    }
    let linear = vp.linear(op, T::SIZE, Access::Write)?;
    let old = match vp.modify(linear, T::SIZE)? {
        Some((at, page)) if op.prefix & prefix::LOCK != 0 => {
            let old = arith::xadd(at, addend.widen(), T::SIZE);
            vp.wrote(page);
            T::narrow(old)
        }
        Some((at, page)) => {
            let old = T::load(at);
            T::narrow(old.widen().wrapping_add(addend.widen())).store(at);
            vp.wrote(page);
            old
        }
        None => {
            let _split = split_lock();
            let old = vp.load::<T>(linear)?;
            vp.store(linear, T::narrow(old.widen().wrapping_add(addend.widen())))?;
            old
        }
    };
    old.binary::<arith::Add>(addend, &mut vp.state.arith);
    vp.set_reg(op.dst, old);
    Ok(())
}

fn cmpxchg<T: Number>(vp: &mut Vp, op: &Op) -> Step {
    let new = vp.reg::<T>(op.dst);
    let accumulator = vp.reg::<T>(reg::RAX as u8);
    let equal = |seen: T| seen.widen() == accumulator.widen();
    let seen = if !op.has_memory() {
        let seen = vp.reg::<T>(op.src);
        if equal(seen) {
            vp.set_reg(op.src, new);
        }
        seen
    } else {
        let linear = vp.linear(op, T::SIZE, Access::Write)?;
        compare_in_memory(vp, op, linear, accumulator, new)?
    };
    accumulator.binary::<arith::Cmp>(seen, &mut vp.state.arith);
    if !equal(seen) {
        vp.set_reg(reg::RAX as u8, seen);
    }
    Ok(())
}

fn compare_in_memory<T: Number>(
    vp: &mut Vp,
    op: &Op,
    linear: u64,
    expected: T,
    new: T,
) -> Result<T, Stop> {
    match vp.modify(linear, T::SIZE)? {
        Some((at, page)) if op.prefix & prefix::LOCK != 0 => {
            let seen = arith::cmpxchg(at, expected.widen(), new.widen(), T::SIZE);
            vp.wrote(page);
            Ok(T::narrow(seen))
        }
        Some((at, page)) => {
            let seen = T::load(at);
            // The processor writes in either case.
            if seen.widen() == expected.widen() {
                new
            } else {
                seen
            }
            .store(at);
            vp.wrote(page);
            Ok(seen)
        }
        None => {
            let _split = split_lock();
            let seen = vp.load::<T>(linear)?;
            let value = if seen.widen() == expected.widen() {
                new
            } else {
                seen
            };
            vp.store(linear, value)?;
            Ok(seen)
        }
    }
}

fn cmpxchg8b(vp: &mut Vp, op: &Op) -> Step {
    let pair = |vp: &Vp, high: usize, low: usize| {
        u64::from(vp.reg::<u32>(high as u8)) << 32 | u64::from(vp.reg::<u32>(low as u8))
    };
    let expected = pair(vp, reg::RDX, reg::RAX);
    let new = pair(vp, reg::RCX, reg::RBX);
    let linear = vp.linear(op, 8, Access::Write)?;
    let seen = compare_in_memory::<u64>(vp, op, linear, expected, new)?;
    vp.state.arith.set_zero(seen == expected);
    if seen != expected {
        vp.set_reg(reg::RAX as u8, seen as u32);
        vp.set_reg(reg::RDX as u8, (seen >> 32) as u32);
    }
    Ok(())
}

fn cmpxchg16b(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, 16, Access::Write)?;
    if linear & 15 != 0 {
        return Err(vp.gp(0));
    }
    let gpr = &vp.state.gpr;
    let expected = u128::from(gpr[reg::RDX]) << 64 | u128::from(gpr[reg::RAX]);
    let new = u128::from(gpr[reg::RCX]) << 64 | u128::from(gpr[reg::RBX]);
    let (seen, done) = match vp.modify(linear, 16)? {
        Some((at, page)) => {
            let result = arith::cmpxchg16(at, expected, new);
            vp.wrote(page);
            result
        }
        None => {
            let _split = split_lock();
            let mut bytes = [0; 16];
            vp.load_bytes(linear, &mut bytes)?;
            let seen = u128::from_le_bytes(bytes);
            let value = if seen == expected { new } else { seen };
            vp.store_bytes(linear, &value.to_le_bytes())?;
            (seen, seen == expected)
        }
    };
    vp.state.arith.set_zero(done);
    if !done {
        vp.state.gpr[reg::RAX] = seen as u64;
        vp.state.gpr[reg::RDX] = (seen >> 64) as u64;
    }
    Ok(())
}
