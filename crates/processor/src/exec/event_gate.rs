//! Delivery through the interrupt descriptor table (SDM 3A chapter 6).

use super::descriptor::{Descriptor, is_null, kind};
use super::event_frame::Frame;
use super::segment::null_segment;
use super::task::TaskSource;
use crate::Vp;
use crate::fault::{Fault, Step, Stop, vector};
use crate::mmu;
use crate::state::{Segment, reg, rflags, seg};

/// One event to be delivered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    /// The vector.
    pub vector: u8,
    /// Error code to push.
    pub error: Option<u32>,
    /// The EXT bit for error codes of what goes wrong.
    pub ext: u32,
    /// INT n, INT3 or INTO: the gate's DPL counts, and EXT is 0.
    pub software: bool,
    /// RFLAGS to push.
    pub flags: u64,
}

impl Delivery {
    /// Error code naming the IDT entry.
    fn idt_error(&self) -> u32 {
        u32::from(self.vector) << 3 | 2 | self.ext
    }
}

/// Where a gate leads: the code segment and the level it runs at.
struct Target {
    code: Descriptor,
    selector: u16,
    cpl: u8,
    offset: u64,
    interrupt: bool,
}

impl Vp {
    /// Delivers one event. Nothing has changed when it fails. `Some` is an
    /// exception that arose after a task switch, in the new task.
    pub(crate) fn deliver(&mut self, delivery: &Delivery) -> Result<Option<Fault>, Stop> {
        if !self.state.protected() {
            self.deliver_real(delivery)?;
            return Ok(None);
        }
        if self.state.long_mode() {
            self.deliver_long(delivery)?;
            return Ok(None);
        }
        let gate = self.protected_gate(delivery)?;
        if gate.kind() == kind::TASK {
            let selector = gate.gate_selector();
            let tss = self.task_gate_target(selector, vector::GP, delivery.ext)?;
            let source = TaskSource::Event {
                error: delivery.error,
            };
            return self.task_switch(selector, &tss, source, delivery.flags, delivery.ext);
        }
        self.deliver_protected(delivery, &gate)?;
        Ok(None)
    }

    fn deliver_real(&mut self, delivery: &Delivery) -> Step {
        let at = u64::from(delivery.vector) * 4;
        if at + 3 > u64::from(self.state.idtr.limit) {
            return Err(self.raise(Fault::new(vector::GP, delivery.idt_error())));
        }
        let entry =
            self.table_load::<u32>(self.wrap_linear(self.state.idtr.base.wrapping_add(at)))?;
        let mut frame = self.frame_here();
        let cs = self.state.seg[seg::CS].selector;
        self.frame_push(&mut frame, delivery.flags, 2)?;
        self.frame_push(&mut frame, u64::from(cs), 2)?;
        self.frame_push(&mut frame, self.state.rip, 2)?;
        self.frame_commit(&frame);
        self.state.system_flags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.load_real_cs((entry >> 16) as u16);
        self.state.rip = u64::from(entry & 0xffff);
        self.mode_changed();
        Ok(())
    }

    /// Reads and checks the gate outside long mode.
    fn protected_gate(&mut self, delivery: &Delivery) -> Result<Descriptor, Stop> {
        let offset = u64::from(delivery.vector) * 8;
        let gate = self.idt_entry(delivery, offset, 8)?;
        let wanted = matches!(
            gate.kind(),
            kind::TASK | kind::INTERRUPT16 | kind::TRAP16 | kind::INTERRUPT32 | kind::TRAP32
        );
        self.check_gate(delivery, &gate, wanted)?;
        Ok(gate)
    }

    fn idt_entry(
        &mut self,
        delivery: &Delivery,
        offset: u64,
        size: u64,
    ) -> Result<Descriptor, Stop> {
        if offset + size - 1 > u64::from(self.state.idtr.limit) {
            return Err(self.raise(Fault::new(vector::GP, delivery.idt_error())));
        }
        let at = self.wrap_linear(self.state.idtr.base.wrapping_add(offset));
        Ok(Descriptor {
            raw: self.table_load::<u64>(at)?,
            at,
        })
    }

    fn check_gate(&mut self, delivery: &Delivery, gate: &Descriptor, wanted: bool) -> Step {
        let error = delivery.idt_error();
        if !wanted || (delivery.software && gate.dpl() < self.state.cpl) {
            return Err(self.raise(Fault::new(vector::GP, error)));
        }
        if !gate.present() {
            return Err(self.raise(Fault::new(vector::NP, error)));
        }
        Ok(())
    }

    /// Reads and checks the code segment that a gate names.
    fn gate_target(
        &mut self,
        delivery: &Delivery,
        gate: &Descriptor,
        offset: u64,
    ) -> Result<Target, Stop> {
        let selector = gate.gate_selector();
        if is_null(selector) {
            return Err(self.gp(delivery.ext));
        }
        let code = self.descriptor_or(selector, vector::GP, delivery.ext)?;
        let long = self.state.long_mode();
        let usable = code.is_code()
            && code.dpl() <= self.state.cpl
            && (!long || (code.long() && !code.big()));
        if !usable {
            return Err(self.selector_fault(vector::GP, selector, delivery.ext));
        }
        if !code.present() {
            return Err(self.selector_fault(vector::NP, selector, delivery.ext));
        }
        let cpl = if code.is_conforming() {
            self.state.cpl
        } else {
            code.dpl()
        };
        // Out of virtual-8086 mode the only way leads to level 0.
        if self.state.v86() && cpl != 0 {
            return Err(self.selector_fault(vector::GP, selector, delivery.ext));
        }
        let inside = if long {
            mmu::canonical(offset)
        } else {
            offset <= u64::from(code.limit())
        };
        if !inside {
            return Err(self.gp(delivery.ext));
        }
        let interrupt = matches!(gate.kind(), kind::INTERRUPT16 | kind::INTERRUPT32);
        Ok(Target {
            code,
            selector,
            cpl,
            offset,
            interrupt,
        })
    }

    fn deliver_protected(&mut self, delivery: &Delivery, gate: &Descriptor) -> Step {
        let target = self.gate_target(delivery, gate, gate.gate_offset())?;
        let size = if gate.kind() & 8 != 0 { 4 } else { 2 };
        let v86 = self.state.v86();
        let inner = target.cpl < self.state.cpl;
        let (mut frame, stack) = if inner {
            let (ss, sp) = self.inner_stack(target.cpl, delivery.ext)?;
            let error = u32::from(ss.selector & 0xfffc) | delivery.ext;
            (Frame::new(ss, sp, target.cpl, error), Some(ss))
        } else {
            (self.frame_here().with_error(delivery.ext), None)
        };
        if v86 {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                let selector = self.state.seg[index].selector;
                self.frame_push(&mut frame, u64::from(selector), size)?;
            }
        }
        if inner {
            let old_ss = self.state.seg[seg::SS].selector;
            self.frame_push(&mut frame, u64::from(old_ss), size)?;
            self.frame_push(&mut frame, self.state.gpr[reg::RSP], size)?;
        }
        self.push_return(&mut frame, delivery, size)?;
        self.mark_accessed(&target.code)?;
        if v86 {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.state.seg[index] = null_segment(0);
            }
        }
        self.enter_handler(&target, &frame, stack);
        Ok(())
    }

    fn push_return(&mut self, frame: &mut Frame, delivery: &Delivery, size: u8) -> Step {
        let cs = self.state.seg[seg::CS].selector;
        self.frame_push(frame, delivery.flags, size)?;
        self.frame_push(frame, u64::from(cs), size)?;
        self.frame_push(frame, self.state.rip, size)?;
        if let Some(error) = delivery.error {
            self.frame_push(frame, u64::from(error), size)?;
        }
        Ok(())
    }

    fn enter_handler(&mut self, target: &Target, frame: &Frame, stack: Option<Segment>) {
        if let Some(ss) = stack {
            self.state.seg[seg::SS] = ss;
        }
        self.frame_commit(frame);
        self.commit_code(&target.code, target.selector, target.cpl);
        self.state.rip = target.offset;
        self.state.system_flags &= !(rflags::TF | rflags::VM | rflags::RF | rflags::NT);
        if target.interrupt {
            self.state.system_flags &= !rflags::IF;
        }
        self.mode_changed();
    }

    /// SS and ESP for a more privileged level, out of the TSS.
    pub(crate) fn inner_stack(&mut self, cpl: u8, ext: u32) -> Result<(Segment, u64), Stop> {
        let tr = self.state.seg[seg::TR];
        let level = u64::from(cpl);
        let wide = tr.kind() & 8 != 0;
        let (offset, last) = if wide {
            (level * 8 + 4, 5)
        } else {
            (level * 4 + 2, 3)
        };
        if offset + last > u64::from(tr.limit) {
            return Err(self.selector_fault(vector::TS, tr.selector, ext));
        }
        let at = self.wrap_linear(tr.base.wrapping_add(offset));
        let (sp, selector) = if wide {
            let sp = u64::from(self.table_load::<u32>(at)?);
            (sp, self.table_load::<u16>(self.wrap_linear(at + 4))?)
        } else {
            let sp = u64::from(self.table_load::<u16>(at)?);
            (sp, self.table_load::<u16>(self.wrap_linear(at + 2))?)
        };
        if is_null(selector) {
            return Err(self.raise(Fault::new(vector::TS, ext)));
        }
        let ss = self.checked_new_stack(selector, cpl, vector::TS, ext)?;
        Ok((ss, sp))
    }

    /// RSP out of the 64-bit TSS: for level `cpl`, or interrupt stack `ist`
    /// where that is not 0.
    pub(crate) fn long_stack(&mut self, cpl: u8, ist: u8, ext: u32) -> Result<u64, Stop> {
        let tr = self.state.seg[seg::TR];
        let offset = match ist {
            0 => 4 + 8 * u64::from(cpl),
            _ => 0x24 + 8 * u64::from(ist - 1),
        };
        if offset + 7 > u64::from(tr.limit) {
            return Err(self.selector_fault(vector::TS, tr.selector, ext));
        }
        let rsp = self.table_load::<u64>(tr.base.wrapping_add(offset))?;
        if !mmu::canonical(rsp) {
            return Err(self.raise(Fault::new(vector::SS, ext)));
        }
        Ok(rsp)
    }

    fn deliver_long(&mut self, delivery: &Delivery) -> Step {
        let entry = u64::from(delivery.vector) * 16;
        let gate = self.idt_entry(delivery, entry, 16)?;
        let wanted = matches!(gate.kind(), kind::INTERRUPT32 | kind::TRAP32);
        self.check_gate(delivery, &gate, wanted)?;
        let high = self.table_load::<u32>(gate.at.wrapping_add(8))?;
        let offset = gate.gate_offset() | u64::from(high) << 32;
        let target = self.gate_target(delivery, &gate, offset)?;
        let ist = (gate.raw >> 32 & 7) as u8;
        let inner = target.cpl < self.state.cpl;
        let rsp = if inner || ist != 0 {
            self.long_stack(target.cpl, ist, delivery.ext)?
        } else {
            self.state.gpr[reg::RSP]
        };
        let mut frame = Frame::long(rsp & !0xf, target.cpl, delivery.ext);
        let old_ss = self.state.seg[seg::SS].selector;
        self.frame_push(&mut frame, u64::from(old_ss), 8)?;
        self.frame_push(&mut frame, self.state.gpr[reg::RSP], 8)?;
        self.push_return(&mut frame, delivery, 8)?;
        self.mark_accessed(&target.code)?;
        let stack = inner.then(|| null_segment(u16::from(target.cpl)));
        self.enter_handler(&target, &frame, stack);
        Ok(())
    }
}
