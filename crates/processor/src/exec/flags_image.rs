//! RFLAGS as programs push, pop and change them: PUSHF, POPF, CLI, STI, CLD
//! and the like are told apart by privilege (SDM 2B "POPF", SDM 3B 21.4).

use crate::Vp;
use crate::fault::Step;
use crate::op::Op;
use crate::state::{State, cr, rflags};
use crate::vp::attention;

/// The flags that every program may change.
pub(crate) const BASIC: u64 = rflags::ARITH | rflags::TF | rflags::DF | rflags::NT;

/// Takes the `writable` flags from an image.
pub(crate) fn merge(state: &mut State, image: u64, writable: u64) {
    let old = state.rflags();
    state.set_rflags((old & !writable) | (image & writable));
}

/// PUSHF, PUSHFD and PUSHFQ.
pub(crate) fn pushf(vp: &mut Vp, op: &Op) -> Step {
    let mut image = vp.state.rflags() & !(rflags::VM | rflags::RF);
    if vp.state.v86() && vp.state.iopl() < 3 {
        if vp.state.cr4 & cr::CR4_VME == 0 || op.size != 2 {
            return Err(vp.gp(0));
        }
        // The virtual interrupt flag shows as IF, and IOPL as 3.
        image = (image & !rflags::IF) | rflags::IOPL;
        if image & rflags::VIF != 0 {
            image |= rflags::IF;
        }
    }
    vp.push(image, op.size)
}

/// POPF, POPFD and POPFQ.
pub(crate) fn popf(vp: &mut Vp, op: &Op) -> Step {
    let trusted = !vp.state.v86() || vp.state.iopl() == 3;
    if !trusted && (vp.state.cr4 & cr::CR4_VME == 0 || op.size != 2) {
        return Err(vp.gp(0));
    }
    let mut frame = vp.frame_here();
    let mut image = vp.frame_peek(&frame, 0, op.size)?;
    let mut writable = BASIC;
    if trusted {
        writable |= popped_flags(&vp.state, op.size);
    } else {
        let pending = vp.state.system_flags & rflags::VIP != 0;
        if image & rflags::TF != 0 || (pending && image & rflags::IF != 0) {
            return Err(vp.gp(0));
        }
        image &= !rflags::VIF;
        if image & rflags::IF != 0 {
            image |= rflags::VIF;
        }
        writable |= rflags::VIF;
    }
    frame.drop_bytes(u64::from(op.size));
    vp.frame_commit(&frame);
    merge(&mut vp.state, image, writable);
    // POPF leaves RF clear.
    vp.state.system_flags &= !rflags::RF;
    vp.mode_changed();
    Ok(())
}

/// What POPF may change beyond [`BASIC`], outside the virtual-8086 extensions.
fn popped_flags(state: &State, size: u8) -> u64 {
    let mut writable = 0;
    if size > 2 {
        writable |= rflags::AC | rflags::ID;
    }
    if state.cpl <= state.iopl() {
        writable |= rflags::IF;
    }
    // Real mode has CPL 0; virtual-8086 mode has CPL 3.
    if state.cpl == 0 {
        writable |= rflags::IOPL;
    }
    writable
}

/// How the running code may change IF.
enum IfAccess {
    /// IF itself.
    Real,
    /// VIF in its place.
    Virtual,
    /// Not at all.
    Denied,
}

fn if_access(state: &State) -> IfAccess {
    if !state.protected() || state.iopl() >= state.cpl {
        return IfAccess::Real;
    }
    let virtual_flag = if state.v86() {
        state.cr4 & cr::CR4_VME != 0
    } else {
        state.cr4 & cr::CR4_PVI != 0 && state.cpl == 3
    };
    if virtual_flag {
        IfAccess::Virtual
    } else {
        IfAccess::Denied
    }
}

/// CLI.
pub(crate) fn cli(vp: &mut Vp, _op: &Op) -> Step {
    match if_access(&vp.state) {
        IfAccess::Real => vp.state.system_flags &= !rflags::IF,
        IfAccess::Virtual => vp.state.system_flags &= !rflags::VIF,
        IfAccess::Denied => return Err(vp.gp(0)),
    }
    Ok(())
}

/// STI: interrupts stay off for one more instruction.
pub(crate) fn sti(vp: &mut Vp, _op: &Op) -> Step {
    match if_access(&vp.state) {
        IfAccess::Real => {
            if vp.state.system_flags & rflags::IF == 0 {
                vp.state.system_flags |= rflags::IF;
                vp.set_attention(attention::SHADOW, true);
            }
        }
        IfAccess::Virtual if vp.state.system_flags & rflags::VIP == 0 => {
            vp.state.system_flags |= rflags::VIF;
        }
        _ => return Err(vp.gp(0)),
    }
    Ok(())
}

/// CLAC.
pub(crate) fn clac(vp: &mut Vp, _op: &Op) -> Step {
    set_ac(vp, 0)
}

/// STAC.
pub(crate) fn stac(vp: &mut Vp, _op: &Op) -> Step {
    set_ac(vp, rflags::AC)
}

fn set_ac(vp: &mut Vp, ac: u64) -> Step {
    if vp.state.cpl != 0 {
        return Err(vp.ud());
    }
    vp.state.system_flags = (vp.state.system_flags & !rflags::AC) | ac;
    // Only the rights of data accesses follow from it.
    vp.data_rights_changed();
    Ok(())
}
