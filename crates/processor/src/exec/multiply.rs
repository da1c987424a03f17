//! MUL, IMUL, DIV, IDIV.

use crate::Vp;
use crate::arith;
use crate::decode::{Selected, register_number};
use crate::fault::{Fault, Step, vector};
use crate::op::{Op, OpFn};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic, OpKind};

const RAX: u8 = reg::RAX as u8;
const RDX: u8 = reg::RDX as u8;

pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run: OpFn = match instruction.mnemonic() {
        Mnemonic::Mul => mul,
        Mnemonic::Imul => match instruction.op_count() {
            1 => imul,
            count => {
                op.dst = register_number(instruction.op0_register());
                op.size = instruction.op0_register().size() as u8;
                if count == 3 && instruction.op1_kind() == OpKind::Register {
                    op.src = register_number(instruction.op1_register());
                }
                if count == 3 {
                    imul_immediate
                } else {
                    imul_register
                }
            }
        },
        Mnemonic::Div => div,
        Mnemonic::Idiv => idiv,
        _ => return None,
    };
    Selected::plain(run)
}

fn mul(vp: &mut Vp, op: &Op) -> Step {
    let factor = vp.read_rm(op, op.size)?;
    let a = vp.state.gpr[reg::RAX];
    let product = arith::mul(a, factor, u64::from(op.size), &mut vp.state.arith);
    store_product(vp, op.size, product)
}

fn imul(vp: &mut Vp, op: &Op) -> Step {
    let factor = vp.read_rm(op, op.size)?;
    let a = vp.state.gpr[reg::RAX];
    let product = arith::imul(a, factor, u64::from(op.size), &mut vp.state.arith);
    store_product(vp, op.size, product)
}

fn store_product(vp: &mut Vp, size: u8, (low, high): (u64, u64)) -> Step {
    if size == 1 {
        vp.set_gpr(2, RAX, low);
    } else {
        vp.set_gpr(size, RAX, low);
        vp.set_gpr(size, RDX, high);
    }
    Ok(())
}

fn imul_register(vp: &mut Vp, op: &Op) -> Step {
    let b = vp.read_rm(op, op.size)?;
    let a = vp.gpr(op.size, op.dst);
    product(vp, op, a, b)
}

fn imul_immediate(vp: &mut Vp, op: &Op) -> Step {
    let a = vp.read_rm(op, op.size)?;
    product(vp, op, a, op.imm)
}

fn product(vp: &mut Vp, op: &Op, a: u64, b: u64) -> Step {
    let flags = &mut vp.state.arith;
    let result = match op.size {
        2 => u64::from(arith::imul16(a as u16, b as u16, flags)),
        4 => u64::from(arith::imul32(a as u32, b as u32, flags)),
        _ => arith::imul64(a, b, flags),
    };
    vp.set_gpr(op.size, op.dst, result);
    Ok(())
}

/// The dividend: AX, DX:AX, EDX:EAX or RDX:RAX.
fn dividend(vp: &Vp, size: u8) -> u128 {
    if size == 1 {
        return u128::from(vp.gpr(2, RAX));
    }
    let bits = 8 * u32::from(size);
    u128::from(vp.gpr(size, RDX)) << bits | u128::from(vp.gpr(size, RAX))
}

fn store_quotient(vp: &mut Vp, size: u8, (quotient, remainder): (u64, u64)) -> Step {
    if size == 1 {
        vp.set_gpr(2, RAX, (remainder & 0xff) << 8 | quotient & 0xff);
    } else {
        vp.set_gpr(size, RAX, quotient);
        vp.set_gpr(size, RDX, remainder);
    }
    Ok(())
}

fn div(vp: &mut Vp, op: &Op) -> Step {
    let divisor = vp.read_rm(op, op.size)?;
    let value = dividend(vp, op.size);
    let bits = 8 * u32::from(op.size);
    if divisor == 0 || value >> bits >= u128::from(divisor) {
        return Err(vp.raise(Fault::new(vector::DE, 0)));
    }
    let flags = &mut vp.state.arith;
    let (low, high) = (value as u64, (value >> bits) as u64);
    let result = arith::div(low, high, divisor, u64::from(op.size), flags);
    store_quotient(vp, op.size, result)
}

fn idiv(vp: &mut Vp, op: &Op) -> Step {
    let raw = vp.read_rm(op, op.size)?;
    let bits = 8 * u32::from(op.size);
    let divisor = i128::from(((raw << (64 - bits)) as i64) >> (64 - bits));
    let value = ((dividend(vp, op.size) << (128 - 2 * bits)) as i128) >> (128 - 2 * bits);
    let limit = 1i128 << (bits - 1);
    let quotient = value.checked_div(divisor);
    match quotient {
        Some(quotient) if (-limit..limit).contains(&quotient) => {
            let flags = &mut vp.state.arith;
            let (low, high) = (value as u64, (value >> bits) as u64);
            let result = arith::idiv(low, high, raw, u64::from(op.size), flags);
            store_quotient(vp, op.size, result)
        }
        _ => Err(vp.raise(Fault::new(vector::DE, 0))),
    }
}
