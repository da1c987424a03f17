//! Guest-physical memory as the processor sees it.

use std::sync::atomic::{AtomicU32, Ordering};

/// One page of guest-physical memory that has host memory behind it.
#[derive(Clone, Copy, Debug)]
pub struct HostPage {
    /// The page in this process. It must stay mapped, readable and, where
    /// `writable`, writable for as long as the processor may hold it: until
    /// the processor was told [`crate::Vp::gpa_space_changed`].
    pub pointer: *mut u8,
    /// The page's number in the [`CodeMap`]: the same for every alias of the
    /// same memory.
    pub index: u32,
    /// Stores are allowed. Otherwise they leave as MMIO writes.
    pub writable: bool,
    /// Instruction fetches are allowed.
    pub executable: bool,
}

/// A guest-physical address space.
///
/// # Safety
///
/// The pages returned must be valid host memory as [`HostPage::pointer`] says,
/// and `index` must be below the [`CodeMap`]'s length.
pub unsafe trait GuestSpace: Send {
    /// The page with guest-physical page number `page`, if there is memory
    /// that may be read.
    fn page(&mut self, page: u64) -> Option<HostPage>;

    /// The map was changed: read it anew.
    fn refresh(&mut self);
}

/// For every page of memory, whether decoded code of it is cached, and a
/// version that changes when such a page is written.
///
/// The protocol. A processor that decodes code sets the page's bit, makes all
/// other threads pass a memory barrier, and then reads the bytes. Whoever
/// writes memory first writes and then looks at the bit. So either the write
/// came before the barrier and the decoder sees the new bytes, or the writer
/// sees the bit and moves the version on, and every block decoded from the old
/// bytes is dead on its next entry.
#[derive(Debug)]
pub struct CodeMap {
    words: Vec<AtomicU32>,
    /// More than one processor, or device threads, may write.
    shared: bool,
}

impl CodeMap {
    const CODE: u32 = 1;

    /// A map of `pages` pages. `shared` is false only where one thread does
    /// all writes to this memory.
    pub fn new(pages: usize, shared: bool) -> Self {
        let mut words = Vec::new();
        words.resize_with(pages, AtomicU32::default);
        if shared {
            crate::host::register_barrier();
        }
        Self { words, shared }
    }

    /// The number of pages.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// No page at all.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Announces that code of `page` is about to be read and cached. Returns
    /// the word that stays unchanged for as long as the page is unwritten.
    pub fn mark(&self, page: u32) -> u32 {
        let Some(word) = self.words.get(page as usize) else {
            return 0;
        };
        let old = word.load(Ordering::Acquire);
        if old & Self::CODE != 0 {
            return old;
        }
        let old = word.fetch_or(Self::CODE, Ordering::SeqCst);
        if self.shared {
            crate::host::barrier_all_threads();
        }
        old | Self::CODE
    }

    /// The page's word now; equal to what [`CodeMap::mark`] returned while
    /// the code is unchanged.
    #[inline]
    pub fn word(&self, page: u32) -> u32 {
        self.words
            .get(page as usize)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Must be called after every write to `page`. True when code was cached
    /// from it.
    #[inline]
    pub fn written(&self, page: u32) -> bool {
        match self.words.get(page as usize) {
            Some(word) if word.load(Ordering::Relaxed) & Self::CODE != 0 => {
                Self::invalidate(word);
                true
            }
            _ => false,
        }
    }

    #[cold]
    fn invalidate(word: &AtomicU32) {
        let mut old = word.load(Ordering::SeqCst);
        while old & Self::CODE != 0 {
            let new = (old & !Self::CODE).wrapping_add(2);
            match word.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }
}
