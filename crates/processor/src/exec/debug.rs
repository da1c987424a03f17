//! Debug registers: MOV DRn, breakpoints on code, data and I/O (SDM 3B
//! chapter 18).

use super::event::{DR6_BD, DR7_GD};
use crate::Vp;
use crate::fault::{Fault, Step, vector};
use crate::mmu::Access;
use crate::op::Op;
use crate::state::{State, cr, rflags, seg};
use crate::vp::attention;

/// DR6: single step.
const DR6_BS: u64 = 1 << 14;
/// DR6 bits that always read 1.
const DR6_ONES: u64 = 0xffff_0ff0;
/// DR6 bits that can be written.
const DR6_WRITABLE: u64 = 0xe00f;
/// DR7 bits that always read 1.
const DR7_ONES: u64 = 0x400;
/// DR7 bits that can be written: bits 11, 12, 14 and 15 are reserved.
const DR7_WRITABLE: u64 = 0xffff_23ff;

/// DR7's enable bits, local and global.
const DR7_ENABLED: u64 = 0xff;

/// R/W field: instruction execution.
const ON_EXECUTE: u64 = 0;
/// R/W field: data writes.
const ON_WRITE: u64 = 1;
/// R/W field: I/O, with CR4.DE.
const ON_IO: u64 = 2;
/// R/W field: data reads and writes.
const ON_ACCESS: u64 = 3;

/// DR7's fields for one breakpoint, if it is enabled: R/W and length in bytes.
fn breakpoint(state: &State, index: usize) -> Option<(u64, u64)> {
    if state.dr7 >> (2 * index) & 3 == 0 {
        return None;
    }
    let fields = state.dr7 >> (16 + 4 * index);
    let length = match fields >> 2 & 3 {
        0 => 1,
        1 => 2,
        2 => 8,
        _ => 4,
    };
    Some((fields & 3, length))
}

/// A breakpoint's naturally aligned range shares a byte with an access.
fn overlaps(address: u64, length: u64, at: u64, size: u64) -> bool {
    let first = address & !(length - 1);
    // In differences, so that ranges at the top of the space do not wrap.
    at.wrapping_sub(first) < length || first.wrapping_sub(at) < size
}

impl Vp {
    /// DR7 enables an instruction breakpoint.
    pub(crate) fn code_breakpoints(&self) -> bool {
        self.state.dr7 & DR7_ENABLED != 0
            && (0..4).any(|i| breakpoint(&self.state, i).is_some_and(|(on, _)| on == ON_EXECUTE))
    }

    /// The DR6 bits of the instruction breakpoints at RIP, if there are any.
    /// Breakpoints that match but are not enabled show as well.
    pub(crate) fn code_breakpoint_hit(&self) -> Option<u64> {
        let rip = if self.state.code64() {
            self.state.rip
        } else {
            self.wrap_linear(self.state.seg[seg::CS].base.wrapping_add(self.state.rip))
        };
        let mut hit = 0;
        for (i, address) in self.state.dr.iter().enumerate() {
            if breakpoint(&self.state, i).is_some_and(|(on, _)| on == ON_EXECUTE) && *address == rip
            {
                hit |= 1 << i;
            }
        }
        (hit != 0).then_some(hit)
    }

    /// DR7 enables a data breakpoint: every data access must be looked at.
    pub(crate) fn data_watchpoints(&self) -> bool {
        self.state.dr7 & DR7_ENABLED != 0
            && (0..4).any(|i| {
                breakpoint(&self.state, i).is_some_and(|(on, _)| matches!(on, ON_WRITE | ON_ACCESS))
            })
    }

    /// Notes the data breakpoints that an access meets; #DB comes behind the
    /// instruction.
    pub(crate) fn watch(&mut self, linear: u64, size: u64, access: Access) {
        let mut hit = 0;
        for i in 0..4 {
            let Some((on, length)) = breakpoint(&self.state, i) else {
                continue;
            };
            let wanted = match access {
                Access::Read => on == ON_ACCESS,
                Access::Write => matches!(on, ON_WRITE | ON_ACCESS),
                Access::Execute => false,
            };
            if wanted && overlaps(self.state.dr[i], length, linear, size) {
                hit |= 1 << i;
            }
        }
        self.report(hit);
    }

    /// Notes the I/O breakpoints that an access to a port meets.
    pub(crate) fn watch_port(&mut self, port: u16, size: u8) {
        if self.state.dr7 & DR7_ENABLED == 0 || self.state.cr4 & cr::CR4_DE == 0 {
            return;
        }
        let mut hit = 0;
        for i in 0..4 {
            let Some((ON_IO, length)) = breakpoint(&self.state, i) else {
                continue;
            };
            if overlaps(self.state.dr[i], length, u64::from(port), u64::from(size)) {
                hit |= 1 << i;
            }
        }
        self.report(hit);
    }

    fn report(&mut self, hit: u64) {
        if hit != 0 {
            self.debug_pending |= hit;
            self.set_attention(attention::DEBUG, true);
            // Leave the block behind this instruction.
            self.code_written = true;
        }
    }

    /// Takes the DR6 bits of the traps that wait for the end of the
    /// instruction.
    pub(crate) fn take_debug_pending(&mut self) -> u64 {
        self.set_attention(attention::DEBUG, false);
        std::mem::take(&mut self.debug_pending)
    }

    /// SYSRET traps on TF as it loads it, where other instructions trap on TF
    /// as they find it: a SYSCALL that is stepped over ends behind itself.
    pub(crate) fn single_step_on_loaded_flag(&mut self) {
        if self.state.system_flags & rflags::TF != 0 {
            self.report(DR6_BS);
        } else if self.attention & attention::SINGLE_STEP != 0 {
            // TF was set before, and gives no trap any more.
            self.faulted = true;
        }
    }

    /// The checks of MOV to and from a debug register; the register's number
    /// without its alias.
    fn debug_register(&mut self, number: u8) -> Result<u8, crate::fault::Stop> {
        let alias = matches!(number, 4 | 5);
        if number > 7 || (alias && self.state.cr4 & cr::CR4_DE != 0) {
            return Err(self.ud());
        }
        if self.state.cpl != 0 {
            return Err(self.gp(0));
        }
        if self.state.dr7 & DR7_GD != 0 {
            let fault = Fault {
                dr6: DR6_BD,
                ..Fault::new(vector::DB, 0)
            };
            return Err(self.raise(fault));
        }
        Ok(if alias { number + 2 } else { number })
    }
}

/// MOV r, DRn.
pub(crate) fn mov_from_debug(vp: &mut Vp, op: &Op) -> Step {
    let value = match vp.debug_register(op.dst)? {
        n @ 0..=3 => vp.state.dr[usize::from(n)],
        6 => vp.state.dr6,
        _ => vp.state.dr7,
    };
    vp.set_gpr(op.size, op.src, value);
    Ok(())
}

/// MOV DRn, r.
pub(crate) fn mov_to_debug(vp: &mut Vp, op: &Op) -> Step {
    let number = vp.debug_register(op.dst)?;
    let value = vp.gpr(op.size, op.src);
    if number >= 6 && value >> 32 != 0 {
        return Err(vp.gp(0));
    }
    match number {
        n @ 0..=3 => vp.state.dr[usize::from(n)] = value,
        6 => vp.state.dr6 = (value & DR6_WRITABLE) | DR6_ONES,
        _ => vp.state.dr7 = (value & DR7_WRITABLE) | DR7_ONES,
    }
    vp.mode_changed();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_overlap_by_any_byte_and_breakpoints_are_aligned() {
        assert!(overlaps(0x1000, 4, 0x1003, 1));
        assert!(overlaps(0x1000, 4, 0xfff, 2));
        assert!(!overlaps(0x1000, 4, 0x1004, 8));
        assert!(!overlaps(0x1000, 1, 0xffe, 2));
        // The low address bits are ignored.
        assert!(overlaps(0x1002, 4, 0x1000, 1));
        assert!(overlaps(u64::MAX, 1, u64::MAX - 1, 2));
    }

    #[test]
    fn only_enabled_breakpoints_count() {
        let mut state = State::power_on();
        state.dr7 = 0x400 | 0x000d_0000;
        assert_eq!(breakpoint(&state, 0), None);
        state.dr7 |= 2;
        assert_eq!(breakpoint(&state, 0), Some((ON_WRITE, 4)));
    }
}
