//! Instructions that programs are made of: samples of every form that user
//! code may run, found by decoding random bytes.

use crate::oracle::Random;
use iced_x86::{
    Code, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic, Register,
};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Samples kept per form.
const SAMPLES: usize = 24;
const ATTEMPTS: usize = 600_000;

/// Samples by kind, then by form.
pub(super) struct Pool {
    integer: Vec<Vec<Instruction>>,
    sse: Vec<Vec<Instruction>>,
    x87: Vec<Vec<Instruction>>,
    vex: Vec<Vec<Instruction>>,
}

/// Which kinds a program is made of, in percent; the rest is integer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mix {
    pub sse: u64,
    pub x87: u64,
    pub vex: u64,
}

impl Pool {
    /// The one pool, the same in every run.
    pub(super) fn get() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(Self::build)
    }

    fn build() -> Self {
        let mut random = Random::new(1, 0x706f_6f6c);
        let mut forms: BTreeMap<usize, Vec<Instruction>> = BTreeMap::new();
        for _ in 0..ATTEMPTS {
            let Some(instruction) = sample(&mut random) else {
                continue;
            };
            let samples = forms.entry(instruction.code() as usize).or_default();
            if samples.len() < SAMPLES {
                samples.push(instruction);
            }
        }
        let mut pool = Self {
            integer: Vec::new(),
            sse: Vec::new(),
            x87: Vec::new(),
            vex: Vec::new(),
        };
        for samples in forms.into_values() {
            match kind(samples[0].code()) {
                Kind::Integer => pool.integer.push(samples),
                Kind::Sse => pool.sse.push(samples),
                Kind::X87 => pool.x87.push(samples),
                Kind::Vex => pool.vex.push(samples),
            }
        }
        pool
    }

    /// A random instruction; its memory operand and registers are random, too.
    pub(super) fn pick(&self, mix: Mix, random: &mut Random) -> Instruction {
        let number = random.below(100);
        let forms = if number < mix.sse {
            &self.sse
        } else if number < mix.sse + mix.x87 {
            &self.x87
        } else if number < mix.sse + mix.x87 + mix.vex {
            &self.vex
        } else {
            &self.integer
        };
        let form = &forms[random.below(forms.len() as u64) as usize];
        form[random.below(form.len() as u64) as usize]
    }

    /// Forms per kind.
    pub(super) fn sizes(&self) -> [usize; 4] {
        [&self.integer, &self.sse, &self.x87, &self.vex].map(Vec::len)
    }
}

enum Kind {
    Integer,
    Sse,
    X87,
    Vex,
}

fn kind(code: Code) -> Kind {
    if code.encoding() == EncodingKind::VEX {
        return Kind::Vex;
    }
    let name = code
        .cpuid_features()
        .iter()
        .map(|feature| format!("{feature:?} "))
        .collect::<String>();
    if ["FPU", "MMX"].iter().any(|start| name.starts_with(start)) {
        Kind::X87
    } else if ["SSE", "SSSE", "AES", "PCLMUL", "SHA", "GFNI"]
        .iter()
        .any(|start| name.starts_with(start))
    {
        Kind::Sse
    } else {
        Kind::Integer
    }
}

/// Random bytes as an instruction, if programs may have it.
fn sample(random: &mut Random) -> Option<Instruction> {
    let mut bytes = Vec::with_capacity(24);
    match random.below(10) {
        0..3 => {}
        3 => bytes.push(0xf0),
        number => bytes.push([0x66, 0xf2, 0xf3][number as usize % 3]),
    }
    match random.below(16) {
        0..4 => vex(&mut bytes, random),
        number => {
            if random.chance(60) {
                bytes.push(0x40 | random.below(16) as u8);
            }
            match number {
                4..7 => {}
                7 => bytes.push(0xd8 + random.below(8) as u8),
                8..13 => bytes.push(0x0f),
                13 | 14 => bytes.extend([0x0f, 0x38]),
                _ => bytes.extend([0x0f, 0x3a]),
            }
        }
    }
    while bytes.len() < 20 {
        bytes.push(random.next() as u8);
    }
    let instruction = Decoder::with_ip(64, &bytes[..15], 0, DecoderOptions::NONE).decode();
    (!instruction.is_invalid() && allowed(&instruction)).then_some(instruction)
}

fn vex(bytes: &mut Vec<u8>, random: &mut Random) {
    bytes.clear();
    if random.chance(30) {
        bytes.extend([0xc5, random.next() as u8]);
    } else {
        let map = 1 + random.below(3) as u8;
        bytes.extend([0xc4, random.next() as u8 & 0xe0 | map, random.next() as u8]);
    }
}

/// Straight code with an outcome that the processor alone decides.
fn allowed(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let code = instruction.code();
    let straight = matches!(
        instruction.flow_control(),
        FlowControl::Next | FlowControl::Exception
    );
    let segment = instruction.op0_register().is_segment_register()
        || matches!(instruction.mnemonic(), M::Lss | M::Lfs | M::Lgs);
    let outside = matches!(
        instruction.mnemonic(),
        M::Cpuid
            | M::Rdtsc
            | M::Rdtscp
            | M::Rdpmc
            | M::Rdpru
            | M::Rdrand
            | M::Rdseed
            | M::Rdpid
            | M::Vmcall
            | M::Vmmcall
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Swapgs
            | M::Xbegin
            | M::Xabort
            | M::Xend
            | M::Int1
            | M::Sysenter
            | M::Syscall
            | M::Sysexit
            | M::Sysret
            | M::Monitor
            | M::Monitorx
            | M::Mwait
            | M::Mwaitx
            | M::Clac
            | M::Stac
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsetbv
            | M::Popf
            | M::Popfq
            | M::Montmul
            | M::Loadall
            | M::Umonitor
            | M::Umwait
            | M::Tpause
            | M::Stui
            | M::Clui
            | M::Pause
    );
    // SYSCALL's neighbours and other vendors' instructions are nowhere.
    let known = matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    let elsewhere = code.cpuid_features().iter().any(|feature| {
        let name = format!("{feature:?}");
        ["PADLOCK", "CYRIX", "SMX", "SVM", "VMX", "TDX", "MPX", "SGX"]
            .iter()
            .any(|unit| name.contains(unit))
    });
    straight
        && known
        && !elsewhere
        && !segment
        && !outside
        && !instruction.is_privileged()
        && !instruction.is_string_instruction()
        && !instruction.is_stack_instruction()
        && !instruction.memory_index().is_vector_register()
        && (0..instruction.op_count()).all(|i| !odd_register(instruction.op_register(i)))
}

/// Registers of units that there are not.
fn odd_register(register: Register) -> bool {
    register.is_cr()
        || register.is_dr()
        || register.is_tr()
        || register.is_k()
        || register.is_tmm()
        || register.is_bnd()
        || register.is_zmm()
}
