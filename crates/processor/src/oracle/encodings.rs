//! Encodings that no assembler writes: prefixes in any number and order, REX
//! where it means nothing, random ModRM, SIB and displacement bytes.

use super::arena::{DATA_SIZE, HIGH, LOW, STACK, STACK_SIZE};
use super::instance::{self, Case};
use super::random::Random;
use super::{CODE, CODE_SIZE, Mode, Registers, forms, segments};
use crate::reg;
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register};

/// Prefixes, REX apart.
const PREFIXES: [u8; 11] = [
    0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65,
];
/// Attempts before a random encoding is given up.
const ATTEMPTS: usize = 10_000;

/// Which forms a mode compares and may meet here.
pub(super) struct Allowed(Vec<bool>);

impl Allowed {
    pub(super) fn new(mode: Mode) -> Self {
        let mut allowed = vec![false; Code::values().len()];
        for code in forms::all(mode) {
            allowed[code as usize] =
                forms::left_out(code, mode).is_none() && !segments::concerns(code);
        }
        Self(allowed)
    }

    fn has(&self, instruction: &Instruction) -> bool {
        // Branches leave for anywhere, and POPF may start single stepping.
        let straight = matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::Exception
        ) && !matches!(
            instruction.mnemonic(),
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq
        );
        // FS is the test thread's own memory.
        let apart = instruction.segment_prefix() != Register::FS;
        let port = instruction.is_string_instruction() && instruction.is_privileged();
        straight && apart && !port && self.0[instruction.code() as usize]
    }
}

/// A case with a random encoding of an allowed form.
pub(super) fn build(allowed: &Allowed, mode: Mode, random: &mut Random) -> Option<Case> {
    let code = (0..ATTEMPTS).find_map(|_| encoding(allowed, mode, random))?;
    let mut gpr = [0; 16];
    for value in &mut gpr {
        *value = match random.below(8) {
            0 => random.operand(),
            1 => random.below(16),
            2 | 3 if mode == Mode::Long => HIGH + random.below(DATA_SIZE),
            _ => LOW + random.below(DATA_SIZE),
        };
    }
    gpr[reg::RSP] = STACK + STACK_SIZE / 2 + random.below(64) * 8;
    if random.chance(50) {
        gpr[reg::RCX] = random.below(70);
    }
    let mut rip = CODE + 0x20 + random.below(CODE_SIZE - 0x40);
    if mode == Mode::Sixteen {
        rip -= CODE;
        small_pointers(&mut gpr, random);
    }
    if mode != Mode::Long {
        for value in &mut gpr {
            *value &= 0xffff_ffff;
        }
        gpr[8..].fill(0);
    }
    let rflags = instance::flags(true, random);
    let registers = Registers { gpr, rip, rflags };
    Some(Case {
        registers,
        code,
        pokes: Vec::new(),
        stepwise: random.chance(50),
        segments: false,
    })
}

/// Offsets into the 16-bit segments; sums of two may pass the limit.
fn small_pointers(gpr: &mut [u64; 16], random: &mut Random) {
    for value in gpr.iter_mut() {
        *value = match random.below(10) {
            0 => random.operand(),
            1 => random.below(0x1_0000),
            2 => random.below(0x2800) | random.next() << 16,
            _ => random.below(0x2800),
        };
    }
    gpr[reg::RSP] = STACK_SIZE / 2 + random.below(64) * 2;
    if random.chance(10) {
        // Wraps, or leaves what is mapped.
        gpr[reg::RSP] = random.pick(&[0, 1, 2, 6, 0x4000, 0xfffe, 0xffff]);
    }
    if random.chance(50) {
        gpr[reg::RCX] = random.below(70);
    }
}

/// Random bytes, cut to one instruction, if it is one that both vendors'
/// decoding rules make the same allowed form of.
fn encoding(allowed: &Allowed, mode: Mode, random: &mut Random) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(20);
    for _ in 0..random.below(4) {
        bytes.push(random.pick(&PREFIXES));
    }
    if mode == Mode::Long && random.chance(40) {
        bytes.push(0x40 | random.below(16) as u8);
        if random.chance(5) {
            // A REX prefix counts only right before the opcode.
            bytes.push(random.pick(&PREFIXES));
        }
    }
    match random.below(10) {
        0..5 => {}
        5..9 => bytes.push(0x0f),
        _ => bytes.extend([0x0f, 0x38]),
    }
    while bytes.len() < 20 {
        bytes.push(random.next() as u8);
    }
    let bits = mode.bits();
    let decode = |options| Decoder::with_ip(bits, &bytes[..15], 0, options).decode();
    let instruction = decode(DecoderOptions::NONE);
    let other = decode(DecoderOptions::AMD);
    let same = instruction.code() == other.code() && instruction.len() == other.len();
    if instruction.is_invalid() || !same || !allowed.has(&instruction) {
        return None;
    }
    bytes.truncate(instruction.len());
    Some(bytes)
}
