//! A decoded instruction, ready to run.

use crate::Vp;
use crate::fault::Step;

/// Runs one decoded instruction.
pub(crate) type OpFn = fn(&mut Vp, &Op) -> Step;

/// How a memory operand's linear address comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Address {
    /// 64-bit mode, no segment base: the effective address is the linear one.
    Flat64,
    /// 64-bit mode with the FS or GS base, or a 32-bit address size.
    Long,
    /// Outside 64-bit mode: segment base, limit and type checks.
    Segmented,
}

/// A decoded instruction: handler and operands. Handlers take from it what
/// their instruction form defines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    /// The handler.
    pub run: OpFn,
    /// Immediate; for branches the target as a displacement from the block's
    /// start; for handlers with `slow` the index of the full instruction.
    pub imm: u64,
    /// Displacement of the memory operand (RIP-relative ones are relative to
    /// the block's start: base is [`crate::state::reg::BLOCK_RIP`]).
    pub disp: u64,
    /// Offset of this instruction from the block's start, bytes.
    pub offset: u16,
    /// Length, 1 to 15.
    pub length: u8,
    /// Destination register (or ModRM.reg).
    pub dst: u8,
    /// Source register (or ModRM.rm when it is a register).
    pub src: u8,
    /// A third register or another small number.
    pub aux: u8,
    /// Base register of the memory operand, [`crate::state::reg::ZERO`] if none.
    pub base: u8,
    /// Index register, [`crate::state::reg::ZERO`] if none.
    pub index: u8,
    /// log2 of the scale.
    pub scale: u8,
    /// Segment register of the memory operand.
    pub segment: u8,
    /// How the address comes about.
    pub address: Address,
    /// Address size in bytes: 2, 4 or 8.
    pub address_size: u8,
    /// Operand size in bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// Prefixes seen: see [`prefix`].
    pub prefix: u8,
}

/// Bits of [`Op::prefix`].
pub(crate) mod prefix {
    /// LOCK (honoured).
    pub(crate) const LOCK: u8 = 1;
    /// REP or REPE.
    pub(crate) const REP: u8 = 2;
    /// REPNE.
    pub(crate) const REPNE: u8 = 4;
    /// The operand named by ModRM.rm is in memory.
    pub(crate) const MEMORY: u8 = 8;
    /// The last instruction of its block: RIP is already behind it when the
    /// handler runs.
    pub(crate) const LAST: u8 = 16;
}

impl Op {
    /// The last instruction of its block.
    #[inline]
    pub(crate) fn is_last(&self) -> bool {
        self.prefix & prefix::LAST != 0
    }

    /// The ModRM.rm operand is in memory.
    #[inline]
    pub(crate) fn has_memory(&self) -> bool {
        self.prefix & prefix::MEMORY != 0
    }

    /// Offset of the next instruction from the block's start.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }
}
