//! Rust functions that emitted code calls.
//!
//! They run on the host's own stack, with the guest's registers in the state.
//! Each returns the address of the code to go on with, or 0 to leave.

use super::emit::{MissedAccess, Site};
use super::tlb::Filling;
use super::units::Unit;
use crate::Vp;
use crate::mmu::{self, Access, Target};
use crate::state::reg;

/// The processor that emitted code passed.
///
/// # Safety
///
/// `vp` must be what [`super::Vp::enter`] put into the link, and nothing else
/// may use the processor meanwhile.
unsafe fn processor<'a>(vp: *mut Vp) -> &'a mut Vp {
    // SAFETY: as demanded; `enter` holds the processor exclusively, and
    // does nothing but wait for the code that calls here.
    unsafe { &mut *vp }
}

/// An access had no translation.
pub(super) unsafe extern "sysv64" fn access(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: called by emitted code only, with the link's pointer.
    let vp = unsafe { processor(vp) };
    vp.peer.leave();
    let Some(site) = vp.site(number) else {
        return 0;
    };
    if let Some(missed) = site.access
        && vp.fill_fast(&missed)
    {
        return vp.go_on(&site, site.retry, site.op.offset.into());
    }
    vp.handle_site(&site)
}

/// An instruction is left to its handler.
pub(super) unsafe extern "sysv64" fn handle(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: as in `access`.
    let vp = unsafe { processor(vp) };
    vp.peer.leave();
    let Some(site) = vp.site(number) else {
        return 0;
    };
    vp.handle_site(&site)
}

/// Vector registers are wanted.
pub(super) unsafe extern "sysv64" fn vectors(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: as in `access`.
    let vp = unsafe { processor(vp) };
    vp.peer.leave();
    vp.want(number, Unit::Vectors)
}

/// x87 registers are wanted.
pub(super) unsafe extern "sysv64" fn x87(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: as in `access`.
    let vp = unsafe { processor(vp) };
    vp.peer.leave();
    vp.want(number, Unit::X87)
}

/// Upper halves of vector registers are wanted.
pub(super) unsafe extern "sysv64" fn upper(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: as in `access`.
    let vp = unsafe { processor(vp) };
    vp.peer.leave();
    vp.want(number, Unit::Upper)
}

/// A return agreed with what lies above the empty shadow stack, which holds
/// no canonical address: the interpreter faults.
pub(super) unsafe extern "sysv64" fn bottom(vp: *mut Vp, _number: u64) -> u64 {
    // SAFETY: as in `access`.
    let vp = unsafe { processor(vp) };
    vp.peer.leave();
    vp.state.rip = vp.link.target;
    0
}

impl Vp {
    /// The site, with what emission knows there noted in the state.
    fn site(&mut self, number: u64) -> Option<Site> {
        let translator = self.translator.as_ref()?;
        let site = translator.numbered.sites.get(number as usize).copied()?;
        if site.pointer != 0 {
            let at = site.start.wrapping_add(u64::from(site.pointer - 1));
            self.state.fpu.set_instruction_pointer(at);
        }
        Some(site)
    }

    fn want(&mut self, number: u64, unit: Unit) -> u64 {
        let Some(mut site) = self.site(number) else {
            return 0;
        };
        let at = u64::from(site.op.offset);
        if self.place_unit(unit) {
            site.held = site.held.with(unit);
            return self.go_on(&site, site.retry, at);
        }
        // The interpreter knows what is to be done.
        self.state.rip = site.start.wrapping_add(at);
        self.interpret_next();
        0
    }

    /// Goes back into emitted code of a site; `at` from the region's start is
    /// the instruction there. Leaves if what the code relies on is not usable
    /// any more.
    fn go_on(&mut self, site: &Site, code: u64, at: u64) -> u64 {
        if !self.renew_units(site.held) {
            self.state.rip = site.start.wrapping_add(at);
            return 0;
        }
        self.choose_table();
        self.go_inside();
        code
    }

    /// Does a site's instruction by its handler.
    fn handle_site(&mut self, site: &Site) -> u64 {
        let (op, start) = (&site.op, site.start);
        self.state.gpr[reg::BLOCK_RIP] = start;
        self.faulted = false;
        let before = (self.mode_key, self.mmu.data_set, self.mmu.generation);
        if op.is_last() {
            self.state.rip = start.wrapping_add(op.end());
        }
        if (op.run)(self, op).is_err() {
            let exit = self.stopped_at(op, start);
            self.left(exit);
            return 0;
        }
        if op.is_last() {
            self.code_written = false;
            return 0;
        }
        let after = (self.mode_key, self.mmu.data_set, self.mmu.generation);
        if self.code_written || self.attention != 0 || before != after || self.interrupted() {
            self.code_written = false;
            self.state.rip = start.wrapping_add(op.end());
            return 0;
        }
        self.go_on(site, site.resume, op.end())
    }

    /// Gives an access a translation, if its memory can be used directly.
    fn fill_fast(&mut self, missed: &MissedAccess) -> bool {
        let address = &missed.address;
        let part = |number: Option<u8>| number.map_or(0, |n| self.state.gpr[usize::from(n) & 15]);
        let index = address.index.map_or(0, |(n, scale)| part(Some(n)) << scale);
        let segment = address
            .segment
            .map_or(0, |n| self.state.seg[usize::from(n) & 7].base);
        let linear = part(address.base)
            .wrapping_add(index)
            .wrapping_add(address.displacement as u64)
            .wrapping_add(segment);
        let crosses = (linear & mmu::PAGE_MASK) + u64::from(missed.size) > 0x1000;
        if crosses || linear & u64::from(missed.aligned) != 0 || !mmu::canonical(linear) {
            return false;
        }
        let usable = |found: &(_, _, bool, _)| !missed.write || found.2;
        let found = match self.mmu.cached(linear).filter(usable) {
            Some(found) => Some(found),
            None => self.walk_fast(linear, missed.write),
        };
        let Some((host, page, writable, large)) = found else {
            return false;
        };
        let write = writable && !self.mmu.code.is_code(page);
        if missed.write && !write {
            return false;
        }
        let table = self.choose_table();
        let Some(fast) = &mut self.mmu.fast else {
            return false;
        };
        fast.fill(
            table,
            &Filling {
                linear,
                host,
                page,
                write,
                large,
            },
        );
        true
    }

    fn walk_fast(&mut self, linear: u64, write: bool) -> Option<(*mut u8, u32, bool, bool)> {
        let access = if write { Access::Write } else { Access::Read };
        let rights = mmu::data_rights(&self.state);
        match self.mmu.resolve(&self.state, linear, access, rights) {
            Ok(Target::Ram(..)) => self.mmu.cached(linear),
            _ => None,
        }
    }
}
