//! Production code against the host, form by form.

use super::machine::{self, DATA};
use super::native::{Context, Runner};
use super::random::Random;
use crate::fault::{Exit, vector};
use crate::native::Form;
use crate::op::Op;
use crate::state::{Fpu, rflags};
use crate::vp::{ProcessorMode, Vp};
use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind, Register,
};

/// Encodings of each form, and operand sets of each encoding.
pub(super) const ENCODINGS: usize = 100;
const OPERANDS: usize = 24;

/// The register that memory operands are addressed by.
pub(super) const BASE: Register = Register::RBX;
pub(super) const BASE_NUMBER: usize = 3;

const GENERAL: [Register; 12] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R13,
    Register::R14,
    Register::R15,
];
const GENERAL_32: [Register; 12] = [
    Register::EAX,
    Register::ECX,
    Register::EDX,
    Register::ESI,
    Register::EDI,
    Register::R8D,
    Register::R9D,
    Register::R10D,
    Register::R11D,
    Register::R13D,
    Register::R14D,
    Register::R15D,
];

/// Codes that have a stub or a handler among the moves.
pub(super) fn codes() -> impl Iterator<Item = Code> {
    Code::values().filter(|&code| {
        let features = code.cpuid_features();
        use iced_x86::CpuidFeature as F;
        let ours = features.iter().all(|feature| {
            matches!(
                feature,
                F::FPU
                    | F::FPU387
                    | F::MMX
                    | F::SSE
                    | F::SSE2
                    | F::SSE3
                    | F::SSSE3
                    | F::SSE4_1
                    | F::SSE4_2
                    | F::AES
                    | F::PCLMULQDQ
                    | F::CMOV
            )
        });
        code.encoding() == EncodingKind::Legacy
            && code.op_code().is_instruction()
            && ours
            && !matches!(features.first(), None | Some(F::CMOV))
            && !special(code)
    })
}

/// Tested elsewhere (state, environments, masked moves), not of this module
/// (CRC32, PAUSE), or no encoding of its own (waiting forms: FWAIT and more).
fn special(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Maskmovq
            | M::Maskmovdqu
            | M::Fldenv
            | M::Fnstenv
            | M::Frstor
            | M::Fnsave
            | M::Fninit
            | M::Fstenv
            | M::Fsave
            | M::Finit
            | M::Fclex
            | M::Fstcw
            | M::Fstsw
            | M::Feni
            | M::Fdisi
            | M::Fsetpm
            | M::Crc32
            | M::Pause
            | M::Ldmxcsr
    )
}

/// One encoding with random registers. `None`: this combination does not exist.
pub(super) fn instruction(code: Code, random: &mut Random) -> Option<Instruction> {
    let kinds = code.op_code();
    let memory_wanted = random.below(2) == 0;
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for index in 0..kinds.op_count() {
        use OpCodeOperandKind as K;
        let kind = kinds.op_kind(index);
        let may = matches!(
            kind,
            K::xmm_or_mem | K::ymm_or_mem | K::mm_or_mem | K::r32_or_mem | K::r64_or_mem
        );
        if kind == K::mem || may && memory_wanted {
            let memory = MemoryOperand::with_base(BASE);
            let donor = Instruction::with1(Code::Fld_m32fp, memory).ok()?;
            instruction.set_op_kind(index, iced_x86::OpKind::Memory);
            instruction.set_memory_base(donor.memory_base());
            instruction.set_memory_displ_size(donor.memory_displ_size());
            continue;
        }
        let register = match kind {
            K::xmm_reg | K::xmm_rm | K::xmm_or_mem | K::xmm_vvvv | K::xmm_is4 => {
                Register::XMM0 + random.below(16) as u32
            }
            K::ymm_reg | K::ymm_rm | K::ymm_or_mem | K::ymm_vvvv | K::ymm_is4 => {
                Register::YMM0 + random.below(16) as u32
            }
            K::mm_reg | K::mm_rm | K::mm_or_mem => Register::MM0 + random.below(8) as u32,
            K::r32_reg | K::r32_rm | K::r32_or_mem | K::r32_vvvv => random.pick(&GENERAL_32),
            K::r64_reg | K::r64_rm | K::r64_or_mem | K::r64_vvvv => random.pick(&GENERAL),
            K::st0 => Register::ST0,
            K::sti_opcode => Register::ST0 + random.below(8) as u32,
            K::ax => Register::AX,
            K::imm8 => {
                instruction.set_op_kind(index, iced_x86::OpKind::Immediate8);
                let odd = random.below(2) == 0;
                let value = if odd {
                    random.next() as u8
                } else {
                    random.below(32) as u8
                };
                instruction.set_immediate8(value);
                continue;
            }
            _ => return None,
        };
        instruction.set_op_kind(index, iced_x86::OpKind::Register);
        instruction.set_op_register(index, register);
    }
    Some(instruction)
}

pub(super) fn encode(instruction: &Instruction) -> Vec<u8> {
    let mut encoder = Encoder::new(64);
    encoder
        .encode(instruction, 0)
        .unwrap_or_else(|error| panic!("{instruction}: {error}"));
    encoder.take_buffer()
}

/// A memory operand must be aligned to its size.
pub(super) fn aligned(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    if instruction.code().encoding() == EncodingKind::VEX {
        return crate::exec::vex::is_aligned(instruction.mnemonic());
    }
    instruction.memory_size().size() == 16
        && !matches!(
            instruction.mnemonic(),
            M::Movups
                | M::Movupd
                | M::Movdqu
                | M::Lddqu
                | M::Pcmpestri
                | M::Pcmpestrm
                | M::Pcmpistri
                | M::Pcmpistrm
                | M::Pcmpestri64
                | M::Pcmpestrm64
        )
}

/// The host's side of memory.
#[repr(C, align(64))]
struct Memory([u8; 80]);

/// Both sides, with the same random state.
pub(super) struct Bench {
    pub vp: Vp,
    pub runner: Runner,
    pub context: Context,
    memory: Box<Memory>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(machine::machine())
    }

    pub(super) fn with(vp: Vp) -> Self {
        Self {
            vp,
            runner: Runner::new(),
            context: Context::new(),
            memory: Box::new(Memory([0; 80])),
        }
    }

    /// Random registers and a memory operand, `at` bytes from the middle of a
    /// range that a page boundary cuts.
    pub(super) fn fill(&mut self, random: &mut Random, masked: bool, x87: bool, aligned: bool) {
        let image = random.image(masked);
        let shift = if aligned {
            32 * random.below(2)
        } else {
            random.below(48)
        };
        let start = DATA - 32;
        let mut bytes = [0; 80];
        bytes.fill_with(|| random.next() as u8);
        bytes[shift..shift + 16].copy_from_slice(&random.operand(x87));
        bytes[shift + 16..shift + 32].copy_from_slice(&random.operand(x87));
        machine::poke(&mut self.vp, start, &bytes);
        self.memory.0 = bytes;
        let flags = random.next() & rflags::ARITH | rflags::FIXED;
        self.vp.state.set_rflags(flags);
        self.context.flags = flags;
        self.vp.state.fpu.fxsave = image;
        self.context.image = image;
        let mut upper = [0; 256];
        if is_x86_feature_detected!("avx") {
            for half in upper.chunks_exact_mut(16) {
                half.copy_from_slice(&random.operand(false));
            }
        }
        self.context.upper = upper;
        self.vp.state.fpu.use_upper();
        self.vp.state.fpu.upper = upper;
        for number in 0..16 {
            let value = random.general();
            self.vp.state.gpr[number] = value;
            self.context.gpr[number] = value;
        }
        self.vp.state.gpr[BASE_NUMBER] = start + shift as u64;
        self.context.gpr[BASE_NUMBER] = self.memory.0.as_ptr() as u64 + shift as u64;
    }

    /// What differs, if anything does.
    pub(super) fn difference(&mut self) -> Option<String> {
        let fpu = &self.vp.state.fpu.fxsave;
        let image = &self.context.image;
        let field = |name: &str, range: std::ops::Range<usize>| {
            let (ours, theirs) = (&fpu[range.clone()], &image[range]);
            (ours != theirs).then(|| format!("{name}: {ours:02x?}, host {theirs:02x?}"))
        };
        let mut found = field("FCW", 0..2)
            .or_else(|| field("FSW", 2..4))
            .or_else(|| field("FTW", 4..5))
            .or_else(|| field("MXCSR", 24..28));
        for index in 0..8 {
            let at = Fpu::ST + 16 * index;
            found = found.or_else(|| field(&format!("ST{index}"), at..at + 10));
        }
        for index in 0..16 {
            let at = Fpu::XMM + 16 * index;
            found = found.or_else(|| field(&format!("XMM{index}"), at..at + 16));
        }
        for index in 0..16 {
            let ours = self.vp.state.fpu.upper(index).to_le_bytes();
            let theirs = &self.context.upper[16 * index..16 * index + 16];
            if ours != theirs {
                found = found.or(Some(format!(
                    "YMM{index} above: {ours:02x?}, host {theirs:02x?}"
                )));
            }
        }
        for number in (0..16).filter(|number| ![3, 4, 5].contains(number)) {
            let (ours, theirs) = (self.vp.state.gpr[number], self.context.gpr[number]);
            if ours != theirs {
                found = found.or(Some(format!("gpr {number}: {ours:#x}, host {theirs:#x}")));
            }
        }
        let flags = self.vp.state.rflags() & rflags::ARITH;
        if flags != self.context.flags & rflags::ARITH {
            found = found.or(Some(format!(
                "flags {flags:#x}, host {:#x}",
                self.context.flags
            )));
        }
        let ours = machine::peek(&mut self.vp, DATA - 32, 80);
        if ours != self.memory.0 {
            found = found.or(Some(format!(
                "memory {ours:02x?}, host {:02x?}",
                &self.memory.0
            )));
        }
        found
    }

    pub(super) fn compare(
        &mut self,
        op: &Op,
        masked: bool,
        random: &mut Random,
        text: &Instruction,
    ) {
        let x87 = Form::new(text).is_some_and(|form| form.is_x87());
        for _ in 0..OPERANDS {
            self.fill(random, masked, x87, aligned(text));
            let before = self.context.image;
            self.runner.run(&mut self.context);
            let outcome = machine::run(&mut self.vp, op);
            assert_eq!(outcome, Ok(()), "{text}");
            if let Some(difference) = self.difference() {
                panic!(
                    "{text} ({:?}): {difference}\nbefore {before:02x?}",
                    text.code()
                );
            }
        }
    }
}

#[test]
fn every_form_equals_the_host() {
    let mut bench = Bench::new();
    let mut forms = 0;
    for code in codes() {
        let mut random = Random::new(0x5eed ^ code as u64);
        let mut done = 0;
        for _ in 0..ENCODINGS {
            let Some(instruction) = instruction(code, &mut random) else {
                continue;
            };
            let bytes = encode(&instruction);
            let op = machine::decode(&bench.vp, &bytes);
            bench.runner.prepare(&bytes);
            bench.compare(&op, true, &mut random, &instruction);
            done += 1;
        }
        assert!(done > 0, "{code:?} was never run");
        forms += 1;
    }
    assert!(forms > 500, "{forms} forms");
}

#[test]
fn every_form_translated_equals_the_host() {
    let mut bench = Bench::with(machine::machine_in(ProcessorMode::Translate));
    for code in codes() {
        let mut random = Random::new(0x7a45 ^ code as u64);
        for _ in 0..12 {
            let Some(instruction) = instruction(code, &mut random) else {
                continue;
            };
            let bytes = encode(&instruction);
            bench.runner.prepare(&bytes);
            let x87 = Form::new(&instruction).is_some_and(|form| form.is_x87());
            for _ in 0..6 {
                bench.fill(&mut random, true, x87, aligned(&instruction));
                bench.runner.run(&mut bench.context);
                let exit = machine::run_in_place(&mut bench.vp, &bytes);
                assert_eq!(exit, Exit::Halt, "{instruction}");
                if let Some(difference) = bench.difference() {
                    panic!("{instruction} ({:?}): {difference}", instruction.code());
                }
            }
        }
    }
}

#[test]
fn unaligned_operands_are_refused() {
    let mut bench = Bench::new();
    let mut refused = 0;
    for code in codes() {
        let mut random = Random::new(7 ^ code as u64);
        for _ in 0..4 {
            let Some(instruction) = instruction(code, &mut random) else {
                continue;
            };
            if !aligned(&instruction) || instruction.memory_base() != BASE {
                continue;
            }
            let op = machine::decode(&bench.vp, &encode(&instruction));
            bench.fill(&mut random, true, false, true);
            bench.vp.state.gpr[BASE_NUMBER] += 1 + random.below(15) as u64;
            let before = bench.vp.state.fpu.fxsave;
            let fault = machine::run(&mut bench.vp, &op).expect_err("unaligned");
            assert_eq!(
                (fault.vector, fault.error),
                (vector::GP, 0),
                "{instruction}"
            );
            assert_eq!(bench.vp.state.fpu.fxsave, before, "{instruction}");
            refused += 1;
        }
    }
    assert!(refused > 200, "{refused}");
}
