//! Stubs of VEX-encoded instructions: AVX, AVX2, FMA, F16C and the BMIs.
//!
//! Such a stub finds its operands through an array of pointers, one per
//! operand of the encoding: to a general register, to a vector register (whose
//! halves lie [`Fpu::XMM`] and [`Fpu::UPPER`] behind the pointer), or to
//! memory, which the instruction itself accesses. It leaves the upper halves
//! of the host's registers clear.

use super::emit::save_flags;
use super::{Frame, Stub, area};
use crate::state::Fpu;
use iced_x86::code_asm::*;
use iced_x86::{
    CpuidFeature, EncodingKind, IcedError, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};
use std::mem::offset_of;

/// Most operands of an encoding.
pub(crate) const OPERANDS: usize = 4;
/// What the first operand's vector register is in the stub.
const VECTORS: u32 = 1;
/// Marks keys of these stubs, see [`area::stub`].
const KEY: u32 = 1 << 31;
/// Marks keys of forms with a memory operand.
const KEY_MEMORY: u32 = 1 << 30;

/// An instruction that a stub is made of. Register numbers and addresses are
/// no part of the form.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VexForm<'a>(&'a Instruction);

impl<'a> VexForm<'a> {
    /// The form of an instruction, if it is on the allow list: VEX encoding,
    /// features that the host has, operands that are vector or general
    /// registers, plain memory or 8-bit immediates.
    pub(crate) fn new(instruction: &'a Instruction) -> Option<Self> {
        let code = instruction.code();
        let mut features = code.cpuid_features().iter();
        let simple = (0..instruction.op_count()).all(|i| match instruction.op_kind(i) {
            OpKind::Register => {
                let register = instruction.op_register(i);
                register.is_xmm() || register.is_ymm() || register.is_gpr32() || register.is_gpr64()
            }
            OpKind::Memory => !instruction.is_vsib(),
            OpKind::Immediate8 => true,
            _ => false,
        });
        let allowed = code.encoding() == EncodingKind::VEX
            && features.all(|&feature| vex_feature(feature))
            && simple
            && instruction.op_count() > 0
            && instruction.op_count() as usize <= OPERANDS + 1;
        allowed.then_some(Self(instruction))
    }

    /// The form reads or writes MXCSR.
    pub(crate) fn uses_mxcsr(&self) -> bool {
        use CpuidFeature as F;
        let features = self.0.cpuid_features();
        uses_mxcsr(self.0.mnemonic()) || features.contains(&F::FMA) || features.contains(&F::F16C)
    }

    /// The form writes status flags.
    pub(crate) fn writes_flags(&self) -> bool {
        self.0.rflags_modified() != 0
    }

    /// PCMPESTRI and its kin.
    pub(crate) fn is_string(&self) -> bool {
        use Mnemonic as M;
        matches!(
            self.0.mnemonic(),
            M::Vpcmpestri
                | M::Vpcmpestri64
                | M::Vpcmpestrm
                | M::Vpcmpestrm64
                | M::Vpcmpistri
                | M::Vpcmpistrm
        )
    }

    /// The form has operands that its encoding does not name.
    pub(crate) fn has_implicit(&self) -> bool {
        self.is_string() || self.0.mnemonic() == Mnemonic::Mulx
    }

    fn has_vectors(&self) -> bool {
        self.registers()
            .any(|(_, register)| register.is_xmm() || register.is_ymm())
    }

    fn registers(&self) -> impl Iterator<Item = (u32, Register)> {
        let instruction = self.0;
        (0..instruction.op_count())
            .filter(|&i| instruction.op_kind(i) == OpKind::Register)
            .map(|i| (i, instruction.op_register(i)))
    }

    fn memory(&self) -> Option<u32> {
        (0..self.0.op_count()).find(|&i| self.0.op_kind(i) == OpKind::Memory)
    }

    fn immediate(&self) -> u8 {
        let last = self.0.op_count() - 1;
        if self.0.op_kind(last) == OpKind::Immediate8 {
            self.0.immediate8()
        } else {
            0
        }
    }

    /// The form's stub, emitted now if it is new. `None` where the host gives
    /// no memory for code.
    pub(crate) fn stub(&self) -> Option<Stub> {
        let mut key = KEY | (self.0.code() as u32) << 8 | u32::from(self.immediate());
        if self.memory().is_some() {
            key |= KEY_MEMORY;
        }
        area::stub(key, || self.emit().ok())
    }

    /// RDI points to the operands' pointers, RSI to the frame.
    fn emit(&self) -> Result<Vec<u8>, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        if self.uses_mxcsr() {
            a.stmxcsr(dword_ptr(rsi + offset_of!(Frame, host_mxcsr)))?;
            a.ldmxcsr(dword_ptr(rsi + offset_of!(Frame, mxcsr)))?;
        }
        let accesses = self.accesses();
        self.load(&mut a, &accesses)?;
        if self.has_implicit() {
            a.mov(rax, qword_ptr(rsi + offset_of!(Frame, rax)))?;
            a.mov(rdx, qword_ptr(rsi + offset_of!(Frame, rdx)))?;
        }
        if self.writes_flags() && !self.is_string() {
            // Those it leaves alone, or leaves to the processor.
            a.mov(ax, word_ptr(rsi + offset_of!(Frame, flags)))?;
            a.add(al, 0x7f)?;
            a.sahf()?;
        }
        a.add_instruction(self.instruction())?;
        if self.writes_flags() {
            save_flags(&mut a, rsi)?;
        }
        if self.uses_mxcsr() {
            a.stmxcsr(dword_ptr(rsi + offset_of!(Frame, mxcsr)))?;
            a.ldmxcsr(dword_ptr(rsi + offset_of!(Frame, host_mxcsr)))?;
        }
        if self.is_string() {
            a.vmovups(xmmword_ptr(rsi + offset_of!(Frame, xmm0)), xmm0)?;
            a.mov(qword_ptr(rsi + offset_of!(Frame, rcx)), rcx)?;
        }
        self.store(&mut a, &accesses)?;
        if self.has_vectors() {
            a.vzeroupper()?;
        }
        a.ret()?;
        a.assemble(0)
    }

    fn accesses(&self) -> Vec<OpAccess> {
        // Of the stub's own registers: what is done to the guest's may depend
        // on two being the same.
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(&self.instruction());
        (0..self.0.op_count()).map(|i| info.op_access(i)).collect()
    }

    /// Operand `i` of the vector class in YMM `i` + 1, of the general class in
    /// R8 + `i`, the memory operand's address in R11.
    fn load(&self, a: &mut CodeAssembler, accesses: &[OpAccess]) -> Result<(), IcedError> {
        for (i, register) in self.registers() {
            if accesses[i as usize] == OpAccess::Write {
                continue;
            }
            a.mov(r11, qword_ptr(rdi + 8 * i))?;
            if register.is_gpr() {
                a.mov(general(i), qword_ptr(r11))?;
                continue;
            }
            a.vmovdqu(low(i), xmmword_ptr(r11 + Fpu::XMM))?;
            if register.is_ymm() {
                a.vinsertf128(whole(i), whole(i), xmmword_ptr(r11 + Fpu::UPPER), 1)?;
            }
        }
        if let Some(i) = self.memory() {
            a.mov(r11, qword_ptr(rdi + 8 * i))?;
        }
        Ok(())
    }

    /// The first operand last: it wins if two are the same register.
    fn store(&self, a: &mut CodeAssembler, accesses: &[OpAccess]) -> Result<(), IcedError> {
        let written: Vec<_> = self
            .registers()
            .filter(|&(i, _)| writes(accesses[i as usize]))
            .collect();
        for &(i, register) in written.iter().rev() {
            a.mov(r11, qword_ptr(rdi + 8 * i))?;
            if register.is_gpr() {
                a.mov(qword_ptr(r11), general(i))?;
                continue;
            }
            a.vmovdqu(xmmword_ptr(r11 + Fpu::XMM), low(i))?;
            a.vextractf128(xmmword_ptr(r11 + Fpu::UPPER), whole(i), 1)?;
        }
        Ok(())
    }

    fn instruction(&self) -> Instruction {
        let mut instruction = *self.0;
        for (i, register) in self.registers() {
            let place = if register.is_ymm() {
                Register::YMM0 + VECTORS + i
            } else if register.is_xmm() {
                Register::XMM0 + VECTORS + i
            } else if register.is_gpr64() {
                Register::R8 + i
            } else {
                Register::R8D + i
            };
            instruction.set_op_register(i, place);
        }
        if self.memory().is_some() {
            instruction.set_segment_prefix(Register::None);
            instruction.set_memory_base(Register::R11);
            instruction.set_memory_index(Register::None);
            instruction.set_memory_displacement64(0);
            instruction.set_memory_displ_size(0);
        }
        instruction
    }
}

fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
    )
}

fn low(i: u32) -> AsmRegisterXmm {
    [xmm1, xmm2, xmm3, xmm4][i as usize & 3]
}

fn whole(i: u32) -> AsmRegisterYmm {
    [ymm1, ymm2, ymm3, ymm4][i as usize & 3]
}

fn general(i: u32) -> AsmRegister64 {
    [r8, r9, r10, rcx][i as usize & 3]
}

/// Features of VEX-encoded instructions that the host has, and so does the
/// guest.
pub(crate) fn vex_feature(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    match feature {
        F::AVX => is_x86_feature_detected!("avx"),
        F::AVX2 => is_x86_feature_detected!("avx2"),
        F::FMA => is_x86_feature_detected!("fma"),
        F::F16C => is_x86_feature_detected!("f16c"),
        F::BMI1 => is_x86_feature_detected!("bmi1"),
        F::BMI2 => is_x86_feature_detected!("bmi2"),
        F::AES => is_x86_feature_detected!("aes"),
        F::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        _ => false,
    }
}

/// AVX floating-point instructions: arithmetic, comparison, conversion.
fn uses_mxcsr(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vaddps
            | M::Vaddpd
            | M::Vaddss
            | M::Vaddsd
            | M::Vsubps
            | M::Vsubpd
            | M::Vsubss
            | M::Vsubsd
            | M::Vmulps
            | M::Vmulpd
            | M::Vmulss
            | M::Vmulsd
            | M::Vdivps
            | M::Vdivpd
            | M::Vdivss
            | M::Vdivsd
            | M::Vsqrtps
            | M::Vsqrtpd
            | M::Vsqrtss
            | M::Vsqrtsd
            | M::Vminps
            | M::Vminpd
            | M::Vminss
            | M::Vminsd
            | M::Vmaxps
            | M::Vmaxpd
            | M::Vmaxss
            | M::Vmaxsd
            | M::Vrcpps
            | M::Vrcpss
            | M::Vrsqrtps
            | M::Vrsqrtss
            | M::Vcmpps
            | M::Vcmppd
            | M::Vcmpss
            | M::Vcmpsd
            | M::Vcomiss
            | M::Vcomisd
            | M::Vucomiss
            | M::Vucomisd
            | M::Vaddsubps
            | M::Vaddsubpd
            | M::Vhaddps
            | M::Vhaddpd
            | M::Vhsubps
            | M::Vhsubpd
            | M::Vdpps
            | M::Vdppd
            | M::Vroundps
            | M::Vroundpd
            | M::Vroundss
            | M::Vroundsd
            | M::Vcvtsi2ss
            | M::Vcvtsi2sd
            | M::Vcvtss2si
            | M::Vcvtsd2si
            | M::Vcvttss2si
            | M::Vcvttsd2si
            | M::Vcvtps2pd
            | M::Vcvtpd2ps
            | M::Vcvtss2sd
            | M::Vcvtsd2ss
            | M::Vcvtdq2ps
            | M::Vcvtdq2pd
            | M::Vcvtps2dq
            | M::Vcvttps2dq
            | M::Vcvtpd2dq
            | M::Vcvttpd2dq
    )
}
