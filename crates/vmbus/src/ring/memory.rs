//! Guest pages as rings need them.

use std::sync::atomic::{AtomicU32, Ordering};

/// An access outside the pages, or pages that are no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest pages are not accessible")]
pub struct PagesError;

/// Pages of the guest as one range of bytes. The guest may access them at the
/// same time.
pub trait GuestPages: Send + Sync {
    /// Bytes, a multiple of the page size.
    fn len(&self) -> usize;

    /// No page at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies out.
    ///
    /// # Errors
    ///
    /// [`PagesError`] outside the pages.
    fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), PagesError>;

    /// Copies in.
    ///
    /// # Errors
    ///
    /// [`PagesError`] outside the pages.
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), PagesError>;

    /// Loads an aligned word; later accesses stay behind it (`Acquire`).
    ///
    /// # Errors
    ///
    /// [`PagesError`] outside the pages, or where not aligned.
    fn load_u32(&self, offset: usize) -> Result<u32, PagesError>;

    /// Stores an aligned word; earlier accesses stay before it (`Release`).
    ///
    /// # Errors
    ///
    /// [`PagesError`] outside the pages, or where not aligned.
    fn store_u32(&self, offset: usize, value: u32) -> Result<(), PagesError>;
}

impl GuestPages for vid::GuestPages {
    fn len(&self) -> usize {
        vid::GuestPages::len(self)
    }

    fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), PagesError> {
        vid::GuestPages::read(self, offset, data).map_err(|_| PagesError)
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), PagesError> {
        vid::GuestPages::write(self, offset, data).map_err(|_| PagesError)
    }

    fn load_u32(&self, offset: usize) -> Result<u32, PagesError> {
        vid::GuestPages::load_u32(self, offset).map_err(|_| PagesError)
    }

    fn store_u32(&self, offset: usize, value: u32) -> Result<(), PagesError> {
        vid::GuestPages::store_u32(self, offset, value).map_err(|_| PagesError)
    }
}

/// Memory without a guest, for tests and fuzzing: any thread may access it at
/// any time, as a guest would.
pub struct HeapPages {
    words: Box<[AtomicU32]>,
}

const WORD: usize = 4;

impl HeapPages {
    /// `pages` pages of zeros.
    pub fn new(pages: usize) -> Self {
        let words = pages * (crate::protocol::PAGE_SIZE as usize / WORD);
        Self {
            words: (0..words).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    fn word(&self, offset: usize) -> Result<&AtomicU32, PagesError> {
        if !offset.is_multiple_of(WORD) {
            return Err(PagesError);
        }
        self.words.get(offset / WORD).ok_or(PagesError)
    }

    fn check(&self, offset: usize, length: usize) -> Result<(), PagesError> {
        let end = offset.checked_add(length).ok_or(PagesError)?;
        if end <= self.len() {
            Ok(())
        } else {
            Err(PagesError)
        }
    }
}

impl GuestPages for HeapPages {
    fn len(&self) -> usize {
        self.words.len() * WORD
    }

    fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), PagesError> {
        self.check(offset, data.len())?;
        let (mut at, mut done) = (offset, 0);
        while done < data.len() {
            let here = (WORD - at % WORD).min(data.len() - done);
            let word = self.words[at / WORD].load(Ordering::Relaxed).to_le_bytes();
            data[done..done + here].copy_from_slice(&word[at % WORD..at % WORD + here]);
            (at, done) = (at + here, done + here);
        }
        Ok(())
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), PagesError> {
        self.check(offset, data.len())?;
        let (mut at, mut done) = (offset, 0);
        while done < data.len() {
            let here = (WORD - at % WORD).min(data.len() - done);
            let slot = &self.words[at / WORD];
            let mut word = slot.load(Ordering::Relaxed).to_le_bytes();
            word[at % WORD..at % WORD + here].copy_from_slice(&data[done..done + here]);
            slot.store(u32::from_le_bytes(word), Ordering::Relaxed);
            (at, done) = (at + here, done + here);
        }
        Ok(())
    }

    fn load_u32(&self, offset: usize) -> Result<u32, PagesError> {
        Ok(self.word(offset)?.load(Ordering::Acquire))
    }

    fn store_u32(&self, offset: usize, value: u32) -> Result<(), PagesError> {
        self.word(offset)?.store(value, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_pages_are_checked() {
        let pages = HeapPages::new(1);
        pages.write(1, &[1, 2, 3, 4, 5, 6]).unwrap();
        let mut back = [0; 8];
        pages.read(0, &mut back).unwrap();
        assert_eq!(back, [0, 1, 2, 3, 4, 5, 6, 0]);
        assert_eq!(pages.load_u32(4), Ok(0x0006_0504));
        assert_eq!(pages.load_u32(2), Err(PagesError));
        assert_eq!(pages.store_u32(4096, 1), Err(PagesError));
        assert_eq!(pages.write(4095, &[1, 2]), Err(PagesError));
        assert_eq!(pages.read(usize::MAX, &mut back), Err(PagesError));
    }
}
