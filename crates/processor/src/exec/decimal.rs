//! What only 16-bit and 32-bit code has: decimal adjustment and BOUND.
//! 64-bit hosts cannot execute these, so they follow the manual (SDM 2A).

use crate::Vp;
use crate::decode::{Selected, register_number};
use crate::fault::{Fault, Step, vector};
use crate::flags::ArithFlags;
use crate::mmu::Access;
use crate::op::{Op, OpFn};
use crate::state::rflags;
use iced_x86::{Instruction, Mnemonic};

/// Byte offsets of AL and AH in the register array.
const AL: u8 = 0;
const AH: u8 = 1;

pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run: OpFn = match instruction.mnemonic() {
        Mnemonic::Aaa => aaa,
        Mnemonic::Aas => aas,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        Mnemonic::Daa => daa,
        Mnemonic::Das => das,
        Mnemonic::Bound => {
            op.dst = register_number(instruction.op0_register());
            op.size = instruction.op0_register().size() as u8;
            bound
        }
        _ => return None,
    };
    Selected::plain(run)
}

fn flags(vp: &Vp) -> (bool, bool) {
    let bits = vp.state.arith.bits();
    (bits & rflags::CF != 0, bits & rflags::AF != 0)
}

/// Sets CF and AF as given and SF, ZF, PF from `result`.
fn set_flags(vp: &mut Vp, result: u8, carry: bool, auxiliary: bool) {
    let mut bits = u64::from(carry) * rflags::CF | u64::from(auxiliary) * rflags::AF;
    if result == 0 {
        bits |= rflags::ZF;
    }
    if result & 0x80 != 0 {
        bits |= rflags::SF;
    }
    if result.count_ones() % 2 == 0 {
        bits |= rflags::PF;
    }
    vp.state.arith = ArithFlags::from_bits(bits);
}

fn aaa(vp: &mut Vp, _op: &Op) -> Step {
    let al = vp.reg::<u8>(AL);
    let adjust = al & 0xf > 9 || flags(vp).1;
    if adjust {
        let ax = vp.reg::<u16>(0).wrapping_add(0x106);
        vp.set_reg(0, ax);
    }
    let result = vp.reg::<u8>(AL) & 0xf;
    vp.set_reg(AL, result);
    set_flags(vp, result, adjust, adjust);
    Ok(())
}

fn aas(vp: &mut Vp, _op: &Op) -> Step {
    let al = vp.reg::<u8>(AL);
    let adjust = al & 0xf > 9 || flags(vp).1;
    if adjust {
        let ax = vp.reg::<u16>(0).wrapping_sub(6);
        vp.set_reg(0, ax);
        let ah = vp.reg::<u8>(AH).wrapping_sub(1);
        vp.set_reg(AH, ah);
    }
    let result = vp.reg::<u8>(AL) & 0xf;
    vp.set_reg(AL, result);
    set_flags(vp, result, adjust, adjust);
    Ok(())
}

fn aam(vp: &mut Vp, op: &Op) -> Step {
    let base = op.imm as u8;
    let al = vp.reg::<u8>(AL);
    let Some(high) = al.checked_div(base) else {
        return Err(vp.raise(Fault::new(vector::DE, 0)));
    };
    let low = al % base;
    vp.set_reg(AH, high);
    vp.set_reg(AL, low);
    set_flags(vp, low, false, false);
    Ok(())
}

fn aad(vp: &mut Vp, op: &Op) -> Step {
    let product = vp.reg::<u8>(AH).wrapping_mul(op.imm as u8);
    let result = vp.reg::<u8>(AL).wrapping_add(product);
    vp.set_reg::<u16>(0, u16::from(result));
    set_flags(vp, result, false, false);
    Ok(())
}

fn daa(vp: &mut Vp, _op: &Op) -> Step {
    let al = vp.reg::<u8>(AL);
    let (carry, auxiliary) = flags(vp);
    let low = al & 0xf > 9 || auxiliary;
    let high = al > 0x99 || carry;
    let mut result = al;
    if low {
        result = result.wrapping_add(6);
    }
    if high {
        result = result.wrapping_add(0x60);
    }
    vp.set_reg(AL, result);
    set_flags(vp, result, high, low);
    Ok(())
}

fn das(vp: &mut Vp, _op: &Op) -> Step {
    let al = vp.reg::<u8>(AL);
    let (carry, auxiliary) = flags(vp);
    let low = al & 0xf > 9 || auxiliary;
    let high = al > 0x99 || carry;
    let mut result = al;
    let mut borrow = high;
    if low {
        borrow |= al < 6;
        result = result.wrapping_sub(6);
    }
    if high {
        result = result.wrapping_sub(0x60);
    }
    vp.set_reg(AL, result);
    set_flags(vp, result, borrow, low);
    Ok(())
}

fn bound(vp: &mut Vp, op: &Op) -> Step {
    let size = u64::from(op.size);
    let linear = vp.linear(op, 2 * size, Access::Read)?;
    let shift = 64 - 8 * u32::from(op.size);
    let signed = |value: u64| ((value << shift) as i64) >> shift;
    let low = signed(vp.load_sized(linear, op.size)?);
    let high = signed(vp.load_sized(linear.wrapping_add(size), op.size)?);
    let index = signed(vp.gpr(op.size, op.dst));
    if index < low || index > high {
        return Err(vp.raise(Fault::new(vector::BR, 0)));
    }
    Ok(())
}
