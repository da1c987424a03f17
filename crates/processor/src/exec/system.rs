//! Processor control: HLT, CPUID, time-stamp counter, TLB and cache
//! management, segment bases, hypercalls.

use crate::Vp;
use crate::fault::{Completion, Exit, Step, Stop, StopReason};
use crate::host;
use crate::mmu::{self, Access, PAGE_MASK};
use crate::op::{Address, Op};
use crate::state::{cr, reg, seg};

/// How many PAUSEs pass before the host's processor is given to others.
const PAUSES_PER_YIELD: u32 = 64;

impl Vp {
    fn check_cpl0(&mut self) -> Step {
        if self.state.cpl != 0 {
            Err(self.gp(0))
        } else {
            Ok(())
        }
    }

    /// The guest's time-stamp counter.
    pub(crate) fn guest_tsc(&self) -> u64 {
        let now = self.record.borrow_mut().value(host::tsc);
        now.wrapping_add(self.state.tsc_offset)
    }

    /// EDX:EAX, zero-extended.
    pub(crate) fn set_edx_eax(&mut self, value: u64) {
        self.state.gpr[reg::RAX] = value & 0xffff_ffff;
        self.state.gpr[reg::RDX] = value >> 32;
    }

    /// EDX:EAX as one value.
    pub(crate) fn edx_eax(&self) -> u64 {
        self.state.gpr[reg::RAX] & 0xffff_ffff | self.state.gpr[reg::RDX] << 32
    }
}

/// HLT.
pub(crate) fn hlt(vp: &mut Vp, _op: &Op) -> Step {
    vp.check_cpl0()?;
    vp.stop = StopReason::Halted;
    Err(Stop)
}

/// CPUID.
pub(crate) fn cpuid(vp: &mut Vp, _op: &Op) -> Step {
    let leaf = vp.state.gpr[reg::RAX] as u32;
    let subleaf = vp.state.gpr[reg::RCX] as u32;
    let mut default = vp.config.features.cpuid(leaf, subleaf, &vp.state);
    if leaf == 0x8000_0008 {
        default[0] = (default[0] & !0xff) | vp.config.physical_bits;
    }
    let answer = vp.answer_raw(Exit::Cpuid {
        leaf,
        subleaf,
        default,
    })?;
    let [eax, ebx, ecx, edx] = match answer {
        Completion::Cpuid(values) => values,
        _ => default,
    };
    vp.state.gpr[reg::RAX] = u64::from(eax);
    vp.state.gpr[reg::RBX] = u64::from(ebx);
    vp.state.gpr[reg::RCX] = u64::from(ecx);
    vp.state.gpr[reg::RDX] = u64::from(edx);
    Ok(())
}

/// VMCALL and VMMCALL, whichever the guest was built for.
pub(crate) fn hypercall(vp: &mut Vp, _op: &Op) -> Step {
    vp.answer_raw(Exit::Hypercall).map(|_| ())
}

fn check_tsd(vp: &mut Vp) -> Step {
    if vp.state.cr4 & cr::CR4_TSD != 0 && vp.state.cpl != 0 {
        return Err(vp.gp(0));
    }
    Ok(())
}

/// RDTSC.
pub(crate) fn rdtsc(vp: &mut Vp, _op: &Op) -> Step {
    check_tsd(vp)?;
    let now = vp.guest_tsc();
    vp.set_edx_eax(now);
    Ok(())
}

/// RDTSCP.
pub(crate) fn rdtscp(vp: &mut Vp, op: &Op) -> Step {
    rdtsc(vp, op)?;
    vp.state.gpr[reg::RCX] = vp.state.msr.tsc_aux & 0xffff_ffff;
    Ok(())
}

/// RDPID.
pub(crate) fn rdpid(vp: &mut Vp, op: &Op) -> Step {
    if !vp.config.features.rdpid() {
        return Err(vp.ud());
    }
    let size = if vp.state.code64() { 8 } else { 4 };
    vp.set_gpr(size, op.src, vp.state.msr.tsc_aux & 0xffff_ffff);
    Ok(())
}

/// RDPMC: there are no counters.
pub(crate) fn rdpmc(vp: &mut Vp, _op: &Op) -> Step {
    Err(vp.gp(0))
}

/// RSM outside system management mode, and MONITOR and MWAIT, which are not
/// offered.
pub(crate) fn undefined(vp: &mut Vp, _op: &Op) -> Step {
    Err(vp.ud())
}

/// Hints that nothing here takes.
pub(crate) fn no_operation(_vp: &mut Vp, _op: &Op) -> Step {
    Ok(())
}

/// WBINVD and INVD: memory is the host's, and coherent.
pub(crate) fn wbinvd(vp: &mut Vp, _op: &Op) -> Step {
    vp.check_cpl0()
}

/// PAUSE.
pub(crate) fn pause(vp: &mut Vp, _op: &Op) -> Step {
    vp.pauses = vp.pauses.wrapping_add(1);
    if vp.pauses.is_multiple_of(PAUSES_PER_YIELD) {
        // Likely a lock whose holder wants to run on this host processor.
        std::thread::yield_now();
    }
    Ok(())
}

/// INVLPG.
pub(crate) fn invlpg(vp: &mut Vp, op: &Op) -> Step {
    vp.check_cpl0()?;
    let offset = vp.effective(op);
    let linear = match op.address {
        Address::Flat64 => offset,
        _ => {
            let base = vp.state.seg[usize::from(op.segment)].base;
            vp.wrap_linear(base.wrapping_add(offset))
        }
    };
    if mmu::canonical(linear) || !vp.state.long_mode() {
        vp.mmu.flush_page(linear);
    }
    Ok(())
}

/// INVPCID (SDM 2A): one address, one PCID, everything, everything but global
/// pages.
pub(crate) fn invpcid(vp: &mut Vp, op: &Op) -> Step {
    if !vp.config.features.invpcid() {
        return Err(vp.ud());
    }
    if vp.state.v86() {
        return Err(vp.gp(0));
    }
    vp.check_cpl0()?;
    let size = if vp.state.code64() { 8 } else { 4 };
    let kind = vp.gpr(size, op.dst);
    let at = vp.linear(op, 16, Access::Read)?;
    let mut bytes = [0; 16];
    vp.load_bytes(at, &mut bytes)?;
    let descriptor = u128::from_le_bytes(bytes);
    let (pcid, linear) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcide = vp.state.cr4 & cr::CR4_PCIDE != 0;
    let bad_pcid = kind < 2 && pcid != 0 && !pcide;
    let bad_address = kind == 0 && !mmu::canonical(linear);
    if kind > 3 || pcid & !PAGE_MASK != 0 || bad_pcid || bad_address {
        return Err(vp.gp(0));
    }
    match kind {
        0 => vp.mmu.flush_page(linear),
        1 if pcide => {
            let current = vp.state.cr3 & PAGE_MASK == pcid;
            vp.mmu.flush_pcid(pcid as u16, current);
        }
        1 => vp.mmu.new_address_space(None),
        _ => vp.mmu.flush_all(),
    }
    Ok(())
}

/// SWAPGS.
pub(crate) fn swapgs(vp: &mut Vp, _op: &Op) -> Step {
    vp.check_cpl0()?;
    let gs = &mut vp.state.seg[seg::GS].base;
    std::mem::swap(gs, &mut vp.state.msr.kernel_gs_base);
    Ok(())
}

fn check_fsgsbase(vp: &mut Vp) -> Step {
    if vp.state.cr4 & cr::CR4_FSGSBASE == 0 {
        return Err(vp.ud());
    }
    Ok(())
}

/// RDFSBASE and RDGSBASE; the segment is in `aux`.
pub(crate) fn read_base(vp: &mut Vp, op: &Op) -> Step {
    check_fsgsbase(vp)?;
    vp.set_gpr(op.size, op.src, vp.state.seg[usize::from(op.aux)].base);
    Ok(())
}

/// WRFSBASE and WRGSBASE; the segment is in `aux`.
pub(crate) fn write_base(vp: &mut Vp, op: &Op) -> Step {
    check_fsgsbase(vp)?;
    let base = vp.gpr(op.size, op.src);
    if !mmu::canonical(base) {
        return Err(vp.gp(0));
    }
    vp.state.seg[usize::from(op.aux)].base = base;
    Ok(())
}
