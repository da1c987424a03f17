//! Guest-physical memory as the processor sees it.

use crate::requests::Peer;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};

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

/// The file that all of a partition's memory is, and where it is mapped.
#[derive(Debug)]
pub struct Backing {
    /// Page N of the [`CodeMap`] is at N times 4096.
    pub file: OwnedFd,
    /// Where the file is mapped, shared, as a whole.
    pub base: *mut u8,
    /// Bytes. The file never gets smaller.
    pub size: u64,
}

/// A guest-physical address space.
///
/// # Safety
///
/// The pages returned must be valid host memory as [`HostPage::pointer`] says,
/// and `index` must be below the [`CodeMap`]'s length. What `backing` returns must
/// be as [`Backing`] says.
pub unsafe trait GuestSpace: Send {
    /// The page with guest-physical page number `page`, if there is memory
    /// that may be read.
    fn page(&mut self, page: u64) -> Option<HostPage>;

    /// The map was changed: read it anew.
    fn refresh(&mut self);

    /// The file that every page's memory lies in, if it may be mapped once more.
    fn backing(&self) -> Option<Backing> {
        None
    }
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
///
/// Translated code does not look at the bit. It stores only through
/// translations that no page with the bit has; so between barrier and bytes the
/// decoder also waits until every processor has given up its own for the page
/// (see [`Peer`]).
#[derive(Debug)]
pub struct CodeMap {
    words: Vec<AtomicU32>,
    /// More than one processor, or device threads, may write.
    shared: bool,
    /// Moves on with every version of a page.
    epoch: AtomicU32,
    /// Processors with translated code.
    peers: RwLock<Vec<Weak<Peer>>>,
    /// Pages being marked: one at a time.
    marking: Mutex<()>,
    /// Nobody may take a mark for finished while this is not 0.
    unfinished: AtomicU32,
    /// Pages that others than processors have written, when somebody wants
    /// to know.
    journal: OnceLock<Mutex<Vec<u32>>>,
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
        Self {
            words,
            shared,
            epoch: AtomicU32::new(0),
            peers: RwLock::default(),
            marking: Mutex::default(),
            unfinished: AtomicU32::new(0),
            journal: OnceLock::new(),
        }
    }

    /// The number of pages.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// No page at all.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// A processor with translated code takes part from now on.
    pub(crate) fn join(&self, peer: &Arc<Peer>) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|peer| peer.strong_count() > 0);
        peers.push(Arc::downgrade(peer));
    }

    /// Announces that code of `page` is about to be read and cached. Returns
    /// the word that stays unchanged for as long as the page is unwritten.
    /// `me` is the calling processor, which is not inside translated code and
    /// sees to its own translations.
    pub(crate) fn mark(&self, page: u32, host: *const u8, me: &Arc<Peer>) -> u32 {
        let Some(word) = self.words.get(page as usize) else {
            return 0;
        };
        let old = word.load(Ordering::Acquire);
        if old & Self::CODE != 0 {
            if self.unfinished.load(Ordering::SeqCst) != 0 {
                drop(self.marking.lock().unwrap_or_else(PoisonError::into_inner));
            }
            return old;
        }
        if !self.shared {
            return word.fetch_or(Self::CODE, Ordering::SeqCst) | Self::CODE;
        }
        let _one = self.marking.lock().unwrap_or_else(PoisonError::into_inner);
        self.unfinished.store(1, Ordering::SeqCst);
        let old = word.fetch_or(Self::CODE, Ordering::SeqCst);
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let others: Vec<Arc<Peer>> = peers
            .iter()
            .filter_map(Weak::upgrade)
            .filter(|peer| !Arc::ptr_eq(peer, me))
            .collect();
        drop(peers);
        for peer in &others {
            peer.ask((page, host as usize));
        }
        crate::host::barrier_all_threads();
        for peer in &others {
            peer.wait();
        }
        self.unfinished.store(0, Ordering::SeqCst);
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

    /// Code of the page is cached: stores must be told.
    #[inline]
    pub(crate) fn is_code(&self, page: u32) -> bool {
        self.word(page) & Self::CODE != 0
    }

    /// Changes whenever any page's word moves on.
    #[inline]
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Keeps the pages of [`CodeMap::written`] from now on.
    pub(crate) fn start_journal(&self) {
        self.journal.get_or_init(Mutex::default);
    }

    fn journal(&self) -> Option<MutexGuard<'_, Vec<u32>>> {
        let journal = self.journal.get()?;
        Some(journal.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The pages written since this was last asked.
    pub(crate) fn take_journal(&self) -> Vec<u32> {
        self.journal()
            .map(|mut list| std::mem::take(&mut *list))
            .unwrap_or_default()
    }

    /// Pages were written.
    pub(crate) fn journal_waits(&self) -> bool {
        self.journal().is_some_and(|list| !list.is_empty())
    }

    /// This page was.
    pub(crate) fn journal_has(&self, page: u32) -> bool {
        self.journal().is_some_and(|list| list.contains(&page))
    }

    /// Must be called after every write to `page` but a processor's own. True
    /// when code was cached from it.
    #[inline]
    pub fn written(&self, page: u32) -> bool {
        if let Some(mut journal) = self.journal()
            && journal.last() != Some(&page)
        {
            journal.push(page);
        }
        self.stored(page)
    }

    /// The same for stores of processors.
    #[inline]
    pub(crate) fn stored(&self, page: u32) -> bool {
        match self.words.get(page as usize) {
            Some(word) if word.load(Ordering::Relaxed) & Self::CODE != 0 => {
                self.invalidate(word);
                true
            }
            _ => false,
        }
    }

    #[cold]
    fn invalidate(&self, word: &AtomicU32) {
        let mut old = word.load(Ordering::SeqCst);
        while old & Self::CODE != 0 {
            let new = (old & !Self::CODE).wrapping_add(2);
            match word.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        for peer in peers.iter().filter_map(Weak::upgrade) {
            peer.requests.look();
        }
    }
}
