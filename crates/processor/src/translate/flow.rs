//! What a region is made of, and which status flags are wanted where.

use crate::op::Op;
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, RflagsBits};

/// The six status flags.
pub(super) const ALL: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// An instruction of a region.
pub(super) struct Item {
    /// As decoded at address 0 for the region's start.
    pub instruction: Instruction,
    /// For the interpreter.
    pub op: Op,
    /// Flags that it or something behind it reads before they are written.
    pub live: u32,
    /// The same just behind it.
    pub live_behind: u32,
    /// It is left to its handler.
    pub handled: bool,
}

/// Fills in [`Item::live`].
pub(super) fn liveness(items: &mut [Item]) {
    let mut live = ALL;
    for item in items.iter_mut().rev() {
        item.live_behind = live;
        live = if item.handled || leaves(&item.instruction) {
            // Elsewhere every flag may be read; handlers may look at any.
            ALL
        } else {
            let read = item.instruction.rflags_read() & ALL;
            read | live & !written(&item.instruction)
        };
        item.live = live;
    }
}

fn leaves(instruction: &Instruction) -> bool {
    instruction.flow_control() != FlowControl::Next
}

/// The flags that are certainly written, whatever the operands, and whatever
/// the processor makes of those that are undefined.
fn written(instruction: &Instruction) -> u32 {
    use Mnemonic as M;
    match instruction.mnemonic() {
        // AF is undefined, but does not depend on what it was.
        M::And | M::Or | M::Xor | M::Test => ALL,
        M::Shl | M::Shr | M::Sar | M::Sal => match shift_count(instruction) {
            0 => 0,
            1 => ALL & !RflagsBits::AF,
            _ => ALL & !(RflagsBits::AF | RflagsBits::OF),
        },
        M::Rol | M::Ror => match shift_count(instruction) {
            0 => 0,
            1 => RflagsBits::CF | RflagsBits::OF,
            _ => RflagsBits::CF,
        },
        M::Shld | M::Shrd | M::Rcl | M::Rcr => 0,
        // Processors differ in what becomes of the others.
        M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip => {
            RflagsBits::CF | RflagsBits::PF | RflagsBits::ZF
        }
        _ => {
            let all = instruction.rflags_written()
                | instruction.rflags_cleared()
                | instruction.rflags_set();
            all & ALL & !instruction.rflags_undefined()
        }
    }
}

/// The count of a shift by an immediate; 0 where it is not known.
fn shift_count(instruction: &Instruction) -> u32 {
    if instruction.op1_kind() != OpKind::Immediate8 {
        return 0;
    }
    let mask = if instruction.op_count() > 0 && wide(instruction) {
        63
    } else {
        31
    };
    u32::from(instruction.immediate8()) & mask
}

fn wide(instruction: &Instruction) -> bool {
    match instruction.op0_kind() {
        OpKind::Memory => instruction.memory_size().size() == 8,
        _ => instruction.op0_register().size() == 8,
    }
}
