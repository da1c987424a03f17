//! MASKMOVQ and MASKMOVDQU: bytes of a register, chosen by a mask, to DS:\[rDI\].

use crate::Vp;
use crate::decode::Selected;
use crate::fault::Step;
use crate::mmu::Access;
use crate::op::Op;
use crate::state::reg;
use iced_x86::{Code, Instruction, OpKind};

/// The handler for a masked move.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let run = match instruction.code() {
        Code::Maskmovq_rDI_mm_mm => masked_mm,
        Code::Maskmovdqu_rDI_xmm_xmm => masked_xmm,
        _ => return None,
    };
    masked_operands(instruction, op);
    Selected::plain(run)
}

/// Fills in value, mask and address size.
pub(crate) fn masked_operands(instruction: &Instruction, op: &mut Op) {
    op.dst = instruction.op1_register().number() as u8;
    op.src = instruction.op2_register().number() as u8;
    op.address_size = match instruction.op0_kind() {
        OpKind::MemorySegDI => 2,
        OpKind::MemorySegEDI => 4,
        _ => 8,
    };
}

fn masked_xmm(vp: &mut Vp, op: &Op) -> Step {
    vp.check_sse()?;
    store_masked(vp, op)
}

/// MASKMOVDQU and VMASKMOVDQU once they are allowed.
pub(crate) fn store_masked(vp: &mut Vp, op: &Op) -> Step {
    let value = vp.state.fpu.xmm(usize::from(op.dst)).to_le_bytes();
    let mask = vp.state.fpu.xmm(usize::from(op.src)).to_le_bytes();
    store(vp, op, &value, &mask)
}

fn masked_mm(vp: &mut Vp, op: &Op) -> Step {
    vp.check_mmx()?;
    let top = vp.state.fpu.top();
    let value = vp.state.fpu.st(usize::from(op.dst).wrapping_sub(top));
    let mask = vp.state.fpu.st(usize::from(op.src).wrapping_sub(top));
    store(vp, op, &value[..8], &mask[..8])?;
    vp.state.fpu.enter_mmx();
    Ok(())
}

/// Bytes under a clear mask are not touched: they are neither read nor
/// written back, so that other processors' stores to them are not lost.
fn store(vp: &mut Vp, op: &Op, value: &[u8], mask: &[u8]) -> Step {
    let size = value.len() as u64;
    let offset = vp.mask_address(vp.state.gpr[reg::RDI], op.address_size);
    let linear = vp.segment_linear(usize::from(op.segment), offset, size, Access::Write)?;
    let chosen = |at: usize| mask.get(at).is_some_and(|byte| byte & 0x80 != 0);
    if !(0..value.len()).any(chosen) {
        return Ok(());
    }
    vp.check_access(linear, size, Access::Write)?;
    for (at, &byte) in value.iter().enumerate() {
        if chosen(at) {
            let to = vp.wrap_linear(linear.wrapping_add(at as u64));
            vp.store(to, byte)?;
        }
    }
    Ok(())
}
