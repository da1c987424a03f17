//! Bit tests and scans, POPCNT, CRC32, RDRAND, RDSEED.

use crate::Vp;
use crate::arith;
use crate::decode::{Selected, register_number};
use crate::exec::alu::update;
use crate::fault::Step;
use crate::flags::ArithFlags;
use crate::mmu::Access;
use crate::op::{Op, OpFn, prefix};
use iced_x86::{Instruction, Mnemonic, OpKind};

pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run: OpFn = match instruction.mnemonic() {
        Mnemonic::Bt => bit(instruction, op, 0),
        Mnemonic::Bts => bit(instruction, op, 1),
        Mnemonic::Btr => bit(instruction, op, 2),
        Mnemonic::Btc => bit(instruction, op, 3),
        Mnemonic::Tzcnt if is_x86_feature_detected!("bmi1") => tzcnt,
        Mnemonic::Lzcnt if is_x86_feature_detected!("lzcnt") => lzcnt,
        // Where TZCNT and LZCNT are not offered, the same bytes are BSF and
        // BSR with a REP prefix that means nothing.
        Mnemonic::Bsf | Mnemonic::Tzcnt => bsf,
        Mnemonic::Bsr | Mnemonic::Lzcnt => bsr,
        Mnemonic::Popcnt => popcnt,
        Mnemonic::Crc32 => {
            op.dst = register_number(instruction.op0_register());
            op.aux = instruction.op0_register().size() as u8;
            op.size = if instruction.op1_kind() == OpKind::Memory {
                instruction.memory_size().size() as u8
            } else {
                instruction.op1_register().size() as u8
            };
            crc32
        }
        Mnemonic::Rdrand => {
            op.dst = register_number(instruction.op0_register());
            rdrand
        }
        Mnemonic::Rdseed => {
            op.dst = register_number(instruction.op0_register());
            rdseed
        }
        _ => return None,
    };
    Selected::plain(run)
}

/// `op.aux`: 0 BT, 1 BTS, 2 BTR, 3 BTC.
fn bit(instruction: &Instruction, op: &mut Op, kind: u8) -> OpFn {
    op.aux = kind;
    let immediate = instruction.op1_kind() != OpKind::Register;
    op.size = if instruction.op0_kind() == OpKind::Memory {
        instruction.memory_size().size() as u8
    } else {
        instruction.op0_register().size() as u8
    };
    if !immediate {
        op.dst = register_number(instruction.op1_register());
        op.size = instruction.op1_register().size() as u8;
    }
    match (op.has_memory(), immediate) {
        (false, false) => bit_register::<false>,
        (false, true) => bit_register::<true>,
        (true, false) => bit_string,
        (true, true) => bit_memory,
    }
}

fn apply(kind: u8, value: u64, at: u64, flags: &mut ArithFlags) -> u64 {
    match kind {
        0 => arith::bt64(value, at, flags),
        1 => arith::bts64(value, at, flags),
        2 => arith::btr64(value, at, flags),
        _ => arith::btc64(value, at, flags),
    }
}

fn bit_register<const IMMEDIATE: bool>(vp: &mut Vp, op: &Op) -> Step {
    let index = if IMMEDIATE {
        op.imm
    } else {
        vp.state.gpr[usize::from(op.dst) & 31]
    };
    let index = index & (u64::from(op.size) * 8 - 1);
    let value = vp.gpr(op.size, op.src);
    let result = apply(op.aux, value, index, &mut vp.state.arith);
    if op.aux != 0 {
        vp.set_gpr(op.size, op.src, result);
    }
    Ok(())
}

fn bit_memory(vp: &mut Vp, op: &Op) -> Step {
    let index = op.imm & (u64::from(op.size) * 8 - 1);
    let access = if op.aux == 0 {
        Access::Read
    } else {
        Access::Write
    };
    let linear = vp.linear(op, u64::from(op.size), access)?;
    bit_at(vp, op, linear, index)
}

/// A register operand names any bit before or behind the memory operand.
fn bit_string(vp: &mut Vp, op: &Op) -> Step {
    let bits = u64::from(op.size) * 8;
    let raw = vp.gpr(op.size, op.dst);
    let signed = ((raw << (64 - bits)) as i64) >> (64 - bits);
    let words = signed >> bits.trailing_zeros();
    let offset = vp
        .effective(op)
        .wrapping_add((words * i64::from(op.size)) as u64);
    let offset = vp.mask_address(offset, op.address_size);
    let access = if op.aux == 0 {
        Access::Read
    } else {
        Access::Write
    };
    let size = u64::from(op.size);
    let linear = vp.segment_linear(usize::from(op.segment), offset, size, access)?;
    bit_at(vp, op, linear, raw & (bits - 1))
}

fn bit_at(vp: &mut Vp, op: &Op, linear: u64, index: u64) -> Step {
    if op.aux == 0 {
        let value = vp.load_sized(linear, op.size)?;
        apply(0, value, index, &mut vp.state.arith);
        return Ok(());
    }
    if op.prefix & prefix::LOCK != 0
        && let Some((at, page)) = vp.modify(linear, u64::from(op.size))?
    {
        return locked_bit(vp, op, at, page, index);
    }
    let kind = op.aux;
    match op.size {
        2 => update(vp, linear, |v: u16, f| {
            apply(kind, u64::from(v), index, f) as u16
        }),
        4 => update(vp, linear, |v: u32, f| {
            apply(kind, u64::from(v), index, f) as u32
        }),
        _ => update(vp, linear, |v: u64, f| apply(kind, v, index, f)),
    }
}

fn locked_bit(vp: &mut Vp, op: &Op, at: *mut u8, page: u32, index: u64) -> Step {
    let size = u64::from(op.size);
    let mut old = match op.size {
        2 => u64::from(crate::host::load16(at)),
        4 => u64::from(crate::host::load32(at)),
        _ => crate::host::load64(at),
    };
    loop {
        let mut flags = vp.state.arith;
        let new = apply(op.aux, old, index, &mut flags);
        let seen = arith::cmpxchg(at, old, new, size);
        if seen == old {
            vp.state.arith = flags;
            vp.wrote(page);
            return Ok(());
        }
        old = seen;
    }
}

macro_rules! scan {
    ($name:ident, $f16:path, $f32:path, $f64:path) => {
        fn $name(vp: &mut Vp, op: &Op) -> Step {
            let source = vp.read_rm(op, op.size)?;
            let old = vp.state.gpr[usize::from(op.dst) & 31];
            let flags = &mut vp.state.arith;
            let result = match op.size {
                2 => u64::from($f16(old as u16, source as u16, flags)),
                4 => {
                    // A zero source leaves all 64 bits of the destination.
                    let result = $f32(old as u32, source as u32, flags);
                    if source == 0 && matches!(stringify!($name), "bsf" | "bsr") {
                        return Ok(());
                    }
                    u64::from(result)
                }
                _ => $f64(old, source, flags),
            };
            vp.set_gpr(op.size, op.dst, result);
            Ok(())
        }
    };
}
scan!(bsf, arith::bsf16, arith::bsf32, arith::bsf64);
scan!(bsr, arith::bsr16, arith::bsr32, arith::bsr64);
scan!(tzcnt, arith::tzcnt16, arith::tzcnt32, arith::tzcnt64);
scan!(lzcnt, arith::lzcnt16, arith::lzcnt32, arith::lzcnt64);
scan!(popcnt, arith::popcnt16, arith::popcnt32, arith::popcnt64);

fn crc32(vp: &mut Vp, op: &Op) -> Step {
    let value = vp.read_rm(op, op.size)?;
    let crc = arith::crc32(vp.reg::<u32>(op.dst), value, u64::from(op.size));
    vp.set_gpr(op.aux, op.dst, u64::from(crc));
    Ok(())
}

fn rdrand(vp: &mut Vp, op: &Op) -> Step {
    random(vp, op, false)
}

fn rdseed(vp: &mut Vp, op: &Op) -> Step {
    random(vp, op, true)
}

fn random(vp: &mut Vp, op: &Op, seed: bool) -> Step {
    let ready = vp
        .record
        .borrow_mut()
        .value(|| u64::from(arith::random(seed).is_some()))
        != 0;
    let value = ready.then(|| {
        vp.record
            .borrow_mut()
            .value(|| arith::random(seed).unwrap_or(0))
    });
    vp.set_gpr(op.size, op.dst, value.unwrap_or(0));
    vp.state.arith = ArithFlags::from_bits(u64::from(value.is_some()));
    Ok(())
}
