//! FXSAVE and FXRSTOR, and the legacy area of XSAVE.

use super::MXCSR_MASK;
use crate::Vp;
use crate::decode::Selected;
use crate::fault::{Step, Stop};
use crate::mmu::Access;
use crate::op::{Op, OpFn};
use crate::state::Fpu;
use iced_x86::{Code, Instruction};

/// The legacy area, bytes.
pub(super) const LEGACY: usize = 512;
/// The handler for one of these.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let (run, wide): (OpFn, bool) = match instruction.code() {
        Code::Fxsave_m512byte => (fxsave, false),
        Code::Fxsave64_m512byte => (fxsave, true),
        Code::Fxrstor_m512byte => (fxrstor, false),
        Code::Fxrstor64_m512byte => (fxrstor, true),
        _ => return None,
    };
    op.aux = u8::from(wide);
    Selected::plain(run)
}

/// Bytes of the XMM registers that the mode has: 16 in 64-bit code, else 8.
pub(super) fn xmm_range(vp: &Vp) -> std::ops::Range<usize> {
    let count = if vp.state.code64() { 16 } else { 8 };
    Fpu::XMM..Fpu::XMM + 16 * count
}

/// FCW to FDP. Without REX.W the pointers are 32 bits each and the selectors
/// behind them 0.
pub(super) fn pointers_out(fpu: &Fpu, wide: bool) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes.copy_from_slice(&fpu.fxsave[..24]);
    bytes[5] = 0;
    if !wide {
        bytes[12..16].fill(0);
        bytes[20..24].fill(0);
    }
    bytes
}

/// The x87 component from a legacy area.
pub(super) fn load_x87(fpu: &mut Fpu, area: &[u8], wide: bool) {
    let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    fpu.fxsave[..24].copy_from_slice(&area[..24]);
    fpu.fxsave[5] = 0;
    fpu.set_opcode(word(6));
    if !wide {
        fpu.fxsave[12..16].fill(0);
        fpu.fxsave[20..24].fill(0);
    }
    fpu.set_control_status(word(0), word(2));
    for index in 0..8 {
        let at = Fpu::ST + 16 * index;
        fpu.set_st(index, &area[at..at + 10]);
    }
}

pub(super) fn mxcsr_of(vp: &mut Vp, area: &[u8]) -> Result<u32, Stop> {
    let mxcsr = u32::from_le_bytes([area[24], area[25], area[26], area[27]]);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(vp.gp(0));
    }
    Ok(mxcsr)
}

fn fxsave(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87()?;
    let linear = vp.linear(op, LEGACY as u64, Access::Write)?;
    vp.check_aligned(linear, 16)?;
    let registers = xmm_range(vp);
    let mut area = [0; LEGACY];
    area[..registers.end].copy_from_slice(&vp.state.fpu.fxsave[..registers.end]);
    area[..24].copy_from_slice(&pointers_out(&vp.state.fpu, op.aux != 0));
    area[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    // The rest of the area is left as it is, but must be there.
    vp.check_access(linear, LEGACY as u64, Access::Write)?;
    vp.store_bytes(linear, &area[..registers.end])
}

fn fxrstor(vp: &mut Vp, op: &Op) -> Step {
    vp.check_x87()?;
    let linear = vp.linear(op, LEGACY as u64, Access::Read)?;
    vp.check_aligned(linear, 16)?;
    let mut area = [0; LEGACY];
    vp.load_bytes(linear, &mut area)?;
    let mxcsr = mxcsr_of(vp, &area)?;
    let registers = xmm_range(vp);
    load_x87(&mut vp.state.fpu, &area, op.aux != 0);
    vp.state.fpu.fxsave[registers.clone()].copy_from_slice(&area[registers]);
    vp.state.fpu.set_mxcsr(mxcsr);
    Ok(())
}
