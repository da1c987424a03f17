//! SYSCALL, SYSRET, SYSENTER and SYSEXIT.
//!
//! Intel and AMD differ: Intel has SYSCALL in 64-bit code only, AMD has no
//! SYSENTER in long mode, and only Intel's SYSRET checks RCX. The guest sees
//! the host's vendor, so the vendor decides here too.

use crate::Vp;
use crate::fault::{Step, vector};
use crate::mmu;
use crate::op::Op;
use crate::state::{Segment, cr, reg, rflags, seg};

/// Flat 64-bit code, accessed, present.
const CODE64: u32 = 0xa09b;
/// Flat 32-bit code.
const CODE32: u32 = 0xc09b;
/// Flat writable data.
const DATA: u32 = 0xc093;

fn flat(selector: u16, attributes: u32, dpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: 0xffff_ffff,
        attributes: attributes | u32::from(dpl) << 5,
        selector,
    }
}

impl Vp {
    /// Flat CS and SS at level `cpl`.
    fn flat_segments(&mut self, cs: u16, code: u32, ss: u16, cpl: u8) {
        self.commit_cs(flat(cs, code, cpl));
        self.state.seg[seg::SS] = flat(ss, DATA, cpl);
        self.state.cpl = cpl;
    }
}

/// SYSCALL.
pub(crate) fn syscall(vp: &mut Vp, _op: &Op) -> Step {
    let amd = vp.config.features.is_amd();
    let enabled = vp.state.efer & cr::EFER_SCE != 0 && vp.state.protected();
    if !enabled || (!amd && !vp.state.code64()) {
        return Err(vp.ud());
    }
    let next = vp.state.rip;
    let flags = vp.state.rflags();
    let star = vp.state.msr.star;
    let cs = (star >> 32) as u16 & 0xfffc;
    let trapping = flags & rflags::TF != 0;
    if vp.state.long_mode() {
        let target = if vp.state.code64() {
            vp.state.msr.lstar
        } else {
            vp.state.msr.cstar
        };
        vp.state.gpr[reg::RCX] = next;
        vp.state.gpr[reg::R11] = flags & !rflags::RF;
        vp.state.rip = target;
        vp.state
            .set_rflags(flags & !vp.state.msr.sfmask & !rflags::RF);
        vp.flat_segments(cs, CODE64, cs.wrapping_add(8), 0);
    } else {
        vp.state.gpr[reg::RCX] = next & 0xffff_ffff;
        vp.state.rip = star & 0xffff_ffff;
        vp.state
            .set_rflags(flags & !(rflags::VM | rflags::IF | rflags::RF));
        vp.flat_segments(cs, CODE32, cs.wrapping_add(8), 0);
    }
    if trapping && vp.state.system_flags & rflags::TF == 0 {
        // The mask took effect before the single-step trap was looked at.
        vp.faulted = true;
    }
    vp.mode_changed();
    vp.note_syscall();
    Ok(())
}

/// SYSRET; operand size 8 returns to 64-bit code.
pub(crate) fn sysret(vp: &mut Vp, op: &Op) -> Step {
    let amd = vp.config.features.is_amd();
    let enabled = vp.state.efer & cr::EFER_SCE != 0 && vp.state.protected();
    if !enabled || (!amd && !vp.state.code64()) {
        return Err(vp.ud());
    }
    if vp.state.cpl != 0 {
        return Err(vp.gp(0));
    }
    let target = vp.state.gpr[reg::RCX];
    let to_64 = op.size == 8;
    if to_64 && !amd && !mmu::canonical(target) {
        return Err(vp.gp(0));
    }
    let base = (vp.state.msr.star >> 48) as u16;
    let long = vp.state.long_mode();
    if long {
        let keep = !(rflags::RF | rflags::VM);
        let flags = vp.state.gpr[reg::R11] & keep;
        vp.state.set_rflags(flags);
    } else {
        vp.state.system_flags |= rflags::IF;
    }
    let ss = base.wrapping_add(8) | 3;
    if to_64 {
        vp.flat_segments(base.wrapping_add(16) | 3, CODE64, ss, 3);
        vp.state.rip = target;
    } else {
        vp.flat_segments(base | 3, CODE32, ss, 3);
        vp.state.rip = target & 0xffff_ffff;
    }
    vp.single_step_on_loaded_flag();
    vp.mode_changed();
    if to_64 {
        vp.note_sysret();
    }
    Ok(())
}

/// SYSENTER.
pub(crate) fn sysenter(vp: &mut Vp, _op: &Op) -> Step {
    let long = vp.state.long_mode();
    if long && vp.config.features.is_amd() {
        return Err(vp.ud());
    }
    let cs = vp.state.msr.sysenter_cs as u16 & 0xfffc;
    if !vp.state.protected() || cs == 0 {
        return Err(vp.gp(0));
    }
    vp.state.system_flags &= !(rflags::VM | rflags::IF | rflags::RF);
    vp.flat_segments(
        cs,
        if long { CODE64 } else { CODE32 },
        cs.wrapping_add(8),
        0,
    );
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    vp.state.gpr[reg::RSP] = vp.state.msr.sysenter_esp & mask;
    vp.state.rip = vp.state.msr.sysenter_eip & mask;
    vp.mode_changed();
    Ok(())
}

/// SYSEXIT; operand size 8 returns to 64-bit code.
pub(crate) fn sysexit(vp: &mut Vp, op: &Op) -> Step {
    if vp.state.long_mode() && vp.config.features.is_amd() {
        return Err(vp.ud());
    }
    let cs = vp.state.msr.sysenter_cs as u16 & 0xfffc;
    if !vp.state.protected() || cs == 0 || vp.state.cpl != 0 {
        return Err(vp.gp(0));
    }
    let (rip, rsp) = (vp.state.gpr[reg::RDX], vp.state.gpr[reg::RCX]);
    if op.size == 8 {
        if !mmu::canonical(rip) || !mmu::canonical(rsp) {
            return Err(vp.raise(crate::fault::Fault::new(vector::GP, 0)));
        }
        vp.flat_segments(cs.wrapping_add(32) | 3, CODE64, cs.wrapping_add(40) | 3, 3);
        vp.state.rip = rip;
        vp.state.gpr[reg::RSP] = rsp;
    } else {
        vp.flat_segments(cs.wrapping_add(16) | 3, CODE32, cs.wrapping_add(24) | 3, 3);
        vp.state.rip = rip & 0xffff_ffff;
        vp.state.gpr[reg::RSP] = rsp & 0xffff_ffff;
    }
    vp.mode_changed();
    Ok(())
}
