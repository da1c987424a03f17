//! Gathers: VGATHERDPS, VPGATHERQQ and their kin.

use crate::Vp;
use crate::decode::Selected;
use crate::fault::{Step, Stop, StopReason};
use crate::mmu::Access;
use crate::op::{Op, prefix};
use crate::state::reg;
use iced_x86::{Instruction, Mnemonic, Register};

/// Bits of `Op::imm`: indices are 8 bytes, not 4.
const WIDE_INDEX: u64 = 1 << 8;

/// The handler for a gather. `Op::imm`: the number of elements (bits 7:0) and
/// [`WIDE_INDEX`]; `Op::aux`: the mask's register; `Op::src`: the indices'.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    use Mnemonic as M;
    let (index_size, size) = match instruction.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => (4, 4),
        M::Vgatherdpd | M::Vpgatherdq => (4, 8),
        M::Vgatherqps | M::Vpgatherqd => (8, 4),
        M::Vgatherqpd | M::Vpgatherqq => (8, 8),
        _ => return None,
    };
    let index = instruction.memory_index();
    let bytes = |register: Register| if register.is_ymm() { 32 } else { 16 };
    let elements = (bytes(index) / index_size).min(bytes(instruction.op0_register()) / size);
    op.imm = elements as u64 | if index_size == 8 { WIDE_INDEX } else { 0 };
    op.size = size as u8;
    op.dst = instruction.op0_register().number() as u8;
    op.src = index.number() as u8;
    op.aux = instruction.op2_register().number() as u8;
    op.index = reg::ZERO as u8;
    if instruction.memory_base() == Register::None {
        op.address_size = if instruction.memory_displ_size() == 8 {
            8
        } else {
            4
        };
    }
    op.prefix |= prefix::MEMORY;
    Selected::plain(gather)
}

/// A vector register as bytes.
fn register(vp: &Vp, number: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    let number = usize::from(number);
    bytes[..16].copy_from_slice(&vp.state.fpu.xmm(number).to_le_bytes());
    bytes[16..].copy_from_slice(&vp.state.fpu.upper(number).to_le_bytes());
    bytes
}

fn set_register(vp: &mut Vp, number: u8, bytes: &[u8; 32]) {
    let half = |at: usize| {
        let mut half = [0; 16];
        half.copy_from_slice(&bytes[at..at + 16]);
        u128::from_le_bytes(half)
    };
    let number = usize::from(number);
    vp.state.fpu.set_xmm(number, half(0));
    vp.state.fpu.set_upper(number, half(16));
}

/// Element by element. One that faults leaves those before it in place, their
/// mask bits cleared, so that the instruction goes on where it stopped.
fn gather(vp: &mut Vp, op: &Op) -> Step {
    vp.check_avx()?;
    let size = usize::from(op.size);
    let elements = (op.imm as u8).into();
    let mut result = register(vp, op.dst);
    let mut mask = register(vp, op.aux);
    let indices = register(vp, op.src);
    for element in 0..elements {
        let range = element * size..(element + 1) * size;
        if mask[range.end - 1] & 0x80 != 0 {
            match load(vp, op, &indices, element) {
                Ok(value) => result[range.clone()].copy_from_slice(&value.to_le_bytes()[..size]),
                Err(stop) => {
                    // An access outside memory is asked for, and then all is
                    // done again.
                    if matches!(vp.stop, StopReason::Fault(_)) {
                        extend(&mut mask, size);
                        set_register(vp, op.dst, &result);
                        set_register(vp, op.aux, &mask);
                    }
                    return Err(stop);
                }
            }
        }
        mask[range].fill(0);
    }
    result[elements * size..].fill(0);
    set_register(vp, op.dst, &result);
    set_register(vp, op.aux, &[0; 32]);
    Ok(())
}

/// Spreads each element's sign, as is done to a mask before the first access.
fn extend(mask: &mut [u8; 32], size: usize) {
    for element in mask.chunks_exact_mut(size) {
        let sign = element.last().map_or(0, |byte| byte & 0x80);
        element.fill(if sign != 0 { 0xff } else { 0 });
    }
}

fn load(vp: &mut Vp, op: &Op, indices: &[u8; 32], element: usize) -> Result<u64, Stop> {
    let index = if op.imm & WIDE_INDEX != 0 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&indices[8 * element..8 * element + 8]);
        i64::from_le_bytes(bytes)
    } else {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&indices[4 * element..4 * element + 4]);
        i64::from(i32::from_le_bytes(bytes))
    };
    let base = vp.state.gpr[usize::from(op.base) & 31];
    let offset = base
        .wrapping_add((index << (op.scale & 3)) as u64)
        .wrapping_add(op.disp);
    let offset = vp.mask_address(offset, op.address_size);
    let size = u64::from(op.size);
    let linear = vp.segment_linear(usize::from(op.segment), offset, size, Access::Read)?;
    vp.load_sized(linear, op.size)
}
