//! The instructions, by theme.
//!
//! Each module has a `select` that picks the handler for an instruction when
//! it is decoded; nothing is looked up when it runs.

pub(crate) mod alu;
pub(crate) mod bits;
pub(crate) mod control;
pub(crate) mod control_registers;
pub(crate) mod data;
pub(crate) mod debug;
pub(crate) mod decimal;
pub(crate) mod descriptor;
pub(crate) mod event;
pub(crate) mod event_frame;
pub(crate) mod event_gate;
pub(crate) mod far;
pub(crate) mod far_gate;
pub(crate) mod flags_image;
pub(crate) mod fpu;
pub(crate) mod iret;
pub(crate) mod locked;
pub(crate) mod msr;
pub(crate) mod msr_memory_types;
pub(crate) mod multiply;
pub(crate) mod operand;
pub(crate) mod port;
pub(crate) mod segment;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod syscall;
pub(crate) mod system;
pub(crate) mod system_select;
pub(crate) mod system_tables;
pub(crate) mod task;
pub(crate) mod vex;

#[cfg(test)]
mod system_tests;

use crate::Vp;
use crate::decode::{Mode, Selected};
use crate::fault::Step;
use crate::op::Op;
use iced_x86::Instruction;

/// The handler for a decoded instruction; `None`: this processor has no such
/// instruction.
pub(crate) fn select(instruction: &Instruction, op: &mut Op, mode: Mode) -> Option<Selected> {
    alu::select(instruction, op)
        .or_else(|| data::select(instruction, op))
        .or_else(|| control::select(instruction, op, mode))
        .or_else(|| stack::select(instruction, op, mode))
        .or_else(|| shift::select(instruction, op))
        .or_else(|| bits::select(instruction, op))
        .or_else(|| multiply::select(instruction, op))
        .or_else(|| string::select(instruction, op))
        .or_else(|| locked::select(instruction, op))
        .or_else(|| decimal::select(instruction, op))
        .or_else(|| fpu::select(instruction, op))
        .or_else(|| vex::select(instruction, op, mode))
        .or_else(|| system_select::select(instruction, op))
}

/// #UD.
pub(crate) fn undefined(vp: &mut Vp, _op: &Op) -> Step {
    Err(vp.ud())
}

/// More than 15 bytes: #GP(0).
pub(crate) fn too_long(vp: &mut Vp, _op: &Op) -> Step {
    Err(vp.gp(0))
}

/// The handler for the op's operand size among those for 1, 2, 4 and 8 bytes.
macro_rules! by_size {
    ($op:expr, $($path:tt)+) => {
        match $op.size {
            1 => $crate::exec::with_type!(u8, $($path)+),
            2 => $crate::exec::with_type!(u16, $($path)+),
            4 => $crate::exec::with_type!(u32, $($path)+),
            _ => $crate::exec::with_type!(u64, $($path)+),
        }
    };
}
/// Calls the given macro with the type in front.
macro_rules! with_type {
    ($type:ty, $macro:ident ! ($($rest:tt)*)) => { $macro!($type, $($rest)*) };
}
pub(crate) use by_size;
pub(crate) use with_type;
