//! SSE and AVX instructions as themselves.
//!
//! They work on the guest's own registers, see [`super::units`]. While those
//! are in place all exceptions are masked; where the guest unmasks one, or SSE
//! is not to be used, the interpreter does the work. MMX is x87 here.

use super::asm::Mem;
use super::emit::{Access, Address, Emitter};
use super::flow::Item;
use super::units::Unit;
use super::x87::is_mmx;
use crate::exec::vex::is_aligned;
use iced_x86::{CpuidFeature, EncodingKind, Instruction, Mnemonic, OpKind};

/// The instruction runs as itself on XMM and MMX registers, general registers
/// and memory, with all operands named but XMM0.
pub(super) fn is_vector(item: &Item) -> bool {
    let instruction = &item.instruction;
    let encoding = instruction.code().encoding();
    let encodable = matches!(encoding, EncodingKind::Legacy | EncodingKind::VEX);
    if item.op.is_last() || !encodable || instruction.is_vsib() {
        return false;
    }
    let features = instruction.cpuid_features();
    let known = !features.is_empty() && features.iter().all(|&feature| is_known(feature));
    let operands = (0..instruction.op_count()).all(|i| match instruction.op_kind(i) {
        OpKind::Register => {
            let register = instruction.op_register(i);
            register.is_xmm()
                || register.is_ymm()
                || register.is_mm()
                || register.is_gpr32()
                || register.is_gpr64()
        }
        OpKind::Memory | OpKind::Immediate8 | OpKind::Immediate8_2nd => true,
        _ => false,
    });
    known
        && operands
        && (is_sse(instruction) || is_mmx(instruction))
        && !has_hidden_operands(instruction.mnemonic())
}

/// XMM or YMM registers or MXCSR are used.
fn is_sse(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    // From memory to MMX registers.
    let converts = matches!(
        instruction.mnemonic(),
        M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi
    );
    converts
        || (0..instruction.op_count())
            .filter(|&i| instruction.op_kind(i) == OpKind::Register)
            .any(|i| instruction.op_register(i).is_xmm() || instruction.op_register(i).is_ymm())
}

/// VZEROUPPER or VZEROALL.
pub(super) fn is_zeroing(item: &Item) -> bool {
    let mnemonic = item.instruction.mnemonic();
    !item.op.is_last() && matches!(mnemonic, Mnemonic::Vzeroupper | Mnemonic::Vzeroall)
}

fn is_known(feature: CpuidFeature) -> bool {
    matches!(
        feature,
        CpuidFeature::MMX
            | CpuidFeature::SSE
            | CpuidFeature::SSE2
            | CpuidFeature::SSE3
            | CpuidFeature::SSSE3
            | CpuidFeature::SSE4_1
            | CpuidFeature::SSE4_2
            | CpuidFeature::AES
            | CpuidFeature::PCLMULQDQ
            | CpuidFeature::AVX
            | CpuidFeature::AVX2
            | CpuidFeature::FMA
            | CpuidFeature::F16C
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
            | M::Maskmovq
            | M::Vpcmpestri
            | M::Vpcmpestri64
            | M::Vpcmpestrm
            | M::Vpcmpestrm64
            | M::Vpcmpistri
            | M::Vpcmpistrm
            | M::Vmaskmovdqu
    )
}

/// Address bits that must be 0.
fn alignment(instruction: &Instruction) -> u8 {
    use Mnemonic as M;
    let size = instruction.memory_size().size();
    let aligned = if instruction.code().encoding() == EncodingKind::VEX {
        is_aligned(instruction.mnemonic())
    } else {
        size == 16
            && !matches!(
                instruction.mnemonic(),
                M::Movups | M::Movupd | M::Movdqu | M::Lddqu
            )
    };
    if aligned { size as u8 - 1 } else { 0 }
}

/// The unit that a vector instruction needs.
pub(super) fn unit(instruction: &Instruction) -> Unit {
    let vex = instruction.code().encoding() == EncodingKind::VEX;
    match (is_sse(instruction), vex) {
        (true, true) => Unit::Upper,
        (true, false) => Unit::Vectors,
        (false, _) => Unit::X87,
    }
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
        if is_mmx(&item.instruction) {
            self.want(item, Unit::X87);
        }
        if is_sse(&item.instruction) {
            let vex = item.instruction.code().encoding() == EncodingKind::VEX;
            self.want(item, if vex { Unit::Upper } else { Unit::Vectors });
        }
        let memory = |&i: &u32| item.instruction.op_kind(i) == OpKind::Memory;
        let operand = match (0..item.instruction.op_count()).find(memory) {
            Some(i) => Some(self.vector_operand(item, i == 0)?),
            None => None,
        };
        self.emit_with(item, operand, false)
    }

    fn vector_operand(&mut self, item: &Item, write: bool) -> Option<Mem> {
        let instruction = &item.instruction;
        let size = instruction.memory_size().size() as u32;
        if !matches!(size, 1 | 2 | 4 | 8 | 16 | 32) {
            return None;
        }
        let access = Access {
            address: Address::of(instruction, self.start)?,
            size,
            write,
            live: item.live != 0,
            aligned: alignment(instruction),
        };
        Some(self.probe(&access, &item.op))
    }
}
