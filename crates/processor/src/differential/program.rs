//! Random programs, as trees that can be made smaller.

use super::handlers::{SERVICE, SERVICES};
use super::machine::*;
use super::operands::Shape;
use super::pool::{Mix, Pool};
use crate::oracle::Random;
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// A part of a program that stands for itself.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    /// No branch.
    Straight(Vec<Instruction>),
    /// A conditional branch over the rest.
    Over(Code, Vec<Piece>),
    /// An unconditional one.
    Dead(Vec<Piece>),
    /// A loop counted in memory, the n-th counter.
    Repeat(u16, u32, Vec<Piece>),
    /// A call of a function of the program.
    Call(usize, Way, Register),
    /// A call of the page of functions.
    Far(u64, Way, Register),
    /// An indirect jump to the next instruction, or over the rest.
    Jump(Register, Vec<Piece>),
    /// A function that calls itself so many times.
    Deep(u32),
    /// An instruction with four bytes at its end that may be overwritten.
    Site(Instruction),
    /// Overwrites such bytes.
    Patch(Patch),
    /// `INT`.
    Service(u8),
    /// What only the supervisor can do.
    Privileged(Privileged, Register),
    /// Out of a call by the stack pointer that was kept.
    Escape(Register),
}

/// How control gets to a function.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Direct,
    Register,
    Memory,
    /// PUSH and RET.
    Return,
    /// A jump, with the return address pushed.
    Jump,
}

/// A store to code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patch {
    /// The site (modulo their number).
    pub site: usize,
    /// Through the other mapping.
    pub alias: bool,
    /// The register for the address, and the one with the new bytes.
    pub pointer: Register,
    pub value: Register,
    /// Bytes stored: 1, 2 or 4, and how far into the last four.
    pub size: u32,
    pub offset: u32,
}

/// See [`Piece::Privileged`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Privileged {
    Interrupts,
    Access,
    Cr3,
    Invlpg(u64),
    Iret,
    SwapGs,
    ReadMsr,
    WriteMsr,
    In,
    Out,
    Hypercall,
    Mmio(u64),
    Syscall,
    Flags(u64),
    Cr8,
}

/// A whole program and the machine that it wants.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub setup: Setup,
    pub body: Vec<Piece>,
    pub functions: Vec<Vec<Piece>>,
    /// Both versions of the page of functions.
    pub far: [Vec<Vec<Instruction>>; 2],
    /// Rounds of the outermost loop, and the register that counts them.
    pub loops: u64,
    pub counter: Register,
    /// Pointers, set at each round's start.
    pub bases: Vec<(Register, u64)>,
    /// Where in the pages of code it starts.
    pub offset: u64,
    /// Entries before a block is translated.
    pub warm: u16,
    /// Times that it is run; see [`Between`].
    pub rounds: Vec<Between>,
    /// Other threads ask for attention.
    pub requests: bool,
    pub start: Start,
    pub data_seed: u64,
}

/// What happens between two runs of a program.
#[derive(Clone, Copy, Debug)]
pub(super) enum Between {
    Nothing,
    /// A device writes to a site.
    Device(usize, u32),
    /// Everything is dropped from the TLB.
    Flush,
    /// One page is.
    FlushPage(u64),
    /// The functions' page is exchanged, by a device and a flush.
    Functions,
}

/// Functions on the page of functions.
pub(super) const FAR: u64 = 4;
/// Bytes between them.
pub(super) const FAR_SIZE: u64 = 0x180;

const GENERAL: [Register; 15] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// A program under way.
pub(super) struct Maker<'a> {
    pub random: &'a mut Random,
    pub free: Vec<Register>,
    pub shape: Shape,
    mix: Mix,
    user: bool,
    counters: u16,
    functions: usize,
    sites: bool,
    outside: bool,
}

/// The program with the given number.
pub(super) fn make(seed: u64, number: u64) -> Program {
    let mut random = Random::new(seed, number);
    let random = &mut random;
    let setup = setup(random);
    let mut registers = GENERAL.to_vec();
    let mut take =
        |random: &mut Random| registers.swap_remove(random.below(registers.len() as u64) as usize);
    let counter = take(random);
    let bases: Vec<_> = (0..1 + random.below(3))
        .map(|_| (take(random), anchor(setup.user, random)))
        .collect();
    let mix = random.pick(&[
        Mix {
            sse: 0,
            x87: 0,
            vex: 0,
        },
        Mix {
            sse: 25,
            x87: 5,
            vex: 0,
        },
        Mix {
            sse: 20,
            x87: 0,
            vex: 10,
        },
        Mix {
            sse: 5,
            x87: 30,
            vex: 0,
        },
        Mix {
            sse: 70,
            x87: 0,
            vex: 0,
        },
    ]);
    let shape = Shape::new(&bases, counter, random);
    let mut maker = Maker {
        free: registers.clone(),
        shape,
        mix,
        user: setup.user,
        counters: 0,
        functions: random.below(4) as usize,
        sites: random.chance(30),
        outside: random.chance(20),
        random,
    };
    let functions: Vec<_> = (0..maker.functions).map(|i| maker.function(i)).collect();
    let far = [(); 2].map(|()| (0..FAR).map(|_| maker.straight(4)).collect());
    maker.shape.frame = true;
    let count = 3 + maker.random.below(12);
    let body = (0..count).map(|_| maker.piece(0)).collect();
    let random = maker.random;
    let loops = match random.below(40) {
        0 => 1,
        1 => 2000 + random.below(3000),
        2..5 => 300,
        _ => 4 + random.below(36),
    };
    let rounds = (0..random.below(4)).map(|_| between(random)).collect();
    Program {
        setup,
        body,
        functions,
        far,
        loops,
        counter,
        bases,
        offset: if random.chance(60) {
            PAGE - random.below(600)
        } else {
            random.below(PAGE)
        },
        warm: random.pick(&[2, 2, 2, 3, 12]),
        rounds,
        requests: random.chance(8),
        start: start(random),
        data_seed: random.next(),
    }
}

fn setup(random: &mut Random) -> Setup {
    let user = random.chance(55);
    Setup {
        user,
        smap: random.chance(35),
        pcid: random.chance(50),
        keep: random.chance(50),
        alignment: random.chance(6),
        no_vectors: random.chance(2),
        mxcsr: match random.below(20) {
            0 => random.next() as u32 & 0xffff & !0x40,
            1..5 => 0x1f80 | random.next() as u32 & 0xe03f,
            _ => 0x1f80,
        },
        x87: if random.chance(10) {
            random.next() as u16 & 0xf3f | 0x40
        } else {
            0x37f
        },
        rflags: random.next(),
        fs: DATA + random.below(0x1000),
        gs: HIGH_DATA + random.below(0x1000),
    }
}

/// Where a base register points: close to a boundary of pages, mostly.
fn anchor(user: bool, random: &mut Random) -> u64 {
    let window = match random.below(20) {
        0 => return 0x7fff_ffff_fff0 - random.below(32),
        1..4 => HIGH_DATA,
        4..8 if !user => KERNEL_DATA,
        8 if !user => LARGE + page::DATA * PAGE,
        9 if !user => PHYSICAL + page::DATA * PAGE,
        _ => DATA,
    };
    let number = match random.below(10) {
        0..6 => random.below(3),
        6 => DATA_PAGES + random.below(OWN_PAGES),
        _ => random.below(DATA_PAGES),
    };
    let inside = match random.below(10) {
        0..3 => PAGE - 8,
        3..6 => PAGE - random.below(64),
        6 => 0,
        _ => random.below(PAGE),
    };
    let aligned = if random.chance(50) { !15 } else { !0 };
    (window + number * PAGE + inside) & aligned
}

fn between(random: &mut Random) -> Between {
    match random.below(6) {
        0 => Between::Device(random.below(8) as usize, random.next() as u32),
        1 => Between::Flush,
        2 => Between::FlushPage(random.pick(&[CODE, CODE + PAGE, FUNCTIONS, DATA, DATA + PAGE])),
        3 => Between::Functions,
        _ => Between::Nothing,
    }
}

fn start(random: &mut Random) -> Start {
    let mut start = Start {
        gpr: [0; 16],
        xmm: [0; 16],
        st: [0; 8],
        rip: 0,
    };
    start.gpr.fill_with(|| random.operand());
    let kind = random.below(3);
    start.xmm.fill_with(|| {
        let mut lanes = [0u64; 2];
        lanes.fill_with(|| match kind {
            0 => random.operand(),
            1 => ((random.next() as i32) as f64 / 256.0).to_bits(),
            _ => {
                let lane = |r: &mut Random| u64::from(((r.next() as i16) as f32 / 16.0).to_bits());
                lane(random) << 32 | lane(random)
            }
        });
        u128::from(lanes[1]) << 64 | u128::from(lanes[0])
    });
    start.st.fill_with(|| {
        let exponent = u128::from((0x3fff + random.below(64) - 32) | random.below(2) << 15);
        exponent << 64 | u128::from(random.next() | 1 << 63)
    });
    start
}

impl Maker<'_> {
    pub(super) fn free(&mut self) -> Register {
        self.random.pick(&self.free)
    }

    fn straight(&mut self, most: u64) -> Vec<Instruction> {
        let count = 1 + self.random.below(most);
        (0..count).flat_map(|_| self.instructions()).collect()
    }

    /// One instruction, or a few that belong together.
    fn instructions(&mut self) -> Vec<Instruction> {
        match self.random.below(100) {
            0..16 => self.stack(),
            16..20 => self.string(),
            20..24 => self.bump(),
            24..28 => self.divide(),
            _ => loop {
                let instruction = Pool::get().pick(self.mix, self.random);
                if let Some(fitted) = self.fit(instruction) {
                    break fitted;
                }
            },
        }
    }

    fn function(&mut self, number: usize) -> Vec<Piece> {
        let callable = std::mem::replace(&mut self.functions, number);
        self.shape.frame = self.random.chance(60);
        let count = 1 + self.random.below(3);
        let pieces = (0..count).map(|_| self.piece(2)).collect();
        self.functions = callable;
        pieces
    }

    fn pieces(&mut self, depth: u32, most: u64) -> Vec<Piece> {
        let count = 1 + self.random.below(most);
        (0..count).map(|_| self.piece(depth + 1)).collect()
    }

    fn counter(&mut self) -> u16 {
        self.counters += 1;
        self.counters
    }

    fn piece(&mut self, depth: u32) -> Piece {
        let deep = depth >= 3;
        match self.random.below(100) {
            0..12 if !deep => {
                let all = [
                    Code::Jo_rel8_64,
                    Code::Jb_rel8_64,
                    Code::Jae_rel8_64,
                    Code::Je_rel8_64,
                    Code::Jne_rel8_64,
                    Code::Jbe_rel8_64,
                    Code::Ja_rel8_64,
                    Code::Js_rel8_64,
                    Code::Jp_rel8_64,
                    Code::Jnp_rel8_64,
                    Code::Jl_rel8_64,
                    Code::Jge_rel8_64,
                    Code::Jle_rel8_64,
                    Code::Jg_rel8_64,
                    Code::Jrcxz_rel8_64,
                ];
                let code = self.random.pick(&all);
                Piece::Over(code, self.pieces(depth, 3))
            }
            12..15 if !deep => Piece::Dead(self.pieces(depth, 2)),
            15..19 if depth < 2 => {
                let count = 2 + self.random.below(20) as u32;
                Piece::Repeat(self.counter(), count, self.pieces(depth, 3))
            }
            19..30 if self.functions > 0 => {
                let number = self.random.below(self.functions as u64) as usize;
                Piece::Call(number, self.way(), self.random.pick(&self.free))
            }
            30..36 => {
                let number = self.random.below(FAR);
                Piece::Far(number, self.way(), self.random.pick(&self.free))
            }
            36..40 if !deep => Piece::Jump(self.free(), self.pieces(depth, 2)),
            40 if depth == 0 => Piece::Deep(2 + self.random.below(60) as u32),
            41 if depth == 0 => Piece::Escape(self.free()),
            42..48 if self.sites => self.site(),
            48..52 if self.sites => self.patch(),
            52..55 => Piece::Service(SERVICE + self.random.below(SERVICES) as u8),
            55..58 => self.privileged(),
            _ => Piece::Straight(self.straight(6)),
        }
    }

    fn way(&mut self) -> Way {
        self.random.pick(&[
            Way::Direct,
            Way::Direct,
            Way::Direct,
            Way::Register,
            Way::Memory,
            Way::Return,
            Way::Jump,
        ])
    }

    /// Four bytes of immediate, whatever they are.
    fn site(&mut self) -> Piece {
        let register = self.free();
        let value = self.random.next() as u32;
        let code = self.random.pick(&[
            Code::Mov_rm64_imm32,
            Code::Add_rm64_imm32,
            Code::Xor_rm64_imm32,
            Code::Cmp_rm64_imm32,
        ]);
        Piece::Site(Instruction::with2(code, register, i64::from(value as i32)).unwrap_or_default())
    }

    fn patch(&mut self) -> Piece {
        let size = self.random.pick(&[1, 2, 4]);
        let pointer = self.free();
        let mut value = self.free();
        if value == pointer {
            value = self.shape.counter;
        }
        Piece::Patch(Patch {
            site: self.random.below(64) as usize,
            alias: self.random.chance(30),
            pointer,
            value,
            size,
            offset: self.random.below(u64::from(5 - size)) as u32,
        })
    }

    fn privileged(&mut self) -> Piece {
        use Privileged as P;
        if self.user {
            // SYSCALL clobbers these.
            let spared = [Register::RCX, Register::R11];
            if spared.iter().all(|register| self.free.contains(register)) {
                return Piece::Privileged(P::Syscall, self.free());
            }
            return Piece::Service(SERVICE + 7);
        }
        let target = self
            .random
            .pick(&[DATA, DATA + PAGE, FUNCTIONS, CODE, LARGE]);
        let what = match self.random.below(if self.outside { 15 } else { 9 }) {
            0 => P::Interrupts,
            1 => P::Access,
            2 => P::Cr3,
            3 => P::Invlpg(target),
            4 => P::Iret,
            5 => P::SwapGs,
            6 | 7 => P::Flags(self.random.next()),
            8 => P::Iret,
            9 => P::In,
            10 => P::Out,
            11 => P::Hypercall,
            12 => P::Mmio(LARGE + PAGES * PAGE + 8 * self.random.below(64)),
            13 => P::Cr8,
            _ => self.random.pick(&[P::ReadMsr, P::WriteMsr]),
        };
        Piece::Privileged(what, self.free())
    }

    /// Moves a base register a little: it is set anew in the next round.
    fn bump(&mut self) -> Vec<Instruction> {
        let (base, _) = self.shape.base(self.random);
        let by = self.random.below(64) as i64 - 32;
        let made = match self.random.below(3) {
            0 => Instruction::with2(Code::Add_rm64_imm8, base, by as i32),
            1 => Instruction::with1(Code::Inc_rm64, base),
            _ => Instruction::with2(
                Code::Lea_r64_m,
                base,
                MemoryOperand::with_base_displ(base, by),
            ),
        };
        made.into_iter().collect()
    }
}
