//! Where emitted code finds things: registers and fields.

use super::asm::{Mem, host};
use super::transfer::Transfers;
use crate::Vp;
use crate::state::State;
use std::hash::{BuildHasher, RandomState};
use std::mem::offset_of;
use std::sync::atomic::AtomicU32;

/// What emitted code reads and writes besides the architectural state. The GS
/// base points to the [`Vp`] that this is part of.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Link {
    /// The processor itself.
    pub(super) this: *mut Vp,
    /// The table for data in use, see [`super::tlb`].
    pub(super) table: u64,
    /// [`super::tlb::INDEX_MASK`].
    pub(super) index_mask: u64,
    /// All bits but the page offset's.
    pub(super) page_mask: u64,
    /// The same, and the lowest four.
    pub(super) aligned_mask: u64,
    /// The same, and the lowest five.
    pub(super) aligned_mask_32: u64,
    /// [`super::links::JUMP_MASK`].
    pub(super) jump_mask: u64,
    /// The tables for indirect jumps: supervisor's and user's.
    pub(super) jumps: [u64; 2],
    /// The word that is 0 when somebody wants attention.
    pub(super) go: *const AtomicU32,
    /// The host's stack pointer while emitted code runs.
    pub(super) host_stack: u64,
    /// The shadow stack's pointer while it does not.
    pub(super) shadow: u64,
    /// The pointers of supervisor's and user's shadow stack; that of the
    /// privilege in use is out of date.
    pub(super) shadows: [u64; 2],
    /// The tops of the empty shadow stacks.
    pub(super) shadow_tops: [u64; 2],
    /// Whose shadow stack is in use: 1 for user code.
    pub(super) shadow_user: u64,
    /// Where to go on, while registers are loaded.
    pub(super) resume: u64,
    /// The code that an indirect call leads to.
    pub(super) target: u64,
    /// A value in the middle of an instruction.
    pub(super) stash: u64,
    /// The supervisor's tables for data, without and with RFLAGS.AC.
    pub(super) ac_tables: [u64; 2],
    /// The numbers of their sets, see [`crate::mmu::Rights`].
    pub(super) ac_sets: [u64; 2],
    /// User code's table for data.
    pub(super) user_table: u64,
    /// What SYSCALL and SYSRET load.
    pub(super) transfers: Transfers,
    /// The page that the guest's stack was last written in: its negated linear
    /// address, and what leads from linear addresses to the host's.
    pub(super) stack_page: u64,
    /// See `stack_page`.
    pub(super) stack_addend: u64,
    /// `stack_page` when there is none: an address that is not canonical and
    /// that no guest can guess.
    pub(super) no_stack_page: u64,
    /// The table of supervisor code that may not touch user pages: only from
    /// it supervisor code's cells are filled.
    pub(super) kernel_table: u64,
    /// Where the next filled cell of supervisor's and user's code is noted.
    pub(super) logs: [*mut u64; 2],
    /// Not 0 while the guest's vector registers and MXCSR are in the host's.
    pub(super) vectors: u64,
    /// Not 0 while the guest's x87 registers are in the host's; see
    /// [`super::units`].
    pub(super) x87: u64,
    /// Not 0 while upper halves of YMM registers are in the host's, where
    /// vector registers are as well.
    pub(super) upper: u64,
    /// The exception masks of the x87's control word.
    pub(super) control_masks: u64,
    /// Those of MXCSR, and its bits that do not exist.
    pub(super) mxcsr_masks: u64,
    /// MXCSR of the host while the guest's is in place.
    pub(super) host_mxcsr: u32,
    /// The same for the x87's control word.
    pub(super) host_control: u16,
    /// What FLDCW or LDMXCSR loads.
    pub(super) control: u32,
    /// Not 0 once what is in place was used.
    pub(super) vectors_used: u8,
    /// The same for x87.
    pub(super) x87_used: u8,
}

impl Link {
    pub(crate) fn new() -> Self {
        let random = RandomState::new().hash_one(0);
        let no_stack_page = ((random >> 3 | 1 << 60) & !0xfff).wrapping_neg();
        Self {
            this: std::ptr::null_mut(),
            table: 0,
            index_mask: super::tlb::INDEX_MASK,
            page_mask: !0xfff,
            aligned_mask: !0xfff | 15,
            aligned_mask_32: !0xfff | 31,
            jump_mask: super::links::JUMP_MASK,
            jumps: [0; 2],
            go: std::ptr::null(),
            host_stack: 0,
            shadow: 0,
            shadows: [0; 2],
            shadow_tops: [0; 2],
            shadow_user: 0,
            stash: 0,
            ac_tables: [0; 2],
            ac_sets: [0; 2],
            user_table: 0,
            transfers: Transfers::default(),
            resume: 0,
            target: 0,
            stack_page: no_stack_page,
            stack_addend: 0,
            no_stack_page,
            kernel_table: 0,
            logs: [std::ptr::null_mut(); 2],
            vectors: 0,
            x87: 0,
            upper: 0,
            control_masks: 0x3f,
            mxcsr_masks: 0xffff_1f80,
            host_mxcsr: 0x1f80,
            host_control: 0x37f,
            control: 0x37f,
            vectors_used: 0,
            x87_used: 0,
        }
    }
}

/// A field of [`Link`] as a memory operand.
macro_rules! field {
    ($($field:tt)+) => {
        $crate::translate::asm::Mem::Vp(
            std::mem::offset_of!($crate::Vp, link)
                + std::mem::offset_of!($crate::translate::layout::Link, $($field)+),
        )
    };
}
pub(super) use field;

/// An element of a field of [`Link`] with 8-byte elements.
pub(super) fn element(field: Mem, number: usize) -> Mem {
    match field {
        Mem::Vp(offset) => Mem::Vp(offset + 8 * number),
        other => other,
    }
}

/// Scratch registers. RCX is one because JRCXZ tests it without flags.
pub(super) const S0: u8 = host::RCX;
/// See [`S0`].
pub(super) const S1: u8 = host::R14;
/// See [`S0`].
pub(super) const S2: u8 = host::R15;

/// Where the guest's registers are: in a host register, or (the four that
/// compilers use least) in memory.
pub(super) const PLACES: [Option<u8>; 16] = [
    Some(host::RAX),
    Some(host::R10),
    Some(host::RDX),
    Some(host::RBX),
    Some(host::R11),
    Some(host::RBP),
    Some(host::RSI),
    Some(host::RDI),
    Some(8),
    None,
    None,
    None,
    Some(host::R12),
    None,
    Some(9),
    Some(host::R13),
];

/// The host register of the guest's RSP.
pub(super) const GUEST_RSP: u8 = host::R11;
/// The host register of the guest's RCX.
pub(super) const GUEST_RCX: u8 = host::R10;

/// The guest's general register `number` in memory.
pub(super) fn register(number: usize) -> Mem {
    Mem::Vp(offset_of!(Vp, state) + offset_of!(State, gpr) + 8 * number)
}

/// The saved status flags.
pub(super) fn flags() -> Mem {
    Mem::Vp(offset_of!(Vp, state) + offset_of!(State, arith))
}

/// A part of the architectural state.
pub(super) fn state(offset: usize) -> Mem {
    Mem::Vp(offset_of!(Vp, state) + offset)
}

/// The base of a segment register.
pub(super) fn segment_base(number: usize) -> Mem {
    segment(number, offset_of!(crate::Segment, base))
}

/// The selector of a segment register.
pub(super) fn selector(number: usize) -> Mem {
    segment(number, offset_of!(crate::Segment, selector))
}

fn segment(number: usize, offset: usize) -> Mem {
    state(offset_of!(State, seg) + number * size_of::<crate::Segment>() + offset)
}

/// The upper half of a YMM register.
pub(super) fn upper_half(number: usize) -> Mem {
    Mem::Vp(
        offset_of!(Vp, state)
            + offset_of!(State, fpu)
            + offset_of!(crate::Fpu, upper)
            + 16 * number,
    )
}

/// [`crate::Fpu::upper_used`].
pub(super) fn upper_used() -> Mem {
    Mem::Vp(offset_of!(Vp, state) + offset_of!(State, fpu) + offset_of!(crate::Fpu, upper_used))
}

/// The FXSAVE image, from `offset` on.
pub(super) fn image(offset: usize) -> Mem {
    Mem::Vp(
        offset_of!(Vp, state) + offset_of!(State, fpu) + offset_of!(crate::Fpu, fxsave) + offset,
    )
}
