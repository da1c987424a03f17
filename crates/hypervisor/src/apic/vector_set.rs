//! A set of the 256 interrupt vectors, laid out as the APIC's eight 32-bit
//! IRR, ISR and TMR registers.

/// One bit for each vector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorSet {
    words: [u32; 8],
}

impl VectorSet {
    pub(super) fn insert(&mut self, vector: u8) {
        self.words[usize::from(vector >> 5)] |= 1 << (vector & 31);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.words[usize::from(vector >> 5)] &= !(1 << (vector & 31));
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.words[usize::from(vector >> 5)] & (1 << (vector & 31)) != 0
    }

    /// The vector with the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        (0u8..8).rev().find_map(|index| {
            let word = self.words[usize::from(index)];
            // At most 7 * 32 + 31, so the sum is a vector.
            (word != 0).then(|| index * 32 + (31 - word.leading_zeros() as u8))
        })
    }

    /// Register `index` (0 to 7; others read 0).
    pub(super) fn word(&self, index: usize) -> u32 {
        self.words.get(index).copied().unwrap_or(0)
    }

    pub(super) fn words(&self) -> [u32; 8] {
        self.words
    }

    /// A set from register contents. Vectors that can never be requested
    /// (0 to 15) are dropped.
    pub(super) fn from_words(mut words: [u32; 8]) -> Self {
        words[0] &= !0xFFFF;
        Self { words }
    }
}
