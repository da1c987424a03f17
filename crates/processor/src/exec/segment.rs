//! Loading segment registers: MOV and POP to them, LDS and its kin, and what
//! far transfers need of CS and SS.

use super::descriptor::{Descriptor, is_null, rpl};
use crate::Vp;
use crate::fault::{Step, Stop, vector};
use crate::mmu::Access;
use crate::op::Op;
use crate::state::{Segment, seg};
use crate::vp::attention;

/// Attributes of every segment in virtual-8086 mode: DPL 3, writable data.
const V86_ATTRIBUTES: u32 = 0xf3;

/// A null segment register; its base is 0, as AMD's NullSelectorClearsBase
/// and all Intel processors have it.
pub(crate) fn null_segment(selector: u16) -> Segment {
    // The DPL is kept for SS, where it is the CPL.
    let dpl = u32::from(selector & 3) << 5;
    Segment {
        base: 0,
        limit: 0,
        attributes: Segment::UNUSABLE | dpl,
        selector,
    }
}

/// A segment register in virtual-8086 mode.
pub(crate) fn v86_segment(selector: u16) -> Segment {
    Segment {
        base: u64::from(selector) << 4,
        limit: 0xffff,
        attributes: V86_ATTRIBUTES,
        selector,
    }
}

impl Vp {
    /// Loads ES, SS, DS, FS or GS.
    pub(crate) fn load_segment(&mut self, index: usize, selector: u16) -> Step {
        let segment = self.checked_segment(index, selector)?;
        self.state.seg[index] = segment;
        if index == seg::SS {
            self.mode_changed();
        }
        Ok(())
    }

    /// What loading `selector` into ES, SS, DS, FS or GS gives, after all
    /// checks, with the descriptor's accessed bit set.
    pub(crate) fn checked_segment(&mut self, index: usize, selector: u16) -> Result<Segment, Stop> {
        if self.state.real_segments() {
            return Ok(self.real_segment(index, selector));
        }
        if index == seg::SS {
            let cpl = self.state.cpl;
            return self.checked_stack(selector, cpl);
        }
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let found = self.descriptor_or(selector, vector::GP, 0)?;
        let level = rpl(selector).max(self.state.cpl);
        if !found.is_readable() || (!found.is_conforming() && level > found.dpl()) {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !found.present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        self.mark_accessed(&found)?;
        Ok(found.segment(selector))
    }

    /// SS by MOV, POP or LSS.
    fn checked_stack(&mut self, selector: u16, cpl: u8) -> Result<Segment, Stop> {
        if is_null(selector) {
            if self.state.code64() && cpl != 3 && rpl(selector) == cpl {
                return Ok(null_segment(selector));
            }
            return Err(self.gp(0));
        }
        self.checked_new_stack(selector, cpl, vector::GP, 0)
    }

    /// A stack segment for privilege `cpl`: `vector`(selector) when it is
    /// none, #SS(selector) when it is not present.
    pub(crate) fn checked_new_stack(
        &mut self,
        selector: u16,
        cpl: u8,
        vector: u8,
        ext: u32,
    ) -> Result<Segment, Stop> {
        let found = self.descriptor_or(selector, vector, ext)?;
        if rpl(selector) != cpl || !found.is_writable_data() || found.dpl() != cpl {
            return Err(self.selector_fault(vector, selector, ext));
        }
        if !found.present() {
            return Err(self.selector_fault(vector::SS, selector, ext));
        }
        self.mark_accessed(&found)?;
        Ok(found.segment(selector))
    }

    /// A segment register loaded in real or virtual-8086 mode.
    fn real_segment(&self, index: usize, selector: u16) -> Segment {
        if self.state.v86() {
            return v86_segment(selector);
        }
        // Real mode keeps the limit and the rights ("unreal" mode rests on it).
        let mut segment = self.state.seg[index];
        if segment.unusable() {
            segment = Segment {
                limit: 0xffff,
                attributes: 0x93,
                ..segment
            };
        }
        segment.base = u64::from(selector) << 4;
        segment.selector = selector;
        segment
    }

    /// CS in real or virtual-8086 mode.
    pub(crate) fn load_real_cs(&mut self, selector: u16) {
        let segment = self.real_segment(seg::CS, selector);
        self.commit_cs(segment);
    }

    /// Puts CS in place. The caller sets RIP and the CPL, and then calls
    /// [`Vp::mode_changed`].
    pub(crate) fn commit_cs(&mut self, segment: Segment) {
        if segment.base != self.state.seg[seg::CS].base {
            // The quick block lookup goes by RIP alone.
            self.mmu.generation = self.mmu.generation.wrapping_add(1);
        }
        self.state.seg[seg::CS] = segment;
    }

    /// Puts a code segment in place with RPL and CPL `cpl`.
    pub(crate) fn commit_code(&mut self, found: &Descriptor, selector: u16, cpl: u8) {
        let selector = selector & 0xfffc | u16::from(cpl);
        self.commit_cs(found.segment(selector));
        self.state.cpl = cpl;
    }

    /// After a return to an outer level: data segments that it may not use
    /// become null (SDM 3A 5.8.8).
    pub(crate) fn drop_inner_segments(&mut self) {
        let cpl = self.state.cpl;
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = &self.state.seg[index];
            let conforming = segment.kind() & 0x1c == 0x1c;
            if !segment.unusable() && !conforming && segment.dpl() < cpl {
                let base = segment.base;
                self.state.seg[index] = null_segment(0);
                if self.state.long_mode() && index >= seg::FS {
                    // Only the selector and the rights go; 64-bit code sets
                    // these bases by other means and counts on them.
                    self.state.seg[index].base = base;
                }
            }
        }
    }
}

/// MOV Sreg, r/m16.
pub(crate) fn mov_to_segment(vp: &mut Vp, op: &Op) -> Step {
    let selector = vp.read_rm(op, 2)? as u16;
    vp.load_segment(usize::from(op.dst), selector)?;
    shadow(vp, op);
    Ok(())
}

/// MOV r/m, Sreg: to a register in the operand size, to memory 16 bits.
pub(crate) fn mov_from_segment(vp: &mut Vp, op: &Op) -> Step {
    let selector = vp.state.seg[usize::from(op.dst)].selector;
    let size = if op.has_memory() { 2 } else { op.size };
    vp.write_rm(op, size, u64::from(selector))
}

/// PUSH Sreg.
pub(crate) fn push_segment(vp: &mut Vp, op: &Op) -> Step {
    let selector = vp.state.seg[usize::from(op.dst)].selector;
    vp.push(u64::from(selector), op.size)
}

/// POP Sreg.
pub(crate) fn pop_segment(vp: &mut Vp, op: &Op) -> Step {
    let mut frame = vp.frame_here();
    let selector = vp.frame_peek(&frame, 0, op.size)? as u16;
    vp.load_segment(usize::from(op.dst), selector)?;
    frame.drop_bytes(u64::from(op.size));
    // The stack pointer's width is that of the stack popped from.
    vp.frame_commit(&frame);
    shadow(vp, op);
    Ok(())
}

/// A load of SS holds off events for one instruction.
fn shadow(vp: &mut Vp, op: &Op) {
    if usize::from(op.dst) == seg::SS {
        vp.set_attention(attention::SHADOW | attention::STACK_SHADOW, true);
    }
}

/// LDS, LES, LFS, LGS and LSS; the segment register is in `aux`.
pub(crate) fn load_far_pointer(vp: &mut Vp, op: &Op) -> Step {
    let (offset, selector) = vp.far_pointer(op)?;
    vp.load_segment(usize::from(op.aux), selector)?;
    vp.set_gpr(op.size, op.dst, offset);
    Ok(())
}

impl Vp {
    /// Reads the far pointer that `op` names: offset of the operand size, then
    /// the selector.
    pub(crate) fn far_pointer(&mut self, op: &Op) -> Result<(u64, u16), Stop> {
        let size = u64::from(op.size);
        let at = self.linear(op, size + 2, Access::Read)?;
        let mut bytes = [0; 10];
        self.load_bytes(at, &mut bytes[..size as usize + 2])?;
        let mut offset = [0; 8];
        offset[..size as usize].copy_from_slice(&bytes[..size as usize]);
        let selector = u16::from_le_bytes([bytes[size as usize], bytes[size as usize + 1]]);
        Ok((u64::from_le_bytes(offset), selector))
    }
}
