//! SSE instructions as themselves.
//!
//! The guest's XMM registers and MXCSR are brought into the host's by the
//! first vector instruction that needs them, and taken back whenever Rust
//! runs. While they are in place all exceptions are masked; where the guest
//! unmasks one, or SSE is not to be used, the interpreter does the work.

use super::asm::{Mem, cc};
use super::emit::{Access, Address, Cold, Emitter};
use super::flow::Item;
use super::layout::{S0, field};
use crate::Vp;
use crate::state::cr;
use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

/// MXCSR with all exceptions masked.
const MASKED: u32 = 0x1f80;

/// The instruction runs as itself on XMM registers, general registers and
/// memory, with all operands named but XMM0.
pub(super) fn is_vector(item: &Item) -> bool {
    let instruction = &item.instruction;
    if item.op.is_last() || instruction.code().encoding() != EncodingKind::Legacy {
        return false;
    }
    let features = instruction.cpuid_features();
    let known = !features.is_empty() && features.iter().all(|&feature| is_known(feature));
    let operands = (0..instruction.op_count()).all(|i| match instruction.op_kind(i) {
        OpKind::Register => {
            let register = instruction.op_register(i);
            register.is_xmm() || register.is_gpr32() || register.is_gpr64()
        }
        OpKind::Memory | OpKind::Immediate8 | OpKind::Immediate8_2nd => true,
        _ => false,
    });
    let any = (0..instruction.op_count())
        .any(|i| instruction.op_kind(i) == OpKind::Register && instruction.op_register(i).is_xmm());
    known && operands && any && !has_hidden_operands(instruction.mnemonic())
}

fn is_known(feature: CpuidFeature) -> bool {
    matches!(
        feature,
        CpuidFeature::SSE
            | CpuidFeature::SSE2
            | CpuidFeature::SSE3
            | CpuidFeature::SSSE3
            | CpuidFeature::SSE4_1
            | CpuidFeature::SSE4_2
            | CpuidFeature::AES
            | CpuidFeature::PCLMULQDQ
    )
}

fn has_hidden_operands(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpestrm
            | M::Pcmpestrm64
            | M::Pcmpistri
            | M::Pcmpistrm
            | M::Maskmovdqu
    )
}

fn needs_alignment(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    instruction.memory_size().size() == 16
        && !matches!(
            instruction.mnemonic(),
            M::Movups | M::Movupd | M::Movdqu | M::Lddqu
        )
}

impl Emitter<'_> {
    /// Emits a vector instruction; false (with nothing emitted) where its form
    /// does not allow that.
    pub(super) fn vector(&mut self, item: &Item) -> bool {
        let mark = self.mark();
        if self.try_vector(item).is_some() {
            self.resume_here(&mark);
            true
        } else {
            self.back_to(&mark);
            false
        }
    }

    fn try_vector(&mut self, item: &Item) -> Option<()> {
        self.want_vectors(item);
        let operand = match item.instruction.op_kind(0) {
            OpKind::Memory => Some(self.vector_operand(item, true)?),
            _ if item.instruction.op_count() > 1
                && item.instruction.op_kind(1) == OpKind::Memory =>
            {
                Some(self.vector_operand(item, false)?)
            }
            _ => None,
        };
        self.emit_with(item, operand, false)
    }

    fn vector_operand(&mut self, item: &Item, write: bool) -> Option<Mem> {
        let instruction = &item.instruction;
        let size = instruction.memory_size().size() as u32;
        if !matches!(size, 1 | 2 | 4 | 8 | 16) {
            return None;
        }
        let access = Access {
            address: Address::of(instruction, self.start)?,
            size,
            write,
            live: item.live != 0,
            aligned: needs_alignment(instruction),
        };
        Some(self.probe(&access, &item.op))
    }

    /// The vector registers are in place behind this.
    pub(super) fn want_vectors(&mut self, item: &Item) {
        if std::mem::replace(&mut self.vectors, true) {
            return;
        }
        let site = self.site(&item.op, None);
        let missing = if item.live == 0 {
            // CMP vectors, 0
            self.asm
                .with_memory(&[], true, &[0x83], 7, field!(vectors), &[0]);
            self.asm.jump_if(cc::E)
        } else {
            self.asm.load(S0, field!(vectors));
            let missing = self.asm.jump_if_rcx_zero();
            // JMP over the next jump
            self.asm.raw(&[0xeb, 5]);
            self.short(missing);
            self.asm.jump()
        };
        self.cold.push(Cold::Vectors(missing, site));
    }
}

impl Vp {
    /// Vector instructions can run as themselves.
    pub(super) fn vectors_usable(&self) -> bool {
        let state = &self.state;
        state.cr0 & (cr::CR0_EM | cr::CR0_TS) == 0
            && state.cr4 & cr::CR4_OSFXSR != 0
            && state.fpu.mxcsr() & MASKED == MASKED
            && state.fpu.mxcsr() >> 16 == 0
    }
}
