//! Task switches outside long mode (SDM 3A chapter 8).
//!
//! A switch has a point of no return: up to it every fault is the old task's
//! and nothing has changed; after it faults belong to the new task, and come
//! back as a value, because the old instruction has retired.

use super::descriptor::{Descriptor, is_null, kind, rpl};
use super::event::DR6_BT;
use super::segment::{null_segment, v86_segment};
use crate::Vp;
use crate::fault::{Fault, Step, Stop, StopReason, vector};
use crate::mmu::{self, Access};
use crate::state::{Segment, cr, rflags, seg};
use crate::vp::attention;

/// What makes the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskSource {
    /// JMP.
    Jump,
    /// CALL.
    Call,
    /// An interrupt or exception through a task gate, with its error code.
    Event {
        /// Pushed on the new task's stack.
        error: Option<u32>,
    },
    /// IRET with NT set.
    Return,
}

impl TaskSource {
    /// The old task stays busy, and the new one links back to it.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event { .. })
    }
}

/// Where a TSS of either size keeps things.
#[derive(Clone, Copy)]
struct Layout {
    /// Bytes of a register.
    size: u8,
    ip: u64,
    flags: u64,
    registers: u64,
    segments: u64,
    segment_count: usize,
    ldt: u64,
    /// The smallest limit allowed.
    limit: u32,
}

const LAYOUT_16: Layout = Layout {
    size: 2,
    ip: 0x0e,
    flags: 0x10,
    registers: 0x12,
    segments: 0x22,
    segment_count: 4,
    ldt: 0x2a,
    limit: 0x2b,
};

const LAYOUT_32: Layout = Layout {
    size: 4,
    ip: 0x20,
    flags: 0x24,
    registers: 0x28,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
    limit: 0x67,
};

fn layout(kind: u32) -> Layout {
    if kind & 8 != 0 { LAYOUT_32 } else { LAYOUT_16 }
}

/// A task as its TSS describes it.
struct Task {
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    registers: [u64; 8],
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Vp {
    /// The TSS that a task gate names: `vector`(selector) unless it is an
    /// available one in the GDT.
    pub(crate) fn task_gate_target(
        &mut self,
        selector: u16,
        vector: u8,
        ext: u32,
    ) -> Result<Descriptor, Stop> {
        if selector & 4 != 0 || is_null(selector) {
            return Err(self.selector_fault(vector, selector, ext));
        }
        let tss = self.descriptor_or(selector, vector, ext)?;
        if !matches!(tss.kind(), kind::TSS16 | kind::TSS32) {
            return Err(self.selector_fault(vector, selector, ext));
        }
        if !tss.present() {
            return Err(self.selector_fault(vector::NP, selector, ext));
        }
        Ok(tss)
    }

    /// Switches to another task. `flags` is what the old task's image gets.
    /// `Some` is the first exception of the new task.
    pub(crate) fn task_switch(
        &mut self,
        selector: u16,
        tss: &Descriptor,
        source: TaskSource,
        flags: u64,
        ext: u32,
    ) -> Result<Option<Fault>, Stop> {
        self.check_task(selector, tss, source, ext)?;
        let new = layout(tss.kind());
        let task = self.read_task(tss, &new)?;
        self.leave_task(source, flags)?;
        // From here on the new task runs.
        self.enter_task(selector, tss, source, &task)?;
        let error_size = new.size;
        let result = self.load_task(&task).and_then(|()| match source {
            TaskSource::Event { error: Some(error) } => self.push_task_error(error, error_size),
            _ => Ok(()),
        });
        self.mode_changed();
        match result {
            Ok(()) => Ok(None),
            Err(_) => match std::mem::replace(&mut self.stop, StopReason::None) {
                StopReason::Fault(fault) => Ok(Some(fault)),
                // Memory-mapped I/O under a table: no one can answer.
                _ => Ok(Some(Fault::new(vector::DF, 0))),
            },
        }
    }

    fn check_task(
        &mut self,
        selector: u16,
        tss: &Descriptor,
        source: TaskSource,
        ext: u32,
    ) -> Step {
        if source == TaskSource::Return {
            if !matches!(tss.kind(), kind::TSS16_BUSY | kind::TSS32_BUSY) {
                return Err(self.selector_fault(vector::TS, selector, ext));
            }
            if !tss.present() {
                return Err(self.selector_fault(vector::NP, selector, ext));
            }
        }
        if tss.limit() < layout(tss.kind()).limit {
            return Err(self.selector_fault(vector::TS, selector, ext));
        }
        // Whatever will be written or read must be there.
        let old = self.state.seg[seg::TR];
        let old_layout = layout(old.kind());
        if old.limit < old_layout.limit {
            return Err(self.selector_fault(vector::TS, old.selector, ext));
        }
        let rights = mmu::system_rights(&self.state);
        let old_size = u64::from(old_layout.limit) + 1;
        self.probe_with(old.base, old_size, Access::Write, rights)?;
        if source.nests() {
            self.probe_with(tss.base(), 2, Access::Write, rights)?;
        } else {
            self.probe_type(self.gdt_entry(old.selector))?;
        }
        if source != TaskSource::Return {
            self.probe_type(tss.at)?;
        }
        let size = u64::from(layout(tss.kind()).limit) + 1;
        self.probe_with(tss.base(), size, Access::Read, rights)
    }

    fn gdt_entry(&self, selector: u16) -> u64 {
        self.wrap_linear(
            self.state
                .gdtr
                .base
                .wrapping_add(u64::from(selector & 0xfff8)),
        )
    }

    fn task_field(&mut self, base: u64, offset: u64, size: u8) -> Result<u64, Stop> {
        let at = self.wrap_linear(base.wrapping_add(offset));
        if size == 2 {
            self.table_load::<u16>(at).map(u64::from)
        } else {
            self.table_load::<u32>(at).map(u64::from)
        }
    }

    fn set_task_field(&mut self, base: u64, offset: u64, size: u8, value: u64) -> Step {
        let at = self.wrap_linear(base.wrapping_add(offset));
        if size == 2 {
            self.store_system(at, value as u16)
        } else {
            self.store_system(at, value as u32)
        }
    }

    fn read_task(&mut self, tss: &Descriptor, layout: &Layout) -> Result<Task, Stop> {
        let base = tss.base();
        let size = layout.size;
        let step = u64::from(size);
        let mut task = Task {
            cr3: None,
            ip: self.task_field(base, layout.ip, size)?,
            flags: self.task_field(base, layout.flags, size)?,
            registers: [0; 8],
            segments: [0; 6],
            ldt: self.task_field(base, layout.ldt, 2)? as u16,
            trap: false,
        };
        for (i, register) in task.registers.iter_mut().enumerate() {
            *register = self.task_field(base, layout.registers + step * i as u64, size)?;
        }
        for (i, segment) in task
            .segments
            .iter_mut()
            .take(layout.segment_count)
            .enumerate()
        {
            *segment = self.task_field(base, layout.segments + step * i as u64, 2)? as u16;
        }
        if size == 4 {
            task.trap = self.task_field(base, 0x64, 2)? & 1 != 0;
            if self.state.cr0 & cr::CR0_PG != 0 {
                task.cr3 = Some(self.task_field(base, 0x1c, 4)?);
            }
        }
        Ok(task)
    }

    /// Saves the old task and marks it no longer busy where that is due.
    fn leave_task(&mut self, source: TaskSource, flags: u64) -> Step {
        let old = self.state.seg[seg::TR];
        let layout = layout(old.kind());
        let size = layout.size;
        let step = u64::from(size);
        if !source.nests() {
            self.update_type(self.gdt_entry(old.selector), 0, 2)?;
        }
        let flags = if source == TaskSource::Return {
            flags & !rflags::NT
        } else {
            flags
        };
        self.set_task_field(old.base, layout.ip, size, self.state.rip)?;
        self.set_task_field(old.base, layout.flags, size, flags)?;
        for i in 0..8 {
            let value = self.state.gpr[i];
            self.set_task_field(old.base, layout.registers + step * i as u64, size, value)?;
        }
        for i in 0..layout.segment_count {
            let selector = u64::from(self.state.seg[i].selector);
            self.set_task_field(old.base, layout.segments + step * i as u64, 2, selector)?;
        }
        Ok(())
    }

    /// Links the new task, makes it busy, and loads what needs no checks.
    fn enter_task(
        &mut self,
        selector: u16,
        tss: &Descriptor,
        source: TaskSource,
        task: &Task,
    ) -> Step {
        if source.nests() {
            let old = u64::from(self.state.seg[seg::TR].selector);
            self.set_task_field(tss.base(), 0, 2, old)?;
        }
        if source != TaskSource::Return {
            self.update_type(tss.at, 2, 0)?;
        }
        let mut tr = tss.segment(selector);
        tr.attributes |= 2;
        self.state.seg[seg::TR] = tr;
        self.state.cr0 |= cr::CR0_TS;
        self.state.set_rflags(task.flags);
        if source.nests() {
            self.state.system_flags |= rflags::NT;
        }
        self.resume_loaded = self.state.system_flags & rflags::RF != 0;
        self.state.rip = task.ip;
        let wide = tss.kind() & 8 != 0;
        for (i, value) in task.registers.iter().enumerate() {
            // A 16-bit task leaves the upper halves undefined: all ones.
            self.state.gpr[i] = if wide { *value } else { *value | 0xffff_0000 };
        }
        // Local breakpoints are the old task's (SDM 3B 18.2.4).
        self.state.dr7 &= !0x155;
        if task.trap {
            self.debug_pending |= DR6_BT;
            self.set_attention(attention::DEBUG, true);
        }
        Ok(())
    }

    /// Loads CR3, LDTR and the segments of the new task: faults are its own.
    fn load_task(&mut self, task: &Task) -> Step {
        let v86 = task.flags & rflags::VM != 0;
        // Selectors first: handlers see them even where the load fails.
        let unusable = Segment {
            attributes: Segment::UNUSABLE,
            ..Segment::default()
        };
        for (i, selector) in task.segments.iter().enumerate() {
            self.state.seg[i] = Segment {
                selector: *selector,
                ..unusable
            };
        }
        self.state.seg[seg::LDTR] = Segment {
            selector: task.ldt,
            ..unusable
        };
        self.state.cpl = if v86 { 3 } else { rpl(task.segments[seg::CS]) };
        self.mmu.generation = self.mmu.generation.wrapping_add(1);
        if let Some(cr3) = task.cr3 {
            self.load_task_cr3(cr3)?;
        }
        self.load_task_ldt(task.ldt)?;
        if v86 {
            for (i, selector) in task.segments.iter().enumerate() {
                self.state.seg[i] = v86_segment(*selector);
            }
            return Ok(());
        }
        let cpl = self.state.cpl;
        let stack = task.segments[seg::SS];
        if is_null(stack) {
            return Err(self.selector_fault(vector::TS, stack, 0));
        }
        self.load_task_cs(task.segments[seg::CS])?;
        self.state.seg[seg::SS] = self.checked_new_stack(stack, cpl, vector::TS, 0)?;
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            self.state.seg[index] = self.task_data_segment(task.segments[index])?;
        }
        if self.state.rip > u64::from(self.state.seg[seg::CS].limit) {
            return Err(self.gp(0));
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16) -> Step {
        if is_null(selector) {
            return Ok(());
        }
        if selector & 4 != 0 {
            return Err(self.selector_fault(vector::TS, selector, 0));
        }
        let found = self.descriptor_or(selector, vector::TS, 0)?;
        if found.kind() != kind::LDT || !found.present() {
            return Err(self.selector_fault(vector::TS, selector, 0));
        }
        self.state.seg[seg::LDTR] = found.segment(selector);
        Ok(())
    }

    fn load_task_cs(&mut self, selector: u16) -> Step {
        if is_null(selector) {
            return Err(self.selector_fault(vector::TS, selector, 0));
        }
        let found = self.descriptor_or(selector, vector::TS, 0)?;
        let level = rpl(selector);
        let fits = if found.is_conforming() {
            found.dpl() <= level
        } else {
            found.dpl() == level
        };
        if !found.is_code() || !fits {
            return Err(self.selector_fault(vector::TS, selector, 0));
        }
        if !found.present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        self.mark_accessed(&found)?;
        self.commit_cs(found.segment(selector));
        Ok(())
    }

    fn task_data_segment(&mut self, selector: u16) -> Result<Segment, Stop> {
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let found = self.descriptor_or(selector, vector::TS, 0)?;
        let level = rpl(selector).max(self.state.cpl);
        if !found.is_readable() || (!found.is_conforming() && level > found.dpl()) {
            return Err(self.selector_fault(vector::TS, selector, 0));
        }
        if !found.present() {
            return Err(self.selector_fault(vector::NP, selector, 0));
        }
        self.mark_accessed(&found)?;
        Ok(found.segment(selector))
    }

    fn push_task_error(&mut self, error: u32, size: u8) -> Step {
        self.mode_changed();
        let mut frame = self.frame_here();
        self.frame_push(&mut frame, u64::from(error), size)?;
        self.frame_commit(&frame);
        Ok(())
    }
}
