//! One test case of an instruction form.

use super::arena::{self, DATA_SIZE, HIGH, LOW, PAGE, STACK, STACK_SIZE};
use super::operands::Plan;
use super::random::Random;
use super::{Mode, Oracle, Registers, segments};
use crate::reg;
use crate::state::rflags;
use iced_x86::{Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic, OpKind, Register};

/// Code, start and changes to memory.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) registers: Registers,
    pub(super) code: Vec<u8>,
    pub(super) pokes: Vec<(u64, Vec<u8>)>,
    /// The interpreter runs single instructions, not blocks.
    pub(super) stepwise: bool,
    /// Segment registers may change.
    pub(super) segments: bool,
}

impl Case {
    /// The (first) instruction.
    pub(super) fn first(&self, mode: Mode) -> Instruction {
        let bits = mode.bits();
        Decoder::with_ip(bits, &self.code, self.registers.rip, DecoderOptions::NONE).decode()
    }
}

/// A case of `code`; `None` where the random choice cannot be encoded.
pub(super) fn build(
    code: Code,
    mode: Mode,
    random: &mut Random,
    oracle: &mut Oracle,
) -> Option<Case> {
    let mut plan = Plan::new(code, mode, random, oracle.fs_base);
    plan.fill(random)?;
    prefixes(&mut plan.instruction, random);
    let segments = segments::concerns(code);
    if ambiguous(&plan, segments) {
        return None;
    }
    special(&mut plan, random, oracle);
    let code = encode(&plan.instruction, mode, plan.rip)?;
    let gpr = plan.gpr;
    let mut rflags = flags(plan.instruction.is_string_instruction(), random);
    if segments {
        // How a far pointer must be aligned is the vendor's.
        rflags &= !rflags::AC;
    }
    Some(Case {
        registers: Registers {
            gpr,
            rip: plan.rip,
            rflags,
        },
        code,
        pokes: plan.pokes,
        stepwise: random.chance(50),
        segments,
    })
}

/// True where it is the vendor's which of two faults of one instruction comes
/// first: the memory operand's or the stack's, the push's or the target's, the
/// offset's or the selector's.
fn ambiguous(plan: &Plan, segments: bool) -> bool {
    let instruction = &plan.instruction;
    let Some((at, size)) = plan.target else {
        return false;
    };
    let stack = [instruction.memory_base(), instruction.memory_index()]
        .iter()
        .any(|register| register.full_register() == Register::RSP);
    if instruction.mnemonic() == Mnemonic::Call && stack {
        return segments || !arena::writable(at, size);
    }
    segments
        && (stack && segments::far(instruction.code()) || at.wrapping_add(32) >> 32 != at >> 32)
}

/// Start flags: random status, sometimes DF, seldom AC.
pub(super) fn flags(string: bool, random: &mut Random) -> u64 {
    let mut flags = rflags::FIXED | rflags::IF | random.next() & rflags::ARITH;
    if random.chance(if string { 40 } else { 5 }) {
        flags |= rflags::DF;
    }
    if random.chance(4) {
        flags |= rflags::AC;
    }
    flags
}

/// The bytes, if they are what decodes to the same form again.
pub(super) fn encode(instruction: &Instruction, mode: Mode, rip: u64) -> Option<Vec<u8>> {
    let bits = mode.bits();
    let mut encoder = Encoder::new(bits);
    let length = encoder.encode(instruction, rip).ok()?;
    let bytes = encoder.take_buffer();
    let decoded = Decoder::with_ip(bits, &bytes, rip, DecoderOptions::NONE).decode();
    (decoded.code() == instruction.code() && decoded.len() == length).then_some(bytes)
}

fn prefixes(instruction: &mut Instruction, random: &mut Random) {
    let form = instruction.code().op_code();
    let in_memory = instruction.op0_kind() == OpKind::Memory;
    let exchange = instruction.mnemonic() == Mnemonic::Xchg
        && (0..2).any(|i| instruction.op_kind(i) == OpKind::Memory);
    if form.can_use_lock_prefix() && (in_memory || exchange) && random.chance(35) {
        instruction.set_has_lock_prefix(true);
    }
    if instruction.is_string_instruction() && random.chance(70) {
        if random.chance(50) {
            instruction.set_has_repe_prefix(true);
        } else {
            instruction.set_has_repne_prefix(true);
        }
    }
}

/// Registers and memory that an instruction uses without naming them, or in a
/// way that random values would never make interesting.
fn special(plan: &mut Plan, random: &mut Random, oracle: &mut Oracle) {
    use Mnemonic as M;
    let instruction = plan.instruction;
    if segments::concerns(instruction.code()) {
        return segments::prepare(plan, random);
    }
    if instruction.is_string_instruction() {
        return strings(plan, random);
    }
    match instruction.mnemonic() {
        M::Div | M::Idiv => dividend(plan, random),
        M::Xlatb => {
            let al = plan.gpr[reg::RAX] & 0xff;
            let start = if plan.short_address || random.chance(50) {
                LOW
            } else {
                HIGH
            };
            plan.gpr[reg::RBX] = (start + random.below(DATA_SIZE)).wrapping_sub(al);
            if plan.mode == Mode::Long && plan.short_address {
                plan.gpr[reg::RBX] |= random.next() << 32;
            }
        }
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => expected(plan, random, oracle),
        M::Bt | M::Bts | M::Btr | M::Btc => bit_offset(plan, random),
        M::Enter | M::Leave => {
            plan.gpr[reg::RBP] = STACK + STACK_SIZE / 4 + random.below(STACK_SIZE / 2);
        }
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz if random.chance(70) => {
            let garbage = if random.chance(50) {
                random.next() << 32
            } else {
                0
            };
            plan.gpr[reg::RCX] = random.below(3) | garbage;
        }
        M::Ret => {
            let target = target(plan, random);
            plan.pokes
                .push((plan.gpr[reg::RSP], target.to_le_bytes().to_vec()));
        }
        M::Popf | M::Popfd | M::Popfq => {
            // Single stepping would end elsewhere.
            let image = random.next() & !rflags::TF & !rflags::NT;
            plan.pokes
                .push((plan.gpr[reg::RSP], image.to_le_bytes().to_vec()));
        }
        M::Jmp | M::Call => indirect(plan, random),
        // Linux has a system call there.
        M::Int if plan.instruction.immediate8() == 0x80 => plan.instruction.set_immediate8(0x81),
        _ => {}
    }
    if plan.mode == Mode::Compatibility {
        for value in &mut plan.gpr {
            *value &= 0xffff_ffff;
        }
    }
}

fn target(plan: &Plan, random: &mut Random) -> u64 {
    if random.chance(4) && plan.mode == Mode::Long {
        return random.pick(&[1 << 47, u64::MAX << 47 >> 1, 0x8000_0000_0000_0000]);
    }
    plan.branch_target(false, random)
}

fn indirect(plan: &mut Plan, random: &mut Random) {
    // Which fault comes first, the push's or the target's, is the vendor's.
    let stack = |register: Register| register.full_register() == Register::RSP;
    let target = if stack(plan.instruction.memory_base()) || stack(plan.instruction.op0_register())
    {
        plan.branch_target(false, random)
    } else {
        target(plan, random)
    };
    match plan.instruction.op0_kind() {
        OpKind::Register => {
            let register = plan.instruction.op0_register();
            plan.gpr[register.number()] = target;
        }
        OpKind::Memory => {
            if let Some((at, _)) = plan.target {
                plan.pokes.push((at, target.to_le_bytes().to_vec()));
            }
        }
        _ => {}
    }
}

/// A quotient that fits, most of the time.
fn dividend(plan: &mut Plan, random: &mut Random) {
    let byte = matches!(plan.instruction.code(), Code::Div_rm8 | Code::Idiv_rm8);
    let used = |register: Register| {
        [
            plan.instruction.memory_base(),
            plan.instruction.memory_index(),
        ]
        .iter()
        .any(|&other| other != Register::None && other.full_register() == register)
    };
    let register = if byte { Register::RAX } else { Register::RDX };
    if used(register) || random.chance(25) {
        return;
    }
    let sign = plan.gpr[reg::RAX] as i64 >> 63;
    let high = match random.below(3) {
        0 => 0,
        1 => sign as u64,
        _ => random.below(16),
    };
    if byte {
        let rax = &mut plan.gpr[reg::RAX];
        *rax = *rax & !0xff00 | (high & 0xff) << 8;
    } else {
        plan.gpr[reg::RDX] = high;
    }
}

/// The accumulator equals memory half of the time.
fn expected(plan: &mut Plan, random: &mut Random, oracle: &mut Oracle) {
    if random.chance(50) {
        return;
    }
    let used = |number: usize| {
        [
            plan.instruction.memory_base(),
            plan.instruction.memory_index(),
        ]
        .iter()
        .any(|&other| {
            other != Register::None
                && other != Register::RIP
                && other != Register::EIP
                && other.number() == number
        })
    };
    let pair = plan.instruction.mnemonic() != Mnemonic::Cmpxchg;
    if used(reg::RAX) || pair && used(reg::RDX) {
        return;
    }
    let Some((at, size)) = plan.target else {
        let register = plan.instruction.op0_register();
        if !matches!(
            register,
            Register::AH | Register::CH | Register::DH | Register::BH
        ) {
            plan.gpr[reg::RAX] = plan.gpr[register.full_register().number()];
        }
        return;
    };
    plan.pokes.clear();
    let half = if pair { size / 2 } else { size };
    plan.gpr[reg::RAX] = oracle.native.view.peek(at, half as usize);
    if pair {
        plan.gpr[reg::RDX] = oracle
            .native
            .view
            .peek(at.wrapping_add(half), half as usize);
    }
}

/// A bit string's offset, near enough to stay in memory most of the time.
fn bit_offset(plan: &mut Plan, random: &mut Random) {
    let instruction = &plan.instruction;
    if instruction.op0_kind() != OpKind::Memory || instruction.op1_kind() != OpKind::Register {
        return;
    }
    let register = instruction.op1_register();
    let full = register.full_register();
    let used = [instruction.memory_base(), instruction.memory_index()]
        .iter()
        .any(|&other| other != Register::None && other.full_register() == full);
    if used || random.chance(10) {
        return;
    }
    let offset = (random.below(0x4000) as i64 - 0x2000) as u64;
    let slot = &mut plan.gpr[full.number()];
    *slot = match register.size() {
        2 => *slot & !0xffff | offset & 0xffff,
        4 => *slot & !0xffff_ffff | offset & 0xffff_ffff,
        _ => offset,
    };
}

/// Pointers into data, small counts, and equal bytes for the comparisons.
fn strings(plan: &mut Plan, random: &mut Random) {
    let low = plan.short_address;
    let pointer = |random: &mut Random| {
        let start = if low || random.chance(50) { LOW } else { HIGH };
        match random.below(20) {
            0 => start + random.below(64),
            1 => start + DATA_SIZE - random.below(64),
            2..5 => start + PAGE + random.below(64) - 32,
            _ => start + 0x800 + random.below(DATA_SIZE - 0x1000),
        }
    };
    let source = pointer(random);
    let target = if random.chance(20) {
        source.wrapping_add(random.below(64)).wrapping_sub(32)
    } else {
        pointer(random)
    };
    let count = match random.below(10) {
        0 => 0,
        1 => 1,
        2 => random.below(600),
        _ => random.below(40),
    };
    // With a count of 0 processors may or may not look at the port's rights.
    let count = if plan.instruction.is_privileged() {
        count.max(1)
    } else {
        count
    };
    if random.chance(60) {
        // Runs of equal elements: comparisons look at more than the first.
        let run = vec![plan.gpr[reg::RAX] as u8; 160];
        plan.gpr[reg::RAX] = (plan.gpr[reg::RAX] & 0xff).wrapping_mul(0x0101_0101_0101_0101);
        plan.pokes.push((source - 80, run.clone()));
        plan.pokes.push((target - 80, run));
        for at in [source, target] {
            let other = at - 80 + random.below(160);
            plan.pokes.push((other, vec![random.next() as u8]));
        }
    }
    let garbage = |random: &mut Random| {
        if low && plan.mode == Mode::Long {
            random.next() << 32
        } else {
            0
        }
    };
    let values = [
        source | garbage(random),
        target | garbage(random),
        count | garbage(random),
    ];
    plan.gpr[reg::RSI] = values[0];
    plan.gpr[reg::RDI] = values[1];
    plan.gpr[reg::RCX] = values[2];
    if plan.mode == Mode::Compatibility {
        plan.gpr[reg::RAX] &= 0xffff_ffff;
    }
}
