//! Which parts of the file are free.

use std::collections::BTreeMap;

use super::layout::MIB;
use crate::error::{DiskError, Result};

/// A used part of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// What it is, for messages.
    pub(super) what: &'static str,
}

/// The free parts between the used ones, all whole MiB, and the end of the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Space {
    free: BTreeMap<u64, u64>,
    end: u64,
}

impl Space {
    /// Finds the gaps; refuses parts that overlap or lie past the end of the file.
    pub(super) fn from_used(mut used: Vec<Used>, file_len: u64) -> Result<Self> {
        used.sort_unstable_by_key(|u| u.offset);
        let mut space = Self::default();
        let mut at = 0;
        for part in &used {
            let corrupt = |reason: String| DiskError::corrupt(part.what, part.offset, reason);
            if part.offset < at {
                return Err(corrupt("it overlaps another structure of the file".into()));
            }
            if part.offset > at {
                space.free.insert(at, part.offset - at);
            }
            at = match part.offset.checked_add(part.len) {
                Some(end) if end <= file_len => end,
                _ => {
                    let reason = format!("it reaches past the end of the file at {file_len:#x}");
                    return Err(corrupt(reason));
                }
            };
        }
        space.end = file_len.next_multiple_of(MIB);
        if at < space.end {
            space.free.insert(at, space.end - at);
        }
        Ok(space)
    }

    /// End of the file that all parts fit into.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that are free inside the file.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free.values().sum()
    }

    /// Takes `len` bytes from the first gap that is large enough, else from the end of the file.
    /// The flag tells that the place may hold old data.
    pub(super) fn take(&mut self, len: u64) -> (u64, bool) {
        if let Some(at) = self.take_below(len, u64::MAX) {
            return (at, true);
        }
        let at = self.end;
        self.end += len;
        (at, false)
    }

    /// Takes `len` bytes from a gap that ends at or before `limit`.
    pub(super) fn take_below(&mut self, len: u64, limit: u64) -> Option<u64> {
        let (&at, &size) = self
            .free
            .range(..limit)
            .find(|&(at, size)| *size >= len && at + len <= limit)?;
        self.free.remove(&at);
        if size > len {
            self.free.insert(at + len, size - len);
        }
        Some(at)
    }

    /// Gives a part back.
    pub(super) fn give(&mut self, offset: u64, len: u64) {
        let (mut start, mut end) = (offset, offset + len);
        if let Some((&s, &l)) = self.free.range(..start).next_back()
            && s + l == start
        {
            self.free.remove(&s);
            start = s;
        }
        if let Some(l) = self.free.remove(&end) {
            end += l;
        }
        self.free.insert(start, end - start);
    }

    /// Drops a free part at the very end; returns the new end of the file.
    pub(super) fn trim_end(&mut self) -> u64 {
        if let Some((&at, &len)) = self.free.iter().next_back()
            && at + len == self.end
        {
            self.free.remove(&at);
            self.end = at;
        }
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(offset: u64, len: u64) -> Used {
        Used {
            offset: offset * MIB,
            len: len * MIB,
            what: "part",
        }
    }

    #[test]
    fn gaps_are_used_before_the_end() {
        let parts = vec![used(0, 1), used(4, 1), used(2, 1)];
        let mut space = Space::from_used(parts, 6 * MIB).expect("valid");
        assert_eq!(space.free_bytes(), 3 * MIB);
        assert_eq!(space.take(MIB), (MIB, true));
        assert_eq!(space.take(2 * MIB), (6 * MIB, false));
        space.give(2 * MIB, MIB);
        assert_eq!(space.take(2 * MIB), (2 * MIB, true));
        space.give(6 * MIB, 2 * MIB);
        assert_eq!(space.trim_end(), 5 * MIB);
    }

    #[test]
    fn overlaps_and_overruns_are_refused() {
        assert!(Space::from_used(vec![used(0, 2), used(1, 1)], 8 * MIB).is_err());
        assert!(Space::from_used(vec![used(7, 2)], 8 * MIB).is_err());
        let huge = Used {
            offset: u64::MAX - MIB,
            len: 2 * MIB,
            what: "part",
        };
        assert!(Space::from_used(vec![huge], 8 * MIB).is_err());
    }
}
