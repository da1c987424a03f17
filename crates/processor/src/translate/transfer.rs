//! SYSCALL and SYSRET as themselves.
//!
//! Their handlers note the segments that they load ([`Transfers`]); from then
//! on, until an MSR that they depend on is written, emitted code goes over to
//! the other privilege by itself: segments, flags, table for data, shadow
//! stack, and a look for the target's code.

use super::asm::{Mem, at, cc, host};
use super::control::Behind;
use super::emit::{Cold, Emitter};
use super::flow::Item;
use super::layout::{GUEST_RCX, S0, S1, S2, element, field, register, state};
use super::system::system_flags;
use crate::Vp;
use crate::mmu::{Mmu, Rights};
use crate::state::{Msrs, Segment, State, cr, reg, rflags, seg};
use iced_x86::Mnemonic;
use std::mem::offset_of;

/// What a transfer to another privilege loads.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Transfer {
    /// Not 0: usable.
    ready: u64,
    cs: Segment,
    ss: Segment,
}

/// SYSCALL's and SYSRET's.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Transfers {
    syscall: Transfer,
    sysret: Transfer,
}

/// A part of one of the [`Transfers`].
macro_rules! part {
    ($which:ident, $part:ident) => {
        match field!(transfers) {
            Mem::Vp(offset) => {
                Mem::Vp(offset + offset_of!(Transfers, $which) + offset_of!(Transfer, $part))
            }
            other => other,
        }
    };
}

impl Vp {
    /// What SYSCALL and SYSRET load may have changed.
    pub(crate) fn forget_transfers(&mut self) {
        self.link.transfers.syscall.ready = 0;
        self.link.transfers.sysret.ready = 0;
    }

    /// SYSCALL has been done by its handler.
    pub(crate) fn note_syscall(&mut self) {
        let masked = rflags::AC | rflags::TF;
        let usual = self.mode_key & 0x37 == SUPERVISOR
            && self.state.msr.sfmask & masked == masked
            && self.state.msr.sfmask >> 32 == 0;
        self.link.transfers.syscall = self.noted(usual);
    }

    /// SYSRET to 64-bit code has been done by its handler.
    pub(crate) fn note_sysret(&mut self) {
        self.link.transfers.sysret = self.noted(self.mode_key & 0x37 == USER);
    }

    fn noted(&self, usual: bool) -> Transfer {
        Transfer {
            ready: u64::from(usual && self.state.efer & cr::EFER_SCE != 0),
            cs: self.state.seg[seg::CS],
            ss: self.state.seg[seg::SS],
        }
    }
}

/// [`Vp::mode_key`] of 64-bit code.
const SUPERVISOR: u8 = 2;
/// The same at privilege 3.
const USER: u8 = 2 | 3 << 4;

impl Emitter<'_> {
    /// Emits SYSCALL in user code or SYSRET in supervisor code; `None` for
    /// other forms.
    pub(super) fn transfer(&mut self, item: &Item) -> Option<Behind> {
        match item.instruction.mnemonic() {
            Mnemonic::Syscall if self.context.user => self.syscall(item),
            Mnemonic::Sysretq if !self.context.user => self.sysret(item),
            _ => return None,
        }
        Some(Behind::Nothing)
    }

    /// Leaves it to the handler where [`S0`] is 0.
    fn unless_ready(&mut self, site: u32) {
        let not = self.asm.jump_if_rcx_zero();
        let on = self.asm.jump();
        self.short(not);
        let other = self.asm.jump();
        self.push_cold(Cold::Handle(other, site));
        self.asm.bind(on);
    }

    fn copy_segment(&mut self, number: usize, from: Mem) {
        let to = state(offset_of!(State, seg) + number * size_of::<Segment>());
        for word in 0..size_of::<Segment>() / 8 {
            self.asm.load(S0, element(from, word));
            self.asm.store(element(to, word), S0);
        }
    }

    /// The target's entry for indirect jumps at the other privilege into
    /// [`S1`]; the target is in [`S2`].
    fn find_other(&mut self, user: bool, site: u32) {
        let miss = self.find_target(user);
        self.push_cold(Cold::Handle(miss, site));
        self.asm.load(S1, at(S1, 8));
        self.asm.store(field!(target), S1);
    }

    /// Privilege, mode, and the shadow stack of the other privilege.
    fn go_over(&mut self, user: bool) {
        let (from, to) = (usize::from(!user), usize::from(user));
        let a = &mut self.asm;
        let byte = |a: &mut super::asm::Asm, offset: usize, value: u8| {
            a.with_memory(&[], false, &[0xc6], 0, Mem::Vp(offset), &[value]);
        };
        let cpl = offset_of!(Vp, state) + offset_of!(State, cpl);
        byte(a, cpl, if user { 3 } else { 0 });
        let mode = if user { USER } else { SUPERVISOR };
        byte(a, offset_of!(Vp, mode_key), mode);
        a.load(S0, field!(no_stack_page));
        a.store(field!(stack_page), S0);
        a.store(element(field!(shadows), from), host::RSP);
        a.load(host::RSP, element(field!(shadows), to));
        let user = (to as u32).to_le_bytes();
        a.with_memory(&[], true, &[0xc7], 0, field!(shadow_user), &user);
    }

    fn syscall(&mut self, item: &Item) {
        let mark = self.mark();
        let site = self.site(&item.op, None);
        self.asm.load(S0, part!(syscall, ready));
        self.unless_ready(site);
        let msr = offset_of!(State, msr);
        self.asm.load(S2, state(msr + offset_of!(Msrs, lstar)));
        self.find_other(false, site);
        self.whole_flags(S2);
        let back = self.behind(item);
        let a = &mut self.asm;
        a.constant(GUEST_RCX, back);
        a.store(register(reg::R11), S2);
        a.load(S1, state(msr + offset_of!(Msrs, sfmask)));
        // ANDN R15, R14, R15
        a.raw(&[0xc4, 0x42, 0x88, 0xf2, 0xff]);
        self.store_system_flags();
        self.copy_segment(seg::CS, part!(syscall, cs));
        self.copy_segment(seg::SS, part!(syscall, ss));
        let a = &mut self.asm;
        a.load(S0, element(field!(ac_tables), 0));
        a.store(field!(table), S0);
        a.load(S0, element(field!(ac_sets), 0));
        a.store(data_set(), S0);
        self.go_over(false);
        self.load_status(S2);
        self.asm.jump_through(field!(target));
        self.resume_here(&mark);
    }

    /// The system flags of the image in [`S2`] become the guest's. Uses
    /// [`S0`], and the flags.
    fn store_system_flags(&mut self) {
        let kept = rflags::ALL & !(rflags::ARITH | rflags::RF | rflags::VM);
        let a = &mut self.asm;
        // MOV ECX, R15D; AND ECX, imm32; OR ECX, 2
        a.with_registers(false, &[0x8b], S0, S2);
        a.raw(&[0x81, 0xe1]);
        a.raw(&(kept as u32).to_le_bytes());
        a.raw(&[0x83, 0xc9, rflags::FIXED as u8]);
        a.store(system_flags(), S0);
    }

    fn sysret(&mut self, item: &Item) {
        let mark = self.mark();
        let site = self.site(&item.op, None);
        self.asm.load(S0, part!(sysret, ready));
        self.unless_ready(site);
        // A loop might have no other look.
        self.asm.load(S0, field!(go));
        self.asm.load32(S0, at(S0, 0));
        self.unless_ready(site);
        self.asm.copy(S2, GUEST_RCX);
        self.find_other(true, site);
        let a = &mut self.asm;
        a.load(S2, register(reg::R11));
        // TEST R15D, imm32; the flags are about to be loaded.
        a.raw(&[0x41, 0xf7, 0xc7]);
        a.raw(&((rflags::TF | rflags::AC) as u32).to_le_bytes());
        let other = a.jump_if(cc::NE);
        self.push_cold(Cold::Handle(other, site));
        self.store_system_flags();
        self.copy_segment(seg::CS, part!(sysret, cs));
        self.copy_segment(seg::SS, part!(sysret, ss));
        let a = &mut self.asm;
        a.load(S0, field!(user_table));
        a.store(field!(table), S0);
        let set = (Rights::User as u32).to_le_bytes();
        a.with_memory(&[], true, &[0xc7], 0, data_set(), &set);
        self.go_over(true);
        self.load_status(S2);
        self.asm.jump_through(field!(target));
        self.resume_here(&mark);
    }
}

fn data_set() -> Mem {
    Mem::Vp(offset_of!(Vp, mmu) + offset_of!(Mmu, data_set))
}
