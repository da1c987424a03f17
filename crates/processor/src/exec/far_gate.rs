//! Far JMP and CALL through call gates (SDM 3A 5.8.3).

use super::descriptor::{Descriptor, is_null, rpl};
use super::event_frame::Frame;
use super::far::Transfer;
use super::segment::null_segment;
use crate::Vp;
use crate::fault::{Step, Stop, vector};
use crate::mmu;
use crate::state::{Segment, reg, seg};

/// A call gate's target, checked.
struct Gate {
    code: Descriptor,
    selector: u16,
    offset: u64,
    /// Bytes of each pushed item: 2, 4 or 8.
    size: u8,
    parameters: u8,
}

impl Vp {
    pub(crate) fn through_call_gate(
        &mut self,
        how: Transfer,
        selector: u16,
        gate: &Descriptor,
    ) -> Step {
        let gate = self.call_gate(selector, gate)?;
        let cpl = self.state.cpl;
        let inner = !gate.code.is_conforming() && gate.code.dpl() < cpl;
        if how == Transfer::Jump {
            if inner {
                return Err(self.selector_fault(vector::GP, gate.selector, 0));
            }
            self.mark_accessed(&gate.code)?;
            return self.enter_gate(&gate, cpl);
        }
        if inner {
            return self.call_inner(&gate);
        }
        let mut frame = self.frame_here();
        self.push_far_return(&mut frame, gate.size)?;
        self.mark_accessed(&gate.code)?;
        self.frame_commit(&frame);
        self.enter_gate(&gate, cpl)
    }

    fn call_gate(&mut self, selector: u16, gate: &Descriptor) -> Result<Gate, Stop> {
        let long = self.state.long_mode();
        let mut offset = gate.gate_offset();
        if long {
            let high = self.descriptor_high(selector, *gate)?;
            if high >> 40 & 0x1f != 0 {
                return Err(self.selector_fault(vector::GP, selector, 0));
            }
            offset |= high << 32;
        }
        if gate.dpl() < self.state.cpl.max(rpl(selector)) {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        if !gate.present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        let target = gate.gate_selector();
        if is_null(target) {
            return Err(self.gp(0));
        }
        let code = self.descriptor_or(target, vector::GP, 0)?;
        let mode_fits = !long || (code.long() && !code.big());
        if !code.is_code() || code.dpl() > self.state.cpl || !mode_fits {
            return Err(self.selector_fault(vector::GP, target, 0));
        }
        if !code.present() {
            return Err(self.selector_fault(vector::NP, target, 0));
        }
        let inside = if long {
            mmu::canonical(offset)
        } else {
            offset <= u64::from(code.limit())
        };
        if !inside {
            return Err(self.gp(0));
        }
        let size = match (long, gate.kind() & 8 != 0) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 2,
        };
        let parameters = if long {
            0
        } else {
            (gate.raw >> 32 & 0x1f) as u8
        };
        Ok(Gate {
            code,
            selector: target,
            offset,
            size,
            parameters,
        })
    }

    fn call_inner(&mut self, gate: &Gate) -> Step {
        let cpl = gate.code.dpl();
        let (mut frame, ss) = self.gate_stack(gate, cpl)?;
        let old = self.frame_here();
        let old_ss = self.state.seg[seg::SS].selector;
        self.frame_push(&mut frame, u64::from(old_ss), gate.size)?;
        self.frame_push(&mut frame, self.state.gpr[reg::RSP], gate.size)?;
        for i in (0..gate.parameters).rev() {
            let offset = u64::from(i) * u64::from(gate.size);
            let value = self.frame_peek(&old, offset, gate.size)?;
            self.frame_push(&mut frame, value, gate.size)?;
        }
        self.push_far_return(&mut frame, gate.size)?;
        self.mark_accessed(&gate.code)?;
        self.state.seg[seg::SS] = ss;
        self.frame_commit(&frame);
        self.enter_gate(gate, cpl)
    }

    fn gate_stack(&mut self, gate: &Gate, cpl: u8) -> Result<(Frame, Segment), Stop> {
        if gate.size == 8 {
            let rsp = self.long_stack(cpl, 0, 0)?;
            return Ok((Frame::long(rsp, cpl, 0), null_segment(u16::from(cpl))));
        }
        let (ss, sp) = self.inner_stack(cpl, 0)?;
        Ok((Frame::new(ss, sp, cpl, u32::from(ss.selector & 0xfffc)), ss))
    }

    fn enter_gate(&mut self, gate: &Gate, cpl: u8) -> Step {
        self.commit_code(&gate.code, gate.selector, cpl);
        self.state.rip = gate.offset;
        self.mode_changed();
        Ok(())
    }
}
