//! Input that is the same everywhere, and checksums.

/// A xorshift generator (64 bits of state, period 2^64 - 1).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// Starts a sequence; each seed has its own.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        ((self.next() >> 16) % limit as u64) as usize
    }

    /// A number from 0 to 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Folds a value into a checksum (FNV-1a by words).
pub(crate) fn mix(sum: u64, value: u64) -> u64 {
    (sum ^ value).wrapping_mul(0x0100_0000_01b3)
}

/// The checksum of bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        mix(sum, u64::from(*byte))
    })
}

/// The checksum of numbers, bit for bit.
pub(crate) fn checksum_of_floats(values: &[f64]) -> u64 {
    values
        .iter()
        .fold(0, |sum, value| mix(sum, value.to_bits()))
}

/// Lines of some words and a number each.
pub(crate) fn lines(count: usize, seed: u64) -> String {
    const WORDS: [&str; 16] = [
        "partition",
        "processor",
        "page",
        "message",
        "port",
        "event",
        "timer",
        "vector",
        "guest",
        "root",
        "bus",
        "channel",
        "ring",
        "packet",
        "memory",
        "register",
    ];
    let mut random = Random::new(seed);
    let mut text = String::new();
    for _ in 0..count {
        for _ in 0..2 + random.below(5) {
            text.push_str(WORDS[random.below(WORDS.len())]);
            text.push(' ');
        }
        text.push_str(&random.below(100_000).to_string());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_follow_fnv() {
        // The published value for "a" with 64 bits.
        assert_eq!(checksum(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(checksum_of_floats(&[0.0]), checksum_of_floats(&[-0.0]));
    }

    #[test]
    fn lines_end_with_a_number() {
        let text = lines(50, 1);
        assert_eq!(text.lines().count(), 50);
        for line in text.lines() {
            let last = line.rsplit(' ').next().unwrap();
            assert!(last.parse::<u32>().is_ok(), "{line}");
        }
        assert_eq!(text, lines(50, 1));
        assert_ne!(text, lines(50, 2));
    }

    #[test]
    fn random_numbers_keep_their_bounds() {
        let mut random = Random::new(5);
        assert!((0..1000).all(|_| random.below(7) < 7));
        assert!((0..1000).all(|_| (0.0..1.0).contains(&random.unit())));
    }
}
