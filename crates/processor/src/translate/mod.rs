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
//! and privilege, and led to each other ([`links`]): within a page by patching
//! jumps; to other pages through slots, which are reset when the mapping of
//! the target may have changed; indirect jumps by a table; returns by the
//! host's own CALL and RET ([`control`]).
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
mod control;
mod emit;
mod flow;
mod generic;
mod layout;
mod links;
mod region;
mod runtime;
mod stack;
mod stubs;
#[cfg(test)]
mod tests;
mod tlb;
mod vector;

pub(crate) use layout::Link;
pub(crate) use tlb::FastTlb;

use crate::Vp;
use crate::block::{BuildKeyHasher, MAX_CODE};
use crate::fault::Exit;
use crate::mmu::{PAGE_MASK, SLOW_SET};
use area::Area;
use emit::{Context, Numbered};
use links::{Jumps, Way};
use std::arch::asm;
use std::collections::HashMap;
use stubs::Stubs;

/// Entries of a block before it is translated.
pub(crate) const WARM: u16 = 12;
/// Code room kept for one region.
const ROOM: usize = 256 << 10;
/// Sites or edges before everything is translated anew.
const MOST_NUMBERED: usize = 1 << 20;
/// Bits of the filter for pages that code was entered in.
const FILTER: usize = 4096;

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
}

/// The translated code of one virtual processor.
pub(crate) struct Translator {
    area: Area,
    stubs: Stubs,
    /// Bytes of the area that stay.
    keep: usize,
    numbered: Numbered,
    regions: HashMap<Key, u64, BuildKeyHasher>,
    pages: HashMap<u32, Page, BuildKeyHasher>,
    jumps: [Jumps; 2],
    /// Edges whose slots lead somewhere.
    led: Vec<u32>,
    /// Pages (hashed) that code was entered in since all was dropped.
    entered: [u64; FILTER / 64],
    /// The code map's epoch that `pages` agrees with.
    epoch: u32,
    /// The edge that was just left by.
    pending: Option<u32>,
    /// Supervisor's and user's shadow stack pointers are the same area's: the
    /// privilege it belongs to.
    shadow_user: bool,
    exit: Option<Exit>,
    interpret: bool,
}

impl Translator {
    /// A translator, if host and operating system have what it needs.
    pub(crate) fn new() -> Option<Box<Self>> {
        if !translator_supported() {
            return None;
        }
        let mut area = Area::map()?;
        let stubs = stubs::emit(&mut area)?;
        area.set_bottom(SENTINEL, stubs.bottom);
        let keep = area.used();
        Some(Box::new(Self {
            area,
            stubs,
            keep,
            numbered: Numbered::default(),
            regions: HashMap::with_hasher(BuildKeyHasher),
            pages: HashMap::with_hasher(BuildKeyHasher),
            jumps: [Jumps::new(), Jumps::new()],
            led: Vec::new(),
            entered: [0; FILTER / 64],
            epoch: 0,
            pending: None,
            shadow_user: false,
            exit: None,
            interpret: false,
        }))
    }

    fn filter_bit(linear: u64) -> usize {
        let page = linear >> 12;
        (page ^ page >> 12 ^ page >> 36) as usize & (FILTER - 1)
    }

    fn note_entered(&mut self, linear: u64) {
        let bit = Self::filter_bit(linear);
        self.entered[bit / 64] |= 1 << (bit % 64);
    }

    fn was_entered(&self, linear: u64) -> bool {
        let bit = Self::filter_bit(linear);
        self.entered[bit / 64] >> (bit % 64) & 1 != 0
    }

    /// Resets the ways to targets that `drops` chooses.
    fn drop_ways(&mut self, drops: impl Fn(u64) -> bool) {
        for jumps in &mut self.jumps {
            jumps.retain(&drops);
        }
        let (area, edges) = (&mut self.area, &self.numbered.edges);
        self.led.retain(|&number| {
            let Some(edge) = edges.get(number as usize) else {
                return false;
            };
            let dropped = drops(edge.target);
            if dropped && let Way::Slot(slot, out) = edge.way {
                area.set_slot(slot, out);
            }
            !dropped
        });
    }

    fn drop_all_ways(&mut self) {
        self.drop_ways(|_| true);
        self.entered = [0; FILTER / 64];
        self.pending = None;
    }

    /// Forgets all regions.
    pub(crate) fn clear(&mut self) {
        self.regions.clear();
        self.pages.clear();
        self.led.clear();
        self.jumps.iter_mut().for_each(Jumps::clear);
        self.entered = [0; FILTER / 64];
        self.numbered.sites.clear();
        self.numbered.edges.clear();
        self.pending = None;
        self.area.rewind(self.keep);
    }

    fn is_full(&self) -> bool {
        self.area.room() < ROOM
            || self.numbered.sites.len() > MOST_NUMBERED
            || self.numbered.edges.len() > MOST_NUMBERED
    }

    /// Leads an edge to its target's code.
    fn lead(&mut self, number: u32, code: u64) {
        let Some(edge) = self.numbered.edges.get(number as usize) else {
            return;
        };
        match edge.way {
            Way::Patch(at) => self.area.patch(at, code),
            Way::Slot(slot, _) => {
                self.area.set_slot(slot, code);
                self.led.push(number);
            }
        }
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
        let Some(code) = self.find_translated() else {
            return Ran::Interpret;
        };
        self.enter(code)
    }

    /// The code at RIP is of the kind that is translated.
    #[inline]
    pub(crate) fn may_translate(&self) -> bool {
        self.translator.is_some() && self.mode_key & 3 == 2 && self.mmu.data_set != SLOW_SET
    }

    /// Brings links up to date with what has happened to code and mappings.
    fn catch_up(&mut self) {
        let Some(translator) = &mut self.translator else {
            return;
        };
        let epoch = self.mmu.code.epoch();
        let mut emptied = false;
        if epoch != translator.epoch {
            translator.epoch = epoch;
            let code = &self.mmu.code;
            let regions = &mut translator.regions;
            let before = translator.pages.len();
            translator.pages.retain(|&number, page| {
                let current = code.word(number) == page.word;
                if !current {
                    for key in &page.regions {
                        regions.remove(key);
                    }
                }
                current
            });
            if translator.pages.len() != before {
                translator.drop_all_ways();
                emptied = true;
            }
        }
        let changes = &mut self.mmu.changes;
        if changes.low || changes.high {
            let (low, high) = (changes.low, changes.high);
            if low && high {
                translator.drop_all_ways();
            } else {
                translator.drop_ways(|target| if target >> 63 == 0 { low } else { high });
                translator.pending = None;
            }
            emptied = true;
            (changes.low, changes.high) = (false, false);
            changes.pages.clear();
        } else if !changes.pages.is_empty() {
            for page in changes.pages.drain(..) {
                if translator.was_entered(page) {
                    translator.drop_ways(|target| target & !PAGE_MASK == page);
                    translator.pending = None;
                    emptied = true;
                }
            }
        }
        let user = self.state.cpl == 3;
        if emptied || translator.shadow_user != user {
            if translator.shadow_user != user {
                self.link.vectors = 0;
            }
            translator.shadow_user = user;
            self.link.shadow = self.link.shadow_top;
        }
    }

    /// The table for data that fits mode and address space.
    pub(super) fn choose_table(&mut self) -> usize {
        let space = self.mmu.low_space();
        let set = self.mmu.data_set;
        let Some(fast) = &mut self.mmu.fast else {
            return 0;
        };
        let table = fast.choose(set, space);
        let address = fast.address(table);
        if self.link.table != address || self.stack_version != fast.version {
            self.stack_version = fast.version;
            self.link.table = address;
            self.link.stack_page = self.link.no_stack_page;
        }
        table
    }

    #[inline]
    fn find_translated(&mut self) -> Option<u64> {
        let rip = self.state.rip;
        let user = self.state.cpl == 3;
        let translator = self.translator.as_mut()?;
        let code = match translator.jumps[usize::from(user)].get(rip) {
            Some(code) => code,
            None => {
                let (_, page) = self.mmu.lookup_execute(rip, user)?;
                let key = Key { rip, page, user };
                let code = *translator.regions.get(&key)?;
                translator.jumps[usize::from(user)].set(rip, code);
                translator.note_entered(rip);
                code
            }
        };
        self.lead_pending(code);
        Some(code)
    }

    /// Leads the edge that was just left by to the code found.
    fn lead_pending(&mut self, code: u64) {
        let rip = self.state.rip;
        let user = self.state.cpl == 3;
        let Some(translator) = &mut self.translator else {
            return;
        };
        let Some(number) = translator.pending.take() else {
            return;
        };
        let fits = translator
            .numbered
            .edges
            .get(number as usize)
            .is_some_and(|edge| edge.target == rip && edge.user == user);
        if fits {
            translator.note_entered(rip);
            translator.lead(number, code);
        }
    }

    /// Translates the region at RIP, which has a current mapping for fetches.
    #[cold]
    #[inline(never)]
    pub(crate) fn translate_region(&mut self) -> bool {
        let rip = self.state.rip;
        let user = self.state.cpl == 3;
        let Some((host, page)) = self.mmu.lookup_execute(rip, user) else {
            return false;
        };
        let word = self.mark_code(page, host.wrapping_sub((rip & PAGE_MASK) as usize));
        let mut bytes = [0u8; MAX_CODE];
        let length = bytes.len().min((0x1000 - (rip & PAGE_MASK)) as usize);
        crate::host::copy_from(host, &mut bytes[..length]);
        let items = region::gather(&bytes[..length], self.mode_key);
        let Some(translator) = &mut self.translator else {
            return false;
        };
        if translator.is_full() {
            translator.clear();
            self.link.shadow = self.link.shadow_top;
            // Blocks count anew, too.
            self.blocks.clear();
        }
        let context = Context {
            area: &mut translator.area,
            numbered: &mut translator.numbered,
            stubs: translator.stubs,
            user,
        };
        let Some(code) = region::emit(context, &items, rip) else {
            return false;
        };
        let key = Key { rip, page, user };
        translator.regions.insert(key, code);
        let known = translator.pages.entry(page).or_insert(Page {
            word,
            regions: Vec::new(),
        });
        if known.word != word {
            // The page was written since: its old regions are dead.
            for key in std::mem::take(&mut known.regions) {
                if key.rip != rip {
                    translator.regions.remove(&key);
                }
            }
            known.word = word;
            known.regions.push(key);
            translator.drop_all_ways();
            self.link.shadow = self.link.shadow_top;
        } else {
            known.regions.push(key);
        }
        true
    }

    /// Drops all translated code.
    pub(crate) fn forget_translated(&mut self) {
        if let Some(translator) = &mut self.translator {
            translator.clear();
            self.link.shadow = self.link.shadow_top;
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
        // Code that used them last time will use them again.
        self.link.vectors &= u64::from(self.vectors_usable());
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
        let left = unsafe {
            let enter = std::mem::transmute::<u64, stubs::Enter>(enter);
            enter(code)
        };
        swap_gs(old);
        self.peer.leave();
        let Some(translator) = &mut self.translator else {
            return Ran::Again;
        };
        if left & stubs::EDGE != 0 {
            let number = left as u32;
            if let Some(edge) = translator.numbered.edges.get(number as usize) {
                self.state.rip = edge.target;
                translator.pending = Some(number);
            }
            return Ran::Again;
        }
        if let Some(exit) = translator.exit.take() {
            return Ran::Exit(exit);
        }
        if std::mem::take(&mut translator.interpret) {
            return Ran::Interpret;
        }
        Ran::Again
    }

    /// Prepares for translated code, if the host can run it.
    pub(crate) fn start_translator(&mut self) -> bool {
        let Some(translator) = Translator::new() else {
            return false;
        };
        self.mmu.fast = Some(Box::new(FastTlb::new(self.mmu.code.len())));
        self.mmu.code.join(&self.peer);
        self.link.jumps = [translator.jumps[0].address(), translator.jumps[1].address()];
        self.link.go = self.peer.requests.word();
        self.link.shadow_top = translator.area.stack_top();
        self.link.shadow = self.link.shadow_top;
        self.translator = Some(translator);
        true
    }
}
