//! Which instruction forms may be emitted, and their stubs.

use super::{Frame, Stub, area};
use iced_x86::code_asm::*;
use iced_x86::{
    Code, CpuidFeature, EncodingKind, IcedError, Instruction, MemoryOperand, Mnemonic,
    OpCodeOperandKind, OpKind, Register,
};
use std::mem::offset_of;

/// Where a stub's operand is kept while the guest is not using it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Place {
    /// An XMM register.
    Xmm = 0,
    /// An MMX register.
    Mm = 1,
    /// A general register (a 32-bit result is zero-extended).
    Gpr = 2,
}

impl Place {
    /// Bytes that a stub loads from and stores to an operand's pointer.
    pub(crate) fn bytes(self) -> usize {
        if self == Place::Xmm { 16 } else { 8 }
    }

    fn of(kind: OpCodeOperandKind) -> Option<Self> {
        use OpCodeOperandKind as Kind;
        match kind {
            Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_or_mem => Some(Place::Xmm),
            Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem => Some(Place::Mm),
            Kind::r32_reg | Kind::r32_or_mem | Kind::r64_reg | Kind::r64_or_mem => Some(Place::Gpr),
            _ => None,
        }
    }
}

/// An instruction form that has a stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    code: Code,
    /// Immediate, or the stack register number of an x87 instruction.
    detail: u8,
    x87: bool,
    /// First and second operand of an SSE or MMX form.
    places: (Option<Place>, Option<Place>),
}

impl Form {
    /// The form of an instruction, if it is on the allow list: legacy
    /// encoding, features of [`allowed_feature`] only, operands that are
    /// vector, general or stack registers (or memory in their place) and an
    /// 8-bit immediate. For x87 all but the control instructions.
    pub(crate) fn new(instruction: &Instruction) -> Option<Self> {
        let code = instruction.code();
        if code.encoding() != EncodingKind::Legacy
            || !code
                .cpuid_features()
                .iter()
                .all(|&feature| allowed_feature(feature))
        {
            return None;
        }
        match code.cpuid_features().first() {
            Some(CpuidFeature::FPU | CpuidFeature::FPU387) => Self::x87(instruction),
            Some(CpuidFeature::CMOV) | None => None,
            Some(_) => Self::vector(instruction),
        }
    }

    fn vector(instruction: &Instruction) -> Option<Self> {
        let code = instruction.code();
        if instruction.mnemonic() == Mnemonic::Crc32 {
            return None;
        }
        let operands = code.op_code();
        let first = Some(Place::of(operands.try_op_kind(0).ok()?)?);
        let (second, detail) = match (operands.op_count(), operands.try_op_kind(1).ok()?) {
            (2, OpCodeOperandKind::imm8) => (None, instruction.immediate8()),
            (2, kind) => (Some(Place::of(kind)?), 0),
            (3, kind) if operands.try_op_kind(2).ok()? == OpCodeOperandKind::imm8 => {
                (Some(Place::of(kind)?), instruction.immediate8())
            }
            _ => return None,
        };
        // In memory there is one element to choose from; a register has four.
        let in_memory = instruction.op1_kind() == OpKind::Memory;
        let detail = if code == Code::Insertps_xmm_xmmm32_imm8 && in_memory {
            detail & 0x3f
        } else {
            detail
        };
        Some(Self {
            code,
            detail,
            x87: false,
            places: (first, second),
        })
    }

    fn x87(instruction: &Instruction) -> Option<Self> {
        if is_x87_control(instruction.mnemonic()) {
            return None;
        }
        let mut detail = 0;
        for index in 0..instruction.op_count() {
            if instruction.code().op_code().op_kind(index) == OpCodeOperandKind::sti_opcode {
                detail = instruction.try_op_register(index).ok()?.number() as u8 & 7;
            }
        }
        let code = instruction.code();
        Some(Self {
            code,
            detail,
            x87: true,
            places: (None, None),
        })
    }

    /// An x87 form: it works on the image in the [`Frame`].
    pub(crate) fn is_x87(&self) -> bool {
        self.x87
    }

    /// First and second operand of an SSE or MMX form.
    pub(crate) fn places(&self) -> (Option<Place>, Option<Place>) {
        self.places
    }

    /// The form reads or writes MXCSR.
    pub(crate) fn uses_mxcsr(&self) -> bool {
        !self.x87 && uses_mxcsr(self.code.mnemonic())
    }

    /// The form writes the status flags.
    pub(crate) fn writes_flags(&self) -> bool {
        use Mnemonic as M;
        matches!(
            self.code.mnemonic(),
            M::Comiss
                | M::Comisd
                | M::Ucomiss
                | M::Ucomisd
                | M::Ptest
                | M::Fcomi
                | M::Fcomip
                | M::Fucomi
                | M::Fucomip
        ) || self.is_string()
    }

    /// The form reads or writes the status flags.
    pub(crate) fn uses_flags(&self) -> bool {
        self.reads_flags() || self.writes_flags()
    }

    fn reads_flags(&self) -> bool {
        use Mnemonic as M;
        matches!(
            self.code.mnemonic(),
            M::Fcmovb
                | M::Fcmove
                | M::Fcmovbe
                | M::Fcmovu
                | M::Fcmovnb
                | M::Fcmovne
                | M::Fcmovnbe
                | M::Fcmovnu
        )
    }

    /// The form has operands that its encoding does not name.
    pub(crate) fn has_implicit(&self) -> bool {
        use Mnemonic as M;
        self.is_string()
            || matches!(
                self.code.mnemonic(),
                M::Pblendvb | M::Blendvps | M::Blendvpd
            )
    }

    /// PCMPESTRI and its kin.
    pub(crate) fn is_string(&self) -> bool {
        use Mnemonic as M;
        matches!(
            self.code.mnemonic(),
            M::Pcmpestri
                | M::Pcmpestri64
                | M::Pcmpestrm
                | M::Pcmpestrm64
                | M::Pcmpistri
                | M::Pcmpistrm
        )
    }

    /// The form's stub, emitted now if it is new. `None` where the host gives
    /// no memory for code.
    pub(crate) fn stub(&self) -> Option<Stub> {
        let key = (self.code as u32) << 8 | u32::from(self.detail);
        area::stub(key, || self.emit().ok())
    }

    fn emit(&self) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        a.mov(r10, rdx)?;
        if self.x87 {
            self.emit_x87(&mut a)?;
        } else {
            self.emit_vector(&mut a)?;
        }
        a.ret()?;
        a.assemble(0)
    }

    /// First operand in XMM1, MM1 or R8, second in XMM2, MM2 or R9.
    fn emit_vector(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        match self.places.0 {
            Some(Place::Xmm) => a.movups(xmm1, xmmword_ptr(rdi))?,
            Some(Place::Mm) => a.movq(mm1, qword_ptr(rdi))?,
            Some(Place::Gpr) => a.mov(r8, qword_ptr(rdi))?,
            None => {}
        }
        match self.places.1 {
            Some(Place::Xmm) => a.movups(xmm2, xmmword_ptr(rsi))?,
            Some(Place::Mm) => a.movq(mm2, qword_ptr(rsi))?,
            Some(Place::Gpr) => a.mov(r9, qword_ptr(rsi))?,
            None => {}
        }
        if self.has_implicit() {
            a.movups(xmm0, xmmword_ptr(r10 + offset_of!(Frame, xmm0)))?;
            a.mov(rax, qword_ptr(r10 + offset_of!(Frame, rax)))?;
            a.mov(rcx, qword_ptr(r10 + offset_of!(Frame, rcx)))?;
            a.mov(rdx, qword_ptr(r10 + offset_of!(Frame, rdx)))?;
        }
        if self.uses_mxcsr() {
            a.stmxcsr(dword_ptr(r10 + offset_of!(Frame, host_mxcsr)))?;
            a.ldmxcsr(dword_ptr(r10 + offset_of!(Frame, mxcsr)))?;
        }
        a.add_instruction(self.vector_instruction()?)?;
        if self.writes_flags() {
            save_flags(a, r10)?;
        }
        if self.uses_mxcsr() {
            a.stmxcsr(dword_ptr(r10 + offset_of!(Frame, mxcsr)))?;
            a.ldmxcsr(dword_ptr(r10 + offset_of!(Frame, host_mxcsr)))?;
        }
        if self.is_string() {
            a.movups(xmmword_ptr(r10 + offset_of!(Frame, xmm0)), xmm0)?;
            a.mov(qword_ptr(r10 + offset_of!(Frame, rcx)), rcx)?;
        }
        match self.places.0 {
            Some(Place::Xmm) => a.movups(xmmword_ptr(rdi), xmm1)?,
            Some(Place::Mm) => a.movq(qword_ptr(rdi), mm1)?,
            Some(Place::Gpr) => a.mov(qword_ptr(rdi), r8)?,
            None => {}
        }
        if self.places.0 == Some(Place::Mm) || self.places.1 == Some(Place::Mm) {
            a.emms()?;
        }
        Ok(())
    }

    fn vector_instruction(&self) -> Result<Instruction, IcedError> {
        let operands = self.code.op_code();
        let register = |index: u32, wide: Register, narrow: Register, vector: Register, mm| {
            use OpCodeOperandKind as Kind;
            match operands.op_kind(index) {
                Kind::r64_reg | Kind::r64_or_mem => wide,
                Kind::r32_reg | Kind::r32_or_mem => narrow,
                Kind::mm_reg | Kind::mm_rm | Kind::mm_or_mem => mm,
                _ => vector,
            }
        };
        let first = register(
            0,
            Register::R8,
            Register::R8D,
            Register::XMM1,
            Register::MM1,
        );
        let immediate = u32::from(self.detail);
        if self.places.1.is_none() {
            return Instruction::with2(self.code, first, immediate);
        }
        let second = register(
            1,
            Register::R9,
            Register::R9D,
            Register::XMM2,
            Register::MM2,
        );
        if operands.op_count() == 2 {
            Instruction::with2(self.code, first, second)
        } else {
            Instruction::with3(self.code, first, second, immediate)
        }
    }

    /// RDI points to the image, RSI to the memory operand. The x87 is left
    /// empty with the host's control word, as the ABI wants it. Saving does
    /// not wait, so that an exception that the guest has unmasked is only
    /// recorded in the image.
    fn emit_x87(&self, a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.stmxcsr(dword_ptr(r10 + offset_of!(Frame, host_mxcsr)))?;
        a.fnstcw(word_ptr(r10 + offset_of!(Frame, host_control)))?;
        a.fxrstor64(ptr(rdi))?;
        if self.reads_flags() {
            a.mov(ax, word_ptr(r10 + offset_of!(Frame, flags)))?;
            a.add(al, 0x7f)?;
            a.sahf()?;
        }
        a.add_instruction(self.x87_instruction()?)?;
        if self.writes_flags() {
            save_flags(a, r10)?;
        }
        a.fxsave64(ptr(rdi))?;
        a.fninit()?;
        a.fldcw(word_ptr(r10 + offset_of!(Frame, host_control)))?;
        a.ldmxcsr(dword_ptr(r10 + offset_of!(Frame, host_mxcsr)))
    }

    fn x87_instruction(&self) -> Result<Instruction, IcedError> {
        let operands = self.code.op_code();
        let stack = Register::ST0 + u32::from(self.detail & 7);
        let register = |index: u32| {
            if operands.op_kind(index) == OpCodeOperandKind::st0 {
                Register::ST0
            } else {
                stack
            }
        };
        match operands.op_count() {
            0 => Ok(Instruction::with(self.code)),
            1 if operands.op_kind(0) == OpCodeOperandKind::mem => {
                Instruction::with1(self.code, MemoryOperand::with_base(Register::RSI))
            }
            1 => Instruction::with1(self.code, register(0)),
            _ => Instruction::with2(self.code, register(0), register(1)),
        }
    }
}

/// Status flags to the frame that `frame` points to; uses RAX.
pub(super) fn save_flags(a: &mut CodeAssembler, frame: AsmRegister64) -> Result<(), IcedError> {
    a.lahf()?;
    a.seto(al)?;
    a.mov(word_ptr(frame + offset_of!(Frame, flags)), ax)
}

/// Features whose instructions may be emitted, where the host has them.
fn allowed_feature(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    match feature {
        F::FPU | F::FPU387 | F::CMOV | F::MMX | F::SSE | F::SSE2 => true,
        F::SSE3 => is_x86_feature_detected!("sse3"),
        F::SSSE3 => is_x86_feature_detected!("ssse3"),
        F::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        F::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        _ => false,
    }
}

/// Instructions on the x87's own state, which are never run on the host's.
fn is_x87_control(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fldenv
            | M::Fnstenv
            | M::Fstenv
            | M::Frstor
            | M::Fnsave
            | M::Fsave
            | M::Finit
            | M::Fninit
            | M::Fclex
            | M::Fnclex
            | M::Fldcw
            | M::Fnstcw
            | M::Fstcw
            | M::Fnstsw
            | M::Fstsw
            | M::Feni
            | M::Fneni
            | M::Fdisi
            | M::Fndisi
            | M::Fsetpm
            | M::Fnsetpm
            | M::Wait
    )
}

/// SSE floating-point instructions: arithmetic, comparison, conversion.
fn uses_mxcsr(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Addps
            | M::Addpd
            | M::Addss
            | M::Addsd
            | M::Subps
            | M::Subpd
            | M::Subss
            | M::Subsd
            | M::Mulps
            | M::Mulpd
            | M::Mulss
            | M::Mulsd
            | M::Divps
            | M::Divpd
            | M::Divss
            | M::Divsd
            | M::Sqrtps
            | M::Sqrtpd
            | M::Sqrtss
            | M::Sqrtsd
            | M::Minps
            | M::Minpd
            | M::Minss
            | M::Minsd
            | M::Maxps
            | M::Maxpd
            | M::Maxss
            | M::Maxsd
            | M::Rcpps
            | M::Rcpss
            | M::Rsqrtps
            | M::Rsqrtss
            | M::Cmpps
            | M::Cmppd
            | M::Cmpss
            | M::Cmpsd
            | M::Comiss
            | M::Comisd
            | M::Ucomiss
            | M::Ucomisd
            | M::Addsubps
            | M::Addsubpd
            | M::Haddps
            | M::Haddpd
            | M::Hsubps
            | M::Hsubpd
            | M::Dpps
            | M::Dppd
            | M::Roundps
            | M::Roundpd
            | M::Roundss
            | M::Roundsd
            | M::Cvtpi2ps
            | M::Cvtpi2pd
            | M::Cvtps2pi
            | M::Cvttps2pi
            | M::Cvtpd2pi
            | M::Cvttpd2pi
            | M::Cvtsi2ss
            | M::Cvtsi2sd
            | M::Cvtss2si
            | M::Cvtsd2si
            | M::Cvttss2si
            | M::Cvttsd2si
            | M::Cvtps2pd
            | M::Cvtpd2ps
            | M::Cvtss2sd
            | M::Cvtsd2ss
            | M::Cvtdq2ps
            | M::Cvtdq2pd
            | M::Cvtps2dq
            | M::Cvttps2dq
            | M::Cvtpd2dq
            | M::Cvttpd2dq
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every form there is fits into the area, with room to spare.
    #[test]
    fn all_forms_fit() {
        let mut forms = 0;
        for code in Code::values() {
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            let kinds = code.op_code();
            if kinds.is_instruction() && code.encoding() == EncodingKind::Legacy {
                for index in 0..kinds.op_count() {
                    if kinds.op_kind(index) == OpCodeOperandKind::imm8 {
                        instruction.set_op_kind(index, OpKind::Immediate8);
                    } else {
                        instruction.set_op_kind(index, OpKind::Register);
                    }
                }
                let Some(form) = Form::new(&instruction) else {
                    continue;
                };
                let immediate = (0..kinds.op_count())
                    .any(|index| kinds.op_kind(index) == OpCodeOperandKind::imm8);
                let details = if immediate {
                    256
                } else if form.x87 {
                    8
                } else {
                    1
                };
                for detail in 0..details {
                    let form = Form {
                        detail: detail as u8,
                        ..form
                    };
                    assert!(form.stub().is_some(), "{form:?}");
                    forms += 1;
                }
            }
        }
        let (bytes, stubs) = area::usage();
        assert_eq!(stubs, forms);
        assert!(
            forms > 10_000 && bytes < 8 << 20,
            "{forms} stubs, {bytes} bytes"
        );
    }
}
