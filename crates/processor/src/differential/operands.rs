//! Operands that programs' instructions get, and short idioms that random
//! instructions hardly ever make.

use super::machine::*;
use super::program::Maker;
use crate::oracle::Random;
use iced_x86::{
    Code, Encoder, Instruction, InstructionInfoFactory, MemoryOperand, OpAccess, OpCodeOperandKind,
    OpKind, Register,
};

/// How a program's memory operands look.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    bases: Vec<(Register, u64)>,
    pub counter: Register,
    /// Displacements that come again and again.
    displacements: Vec<i64>,
    /// Room on the stack above RSP.
    pub frame: bool,
}

/// Bytes of that room.
pub(super) const FRAME_SIZE: i32 = 0x40;

impl Shape {
    pub(super) fn new(bases: &[(Register, u64)], counter: Register, random: &mut Random) -> Self {
        let spread = random.pick(&[16, 64, 600, 3000]);
        let displacements = (0..6)
            .map(|_| random.below(2 * spread) as i64 - spread as i64)
            .collect();
        Self {
            bases: bases.to_vec(),
            counter,
            displacements,
            frame: true,
        }
    }

    /// One of the base registers, and where it points at first.
    pub(super) fn base(&self, random: &mut Random) -> (Register, u64) {
        random.pick(&self.bases)
    }

    fn displacement(&self, random: &mut Random) -> i64 {
        match random.below(10) {
            0..6 => random.pick(&self.displacements),
            6 => 0,
            7 => random.below(0x2000) as i64 - 0x1000,
            _ => random.below(96) as i64 - 48,
        }
    }

    fn reserved(&self, register: Register) -> bool {
        register == Register::RSP
            || register == self.counter
            || self.bases.iter().any(|&(base, _)| base == register)
    }
}

impl Maker<'_> {
    /// Gives an instruction operands that this program can use; `None` where
    /// it would overwrite what must be kept.
    pub(super) fn fit(&mut self, mut instruction: Instruction) -> Option<Vec<Instruction>> {
        for i in 0..instruction.op_count() {
            let register = instruction.op_register(i);
            if instruction.op_kind(i) == OpKind::Register
                && register.is_gpr()
                && register.full_register() == Register::RSP
            {
                return None;
            }
        }
        let mut all = Vec::new();
        if let Some(i) =
            (0..instruction.op_count()).find(|&i| instruction.op_kind(i) == OpKind::Memory)
        {
            let offset = instruction.op_code().op_kind(i) == OpCodeOperandKind::mem_offs;
            self.memory(&mut instruction, offset, &mut all);
        }
        let mut info = InstructionInfoFactory::new();
        let kept = info.info(&instruction).used_registers().iter().all(|used| {
            !matches!(
                used.access(),
                OpAccess::Write
                    | OpAccess::ReadWrite
                    | OpAccess::CondWrite
                    | OpAccess::ReadCondWrite
            ) || !self.shape.reserved(used.register().full_register())
        });
        // AH and its like do not go with all registers.
        let encodable = Encoder::new(64).encode(&instruction, CODE).is_ok();
        all.push(instruction);
        (kept && encodable).then_some(all)
    }

    fn memory(
        &mut self,
        instruction: &mut Instruction,
        offset: bool,
        before: &mut Vec<Instruction>,
    ) {
        let random = &mut *self.random;
        let place = |random: &mut Random| DATA + PAGE - 64 + random.below(128);
        let clear = |instruction: &mut Instruction| {
            instruction.set_segment_prefix(Register::None);
            instruction.set_memory_base(Register::None);
            instruction.set_memory_index(Register::None);
            instruction.set_memory_index_scale(1);
            instruction.set_memory_displ_size(8);
        };
        let size = instruction.memory_size().size() as u64;
        clear(instruction);
        let choice = random.below(100);
        if offset {
            instruction.set_memory_displacement64(place(random));
            return;
        }
        let stack = self.shape.frame && size <= 16;
        match choice {
            0..8 => {
                instruction.set_memory_base(Register::RIP);
                instruction.set_memory_displacement64(place(random));
            }
            8..12 => {
                instruction.set_memory_displacement64(place(random));
                instruction.set_memory_displ_size(4);
            }
            12..16 => {
                let segment = random.pick(&[Register::FS, Register::GS]);
                instruction.set_segment_prefix(segment);
                instruction.set_memory_displacement64(random.below(0x80));
                instruction.set_memory_displ_size(4);
            }
            16..26 if stack => {
                let at = random.below(FRAME_SIZE as u64 - 15) as i64;
                let at = if random.chance(70) { at & !7 } else { at };
                instruction.set_memory_base(Register::RSP);
                instruction.set_memory_displacement64(at as u64);
                instruction.set_memory_displ_size(1);
            }
            26 if random.chance(40) => {
                // Anywhere: faults, mostly.
                let base = random.pick(&self.free);
                instruction.set_memory_base(base);
                instruction.set_memory_displacement64(random.below(64));
            }
            27..45 => self.indexed(instruction, before),
            45..48 if self.shape.base_is_low() => {
                let (base, _) = self.shape.base(self.random);
                let short = Register::EAX + base.number() as u32;
                let at = self.shape.displacement(self.random);
                instruction.set_memory_base(short);
                instruction.set_memory_displacement64(at as u64 & 0xffff_ffff);
                instruction.set_memory_displ_size(4);
            }
            _ => {
                let (base, _) = self.shape.base(random);
                let at = self.shape.displacement(random);
                instruction.set_memory_base(base);
                instruction.set_memory_displacement64(at as u64);
                if i8::try_from(at).is_ok() {
                    instruction.set_memory_displ_size(1);
                }
            }
        }
    }

    fn indexed(&mut self, instruction: &mut Instruction, before: &mut Vec<Instruction>) {
        let (base, _) = self.shape.base(self.random);
        let index = self.free();
        let at = self.shape.displacement(self.random);
        instruction.set_memory_base(base);
        instruction.set_memory_index(index);
        instruction.set_memory_index_scale(1 << self.random.below(4));
        instruction.set_memory_displacement64(at as u64);
        let short = Register::EAX + index.number() as u32;
        let mask = self.random.pick(&[0x7f, 0xff, 0x1f8]);
        before.extend(Instruction::with2(Code::And_rm32_imm32, short, mask));
    }

    /// Pushes, pops and what else moves the stack, in pairs.
    pub(super) fn stack(&mut self) -> Vec<Instruction> {
        let (x, y) = (self.free(), self.free());
        let shape = &self.shape;
        let (base, _) = shape.base(self.random);
        let operand = MemoryOperand::with_base_displ(base, shape.displacement(self.random));
        let one = |made: Result<Instruction, iced_x86::IcedError>| made.unwrap_or_default();
        let value = self.random.next() as i32;
        match self.random.below(8) {
            0 => vec![
                one(Instruction::with1(Code::Push_r64, x)),
                one(Instruction::with1(Code::Pop_r64, y)),
            ],
            1 => vec![
                one(Instruction::with1(Code::Push_r64, x)),
                one(Instruction::with1(Code::Pushq_imm32, value)),
                one(Instruction::with1(Code::Pop_r64, y)),
                one(Instruction::with1(Code::Pop_rm64, operand)),
            ],
            2 => vec![
                one(Instruction::with1(Code::Push_rm64, operand)),
                one(Instruction::with1(Code::Pop_r64, y)),
            ],
            3 => vec![
                Instruction::with(Code::Pushfq),
                one(Instruction::with1(Code::Pop_r64, y)),
            ],
            4 => vec![
                one(Instruction::with1(
                    Code::Push_r16,
                    Register::AX + x.number() as u32,
                )),
                one(Instruction::with1(
                    Code::Pop_r16,
                    Register::AX + y.number() as u32,
                )),
            ],
            5 => {
                let pointer = MemoryOperand::with_base_displ(Register::RSP, -8);
                let back = MemoryOperand::with_base_displ(Register::RSP, 8);
                vec![
                    one(Instruction::with2(Code::Lea_r64_m, Register::RSP, pointer)),
                    one(Instruction::with2(Code::Lea_r64_m, Register::RSP, back)),
                ]
            }
            6 if !self.shape.reserved(Register::RBP) => vec![
                one(Instruction::with1(Code::Push_r64, Register::RBP)),
                one(Instruction::with2(
                    Code::Mov_r64_rm64,
                    Register::RBP,
                    Register::RSP,
                )),
                one(Instruction::with2(Code::Sub_rm64_imm8, Register::RSP, 32)),
                Instruction::with(Code::Leaveq),
            ],
            _ => vec![
                Instruction::with(Code::Pushfq),
                // The status flags alone.
                one(Instruction::with2(
                    Code::Xor_rm8_imm8,
                    MemoryOperand::with_base(Register::RSP),
                    value & 0xd5,
                )),
                Instruction::with(Code::Popfq),
            ],
        }
    }

    /// A string instruction with pointers and a count.
    pub(super) fn string(&mut self) -> Vec<Instruction> {
        if [Register::RSI, Register::RDI, Register::RCX, Register::RAX]
            .into_iter()
            .any(|register| self.shape.reserved(register))
        {
            return vec![Instruction::with(Code::Cld)];
        }
        let random = &mut *self.random;
        let spot =
            |random: &mut Random| DATA + random.below(3) * PAGE + PAGE - 200 + random.below(400);
        let (from, to) = (spot(random), spot(random));
        let count = random.pick(&[0, 1, 3, 17, 64, 300]);
        let one = |made: Result<Instruction, iced_x86::IcedError>| made.unwrap_or_default();
        let code = random.pick(&[
            Code::Movsb_m8_m8,
            Code::Movsd_m32_m32,
            Code::Movsq_m64_m64,
            Code::Stosb_m8_AL,
            Code::Stosw_m16_AX,
            Code::Stosq_m64_RAX,
            Code::Lodsb_AL_m8,
            Code::Lodsq_RAX_m64,
            Code::Cmpsb_m8_m8,
            Code::Cmpsq_m64_m64,
            Code::Scasb_AL_m8,
            Code::Scasd_EAX_m32,
        ]);
        let Some(mut string) = string_instruction(code) else {
            return Vec::new();
        };
        match random.below(4) {
            0 => {}
            1 => string.set_has_repne_prefix(true),
            _ => string.set_has_rep_prefix(true),
        }
        let direction = if random.chance(20) {
            Code::Std
        } else {
            Code::Cld
        };
        vec![
            one(Instruction::with2(Code::Mov_r64_imm64, Register::RSI, from)),
            one(Instruction::with2(Code::Mov_r64_imm64, Register::RDI, to)),
            one(Instruction::with2(
                Code::Mov_r32_imm32,
                Register::ECX,
                count,
            )),
            Instruction::with(direction),
            string,
            Instruction::with(Code::Cld),
        ]
    }

    /// A division whose quotient fits, most of the time.
    pub(super) fn divide(&mut self) -> Vec<Instruction> {
        if self.shape.reserved(Register::RAX) || self.shape.reserved(Register::RDX) {
            return Vec::new();
        }
        let one = |made: Result<Instruction, iced_x86::IcedError>| made.unwrap_or_default();
        let divisor = self.free();
        let short = Register::EAX + divisor.number() as u32;
        let clear = one(Instruction::with2(
            Code::Xor_r32_rm32,
            Register::EDX,
            Register::EDX,
        ));
        let odd = one(Instruction::with2(Code::Or_rm32_imm8, short, 1));
        let mut all = match self.random.below(5) {
            0 => vec![clear, one(Instruction::with1(Code::Div_rm32, short))],
            1 => vec![clear, one(Instruction::with1(Code::Div_rm64, divisor))],
            2 => vec![
                Instruction::with(Code::Cdq),
                one(Instruction::with1(Code::Idiv_rm32, short)),
            ],
            3 => vec![
                Instruction::with(Code::Cqo),
                one(Instruction::with1(Code::Idiv_rm64, divisor)),
            ],
            _ => {
                let (base, _) = self.shape.base(self.random);
                let at = self.shape.displacement(self.random);
                let operand = MemoryOperand::with_base_displ(base, at);
                vec![clear, one(Instruction::with1(Code::Div_rm32, operand))]
            }
        };
        if !matches!(divisor, Register::RAX | Register::RDX) && self.random.chance(80) {
            all.insert(0, odd);
        }
        all
    }
}

impl Shape {
    fn base_is_low(&self) -> bool {
        self.bases.iter().all(|&(_, at)| at < 1 << 31)
    }
}

fn string_instruction(code: Code) -> Option<Instruction> {
    let bytes: &[u8] = match code {
        Code::Movsb_m8_m8 => &[0xa4],
        Code::Movsd_m32_m32 => &[0xa5],
        Code::Movsq_m64_m64 => &[0x48, 0xa5],
        Code::Stosb_m8_AL => &[0xaa],
        Code::Stosw_m16_AX => &[0x66, 0xab],
        Code::Stosq_m64_RAX => &[0x48, 0xab],
        Code::Lodsb_AL_m8 => &[0xac],
        Code::Lodsq_RAX_m64 => &[0x48, 0xad],
        Code::Cmpsb_m8_m8 => &[0xa6],
        Code::Cmpsq_m64_m64 => &[0x48, 0xa7],
        Code::Scasb_AL_m8 => &[0xae],
        Code::Scasd_EAX_m32 => &[0xaf],
        _ => return None,
    };
    let instruction = iced_x86::Decoder::new(64, bytes, 0).decode();
    (instruction.code() == code).then_some(instruction)
}
