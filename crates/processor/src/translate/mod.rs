//! The translator: hot code of 64-bit mode as code of the host.
//!
//! Guest and host speak the same language, so most instructions are emitted
//! as they are, with other registers and, for memory operands, behind a look
//! at a table of translations ([`tlb`]). What has no emission of its own is
//! done by the interpreter's handler, called from emitted code ([`runtime`]).
//!
//! # Registers and flags
//!
//! While emitted code runs, GS points to the [`Vp`], twelve of the guest's
//! general registers are in host registers and four in memory ([`layout`]), and
//! the status flags are the host's. Emission knows which flags may still be
//! read ([`flow`]); where one may, checks that would destroy them are made
//! without flags. Flags that nothing can read any more are not exact in the
//! RFLAGS image that a fault in between pushes.
//!
//! # Control flow
//!
//! A region ([`region`]) is the code from one address on up to an
//! unconditional branch. Regions are found by linear address, page of memory
//! and privilege, and led to each other ([`links`], [`ways`]): within a page by
//! patching jumps; to other pages through slots, which are reset when the
//! mapping of the target may have changed, and kept for each of the last few
//! address spaces; indirect jumps by a table; returns by the host's own CALL
//! and RET ([`control`]). A region whose first instruction runs on into the
//! next page has a gate, which is shut while that page's mapping is not known
//! to be the one that the region was made under ([`crossing`]).
//!
//! What kernels do at every entry, exit and lock is emitted, too ([`system`],
//! [`transfer`]). Handlers that change the mode, events and edges that lead
//! nowhere yet go on with the code for the new RIP without leaving emitted
//! code, if there is any ([`runtime`]).
//!
//! # Hot code
//!
//! A region that is entered often is translated again ([`tiers`]): one check
//! stands for many accesses ([`checks`], [`cells`], [`refill`]), and a loop may
//! have registers of its own ([`swap`]).
//!
//! # Code that changes
//!
//! Pages with translated code have no translations for stores (see
//! [`crate::CodeMap`]), so a store takes the slow path, tells the code map,
//! and leaves emitted code. Other processors look for requests at every
//! backward branch and indirect jump, and drop what has changed before they
//! go on.

mod area;
mod asm;
mod cells;
mod checks;
mod compare_strings;
mod control;
mod crossing;
#[cfg(test)]
mod crossing_tests;
mod emit;
mod flow;
mod generic;
mod layout;
mod links;
mod refill;
mod region;
mod runtime;
mod stack;
mod strings;
mod stubs;
mod swap;
mod system;
#[cfg(test)]
mod system_tests;
#[cfg(test)]
mod tests;
mod tiers;
mod tlb;
mod transfer;
mod units;
mod vector;
mod ways;
mod windows;
mod x87;

pub(crate) use layout::Link;
pub(crate) use region::MOST as REGION_MOST;
pub(crate) use tlb::FastTlb;

use crate::Vp;
use crate::block::BuildKeyHasher;
use crate::fault::Exit;
use crate::mmu::{Rights, SLOW_SET};
use crate::space::CodeMap;
use crate::state::cr;
use area::Area;
use checks::Note;
use emit::Numbered;
use std::arch::asm;
use std::collections::{HashMap, HashSet};
use stubs::Stubs;
use tiers::Want;
use units::Units;
use ways::Ways;
use windows::Windows;

/// Entries of a block before it is translated.
pub(crate) const WARM: u16 = 12;
/// Entries of a translated region before it is translated again as a hot one.
pub(crate) const HOT: u64 = 1024;
/// Code room kept for one region.
const ROOM: usize = 256 << 10;
/// Sites or edges before everything is translated anew.
const MOST_NUMBERED: usize = 1 << 20;
/// Cells kept for one region.
const ROOM_CELLS: usize = 1024;

/// What a region is found by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    rip: u64,
    page: u32,
    user: bool,
}

/// A page with regions.
struct Page {
    word: u32,
    regions: Vec<Key>,
}

/// What happened when translated code was asked for.
pub(crate) enum Ran {
    /// It ran; look around.
    Again,
    /// It ran, and something outside is needed.
    Exit(Exit),
    /// There is none here.
    Interpret,
    /// It ran, and the next instructions are the handlers'.
    Handlers,
}

/// The translated code of one virtual processor.
pub(crate) struct Translator {
    area: Area,
    stubs: Stubs,
    /// Bytes of the area that stay.
    keep: usize,
    numbered: Numbered,
    regions: HashMap<Key, u64, BuildKeyHasher>,
    /// Regions without checks, for hot ones whose checks fail.
    plain: HashMap<Key, u64, BuildKeyHasher>,
    /// What is known about places of hot regions.
    notes: HashMap<Key, Vec<(u32, Note)>, BuildKeyHasher>,
    /// What is to be translated at RIP next.
    wish: Option<Want>,
    /// The hot region at this address is to be translated with new notes.
    again: Option<u64>,
    pages: HashMap<u32, Page, BuildKeyHasher>,
    ways: Ways,
    /// The address space that the ways into the lower half fit.
    space: u64,
    /// Supervisor code has run in the lower half.
    low_supervisor: bool,
    /// Linear page numbers that ways may rely on.
    entered: HashSet<u64, BuildKeyHasher>,
    /// The code map's epoch that `pages` agrees with.
    epoch: u32,
    /// The edge that was just left by.
    pending: Option<u32>,
    exit: Option<Exit>,
    /// The next instructions are the handlers'.
    interpret: bool,
    /// There was no code for RIP, or none that may be entered.
    none: bool,
    /// Where the host has what they need.
    windows: Option<Windows>,
}

impl Translator {
    /// A translator, if host and operating system have what it needs.
    pub(crate) fn new() -> Option<Box<Self>> {
        if !translator_supported() {
            return None;
        }
        let mut area = Area::map()?;
        let stubs = stubs::emit(&mut area)?;
        area.set_bottoms(SENTINEL, stubs.bottom);
        let keep = area.used();
        Some(Box::new(Self {
            area,
            stubs,
            keep,
            numbered: Numbered::default(),
            regions: HashMap::with_hasher(BuildKeyHasher),
            plain: HashMap::with_hasher(BuildKeyHasher),
            notes: HashMap::with_hasher(BuildKeyHasher),
            wish: None,
            again: None,
            pages: HashMap::with_hasher(BuildKeyHasher),
            ways: Ways::new(),
            space: 0,
            low_supervisor: false,
            entered: HashSet::with_hasher(BuildKeyHasher),
            epoch: 0,
            pending: None,
            exit: None,
            interpret: false,
            none: false,
            windows: None,
        }))
    }

    fn note_entered(&mut self, linear: u64) {
        self.entered.insert(linear >> 12);
    }

    /// Forgets the regions of pages that were written, and resets the ways to
    /// them; true if there are any.
    fn drop_written(&mut self, code: &CodeMap) -> bool {
        let mut dead = Vec::new();
        self.pages.retain(|&number, page| {
            let current = code.word(number) == page.word;
            if !current {
                dead.append(&mut page.regions);
            }
            current
        });
        if dead.is_empty() {
            return false;
        }
        let mut dropped: HashSet<u64, BuildKeyHasher> = HashSet::default();
        for key in &dead {
            self.forget(key);
            dropped.insert(key.rip);
        }
        self.drop_ways(|target| dropped.contains(&target));
        true
    }

    /// Forgets all regions.
    pub(crate) fn clear(&mut self) {
        self.regions.clear();
        self.plain.clear();
        self.notes.clear();
        (self.wish, self.again) = (None, None);
        self.pages.clear();
        self.ways.clear();
        // The lower half's ways are found anew.
        self.space = 0;
        self.entered.clear();
        self.numbered.sites.clear();
        self.numbered.edges.clear();
        self.numbered.checks.clear();
        self.pending = None;
        self.area.rewind(self.keep);
    }

    fn is_full(&self) -> bool {
        self.area.room() < ROOM
            || self.numbered.sites.len() > MOST_NUMBERED
            || self.numbered.edges.len() > MOST_NUMBERED
            || self.numbered.checks.len() + ROOM_CELLS > cells::CELLS
    }
}

/// Lies above the empty shadow stack where a negated return address would:
/// not canonical, and unknown to guests.
const SENTINEL: u64 = 0x5bd1_e995_7f4a_7c15;

/// This host can run the translator: BMI1, BMI2, and GS in user code's hands.
pub fn translator_supported() -> bool {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    // SAFETY: getauxval reads a table of the process.
    let capabilities = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    capabilities & HWCAP2_FSGSBASE != 0
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
}

/// Sets the GS base; returns the old one.
fn swap_gs(new: u64) -> u64 {
    let old: u64;
    // SAFETY: the kernel allows it (see `translator_supported`), and no Rust or C code
    // of this process uses GS.
    unsafe {
        asm!("rdgsbase {0}", "wrgsbase {1}", out(reg) old, in(reg) new,
            options(nomem, nostack, preserves_flags));
    }
    old
}

impl Vp {
    /// Runs translated code at RIP, if there is any.
    #[inline]
    pub(crate) fn run_translated(&mut self) -> Ran {
        if !self.may_translate() {
            return Ran::Interpret;
        }
        self.catch_up();
        if let Some(wish) = self.take_wish() {
            return match self.grant(wish) {
                Some(code) => self.enter(code),
                None => Ran::Interpret,
            };
        }
        let Some(code) = self.find_translated() else {
            return Ran::Interpret;
        };
        self.enter(code)
    }

    /// The code at RIP is of the kind that is translated.
    #[inline]
    pub(crate) fn may_translate(&self) -> bool {
        // 64-bit code at privilege 0 or 3.
        let mode = matches!(self.mode_key & 0x33, 0x02 | 0x32);
        self.translator.is_some() && mode && self.mmu.data_set != SLOW_SET
    }

    /// The table for data that fits mode and address space.
    pub(super) fn choose_table(&mut self) -> usize {
        let space = self.mmu.low_space();
        let set = self.mmu.data_set;
        let Some(fast) = &mut self.mmu.fast else {
            return 0;
        };
        let user = fast.choose(Rights::User as usize, space);
        self.link.user_table = fast.address(user);
        let table = match set {
            0 => user,
            _ => fast.choose(set, space),
        };
        let address = fast.address(table);
        if self.link.table != address || self.stack_version != fast.version {
            self.stack_version = fast.version;
            self.link.table = address;
            self.link.stack_page = self.link.no_stack_page;
        }
        let guarded = self.state.cr4 & cr::CR4_SMAP != 0;
        let kernel_set = if guarded {
            Rights::Supervisor
        } else {
            Rights::SupervisorAc
        };
        let kernel_table = fast.address(FastTlb::supervisor_table(kernel_set as usize));
        let other = kernel_table != self.link.kernel_table;
        self.link.kernel_table = kernel_table;
        if fast.dropped != [false; 2] || other {
            fast.dropped[0] |= other;
            let dropped = std::mem::take(&mut fast.dropped);
            self.empty_cells(dropped);
        }
        self.choose_rights();
        table
    }

    /// Empties the cells of supervisor's and user's code.
    #[cold]
    fn empty_cells(&mut self, which: [bool; 2]) {
        let Some(translator) = &mut self.translator else {
            return;
        };
        let nothing = self.link.no_stack_page;
        for user in [false, true] {
            if which[usize::from(user)] {
                let end = &mut self.link.logs[usize::from(user)];
                translator.area.empty_cells(user, *end, nothing);
                if let Some(windows) = &mut translator.windows {
                    windows.emptied(!user);
                }
                *end = translator.area.log(user);
            }
        }
    }

    /// What RFLAGS.AC makes of the supervisor's rights.
    fn choose_rights(&mut self) {
        let smap = self.state.cr4 & cr::CR4_SMAP != 0;
        let without = if smap {
            Rights::Supervisor
        } else {
            Rights::SupervisorAc
        };
        let Some(fast) = &self.mmu.fast else {
            return;
        };
        for (number, rights) in [without, Rights::SupervisorAc].into_iter().enumerate() {
            let set = rights as usize;
            self.link.ac_sets[number] = set as u64;
            self.link.ac_tables[number] = fast.address(FastTlb::supervisor_table(set));
        }
    }

    #[inline]
    pub(super) fn find_translated(&mut self) -> Option<u64> {
        let rip = self.state.rip;
        let user = self.state.cpl == 3;
        let translator = self.translator.as_mut()?;
        let code = match translator.ways.jump(rip, user) {
            Some(code) => code,
            None => {
                let (_, page) = self.mmu.lookup_execute(rip, user)?;
                let key = Key { rip, page, user };
                let code = *translator.regions.get(&key)?;
                translator.ways.set_jump(rip, user, code);
                translator.note_entered(rip);
                translator.low_supervisor |= !user && rip >> 63 == 0;
                code
            }
        };
        self.lead_pending(code).then_some(code)
    }

    /// Drops all translated code.
    pub(crate) fn forget_translated(&mut self) {
        if let Some(translator) = &mut self.translator {
            translator.clear();
            self.link.logs = [translator.area.log(false), translator.area.log(true)];
            self.empty_shadows();
        }
    }

    /// The handlers must do the next instruction.
    pub(super) fn interpret_next(&mut self) {
        if let Some(translator) = &mut self.translator {
            translator.interpret = true;
        }
    }

    /// Notes with which exit emitted code was left.
    pub(super) fn left(&mut self, exit: Option<Exit>) {
        if let Some(translator) = &mut self.translator {
            translator.exit = exit;
        }
    }

    /// Does what other processors ask, and goes inside.
    pub(super) fn go_inside(&mut self) {
        while !self.peer.enter() {
            self.serve_peers();
            self.choose_table();
        }
    }

    /// Gives up translations for stores that other processors asked for.
    #[cold]
    fn serve_peers(&mut self) {
        let asked = self.peer.take();
        let Some(fast) = &mut self.mmu.fast else {
            return;
        };
        for (page, host) in asked {
            if page == u32::MAX {
                fast.flush_all();
            } else {
                fast.protect(page, host as *mut u8);
            }
        }
    }

    /// Announces that code of a page is about to be read and cached. `host`
    /// is the page in this process.
    pub(crate) fn mark_code(&mut self, page: u32, host: *mut u8) -> u32 {
        let word = self.mmu.code.mark(page, host, &self.peer);
        if let Some(fast) = &mut self.mmu.fast {
            fast.protect(page, host);
        }
        word
    }

    /// Runs emitted code.
    fn enter(&mut self, code: u64) -> Ran {
        self.choose_table();
        self.renew_units(Units::NONE);
        let Some(translator) = &mut self.translator else {
            return Ran::Interpret;
        };
        let enter = translator.stubs.enter;
        self.link.this = self;
        self.go_inside();
        if self.short_turn {
            self.peer.requests.look();
        }
        let old = swap_gs(self.link.this as u64);
        // SAFETY: `enter` is the stub of that signature, `code` a region of
        // the same area, and nothing of the area is overwritten while code
        // runs. The code and the functions it calls reach `self` through the
        // link; this function does not touch it meanwhile.
        unsafe {
            let enter = std::mem::transmute::<u64, stubs::Enter>(enter);
            enter(code);
        }
        swap_gs(old);
        self.peer.leave();
        let Some(translator) = &mut self.translator else {
            return Ran::Again;
        };
        if let Some(exit) = translator.exit.take() {
            return Ran::Exit(exit);
        }
        if std::mem::take(&mut translator.none) {
            return Ran::Interpret;
        }
        if std::mem::take(&mut translator.interpret) {
            return Ran::Handlers;
        }
        Ran::Again
    }

    /// Prepares for translated code, if the host can run it.
    pub(crate) fn start_translator(&mut self) -> bool {
        let Some(mut translator) = Translator::new() else {
            return false;
        };
        self.mmu.fast = Some(Box::new(FastTlb::new(self.mmu.code.len())));
        translator.windows = self.mmu.backing().and_then(Windows::new);
        self.mmu.code.join(&self.peer);
        self.link.jumps = translator.ways.tables();
        self.link.logs = [translator.area.log(false), translator.area.log(true)];
        self.link.go = self.peer.requests.word();
        self.link.shadow_tops = [false, true].map(|user| translator.area.stack_top(user));
        self.translator = Some(translator);
        self.empty_shadows();
        true
    }
}
