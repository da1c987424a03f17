//! x87 instructions as themselves, with the guest's registers in place (see
//! [`super::units`]). All x87 exceptions are masked then.
//!
//! # Pointers
//!
//! The pointer to the last instruction (FIP) is exact wherever the guest can
//! see it: the emitter knows the last x87 instruction at every call of Rust
//! ([`Site::pointer`](super::emit::Site)) and stores its address at every
//! branch. The data pointer and the opcode are written by instructions with an
//! unmasked exception only, as CPUID says (leaf 7, FDP_EXCPTN_ONLY).
//!
//! # What stays with the handlers
//!
//! FNSTENV, FLDENV, FNSAVE, FRSTOR, and FLDCW where it unmasks an exception (as
//! LDMXCSR, which is here because it is alike).

use super::asm::{Mem, at};
use super::emit::{Access, Address, Cold, Emitter};
use super::flow::Item;
use super::generic::writes;
use super::layout::{S0, S2, field, image};
use super::units::Unit;
use crate::state::Fpu;
use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

/// The instruction runs as itself on x87 registers, memory, AX and flags.
pub(super) fn is_x87(item: &Item) -> bool {
    use CpuidFeature as F;
    let instruction = &item.instruction;
    let code = instruction.code();
    if item.op.is_last() || code.encoding() != EncodingKind::Legacy {
        return false;
    }
    if instruction.mnemonic() == Mnemonic::Emms {
        return true;
    }
    let features = instruction.cpuid_features();
    features
        .iter()
        .any(|feature| matches!(feature, F::FPU | F::FPU387))
        && features
            .iter()
            .all(|feature| matches!(feature, F::FPU | F::FPU387 | F::CMOV | F::SSE3))
        && !is_handled(instruction.mnemonic())
}

/// Six exception masks, all set, when they have been extracted.
const MASKS: i32 = 0x3f;

/// An instruction that loads a control word with exception masks.
struct ControlLoad {
    /// Bytes of the operand.
    size: u32,
    /// The opcode that reads it, zero-extended.
    read: &'static [u8],
    /// The opcode, and its extension in ModRM.
    opcode: (&'static [u8], u8),
}

/// FLDCW.
const FLDCW: ControlLoad = ControlLoad {
    size: 2,
    read: &[0x0f, 0xb7],
    opcode: (&[0xd9], 5),
};

/// LDMXCSR.
const LDMXCSR: ControlLoad = ControlLoad {
    size: 4,
    read: &[0x8b],
    opcode: (&[0x0f, 0xae], 2),
};

impl ControlLoad {
    /// The mask of exception masks and, above them, of bits that must be 0.
    fn relevant(&self) -> Mem {
        if self.size == 2 {
            field!(control_masks)
        } else {
            field!(mxcsr_masks)
        }
    }
}

/// LDMXCSR or STMXCSR, which are done like their x87 relatives.
pub(super) fn is_mxcsr(item: &Item) -> bool {
    let instruction = &item.instruction;
    !item.op.is_last()
        && instruction.code().encoding() == EncodingKind::Legacy
        && matches!(
            instruction.mnemonic(),
            Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr
        )
}

/// Left to the handlers: rare, and not worth emission.
fn is_handled(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fldenv | M::Fnstenv | M::Frstor | M::Fnsave | M::Fneni | M::Fndisi | M::Fnsetpm
    )
}

/// The instruction leaves the pointer to the last instruction alone.
fn is_control(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Emms | M::Fldcw | M::Fnstcw | M::Fnstsw | M::Fnclex | M::Fninit | M::Wait
    )
}

impl Emitter<'_> {
    /// Emits an x87 instruction; false (with nothing emitted) where its form
    /// does not allow that.
    pub(super) fn x87(&mut self, item: &Item) -> bool {
        let mark = self.mark();
        if self.try_x87(item).is_none() {
            self.back_to(&mark);
            return false;
        }
        self.resume_here(&mark);
        if !is_control(item.instruction.mnemonic()) {
            self.pointer = item.op.offset + 1;
        }
        true
    }

    fn try_x87(&mut self, item: &Item) -> Option<()> {
        self.want(item, Unit::X87);
        match item.instruction.mnemonic() {
            // Nothing is pending.
            Mnemonic::Wait => Some(()),
            Mnemonic::Fldcw => self.load_control(item, &FLDCW),
            Mnemonic::Fninit => {
                self.emit_with(item, None, false)?;
                self.clear_pointers();
                Some(())
            }
            _ => {
                let operand = self.x87_operand(item)?;
                self.emit_with(item, operand, false)
            }
        }
    }

    /// The memory operand, if there is one; `None` where it is not handled.
    fn x87_operand(&mut self, item: &Item) -> Option<Option<Mem>> {
        let instruction = &item.instruction;
        let kind = |i| instruction.op_kind(i) == OpKind::Memory;
        let Some(number) = (0..instruction.op_count()).find(|&i| kind(i)) else {
            return Some(None);
        };
        let size = instruction.memory_size().size() as u32;
        if !matches!(size, 2 | 4 | 8 | 10) {
            return None;
        }
        let write = writes(self.info.info(instruction).op_access(number));
        self.x87_access(item, size, write).map(Some)
    }

    fn x87_access(&mut self, item: &Item, size: u32, write: bool) -> Option<Mem> {
        let access = Access {
            address: Address::of(&item.instruction, self.start)?,
            size,
            write,
            live: item.live != 0,
            aligned: 0,
        };
        Some(self.probe(&access, &item.op))
    }

    /// LDMXCSR and STMXCSR; false (with nothing emitted) where the form does
    /// not allow that.
    pub(super) fn mxcsr(&mut self, item: &Item) -> bool {
        let mark = self.mark();
        if self.try_mxcsr(item).is_none() {
            self.back_to(&mark);
            return false;
        }
        self.resume_here(&mark);
        true
    }

    fn try_mxcsr(&mut self, item: &Item) -> Option<()> {
        self.want(item, Unit::Vectors);
        if item.instruction.mnemonic() == Mnemonic::Ldmxcsr {
            return self.load_control(item, &LDMXCSR);
        }
        let operand = self.x87_access(item, 4, true)?;
        self.emit_with(item, Some(operand), false)
    }

    /// FLDCW and LDMXCSR. The word is read once: what is tested is what is
    /// loaded.
    fn load_control(&mut self, item: &Item, load: &ControlLoad) -> Option<()> {
        let mem = self.x87_access(item, load.size, false)?;
        let site = self.site(&item.op, None);
        let a = &mut self.asm;
        a.with_memory(&[], false, load.read, S2, mem, &[]);
        // MOV control, S2 (32 bits)
        a.with_memory(&[], false, &[0x89], S2, field!(control), &[]);
        a.extract(S0, S2, load.relevant());
        a.lea(S0, at(S0, -MASKS));
        let masked = a.jump_if_rcx_zero();
        let other = a.jump();
        self.push_cold(Cold::Handle(other, site));
        self.short(masked);
        let (opcode, extension) = load.opcode;
        self.asm
            .with_memory(&[], false, opcode, extension, field!(control), &[]);
        Some(())
    }

    fn clear_pointers(&mut self) {
        let a = &mut self.asm;
        a.with_memory(&[], true, &[0xc7], 0, image(Fpu::FIP), &[0; 4]);
        a.with_memory(&[], true, &[0xc7], 0, image(Fpu::FDP), &[0; 4]);
        a.with_memory(&[0x66], false, &[0xc7], 0, image(Fpu::FOP), &[0; 2]);
        self.pointer = 0;
    }

    /// Stores the pointer to the last x87 instruction before the region may be
    /// left. Uses [`S2`]; flags stay.
    pub(super) fn store_pointer(&mut self) {
        let pointer = std::mem::take(&mut self.pointer);
        if pointer == 0 {
            return;
        }
        let value = self.start.wrapping_add(u64::from(pointer - 1));
        let a = &mut self.asm;
        match i32::try_from(value as i64) {
            Ok(low) => {
                let low = low.to_le_bytes();
                a.with_memory(&[], true, &[0xc7], 0, image(Fpu::FIP), &low);
            }
            Err(_) => {
                a.constant(S2, value);
                a.store(image(Fpu::FIP), S2);
            }
        }
    }
}

/// The instruction works on MMX registers, or turns the x87 to them.
pub(super) fn is_mmx(instruction: &Instruction) -> bool {
    // With a memory operand some processors do, and some do not.
    instruction.mnemonic() == Mnemonic::Cvtpi2ps
        || (0..instruction.op_count()).any(|i| {
            instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_mm()
        })
}
