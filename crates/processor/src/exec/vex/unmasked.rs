//! AVX arithmetic while the guest has unmasked an exception of MXCSR.
//!
//! As for SSE: the result is computed beside its register with everything
//! masked, and written only if nothing of what was found is to be reported
//! (SDM 1 11.5). A fused multiply-add whose result is out of range reports PE
//! as it does with overflow and underflow masked.

use super::{MASKED, OPERANDS, Operands, operand};
use crate::Vp;
use crate::exec::fpu::{MXCSR_MASK, Scaling, Shape, mxcsr};
use crate::fault::{Fault, Step, vector as exception};
use crate::host;
use crate::native::Stub;
use crate::op::Op;
use crate::state::{Fpu, cr};

/// What an instruction is computed on and into.
struct Beside {
    pointers: [*mut u8; OPERANDS],
    /// The vector registers with the result.
    vectors: Box<Fpu>,
    /// The result in a general register.
    general: Box<u64>,
}

impl Beside {
    /// Results go elsewhere, and a memory operand is read for once and all.
    fn new(vp: &mut Vp, op: &Op, operands: &Operands) -> Self {
        let mut beside = Self {
            pointers: operands.pointers,
            vectors: Box::new(vp.state.fpu.clone()),
            general: Box::new(0),
        };
        let staging = vp.native.frame.memory.as_mut_ptr();
        for i in 0..OPERANDS {
            let one = description(op, i);
            match one & operand::KIND {
                operand::VECTOR if i == 0 => {
                    beside.pointers[0] = slot(&mut beside.vectors, usize::from(one & 15));
                }
                operand::GENERAL if i == 0 => {
                    beside.pointers[0] = (&raw mut *beside.general).cast();
                }
                operand::MEMORY => {
                    if i != 0 && operands.pointers[i] != staging {
                        let mut bytes = [0; 32];
                        let length = bytes.len().min(usize::from(op.size));
                        host::copy_from(operands.pointers[i], &mut bytes[..length]);
                        vp.native.frame.memory[..32].copy_from_slice(&bytes);
                    }
                    beside.pointers[i] = staging;
                }
                _ => {}
            }
        }
        beside
    }

    /// Computes with the given MXCSR; returns the exceptions found.
    fn run(&mut self, vp: &mut Vp, op: &Op, control: u32) -> u32 {
        vp.native.frame.mxcsr = control;
        vp.native.frame.flags = vp.state.arith.0;
        vp.native.run_vex(op.imm as Stub, &self.pointers);
        vp.native.frame.mxcsr & mxcsr::ALL
    }
}

fn description(op: &Op, i: usize) -> u8 {
    (op.imm >> (32 + 8 * i)) as u8
}

/// A vector register of a copy, as stubs want it.
fn slot(vectors: &mut Fpu, number: usize) -> *mut u8 {
    let base: *mut u8 = (&raw mut *vectors).cast();
    base.wrapping_add(16 * (number & 15))
}

#[cold]
pub(super) fn run(vp: &mut Vp, op: &Op, operands: Operands) -> Step {
    let guest = vp.state.fpu.mxcsr() & MXCSR_MASK;
    let enabled = !(guest >> 7) & mxcsr::ALL;
    let mut control = guest & !mxcsr::ALL | MASKED;
    if enabled & mxcsr::UNDERFLOW != 0 {
        // Flushing to zero counts only while underflow is masked.
        control &= !mxcsr::FLUSH;
    }
    let mut beside = Beside::new(vp, op, &operands);
    let mut found = beside.run(vp, op, control);
    if enabled & mxcsr::UNDERFLOW != 0 && found & mxcsr::UNDERFLOW == 0 {
        // Unmasked, a tiny result is reported even if it is exact, and
        // flushing to zero tells about every tiny result.
        let mut flushed = Beside::new(vp, op, &operands);
        found |= flushed.run(vp, op, control | mxcsr::FLUSH) & mxcsr::UNDERFLOW;
        if to_half(op) && has_exact_denormal(vp, op) {
            found |= mxcsr::UNDERFLOW;
        }
    }
    if found & enabled & mxcsr::BEFORE != 0 {
        found &= mxcsr::BEFORE;
    } else if found & enabled & mxcsr::RANGE != 0 {
        found = found & !mxcsr::INEXACT | inexact(vp, op, control, &operands, found);
    }
    if found & enabled != 0 {
        vp.state.fpu.set_mxcsr(guest | found);
        if vp.state.cr4 & cr::CR4_OSXMMEXCPT == 0 {
            return Err(vp.ud());
        }
        return Err(vp.raise(Fault::new(exception::XM, 0)));
    }
    commit(vp, op, &operands, &beside)?;
    vp.state.fpu.set_mxcsr(guest | found);
    vp.vex_results(op);
    Ok(())
}

/// VCVTPS2PH, which never flushes to zero.
fn to_half(op: &Op) -> bool {
    let shape = Shape::from_bits(u64::from(op.dst));
    shape.scaling == Scaling::Narrow && shape.width == 4
}

/// An element of the source is a denormal number of half precision.
fn has_exact_denormal(vp: &Vp, op: &Op) -> bool {
    const SMALLEST_NORMAL: f32 = 1.0 / 16384.0;
    const SMALLEST: f32 = SMALLEST_NORMAL / 1024.0;
    let halves = source(vp, op, 1);
    let mut lanes = halves[..usize::from(op.src)]
        .iter()
        .flat_map(|half| half.chunks_exact(4));
    lanes.any(|lane| {
        let value = f32::from_le_bytes([lane[0], lane[1], lane[2], lane[3]]).abs();
        value > 0.0 && value < SMALLEST_NORMAL && (value / SMALLEST).fract() == 0.0
    })
}

fn commit(vp: &mut Vp, op: &Op, operands: &Operands, beside: &Beside) -> Step {
    let first = description(op, 0);
    match first & operand::KIND {
        operand::VECTOR => {
            let number = usize::from(first & 15);
            vp.state.fpu.set_xmm(number, beside.vectors.xmm(number));
            vp.state.fpu.set_upper(number, beside.vectors.upper(number));
        }
        operand::GENERAL => vp.state.gpr[usize::from(first & 15)] = *beside.general,
        _ if operands.page.is_some() => {
            let length = 32.min(usize::from(op.size));
            host::copy_to(operands.pointers[0], &vp.native.frame.memory[..length]);
        }
        _ => {}
    }
    vp.vex_stored(op, operands)
}

/// PE beside an unmasked overflow or underflow, result by result: see
/// [`crate::exec::fpu::Shape`].
fn inexact(vp: &mut Vp, op: &Op, control: u32, operands: &Operands, found: u32) -> u32 {
    let shape = Shape::from_bits(u64::from(op.dst));
    if shape.scaling == Scaling::None {
        return found & mxcsr::INEXACT;
    }
    let mut beside = Beside::new(vp, op, operands);
    let mut sources = Box::new(vp.state.fpu.clone());
    let values = [1, 2].map(|i| source(vp, op, i));
    for i in [1, 2] {
        if description(op, i) & operand::KIND == operand::VECTOR {
            beside.pointers[i] = slot(&mut sources, i);
        }
    }
    let mut run = |vp: &mut Vp, control: u32, half: usize, alone: [[u8; 16]; 2]| {
        let mut pair = [shape.isolate(usize::MAX, alone); 2];
        pair[half] = alone;
        for (i, number) in [(0, 1), (1, 2)] {
            let [low, high] = [pair[0][i], pair[1][i]];
            if description(op, number) & operand::KIND == operand::MEMORY {
                vp.native.frame.memory[..16].copy_from_slice(&low);
                vp.native.frame.memory[16..32].copy_from_slice(&high);
            } else {
                sources.set_xmm(number, u128::from_le_bytes(low));
                sources.set_upper(number, u128::from_le_bytes(high));
            }
        }
        beside.run(vp, op, control)
    };
    let enabled = !(vp.state.fpu.mxcsr() >> 7);
    let zeros = control & mxcsr::ZEROS != 0;
    let mut any = 0;
    for half in 0..usize::from(op.src) {
        for result in 0..shape.lanes() {
            let alone = shape.isolate(result, values.map(|value| value[half]));
            let mut flags = run(vp, control, half, alone);
            let tiny = run(vp, control | mxcsr::FLUSH, half, alone);
            // A tiny sum is always exact.
            let tiny = tiny & enabled & mxcsr::UNDERFLOW != 0
                && matches!(shape.scaling, Scaling::Product | Scaling::Narrow);
            if tiny || flags & enabled & mxcsr::OVERFLOW != 0 {
                flags = run(vp, control, half, shape.rescale(alone, zeros));
            }
            any |= flags & mxcsr::INEXACT;
        }
    }
    any
}

/// Both halves of a source operand.
fn source(vp: &Vp, op: &Op, i: usize) -> [[u8; 16]; 2] {
    let one = description(op, i);
    let number = usize::from(one & 15);
    let mut halves = [[0; 16]; 2];
    match one & operand::KIND {
        operand::VECTOR => {
            halves[0] = vp.state.fpu.xmm(number).to_le_bytes();
            halves[1] = vp.state.fpu.upper(number).to_le_bytes();
        }
        operand::MEMORY => {
            halves[0].copy_from_slice(&vp.native.frame.memory[..16]);
            halves[1].copy_from_slice(&vp.native.frame.memory[16..32]);
        }
        _ => {}
    }
    halves
}
