//! Moves between vector registers, general registers and memory, and the
//! instructions that clear a register: too frequent for stubs.

use crate::Vp;
use crate::decode::Selected;
use crate::fault::{Step, Stop};
use crate::mmu::Access;
use crate::native;
use crate::op::{Op, OpFn};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

const LOW: u128 = u64::MAX as u128;

/// The handler for a move.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run = full(instruction)
        .or_else(|| scalar(instruction))
        .or_else(|| halves(instruction))
        .or_else(|| between(instruction))?;
    // Registers by their place as an operand, whichever part of ModRM names them.
    if instruction.op0_kind() == OpKind::Register {
        op.dst = instruction.op0_register().number() as u8;
    }
    if instruction.op1_kind() == OpKind::Register {
        op.src = instruction.op1_register().number() as u8;
    }
    Selected::plain(run)
}

fn stores(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::Memory
}

fn loads(instruction: &Instruction) -> bool {
    instruction.op1_kind() == OpKind::Memory
}

/// All 16 bytes.
fn full(instruction: &Instruction) -> Option<OpFn> {
    use Mnemonic as M;
    let aligned = match instruction.mnemonic() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntdqa | M::Movntps | M::Movntpd | M::Movntdq => {
            true
        }
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => false,
        M::Pxor | M::Xorps | M::Xorpd => return clearing(instruction),
        _ => return None,
    };
    Some(match (stores(instruction), loads(instruction), aligned) {
        (true, _, true) => store_full::<true>,
        (true, _, false) => store_full::<false>,
        (_, true, true) => load_full::<true>,
        (_, true, false) => load_full::<false>,
        _ => copy_full,
    })
}

/// Exclusive or of XMM registers.
fn clearing(instruction: &Instruction) -> Option<OpFn> {
    let vector = instruction.op0_register().is_xmm();
    (vector && instruction.op1_kind() == OpKind::Register).then_some(exclusive_or)
}

/// MOVSS, MOVSD and MOVQ.
fn scalar(instruction: &Instruction) -> Option<OpFn> {
    Some(match instruction.code() {
        Code::Movss_xmm_xmmm32 if loads(instruction) => load_low::<4>,
        Code::Movsd_xmm_xmmm64 if loads(instruction) => load_low::<8>,
        Code::Movq_xmm_xmmm64 if loads(instruction) => load_low::<8>,
        Code::Movss_xmmm32_xmm if stores(instruction) => store_low::<4>,
        Code::Movsd_xmmm64_xmm if stores(instruction) => store_low::<8>,
        Code::Movq_xmmm64_xmm if stores(instruction) => store_low::<8>,
        Code::Movss_xmm_xmmm32 | Code::Movss_xmmm32_xmm => merge::<0xffff_ffff>,
        Code::Movsd_xmm_xmmm64 | Code::Movsd_xmmm64_xmm => merge::<LOW>,
        Code::Movq_xmm_xmmm64 | Code::Movq_xmmm64_xmm => copy_low,
        _ => return None,
    })
}

/// MOVLPS, MOVHPS and their kin.
fn halves(instruction: &Instruction) -> Option<OpFn> {
    Some(match instruction.code() {
        Code::Movlps_xmm_m64 | Code::Movlpd_xmm_m64 => load_half::<false>,
        Code::Movhps_xmm_m64 | Code::Movhpd_xmm_m64 => load_half::<true>,
        Code::Movlps_m64_xmm | Code::Movlpd_m64_xmm => store_low::<8>,
        Code::Movhps_m64_xmm | Code::Movhpd_m64_xmm => store_high,
        Code::Movhlps_xmm_xmm => high_to_low,
        Code::Movlhps_xmm_xmm => low_to_high,
        _ => return None,
    })
}

/// Between kinds of registers.
fn between(instruction: &Instruction) -> Option<OpFn> {
    Some(match instruction.code() {
        Code::Movd_xmm_rm32 if loads(instruction) => load_low::<4>,
        Code::Movq_xmm_rm64 if loads(instruction) => load_low::<8>,
        Code::Movd_rm32_xmm if stores(instruction) => store_low::<4>,
        Code::Movq_rm64_xmm if stores(instruction) => store_low::<8>,
        Code::Movd_xmm_rm32 => gpr_to_xmm::<0xffff_ffff>,
        Code::Movq_xmm_rm64 => gpr_to_xmm::<{ u64::MAX }>,
        Code::Movd_rm32_xmm => xmm_to_gpr::<0xffff_ffff>,
        Code::Movq_rm64_xmm => xmm_to_gpr::<{ u64::MAX }>,
        Code::Movnti_m32_r32 => store_gpr::<4>,
        Code::Movnti_m64_r64 => store_gpr::<8>,
        Code::Movd_mm_rm32 if loads(instruction) => load_mm::<4>,
        Code::Movq_mm_rm64 | Code::Movq_mm_mmm64 if loads(instruction) => load_mm::<8>,
        Code::Movd_rm32_mm if stores(instruction) => store_mm::<4>,
        Code::Movq_rm64_mm | Code::Movq_mmm64_mm if stores(instruction) => store_mm::<8>,
        Code::Movntq_m64_mm => store_mm::<8>,
        Code::Movd_mm_rm32 => gpr_to_mm::<0xffff_ffff>,
        Code::Movq_mm_rm64 => gpr_to_mm::<{ u64::MAX }>,
        Code::Movd_rm32_mm => mm_to_gpr::<0xffff_ffff>,
        Code::Movq_rm64_mm => mm_to_gpr::<{ u64::MAX }>,
        Code::Movq_mm_mmm64 | Code::Movq_mmm64_mm => mm_to_mm,
        Code::Movq2dq_xmm_mm => mm_to_xmm,
        Code::Movdq2q_mm_xmm => xmm_to_mm,
        _ => return None,
    })
}

impl Vp {
    #[inline]
    fn xmm(&self, index: u8) -> u128 {
        self.state.fpu.xmm(usize::from(index))
    }

    #[inline]
    fn put_xmm(&mut self, index: u8, value: u128) {
        self.state.fpu.set_xmm(usize::from(index), value);
    }

    /// Loads 16 bytes; one instruction where they lie in one page.
    #[inline]
    pub(super) fn load_vector(&mut self, linear: u64) -> Result<u128, Stop> {
        if let Some(at) = self.mmu.lookup_read(linear, 16) {
            return Ok(native::load128(at));
        }
        let mut bytes = [0; 16];
        self.load_bytes(linear, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Stores 16 bytes; one instruction where they lie in one page.
    #[inline]
    pub(super) fn store_vector(&mut self, linear: u64, value: u128) -> Step {
        if let Some((at, page)) = self.mmu.lookup_write(linear, 16) {
            native::store128(at, value);
            self.wrote(page);
            return Ok(());
        }
        self.store_bytes(linear, &value.to_le_bytes())
    }
}

fn load_full<const ALIGNED: bool>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let linear = vp.linear(op, 16, Access::Read)?;
    if ALIGNED {
        vp.check_aligned(linear, 16)?;
    }
    let value = vp.load_vector(linear)?;
    vp.put_xmm(op.dst, value);
    Ok(())
}

fn store_full<const ALIGNED: bool>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let linear = vp.linear(op, 16, Access::Write)?;
    if ALIGNED {
        vp.check_aligned(linear, 16)?;
    }
    vp.store_vector(linear, vp.xmm(op.src))
}

fn copy_full(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    vp.put_xmm(op.dst, vp.xmm(op.src));
    Ok(())
}

fn exclusive_or(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    vp.put_xmm(op.dst, vp.xmm(op.dst) ^ vp.xmm(op.src));
    Ok(())
}

/// The low 4 or 8 bytes from memory, the rest cleared.
fn load_low<const SIZE: u8>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let linear = vp.linear(op, u64::from(SIZE), Access::Read)?;
    let value = vp.load_sized(linear, SIZE)?;
    vp.put_xmm(op.dst, u128::from(value));
    Ok(())
}

fn store_low<const SIZE: u8>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let linear = vp.linear(op, u64::from(SIZE), Access::Write)?;
    vp.store_sized(linear, SIZE, vp.xmm(op.src) as u64)
}

fn merge<const MASK: u128>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    vp.put_xmm(op.dst, vp.xmm(op.dst) & !MASK | vp.xmm(op.src) & MASK);
    Ok(())
}

fn copy_low(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    vp.put_xmm(op.dst, vp.xmm(op.src) & LOW);
    Ok(())
}

fn load_half<const HIGH: bool>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let linear = vp.linear(op, 8, Access::Read)?;
    let value = u128::from(vp.load::<u64>(linear)?);
    let old = vp.xmm(op.dst);
    vp.put_xmm(
        op.dst,
        if HIGH {
            old & LOW | value << 64
        } else {
            old & !LOW | value
        },
    );
    Ok(())
}

fn store_high(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let linear = vp.linear(op, 8, Access::Write)?;
    vp.store(linear, (vp.xmm(op.src) >> 64) as u64)
}

fn high_to_low(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    vp.put_xmm(op.dst, vp.xmm(op.dst) & !LOW | vp.xmm(op.src) >> 64);
    Ok(())
}

fn low_to_high(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    vp.put_xmm(op.dst, vp.xmm(op.dst) & LOW | vp.xmm(op.src) << 64);
    Ok(())
}

fn gpr_to_xmm<const MASK: u64>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let value = vp.gpr(8, op.src) & MASK;
    vp.put_xmm(op.dst, u128::from(value));
    Ok(())
}

fn xmm_to_gpr<const MASK: u64>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    let value = vp.xmm(op.src) as u64 & MASK;
    vp.set_gpr(8, op.dst, value);
    Ok(())
}

/// MOVNTI: no vector state is involved, so no check of it.
fn store_gpr<const SIZE: u8>(vp: &mut Vp, op: &Op) -> Step {
    let linear = vp.linear(op, u64::from(SIZE), Access::Write)?;
    vp.store_sized(linear, SIZE, vp.gpr(8, op.src))
}

fn load_mm<const SIZE: u8>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_mmx()?;
    let linear = vp.linear(op, u64::from(SIZE), Access::Read)?;
    let value = vp.load_sized(linear, SIZE)?;
    vp.state.fpu.enter_mmx();
    vp.state.fpu.set_mm(op.dst, value);
    Ok(())
}

fn store_mm<const SIZE: u8>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_mmx()?;
    let linear = vp.linear(op, u64::from(SIZE), Access::Write)?;
    // Read before the top of stack moves: the store may fault.
    let fpu = &vp.state.fpu;
    let slot = usize::from(op.src & 7).wrapping_sub(fpu.top());
    let bytes = fpu.st(slot);
    vp.store_sized(
        linear,
        SIZE,
        u64::from_le_bytes(std::array::from_fn(|at| bytes[at])),
    )?;
    vp.state.fpu.enter_mmx();
    Ok(())
}

fn gpr_to_mm<const MASK: u64>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_mmx()?;
    vp.state.fpu.enter_mmx();
    let value = vp.gpr(8, op.src) & MASK;
    vp.state.fpu.set_mm(op.dst, value);
    Ok(())
}

fn mm_to_gpr<const MASK: u64>(vp: &mut Vp, op: &Op) -> Step {
    vp.check_mmx()?;
    vp.state.fpu.enter_mmx();
    let value = vp.state.fpu.mm(op.src) & MASK;
    vp.set_gpr(8, op.dst, value);
    Ok(())
}

fn mm_to_mm(vp: &mut Vp, op: &Op) -> Step {
    vp.check_mmx()?;
    vp.state.fpu.enter_mmx();
    let value = vp.state.fpu.mm(op.src);
    vp.state.fpu.set_mm(op.dst, value);
    Ok(())
}

fn mm_to_xmm(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    vp.check_pending()?;
    vp.state.fpu.enter_mmx();
    let value = vp.state.fpu.mm(op.src);
    vp.put_xmm(op.dst, u128::from(value));
    Ok(())
}

fn xmm_to_mm(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    vp.check_pending()?;
    vp.state.fpu.enter_mmx();
    let value = vp.xmm(op.src) as u64;
    vp.state.fpu.set_mm(op.dst, value);
    Ok(())
}
