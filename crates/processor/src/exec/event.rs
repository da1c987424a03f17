//! Exceptions, interrupts and software interrupts on their way to a handler.
//!
//! This file decides what is delivered; `event_gate` goes through the IDT.

use crate::Vp;
use crate::exec::event_gate::Delivery;
use crate::fault::{Exit, Fault, Step, StopReason, vector};
use crate::op::Op;
use crate::state::{cr, rflags};
use crate::vp::Event;

/// DR6.BD: a debug register was touched under DR7.GD.
pub(crate) const DR6_BD: u64 = 1 << 13;
/// DR6.BT: task switch.
pub(crate) const DR6_BT: u64 = 1 << 15;
/// DR7.GD: general detect.
pub(crate) const DR7_GD: u64 = 1 << 13;

/// What a second exception makes of a first (SDM 3A table 6-5).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    fn of(vector: u8) -> Self {
        match vector {
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Self::Contributory,
            vector::PF => Self::PageFault,
            vector::DF => Self::DoubleFault,
            _ => Self::Benign,
        }
    }
}

/// The exception pushes an error code.
fn has_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

/// The fault that is delivered when `second` arises while `first` is being
/// delivered; `None` is a triple fault.
fn combine(first: u8, second: Fault) -> Option<Fault> {
    let double = Some(Fault::new(vector::DF, 0));
    match (Class::of(first), Class::of(second.vector)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => None,
        (Class::Contributory, Class::Contributory) => double,
        (Class::PageFault, Class::Contributory | Class::PageFault) => double,
        _ => Some(second),
    }
}

impl Vp {
    /// Delivers an exception; RIP is right: at the instruction, or behind it
    /// for a trap. `Some` is a triple fault.
    pub(crate) fn deliver_fault(&mut self, fault: Fault) -> Option<Exit> {
        if fault.vector == vector::PF {
            self.state.cr2 = fault.address;
        }
        if fault.vector == vector::DB {
            self.enter_debug(fault.dr6);
        }
        let flags = self.pushed_flags(&fault);
        self.deliver_chain(fault, flags)
    }

    /// Delivers an interrupt, an NMI or an injected exception. `Some` is a
    /// triple fault.
    pub(crate) fn deliver_event(&mut self, event: Event) -> Option<Exit> {
        let vector = match event {
            Event::Interrupt(vector) => vector,
            Event::Nmi => vector::NMI,
            Event::Exception { vector, error } => {
                // CR2 and DR6 are the injector's business.
                if vector == vector::DB {
                    self.enter_debug(0);
                }
                let trap = matches!(vector, vector::DB | vector::BP | vector::OF);
                let fault = Fault {
                    trap,
                    ..Fault::new(vector, error)
                };
                let flags = self.pushed_flags(&fault);
                return self.deliver_chain(fault, flags);
            }
        };
        if event == Event::Nmi {
            self.nmi_blocked = true;
        }
        let flags = self.state.rflags();
        let delivery = Delivery {
            vector,
            error: None,
            ext: 1,
            software: false,
            flags,
        };
        match self.deliver(&delivery) {
            Ok(None) => None,
            Ok(Some(second)) => self.deliver_fault(second),
            Err(_) => match self.take_fault() {
                Some(second) => self.deliver_fault(second),
                None => self.shut_down(),
            },
        }
    }

    /// Delivers `fault`, and what goes wrong on the way.
    fn deliver_chain(&mut self, fault: Fault, flags: u64) -> Option<Exit> {
        let mut current = fault;
        let mut flags = flags;
        loop {
            self.delivering = Some(current.vector);
            let error = has_error_code(current.vector).then_some(current.error);
            // A second exception in here is not the program's own doing.
            let delivery = Delivery {
                vector: current.vector,
                error,
                ext: 1,
                software: false,
                flags,
            };
            let second = match self.deliver(&delivery) {
                Ok(None) => {
                    self.delivering = None;
                    self.faulted = true;
                    return None;
                }
                Ok(Some(second)) => {
                    // A task switch had been made: the new task's flags count.
                    flags = self.state.rflags() | rflags::RF;
                    Some(second)
                }
                Err(_) => self.take_fault(),
            };
            if let Some(second) = second.filter(|second| second.vector == vector::PF) {
                // Also when a double fault comes of it.
                self.state.cr2 = second.address;
            }
            let next = second.and_then(|second| combine(current.vector, second));
            let Some(next) = next else {
                return self.shut_down();
            };
            if next.vector == vector::DB {
                self.enter_debug(next.dr6);
            }
            current = next;
        }
    }

    /// The exception that stopped a delivery. Anything else (a stack or a
    /// table in memory-mapped I/O) has no one to answer it: `None`.
    fn take_fault(&mut self) -> Option<Fault> {
        match std::mem::replace(&mut self.stop, StopReason::None) {
            StopReason::Fault(fault) => Some(fault),
            _ => None,
        }
    }

    fn shut_down(&mut self) -> Option<Exit> {
        self.delivering = None;
        self.faulted = true;
        self.shutdown = true;
        Some(Exit::TripleFault)
    }

    /// What a debug exception does to the debug registers (SDM 3B 18.2.3).
    fn enter_debug(&mut self, dr6: u64) {
        if dr6 != 0 {
            self.state.dr6 = (self.state.dr6 & !0xf) | dr6;
        }
        if self.state.dr7 & DR7_GD != 0 {
            self.state.dr7 &= !DR7_GD;
        }
        // LBR and BTF.
        self.state.msr.debugctl &= !3;
    }

    /// RFLAGS as pushed: RF is set for faults, so that an instruction
    /// breakpoint does not strike again, except for the breakpoint itself,
    /// whose handler decides (SDM 3B 18.3.1.1).
    fn pushed_flags(&self, fault: &Fault) -> u64 {
        let breakpoint = fault.vector == vector::DB && fault.dr6 & DR6_BD == 0;
        if fault.trap || breakpoint || fault.vector == vector::DF {
            self.state.rflags()
        } else {
            self.state.rflags() | rflags::RF
        }
    }

    /// A software interrupt out of an instruction, whose end RIP is at.
    fn software_interrupt(&mut self, vector: u8, privileged: bool) -> Step {
        // An instruction that completes leaves RF clear.
        let flags = self.state.rflags() & !rflags::RF;
        let delivery = Delivery {
            vector,
            error: None,
            // INT1 counts as an external event (SDM 3A 6.13).
            ext: u32::from(privileged),
            software: !privileged,
            flags,
        };
        let second = self.deliver(&delivery)?;
        // The handler has TF clear already, and no trap for this instruction.
        self.faulted = true;
        if let Some(second) = second {
            self.deliver_fault(second);
        }
        Ok(())
    }

    /// INT n in virtual-8086 mode through the program's own vector table.
    fn redirected_interrupt(&mut self, vector: u8) -> Step {
        let mut flags = self.state.rflags() & !rflags::RF;
        let virtual_if = self.state.iopl() < 3;
        if virtual_if {
            // IOPL reads as 3, and IF shows VIF.
            flags |= rflags::IOPL;
            flags &= !rflags::IF;
            if flags & rflags::VIF != 0 {
                flags |= rflags::IF;
            }
        }
        let entry = self.load::<u32>(u64::from(vector) * 4)?;
        let mut frame = self.frame_here();
        let cs = self.state.seg[crate::state::seg::CS].selector;
        self.frame_push(&mut frame, flags, 2)?;
        self.frame_push(&mut frame, u64::from(cs), 2)?;
        self.frame_push(&mut frame, self.state.rip, 2)?;
        self.frame_commit(&frame);
        let cleared = if virtual_if { rflags::VIF } else { rflags::IF };
        self.state.system_flags &= !(cleared | rflags::TF | rflags::RF);
        self.load_real_cs((entry >> 16) as u16);
        self.state.rip = u64::from(entry & 0xffff);
        self.faulted = true;
        self.mode_changed();
        Ok(())
    }

    /// The TSS says that `vector` goes to the program's own vector table
    /// (CR4.VME, SDM 3B 21.3): its redirection bit is clear.
    fn redirects(&mut self, vector: u8) -> Result<bool, crate::fault::Stop> {
        if self.state.cr4 & cr::CR4_VME == 0 {
            return Ok(false);
        }
        let tr = self.state.seg[crate::state::seg::TR];
        if tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let map = self.table_load::<u16>(self.wrap_linear(tr.base.wrapping_add(0x66)))?;
        // The 32 bytes before the I/O bitmap.
        let Some(start) = u64::from(map).checked_sub(32) else {
            return Err(self.gp(0));
        };
        let at = start + u64::from(vector / 8);
        if at > u64::from(tr.limit) {
            return Err(self.gp(0));
        }
        let byte = self.table_load::<u8>(self.wrap_linear(tr.base.wrapping_add(at)))?;
        Ok(byte & 1 << (vector % 8) == 0)
    }
}

/// INT n.
pub(crate) fn int_n(vp: &mut Vp, op: &Op) -> Step {
    let vector = op.imm as u8;
    if vp.state.v86() {
        if vp.redirects(vector)? {
            return vp.redirected_interrupt(vector);
        }
        if vp.state.iopl() < 3 {
            return Err(vp.gp(0));
        }
    }
    vp.software_interrupt(vector, false)
}

/// INT3.
pub(crate) fn int3(vp: &mut Vp, _op: &Op) -> Step {
    vp.software_interrupt(vector::BP, false)
}

/// INTO.
pub(crate) fn into(vp: &mut Vp, _op: &Op) -> Step {
    if vp.state.arith.overflow() {
        vp.software_interrupt(vector::OF, false)
    } else {
        Ok(())
    }
}

/// INT1 (ICEBP).
pub(crate) fn int1(vp: &mut Vp, _op: &Op) -> Step {
    vp.software_interrupt(vector::DB, true)?;
    // The breakpoints that a load of SS held back are in this same exception.
    let held_back = vp.take_debug_pending();
    vp.enter_debug(held_back);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_exceptions_combine_as_the_table_says() {
        let gp = Fault::new(vector::GP, 8);
        let pf = Fault::page(0x1000, 2);
        let ud = Fault::new(vector::UD, 0);
        let double = Some(Fault::new(vector::DF, 0));
        assert_eq!(combine(vector::UD, gp), Some(gp));
        assert_eq!(combine(vector::GP, gp), double);
        assert_eq!(combine(vector::GP, pf), Some(pf));
        assert_eq!(combine(vector::PF, pf), double);
        assert_eq!(combine(vector::PF, gp), double);
        assert_eq!(combine(vector::PF, ud), Some(ud));
        assert_eq!(combine(vector::DF, gp), None);
        assert_eq!(combine(vector::DF, pf), None);
        assert_eq!(combine(vector::DF, ud), Some(ud));
    }
}
