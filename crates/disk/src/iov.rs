//! Parts of scatter and gather lists.

use std::io::{IoSlice, IoSliceMut};

/// Bytes in a gather list.
pub(crate) fn len(bufs: &[IoSlice<'_>]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

/// Bytes in a scatter list.
pub(crate) fn len_mut(bufs: &[IoSliceMut<'_>]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

/// The `len` bytes of a gather list that follow its first `skip` bytes (fewer at its end).
pub(crate) fn part<'a>(bufs: &'a [IoSlice<'_>], skip: u64, len: u64) -> Vec<IoSlice<'a>> {
    let (mut skip, mut left) = (skip, len);
    let mut out = Vec::new();
    for buf in bufs {
        if left == 0 {
            break;
        }
        let size = buf.len() as u64;
        if skip >= size {
            skip -= size;
            continue;
        }
        let take = left.min(size - skip);
        out.push(IoSlice::new(&buf[skip as usize..(skip + take) as usize]));
        left -= take;
        skip = 0;
    }
    out
}

/// The `len` bytes of a scatter list that follow its first `skip` bytes (fewer at its end).
pub(crate) fn part_mut<'a>(
    bufs: &'a mut [IoSliceMut<'_>],
    skip: u64,
    len: u64,
) -> Vec<IoSliceMut<'a>> {
    let (mut skip, mut left) = (skip, len);
    let mut out = Vec::new();
    for buf in bufs {
        if left == 0 {
            break;
        }
        let size = buf.len() as u64;
        if skip >= size {
            skip -= size;
            continue;
        }
        let take = left.min(size - skip);
        out.push(IoSliceMut::new(
            &mut buf[skip as usize..(skip + take) as usize],
        ));
        left -= take;
        skip = 0;
    }
    out
}

/// Fills a scatter list with zeros.
pub(crate) fn zero(bufs: &mut [IoSliceMut<'_>]) {
    for buf in bufs {
        buf.fill(0);
    }
}

/// Whether every byte of `data` is zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (words, tail) = data.as_chunks::<8>();
    words.iter().all(|w| u64::from_ne_bytes(*w) == 0) && tail.iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cross_buffer_borders() {
        let (a, b, c) = ([1u8, 2, 3], [4u8], [5u8, 6, 7, 8]);
        let list = [IoSlice::new(&a), IoSlice::new(&b), IoSlice::new(&c)];
        let flat: Vec<u8> = part(&list, 2, 4).iter().flat_map(|s| s.to_vec()).collect();
        assert_eq!(flat, [3, 4, 5, 6]);
        assert_eq!(len(&list), 8);
        assert!(part(&list, 8, 4).is_empty());
        assert_eq!(len(&part(&list, 6, 40)), 2);
    }

    #[test]
    fn zeros_fill_parts_of_buffers() {
        let (mut a, mut b) = ([9u8; 2], [9u8; 3]);
        let mut list = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        zero(&mut part_mut(&mut list, 1, 2));
        assert_eq!((a, b), ([9, 0], [0, 9, 9]));
    }

    #[test]
    fn zero_detection_sees_every_position() {
        let mut data = vec![0u8; 37];
        assert!(is_zero(&data));
        for i in 0..data.len() {
            data[i] = 1;
            assert!(!is_zero(&data), "byte {i}");
            data[i] = 0;
        }
    }
}
