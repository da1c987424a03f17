//! x87, MMX and SSE, and the instructions that save and restore their state.
//!
//! Frequent moves are plain Rust ([`moves`]); arithmetic runs as itself
//! through [`crate::native`] ([`vector`], [`x87`]); state is handled in Rust
//! ([`control`], [`environment`], [`area`], [`xsave`]).
//!
//! What CPUID may offer for this module: leaf 1 EDX FPU, MMX, FXSR, SSE, SSE2,
//! CLFSH; ECX SSE3, SSSE3, SSE4.1, SSE4.2, AES and PCLMULQDQ where the host
//! has them (they are undefined opcodes otherwise), XSAVE; leaf 7 EBX CLFLUSHOPT
//! bit 6 (FDP is written with an unmasked exception only, as FOP is) and bit 13
//! (FCS and FDS are deprecated: always saved as 0); leaf 0Dh as [`xsave`] has
//! it. MXCSR_MASK is [`MXCSR_MASK`].
//!
//! With CR0.NE clear, a pending x87 exception would assert FERR# and wait for
//! an interrupt; here nothing is connected to FERR# and IGNNE# is always
//! asserted, so execution goes on.

mod area;
mod control;
mod environment;
mod inexact;
mod masked;
mod moves;
mod registers;
mod vector;
mod x87;
mod xsave;

#[cfg(test)]
mod tests;

pub(crate) use control::{load_mxcsr, store_mxcsr};
pub(crate) use inexact::{Scaling, Shape};
pub(crate) use masked::{masked_operands, store_masked};
pub(crate) use xsave::{COMPONENT_AVX, COMPONENTS, area_size};

use crate::Vp;
use crate::decode::Selected;
use crate::fault::{Fault, Step, vector as exception};
use crate::mmu::{self, Access};
use crate::op::Op;
use crate::state::cr;
use iced_x86::Instruction;

/// MXCSR exception flags.
pub(crate) mod mxcsr {
    /// Invalid, denormal, divide by zero: found before computing.
    pub(crate) const BEFORE: u32 = 0x07;
    /// Underflow.
    pub(crate) const UNDERFLOW: u32 = 0x10;
    /// Overflow.
    pub(crate) const OVERFLOW: u32 = 0x08;
    /// Overflow and underflow.
    pub(crate) const RANGE: u32 = OVERFLOW | UNDERFLOW;
    /// Inexact.
    pub(crate) const INEXACT: u32 = 0x20;
    /// Denormal operands are zeros.
    pub(crate) const ZEROS: u32 = 0x40;
    /// All six.
    pub(crate) const ALL: u32 = 0x3f;
    /// All masked.
    pub(crate) const MASKED: u32 = 0x1f80;
    /// Flush to zero.
    pub(crate) const FLUSH: u32 = 0x8000;
}

/// MXCSR bits that exist.
pub(crate) const MXCSR_MASK: u32 = 0xffff;

/// The handler for an instruction of this module.
pub(crate) fn select(instruction: &Instruction, op: &mut Op) -> Option<Selected> {
    moves::select(instruction, op)
        .or_else(|| masked::select(instruction, op))
        .or_else(|| control::select(instruction))
        .or_else(|| environment::select(instruction))
        .or_else(|| area::select(instruction, op))
        .or_else(|| xsave::select(instruction, op))
        .or_else(|| x87::select(instruction, op))
        .or_else(|| vector::select(instruction, op))
}

impl Vp {
    /// SSE may be used: #UD without CR4.OSFXSR or with CR0.EM, then #NM with
    /// CR0.TS (SDM 3A 13.1).
    #[inline(always)]
    pub(crate) fn check_sse(&mut self) -> Step {
        if self.state.cr0 & (cr::CR0_EM | cr::CR0_TS) == 0 && self.state.cr4 & cr::CR4_OSFXSR != 0 {
            return Ok(());
        }
        self.sse_unavailable()
    }

    #[cold]
    fn sse_unavailable(&mut self) -> Step {
        if self.state.cr0 & cr::CR0_EM != 0 || self.state.cr4 & cr::CR4_OSFXSR == 0 {
            return Err(self.ud());
        }
        Err(self.raise(Fault::new(exception::NM, 0)))
    }

    /// MMX may be used: #UD with CR0.EM, #NM with CR0.TS, #MF when an x87
    /// exception is pending.
    #[inline]
    pub(crate) fn check_mmx(&mut self) -> Step {
        if self.state.cr0 & cr::CR0_EM != 0 {
            return Err(self.ud());
        }
        if self.state.cr0 & cr::CR0_TS != 0 {
            return Err(self.raise(Fault::new(exception::NM, 0)));
        }
        self.check_pending()
    }

    /// x87 may be used: #NM with CR0.EM or CR0.TS.
    #[inline]
    pub(crate) fn check_x87(&mut self) -> Step {
        if self.state.cr0 & (cr::CR0_EM | cr::CR0_TS) != 0 {
            return Err(self.raise(Fault::new(exception::NM, 0)));
        }
        Ok(())
    }

    /// The same for waiting instructions: #MF when an exception is pending.
    #[inline]
    pub(crate) fn check_x87_waiting(&mut self) -> Step {
        self.check_x87()?;
        self.check_pending()
    }

    /// #MF when an unmasked x87 exception is pending and CR0.NE is set.
    #[inline]
    pub(crate) fn check_pending(&mut self) -> Step {
        if self.state.fpu.pending() && self.state.cr0 & cr::CR0_NE != 0 {
            return Err(self.raise(Fault::new(exception::MF, 0)));
        }
        Ok(())
    }

    /// #GP(0) unless `linear` is a multiple of `alignment`, a power of two.
    #[inline(always)]
    pub(crate) fn check_aligned(&mut self, linear: u64, alignment: u64) -> Step {
        if linear & (alignment - 1) != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Faults as an access would, without making it.
    pub(crate) fn check_access(&mut self, linear: u64, size: u64, access: Access) -> Step {
        let last = linear.wrapping_add(size.saturating_sub(1));
        if self.state.long_mode() && !(mmu::canonical(linear) && mmu::canonical(last)) {
            return Err(self.raise(Fault::non_canonical()));
        }
        self.probe(linear, size, access)
    }
}
