//! Far JMP, CALL and RET (SDM 2A/2B, SDM 3A 5.8). Calls through gates are in
//! `far_gate`.

use super::descriptor::{Descriptor, is_null, kind, rpl};
use super::event_frame::Frame;
use super::segment::null_segment;
use super::task::TaskSource;
use crate::Vp;
use crate::fault::{Step, Stop, vector};
use crate::mmu;
use crate::op::Op;
use crate::state::{Segment, rflags, seg};

/// JMP or CALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// JMP.
    Jump,
    /// CALL.
    Call,
}

/// JMP ptr16:16 and ptr16:32.
pub(crate) fn jump_direct(vp: &mut Vp, op: &Op) -> Step {
    vp.far_transfer(Transfer::Jump, op.disp as u16, op.imm, op.size)
}

/// CALL ptr16:16 and ptr16:32.
pub(crate) fn call_direct(vp: &mut Vp, op: &Op) -> Step {
    vp.far_transfer(Transfer::Call, op.disp as u16, op.imm, op.size)
}

/// JMP m16:16, m16:32 and m16:64.
pub(crate) fn jump_indirect(vp: &mut Vp, op: &Op) -> Step {
    let (offset, selector) = vp.far_pointer(op)?;
    vp.far_transfer(Transfer::Jump, selector, offset, op.size)
}

/// CALL m16:16, m16:32 and m16:64.
pub(crate) fn call_indirect(vp: &mut Vp, op: &Op) -> Step {
    let (offset, selector) = vp.far_pointer(op)?;
    vp.far_transfer(Transfer::Call, selector, offset, op.size)
}

/// RETF, with the bytes to release in `imm`.
pub(crate) fn return_far(vp: &mut Vp, op: &Op) -> Step {
    vp.far_return(op.size, op.imm & 0xffff)
}

impl Vp {
    fn far_transfer(&mut self, how: Transfer, selector: u16, offset: u64, size: u8) -> Step {
        if self.state.real_segments() {
            return self.far_real(how, selector, offset, size);
        }
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let found = self.descriptor_or(selector, vector::GP, 0)?;
        if found.is_code() {
            return self.far_code(how, selector, &found, offset, size);
        }
        let long = self.state.long_mode();
        match found.kind() {
            kind::CALL32 => self.through_call_gate(how, selector, &found),
            kind::CALL16 if !long => self.through_call_gate(how, selector, &found),
            kind::TASK if !long => self.through_task_gate(how, selector, &found),
            kind::TSS16 | kind::TSS32 if !long => self.transfer_to_task(how, selector, &found),
            _ => Err(self.selector_fault(vector::GP, selector, 0)),
        }
    }

    fn far_real(&mut self, how: Transfer, selector: u16, offset: u64, size: u8) -> Step {
        if offset > u64::from(self.state.seg[seg::CS].limit) {
            return Err(self.gp(0));
        }
        if how == Transfer::Call {
            let mut frame = self.frame_here();
            self.push_far_return(&mut frame, size)?;
            self.frame_commit(&frame);
        }
        self.load_real_cs(selector);
        self.state.rip = offset;
        self.mode_changed();
        Ok(())
    }

    /// Pushes CS and the address behind the instruction.
    pub(crate) fn push_far_return(&mut self, frame: &mut Frame, size: u8) -> Step {
        let cs = self.state.seg[seg::CS].selector;
        self.frame_push(frame, u64::from(cs), size)?;
        self.frame_push(frame, self.state.rip, size)
    }

    fn far_code(
        &mut self,
        how: Transfer,
        selector: u16,
        found: &Descriptor,
        offset: u64,
        size: u8,
    ) -> Step {
        let cpl = self.state.cpl;
        let allowed = if found.is_conforming() {
            found.dpl() <= cpl
        } else {
            rpl(selector) <= cpl && found.dpl() == cpl
        };
        if !allowed || (self.state.long_mode() && found.long() && found.big()) {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !found.present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        self.check_code_offset(found, offset)?;
        let mut frame = self.frame_here();
        if how == Transfer::Call {
            self.push_far_return(&mut frame, size)?;
        }
        self.mark_accessed(found)?;
        if how == Transfer::Call {
            self.frame_commit(&frame);
        }
        self.commit_code(found, selector, cpl);
        self.state.rip = offset;
        self.mode_changed();
        Ok(())
    }

    /// #GP(0) unless `offset` is a place to run in that segment.
    pub(crate) fn check_code_offset(&mut self, code: &Descriptor, offset: u64) -> Step {
        let inside = if self.state.long_mode() && code.long() {
            mmu::canonical(offset)
        } else {
            offset <= u64::from(code.limit())
        };
        if inside { Ok(()) } else { Err(self.gp(0)) }
    }

    fn check_system_dpl(&mut self, selector: u16, found: &Descriptor) -> Step {
        if found.dpl() < self.state.cpl.max(rpl(selector)) {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !found.present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        Ok(())
    }

    fn transfer_to_task(&mut self, how: Transfer, selector: u16, found: &Descriptor) -> Step {
        if selector & 4 != 0 {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        self.check_system_dpl(selector, found)?;
        self.switch_from_instruction(how, selector, found)
    }

    fn through_task_gate(&mut self, how: Transfer, selector: u16, gate: &Descriptor) -> Step {
        self.check_system_dpl(selector, gate)?;
        let target = gate.gate_selector();
        let tss = self.task_gate_target(target, vector::GP, 0)?;
        self.switch_from_instruction(how, target, &tss)
    }

    fn switch_from_instruction(&mut self, how: Transfer, selector: u16, tss: &Descriptor) -> Step {
        let source = if how == Transfer::Jump {
            TaskSource::Jump
        } else {
            TaskSource::Call
        };
        let flags = self.state.rflags() & !rflags::RF;
        if let Some(fault) = self.task_switch(selector, tss, source, flags, 0)? {
            // The new task's own first fault.
            self.deliver_fault(fault);
        }
        Ok(())
    }

    fn far_return(&mut self, size: u8, release: u64) -> Step {
        let mut frame = self.frame_here();
        let offset = self.frame_peek(&frame, 0, size)?;
        let selector = self.frame_peek(&frame, u64::from(size), size)? as u16;
        if self.state.real_segments() {
            if offset > u64::from(self.state.seg[seg::CS].limit) {
                return Err(self.gp(0));
            }
            frame.drop_bytes(u64::from(size) * 2 + release);
            self.frame_commit(&frame);
            self.load_real_cs(selector);
            self.state.rip = offset;
            self.mode_changed();
            return Ok(());
        }
        let code = self.return_code_segment(selector, offset)?;
        if rpl(selector) == self.state.cpl {
            self.mark_accessed(&code)?;
            frame.drop_bytes(u64::from(size) * 2 + release);
            self.frame_commit(&frame);
            self.commit_code(&code, selector, self.state.cpl);
            self.state.rip = offset;
            self.mode_changed();
            return Ok(());
        }
        self.far_return_outer(&mut frame, &code, selector, offset, (size, release))
    }

    fn far_return_outer(
        &mut self,
        frame: &mut Frame,
        code: &Descriptor,
        selector: u16,
        offset: u64,
        (size, release): (u8, u64),
    ) -> Step {
        let at = u64::from(size) * 2 + release;
        let sp = self.frame_peek(frame, at, size)?;
        let ss_selector = self.frame_peek(frame, at + u64::from(size), size)? as u16;
        let ss = self.return_stack_segment(ss_selector, rpl(selector), code)?;
        self.mark_accessed(code)?;
        let mut outer = self.outer_frame(ss, sp, code, rpl(selector));
        outer.drop_bytes(release);
        self.state.seg[seg::SS] = ss;
        self.commit_code(code, selector, rpl(selector));
        self.state.rip = offset;
        self.frame_commit(&outer);
        self.drop_inner_segments();
        self.mode_changed();
        Ok(())
    }

    /// The stack that a return switches to, for its pointer's arithmetic.
    /// A 16-bit stack keeps the upper half of ESP.
    pub(crate) fn outer_frame(&self, ss: Segment, sp: u64, code: &Descriptor, cpl: u8) -> Frame {
        if self.state.long_mode() && code.long() {
            return Frame::long(sp, cpl, 0);
        }
        Frame::new(ss, sp, cpl, 0)
    }

    /// The code segment that RETF and IRET go back to, checked.
    pub(crate) fn return_code_segment(
        &mut self,
        selector: u16,
        offset: u64,
    ) -> Result<Descriptor, Stop> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let code = self.descriptor_or(selector, vector::GP, 0)?;
        let level = rpl(selector);
        let levels = if code.is_conforming() {
            code.dpl() <= level
        } else {
            code.dpl() == level
        };
        let mixed = self.state.long_mode() && code.long() && code.big();
        if !code.is_code() || level < self.state.cpl || !levels || mixed {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !code.present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        self.check_code_offset(&code, offset)?;
        Ok(code)
    }

    /// The stack segment that a return to level `cpl` goes to, checked. Null
    /// is for 64-bit code above level 3.
    pub(crate) fn return_stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        code: &Descriptor,
    ) -> Result<Segment, Stop> {
        if is_null(selector) {
            let long = self.state.long_mode() && code.long();
            if long && cpl != 3 && rpl(selector) == cpl {
                return Ok(null_segment(selector));
            }
            return Err(self.gp(0));
        }
        self.checked_new_stack(selector, cpl, vector::GP, 0)
    }
}
