//! The sector bitmaps of a differencing disk in memory (MS-VHDX 2.5.2).
//!
//! Each chunk has one 1 MiB bitmap block; its 4 KiB pages are read when first needed. Bits are
//! atomics: requests set and test them without a lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{Geometry, LOG_SECTOR, MAX_SIZE, MIB};
use crate::backing::{self, Backing};
use crate::error::Result;

const PAGES: u64 = MIB / LOG_SECTOR;
const BITS_PER_PAGE: u64 = LOG_SECTOR * 8;

type Page = Box<[AtomicU64]>;
type Chunk = Box<[OnceLock<Page>]>;

/// A 4 KiB page of a bitmap block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageId {
    pub(super) chunk: u64,
    pub(super) page: u64,
}

/// The bitmaps of all chunks.
pub(super) struct Bitmaps {
    geometry: Geometry,
    chunks: Box<[OnceLock<Chunk>]>,
}

impl Bitmaps {
    pub(super) fn new(geometry: Geometry) -> Self {
        let chunks = geometry.blocks(MAX_SIZE).div_ceil(geometry.chunk_ratio()) as usize;
        Self {
            geometry,
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
        }
    }

    fn slot(&self, id: PageId) -> &OnceLock<Page> {
        let chunk = self.chunks[id.chunk as usize]
            .get_or_init(|| (0..PAGES).map(|_| OnceLock::new()).collect());
        &chunk[id.page as usize]
    }

    /// The page, read from the bitmap block at `block_at` if it is not in memory yet.
    fn page(&self, file: &dyn Backing, block_at: u64, id: PageId) -> Result<&Page> {
        let slot = self.slot(id);
        if let Some(page) = slot.get() {
            return Ok(page);
        }
        let mut bytes = [0; LOG_SECTOR as usize];
        backing::read_exact(file, block_at + id.page * LOG_SECTOR, &mut bytes)?;
        Ok(slot.get_or_init(|| {
            let (words, _) = bytes.as_chunks::<8>();
            words
                .iter()
                .map(|w| AtomicU64::new(u64::from_le_bytes(*w)))
                .collect()
        }))
    }

    /// Declares the bitmap of a chunk to be all clear, for a bitmap block that was just made.
    pub(super) fn reset(&self, chunk: u64) {
        for page in 0..PAGES {
            let page = self.slot(PageId { chunk, page });
            if let Some(words) = page.get() {
                words.iter().for_each(|w| w.store(0, Ordering::Release));
            } else {
                let _ = page.set((0..LOG_SECTOR / 8).map(|_| AtomicU64::new(0)).collect());
            }
        }
    }

    /// Page and bit of a sector of the disk.
    fn locate(&self, sector: u64) -> (PageId, u64) {
        let per_chunk = MIB * 8;
        let bit = sector % per_chunk;
        let id = PageId {
            chunk: sector / per_chunk,
            page: bit / BITS_PER_PAGE,
        };
        (id, bit % BITS_PER_PAGE)
    }

    /// Whether the sector is in this disk, and for how many sectors (at most `max`) that stays so.
    pub(super) fn run(
        &self,
        file: &dyn Backing,
        block_at: u64,
        sector: u64,
        max: u64,
    ) -> Result<(bool, u64)> {
        let (mut present, mut count) = (None, 0);
        while count < max {
            let (id, bit) = self.locate(sector + count);
            let page = self.page(file, block_at, id)?;
            let word = page[(bit / 64) as usize].load(Ordering::Acquire) >> (bit % 64);
            let wanted = *present.get_or_insert(word & 1 == 1);
            let same = if wanted {
                (!word).trailing_zeros()
            } else {
                word.trailing_zeros()
            };
            let left = 64 - bit % 64;
            let same = u64::from(same).min(left);
            count += same;
            if same < left {
                break;
            }
        }
        Ok((present.unwrap_or(false), count.min(max)))
    }

    /// Sets or clears bits; returns the pages that changed.
    pub(super) fn mark(
        &self,
        file: &dyn Backing,
        block_at: u64,
        sector: u64,
        count: u64,
        present: bool,
    ) -> Result<Vec<PageId>> {
        let mut changed: Vec<PageId> = Vec::new();
        let mut done = 0;
        while done < count {
            let (id, bit) = self.locate(sector + done);
            let n = (64 - bit % 64).min(count - done);
            let mask = (u64::MAX >> (64 - n)) << (bit % 64);
            let word = &self.page(file, block_at, id)?[(bit / 64) as usize];
            let (before, wanted) = if present {
                (word.fetch_or(mask, Ordering::AcqRel), mask)
            } else {
                (word.fetch_and(!mask, Ordering::AcqRel), 0)
            };
            if before & mask != wanted && changed.last() != Some(&id) {
                changed.push(id);
            }
            done += n;
        }
        Ok(changed)
    }

    /// The bytes of a page, as they belong on disk.
    pub(super) fn page_bytes(&self, id: PageId) -> Option<Box<[u8; LOG_SECTOR as usize]>> {
        let words = self.slot(id).get()?;
        let mut bytes = Box::new([0; LOG_SECTOR as usize]);
        for (out, word) in bytes.chunks_exact_mut(8).zip(words) {
            out.copy_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        Some(bytes)
    }

    /// First sector of a payload block.
    pub(super) fn first_sector(&self, block: u64) -> u64 {
        block * self.sectors_per_block()
    }

    pub(super) fn sectors_per_block(&self) -> u64 {
        self.geometry.block_size / u64::from(self.geometry.sector_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::SimBacking;

    #[test]
    fn runs_and_marks_agree_with_a_plain_model() {
        let geometry = Geometry {
            block_size: MIB,
            sector_size: 512,
            has_parent: true,
        };
        let bitmaps = Bitmaps::new(geometry);
        let file = SimBacking::from_bytes(&vec![0; MIB as usize]);
        let mut model = vec![false; 70_000];
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..300 {
            let (start, value) = (random.usize(..69_000), random.bool());
            let count = random.usize(1..900);
            model[start..start + count].fill(value);
            bitmaps
                .mark(&file, 0, start as u64, count as u64, value)
                .expect("mark");
            let at = random.usize(..69_000);
            let same = model[at..at + 1000]
                .iter()
                .take_while(|b| **b == model[at])
                .count();
            let run = bitmaps.run(&file, 0, at as u64, 1000).expect("run");
            assert_eq!(run, (model[at], same as u64));
        }
    }

    #[test]
    fn only_pages_that_change_are_reported() {
        let geometry = Geometry {
            block_size: MIB,
            sector_size: 512,
            has_parent: true,
        };
        let bitmaps = Bitmaps::new(geometry);
        bitmaps.reset(0);
        let file = SimBacking::new();
        let pages = bitmaps
            .mark(&file, 0, BITS_PER_PAGE - 1, 2, true)
            .expect("mark");
        assert_eq!(pages.len(), 2);
        assert!(
            bitmaps
                .mark(&file, 0, BITS_PER_PAGE - 1, 2, true)
                .expect("mark")
                .is_empty()
        );
    }
}
