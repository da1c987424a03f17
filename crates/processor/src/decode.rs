//! From instruction bytes to [`Op`]s.

use crate::Vp;
use crate::exec;
use crate::fault::Step;
use crate::op::{Address, Op, OpFn, prefix};
use crate::state::{reg, seg};
use iced_x86::{
    Code, Decoder as Iced, DecoderError, DecoderOptions, Instruction, Mnemonic, OpCodeOperandKind,
    OpKind, Register,
};

/// The longest instruction, bytes.
pub(crate) const MAX_LENGTH: usize = 15;

/// What decoding depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mode {
    /// Code size: 16, 32 or 64.
    pub bits: u8,
    /// Real or virtual-8086 mode.
    pub real: bool,
}

/// The handler that an instruction gets.
#[derive(Clone, Copy)]
pub(crate) struct Selected {
    /// The handler.
    pub run: OpFn,
    /// The block ends behind this instruction.
    pub ends: bool,
}

impl Selected {
    /// A handler in the middle of a block.
    pub(crate) fn plain(run: OpFn) -> Option<Self> {
        Some(Self { run, ends: false })
    }

    /// A handler that ends its block.
    pub(crate) fn last(run: OpFn) -> Option<Self> {
        Some(Self { run, ends: true })
    }
}

/// Decodes one block.
pub(crate) struct Decoder {
    mode: Mode,
}

impl Decoder {
    /// For the mode key of [`Vp::decode_mode`].
    pub(crate) fn new(key: u8) -> Self {
        let bits = match key & 3 {
            0 => 16,
            1 => 32,
            _ => 64,
        };
        Self {
            mode: Mode {
                bits,
                real: key & 4 != 0,
            },
        }
    }

    /// Decodes instructions up to the first that ends a block or does not fit.
    /// Empty when the first does not fit.
    pub(crate) fn block(&mut self, bytes: &[u8]) -> Box<[Op]> {
        let mut ops: Vec<Op> = Vec::with_capacity(8);
        let mut iced = self.iced(bytes);
        let mut instruction = Instruction::default();
        while ops.len() < crate::block::MAX_OPS && iced.can_decode() {
            let at = iced.position();
            iced.decode_out(&mut instruction);
            self.mend(&mut instruction, &bytes[at..]);
            if let Some(op) = self.op(&instruction, iced.last_error(), at, bytes.len()) {
                let last = op.is_last();
                ops.push(op);
                if last {
                    break;
                }
            } else {
                break;
            }
        }
        if let Some(op) = ops.last_mut() {
            op.prefix |= prefix::LAST;
        }
        ops.into_boxed_slice()
    }

    /// Decodes instructions, for as long as `visit` asks for more and they fit.
    pub(crate) fn each(&mut self, bytes: &[u8], mut visit: impl FnMut(&Instruction, Op) -> bool) {
        let mut iced = self.iced(bytes);
        let mut instruction = Instruction::default();
        while iced.can_decode() {
            let at = iced.position();
            iced.decode_out(&mut instruction);
            self.mend(&mut instruction, &bytes[at..]);
            // What is cut off at the end is decoded where it starts a block.
            let cut = iced.last_error() == DecoderError::NoMoreBytes;
            let Some(op) = self.op(&instruction, iced.last_error(), at, bytes.len()) else {
                return;
            };
            if cut || !visit(&instruction, op) {
                return;
            }
        }
    }

    /// Decodes one instruction; `None` when it is longer than `bytes`.
    pub(crate) fn single(&mut self, bytes: &[u8]) -> Option<Op> {
        let mut iced = self.iced(bytes);
        let mut instruction = iced.decode();
        self.mend(&mut instruction, bytes);
        let mut op = self.op(&instruction, iced.last_error(), 0, bytes.len())?;
        op.prefix |= prefix::LAST;
        Some(op)
    }

    fn iced<'a>(&self, bytes: &'a [u8]) -> Iced<'a> {
        // Instruction pointers count from the block's start, so that a block
        // serves every linear address its page is mapped at.
        Iced::with_ip(u32::from(self.mode.bits), bytes, 0, DecoderOptions::NONE)
    }

    /// F3 90 with REX.B is no PAUSE: processors exchange RAX with R8.
    fn mend(&self, instruction: &mut Instruction, bytes: &[u8]) {
        let length = instruction.len();
        if instruction.code() != Code::Pause || self.mode.bits != 64 || length < 3 {
            return;
        }
        let Some([rex, _]) = bytes.get(length - 2..length) else {
            return;
        };
        if rex & 0xf1 != 0x41 {
            return;
        }
        let bytes: Vec<u8> = bytes[..length]
            .iter()
            .copied()
            .filter(|&b| b != 0xf3)
            .collect();
        let exchange = self.iced(&bytes).decode();
        if exchange.mnemonic() == Mnemonic::Xchg {
            *instruction = exchange;
            instruction.set_len(length);
        }
    }

    fn op(
        &self,
        instruction: &Instruction,
        error: DecoderError,
        at: usize,
        available: usize,
    ) -> Option<Op> {
        if error == DecoderError::NoMoreBytes {
            return (available - at >= MAX_LENGTH).then(|| fixed_op(exec::too_long, at, 15));
        }
        if instruction.is_invalid() {
            // iced gives up at the sixteenth byte: that one is too long.
            let length = instruction.len().clamp(1, MAX_LENGTH);
            let run = if length == MAX_LENGTH {
                exec::too_long
            } else {
                exec::undefined
            };
            return Some(fixed_op(run, at, length));
        }
        if instruction.len() > MAX_LENGTH {
            return Some(fixed_op(exec::too_long, at, MAX_LENGTH));
        }
        let mut op = operands(instruction, self.mode, at);
        let selected = exec::select(instruction, &mut op, self.mode).unwrap_or(Selected {
            run: exec::undefined,
            ends: true,
        });
        op.run = selected.run;
        if selected.ends {
            op.prefix |= prefix::LAST;
        }
        Some(op)
    }
}

/// An op without operands, last in its block.
fn fixed_op(run: OpFn, at: usize, length: usize) -> Op {
    Op {
        run,
        imm: 0,
        disp: 0,
        offset: at as u16,
        length: length as u8,
        dst: 0,
        src: 0,
        aux: 0,
        base: reg::ZERO as u8,
        index: reg::ZERO as u8,
        scale: 0,
        segment: seg::DS as u8,
        address: Address::Segmented,
        address_size: 8,
        size: 0,
        prefix: prefix::LAST,
    }
}

/// Never run: replaced by the selected handler.
fn unselected(vp: &mut Vp, _op: &Op) -> Step {
    Err(vp.ud())
}

/// Fills everything that follows from the encoding alone.
fn operands(instruction: &Instruction, mode: Mode, at: usize) -> Op {
    let mut op = fixed_op(unselected, at, instruction.len());
    op.prefix = 0;
    op.size = operand_size(instruction, mode);
    op.address_size = address_size(instruction, mode);
    if instruction.has_lock_prefix() {
        op.prefix |= prefix::LOCK;
    }
    if instruction.has_rep_prefix() {
        op.prefix |= prefix::REP;
    }
    if instruction.has_repne_prefix() {
        op.prefix |= prefix::REPNE;
    }
    let code = instruction.op_code();
    let mut dst_set = false;
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::Register => {
                let number = register_number(instruction.op_register(i));
                if is_rm(code.op_kind(i)) {
                    op.src = number;
                } else if !dst_set {
                    op.dst = number;
                    dst_set = true;
                } else {
                    op.aux = number;
                }
            }
            OpKind::Memory => memory(instruction, mode, &mut op),
            OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => op.imm = instruction.immediate(i),
            OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                op.imm = instruction.near_branch_target();
            }
            OpKind::FarBranch16 => {
                op.imm = u64::from(instruction.far_branch16());
                op.disp = u64::from(instruction.far_branch_selector());
            }
            OpKind::FarBranch32 => {
                op.imm = u64::from(instruction.far_branch32());
                op.disp = u64::from(instruction.far_branch_selector());
            }
            // String operands: the segment override counts.
            OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemorySegDI
            | OpKind::MemorySegEDI
            | OpKind::MemorySegRDI => {
                op.segment = segment_number(instruction.memory_segment());
            }
            _ => {}
        }
    }
    op
}

fn memory(instruction: &Instruction, mode: Mode, op: &mut Op) {
    op.prefix |= prefix::MEMORY;
    op.disp = instruction.memory_displacement64();
    let base = instruction.memory_base();
    match base {
        Register::None => {}
        // The displacement is already relative to the block's start.
        Register::RIP | Register::EIP => op.base = reg::BLOCK_RIP as u8,
        _ => op.base = base.number() as u8,
    }
    let index = instruction.memory_index();
    if index != Register::None {
        op.index = index.number() as u8;
        op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
    }
    op.segment = match segment_number(instruction.memory_segment()) as usize {
        // Other overrides mean nothing in 64-bit mode, not even to the choice
        // between #SS and #GP for an address that is not canonical.
        seg::ES | seg::CS | seg::SS | seg::DS if mode.bits == 64 => match base {
            Register::RSP | Register::ESP | Register::RBP | Register::EBP => seg::SS as u8,
            _ => seg::DS as u8,
        },
        other => other as u8,
    };
    let based = op.segment == seg::FS as u8 || op.segment == seg::GS as u8;
    op.address = match mode.bits {
        64 if !based && op.address_size == 8 => Address::Flat64,
        64 => Address::Long,
        _ => Address::Segmented,
    };
}

fn is_rm(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::r32_or_mem_mpx
            | K::r64_or_mem_mpx
            | K::r16_rm
            | K::r32_rm
            | K::r64_rm
            | K::mm_or_mem
            | K::mm_rm
            | K::xmm_or_mem
            | K::xmm_rm
    )
}

/// General registers: 0 to 15, bytes as offsets; others their own number.
pub(crate) fn register_number(register: Register) -> u8 {
    if register.is_gpr8() {
        return match register {
            Register::AH => 1,
            Register::CH => 9,
            Register::DH => 17,
            Register::BH => 25,
            other => other.full_register().number() as u8 * 8,
        };
    }
    if register.is_segment_register() {
        return segment_number(register);
    }
    register.number() as u8
}

fn segment_number(register: Register) -> u8 {
    (match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }) as u8
}

fn operand_size(instruction: &Instruction, mode: Mode) -> u8 {
    let code = instruction.op_code();
    let by_operand = (0..instruction.op_count()).find_map(|i| {
        if instruction.op_kind(i) != OpKind::Register {
            return None;
        }
        let register = instruction.op_register(i);
        register.is_gpr().then(|| register.size() as u8)
    });
    if let Some(size) = by_operand {
        return size;
    }
    if code.operand_size() != 0 {
        return (code.operand_size() / 8) as u8;
    }
    let memory = instruction.memory_size().size();
    if matches!(memory, 1 | 2 | 4 | 8) {
        return memory as u8;
    }
    if mode.bits == 16 { 2 } else { 4 }
}

fn address_size(instruction: &Instruction, mode: Mode) -> u8 {
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 2,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 4,
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => return 8,
            OpKind::Memory => {
                let base = instruction.memory_base();
                let register = if base != Register::None {
                    base
                } else {
                    instruction.memory_index()
                };
                return match register {
                    // iced calls a sign-extended one of 64-bit mode 8 bytes.
                    Register::None => match instruction.memory_displ_size() {
                        2 => 2,
                        4 => 4,
                        _ => mode.bits / 8,
                    },
                    Register::EIP => 4,
                    other => other.size() as u8,
                };
            }
            _ => {}
        }
    }
    // LOOP and JrCXZ take it from their code.
    match instruction.op_code().address_size() {
        16 => 2,
        32 => 4,
        64 => 8,
        _ => mode.bits / 8,
    }
}
