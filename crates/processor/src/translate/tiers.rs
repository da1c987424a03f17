//! Which version of a region there is: counted, hot, or plain.
//!
//! A region is translated for the first time with a counter at its entry. When
//! that has run down, the region is translated again as a hot one, with checks
//! ([`super::checks`]), and the old entry leads to the new. Where a check fails,
//! a plain version of the code from there on takes over.

use super::checks::{Check, Note};
use super::{Key, Translator};
use crate::Vp;
use crate::mmu::{Access, Rights, Target};

/// How a region is to be translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Want {
    /// For the first time.
    Counted,
    /// Without checks, for hot code to go on with.
    Plain,
    /// Again, since it is hot.
    Hot,
    /// Without checks for good: too many of its places are noted.
    Cooled,
}

/// Notes that a hot region may have.
const MOST_NOTES: usize = 6;

impl Translator {
    /// A region has been translated.
    pub(super) fn place(&mut self, key: Key, code: u64, want: Want) {
        if want == Want::Plain {
            self.plain.insert(key, code);
            return;
        }
        if let Some(old) = self.regions.insert(key, code)
            && want != Want::Counted
        {
            self.area.patch_jump(old, code);
        }
    }

    /// Forgets all versions of a region.
    pub(super) fn forget(&mut self, key: &Key) {
        self.regions.remove(key);
        self.plain.remove(key);
        self.notes.remove(key);
    }
}

impl Vp {
    /// Notes what is to be translated next.
    pub(super) fn wish(&mut self, wish: Want) {
        if let Some(translator) = &mut self.translator {
            translator.wish = Some(wish);
        }
    }

    #[inline]
    pub(super) fn take_wish(&mut self) -> Option<Want> {
        self.translator.as_mut()?.wish.take()
    }

    /// Translates what hot code has asked for: what is to be entered then.
    #[cold]
    pub(super) fn grant(&mut self, wish: Want) -> Option<u64> {
        if let Some(rip) = self.translator.as_mut()?.again.take() {
            let key = self.key(rip);
            let notes = key.and_then(|key| self.translator.as_ref()?.notes.get(&key));
            let cooled = notes.is_some_and(|notes| notes.len() > MOST_NOTES);
            let want = if cooled { Want::Cooled } else { Want::Hot };
            self.translate_as(rip, want);
        }
        if wish == Want::Plain
            && let Some(code) = self.plain_code()
        {
            return Some(code);
        }
        self.translate_as(self.state.rip, wish)
    }

    /// The page in memory of code that is running. Its translation for
    /// fetches may long have made room for others.
    pub(super) fn fetched(&mut self, rip: u64) -> Option<(*mut u8, u32)> {
        let user = self.state.cpl == 3;
        if let Some(found) = self.mmu.lookup_execute(rip, user) {
            return Some(found);
        }
        let rights = if user {
            Rights::User
        } else {
            Rights::SupervisorAc
        };
        match self.mmu.resolve(&self.state, rip, Access::Execute, rights) {
            Ok(Target::Ram(host, page)) => Some((host, page)),
            _ => None,
        }
    }

    /// The key of the region at an address.
    fn key(&mut self, rip: u64) -> Option<Key> {
        let user = self.state.cpl == 3;
        let (_, page) = self.fetched(rip)?;
        Some(Key { rip, page, user })
    }

    /// The code at RIP without checks, if there is any.
    pub(super) fn plain_code(&mut self) -> Option<u64> {
        let key = self.key(self.state.rip)?;
        self.translator.as_ref()?.plain.get(&key).copied()
    }

    /// Notes something about a place, and has its region translated again.
    pub(super) fn note(&mut self, check: &Check, note: Note) {
        let Some(key) = self.key(check.start) else {
            return;
        };
        let Some(translator) = &mut self.translator else {
            return;
        };
        let notes = translator.notes.entry(key).or_default();
        match notes.iter_mut().find(|(of, _)| *of == check.of) {
            Some(known) => known.1 = note,
            None => notes.push((check.of, note)),
        }
        translator.again = Some(check.start);
    }
}
