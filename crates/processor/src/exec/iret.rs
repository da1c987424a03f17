//! IRET in every form (SDM 2A "IRET", SDM 3A 6.12, 7.3 and 21.2).

use super::descriptor::{Descriptor, rpl};
use super::event_frame::Frame;
use super::flags_image;
use super::segment::v86_segment;
use super::task::TaskSource;
use crate::Vp;
use crate::fault::{Step, vector};
use crate::op::Op;
use crate::state::{cr, reg, rflags, seg};

/// IRET, IRETD and IRETQ.
pub(crate) fn iret(vp: &mut Vp, op: &Op) -> Step {
    // Whatever becomes of it, IRET lets NMIs in again (SDM 3A 6.7.1).
    vp.nmi_blocked = false;
    if !vp.state.protected() {
        return vp.iret_real(op.size);
    }
    if vp.state.v86() {
        return vp.iret_v86(op.size);
    }
    if vp.state.system_flags & rflags::NT != 0 {
        return vp.iret_task();
    }
    vp.iret_protected(op.size)
}

/// What IRET found on the stack.
struct Image {
    rip: u64,
    cs: u16,
    flags: u64,
}

impl Vp {
    fn iret_image(&mut self, frame: &Frame, size: u8) -> Result<Image, crate::fault::Stop> {
        let step = u64::from(size);
        let rip = self.frame_peek(frame, 0, size)?;
        let cs = self.frame_peek(frame, step, size)? as u16;
        let flags = self.frame_peek(frame, step * 2, size)?;
        Ok(Image { rip, cs, flags })
    }

    fn iret_real(&mut self, size: u8) -> Step {
        let mut frame = self.frame_here();
        let image = self.iret_image(&frame, size)?;
        if image.rip > u64::from(self.state.seg[seg::CS].limit) {
            return Err(self.gp(0));
        }
        frame.drop_bytes(u64::from(size) * 3);
        self.frame_commit(&frame);
        self.load_real_cs(image.cs);
        self.state.rip = image.rip;
        let mut writable = flags_image::BASIC | rflags::IF | rflags::IOPL;
        if size == 4 {
            writable |= rflags::RF | rflags::AC | rflags::ID;
        }
        self.load_returned_flags(image.flags, writable);
        Ok(())
    }

    fn iret_v86(&mut self, size: u8) -> Step {
        let trusted = self.state.iopl() == 3;
        let extended = self.state.cr4 & cr::CR4_VME != 0 && size == 2;
        if !trusted && !extended {
            return Err(self.gp(0));
        }
        let mut frame = self.frame_here();
        let image = self.iret_image(&frame, size)?;
        if image.rip > 0xffff {
            return Err(self.gp(0));
        }
        let mut flags = image.flags;
        let mut writable = flags_image::BASIC;
        if trusted {
            writable |= rflags::IF;
        } else {
            // IF of the image stands for VIF (SDM 3B 21.4).
            let pending = self.state.system_flags & rflags::VIP != 0;
            if flags & rflags::TF != 0 || (pending && flags & rflags::IF != 0) {
                return Err(self.gp(0));
            }
            flags &= !rflags::VIF;
            if flags & rflags::IF != 0 {
                flags |= rflags::VIF;
            }
            writable |= rflags::VIF;
        }
        if size == 4 {
            writable |= rflags::RF | rflags::AC | rflags::ID;
        }
        frame.drop_bytes(u64::from(size) * 3);
        self.frame_commit(&frame);
        self.load_real_cs(image.cs);
        self.state.rip = image.rip;
        self.load_returned_flags(flags, writable);
        Ok(())
    }

    /// Return to the task that the back link names.
    fn iret_task(&mut self) -> Step {
        if self.state.long_mode() {
            return Err(self.gp(0));
        }
        let tr = self.state.seg[seg::TR];
        let selector = self.table_load::<u16>(tr.base)?;
        if selector & 4 != 0 {
            return Err(self.selector_fault(vector::TS, selector, 0));
        }
        let tss = self.descriptor_or(selector, vector::TS, 0)?;
        let flags = self.state.rflags() & !rflags::RF;
        if let Some(fault) = self.task_switch(selector, &tss, TaskSource::Return, flags, 0)? {
            self.deliver_fault(fault);
        }
        Ok(())
    }

    fn iret_protected(&mut self, size: u8) -> Step {
        let frame = self.frame_here();
        let image = self.iret_image(&frame, size)?;
        let to_v86 = image.flags & rflags::VM != 0 && self.state.cpl == 0 && size == 4;
        if to_v86 && !self.state.long_mode() {
            return self.iret_to_v86(&frame, &image);
        }
        let code = self.return_code_segment(image.cs, image.rip)?;
        if rpl(image.cs) != self.state.cpl || self.state.code64() {
            return self.iret_with_stack(&frame, &image, &code, size);
        }
        self.mark_accessed(&code)?;
        let mut frame = frame;
        frame.drop_bytes(u64::from(size) * 3);
        self.frame_commit(&frame);
        let writable = self.returned_flags(size);
        self.commit_code(&code, image.cs, self.state.cpl);
        self.state.rip = image.rip;
        self.load_returned_flags(image.flags, writable);
        Ok(())
    }

    /// To an outer level, or from 64-bit code, which always gives SS:RSP back.
    fn iret_with_stack(
        &mut self,
        frame: &Frame,
        image: &Image,
        code: &Descriptor,
        size: u8,
    ) -> Step {
        let step = u64::from(size);
        let sp = self.frame_peek(frame, step * 3, size)?;
        let ss_selector = self.frame_peek(frame, step * 4, size)? as u16;
        let cpl = rpl(image.cs);
        let ss = self.return_stack_segment(ss_selector, cpl, code)?;
        self.mark_accessed(code)?;
        let writable = self.returned_flags(size);
        let outer = cpl != self.state.cpl;
        let target = self.outer_frame(ss, sp, code, cpl);
        self.state.seg[seg::SS] = ss;
        self.commit_code(code, image.cs, cpl);
        self.state.rip = image.rip;
        self.frame_commit(&target);
        if outer {
            self.drop_inner_segments();
        }
        self.load_returned_flags(image.flags, writable);
        Ok(())
    }

    fn iret_to_v86(&mut self, frame: &Frame, image: &Image) -> Step {
        let mut values = [0u64; 6];
        for (i, value) in values.iter_mut().enumerate() {
            *value = self.frame_peek(frame, 12 + 4 * i as u64, 4)?;
        }
        if image.rip > 0xffff {
            return Err(self.gp(0));
        }
        let [esp, ss, es, ds, fs, gs] = values;
        let order = [
            (seg::SS, ss),
            (seg::ES, es),
            (seg::DS, ds),
            (seg::FS, fs),
            (seg::GS, gs),
        ];
        for (index, selector) in order {
            self.state.seg[index] = v86_segment(selector as u16);
        }
        self.commit_cs(v86_segment(image.cs));
        self.state.cpl = 3;
        self.state.rip = image.rip;
        self.state.gpr[reg::RSP] = esp;
        self.load_returned_flags(image.flags, rflags::ALL);
        Ok(())
    }

    /// The flags that IRET may change, by CPL before it and operand size.
    fn returned_flags(&self, size: u8) -> u64 {
        let mut writable = flags_image::BASIC;
        if size > 2 {
            writable |= rflags::RF | rflags::AC | rflags::ID;
        }
        if self.state.cpl <= self.state.iopl() {
            writable |= rflags::IF;
        }
        if self.state.cpl == 0 {
            writable |= rflags::IOPL;
            if size > 2 {
                writable |= rflags::VIF | rflags::VIP;
            }
        }
        writable
    }

    /// Loads the flags of an image; RF from it outlives this instruction.
    fn load_returned_flags(&mut self, image: u64, writable: u64) {
        flags_image::merge(&mut self.state, image, writable);
        if writable & rflags::RF != 0 {
            self.resume_loaded = self.state.system_flags & rflags::RF != 0;
        } else {
            self.state.system_flags &= !rflags::RF;
        }
        self.mode_changed();
    }
}
