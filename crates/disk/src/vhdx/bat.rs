//! The block allocation table in memory (MS-VHDX 2.5).
//!
//! Entries are atomics in pages that mirror the 4 KiB sectors of the table on disk. A page that
//! was never touched takes no memory, so a huge empty disk costs little. Readers need no lock.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::layout::{Geometry, LOG_SECTOR, MAX_SIZE};

/// Entries in one 4 KiB sector of the table.
pub(super) const ENTRIES_PER_PAGE: u64 = LOG_SECTOR / 8;
const OFFSET_MASK: u64 = !0xf_ffff;

/// State of a payload block (MS-VHDX 2.5.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum State {
    /// Never written; a differencing disk shows its parent.
    NotPresent = 0,
    Undefined = 1,
    Zero = 2,
    Unmapped = 3,
    FullyPresent = 6,
    /// Differencing only: the sector bitmap tells which sectors are here.
    PartiallyPresent = 7,
}

/// State of a sector bitmap block that exists (MS-VHDX 2.5.1.2).
pub(super) const BITMAP_PRESENT: u64 = 6;

/// A BAT entry as stored: state in bits 0 to 2, file offset in MiB in bits 20 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Entry(pub(super) u64);

impl Entry {
    pub(super) fn new(state: State, offset: u64) -> Self {
        Self(state as u64 | offset & OFFSET_MASK)
    }

    pub(super) fn bitmap(offset: u64) -> Self {
        Self(BITMAP_PRESENT | offset & OFFSET_MASK)
    }

    /// `None` for the values that the specification keeps for itself.
    pub(super) fn state(self) -> Option<State> {
        Some(match self.0 & 7 {
            0 => State::NotPresent,
            1 => State::Undefined,
            2 => State::Zero,
            3 => State::Unmapped,
            6 => State::FullyPresent,
            7 => State::PartiallyPresent,
            _ => return None,
        })
    }

    /// File offset in bytes.
    pub(super) fn offset(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// Whether the block's data is in the file.
    pub(super) fn is_present(self) -> bool {
        self.0 & 6 == 6
    }

    /// Whether a sector bitmap block is in the file.
    pub(super) fn is_bitmap_present(self) -> bool {
        self.0 & 7 == BITMAP_PRESENT
    }
}

type Page = Box<[AtomicU64]>;

/// The table.
pub(super) struct Bat {
    geometry: Geometry,
    pages: Box<[OnceLock<Page>]>,
}

impl Bat {
    /// An empty table with room for the largest disk, so that growing moves nothing.
    pub(super) fn new(geometry: Geometry) -> Self {
        let pages = geometry.bat_entries(MAX_SIZE).div_ceil(ENTRIES_PER_PAGE) as usize;
        Self {
            geometry,
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
        }
    }

    fn page(&self, index: u64) -> &Page {
        self.pages[index as usize]
            .get_or_init(|| (0..ENTRIES_PER_PAGE).map(|_| AtomicU64::new(0)).collect())
    }

    fn get(&self, index: u64) -> Entry {
        let page = self
            .pages
            .get((index / ENTRIES_PER_PAGE) as usize)
            .and_then(OnceLock::get);
        page.map_or(Entry::default(), |page| {
            Entry(page[(index % ENTRIES_PER_PAGE) as usize].load(Ordering::Acquire))
        })
    }

    /// Changes an entry and tells the page that is now dirty.
    fn set(&self, index: u64, entry: Entry) -> u64 {
        let page = index / ENTRIES_PER_PAGE;
        self.page(page)[(index % ENTRIES_PER_PAGE) as usize].store(entry.0, Ordering::Release);
        page
    }

    pub(super) fn payload(&self, block: u64) -> Entry {
        self.get(self.geometry.payload_index(block))
    }

    pub(super) fn set_payload(&self, block: u64, entry: Entry) -> u64 {
        self.set(self.geometry.payload_index(block), entry)
    }

    pub(super) fn bitmap(&self, chunk: u64) -> Entry {
        self.get(self.geometry.bitmap_index(chunk))
    }

    pub(super) fn set_bitmap(&self, chunk: u64, entry: Entry) -> u64 {
        self.set(self.geometry.bitmap_index(chunk), entry)
    }

    /// Takes an entry from disk as it is.
    pub(super) fn load(&self, index: u64, entry: Entry) {
        self.set(index, entry);
    }

    /// The bytes of a page, as they belong on disk.
    pub(super) fn page_bytes(&self, page: u64) -> Box<[u8; LOG_SECTOR as usize]> {
        let mut bytes = Box::new([0; LOG_SECTOR as usize]);
        if let Some(entries) = self.pages.get(page as usize).and_then(OnceLock::get) {
            for (out, entry) in bytes.chunks_exact_mut(8).zip(entries) {
                out.copy_from_slice(&entry.load(Ordering::Acquire).to_le_bytes());
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_state_and_offset_apart() {
        let entry = Entry::new(State::FullyPresent, 0x1234 << 20);
        assert_eq!(
            (entry.state(), entry.offset()),
            (Some(State::FullyPresent), 0x1234 << 20)
        );
        assert!(entry.is_present() && Entry::new(State::PartiallyPresent, 0).is_present());
        assert!(!Entry::new(State::Zero, 0).is_present());
        assert!(!Entry::new(State::Unmapped, 0).is_present());
        assert_eq!(Entry(4).state(), None);
    }

    #[test]
    fn pages_mirror_the_disk() {
        let geometry = Geometry {
            block_size: 1 << 20,
            sector_size: 512,
            has_parent: false,
        };
        let bat = Bat::new(geometry);
        assert_eq!(bat.payload(70_000), Entry::default());
        let page = bat.set_payload(4096, Entry::new(State::Zero, 0));
        assert_eq!(page, 4097 / ENTRIES_PER_PAGE);
        assert_eq!(bat.page_bytes(page)[8], 2);
    }
}
