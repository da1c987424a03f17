//! A partition's pool of deposited pages (TLFS 2.0a chapter 6, "Physical
//! Memory Management").

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use tlfs::HvStatus;

/// System pages that the hypervisor may use on a partition's behalf.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Vec<u64>,
    used: BTreeSet<u64>,
}

impl Pool {
    /// Adds a page.
    pub(crate) fn deposit(&mut self, page: u64) {
        self.free.push(page);
    }

    /// Takes a free page out of the pool.
    pub(crate) fn withdraw(&mut self) -> Option<u64> {
        self.free.pop()
    }

    /// Uses `N` pages, or none when there are fewer.
    pub(crate) fn allocate<const N: usize>(&mut self) -> Result<[u64; N], HvStatus> {
        if self.free.len() < N {
            return Err(HvStatus::INSUFFICIENT_MEMORY);
        }
        let mut pages = [0; N];
        for (page, free) in pages.iter_mut().zip(self.free.drain(self.free.len() - N..)) {
            *page = free;
        }
        self.used.extend(pages);
        Ok(pages)
    }

    /// Gives pages back.
    pub(crate) fn release(&mut self, pages: &[u64]) {
        for page in pages {
            if self.used.remove(page) {
                self.free.push(*page);
            }
        }
    }

    /// Free pages and pages in use.
    pub(crate) fn balance(&self) -> (u64, u64) {
        (self.free.len() as u64, self.used.len() as u64)
    }

    /// Every page, free or used.
    pub(crate) fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.free.iter().copied().chain(self.used.iter().copied())
    }
}
