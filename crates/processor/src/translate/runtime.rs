//! Rust functions that emitted code calls.
//!
//! They run on the host's own stack, with the guest's registers in the state.
//! Each returns the address of the code to go on with, or 0 to leave.

use super::emit::{Address, MissedAccess, Site};
use super::tlb::Filling;
use super::units::{Unit, Units};
use crate::Vp;
use crate::mmu::{self, Access, Target};
use crate::state::reg;

/// The processor that emitted code passed.
///
/// # Safety
///
/// `vp` must be what [`super::Vp::enter`] put into the link, and nothing else
/// may use the processor meanwhile.
pub(super) unsafe fn processor<'a>(vp: *mut Vp) -> &'a mut Vp {
    // SAFETY: as demanded; `enter` holds the processor exclusively, and
    // does nothing but wait for the code that calls here.
    unsafe { &mut *vp }
}

/// An access had no translation.
pub(super) unsafe extern "sysv64" fn access(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: called by emitted code only, with the link's pointer.
    let vp = unsafe { processor(vp) };
    vp.come_outside();
    let Some(site) = vp.site(number) else {
        return 0;
    };
    if let Some(missed) = site.access
        && vp.fill_fast(&missed)
    {
        return vp.go_on(site.held, site.retry, site.start.wrapping_add(site.op.offset.into()));
    }
    vp.handle_site(&site)
}

/// An instruction is left to its handler.
pub(super) unsafe extern "sysv64" fn handle(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: as in `access`.
    let vp = unsafe { processor(vp) };
    vp.come_outside();
    let Some(site) = vp.site(number) else {
        return 0;
    };
    vp.handle_site(&site)
}

/// Vector registers are wanted.
pub(super) unsafe extern "sysv64" fn vectors(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: as in `access`.
    let vp = unsafe { processor(vp) };
    vp.come_outside();
    vp.want(number, Unit::Vectors)
}

/// x87 registers are wanted.
pub(super) unsafe extern "sysv64" fn x87(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: as in `access`.
    let vp = unsafe { processor(vp) };
    vp.come_outside();
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
    vp.come_outside();
    vp.state.rip = vp.link.target;
    0
}

impl Vp {
    /// The site, with what emission knows there noted in the state.
    pub(super) fn site(&mut self, number: u64) -> Option<Site> {
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
        let rip = site.start.wrapping_add(site.op.offset.into());
        if self.place_unit(unit) {
            site.held = site.held.with(unit);
            return self.go_on(site.held, site.retry, rip);
        }
        // The interpreter knows what is to be done.
        self.state.rip = rip;
        self.interpret_next();
        0
    }

    /// Emitted code has called Rust.
    pub(super) fn come_outside(&mut self) {
        self.peer.leave();
        self.left_version = self.mmu.fast.as_ref().map_or(0, |fast| fast.version);
    }

    /// Goes back into emitted code, unless what that code relies on is not
    /// usable any more, or translations have been dropped that the code in
    /// between may have checked: then the guest goes on at `rip` from outside.
    pub(super) fn go_on(&mut self, held: Units, code: u64, rip: u64) -> u64 {
        if !self.renew_units(held) {
            self.state.rip = rip;
            return 0;
        }
        self.choose_table();
        self.go_inside();
        let version = self.mmu.fast.as_ref().map_or(0, |fast| fast.version);
        if version != self.left_version {
            self.state.rip = rip;
            return 0;
        }
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
        self.go_on(site.held, site.resume, start.wrapping_add(op.end()))
    }

    /// Gives an access a translation, if its memory can be used directly.
    fn fill_fast(&mut self, missed: &MissedAccess) -> bool {
        let linear = self.linear_of(&missed.address);
        self.fill_fast_at(linear, missed.size, missed.write, missed.aligned)
    }

    /// The linear address that an address means now.
    pub(super) fn linear_of(&self, address: &Address) -> u64 {
        let part = |number: Option<u8>| number.map_or(0, |n| self.state.gpr[usize::from(n) & 15]);
        let index = address.index.map_or(0, |(n, scale)| part(Some(n)) << scale);
        let segment = address
            .segment
            .map_or(0, |n| self.state.seg[usize::from(n) & 7].base);
        part(address.base)
            .wrapping_add(index)
            .wrapping_add(address.displacement as u64)
            .wrapping_add(segment)
    }

    /// Enters the translation for `size` bytes at `linear` in the table.
    pub(super) fn fill_fast_at(
        &mut self,
        linear: u64,
        size: u32,
        write: bool,
        aligned: u8,
    ) -> bool {
        let crosses = (linear & mmu::PAGE_MASK) + u64::from(size) > 0x1000;
        if crosses || linear & u64::from(aligned) != 0 || !mmu::canonical(linear) {
            return false;
        }
        let wanted = write;
        let usable = |found: &(_, _, bool, _)| !wanted || found.2;
        let found = match self.mmu.cached(linear).filter(usable) {
            Some(found) => Some(found),
            None => self.walk_fast(linear, wanted),
        };
        let Some((host, page, writable, large)) = found else {
            return false;
        };
        let write = writable && !self.mmu.code.is_code(page);
        if wanted && !write {
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
