//! From an address to a region: reading its bytes, from two pages where the
//! first instruction runs on into the next one.

use super::emit::{Context, Emitter};
use super::links::{Edge, Gate, Way};
use super::region::{self, Tier};
use super::tiers::Want;
use super::{Key, Page, Translator};
use crate::Vp;
use crate::block::MAX_CODE;
use crate::decode::MAX_LENGTH;
use crate::mmu::{PAGE_MASK, canonical};
use crate::vp::ProcessorMode;

/// The page that a region runs on into.
#[derive(Clone, Copy, Debug)]
pub(super) struct Second {
    /// Its linear address.
    pub linear: u64,
    /// Its number in the code map.
    pub page: u32,
    word: u32,
}

impl Emitter<'_> {
    /// The gate of a region that runs on into another page.
    pub(super) fn gate(&mut self, second: &Second) -> Option<()> {
        let slot = self.context.area.slot()?;
        let number = self.context.numbered.edges.len() as u32;
        self.asm.jump_through(super::asm::Mem::Near(slot));
        let gate = Gate {
            slot,
            out: 0,
            entry: self.entry,
            body: self.asm.here(),
            second: second.linear,
            page: second.page,
        };
        self.context.numbered.edges.push(Edge {
            target: self.start,
            user: self.context.user,
            way: Way::Gate(gate),
        });
        self.push_cold(super::emit::Cold::SlotOut(Vec::new(), number));
        Some(())
    }
}

impl Translator {
    /// Notes that a region was made of `page`, whose word it was made under.
    /// True if older regions of that page are dead.
    fn note_page(&mut self, page: u32, word: u32, key: Key) -> bool {
        let known = self.pages.entry(page).or_insert(Page {
            word,
            regions: Vec::new(),
        });
        let written = known.word != word;
        known.word = word;
        let dead = if written {
            std::mem::take(&mut known.regions)
        } else {
            Vec::new()
        };
        known.regions.push(key);
        for old in dead.iter().filter(|old| **old != key) {
            self.forget(old);
        }
        written
    }
}

impl Vp {
    /// Translates the region at RIP for its first time.
    #[cold]
    #[inline(never)]
    pub(crate) fn translate_region(&mut self) -> bool {
        let rip = self.state.rip;
        let user = self.state.cpl == 3;
        let Some((_, page)) = self.mmu.lookup_execute(rip, user) else {
            return false;
        };
        let key = Key { rip, page, user };
        if let Some(translator) = &self.translator
            && translator.regions.contains_key(&key)
        {
            // Its second page was not known to be there.
            return true;
        }
        self.translate_as(rip, Want::Counted).is_some()
    }

    /// Translates the region at an address.
    pub(super) fn translate_as(&mut self, rip: u64, want: Want) -> Option<u64> {
        let user = self.state.cpl == 3;
        let (host, page) = self.fetched(rip)?;
        let key = Key { rip, page, user };
        let word = self.mark_code(page, host.wrapping_sub((rip & PAGE_MASK) as usize));
        let mut bytes = [0u8; MAX_CODE];
        let have = bytes.len().min((0x1000 - (rip & PAGE_MASK)) as usize);
        crate::host::copy_from(host, &mut bytes[..have]);
        let mut items = region::gather(&bytes[..have], self.mode_key);
        let mut second = None;
        if items.is_empty() && have < MAX_LENGTH {
            let room = bytes.len() - have;
            second = self.read_second(rip, &mut bytes[have..][..room]);
            if second.is_some() {
                items = region::gather(&bytes, self.mode_key);
            }
        }
        let translator = self.translator.as_mut()?;
        if translator.is_full() {
            translator.clear();
            self.link.logs = [translator.area.log(false), translator.area.log(true)];
            // Blocks count anew, too.
            self.blocks.clear();
            self.empty_shadows();
        }
        let translator = self.translator.as_mut()?;
        let context = Context {
            area: &mut translator.area,
            numbered: &mut translator.numbered,
            stubs: translator.stubs,
            user,
            hot_after: self.hot,
            recorded: self.config.mode == ProcessorMode::Check,
            nothing: self.link.no_stack_page,
        };
        let tier = match want {
            // An instruction in two pages is at most the loop of a string.
            _ if second.is_some() => Tier::Plain,
            Want::Counted => Tier::Counted,
            Want::Plain => Tier::Plain,
            Want::Cooled => Tier::Cooled,
            Want::Hot => Tier::Hot(translator.notes.get(&key).map_or(&[], Vec::as_slice)),
        };
        let code = region::emit(context, &items, rip, second, tier)?;
        let mut written = translator.note_page(page, word, key);
        if let Some(second) = second {
            written |= translator.note_page(second.page, second.word, key);
        }
        if written {
            translator.drop_all_ways();
            self.empty_shadows();
        }
        self.translator.as_mut()?.place(key, code, want);
        Some(code)
    }

    /// Reads on in the page behind the one that RIP is in.
    fn read_second(&mut self, rip: u64, bytes: &mut [u8]) -> Option<Second> {
        let linear = (rip | PAGE_MASK).wrapping_add(1);
        let user = self.state.cpl == 3;
        if !canonical(linear) {
            return None;
        }
        let (host, page) = self.mmu.lookup_execute(linear, user)?;
        let word = self.mark_code(page, host);
        crate::host::copy_from(host, bytes);
        Some(Second { linear, page, word })
    }

    /// Empties both shadow stacks.
    pub(super) fn empty_shadows(&mut self) {
        let user = usize::from(self.state.cpl == 3);
        self.link.shadows = self.link.shadow_tops;
        self.link.shadow = self.link.shadow_tops[user];
        self.link.shadow_user = user as u64;
    }
}
