//! Bytes of messages and packets, put together field by field.

/// Up to `N` bytes.
#[derive(Clone, Copy)]
pub struct Bytes<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Bytes<N> {
    /// None yet.
    pub const fn new() -> Self {
        Self {
            bytes: [0; N],
            length: 0,
        }
    }

    /// Adds bytes; what does not fit is left out.
    pub fn put(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            if let Some(place) = self.bytes.get_mut(self.length) {
                *place = *byte;
                self.length += 1;
            }
        }
        self
    }

    /// Adds a byte.
    pub fn u8(self, value: u8) -> Self {
        self.put(&[value])
    }

    /// Adds two bytes.
    pub fn u16(self, value: u16) -> Self {
        self.put(&value.to_le_bytes())
    }

    /// Adds four bytes.
    pub fn u32(self, value: u32) -> Self {
        self.put(&value.to_le_bytes())
    }

    /// Adds eight bytes.
    pub fn u64(self, value: u64) -> Self {
        self.put(&value.to_le_bytes())
    }

    /// Adds zeros up to a length.
    pub fn up_to(mut self, length: usize) -> Self {
        while self.length < length.min(N) {
            self = self.u8(0);
        }
        self
    }

    /// What was added.
    pub fn get(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The word at an offset; 0 beyond the end.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_le_bytes)
}
