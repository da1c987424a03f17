//! The shadow's copy of the guest's memory.
//!
//! A page is copied when either processor first asks for it, before it can
//! have stored anything there.

use crate::{Backing, GuestSpace, HostPage};
use rustix::mm::{MapFlags, ProtFlags};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PAGE: usize = 4096;

struct Shared {
    space: Box<dyn GuestSpace>,
    copy: *mut u8,
    /// Where each page lies in this process; null before it is copied.
    pages: Vec<*mut u8>,
}

// SAFETY: the pointers name memory that is accessed by `crate::host` only;
// the mutex around it keeps threads apart.
unsafe impl Send for Shared {}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `Memory::share` with this length; both processors
        // have given it up.
        let _ = unsafe { rustix::mm::munmap(self.copy.cast(), self.pages.len() * PAGE) };
    }
}

impl Shared {
    fn at(&self, page: u32) -> *mut u8 {
        self.copy.wrapping_add(page as usize * PAGE)
    }

    fn copy(&self, page: u32) {
        let Some(&from) = self.pages.get(page as usize) else {
            return;
        };
        if !from.is_null() {
            let mut bytes = [0; PAGE];
            crate::host::copy_from(from, &mut bytes);
            crate::host::copy_to(self.at(page), &bytes);
        }
    }
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Mutex<Shared>>);

/// A word that differs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    pub page: u32,
    /// Offset in the page.
    pub at: usize,
    /// The processor's.
    pub one: u64,
    /// The shadow's.
    pub other: u64,
}

/// What [`Memory::share`] makes of a space.
pub(super) struct Halves {
    pub processor: Box<dyn GuestSpace>,
    pub shadow: Box<dyn GuestSpace>,
    pub memory: Memory,
}

struct Space {
    memory: Memory,
    shadow: bool,
}

// SAFETY: pages are the inner space's, or lie in the copy, which has room for
// every page of the code map and lives for as long as both spaces.
unsafe impl GuestSpace for Space {
    fn page(&mut self, page: u64) -> Option<HostPage> {
        let mut shared = self.memory.lock();
        let mut found = shared.space.page(page)?;
        let slot = shared.pages.get_mut(found.index as usize)?;
        if slot.is_null() {
            *slot = found.pointer;
            shared.copy(found.index);
        }
        if self.shadow {
            found.pointer = shared.at(found.index);
        }
        Some(found)
    }

    fn refresh(&mut self) {
        self.memory.lock().space.refresh();
    }

    fn backing(&self) -> Option<Backing> {
        if self.shadow {
            return None;
        }
        self.memory.lock().space.backing()
    }
}

impl Memory {
    /// Spaces for a checked processor and its shadow, or the given one where
    /// there is no room for the copy.
    pub(super) fn share(
        space: Box<dyn GuestSpace>,
        pages: usize,
    ) -> Result<Halves, Box<dyn GuestSpace>> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping, wherever the kernel wants it.
        let copy = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                pages.max(1) * PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        };
        let Ok(copy) = copy else {
            return Err(space);
        };
        let memory = Self(Arc::new(Mutex::new(Shared {
            space,
            copy: copy.cast(),
            pages: vec![std::ptr::null_mut(); pages],
        })));
        let of = |shadow| -> Box<dyn GuestSpace> {
            Box::new(Space {
                memory: memory.clone(),
                shadow,
            })
        };
        Ok(Halves {
            processor: of(false),
            shadow: of(true),
            memory,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pages that there may be.
    pub(crate) fn pages(&self) -> usize {
        self.lock().pages.len()
    }

    /// Makes the shadow's page the processor's.
    pub(super) fn copy(&self, page: u32) {
        self.lock().copy(page);
    }

    /// The same for all.
    pub(super) fn copy_all(&self) {
        let shared = self.lock();
        for page in 0..shared.pages.len() {
            shared.copy(page as u32);
        }
    }

    /// The words that differ. Nothing is changed: where the shadow has not got
    /// to the processor's place yet, what may differ there is its own.
    pub(super) fn differences(&self, page: u32) -> Vec<Word> {
        let shared = self.lock();
        let Some(&from) = shared.pages.get(page as usize) else {
            return Vec::new();
        };
        if from.is_null() {
            return Vec::new();
        }
        let (mut real, mut copy) = ([0; PAGE], [0; PAGE]);
        crate::host::copy_from(from, &mut real);
        crate::host::copy_from(shared.at(page), &mut copy);
        if real == copy {
            return Vec::new();
        }
        let word = |bytes: &[u8; PAGE], at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        (0..PAGE)
            .step_by(8)
            .map(|at| Word {
                page,
                at,
                one: word(&real, at),
                other: word(&copy, at),
            })
            .filter(|word| word.one != word.other)
            .collect()
    }

    /// Makes a word of the shadow the processor's.
    pub(super) fn settle(&self, word: &Word) {
        let shared = self.lock();
        if (word.page as usize) < shared.pages.len() {
            let at = shared.at(word.page).wrapping_add(word.at & (PAGE - 8));
            crate::host::store64(at, word.one);
        }
    }
}
