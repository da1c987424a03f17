//! Stacks that the processor itself writes and reads: the frames of events,
//! far calls and returns.
//!
//! A [`Frame`] moves a stack pointer of its own. Nothing architectural has
//! changed until it is committed, so a fault in the middle leaves the
//! instruction restartable.

use crate::Vp;
use crate::fault::{Fault, Step, Stop, vector};
use crate::mmu;
use crate::state::{Segment, reg, seg};

/// A stack under construction, or being read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    segment: Segment,
    /// 64-bit: no segment.
    long: bool,
    mask: u64,
    sp: u64,
    /// Privilege that the accesses have.
    cpl: u8,
    /// Error code of #SS.
    error: u32,
}

impl Frame {
    /// A stack other than the running one; `error` is what #SS reports.
    pub(crate) fn new(segment: Segment, sp: u64, cpl: u8, error: u32) -> Self {
        let mask = if segment.big() { 0xffff_ffff } else { 0xffff };
        Self {
            segment,
            long: false,
            mask,
            sp,
            cpl,
            error,
        }
    }

    /// A 64-bit stack.
    pub(crate) fn long(sp: u64, cpl: u8, error: u32) -> Self {
        Self {
            segment: Segment::default(),
            long: true,
            mask: u64::MAX,
            sp,
            cpl,
            error,
        }
    }

    /// The same stack, with another error code for #SS.
    pub(crate) fn with_error(self, error: u32) -> Self {
        Self { error, ..self }
    }

    /// Moves the stack pointer up.
    pub(crate) fn drop_bytes(&mut self, bytes: u64) {
        self.sp = (self.sp & !self.mask) | (self.sp.wrapping_add(bytes) & self.mask);
    }
}

impl Vp {
    /// The running stack.
    pub(crate) fn frame_here(&self) -> Frame {
        Frame {
            segment: self.state.seg[seg::SS],
            long: self.state.code64(),
            mask: self.stack_mask,
            sp: self.state.gpr[reg::RSP],
            cpl: self.state.cpl,
            error: 0,
        }
    }

    /// Makes the frame's stack pointer RSP: all of it in long mode, else the
    /// low half.
    pub(crate) fn frame_commit(&mut self, frame: &Frame) {
        self.state.gpr[reg::RSP] = if self.state.long_mode() {
            frame.sp
        } else {
            frame.sp & 0xffff_ffff
        };
    }

    /// Pushes the low `size` bytes of `value`.
    pub(crate) fn frame_push(&mut self, frame: &mut Frame, value: u64, size: u8) -> Step {
        let sp = frame.sp.wrapping_sub(u64::from(size)) & frame.mask;
        let linear = self.frame_linear(frame, sp, size, true)?;
        self.at_level(frame.cpl, |vp| match size {
            2 => vp.store(linear, value as u16),
            4 => vp.store(linear, value as u32),
            _ => vp.store(linear, value),
        })?;
        frame.sp = (frame.sp & !frame.mask) | sp;
        Ok(())
    }

    /// Reads `size` bytes at `offset` above the stack pointer.
    pub(crate) fn frame_peek(&mut self, frame: &Frame, offset: u64, size: u8) -> Result<u64, Stop> {
        let sp = frame.sp.wrapping_add(offset) & frame.mask;
        let linear = self.frame_linear(frame, sp, size, false)?;
        self.at_level(frame.cpl, |vp| match size {
            2 => vp.load::<u16>(linear).map(u64::from),
            4 => vp.load::<u32>(linear).map(u64::from),
            _ => vp.load::<u64>(linear),
        })
    }

    fn frame_linear(&mut self, frame: &Frame, sp: u64, size: u8, write: bool) -> Result<u64, Stop> {
        let last = sp.wrapping_add(u64::from(size) - 1);
        if frame.long {
            if mmu::canonical(sp) && mmu::canonical(last) {
                return Ok(sp);
            }
            return Err(self.raise(Fault::new(vector::SS, frame.error)));
        }
        let segment = &frame.segment;
        let limit = u64::from(segment.limit);
        let expand_down = segment.kind() & 0x1c == 0x14;
        let inside = if expand_down {
            let top = if segment.big() { 0xffff_ffff } else { 0xffff };
            sp > limit && last <= top
        } else {
            last <= limit
        };
        // Real mode looks at the limit alone.
        let writable = !write || segment.kind() & 0x1a == 0x12;
        let usable = self.state.real_segments() || (writable && !segment.unusable());
        if !inside || !usable {
            return Err(self.raise(Fault::new(vector::SS, frame.error)));
        }
        Ok(self.wrap_linear(segment.base.wrapping_add(sp)))
    }

    /// Makes accesses with the rights of `cpl`.
    pub(crate) fn at_level<T>(
        &mut self,
        cpl: u8,
        access: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        if cpl == self.state.cpl {
            return access(self);
        }
        let own = std::mem::replace(&mut self.state.cpl, cpl);
        self.data_rights_changed();
        let result = access(self);
        self.state.cpl = own;
        self.data_rights_changed();
        result
    }
}
