//! TLFS register names over the software processor's state.

use hypervisor::processor::InvalidRegister;
use processor::{Segment, State, Vp, cr, rflags, seg};
use tlfs::{HvRegisterName as Name, HvRegisterValue, HvX64SegmentRegister, HvX64TableRegister};

/// Bits of CR4 that can be set from outside.
const CR4_KNOWN: u64 = cr::CR4_VME
    | cr::CR4_PVI
    | cr::CR4_TSD
    | cr::CR4_DE
    | cr::CR4_PSE
    | cr::CR4_PAE
    | cr::CR4_MCE
    | cr::CR4_PGE
    | cr::CR4_PCE
    | cr::CR4_OSFXSR
    | cr::CR4_OSXMMEXCPT
    | cr::CR4_UMIP
    | cr::CR4_FSGSBASE
    | cr::CR4_PCIDE
    | cr::CR4_OSXSAVE
    | cr::CR4_SMEP
    | cr::CR4_SMAP;

/// Bits of EFER that can be set from outside.
const EFER_KNOWN: u64 = cr::EFER_SCE | cr::EFER_LME | cr::EFER_LMA | cr::EFER_NXE;

/// Reads a register; `None` when it is not the processor's.
pub(crate) fn get(vp: &Vp, name: Name) -> Option<HvRegisterValue> {
    let state = vp.state();
    if let Some(index) = offset(name, Name::RAX, 16) {
        return Some(state.gpr[index].into());
    }
    if let Some(index) = offset(name, Name::XMM0, 16) {
        return Some(state.fpu.xmm(index).into());
    }
    if let Some(index) = offset(name, Name::FP_MMX0, 8) {
        let at = processor::Fpu::ST + 16 * index;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&state.fpu.fxsave[at..at + 16]);
        return Some(u128::from_le_bytes(bytes).into());
    }
    if let Some(index) = offset(name, Name::ES, 8) {
        return Some(segment_out(&state.seg[index]).into());
    }
    if let Some(index) = offset(name, Name::DR0, 4) {
        return Some(state.dr[index].into());
    }
    if let Some(index) = offset(name, Name::MTRR_PHYS_BASE0, 8) {
        return Some(state.msr.mtrr_variable[2 * index].into());
    }
    if let Some(index) = offset(name, Name::MTRR_PHYS_MASK0, 8) {
        return Some(state.msr.mtrr_variable[2 * index + 1].into());
    }
    if let Some(index) = offset(name, Name::MTRR_FIX64K00000, 11) {
        return Some(state.msr.mtrr_fixed[index].into());
    }
    plain(state, name)
}

fn plain(state: &State, name: Name) -> Option<HvRegisterValue> {
    let table = |table: &processor::Table| HvX64TableRegister {
        pad: [0; 3],
        limit: table.limit,
        base: table.base,
    };
    let value = match name {
        Name::RIP => state.rip,
        Name::RFLAGS => state.rflags(),
        Name::CR0 => state.cr0,
        Name::CR2 => state.cr2,
        Name::CR3 => state.cr3,
        Name::CR4 => state.cr4,
        Name::XFEM => state.xcr0,
        Name::DR6 => state.dr6,
        Name::DR7 => state.dr7,
        Name::EFER => state.efer,
        Name::IDTR => return Some(table(&state.idtr).into()),
        Name::GDTR => return Some(table(&state.gdtr).into()),
        Name::TSC => processor::tsc().wrapping_add(state.tsc_offset),
        Name::TSC_AUX => state.msr.tsc_aux,
        Name::TSC_ADJUST => state.msr.tsc_adjust,
        Name::KERNEL_GS_BASE => state.msr.kernel_gs_base,
        Name::PAT => state.msr.pat,
        Name::SYSENTER_CS => state.msr.sysenter_cs,
        Name::SYSENTER_EIP => state.msr.sysenter_eip,
        Name::SYSENTER_ESP => state.msr.sysenter_esp,
        Name::STAR => state.msr.star,
        Name::LSTAR => state.msr.lstar,
        Name::CSTAR => state.msr.cstar,
        Name::SFMASK => state.msr.sfmask,
        Name::MTRR_DEF_TYPE => state.msr.mtrr_def_type,
        Name::DEBUG_CTL => state.msr.debugctl,
        Name::FP_CONTROL_STATUS => return Some(fp_control(state).into()),
        Name::XMM_CONTROL_STATUS => {
            return Some((u128::from(state.fpu.mxcsr()) << 64 | 0xffff_u128 << 96).into());
        }
        _ => return None,
    };
    Some(value.into())
}

/// HV_X64_FP_CONTROL_STATUS_REGISTER: FCW, FSW, FTW, reserved, FOP, FIP: the
/// first 16 bytes of the FXSAVE image.
fn fp_control(state: &State) -> u128 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&state.fpu.fxsave[..16]);
    u128::from_le_bytes(bytes)
}

/// Writes a register and brings the processor up to date with it.
pub(crate) fn set(vp: &mut Vp, name: Name, value: HvRegisterValue) -> Result<(), InvalidRegister> {
    if let Some(index) = offset(name, Name::RAX, 16) {
        vp.set_general(index, value.as_u64());
        return Ok(());
    }
    let mut result = Ok(());
    vp.update_state(|state| result = set_in(state, name, value));
    result
}

fn set_in(state: &mut State, name: Name, value: HvRegisterValue) -> Result<(), InvalidRegister> {
    let word = value.as_u64();
    if let Some(index) = offset(name, Name::XMM0, 16) {
        state.fpu.set_xmm(index, value.0);
    } else if let Some(index) = offset(name, Name::FP_MMX0, 8) {
        let at = processor::Fpu::ST + 16 * index;
        state.fpu.fxsave[at..at + 16].copy_from_slice(&value.0.to_le_bytes());
    } else if let Some(index) = offset(name, Name::ES, 8) {
        state.seg[index] = segment_in(value.as_segment(), index);
        if index == seg::SS {
            // As in VMX and SVM: SS.DPL is the privilege level.
            state.cpl = state.seg[seg::SS].dpl();
        }
    } else if let Some(index) = offset(name, Name::DR0, 4) {
        state.dr[index] = word;
    } else if let Some(index) = offset(name, Name::MTRR_PHYS_BASE0, 8) {
        state.msr.mtrr_variable[2 * index] = word;
    } else if let Some(index) = offset(name, Name::MTRR_PHYS_MASK0, 8) {
        state.msr.mtrr_variable[2 * index + 1] = word;
    } else if let Some(index) = offset(name, Name::MTRR_FIX64K00000, 11) {
        state.msr.mtrr_fixed[index] = word;
    } else {
        return set_plain(state, name, value);
    }
    Ok(())
}

fn set_plain(state: &mut State, name: Name, value: HvRegisterValue) -> Result<(), InvalidRegister> {
    let word = value.as_u64();
    let table = |value: HvX64TableRegister| processor::Table {
        base: value.base,
        limit: value.limit,
    };
    let require = |ok: bool| {
        if ok {
            Ok(())
        } else {
            Err(InvalidRegister::InvalidValue)
        }
    };
    match name {
        Name::RIP => state.rip = word,
        Name::RFLAGS => {
            require(word & !(rflags::ALL | rflags::FIXED) == 0)?;
            state.set_rflags(word);
        }
        Name::CR0 => {
            require(word >> 32 == 0 && (word & cr::CR0_PG == 0 || word & cr::CR0_PE != 0))?;
            state.cr0 = word | cr::CR0_ET;
        }
        Name::CR2 => state.cr2 = word,
        Name::CR3 => state.cr3 = word,
        Name::CR4 => {
            require(word & !CR4_KNOWN == 0)?;
            state.cr4 = word;
        }
        Name::XFEM => {
            require(processor::cpuid::valid_xcr0(word))?;
            state.xcr0 = word;
        }
        Name::DR6 => state.dr6 = word,
        Name::DR7 => state.dr7 = word | 0x400,
        Name::EFER => {
            require(word & !EFER_KNOWN == 0)?;
            state.efer = word;
        }
        Name::IDTR => state.idtr = table(value.as_table()),
        Name::GDTR => state.gdtr = table(value.as_table()),
        Name::TSC => state.tsc_offset = word.wrapping_sub(processor::tsc()),
        Name::TSC_AUX => state.msr.tsc_aux = word,
        Name::TSC_ADJUST => state.msr.tsc_adjust = word,
        Name::KERNEL_GS_BASE => state.msr.kernel_gs_base = word,
        Name::PAT => state.msr.pat = word,
        Name::SYSENTER_CS => state.msr.sysenter_cs = word,
        Name::SYSENTER_EIP => state.msr.sysenter_eip = word,
        Name::SYSENTER_ESP => state.msr.sysenter_esp = word,
        Name::STAR => state.msr.star = word,
        Name::LSTAR => state.msr.lstar = word,
        Name::CSTAR => state.msr.cstar = word,
        Name::SFMASK => state.msr.sfmask = word,
        Name::MTRR_DEF_TYPE => state.msr.mtrr_def_type = word,
        Name::DEBUG_CTL => state.msr.debugctl = word,
        Name::FP_CONTROL_STATUS => {
            state.fpu.fxsave[..16].copy_from_slice(&value.0.to_le_bytes());
        }
        Name::XMM_CONTROL_STATUS => {
            let mxcsr = (value.0 >> 64) as u32;
            require(mxcsr & !0xffff == 0)?;
            state.fpu.set_mxcsr(mxcsr);
        }
        _ => return Err(InvalidRegister::UnknownName),
    }
    Ok(())
}

fn segment_out(segment: &Segment) -> HvX64SegmentRegister {
    // The TLFS has no bit for a null segment: not present says the same.
    let attributes = if segment.unusable() {
        0
    } else {
        segment.attributes as u16
    };
    HvX64SegmentRegister {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        attributes,
    }
}

fn segment_in(value: HvX64SegmentRegister, index: usize) -> Segment {
    let mut attributes = u32::from(value.attributes);
    let present = attributes & 1 << 7 != 0;
    if !present && index != seg::CS && index != seg::TR {
        attributes |= Segment::UNUSABLE;
    }
    Segment {
        base: value.base,
        limit: value.limit,
        attributes,
        selector: value.selector,
    }
}

/// The position of `name` in a run of `count` names that begins at `first`.
fn offset(name: Name, first: Name, count: u32) -> Option<usize> {
    let index = name.0.checked_sub(first.0)?;
    (index < count).then_some(index as usize)
}
