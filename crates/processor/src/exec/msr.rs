//! RDMSR and WRMSR (SDM 4, AMD APM 2 appendix A).
//!
//! The processor answers for what it owns. Everything else is asked of the
//! outside: the APIC, the Hyper-V MSRs, and the #GP for what does not exist.

use super::msr_memory_types as types;
use crate::Vp;
use crate::fault::{Exit, Step};
use crate::mmu::canonical;
use crate::op::Op;
use crate::state::{cr, reg, seg};

/// MSR numbers.
pub(crate) mod index {
    /// IA32_TIME_STAMP_COUNTER.
    pub(crate) const TSC: u32 = 0x10;
    /// IA32_PLATFORM_ID (Intel).
    pub(crate) const PLATFORM_ID: u32 = 0x17;
    /// IA32_TSC_ADJUST.
    pub(crate) const TSC_ADJUST: u32 = 0x3b;
    /// IA32_BIOS_SIGN_ID, PATCH_LEVEL.
    pub(crate) const MICROCODE: u32 = 0x8b;
    /// IA32_ARCH_CAPABILITIES (Intel).
    pub(crate) const ARCH_CAPABILITIES: u32 = 0x10a;
    /// IA32_SYSENTER_CS.
    pub(crate) const SYSENTER_CS: u32 = 0x174;
    /// IA32_SYSENTER_ESP.
    pub(crate) const SYSENTER_ESP: u32 = 0x175;
    /// IA32_SYSENTER_EIP.
    pub(crate) const SYSENTER_EIP: u32 = 0x176;
    /// IA32_MCG_CAP.
    pub(crate) const MCG_CAP: u32 = 0x179;
    /// IA32_MCG_STATUS.
    pub(crate) const MCG_STATUS: u32 = 0x17a;
    /// IA32_MISC_ENABLE.
    pub(crate) const MISC_ENABLE: u32 = 0x1a0;
    /// IA32_DEBUGCTL.
    pub(crate) const DEBUGCTL: u32 = 0x1d9;
    /// The last-branch MSRs of AMD and the first Intel ones.
    pub(crate) const LAST_BRANCH_FROM: u32 = 0x1db;
    /// The last of them.
    pub(crate) const LAST_INTERRUPT_TO: u32 = 0x1de;
    /// IA32_EFER.
    pub(crate) const EFER: u32 = 0xc000_0080;
    /// IA32_STAR.
    pub(crate) const STAR: u32 = 0xc000_0081;
    /// IA32_LSTAR.
    pub(crate) const LSTAR: u32 = 0xc000_0082;
    /// IA32_CSTAR.
    pub(crate) const CSTAR: u32 = 0xc000_0083;
    /// IA32_FMASK.
    pub(crate) const SFMASK: u32 = 0xc000_0084;
    /// IA32_FS_BASE.
    pub(crate) const FS_BASE: u32 = 0xc000_0100;
    /// IA32_GS_BASE.
    pub(crate) const GS_BASE: u32 = 0xc000_0101;
    /// IA32_KERNEL_GS_BASE.
    pub(crate) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    /// IA32_TSC_AUX.
    pub(crate) const TSC_AUX: u32 = 0xc000_0103;
    /// SYSCFG (AMD).
    pub(crate) const SYSCFG: u32 = 0xc001_0010;
    /// HWCR (AMD).
    pub(crate) const HWCR: u32 = 0xc001_0015;
    /// Top of memory (AMD).
    pub(crate) const TOP_MEM: u32 = 0xc001_001a;
    /// Top of memory above 4 GiB (AMD).
    pub(crate) const TOP_MEM2: u32 = 0xc001_001d;
    /// NB_CFG (AMD).
    pub(crate) const NB_CFG: u32 = 0xc001_001f;
    /// PATCH_LOADER (AMD).
    pub(crate) const PATCH_LOADER: u32 = 0xc001_0020;
    /// Interrupt pending (AMD).
    pub(crate) const INT_PENDING: u32 = 0xc001_0055;
    /// MMIO configuration base (AMD).
    pub(crate) const MMIO_CONFIG: u32 = 0xc001_0058;
    /// VM_CR (AMD): SVM is locked off.
    pub(crate) const VM_CR: u32 = 0xc001_0114;
    /// OS visible workaround length and status (AMD).
    pub(crate) const OSVW_LENGTH: u32 = 0xc001_0140;
    /// See [`OSVW_LENGTH`].
    pub(crate) const OSVW_STATUS: u32 = 0xc001_0141;
    /// LS_CFG (AMD).
    pub(crate) const LS_CFG: u32 = 0xc001_1020;
    /// IC_CFG (AMD).
    pub(crate) const IC_CFG: u32 = 0xc001_1021;
    /// DC_CFG (AMD).
    pub(crate) const DC_CFG: u32 = 0xc001_1022;
    /// BU_CFG2 (AMD).
    pub(crate) const BU_CFG2: u32 = 0xc001_102a;
    /// DE_CFG (AMD).
    pub(crate) const DE_CFG: u32 = 0xc001_1029;
}
use index as msr;

/// DE_CFG: LFENCE waits for all earlier instructions.
const LFENCE_SERIALIZING: u64 = 1 << 1;
/// HWCR: the TSC counts at the P0 frequency, as an invariant one does.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// VM_CR: locked, and SVM disabled.
const VM_CR_OFF: u64 = 1 << 3 | 1 << 4;
/// MISC_ENABLE bits that a guest may change: fast strings, performance
/// monitoring stays off, XD disable is not honoured.
const MISC_ENABLE_WRITABLE: u64 = 1;
/// MISC_ENABLE bits that read 1: no branch trace store, no PEBS.
const MISC_ENABLE_ONES: u64 = 1 << 11 | 1 << 12;
/// ARCH_CAPABILITIES: no Meltdown, no L1TF flush, no SSB, no MDS, no TAA and
/// their kin: an interpreter does not speculate on the guest's behalf.
const ARCH_CAPABILITIES: u64 = 1 << 0
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 24
    | 1 << 26
    | 1 << 27;

/// What became of a write to an owned MSR.
enum Written {
    Done,
    Invalid,
    Foreign,
}

/// RDMSR.
pub(crate) fn rdmsr(vp: &mut Vp, _op: &Op) -> Step {
    if vp.state.cpl != 0 {
        return Err(vp.gp(0));
    }
    let index = vp.state.gpr[reg::RCX] as u32;
    let value = match vp.read_msr(index) {
        Some(value) => value,
        None => vp.answer(Exit::ReadMsr { index })?,
    };
    vp.set_edx_eax(value);
    Ok(())
}

/// WRMSR.
pub(crate) fn wrmsr(vp: &mut Vp, _op: &Op) -> Step {
    if vp.state.cpl != 0 {
        return Err(vp.gp(0));
    }
    let index = vp.state.gpr[reg::RCX] as u32;
    let value = vp.edx_eax();
    match vp.write_owned_msr(index, value) {
        Written::Done => Ok(()),
        Written::Invalid => Err(vp.gp(0)),
        Written::Foreign => vp.answer(Exit::WriteMsr { index, value }).map(|_| ()),
    }
}

impl Vp {
    /// An MSR that the processor owns; `None` for all others.
    pub fn read_msr(&self, index: u32) -> Option<u64> {
        let state = &self.state;
        let owned = &state.msr;
        Some(match index {
            msr::TSC => self.guest_tsc(),
            msr::TSC_ADJUST => owned.tsc_adjust,
            msr::MICROCODE => self.config.features.microcode(),
            msr::SYSENTER_CS => owned.sysenter_cs,
            msr::SYSENTER_ESP => owned.sysenter_esp,
            msr::SYSENTER_EIP => owned.sysenter_eip,
            // No banks.
            msr::MCG_CAP => 0,
            msr::MCG_STATUS => owned.mcg_status,
            msr::MISC_ENABLE => owned.misc_enable | MISC_ENABLE_ONES,
            msr::DEBUGCTL => owned.debugctl,
            msr::LAST_BRANCH_FROM..=msr::LAST_INTERRUPT_TO => 0,
            msr::EFER => state.efer,
            msr::STAR => owned.star,
            msr::LSTAR => owned.lstar,
            msr::CSTAR => owned.cstar,
            msr::SFMASK => owned.sfmask,
            msr::FS_BASE => state.seg[seg::FS].base,
            msr::GS_BASE => state.seg[seg::GS].base,
            msr::KERNEL_GS_BASE => owned.kernel_gs_base,
            msr::TSC_AUX => owned.tsc_aux,
            _ => return types::read(owned, index).or_else(|| self.read_vendor_msr(index)),
        })
    }

    /// MSRs that exist with one vendor only.
    fn read_vendor_msr(&self, index: u32) -> Option<u64> {
        if !self.config.features.is_amd() {
            return match index {
                msr::PLATFORM_ID => Some(0),
                msr::ARCH_CAPABILITIES => Some(ARCH_CAPABILITIES),
                _ => None,
            };
        }
        Some(match index {
            msr::HWCR => HWCR_TSC_FREQ_SEL,
            msr::VM_CR => VM_CR_OFF,
            msr::DE_CFG => LFENCE_SERIALIZING,
            msr::SYSCFG
            | msr::TOP_MEM
            | msr::TOP_MEM2
            | msr::NB_CFG
            | msr::INT_PENDING
            | msr::MMIO_CONFIG
            | msr::OSVW_LENGTH
            | msr::OSVW_STATUS
            | msr::LS_CFG
            | msr::IC_CFG
            | msr::DC_CFG
            | msr::BU_CFG2 => 0,
            _ => return None,
        })
    }

    /// Writes an MSR that the processor owns: `None` for all others,
    /// `Some(false)` where the value is refused (#GP).
    pub fn write_msr(&mut self, index: u32, value: u64) -> Option<bool> {
        match self.write_owned_msr(index, value) {
            Written::Done => Some(true),
            Written::Invalid => Some(false),
            Written::Foreign => None,
        }
    }

    fn write_owned_msr(&mut self, index: u32, value: u64) -> Written {
        self.forget_transfers();
        let valid = match index {
            msr::TSC => {
                // TSC_ADJUST moves along (SDM 3B 18.17.3).
                let delta = value.wrapping_sub(self.guest_tsc());
                self.shift_tsc(delta);
                true
            }
            msr::TSC_ADJUST => {
                let delta = value.wrapping_sub(self.state.msr.tsc_adjust);
                self.shift_tsc(delta);
                true
            }
            // Written with 0 before the level is read.
            msr::MICROCODE => true,
            msr::MCG_CAP => false,
            msr::MCG_STATUS => self.set_if(value & !7 == 0, |m| m.mcg_status = value),
            msr::MISC_ENABLE => {
                self.state.msr.misc_enable = value & MISC_ENABLE_WRITABLE;
                true
            }
            // LBR and BTF alone.
            msr::DEBUGCTL => self.set_if(value & !3 == 0, |m| m.debugctl = value),
            msr::LAST_BRANCH_FROM..=msr::LAST_INTERRUPT_TO => false,
            msr::EFER => self.write_efer(value),
            msr::FS_BASE | msr::GS_BASE => self.write_base_msr(index, value),
            _ => return self.write_other_msr(index, value),
        };
        if valid {
            Written::Done
        } else {
            Written::Invalid
        }
    }

    /// The system-call MSRs, memory types, and one vendor's own.
    fn write_other_msr(&mut self, index: u32, value: u64) -> Written {
        let address = canonical(value);
        let valid = match index {
            msr::SYSENTER_CS => self.set_if(true, |m| m.sysenter_cs = value & 0xffff_ffff),
            msr::SYSENTER_ESP => self.set_if(address, |m| m.sysenter_esp = value),
            msr::SYSENTER_EIP => self.set_if(address, |m| m.sysenter_eip = value),
            msr::STAR => self.set_if(true, |m| m.star = value),
            msr::LSTAR => self.set_if(address, |m| m.lstar = value),
            msr::CSTAR => self.set_if(address, |m| m.cstar = value),
            msr::SFMASK => self.set_if(true, |m| m.sfmask = value & 0xffff_ffff),
            msr::KERNEL_GS_BASE => self.set_if(address, |m| m.kernel_gs_base = value),
            msr::TSC_AUX => self.set_if(value >> 32 == 0, |m| m.tsc_aux = value),
            _ => match types::write(&mut self.state.msr, index, value, self.config.physical_bits) {
                Some(valid) => valid,
                None => return self.write_vendor_msr(index),
            },
        };
        if valid {
            Written::Done
        } else {
            Written::Invalid
        }
    }

    /// One vendor's MSRs: what can be written has no effect here.
    fn write_vendor_msr(&self, index: u32) -> Written {
        match (self.read_vendor_msr(index), index) {
            (_, msr::PATCH_LOADER) if self.config.features.is_amd() => Written::Invalid,
            (Some(_), msr::ARCH_CAPABILITIES | msr::PLATFORM_ID) => Written::Invalid,
            (Some(_), _) => Written::Done,
            (None, _) => Written::Foreign,
        }
    }

    fn set_if(&mut self, valid: bool, set: impl FnOnce(&mut crate::state::Msrs)) -> bool {
        if valid {
            set(&mut self.state.msr);
        }
        valid
    }

    fn shift_tsc(&mut self, delta: u64) {
        self.state.tsc_offset = self.state.tsc_offset.wrapping_add(delta);
        self.state.msr.tsc_adjust = self.state.msr.tsc_adjust.wrapping_add(delta);
    }

    fn write_base_msr(&mut self, index: u32, value: u64) -> bool {
        if !canonical(value) {
            return false;
        }
        let segment = if index == msr::FS_BASE {
            seg::FS
        } else {
            seg::GS
        };
        self.state.seg[segment].base = value;
        true
    }

    fn write_efer(&mut self, value: u64) -> bool {
        let old = self.state.efer;
        let writable =
            cr::EFER_SCE | cr::EFER_LME | cr::EFER_NXE | self.config.features.extra_efer();
        let paging = self.state.cr0 & cr::CR0_PG != 0;
        // LMA is read-only: what is written to it does not matter.
        if value & !(writable | cr::EFER_LMA) != 0 || (paging && (old ^ value) & cr::EFER_LME != 0)
        {
            return false;
        }
        self.state.efer = (value & writable) | (old & cr::EFER_LMA);
        if (old ^ value) & cr::EFER_NXE != 0 {
            self.mmu.flush_all();
        }
        self.mode_changed();
        true
    }
}
