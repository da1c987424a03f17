//! Operands for an instruction form: registers, immediates, addresses.

use super::arena::{CODE, CODE_SIZE, DATA_SIZE, HIGH, LOW, PAGE, STACK, STACK_SIZE};
use super::random::Random;
use super::{GS_BASE, Mode, forms};
use crate::reg;
use iced_x86::{Code, Instruction, OpCodeOperandKind as Kind, OpKind, Register};

/// An instruction taking shape, with the registers that fit it.
pub(super) struct Plan {
    pub(super) mode: Mode,
    pub(super) instruction: Instruction,
    pub(super) gpr: [u64; 16],
    pub(super) rip: u64,
    pub(super) pokes: Vec<(u64, Vec<u8>)>,
    /// Linear address and size of the memory operand.
    pub(super) target: Option<(u64, u64)>,
    /// String operands and XLAT's have 32-bit addresses.
    pub(super) short_address: bool,
    fs_base: u64,
}

/// What an effective address is made of.
struct Shape {
    base: Option<usize>,
    index: Option<(usize, u32)>,
    short: bool,
    segment: Register,
    segment_base: u64,
}

impl Plan {
    pub(super) fn new(code: Code, mode: Mode, random: &mut Random, fs_base: u64) -> Self {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let mut gpr = [0; 16];
        for value in &mut gpr {
            *value = random.operand();
        }
        let slack = if random.chance(10) {
            random.below(8)
        } else {
            0
        };
        gpr[reg::RSP] = STACK + STACK_SIZE / 2 + random.below(64) * 8 + slack;
        let rip = if random.chance(10) {
            CODE + PAGE - random.below(15)
        } else {
            CODE + 0x200 + random.below(CODE_SIZE - 0x400)
        };
        Self {
            mode,
            instruction,
            gpr,
            rip,
            pokes: Vec::new(),
            target: None,
            short_address: mode == Mode::Compatibility || random.chance(15),
            fs_base,
        }
    }

    /// Fills in all operands; `None` for kinds that the tests do not know.
    pub(super) fn fill(&mut self, random: &mut Random) -> Option<()> {
        let form = self.instruction.code().op_code();
        for i in 0..form.op_count() {
            self.operand(i, form.op_kind(i), random)?;
        }
        if let Some((at, size)) = self.target
            && random.chance(60)
        {
            for offset in (0..size.min(16)).step_by(8) {
                let bytes = random.operand().to_le_bytes();
                let here = (size - offset).min(8) as usize;
                self.pokes
                    .push((at.wrapping_add(offset), bytes[..here].to_vec()));
            }
        }
        if self.mode == Mode::Compatibility {
            for value in &mut self.gpr {
                *value &= 0xffff_ffff;
            }
            self.gpr[8..].fill(0);
        }
        Some(())
    }

    fn register_count(&self) -> u64 {
        if self.mode == Mode::Long { 16 } else { 8 }
    }

    fn operand(&mut self, i: u32, kind: Kind, random: &mut Random) -> Option<()> {
        if let Some(register) = forms::fixed_register(kind) {
            self.set_register(i, register);
            return Some(());
        }
        if forms::memory_kind(kind) {
            let only = matches!(kind, Kind::mem | Kind::mem_offs);
            if only || random.chance(65) {
                self.memory(i, kind == Kind::mem_offs, random);
                return Some(());
            }
        }
        let first = match kind {
            Kind::r8_reg | Kind::r8_opcode | Kind::r8_or_mem => {
                let count = if self.mode == Mode::Long { 20 } else { 8 };
                self.set_register(i, Register::AL + random.below(count) as u32);
                return Some(());
            }
            Kind::r16_reg | Kind::r16_opcode | Kind::r16_or_mem | Kind::r16_rm => Register::AX,
            Kind::r32_reg | Kind::r32_opcode | Kind::r32_or_mem | Kind::r32_rm | Kind::r32_vvvv => {
                Register::EAX
            }
            Kind::r64_reg | Kind::r64_opcode | Kind::r64_or_mem | Kind::r64_rm | Kind::r64_vvvv => {
                Register::RAX
            }
            Kind::seg_reg if i == 0 => {
                // FS is the test thread's own.
                let targets = [Register::ES, Register::SS, Register::DS, Register::GS];
                self.set_register(i, random.pick(&targets));
                return Some(());
            }
            Kind::seg_reg => {
                self.set_register(i, Register::ES + random.below(6) as u32);
                return Some(());
            }
            Kind::cr_reg | Kind::dr_reg => {
                let first = if kind == Kind::cr_reg {
                    Register::CR0
                } else {
                    Register::DR0
                };
                self.set_register(i, first + random.pick(&[0, 2, 3]) as u32);
                return Some(());
            }
            _ => return self.other(i, kind, random),
        };
        let number = random.below(self.register_count()) as u32;
        self.set_register(i, first + number);
        Some(())
    }

    fn set_register(&mut self, i: u32, register: Register) {
        self.instruction.set_op_kind(i, OpKind::Register);
        self.instruction.set_op_register(i, register);
    }

    fn other(&mut self, i: u32, kind: Kind, random: &mut Random) -> Option<()> {
        let value = random.operand();
        let instruction = &mut self.instruction;
        match kind {
            Kind::imm8 if i == 1 && instruction.op0_kind() == OpKind::Immediate16 => {
                // ENTER's nesting level, mostly small.
                instruction.set_op_kind(i, OpKind::Immediate8_2nd);
                let level = if random.chance(20) { value } else { value & 3 };
                instruction.set_immediate8_2nd(level as u8);
            }
            Kind::imm8 => {
                instruction.set_op_kind(i, OpKind::Immediate8);
                instruction.set_immediate8(value as u8);
            }
            Kind::imm8_const_1 => {
                instruction.set_op_kind(i, OpKind::Immediate8);
                instruction.set_immediate8(1);
            }
            Kind::imm8sex16 => {
                instruction.set_op_kind(i, OpKind::Immediate8to16);
                instruction.set_immediate8to16(i16::from(value as i8));
            }
            Kind::imm8sex32 => {
                instruction.set_op_kind(i, OpKind::Immediate8to32);
                instruction.set_immediate8to32(i32::from(value as i8));
            }
            Kind::imm8sex64 => {
                instruction.set_op_kind(i, OpKind::Immediate8to64);
                instruction.set_immediate8to64(i64::from(value as i8));
            }
            Kind::imm16 => {
                instruction.set_op_kind(i, OpKind::Immediate16);
                instruction.set_immediate16(value as u16);
            }
            Kind::imm32 => {
                instruction.set_op_kind(i, OpKind::Immediate32);
                instruction.set_immediate32(value as u32);
            }
            Kind::imm32sex64 => {
                instruction.set_op_kind(i, OpKind::Immediate32to64);
                instruction.set_immediate32to64(i64::from(value as i32));
            }
            Kind::imm64 => {
                instruction.set_op_kind(i, OpKind::Immediate64);
                instruction.set_immediate64(value);
            }
            _ => return self.implicit(i, kind, random),
        }
        Some(())
    }

    fn implicit(&mut self, i: u32, kind: Kind, random: &mut Random) -> Option<()> {
        let short = self.short_address;
        let op = match kind {
            Kind::seg_rSI if short => OpKind::MemorySegESI,
            Kind::seg_rSI => OpKind::MemorySegRSI,
            Kind::es_rDI if short => OpKind::MemoryESEDI,
            Kind::es_rDI => OpKind::MemoryESRDI,
            Kind::seg_rBX_al => {
                self.instruction.set_op_kind(i, OpKind::Memory);
                let base = if short { Register::EBX } else { Register::RBX };
                self.instruction.set_memory_base(base);
                self.instruction.set_memory_index(Register::AL);
                return Some(());
            }
            Kind::br16_1 | Kind::br16_2 => {
                let target = self.branch_target(true, random);
                self.instruction.set_op_kind(i, OpKind::NearBranch16);
                self.instruction.set_near_branch16(target as u16);
                return Some(());
            }
            Kind::br32_1 | Kind::br32_4 => {
                let target = self.branch_target(kind == Kind::br32_1, random);
                self.instruction.set_op_kind(i, OpKind::NearBranch32);
                self.instruction.set_near_branch32(target as u32);
                return Some(());
            }
            Kind::br64_1 | Kind::br64_4 => {
                let target = self.branch_target(kind == Kind::br64_1, random);
                self.instruction.set_op_kind(i, OpKind::NearBranch64);
                self.instruction.set_near_branch64(target);
                return Some(());
            }
            Kind::farbr2_2 => OpKind::FarBranch16,
            Kind::farbr4_2 => OpKind::FarBranch32,
            _ => return None,
        };
        self.instruction.set_op_kind(i, op);
        Some(())
    }

    /// Somewhere among the INT3s (never within the instruction), or outside.
    pub(super) fn branch_target(&self, near: bool, random: &mut Random) -> u64 {
        let distance = if near { 100 } else { 0x180 };
        let away = 16 + random.below(distance);
        if !near && random.chance(5) {
            return random.pick(&[LOW + 0x40, CODE - 0x100, CODE + CODE_SIZE + 4, 0x1234_5678]);
        }
        if random.chance(50) {
            self.rip + away
        } else {
            self.rip - away
        }
    }

    /// A linear address for `size` bytes: mostly plain memory, else across a
    /// page, at an edge, read-only, code, unmapped or not canonical.
    fn pick_target(&self, size: u64, low: bool, random: &mut Random) -> u64 {
        let start = if low || random.chance(50) { LOW } else { HIGH };
        let inside = start + random.below(DATA_SIZE - size);
        match random.below(100) {
            0..50 => inside & !(size.next_power_of_two() - 1),
            50..70 => inside,
            70..82 => start + PAGE * (1 + random.below(3)) - 1 - random.below(size),
            82..86 => start + DATA_SIZE - 1 - random.below(size),
            86..89 => start - 1 - random.below(size),
            89..92 => LOW + DATA_SIZE + random.below(PAGE),
            92..94 => STACK + random.below(STACK_SIZE - size),
            94 => CODE + random.below(CODE_SIZE),
            95 if !low => random.next() | u64::MAX << 47,
            96..98 if !low => 0x0000_8000_0000_0000 - random.below(size * 2),
            98 if !low => random.next() | 1 << 55,
            99 => random.operand(),
            _ => inside,
        }
    }

    fn memory(&mut self, i: u32, absolute: bool, random: &mut Random) {
        self.instruction.set_op_kind(i, OpKind::Memory);
        let size = (self.instruction.memory_size().size() as u64).max(1);
        let long = self.mode == Mode::Long;
        if absolute || random.chance(8) {
            return self.absolute(absolute, size, random);
        }
        if long && random.chance(12) {
            return self.rip_relative(size, random);
        }
        let shape = self.shape(random);
        let low = !long || shape.short && shape.segment_base == 0;
        let mut target = self.pick_target(size, low, random);
        if shape.short && shape.segment_base != 0 {
            target = GS_BASE + random.below(DATA_SIZE / 2);
        }
        let target = self.address(&shape, target, random);
        self.target = Some((target, size));
    }

    fn shape(&mut self, random: &mut Random) -> Shape {
        let count = self.register_count();
        let long = self.mode == Mode::Long;
        let base = (!random.chance(15)).then(|| random.below(count) as usize);
        let mut index = (base.is_none() || random.chance(50))
            .then(|| (random.below(count) as usize, 1 << random.below(4)));
        if index.is_some_and(|(number, _)| number == reg::RSP || Some(number) == base) {
            index = if base.is_none() {
                Some((reg::RAX, 2))
            } else {
                None
            };
        }
        let mut short = !long || random.chance(15);
        let (segment, segment_base) = match random.below(100) {
            0..8 if long => {
                short = false;
                (Register::FS, self.fs_base)
            }
            8..16 if long => (Register::GS, GS_BASE),
            16..18 => (Register::ES, 0),
            18..20 => (Register::SS, 0),
            20..22 => (Register::DS, 0),
            _ => (Register::None, 0),
        };
        Shape {
            base,
            index,
            short,
            segment,
            segment_base,
        }
    }

    /// Encodes `shape` and sets its registers so that it points to `target`,
    /// or a little below where it cannot. Returns the address.
    fn address(&mut self, shape: &Shape, target: u64, random: &mut Random) -> u64 {
        let displacement = match random.below(3) {
            0 if shape.base.is_some() => 0,
            1 if shape.base.is_some() => random.next() as i8 as i64,
            _ => random.operand() as i32 as i64,
        } as u64;
        let wide = |value: u64| {
            if shape.short {
                value & 0xffff_ffff
            } else {
                value
            }
        };
        let mut offset = target
            .wrapping_sub(shape.segment_base)
            .wrapping_sub(displacement);
        let garbage = |random: &mut Random| {
            if shape.short && self.mode == Mode::Long {
                random.next() << 32
            } else {
                0
            }
        };
        let mut short_by = 0;
        let mut indexed = None;
        let mut scale = 1;
        if let Some((number, by)) = shape.index {
            scale = u64::from(by);
            let value = if shape.base.is_some() {
                wide(random.operand())
            } else {
                // Alone it reaches what its scale divides.
                let value = wide(offset) / scale;
                short_by = wide(offset) - value * scale;
                offset = value.wrapping_mul(scale);
                value
            };
            indexed = Some((number, value | garbage(random)));
            offset = offset.wrapping_sub(value.wrapping_mul(scale));
        }
        let based = shape
            .base
            .map(|number| (number, wide(offset) | garbage(random)));
        let first = if shape.short {
            Register::EAX
        } else {
            Register::RAX
        };
        let instruction = &mut self.instruction;
        if let Some((number, value)) = based {
            instruction.set_memory_base(first + number as u32);
            self.gpr[number] = value;
        }
        if let Some((number, value)) = indexed {
            instruction.set_memory_index(first + number as u32);
            instruction.set_memory_index_scale(scale as u32);
            self.gpr[number] = value;
        }
        let small = i64::from(displacement as i8) as u64 == displacement && based.is_some();
        instruction.set_memory_displacement64(wide(displacement));
        instruction.set_memory_displ_size(match (displacement, small, shape.short) {
            (0, true, _) => 0,
            (_, true, _) => 1,
            (_, _, true) => 4,
            _ => 8,
        });
        instruction.set_segment_prefix(shape.segment);
        target.wrapping_sub(short_by)
    }

    fn absolute(&mut self, any: bool, size: u64, random: &mut Random) {
        let long = self.mode == Mode::Long;
        let short = !long || random.chance(20);
        let low = short || !any;
        let target = self.pick_target(size, low, random);
        let target = if low { target & 0x7fff_ffff } else { target };
        self.instruction.set_memory_displacement64(target);
        self.instruction
            .set_memory_displ_size(if short { 4 } else { 8 });
        self.target = Some((target, size));
    }

    fn rip_relative(&mut self, size: u64, random: &mut Random) {
        let target = self.pick_target(size, true, random) & 0x7fff_ffff;
        let base = if random.chance(15) {
            Register::EIP
        } else {
            Register::RIP
        };
        self.instruction.set_memory_base(base);
        self.instruction.set_memory_displacement64(target);
        self.instruction
            .set_memory_displ_size(if base == Register::EIP { 4 } else { 8 });
        self.target = Some((target, size));
    }
}
