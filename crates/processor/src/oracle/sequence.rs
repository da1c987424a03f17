//! Short straight runs of random instructions, executed as blocks.

use super::arena::{CODE, DATA_SIZE, HIGH, LOW, STACK, STACK_SIZE};
use super::instance::{self, Case};
use super::random::Random;
use super::{Mode, Registers, forms, segments};
use crate::reg;
use iced_x86::{
    Code, FlowControl, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register,
};

/// Registers that hold pointers throughout.
const LOW_POINTER: usize = reg::RBX;
const HIGH_POINTER: usize = 15;

/// Forms that a sequence may be made of: no branch, no pointer of its own.
pub(super) fn pool() -> Vec<Code> {
    forms::all(Mode::Long)
        .into_iter()
        .filter(|&code| {
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            forms::left_out(code, Mode::Long).is_none()
                && instruction.flow_control() == FlowControl::Next
                && !instruction.is_string_instruction()
                && !instruction.is_privileged()
                && !segments::concerns(code)
                && !matches!(
                    instruction.mnemonic(),
                    Mnemonic::Xlatb
                        | Mnemonic::Enter
                        | Mnemonic::Leave
                        | Mnemonic::Popf
                        | Mnemonic::Popfq
                        | Mnemonic::Div
                        | Mnemonic::Idiv
                        | Mnemonic::Hlt
                        | Mnemonic::Rdfsbase
                )
        })
        .collect()
}

/// 5 to 20 instructions.
pub(super) fn build(pool: &[Code], random: &mut Random) -> Case {
    let mut gpr = [0; 16];
    for value in &mut gpr {
        *value = random.operand();
    }
    gpr[LOW_POINTER] = LOW + DATA_SIZE / 2 + random.below(8);
    gpr[HIGH_POINTER] = HIGH + DATA_SIZE / 2 + random.below(8);
    gpr[reg::RSP] = STACK + STACK_SIZE / 2;
    let rip = CODE + 0x400 + random.below(0xb00);
    let mut code = Vec::new();
    let mut left = 5 + random.below(16);
    while left > 0 {
        let form = random.pick(pool);
        let at = rip + code.len() as u64;
        let Some(bytes) = fill(form, random)
            .and_then(|instruction| instance::encode(&instruction, Mode::Long, at))
        else {
            continue;
        };
        code.extend(bytes);
        left -= 1;
    }
    let rflags = instance::flags(false, random);
    let registers = Registers { gpr, rip, rflags };
    Case {
        registers,
        code,
        pokes: Vec::new(),
        stepwise: random.chance(20),
        segments: false,
    }
}

fn fill(code: Code, random: &mut Random) -> Option<Instruction> {
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let form = code.op_code();
    for i in 0..form.op_count() {
        let kind = form.op_kind(i);
        if let Some(register) = forms::fixed_register(kind) {
            instruction.set_op_kind(i, OpKind::Register);
            instruction.set_op_register(i, register);
        } else if forms::memory_kind(kind) && (kind == Kind::mem || random.chance(40)) {
            memory(&mut instruction, i, random);
        } else if !immediate(&mut instruction, i, kind, random) {
            let register = register(kind, random)?;
            instruction.set_op_kind(i, OpKind::Register);
            instruction.set_op_register(i, register);
        }
    }
    if form.can_use_lock_prefix() && instruction.op0_kind() == OpKind::Memory && random.chance(30) {
        instruction.set_has_lock_prefix(true);
    }
    Some(instruction)
}

fn memory(instruction: &mut Instruction, i: u32, random: &mut Random) {
    let pointer = random.pick(&[LOW_POINTER, HIGH_POINTER]);
    instruction.set_op_kind(i, OpKind::Memory);
    instruction.set_memory_base(Register::RAX + pointer as u32);
    // Little memory: later instructions meet what earlier ones wrote.
    instruction.set_memory_displacement64((random.below(96) as i64 - 48) as u64);
    instruction.set_memory_displ_size(1);
}

fn register(kind: Kind, random: &mut Random) -> Option<Register> {
    let first = match kind {
        Kind::r8_reg | Kind::r8_opcode | Kind::r8_or_mem => {
            let pick = Register::AL + random.below(20) as u32;
            return usable(pick).then_some(pick);
        }
        Kind::r16_reg | Kind::r16_opcode | Kind::r16_or_mem | Kind::r16_rm => Register::AX,
        Kind::r32_reg | Kind::r32_opcode | Kind::r32_or_mem | Kind::r32_rm | Kind::r32_vvvv => {
            Register::EAX
        }
        Kind::r64_reg | Kind::r64_opcode | Kind::r64_or_mem | Kind::r64_rm | Kind::r64_vvvv => {
            Register::RAX
        }
        Kind::seg_reg => return Some(Register::DS),
        _ => return None,
    };
    let pick = first + random.below(16) as u32;
    usable(pick).then_some(pick)
}

fn usable(register: Register) -> bool {
    ![LOW_POINTER, HIGH_POINTER, reg::RSP].contains(&register.full_register().number())
}

fn immediate(instruction: &mut Instruction, i: u32, kind: Kind, random: &mut Random) -> bool {
    let value = random.operand();
    let op = match kind {
        Kind::imm8 => OpKind::Immediate8,
        Kind::imm8sex16 => OpKind::Immediate8to16,
        Kind::imm8sex32 => OpKind::Immediate8to32,
        Kind::imm8sex64 => OpKind::Immediate8to64,
        Kind::imm16 => OpKind::Immediate16,
        Kind::imm32 => OpKind::Immediate32,
        Kind::imm32sex64 => OpKind::Immediate32to64,
        Kind::imm64 => OpKind::Immediate64,
        Kind::imm8_const_1 => {
            instruction.set_op_kind(i, OpKind::Immediate8);
            instruction.set_immediate8(1);
            return true;
        }
        _ => return false,
    };
    instruction.set_op_kind(i, op);
    match kind {
        Kind::imm8 => instruction.set_immediate8(value as u8),
        Kind::imm8sex16 => instruction.set_immediate8to16(i16::from(value as i8)),
        Kind::imm8sex32 => instruction.set_immediate8to32(i32::from(value as i8)),
        Kind::imm8sex64 => instruction.set_immediate8to64(i64::from(value as i8)),
        Kind::imm16 => instruction.set_immediate16(value as u16),
        Kind::imm32 => instruction.set_immediate32(value as u32),
        Kind::imm32sex64 => instruction.set_immediate32to64(i64::from(value as i32)),
        _ => instruction.set_immediate64(value),
    }
    true
}
