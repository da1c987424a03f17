//! Rust functions that emitted code calls.
//!
//! They run on the host's own stack, with the guest's registers in the state.
//! Each returns the address of the code to go on with, or 0 to leave.

use super::emit::{Address, MissedAccess, Site};
use super::tlb::Filling;
use super::units::{Unit, Units};
use crate::Vp;
use crate::fault::Fault;
use crate::mmu::{self, Access, Target};
use crate::state::reg;
use crate::vp::ProcessorMode;

/// What [`mmu::Mmu::cached`] tells.
type Found = (*mut u8, u32, bool, bool);

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
    if let Some(missed) = site.access {
        let rip = site.start.wrapping_add(site.op.offset.into());
        match vp.fill_fast(&missed) {
            Ok(true) => return vp.go_on(site.held, site.retry, rip),
            Ok(false) => {}
            Err(fault) => return vp.fault_at(&site, fault),
        }
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

/// An edge was taken that leads nowhere yet.
pub(super) unsafe extern "sysv64" fn edge(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: as in `access`.
    let vp = unsafe { processor(vp) };
    vp.come_outside();
    let Some(translator) = &mut vp.translator else {
        return 0;
    };
    let number = number as u32;
    let Some(edge) = translator.numbered.edges.get(number as usize) else {
        return 0;
    };
    vp.state.rip = edge.target;
    translator.pending = Some(number);
    vp.go_on_at_rip()
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
    vp.come_outside();
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

    /// Goes on with the code for RIP, if there is nothing else to do first:
    /// what [`Vp::run`] does, without leaving.
    fn go_on_at_rip(&mut self) -> u64 {
        let busy = self.shutdown || self.attention != 0 || self.interrupted();
        if busy || !self.may_translate() {
            return 0;
        }
        self.catch_up();
        let Some(code) = self.find_translated() else {
            if let Some(translator) = &mut self.translator {
                translator.none = true;
            }
            return 0;
        };
        if self.state.cpl != 3 {
            // Kernels hardly use vectors: what Rust does for them is cheaper
            // without.
            self.link.forget_units();
        }
        // Code that starts relies on nothing.
        self.left_version = self.mmu.fast.as_ref().map_or(0, |fast| fast.version);
        self.go_on(Units::NONE, code, self.state.rip)
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
            if exit.is_some() {
                self.left(exit);
                return 0;
            }
            return self.go_on_stopped();
        }
        if op.is_last() {
            self.code_written = false;
            return self.go_on_at_rip();
        }
        let after = (self.mode_key, self.mmu.data_set, self.mmu.generation);
        if self.code_written || self.attention != 0 || before != after || self.interrupted() {
            self.code_written = false;
            self.state.rip = start.wrapping_add(op.end());
            return self.go_on_at_rip();
        }
        self.go_on(site.held, site.resume, start.wrapping_add(op.end()))
    }

    /// A site's instruction faults in an access.
    fn fault_at(&mut self, site: &Site, fault: Fault) -> u64 {
        self.state.gpr[reg::BLOCK_RIP] = site.start;
        self.faulted = false;
        let _ = self.raise(fault);
        let exit = self.stopped_at(&site.op, site.start);
        if exit.is_some() {
            self.left(exit);
            return 0;
        }
        self.go_on_stopped()
    }

    /// Goes on behind an instruction that did not retire. In check mode a turn
    /// ends where an exception was delivered: flags that nobody reads are
    /// made the same in its frame before the handler copies them elsewhere.
    fn go_on_stopped(&mut self) -> u64 {
        if self.faulted && self.config.mode == ProcessorMode::Check {
            return 0;
        }
        self.go_on_at_rip()
    }

    /// Gives an access a translation: true if its memory can be used directly.
    fn fill_fast(&mut self, missed: &MissedAccess) -> Result<bool, Fault> {
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
    ) -> Result<bool, Fault> {
        let crosses = (linear & mmu::PAGE_MASK) + u64::from(size) > 0x1000;
        if crosses || linear & u64::from(aligned) != 0 || !mmu::canonical(linear) {
            return Ok(false);
        }
        let wanted = write;
        let usable = |found: &(_, _, bool, _)| !wanted || found.2;
        let found = match self.mmu.cached(linear).filter(usable) {
            Some(found) => Some(found),
            None => self.walk_fast(linear, wanted)?,
        };
        let Some((host, page, writable, large)) = found else {
            return Ok(false);
        };
        let write = writable && !self.mmu.code.is_code(page);
        if wanted && !write {
            return Ok(false);
        }
        let table = self.choose_table();
        let Some(fast) = &mut self.mmu.fast else {
            return Ok(false);
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
        Ok(true)
    }

    fn walk_fast(&mut self, linear: u64, write: bool) -> Result<Option<Found>, Fault> {
        let access = if write { Access::Write } else { Access::Read };
        let rights = mmu::data_rights(&self.state);
        Ok(
            match self.mmu.resolve(&self.state, linear, access, rights)? {
                Target::Ram(..) => self.mmu.cached(linear),
                Target::Mmio(_) => None,
            },
        )
    }
}
