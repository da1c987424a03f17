//! Selectors and far pointers for the instructions that load segment
//! registers or ask about descriptors.
//!
//! The guest's descriptor table has Linux's user segments where Linux has
//! them. Beyond those the tests name selectors that fail the same way whatever
//! the host's kernel keeps there: privileged, of the wrong kind, beyond the
//! limit, in the local table (there only
//! the 16-bit segments of the tests have entries).

use super::operands::Plan;
use super::random::Random;
use super::{CS_32, CS_64, Mode, SS_USER};
use crate::reg;
use iced_x86::{Code, Mnemonic, OpKind};

const DATA: [u16; 16] = [
    SS_USER,
    SS_USER,
    SS_USER,
    SS_USER & !3,
    0,
    3,
    CS_32,
    CS_64,
    0x10,
    0x1b,
    0x40,
    0x83,
    0x107,
    0xfff8,
    0x2f,
    4,
];
const CODE: [u16; 12] = [
    CS_32,
    CS_32,
    CS_64,
    CS_64,
    CS_64,
    CS_64 & !3,
    0,
    SS_USER,
    0x10,
    0x13,
    0x83,
    0x37,
];

/// Whether a form's operands come from here.
pub(super) fn concerns(code: Code) -> bool {
    use Mnemonic as M;
    let first = code.op_code().op0_kind();
    match code.mnemonic() {
        M::Mov => first == iced_x86::OpCodeOperandKind::seg_reg,
        M::Pop => code.op_code().op0_kind() as u32 != 0 && pops_segment(code),
        M::Lds | M::Les | M::Lss | M::Lgs | M::Lar | M::Lsl | M::Verr | M::Verw => true,
        M::Retf | M::Iret | M::Iretd | M::Iretq => true,
        M::Jmp | M::Call => far(code),
        _ => false,
    }
}

fn pops_segment(code: Code) -> bool {
    super::forms::fixed_register(code.op_code().op0_kind())
        .is_some_and(|register| register.is_segment_register())
}

/// Far jumps and calls.
pub(super) fn far(code: Code) -> bool {
    matches!(
        code,
        Code::Jmp_m1616
            | Code::Jmp_m1632
            | Code::Call_m1616
            | Code::Call_m1632
            | Code::Jmp_ptr1616
            | Code::Jmp_ptr1632
            | Code::Call_ptr1616
            | Code::Call_ptr1632
    )
}

/// Puts selectors where `plan`'s instruction finds them.
pub(super) fn prepare(plan: &mut Plan, random: &mut Random) {
    use Mnemonic as M;
    let code = plan.instruction.code();
    let selector = random.pick(&DATA);
    match code.mnemonic() {
        M::Pop => poke(plan, plan.gpr[reg::RSP], &selector.to_le_bytes()),
        M::Lds | M::Les | M::Lss | M::Lgs => {
            if let Some((at, size)) = plan.target {
                poke(plan, at.wrapping_add(size - 2), &selector.to_le_bytes());
            }
        }
        M::Retf => {
            if plan.instruction.op_count() == 1 {
                // The stack behind is there, whatever is looked at first.
                plan.instruction.set_immediate16(random.below(256) as u16);
            }
            let values = [target(plan, random), u64::from(random.pick(&CODE))];
            frame(plan, &values);
        }
        M::Iret | M::Iretd | M::Iretq => {
            let values = [
                target(plan, random),
                u64::from(random.pick(&CODE)),
                // Neither single step nor nested task.
                random.next() & 0x3f_3eff & !0x4000,
                plan.gpr[reg::RSP].wrapping_add(random.below(64) * 8),
                u64::from(random.pick(&DATA)),
            ];
            frame(plan, &values);
        }
        M::Jmp | M::Call => far_pointer(plan, random),
        _ => source(plan, selector),
    }
}

fn poke(plan: &mut Plan, at: u64, bytes: &[u8]) {
    plan.pokes.push((at, bytes.to_vec()));
}

fn target(plan: &Plan, random: &mut Random) -> u64 {
    plan.branch_target(true, random)
}

/// A stack frame of `values` at the operand size.
fn frame(plan: &mut Plan, values: &[u64]) {
    let size = match plan.instruction.code().op_code().operand_size() {
        16 => 2,
        32 => 4,
        _ => 8,
    };
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes().into_iter().take(size))
        .collect();
    poke(plan, plan.gpr[reg::RSP], &bytes);
}

fn far_pointer(plan: &mut Plan, random: &mut Random) {
    let target = target(plan, random);
    let selector = random.pick(&CODE);
    match plan.instruction.op0_kind() {
        OpKind::FarBranch16 => {
            plan.instruction.set_far_branch16(target as u16);
            plan.instruction.set_far_branch_selector(selector);
        }
        OpKind::FarBranch32 => {
            plan.instruction.set_far_branch32(target as u32);
            plan.instruction.set_far_branch_selector(selector);
        }
        _ => {
            let Some((at, size)) = plan.target else {
                return;
            };
            let mut bytes = target.to_le_bytes()[..size as usize - 2].to_vec();
            bytes.extend(selector.to_le_bytes());
            poke(plan, at, &bytes);
        }
    }
}

/// The selector in the last operand, a register or memory.
fn source(plan: &mut Plan, selector: u16) {
    let last = plan.instruction.op_count() - 1;
    if plan.instruction.op_kind(last) == OpKind::Memory {
        if let Some((at, _)) = plan.target {
            poke(plan, at, &selector.to_le_bytes());
        }
        return;
    }
    let slot = &mut plan.gpr[plan.instruction.op_register(last).number()];
    *slot = *slot & !0xffff | u64::from(selector);
    if plan.mode == Mode::Compatibility {
        *slot &= 0xffff_ffff;
    }
}
