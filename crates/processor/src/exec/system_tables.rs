//! Descriptor tables and what asks about descriptors: LGDT and its kin, LLDT,
//! LTR, LAR, LSL, VERR, VERW, ARPL.

use super::descriptor::{Descriptor, is_null, kind, rpl};
use crate::Vp;
use crate::fault::{Step, Stop, vector};
use crate::mmu::{self, Access};
use crate::op::Op;
use crate::state::{Segment, Table, seg};

/// SGDT.
pub(crate) fn sgdt(vp: &mut Vp, op: &Op) -> Step {
    let table = vp.state.gdtr;
    vp.store_table(op, table)
}

/// SIDT.
pub(crate) fn sidt(vp: &mut Vp, op: &Op) -> Step {
    let table = vp.state.idtr;
    vp.store_table(op, table)
}

/// LGDT.
pub(crate) fn lgdt(vp: &mut Vp, op: &Op) -> Step {
    vp.state.gdtr = vp.read_table(op)?;
    Ok(())
}

/// LIDT.
pub(crate) fn lidt(vp: &mut Vp, op: &Op) -> Step {
    vp.state.idtr = vp.read_table(op)?;
    Ok(())
}

/// SLDT.
pub(crate) fn sldt(vp: &mut Vp, op: &Op) -> Step {
    store_selector(vp, op, seg::LDTR)
}

/// STR.
pub(crate) fn str(vp: &mut Vp, op: &Op) -> Step {
    store_selector(vp, op, seg::TR)
}

fn store_selector(vp: &mut Vp, op: &Op, index: usize) -> Step {
    if vp.state.real_segments() {
        return Err(vp.ud());
    }
    vp.check_umip()?;
    let size = if op.has_memory() { 2 } else { op.size };
    vp.write_rm(op, size, u64::from(vp.state.seg[index].selector))
}

/// LLDT and LTR exist in protected mode only, at level 0.
fn check_system_load(vp: &mut Vp) -> Step {
    if vp.state.real_segments() {
        return Err(vp.ud());
    }
    if vp.state.cpl != 0 {
        return Err(vp.gp(0));
    }
    Ok(())
}

/// LLDT.
pub(crate) fn lldt(vp: &mut Vp, op: &Op) -> Step {
    check_system_load(vp)?;
    let selector = vp.read_rm(op, 2)? as u16;
    if is_null(selector) {
        vp.state.seg[seg::LDTR] = Segment {
            attributes: Segment::UNUSABLE,
            selector,
            ..Segment::default()
        };
        return Ok(());
    }
    if selector & 4 != 0 {
        return Err(vp.selector_fault(vector::GP, selector, 0));
    }
    let found = vp.descriptor_or(selector, vector::GP, 0)?;
    if found.kind() != kind::LDT {
        return Err(vp.selector_fault(vector::GP, selector, 0));
    }
    let segment = vp.system_segment(selector, &found)?;
    vp.state.seg[seg::LDTR] = segment;
    Ok(())
}

/// LTR.
pub(crate) fn ltr(vp: &mut Vp, op: &Op) -> Step {
    check_system_load(vp)?;
    let selector = vp.read_rm(op, 2)? as u16;
    if is_null(selector) {
        return Err(vp.gp(0));
    }
    if selector & 4 != 0 {
        return Err(vp.selector_fault(vector::GP, selector, 0));
    }
    let found = vp.descriptor_or(selector, vector::GP, 0)?;
    let available = match found.kind() {
        kind::TSS32 => true,
        kind::TSS16 => !vp.state.long_mode(),
        _ => false,
    };
    if !available {
        return Err(vp.selector_fault(vector::GP, selector, 0));
    }
    let mut segment = vp.system_segment(selector, &found)?;
    vp.update_type(found.at, 2, 0)?;
    segment.attributes |= 2;
    vp.state.seg[seg::TR] = segment;
    Ok(())
}

impl Vp {
    /// LDTR or TR from its descriptor, 16 bytes in long mode.
    fn system_segment(&mut self, selector: u16, found: &Descriptor) -> Result<Segment, Stop> {
        if !found.present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        let mut segment = found.segment(selector);
        if self.state.long_mode() {
            let high = self.descriptor_high(selector, *found)?;
            segment.base |= high << 32;
            if high >> 40 & 0x1f != 0 || !mmu::canonical(segment.base) {
                return Err(self.selector_fault(vector::GP, selector, 0));
            }
        }
        Ok(segment)
    }

    fn store_table(&mut self, op: &Op, table: Table) -> Step {
        self.check_umip()?;
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        // The operand size does not matter: all of the base is stored.
        let length = if self.state.code64() { 10 } else { 6 };
        let at = self.linear(op, length as u64, Access::Write)?;
        self.store_bytes(at, &bytes[..length])
    }

    fn read_table(&mut self, op: &Op) -> Result<Table, Stop> {
        if self.state.cpl != 0 {
            return Err(self.gp(0));
        }
        let long = self.state.code64();
        let length = if long { 10 } else { 6 };
        let at = self.linear(op, length as u64, Access::Read)?;
        let mut bytes = [0; 16];
        self.load_bytes(at, &mut bytes[..length])?;
        let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
        let base = u64::from_le_bytes([
            bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7], bytes[8], bytes[9],
        ]);
        if long && !mmu::canonical(base) {
            return Err(self.gp(0));
        }
        // A 16-bit operand size loads 24 bits.
        let base = if !long && op.size == 2 {
            base & 0xff_ffff
        } else {
            base
        };
        Ok(Table { base, limit })
    }

    /// The descriptor that LAR, LSL, VERR or VERW asks about, if there is one
    /// that the running code may see at all.
    fn visible_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Stop> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(found) = self.descriptor(selector)? else {
            return Ok(None);
        };
        let level = rpl(selector).max(self.state.cpl);
        Ok((found.is_conforming() || level <= found.dpl()).then_some(found))
    }
}

/// Reads the selector of LAR, LSL, VERR and VERW.
fn asked_selector(vp: &mut Vp, op: &Op) -> Result<u16, Stop> {
    if vp.state.real_segments() {
        return Err(vp.ud());
    }
    vp.read_rm(op, 2).map(|selector| selector as u16)
}

/// LAR.
pub(crate) fn lar(vp: &mut Vp, op: &Op) -> Step {
    let selector = asked_selector(vp, op)?;
    let long = vp.state.long_mode();
    let found = vp
        .visible_descriptor(selector)?
        .filter(|found| match found.kind() {
            kind::LDT | kind::TSS32 | kind::TSS32_BUSY | kind::CALL32 => true,
            kind::TSS16 | kind::TSS16_BUSY | kind::CALL16 | kind::TASK => !long,
            other => other >= 0x10,
        });
    vp.state.arith.set_zero(found.is_some());
    if let Some(found) = found {
        vp.set_gpr(op.size, op.dst, found.raw >> 32 & 0x00ff_ff00);
    }
    Ok(())
}

/// LSL.
pub(crate) fn lsl(vp: &mut Vp, op: &Op) -> Step {
    let selector = asked_selector(vp, op)?;
    let long = vp.state.long_mode();
    let found = vp
        .visible_descriptor(selector)?
        .filter(|found| match found.kind() {
            kind::LDT | kind::TSS32 | kind::TSS32_BUSY => true,
            kind::TSS16 | kind::TSS16_BUSY => !long,
            other => other >= 0x10,
        });
    vp.state.arith.set_zero(found.is_some());
    if let Some(found) = found {
        vp.set_gpr(op.size, op.dst, u64::from(found.limit()));
    }
    Ok(())
}

/// VERR.
pub(crate) fn verr(vp: &mut Vp, op: &Op) -> Step {
    let selector = asked_selector(vp, op)?;
    let found = vp.visible_descriptor(selector)?;
    vp.state
        .arith
        .set_zero(found.is_some_and(|found| found.is_readable()));
    Ok(())
}

/// VERW.
pub(crate) fn verw(vp: &mut Vp, op: &Op) -> Step {
    let selector = asked_selector(vp, op)?;
    let found = vp.visible_descriptor(selector)?;
    vp.state
        .arith
        .set_zero(found.is_some_and(|found| found.is_writable_data()));
    Ok(())
}

/// ARPL.
pub(crate) fn arpl(vp: &mut Vp, op: &Op) -> Step {
    if vp.state.real_segments() {
        return Err(vp.ud());
    }
    let target = vp.read_rm(op, 2)?;
    let source = vp.gpr(2, op.dst);
    let raise = target & 3 < source & 3;
    if raise {
        vp.write_rm(op, 2, (target & !3) | (source & 3))?;
    }
    vp.state.arith.set_zero(raise);
    Ok(())
}
