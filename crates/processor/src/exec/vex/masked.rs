//! VMASKMOVPS, VPMASKMOVD and their kin, and VMASKMOVDQU.

use super::{flag, stub};
use crate::Vp;
use crate::exec::fpu;
use crate::fault::{Step, Stop};
use crate::mmu::Access;
use crate::native::Stub;
use crate::op::{Address, Op, OpFn};
use iced_x86::{Instruction, Mnemonic};

/// `Op::size` beside the size of the whole operand: elements of 8 bytes.
const WIDE: u8 = 0x80;

/// The handler for a masked move.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<OpFn> {
    use Mnemonic as M;
    let wide = match instruction.mnemonic() {
        M::Vmaskmovps | M::Vpmaskmovd => false,
        M::Vmaskmovpd | M::Vpmaskmovq => true,
        M::Vmaskmovdqu => {
            fpu::masked_operands(instruction, op);
            return Some(masked_bytes);
        }
        _ => return None,
    };
    stub(instruction, op)?;
    let mask = instruction.op1_register().number() as u8;
    op.dst = mask;
    op.src = instruction.op2_register().number() as u8;
    if wide {
        op.size |= WIDE;
    }
    Some(if op.aux & flag::STORE != 0 {
        store
    } else {
        load
    })
}

fn masked_bytes(vp: &mut Vp, op: &Op) -> Step {
    vp.check_avx()?;
    fpu::store_masked(vp, op)
}

/// Which elements the mask in register `op.dst` chooses, and their size.
fn chosen(vp: &Vp, op: &Op) -> ([bool; 8], usize) {
    let (low, high) = (
        vp.state.fpu.xmm(usize::from(op.dst)),
        vp.state.fpu.upper(usize::from(op.dst)),
    );
    let size = if op.size & WIDE != 0 { 8 } else { 4 };
    let count = usize::from(op.size & !WIDE) / size;
    let mut chosen = [false; 8];
    for (element, one) in chosen.iter_mut().enumerate().take(count) {
        let bit = (element + 1) * size * 8 - 1;
        *one = if bit < 128 {
            low >> bit & 1 != 0
        } else {
            high >> (bit - 128) & 1 != 0
        };
    }
    (chosen, size)
}

/// The linear address of an element.
fn element(vp: &mut Vp, op: &Op, at: usize, size: usize, access: Access) -> Result<u64, Stop> {
    let offset = vp.effective(op).wrapping_add(at as u64);
    let offset = vp.mask_address(offset, op.address_size);
    vp.segment_linear(usize::from(op.segment), offset, size as u64, access)
}

/// Elements that are not chosen are zero; nothing is read for them.
fn load(vp: &mut Vp, op: &Op) -> Step {
    vp.check_avx()?;
    let whole = u64::from(op.size & !WIDE);
    let (chosen, size) = chosen(vp, op);
    let mut memory = [0; 32];
    let direct = if op.address == Address::Flat64 {
        let linear = vp.linear(op, whole, Access::Read)?;
        vp.mmu.lookup_read(linear, whole)
    } else {
        None
    };
    let from = match direct {
        Some(at) => at,
        None => {
            for (number, _) in chosen.iter().enumerate().filter(|(_, one)| **one) {
                let at = number * size;
                let linear = element(vp, op, at, size, Access::Read)?;
                let value = vp.load_sized(linear, size as u8)?;
                memory[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            memory.as_mut_ptr()
        }
    };
    vp.state.fpu.use_upper();
    let mut pointers = [std::ptr::null_mut(); super::OPERANDS];
    pointers[0] = vp.vector_pointer((op.imm >> 32) as u8);
    pointers[1] = vp.vector_pointer(op.dst);
    pointers[2] = from;
    vp.native.run_vex(op.imm as Stub, &pointers);
    Ok(())
}

/// Only chosen elements are written; others are not touched at all.
fn store(vp: &mut Vp, op: &Op) -> Step {
    vp.check_avx()?;
    let (chosen, size) = chosen(vp, op);
    let (low, high) = (
        vp.state.fpu.xmm(usize::from(op.src)),
        vp.state.fpu.upper(usize::from(op.src)),
    );
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&low.to_le_bytes());
    bytes[16..].copy_from_slice(&high.to_le_bytes());
    let mut places = [None; 8];
    for (number, _) in chosen.iter().enumerate().filter(|(_, one)| **one) {
        let linear = element(vp, op, number * size, size, Access::Write)?;
        // All or none.
        vp.check_store(linear, size as u64)?;
        places[number] = Some(linear);
    }
    for (number, place) in places.into_iter().enumerate() {
        let Some(linear) = place else { continue };
        let mut value = [0; 8];
        value[..size].copy_from_slice(&bytes[number * size..(number + 1) * size]);
        vp.store_sized(linear, size as u8, u64::from_le_bytes(value))?;
    }
    Ok(())
}
