//! XSAVE, XSAVEOPT, XSAVEC and XRSTOR (SDM 1 chapter 13).
//!
//! State components: x87, SSE and AVX. An area in compacted format has the
//! upper halves of the YMM registers where the standard format has them, as
//! AVX is the first component behind the header.
//!
//! What CPUID leaf 0Dh says: XCR0 up to [`COMPONENTS`] where the host has AVX,
//! [`area_size`], in subleaf 1 XSAVEOPT, XSAVEC and XGETBV of 1.

use super::MXCSR_MASK;
use super::area::{LEGACY, load_x87, mxcsr_of, pointers_out, xmm_range};
use crate::Vp;
use crate::decode::Selected;
use crate::fault::{Fault, Step, Stop, vector};
use crate::host;
use crate::mmu::Access;
use crate::native;
use crate::op::{Op, OpFn};
use crate::state::{Fpu, State, cr, reg};
use iced_x86::{Code, Instruction};
use std::ops::Range;

/// XCR0 bit of the x87 component.
const X87: u64 = 1;
/// XCR0 bit of the SSE component.
const SSE: u64 = 2;
/// XCR0 bit of the AVX component.
pub(crate) const COMPONENT_AVX: u64 = 4;
/// Every component that there may be.
pub(crate) const COMPONENTS: u64 = X87 | SSE | COMPONENT_AVX;
/// MXCSR in its initial configuration.
const MXCSR_INITIAL: u32 = 0x1f80;
/// The legacy area and the header, bytes.
const BASIC: usize = LEGACY + 64;
/// XCOMP_BV bit of the compacted format.
const COMPACTED: u64 = 1 << 63;

/// Bytes of an XSAVE area for the components in `mask`, in either format.
pub(crate) fn area_size(mask: u64) -> u32 {
    let upper = if mask & COMPONENT_AVX != 0 { 256 } else { 0 };
    BASIC as u32 + upper
}

/// What tells the three instructions that save apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// All that is asked for.
    Plain,
    /// Without what is in its initial configuration.
    Optimized,
    /// The same in compacted format.
    Compacted,
}

/// The handler for one of these.
pub(super) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    let (run, wide): (OpFn, bool) = match instruction.code() {
        Code::Xsave_mem => (xsave, false),
        Code::Xsave64_mem => (xsave, true),
        Code::Xsaveopt_mem => (xsaveopt, false),
        Code::Xsaveopt64_mem => (xsaveopt, true),
        Code::Xsavec_mem => (xsavec, false),
        Code::Xsavec64_mem => (xsavec, true),
        Code::Xrstor_mem => (xrstor, false),
        Code::Xrstor64_mem => (xrstor, true),
        _ => return None,
    };
    op.aux = u8::from(wide);
    Selected::plain(run)
}

fn any(bytes: &[u8]) -> bool {
    let words = bytes.chunks_exact(8).map(|chunk| {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        u64::from_ne_bytes(word)
    });
    words.fold(0, |all, word| all | word) != 0
}

/// Bytes of the upper halves that the mode has registers for.
fn upper_range(state: &State) -> Range<usize> {
    0..if state.code64() { 256 } else { 128 }
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

    /// Components that are not in their initial configuration (XINUSE). MXCSR
    /// does not count.
    fn in_use(&mut self) -> u64 {
        let registers = xmm_range(self);
        let upper = upper_range(&self.state);
        let fpu = &mut self.state.fpu;
        let mut used = 0;
        let words = fpu.control() != 0x37f || fpu.status() != 0 || fpu.tags() != 0;
        let rest = &fpu.fxsave[8..24];
        if words || fpu.opcode() != 0 || any(rest) || any(&fpu.fxsave[Fpu::ST..Fpu::XMM]) {
            used |= X87;
        }
        if any(&fpu.fxsave[registers]) {
            used |= SSE;
        }
        if fpu.upper_used != 0 {
            if any(&fpu.upper[upper.clone()]) {
                used |= COMPONENT_AVX;
            } else if upper.len() == fpu.upper.len() {
                fpu.upper_used = 0;
            }
        }
        used
    }

    /// What XGETBV of 1 reads.
    pub(crate) fn components_in_use(&mut self) -> u64 {
        let mut used = self.in_use();
        if self.state.fpu.mxcsr() != MXCSR_INITIAL {
            used |= SSE;
        }
        used & self.state.xcr0
    }

    fn store_area(&mut self, linear: u64, offset: usize, bytes: &[u8]) -> Step {
        let linear = self.wrap_linear(linear.wrapping_add(offset as u64));
        let Some((at, page)) = self.mmu.lookup_write(linear, bytes.len() as u64) else {
            return self.store_bytes(linear, bytes);
        };
        // Quicker than a string instruction for so few bytes.
        let (pieces, rest) = bytes.as_chunks::<16>();
        for (number, piece) in pieces.iter().enumerate() {
            native::store128(at.wrapping_add(16 * number), u128::from_le_bytes(*piece));
        }
        if !rest.is_empty() {
            host::copy_to(at.wrapping_add(16 * pieces.len()), rest);
        }
        self.wrote(page);
        Ok(())
    }

    fn load_area(&mut self, linear: u64, bytes: &mut [u8]) -> Step {
        let Some(at) = self.mmu.lookup_read(linear, bytes.len() as u64) else {
            return self.load_bytes(linear, bytes);
        };
        let (pieces, rest) = bytes.as_chunks_mut::<16>();
        for (number, piece) in pieces.iter_mut().enumerate() {
            *piece = native::load128(at.wrapping_add(16 * number)).to_le_bytes();
        }
        if !rest.is_empty() {
            host::copy_from(at.wrapping_add(16 * pieces.len()), rest);
        }
        Ok(())
    }

    /// The legacy area's part of the components in `saved`. `mxcsr`: with
    /// MXCSR and its mask.
    fn store_legacy(&mut self, linear: u64, saved: u64, mxcsr: bool, wide: bool) -> Step {
        let registers = xmm_range(self);
        let mut area = [0; Fpu::XMM + 256];
        area.copy_from_slice(&self.state.fpu.fxsave[..Fpu::XMM + 256]);
        area[..24].copy_from_slice(&pointers_out(&self.state.fpu, wide));
        area[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        if saved & (X87 | SSE) == X87 | SSE && mxcsr {
            return self.store_area(linear, 0, &area[..registers.end]);
        }
        if saved & X87 != 0 {
            self.store_area(linear, 0, &area[..Fpu::MXCSR])?;
            self.store_area(linear, Fpu::ST, &area[Fpu::ST..Fpu::XMM])?;
        }
        if mxcsr {
            self.store_area(linear, Fpu::MXCSR, &area[Fpu::MXCSR..Fpu::ST])?;
        }
        if saved & SSE != 0 {
            self.store_area(linear, Fpu::XMM, &area[registers])?;
        }
        Ok(())
    }
}

fn xsave(vp: &mut Vp, op: &Op) -> Step {
    save(vp, op, Kind::Plain)
}

fn xsaveopt(vp: &mut Vp, op: &Op) -> Step {
    save(vp, op, Kind::Optimized)
}

fn xsavec(vp: &mut Vp, op: &Op) -> Step {
    save(vp, op, Kind::Compacted)
}

fn save(vp: &mut Vp, op: &Op, kind: Kind) -> Step {
    let requested = vp.requested()?;
    let mut in_use = vp.in_use();
    if kind == Kind::Compacted && vp.state.fpu.mxcsr() != MXCSR_INITIAL {
        in_use |= SSE;
    }
    let saved = match kind {
        Kind::Plain => requested,
        Kind::Optimized | Kind::Compacted => requested & in_use,
    };
    let size = u64::from(area_size(saved));
    let linear = vp.linear(op, size, Access::Write)?;
    vp.check_aligned(linear, 64)?;
    if vp.mmu.lookup_write(linear, size).is_none() {
        vp.check_access(linear, size, Access::Write)?;
    }
    let mxcsr = match kind {
        // Elsewhere MXCSR and its mask go with the request, used or not.
        Kind::Compacted => saved & SSE != 0,
        Kind::Plain | Kind::Optimized => requested & (SSE | COMPONENT_AVX) != 0,
    };
    let header = vp.wrap_linear(linear.wrapping_add(LEGACY as u64));
    let old = if kind == Kind::Compacted {
        0
    } else {
        vp.load::<u64>(header)?
    };
    vp.store_legacy(linear, saved, mxcsr, op.aux != 0)?;
    if saved & COMPONENT_AVX != 0 {
        vp.state.fpu.use_upper();
        let upper = upper_range(&vp.state);
        let mut bytes = [0; 256];
        bytes.copy_from_slice(&vp.state.fpu.upper);
        vp.store_area(linear, Fpu::UPPER, &bytes[upper])?;
    }
    if kind == Kind::Compacted {
        let format = vp.wrap_linear(header.wrapping_add(8));
        vp.store(format, COMPACTED | requested)?;
        return vp.store(header, saved);
    }
    vp.store(header, old & !requested | requested & in_use)
}

/// An area as XRSTOR reads it.
struct Area {
    bytes: [u8; BASIC],
    /// XSTATE_BV.
    present: u64,
    compacted: bool,
}

/// Reads legacy area and header, and checks the header (SDM 1 13.8.1 and
/// 13.8.2).
fn read_area(vp: &mut Vp, linear: u64) -> Result<Area, Stop> {
    let mut bytes = [0; BASIC];
    vp.load_area(linear, &mut bytes)?;
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[LEGACY + at..LEGACY + at + 8]);
        u64::from_le_bytes(word)
    };
    let (present, format) = (word(0), word(8));
    let compacted = format & COMPACTED != 0;
    let wrong = if compacted {
        format & !COMPACTED & !vp.state.xcr0 != 0
            || present & !format != 0
            || any(&bytes[LEGACY + 16..])
    } else {
        present & !vp.state.xcr0 != 0 || any(&bytes[LEGACY + 8..LEGACY + 24])
    };
    if wrong {
        return Err(vp.gp(0));
    }
    Ok(Area {
        bytes,
        present,
        compacted,
    })
}

fn xrstor(vp: &mut Vp, op: &Op) -> Step {
    let requested = vp.requested()?;
    let linear = vp.linear(op, BASIC as u64, Access::Read)?;
    vp.check_aligned(linear, 64)?;
    let area = read_area(vp, linear)?;
    let restored = requested & area.present;
    let mxcsr = match area.compacted {
        true if restored & SSE != 0 => Some(mxcsr_of(vp, &area.bytes)?),
        true if requested & SSE != 0 => Some(MXCSR_INITIAL),
        false if requested & (SSE | COMPONENT_AVX) != 0 => Some(mxcsr_of(vp, &area.bytes)?),
        _ => None,
    };
    let registers = upper_range(&vp.state);
    let mut upper = [0; 256];
    if restored & COMPONENT_AVX != 0 {
        let at = vp.wrap_linear(linear.wrapping_add(Fpu::UPPER as u64));
        vp.load_area(at, &mut upper[registers.clone()])?;
    }
    // Nothing faults from here on.
    if let Some(mxcsr) = mxcsr {
        vp.state.fpu.set_mxcsr(mxcsr);
    }
    if restored & X87 != 0 {
        load_x87(&mut vp.state.fpu, &area.bytes, op.aux != 0);
    } else if requested & X87 != 0 {
        vp.state.fpu.initialize_x87();
        vp.state.fpu.fxsave[Fpu::ST..Fpu::XMM].fill(0);
    }
    if requested & SSE != 0 {
        let registers = xmm_range(vp);
        let to = &mut vp.state.fpu.fxsave[registers.clone()];
        if restored & SSE != 0 {
            to.copy_from_slice(&area.bytes[registers]);
        } else {
            to.fill(0);
        }
    }
    if requested & COMPONENT_AVX != 0 {
        restore_upper(&mut vp.state.fpu, restored, &upper, registers);
    }
    Ok(())
}

fn restore_upper(fpu: &mut Fpu, restored: u64, upper: &[u8; 256], registers: Range<usize>) {
    if restored & COMPONENT_AVX != 0 {
        fpu.use_upper();
        fpu.upper[registers.clone()].copy_from_slice(&upper[registers]);
    } else if registers.len() == fpu.upper.len() {
        fpu.upper_used = 0;
    } else if fpu.upper_used != 0 {
        fpu.upper[registers].fill(0);
    }
}
