//! What only 16-bit and 32-bit code has: decimal adjustment and BOUND.
//! 64-bit hosts cannot execute these, so they follow the manual (SDM 2A).

use crate::Vp;
use crate::arith::{self, Binary};
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
    let mut bits = (u64::from(carry) * rflags::CF) | (u64::from(auxiliary) * rflags::AF);
    if result == 0 {
        bits |= rflags::ZF;
    }
    if result & 0x80 != 0 {
        bits |= rflags::SF;
    }
    if result.count_ones().is_multiple_of(2) {
        bits |= rflags::PF;
    }
    vp.state.arith = ArithFlags::from_bits(bits);
}

// The flags that these leave undefined are those of the addition or
// subtraction that they consist of, as the processors have them.

/// Sets CF and AF as given and the rest as an operation left them.
fn keep_flags(vp: &mut Vp, from: ArithFlags, carry: bool, auxiliary: bool) {
    let own = (u64::from(carry) * rflags::CF) | (u64::from(auxiliary) * rflags::AF);
    let rest = from.bits() & !(rflags::CF | rflags::AF);
    vp.state.arith = ArithFlags::from_bits(rest | own);
}

fn aaa(vp: &mut Vp, _op: &Op) -> Step {
    ascii_adjust::<arith::Add>(vp)
}

fn aas(vp: &mut Vp, _op: &Op) -> Step {
    ascii_adjust::<arith::Sub>(vp)
}

fn ascii_adjust<O: Binary>(vp: &mut Vp) -> Step {
    let ax = vp.reg::<u16>(0);
    let adjust = ax & 0xf > 9 || flags(vp).1;
    let mut after = ArithFlags::default();
    let ax = O::run16(ax, if adjust { 0x106 } else { 0 }, &mut after);
    vp.set_reg(0, ax & 0xff0f);
    keep_flags(vp, after, adjust, adjust);
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
    let al = vp.reg::<u8>(AL);
    let result = arith::Add::run8(al, product, &mut vp.state.arith);
    vp.set_reg::<u16>(0, u16::from(result));
    Ok(())
}

/// Whether DAA and DAS correct the low and the high digit, and by how much.
fn decimal_correction(vp: &Vp) -> (bool, bool, u8) {
    let al = vp.reg::<u8>(AL);
    let (carry, auxiliary) = flags(vp);
    let low = al & 0xf > 9 || auxiliary;
    let high = al > 0x99 || carry;
    (low, high, u8::from(low) * 6 + u8::from(high) * 0x60)
}

fn daa(vp: &mut Vp, _op: &Op) -> Step {
    let (low, high, by) = decimal_correction(vp);
    let mut after = ArithFlags::default();
    let result = arith::Add::run8(vp.reg::<u8>(AL), by, &mut after);
    vp.set_reg(AL, result);
    keep_flags(vp, after, high, low);
    Ok(())
}

fn das(vp: &mut Vp, _op: &Op) -> Step {
    let (low, high, by) = decimal_correction(vp);
    let al = vp.reg::<u8>(AL);
    let mut after = ArithFlags::default();
    let result = arith::Sub::run8(al, by, &mut after);
    vp.set_reg(AL, result);
    keep_flags(vp, after, high || low && al < 6, low);
    Ok(())
}

fn bound(vp: &mut Vp, op: &Op) -> Step {
    let size = u64::from(op.size);
    let linear = vp.linear(op, size, Access::Read)?;
    let shift = 64 - 8 * u32::from(op.size);
    let signed = |value: u64| ((value << shift) as i64) >> shift;
    let low = signed(vp.load_sized(linear, op.size)?);
    // Two operands, each checked on its own.
    let upper = vp.effective(op).wrapping_add(size);
    let linear = vp.segment_linear(usize::from(op.segment), upper, size, Access::Read)?;
    let high = signed(vp.load_sized(linear, op.size)?);
    let index = signed(vp.gpr(op.size, op.dst));
    if index < low || index > high {
        return Err(vp.raise(Fault::new(vector::BR, 0)));
    }
    Ok(())
}
