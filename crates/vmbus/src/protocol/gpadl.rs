//! Ranges of guest pages, as GPADLs and GPA-direct packets list them.

use super::PAGE_SIZE;
use std::ops::Range;

/// Bytes of a range's header: count of bytes and offset.
pub const RANGE_HEADER_SIZE: usize = 8;
/// Bytes of a page frame number.
pub const PFN_SIZE: usize = 8;
/// Bytes that one range can span: a list of pages fits 16 bits of length.
pub const MAX_RANGE_BYTES: u64 = (u16::MAX as u64 / PFN_SIZE as u64) * PAGE_SIZE;

/// Page frame numbers are below this: 52 bits of physical address.
const MAX_PFN: u64 = 1 << 40;

/// A list of ranges is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpadlError {
    /// No range, or one without bytes.
    #[error("a range without pages")]
    Empty,
    /// The bytes end before the ranges do.
    #[error("the list of pages is cut short")]
    Truncated,
    /// An offset beyond the first page.
    #[error("offset {0:#x} is beyond the first page")]
    Offset(u32),
    /// A page frame number beyond 52 bits of address.
    #[error("page {0:#x} is no page")]
    Page(u64),
}

/// Bytes that lie in pages of the guest, one behind the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpaRange {
    /// Bytes.
    pub byte_count: u32,
    /// Where they begin in the first page.
    pub byte_offset: u32,
    /// The pages.
    pub pfns: Vec<u64>,
}

impl GpaRange {
    /// Pages that `byte_count` bytes from `byte_offset` on touch.
    pub fn page_count(byte_count: u32, byte_offset: u32) -> usize {
        (u64::from(byte_count) + u64::from(byte_offset)).div_ceil(PAGE_SIZE) as usize
    }

    /// The pieces in guest-physical memory, neighbours joined: address and
    /// length.
    pub fn segments(&self) -> impl Iterator<Item = (u64, usize)> + '_ {
        let mut pages = self.pfns.iter().copied().peekable();
        let mut offset = u64::from(self.byte_offset);
        let mut left = u64::from(self.byte_count);
        std::iter::from_fn(move || {
            let first = pages.next()?;
            let (mut last, mut room) = (first, PAGE_SIZE - offset);
            while room < left && pages.peek().is_some_and(|&next| next == last + 1) {
                last = pages.next()?;
                room += PAGE_SIZE;
            }
            let length = room.min(left);
            let gpa = first * PAGE_SIZE + offset;
            (offset, left) = (0, left - length);
            (length > 0).then_some((gpa, length as usize))
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let field: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_le_bytes(field))
}

/// Reads one range from the head of `bytes`: its header, and where its page
/// list lies.
fn parse_range(bytes: &[u8], at: usize) -> Result<(u32, u32, Range<usize>), GpadlError> {
    let byte_count = word(bytes, at).ok_or(GpadlError::Truncated)?;
    let byte_offset = word(bytes, at + 4).ok_or(GpadlError::Truncated)?;
    if byte_count == 0 {
        return Err(GpadlError::Empty);
    }
    if u64::from(byte_offset) >= PAGE_SIZE {
        return Err(GpadlError::Offset(byte_offset));
    }
    let list = at + RANGE_HEADER_SIZE;
    // The sizes are below 2^32 pages, so nothing overflows.
    let end = list + GpaRange::page_count(byte_count, byte_offset) * PFN_SIZE;
    if end > bytes.len() {
        return Err(GpadlError::Truncated);
    }
    Ok((byte_count, byte_offset, list..end))
}

/// Reads `count` ranges. What follows them is left alone: guests leave room
/// there. The memory it takes is bounded by the length of `bytes`.
///
/// # Errors
///
/// [`GpadlError`], for the first thing that is wrong.
pub fn parse_ranges(bytes: &[u8], count: usize) -> Result<Vec<GpaRange>, GpadlError> {
    if count == 0 {
        return Err(GpadlError::Empty);
    }
    let mut ranges = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let (byte_count, byte_offset, list) = parse_range(bytes, at)?;
        at = list.end;
        let mut pfns = Vec::with_capacity(list.len() / PFN_SIZE);
        for pfn in bytes[list].as_chunks::<PFN_SIZE>().0 {
            let pfn = u64::from_le_bytes(*pfn);
            if pfn >= MAX_PFN {
                return Err(GpadlError::Page(pfn));
            }
            pfns.push(pfn);
        }
        ranges.push(GpaRange {
            byte_count,
            byte_offset,
            pfns,
        });
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(count: u32, offset: u32, pfns: &[u64]) -> Vec<u8> {
        let mut bytes = [count.to_le_bytes(), offset.to_le_bytes()].concat();
        bytes.extend(pfns.iter().flat_map(|pfn| pfn.to_le_bytes()));
        bytes
    }

    #[test]
    fn ranges_and_their_segments() {
        let bytes = [range(0x2000, 0xf00, &[5, 6, 9]), range(8, 0, &[1])].concat();
        let ranges = parse_ranges(&bytes, 2).unwrap();
        let segments: Vec<_> = ranges[0].segments().collect();
        assert_eq!(segments, [(0x5f00, 0x1100), (0x9000, 0xf00)]);
        assert_eq!(ranges[1].segments().collect::<Vec<_>>(), [(0x1000, 8)]);
    }

    #[test]
    fn wrong_lists_are_refused() {
        let good = range(0x1000, 1, &[1, 2]);
        assert_eq!(parse_ranges(&good, 0), Err(GpadlError::Empty));
        assert_eq!(parse_ranges(&good, 2), Err(GpadlError::Truncated));
        assert_eq!(parse_ranges(&good[..16], 1), Err(GpadlError::Truncated));
        let long = [good.clone(), vec![0; 8]].concat();
        assert_eq!(parse_ranges(&long, 1).unwrap().len(), 1);
        assert_eq!(parse_ranges(&range(0, 0, &[]), 1), Err(GpadlError::Empty));
        assert_eq!(
            parse_ranges(&range(8, 0x1000, &[1, 2]), 1),
            Err(GpadlError::Offset(0x1000))
        );
        assert_eq!(
            parse_ranges(&range(8, 0, &[1 << 40]), 1),
            Err(GpadlError::Page(1 << 40))
        );
        assert_eq!(
            parse_ranges(&range(u32::MAX, 0xfff, &[1]), 1),
            Err(GpadlError::Truncated)
        );
    }
}
