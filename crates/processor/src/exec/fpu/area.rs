//! FXSAVE, FXRSTOR, XSAVE, XSAVEOPT and XRSTOR.
//!
//! State components are listed in [`COMPONENTS`]; a further one (AVX) is a
//! further entry and its offset in [`Fpu::extended`].

use super::MXCSR_MASK;
use crate::Vp;
use crate::decode::Selected;
use crate::fault::{Fault, Step, Stop, vector};
use crate::mmu::Access;
use crate::op::{Op, OpFn};
use crate::state::{Fpu, cr, reg};
use iced_x86::{Code, Instruction};

/// XCR0 bit of the x87 component.
const X87: u64 = 1;
/// XCR0 bit of the SSE component.
const SSE: u64 = 2;
/// Every component that there is (CPUID.0Dh.0 EDX:EAX).
pub(crate) const COMPONENTS: u64 = X87 | SSE;
/// The legacy area, bytes.
const LEGACY: usize = 512;
/// The legacy area and the header, bytes (CPUID.0Dh.0 ECX).
pub(crate) const AREA_SIZE: usize = LEGACY + 64;

/// The handler for one of these.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let (run, wide): (OpFn, bool) = match instruction.code() {
        Code::Fxsave_m512byte => (fxsave, false),
        Code::Fxsave64_m512byte => (fxsave, true),
        Code::Fxrstor_m512byte => (fxrstor, false),
        Code::Fxrstor64_m512byte => (fxrstor, true),
        Code::Xsave_mem => (xsave::<false>, false),
        Code::Xsave64_mem => (xsave::<false>, true),
        Code::Xsaveopt_mem => (xsave::<true>, false),
        Code::Xsaveopt64_mem => (xsave::<true>, true),
        Code::Xrstor_mem => (xrstor, false),
        Code::Xrstor64_mem => (xrstor, true),
        _ => return None,
    };
    op.aux = u8::from(wide);
    Selected::plain(run)
}

/// Bytes of the XMM registers that the mode has: 16 in 64-bit code, else 8.
fn xmm_range(vp: &Vp) -> std::ops::Range<usize> {
    let count = if vp.state.code64() { 16 } else { 8 };
    Fpu::XMM..Fpu::XMM + 16 * count
}

/// FCW to FDP. Without REX.W the pointers are 32 bits each and the selectors
/// behind them 0.
fn pointers_out(fpu: &Fpu, wide: bool) -> [u8; 24] {
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
fn load_x87(fpu: &mut Fpu, area: &[u8], wide: bool) {
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

fn mxcsr_of(vp: &mut Vp, area: &[u8]) -> Result<u32, Stop> {
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

impl Vp {
    /// #UD without CR4.OSXSAVE, #NM with CR0.TS; then the components asked for.
    fn requested(&mut self) -> Result<u64, Stop> {
        if self.state.cr4 & cr::CR4_OSXSAVE == 0 {
            return Err(self.ud());
        }
        if self.state.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(Fault::new(vector::NM, 0)));
        }
        let mask = self.gpr(4, reg::RDX as u8) << 32 | self.gpr(4, reg::RAX as u8);
        Ok(mask & self.state.xcr0 & COMPONENTS)
    }

    /// Components that are not in their initial configuration (XINUSE).
    fn in_use(&self) -> u64 {
        let fpu = &self.state.fpu;
        let clear = |range: std::ops::Range<usize>| fpu.fxsave[range].iter().all(|&b| b == 0);
        let x87_initial = fpu.control() == 0x37f && clear(2..24) && clear(Fpu::ST..Fpu::ST + 128);
        let sse_initial = clear(xmm_range(self));
        (if x87_initial { 0 } else { X87 }) | (if sse_initial { 0 } else { SSE })
    }
}

/// XSAVE; with `OPTIMIZED` XSAVEOPT, which leaves out what is in its initial
/// configuration.
fn xsave<const OPTIMIZED: bool>(vp: &mut Vp, op: &Op) -> Step {
    let requested = vp.requested()?;
    let linear = vp.linear(op, AREA_SIZE as u64, Access::Write)?;
    vp.check_aligned(linear, 64)?;
    vp.check_access(linear, AREA_SIZE as u64, Access::Write)?;
    let at = |vp: &Vp, offset: usize| vp.wrap_linear(linear.wrapping_add(offset as u64));
    let in_use = vp.in_use();
    let header = at(vp, LEGACY);
    let old = vp.load::<u64>(header)?;
    let saved = if OPTIMIZED {
        requested & in_use
    } else {
        requested
    };
    if saved & X87 != 0 {
        let pointers = pointers_out(&vp.state.fpu, op.aux != 0);
        vp.store_bytes(linear, &pointers)?;
        let mut stack = [0; 128];
        stack.copy_from_slice(&vp.state.fpu.fxsave[Fpu::ST..Fpu::ST + 128]);
        vp.store_bytes(at(vp, Fpu::ST), &stack)?;
    }
    if requested & SSE != 0 {
        // MXCSR and its mask go with the request, used or not.
        let word = u64::from(MXCSR_MASK) << 32 | u64::from(vp.state.fpu.mxcsr());
        vp.store(at(vp, Fpu::MXCSR), word)?;
    }
    if saved & SSE != 0 {
        let registers = xmm_range(vp);
        let length = registers.len();
        let mut bytes = [0; 256];
        bytes[..length].copy_from_slice(&vp.state.fpu.fxsave[registers]);
        vp.store_bytes(at(vp, Fpu::XMM), &bytes[..length])?;
    }
    vp.store(header, old & !requested | requested & in_use)
}

/// XRSTOR in the standard format, the only one offered (SDM 1 13.8.1).
fn xrstor(vp: &mut Vp, op: &Op) -> Step {
    let requested = vp.requested()?;
    let linear = vp.linear(op, AREA_SIZE as u64, Access::Read)?;
    vp.check_aligned(linear, 64)?;
    let mut area = [0; AREA_SIZE];
    vp.load_bytes(linear, &mut area)?;
    let (legacy, header) = area.split_at(LEGACY);
    let mut present = [0; 8];
    present.copy_from_slice(&header[..8]);
    let present = u64::from_le_bytes(present);
    if present & !vp.state.xcr0 != 0 || header[8..24].iter().any(|&byte| byte != 0) {
        return Err(vp.gp(0));
    }
    if requested & SSE != 0 {
        let mxcsr = mxcsr_of(vp, legacy)?;
        vp.state.fpu.set_mxcsr(mxcsr);
    }
    if requested & X87 != 0 {
        if present & X87 != 0 {
            load_x87(&mut vp.state.fpu, legacy, op.aux != 0);
        } else {
            vp.state.fpu.initialize_x87();
            vp.state.fpu.fxsave[Fpu::ST..Fpu::ST + 128].fill(0);
        }
    }
    if requested & SSE != 0 {
        let registers = xmm_range(vp);
        if present & SSE != 0 {
            vp.state.fpu.fxsave[registers.clone()].copy_from_slice(&legacy[registers]);
        } else {
            vp.state.fpu.fxsave[registers].fill(0);
        }
    }
    Ok(())
}
