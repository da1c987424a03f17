//! Which instruction forms are compared, and why others are not.

use super::Mode;
use iced_x86::{Code, CpuidFeature, EncodingKind, Mnemonic, OpCodeOperandKind, Register};

/// The integer features of x86-64-v3 and what little more the processor offers.
const FEATURES: [CpuidFeature; 23] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL8086_ONLY,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::MSR,
    CpuidFeature::CMOV,
    CpuidFeature::CX8,
    CpuidFeature::CMPXCHG16B,
    CpuidFeature::POPCNT,
    CpuidFeature::MOVBE,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE4_2,
    CpuidFeature::PAUSE,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::FSGSBASE,
    CpuidFeature::PREFETCHW,
    CpuidFeature::LZCNT,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
];

/// All forms of integer instructions that exist in a mode.
pub(super) fn all(mode: Mode) -> Vec<Code> {
    Code::values()
        .filter(|code| {
            let form = code.op_code();
            let exists = match mode {
                Mode::Long => form.mode64(),
                Mode::Compatibility | Mode::Sixteen => form.compatibility_mode(),
            };
            exists
                && form.is_instruction()
                && matches!(form.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
                && code
                    .cpuid_features()
                    .iter()
                    .all(|feature| FEATURES.contains(feature))
                && !has_vector_operand(*code)
        })
        .collect()
}

fn has_vector_operand(code: Code) -> bool {
    use OpCodeOperandKind as K;
    (0..code.op_code().op_count()).any(|i| {
        matches!(
            code.op_code().op_kind(i),
            K::mm_or_mem
                | K::mm_reg
                | K::mm_rm
                | K::xmm_or_mem
                | K::xmm_reg
                | K::xmm_rm
                | K::tr_reg
        )
    })
}

/// Why a form is left out; `None`: it is compared.
pub(super) fn left_out(code: Code, mode: Mode) -> Option<&'static str> {
    use Mnemonic as M;
    if let Some(reason) = segment_form(code) {
        return Some(reason);
    }
    match code.mnemonic() {
        M::Syscall | M::Sysret | M::Sysenter | M::Sysexit => {
            Some("enters the host's kernel: guest tests")
        }
        M::Cpuid | M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rsm => {
            Some("the answer is the platform's: guest tests")
        }
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => {
            Some("the host's kernel answers in the processor's place (UMIP): guest tests")
        }
        M::Wrfsbase | M::Wrgsbase => Some("would take the test thread's own base: guest tests"),
        M::Ldmxcsr | M::Stmxcsr | M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 => {
            Some("vector and x87 state: the tests of exec::fpu")
        }
        M::Int1 => Some("whether RIP stays at INT1 depends on the host's own hypervisor"),
        M::Loadall | M::Umov | M::Ibts | M::Xbts => Some("existed on early processors only"),
        M::Jmpe | M::Montmul => Some("not on x86-64 processors"),
        M::Ud0 if code == Code::Ud0 => Some("early processors read no ModRM byte"),
        _ => other(code, mode),
    }
}

fn segment_form(code: Code) -> Option<&'static str> {
    match code {
        Code::Jmp_m1664 | Code::Call_m1664 | Code::Lss_r64_m1664 | Code::Lgs_r64_m1664 => {
            Some("AMD's processors have no far pointers with 64-bit offsets")
        }
        Code::Popw_FS
        | Code::Popd_FS
        | Code::Popq_FS
        | Code::Lfs_r16_m1616
        | Code::Lfs_r32_m1632
        | Code::Lfs_r64_m1664 => Some("would take the test thread's own base: guest tests"),
        Code::Popw_CS => Some("existed on early processors only"),
        _ => None,
    }
}

fn other(code: Code, mode: Mode) -> Option<&'static str> {
    match code {
        Code::Movsxd_r16_rm16 => {
            return Some("AMD's reads 4 bytes, Intel's 2");
        }
        Code::Reservednop_rm16_r16_0F0D
        | Code::Reservednop_rm32_r32_0F0D
        | Code::Reservednop_rm64_r64_0F0D => {
            return Some("#UD on AMD's processors, nothing on Intel's");
        }
        _ => {}
    }
    let operand_16 = code.op_code().operand_size() == 16;
    let near_branch = code.is_jcc_short_or_near()
        || code.is_jmp_short_or_near()
        || code.is_call_near()
        || code.is_jmp_near_indirect()
        || code.is_call_near_indirect()
        || code.is_loop()
        || code.is_loopcc()
        || code.is_jcx_short()
        || code.mnemonic() == Mnemonic::Ret;
    if mode == Mode::Long && near_branch && operand_16 {
        return Some("AMD's form of an operand size prefix that Intel's decoding ignores");
    }
    None
}

/// Whether an operand of this kind is the memory one of [`OpCodeOperandKind`].
pub(super) fn memory_kind(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(
        kind,
        K::mem | K::mem_offs | K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem
    )
}

/// A register that a form names itself.
pub(super) fn fixed_register(kind: OpCodeOperandKind) -> Option<Register> {
    use OpCodeOperandKind as K;
    Some(match kind {
        K::al => Register::AL,
        K::cl => Register::CL,
        K::ax => Register::AX,
        K::dx => Register::DX,
        K::eax => Register::EAX,
        K::rax => Register::RAX,
        K::es => Register::ES,
        K::cs => Register::CS,
        K::ss => Register::SS,
        K::ds => Register::DS,
        K::fs => Register::FS,
        K::gs => Register::GS,
        _ => return None,
    })
}
