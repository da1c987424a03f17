//! Operands: registers, effective addresses, segments, the stack.

use crate::Vp;
use crate::fault::{Fault, Step, Stop, StopReason, vector};
use crate::memory::Word;
use crate::mmu::Access;
use crate::op::{Address, Op};
use crate::state::{reg, seg};

impl Vp {
    /// A general register, or for bytes the one at a byte offset.
    #[inline(always)]
    pub(crate) fn reg<T: Word>(&self, number: u8) -> T {
        if T::SIZE == 1 {
            let slot = self.state.gpr[usize::from(number >> 3) & 31];
            T::narrow(slot >> ((number & 7) * 8))
        } else {
            T::narrow(self.state.gpr[usize::from(number) & 31])
        }
    }

    /// Writes a general register: 32-bit writes clear the upper half, narrower
    /// ones keep the rest.
    #[inline(always)]
    pub(crate) fn set_reg<T: Word>(&mut self, number: u8, value: T) {
        let value = value.widen();
        match T::SIZE {
            1 => {
                let slot = &mut self.state.gpr[usize::from(number >> 3) & 31];
                let shift = (number & 7) * 8;
                *slot = *slot & !(0xff << shift) | value << shift;
            }
            2 => {
                let slot = &mut self.state.gpr[usize::from(number) & 31];
                *slot = *slot & !0xffff | value;
            }
            _ => self.state.gpr[usize::from(number) & 31] = value,
        }
    }

    /// A register of `size` bytes (see [`Vp::reg`]).
    pub(crate) fn gpr(&self, size: u8, number: u8) -> u64 {
        match size {
            1 => u64::from(self.reg::<u8>(number)),
            2 => u64::from(self.reg::<u16>(number)),
            4 => u64::from(self.reg::<u32>(number)),
            _ => self.reg::<u64>(number),
        }
    }

    /// Writes a register of `size` bytes.
    pub(crate) fn set_gpr(&mut self, size: u8, number: u8, value: u64) {
        match size {
            1 => self.set_reg(number, value as u8),
            2 => self.set_reg(number, value as u16),
            4 => self.set_reg(number, value as u32),
            _ => self.set_reg(number, value),
        }
    }

    /// The ModRM.rm operand.
    pub(crate) fn read_rm(&mut self, op: &Op, size: u8) -> Result<u64, Stop> {
        if !op.has_memory() {
            return Ok(self.gpr(size, op.src));
        }
        let linear = self.linear(op, u64::from(size), Access::Read)?;
        self.load_sized(linear, size)
    }

    /// Writes the ModRM.rm operand.
    pub(crate) fn write_rm(&mut self, op: &Op, size: u8, value: u64) -> Step {
        if !op.has_memory() {
            self.set_gpr(size, op.src, value);
            return Ok(());
        }
        let linear = self.linear(op, u64::from(size), Access::Write)?;
        self.store_sized(linear, size, value)
    }

    /// Loads 1, 2, 4 or 8 bytes.
    pub(crate) fn load_sized(&mut self, linear: u64, size: u8) -> Result<u64, Stop> {
        match size {
            1 => self.load::<u8>(linear).map(u64::from),
            2 => self.load::<u16>(linear).map(u64::from),
            4 => self.load::<u32>(linear).map(u64::from),
            _ => self.load::<u64>(linear),
        }
    }

    /// Stores 1, 2, 4 or 8 bytes.
    pub(crate) fn store_sized(&mut self, linear: u64, size: u8, value: u64) -> Step {
        match size {
            1 => self.store(linear, value as u8),
            2 => self.store(linear, value as u16),
            4 => self.store(linear, value as u32),
            _ => self.store(linear, value),
        }
    }

    /// The linear address of the memory operand, after the segment checks.
    #[inline(always)]
    pub(crate) fn linear(&mut self, op: &Op, size: u64, access: Access) -> Result<u64, Stop> {
        if op.address == Address::Flat64 {
            Ok(self.sum(op))
        } else {
            let offset = self.effective(op);
            self.segment_linear(usize::from(op.segment), offset, size, access)
        }
    }

    #[inline(always)]
    fn sum(&self, op: &Op) -> u64 {
        let base = self.state.gpr[usize::from(op.base) & 31];
        let index = self.state.gpr[usize::from(op.index) & 31];
        base.wrapping_add(index << (op.scale & 3))
            .wrapping_add(op.disp)
    }

    /// The memory operand's offset in its segment.
    #[inline]
    pub(crate) fn effective(&self, op: &Op) -> u64 {
        self.mask_address(self.sum(op), op.address_size)
    }

    /// Cuts an offset to an address size.
    #[inline]
    pub(crate) fn mask_address(&self, offset: u64, size: u8) -> u64 {
        match size {
            2 => offset & 0xffff,
            4 => offset & 0xffff_ffff,
            _ => offset,
        }
    }

    /// Linear address of `size` bytes at an offset in a segment, checked for
    /// presence, type and limit (SDM 3A 5.3 and 5.4).
    pub(crate) fn segment_linear(
        &mut self,
        segment: usize,
        offset: u64,
        size: u64,
        access: Access,
    ) -> Result<u64, Stop> {
        let descriptor = self.state.seg[segment & 7];
        if self.state.code64() {
            let based = segment == seg::FS || segment == seg::GS;
            return Ok(if based {
                descriptor.base.wrapping_add(offset)
            } else {
                offset
            });
        }
        let kind = descriptor.kind();
        let code = kind & 8 != 0;
        if !self.state.real_segments() {
            let forbidden = descriptor.unusable()
                || match access {
                    Access::Write => code || kind & 2 == 0,
                    Access::Read => code && kind & 2 == 0,
                    Access::Execute => false,
                };
            if forbidden {
                return Err(self.segment_fault(segment));
            }
        }
        let last = offset.wrapping_add(size.wrapping_sub(1));
        let limit = u64::from(descriptor.limit);
        let expand_down = !code && kind & 4 != 0 && !self.state.real_segments();
        let inside = if expand_down {
            let top = if descriptor.big() {
                0xffff_ffff
            } else {
                0xffff
            };
            offset > limit && last <= top && offset <= last
        } else {
            last <= limit && offset <= last
        };
        if !inside {
            return Err(self.segment_fault(segment));
        }
        Ok(self.wrap_linear(descriptor.base.wrapping_add(offset)))
    }

    #[cold]
    fn segment_fault(&mut self, segment: usize) -> Stop {
        let vector = if segment == seg::SS {
            vector::SS
        } else {
            vector::GP
        };
        self.raise(Fault::new(vector, 0))
    }

    /// Turns the #GP(0) of a non-canonical address into #SS(0), for implicit
    /// stack accesses.
    pub(crate) fn as_stack_fault(&mut self, stop: Stop) -> Stop {
        if let StopReason::Fault(fault) = &mut self.stop
            && fault.is_non_canonical()
        {
            fault.vector = vector::SS;
        }
        stop
    }

    /// Moves the stack pointer.
    #[inline]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let slot = &mut self.state.gpr[reg::RSP];
        *slot = if self.stack_mask == 0xffff {
            *slot & !0xffff | value & 0xffff
        } else {
            value & self.stack_mask
        };
    }

    #[inline(always)]
    fn stack_linear(&mut self, at: u64, size: u64, access: Access) -> Result<u64, Stop> {
        if self.stack_mask == u64::MAX {
            Ok(at)
        } else {
            self.segment_linear(seg::SS, at & self.stack_mask, size, access)
        }
    }

    /// Pushes `size` bytes (2, 4 or 8).
    #[inline]
    pub(crate) fn push(&mut self, value: u64, size: u8) -> Step {
        let at = self.state.gpr[reg::RSP].wrapping_sub(u64::from(size));
        let linear = self.stack_linear(at, u64::from(size), Access::Write)?;
        if let Err(stop) = self.store_sized(linear, size, value) {
            return Err(self.as_stack_fault(stop));
        }
        self.set_stack_pointer(at);
        Ok(())
    }

    /// Pops `size` bytes (2, 4 or 8).
    #[inline]
    pub(crate) fn pop(&mut self, size: u8) -> Result<u64, Stop> {
        let value = self.stack_peek(0, size)?;
        self.stack_drop(u64::from(size));
        Ok(value)
    }

    /// Reads `size` bytes at `offset` from the top of the stack.
    #[inline]
    pub(crate) fn stack_peek(&mut self, offset: u64, size: u8) -> Result<u64, Stop> {
        let at = self.state.gpr[reg::RSP].wrapping_add(offset);
        let linear = self.stack_linear(at, u64::from(size), Access::Read)?;
        match self.load_sized(linear, size) {
            Ok(value) => Ok(value),
            Err(stop) => Err(self.as_stack_fault(stop)),
        }
    }

    /// Moves the stack pointer up by `bytes`.
    #[inline]
    pub(crate) fn stack_drop(&mut self, bytes: u64) {
        self.set_stack_pointer(self.state.gpr[reg::RSP].wrapping_add(bytes));
    }
}
