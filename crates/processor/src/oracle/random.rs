//! Seeded random numbers with a taste for edges.

/// Xorshift64*: small, and the same on every machine.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator for one instruction form (or one other use) of a run.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut mixed = Self((seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        for _ in 0..4 {
            mixed.next();
        }
        mixed
    }

    /// 64 random bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `end`, exclusive; 0 for an empty range.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        if end == 0 {
            0
        } else {
            (self.next() >> 11) % end
        }
    }

    /// True in `percent` of all calls.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `from`.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A register or memory value: random bits, or one where carries,
    /// overflows, signs and shift counts turn.
    pub(crate) fn operand(&mut self) -> u64 {
        let width = self.pick(&[8, 16, 32, 64]);
        let low = u64::MAX >> (64 - width);
        let bit = 1u64 << self.below(64);
        match self.below(12) {
            0 => 0,
            1 => 1,
            2 => u64::MAX,
            3 => low,
            4 => low >> 1,
            5 => (low >> 1) + 1,
            6 => bit,
            7 => bit.wrapping_sub(1),
            8 => self.below(256),
            9 => self.next() & low,
            _ => self.next(),
        }
    }
}
