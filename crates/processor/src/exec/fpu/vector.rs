//! SSE and MMX instructions that run as themselves.
//!
//! A stub works on pointers: the guest's registers in the FXSAVE image and
//! the general registers, or staging memory with a memory operand's value.

use super::inexact::{Scaling, Shape};
use super::{MXCSR_MASK, mxcsr};
use crate::Vp;
use crate::decode::Selected;
use crate::fault::{Fault, Step, Stop, vector as exception};
use crate::flags::ArithFlags;
use crate::mmu::Access;
use crate::native::{Form, Place, Stub, load128};
use crate::op::Op;
use crate::state::{Fpu, cr, reg};
use iced_x86::{Instruction, OpKind};

/// `Op::aux`: place of the first operand in bits 1:0, of the second in 3:2.
const PLACE: u8 = 3;
/// `Op::aux`: the memory operand must be aligned to its 16 bytes.
const ALIGNED: u8 = 1 << 4;
/// `Op::aux`: reads or writes MXCSR.
const MXCSR: u8 = 1 << 5;
/// `Op::aux`: writes the status flags.
const FLAGS: u8 = 1 << 6;
/// `Op::aux`: operands that the encoding does not name.
const IMPLICIT: u8 = 1 << 7;
/// Bits of `Op::imm` above the stub: the [`Shape`].
const SHAPE_SHIFT: u32 = 32;

/// The handler for an SSE or MMX instruction that has a stub.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let form = Form::new(instruction)?;
    if form.is_x87() {
        return None;
    }
    let (first, second) = form.places();
    let first = first?;
    let second = second.unwrap_or(first);
    op.aux = first as u8 | (second as u8) << 2;
    op.aux |= if form.uses_mxcsr() { MXCSR } else { 0 };
    op.aux |= if form.writes_flags() { FLAGS } else { 0 };
    op.aux |= if form.has_implicit() { IMPLICIT } else { 0 };
    op.size = instruction.memory_size().size() as u8;
    // The string comparisons take unaligned operands.
    if op.size == 16 && !form.is_string() {
        op.aux |= ALIGNED;
    }
    if instruction.op0_kind() == OpKind::Register {
        op.dst = instruction.op0_register().number() as u8;
    }
    // Without a second operand the stub looks at none.
    op.src = if instruction.op1_kind() == OpKind::Register {
        instruction.op1_register().number() as u8
    } else {
        0
    };
    let shape = Shape::of(instruction.mnemonic());
    op.imm = u64::from(form.stub()?) | shape.bits() << SHAPE_SHIFT;
    let all_xmm = op.aux & !ALIGNED == 0;
    Selected::plain(match (instruction.op0_kind(), instruction.op1_kind()) {
        (OpKind::Memory, _) => extract,
        (_, OpKind::Memory) if all_xmm && op.aux & ALIGNED != 0 => plain_memory,
        (_, OpKind::Memory) => general::<true>,
        _ if all_xmm => plain_registers,
        _ => general::<false>,
    })
}

fn place(bits: u8) -> Place {
    match bits & PLACE {
        0 => Place::Xmm,
        1 => Place::Mm,
        _ => Place::Gpr,
    }
}

impl Vp {
    /// Where a register operand lives. MMX: after [`Fpu::enter_mmx`].
    #[inline(always)]
    fn register_pointer(&mut self, place: Place, number: u8) -> *mut u8 {
        let number = usize::from(number);
        match place {
            Place::Xmm => self.state.fpu.fxsave[Fpu::XMM + 16 * (number & 15)..].as_mut_ptr(),
            Place::Mm => self.state.fpu.fxsave[Fpu::ST + 16 * (number & 7)..].as_mut_ptr(),
            Place::Gpr => (&raw mut self.state.gpr[number & 15]).cast(),
        }
    }

    /// The memory operand: in place if it is 16 bytes within one page,
    /// otherwise copied to staging memory and zero-extended.
    #[inline]
    fn memory_pointer(&mut self, op: &Op) -> Result<*const u8, Stop> {
        let linear = self.linear(op, u64::from(op.size), Access::Read)?;
        if op.aux & ALIGNED != 0 {
            self.check_aligned(linear, 16)?;
        }
        let value = if op.size == 16 {
            if let Some(at) = self.mmu.lookup_read(linear, 16) {
                return Ok(at);
            }
            self.load_vector(linear)?
        } else {
            u128::from(self.load_sized(linear, op.size)?)
        };
        self.native.frame.memory[..16].copy_from_slice(&value.to_le_bytes());
        Ok(self.native.frame.memory.as_ptr())
    }

    /// #UD, #NM and #MF as the operands require: true with MMX registers.
    #[inline]
    fn check_vector(&mut self, op: &Op, memory: bool) -> Result<bool, Stop> {
        let (first, second) = (place(op.aux), place(op.aux >> 2));
        let mmx = first == Place::Mm || (second == Place::Mm && !memory);
        if first != Place::Xmm && second != Place::Xmm && mmx {
            self.check_mmx()?;
            return Ok(true);
        }
        self.check_sse()?;
        if mmx {
            self.check_pending()?;
        }
        Ok(mmx)
    }
}

/// XMM registers only, no MXCSR, no flags.
fn plain_registers(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let second = vp.register_pointer(Place::Xmm, op.src);
    let first = vp.register_pointer(Place::Xmm, op.dst);
    vp.native.run(op.imm as Stub, first, second);
    Ok(())
}

/// The same with 16 bytes of memory.
fn plain_memory(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let second = vp.memory_pointer(op)?;
    let first = vp.register_pointer(Place::Xmm, op.dst);
    vp.native.run(op.imm as Stub, first, second);
    Ok(())
}

/// Everything else that writes a register or only flags.
fn general<const MEMORY: bool>(vp: &mut Vp, op: &Op) -> Step {
    let mmx = vp.check_vector(op, MEMORY)?;
    let memory = if MEMORY {
        Some(vp.memory_pointer(op)?)
    } else {
        None
    };
    if op.aux & MXCSR != 0 && vp.state.fpu.mxcsr() & mxcsr::MASKED != mxcsr::MASKED {
        return unmasked(vp, op, mmx, memory);
    }
    if mmx {
        vp.state.fpu.enter_mmx();
    }
    let second = memory.unwrap_or_else(|| vp.register_pointer(place(op.aux >> 2), op.src));
    let first = vp.register_pointer(place(op.aux), op.dst);
    if op.aux & IMPLICIT != 0 {
        load_implicit(vp);
    }
    if op.aux & MXCSR != 0 {
        // Whoever set it from outside: the host takes no reserved bits.
        vp.native.frame.mxcsr = vp.state.fpu.mxcsr() & MXCSR_MASK;
    }
    vp.native.run(op.imm as Stub, first, second);
    if op.aux & MXCSR != 0 {
        vp.state.fpu.set_mxcsr(vp.native.frame.mxcsr);
    }
    finish(vp, op);
    Ok(())
}

fn load_implicit(vp: &mut Vp) {
    let frame = &mut vp.native.frame;
    frame.xmm0 = vp.state.fpu.xmm(0);
    frame.rax = vp.state.gpr[reg::RAX];
    frame.rcx = vp.state.gpr[reg::RCX];
    frame.rdx = vp.state.gpr[reg::RDX];
}

/// Takes over the results besides the first operand.
fn finish(vp: &mut Vp, op: &Op) {
    if op.aux & FLAGS != 0 {
        vp.state.arith = ArithFlags(vp.native.frame.flags);
        if op.aux & IMPLICIT != 0 {
            // The string comparisons: each leaves the other's result alone.
            vp.state.fpu.set_xmm(0, vp.native.frame.xmm0);
            vp.state.gpr[reg::RCX] = vp.native.frame.rcx;
        }
    }
    if place(op.aux) == Place::Mm {
        vp.state.fpu.mark_mm(op.dst);
    }
}

/// The guest has unmasked an exception: compute beside the register, see what
/// was detected, and write the result only if nothing is to be reported (SDM 1
/// 11.5). DPPS and DPPD really stop after the products if these raise an
/// exception; here flags of the sums may be there as well.
#[cold]
fn unmasked(vp: &mut Vp, op: &Op, mmx: bool, memory: Option<*const u8>) -> Step {
    let before = vp.state.fpu.clone();
    if mmx {
        vp.state.fpu.enter_mmx();
    }
    let first = place(op.aux);
    let bytes = first.bytes();
    let second = memory.unwrap_or_else(|| vp.register_pointer(place(op.aux >> 2), op.src));
    let guest = vp.state.fpu.mxcsr() & MXCSR_MASK;
    let enabled = !(guest >> 7) & mxcsr::ALL;
    let mut control = guest & !mxcsr::ALL | mxcsr::MASKED;
    if enabled & mxcsr::UNDERFLOW != 0 {
        // Flushing to zero counts only while underflow is masked.
        control &= !mxcsr::FLUSH;
    }
    let old = read_register(vp, first, op.dst);
    let mut operands = [old; 2];
    let second = if place(op.aux >> 2) == Place::Xmm {
        // It may be computed with more than once, but memory is read once.
        operands[1] = load128(second).to_le_bytes();
        vp.native.frame.memory[..16].copy_from_slice(&operands[1]);
        vp.native.frame.memory.as_ptr()
    } else {
        second
    };
    let mut found = run_beside(vp, op, control, old, second);
    let (flags, result) = (vp.native.frame.flags, vp.native.frame.spare);
    if enabled & mxcsr::UNDERFLOW != 0 && found & mxcsr::UNDERFLOW == 0 {
        // Unmasked, a tiny result is reported even if it is exact, and
        // flushing to zero tells about every tiny result.
        let flushed = run_beside(vp, op, control | mxcsr::FLUSH, old, second);
        found |= flushed & mxcsr::UNDERFLOW;
    }
    if found & enabled & mxcsr::BEFORE != 0 {
        found &= mxcsr::BEFORE;
    } else if found & enabled & mxcsr::RANGE != 0 {
        found = found & !mxcsr::INEXACT | inexact(vp, op, control, operands, found);
    }
    if found & enabled != 0 {
        vp.state.fpu = before;
        vp.state.fpu.set_mxcsr(guest | found);
        if vp.state.cr4 & cr::CR4_OSXMMEXCPT == 0 {
            return Err(vp.ud());
        }
        return Err(vp.raise(Fault::new(exception::XM, 0)));
    }
    write_register(vp, first, op.dst, &result[..bytes]);
    vp.state.fpu.set_mxcsr(guest | found);
    vp.native.frame.flags = flags;
    finish(vp, op);
    Ok(())
}

/// Runs the stub with another first operand; the result is in the frame.
/// Returns the exceptions it found.
fn run_beside(vp: &mut Vp, op: &Op, control: u32, first: [u8; 16], second: *const u8) -> u32 {
    vp.native.frame.mxcsr = control;
    vp.native.frame.spare = first;
    let spare = vp.native.frame.spare.as_mut_ptr();
    vp.native.run(op.imm as Stub, spare, second);
    vp.native.frame.mxcsr & mxcsr::ALL
}

/// PE beside an unmasked overflow or underflow, result by result: see
/// [`super::inexact`].
fn inexact(vp: &mut Vp, op: &Op, control: u32, operands: [[u8; 16]; 2], found: u32) -> u32 {
    let shape = Shape::from_bits(op.imm >> SHAPE_SHIFT);
    if shape.scaling == Scaling::None {
        return found & mxcsr::INEXACT;
    }
    let enabled = !(vp.state.fpu.mxcsr() >> 7);
    let run = |vp: &mut Vp, control: u32, operands: [[u8; 16]; 2]| {
        vp.native.frame.memory[..16].copy_from_slice(&operands[1]);
        let second = vp.native.frame.memory.as_ptr();
        run_beside(vp, op, control, operands[0], second)
    };
    let mut any = 0;
    for result in 0..shape.lanes() {
        let alone = shape.isolate(result, operands);
        let mut flags = run(vp, control, alone);
        let tiny = run(vp, control | mxcsr::FLUSH, alone) & enabled & mxcsr::UNDERFLOW != 0;
        // A tiny sum is always exact.
        let tiny = tiny && matches!(shape.scaling, Scaling::Product | Scaling::Narrow);
        if tiny || flags & enabled & mxcsr::OVERFLOW != 0 {
            let zeros = control & mxcsr::ZEROS != 0;
            flags = run(vp, control, shape.rescale(alone, zeros));
        }
        any |= flags & mxcsr::INEXACT;
    }
    any
}

fn read_register(vp: &Vp, place: Place, number: u8) -> [u8; 16] {
    match place {
        Place::Xmm => vp.state.fpu.xmm(usize::from(number)).to_le_bytes(),
        Place::Mm => u128::from(vp.state.fpu.mm(number)).to_le_bytes(),
        Place::Gpr => u128::from(vp.gpr(8, number)).to_le_bytes(),
    }
}

fn write_register(vp: &mut Vp, place: Place, number: u8, value: &[u8]) {
    let mut bytes = [0; 16];
    bytes[..value.len()].copy_from_slice(value);
    let value = u128::from_le_bytes(bytes);
    match place {
        Place::Xmm => vp.state.fpu.set_xmm(usize::from(number), value),
        Place::Mm => vp.state.fpu.set_mm(number, value as u64),
        Place::Gpr => vp.set_gpr(8, number, value as u64),
    }
}

/// PEXTRB and its kin to memory: the register form, then a store.
fn extract(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let linear = vp.linear(op, u64::from(op.size), Access::Write)?;
    let source = vp.register_pointer(Place::Xmm, op.src);
    let result = vp.native.frame.memory.as_mut_ptr();
    vp.native.run(op.imm as Stub, result, source);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&vp.native.frame.memory[..8]);
    vp.store_sized(linear, op.size, u64::from_le_bytes(bytes))
}
