//! Requests, cut at the borders of blocks.

use std::io::{IoSlice, IoSliceMut};

use crate::error::Result;
use crate::iov;

/// Zeros to be written.
pub(crate) static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A part of a request that lies in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) block: u64,
    /// Bytes from the start of the block.
    pub(crate) within: u64,
    pub(crate) len: u64,
    /// Bytes from the start of the request.
    pub(crate) done: u64,
}

/// The pieces of the request for `len` bytes from `offset` on.
pub(crate) fn pieces(offset: u64, len: u64, block_size: u64) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let (block, within) = ((offset + done) / block_size, (offset + done) % block_size);
        let piece = Piece {
            block,
            within,
            len: (block_size - within).min(len - done),
            done,
        };
        done += piece.len;
        Some(piece)
    })
}

/// Reads each piece of a request into its part of the buffers.
pub(crate) fn read(
    pieces: impl Iterator<Item = Piece>,
    bufs: &mut [IoSliceMut<'_>],
    mut read: impl FnMut(Piece, &mut [IoSliceMut<'_>]) -> Result<()>,
) -> Result<()> {
    let len = iov::len_mut(bufs);
    for piece in pieces {
        if piece.len == len {
            read(piece, bufs)?;
        } else {
            read(piece, &mut iov::part_mut(bufs, piece.done, piece.len))?;
        }
    }
    Ok(())
}

/// Writes each piece of a request from its part of the buffers.
pub(crate) fn write(
    pieces: impl Iterator<Item = Piece>,
    bufs: &[IoSlice<'_>],
    mut write: impl FnMut(Piece, &[IoSlice<'_>]) -> Result<()>,
) -> Result<()> {
    let len = iov::len(bufs);
    for piece in pieces {
        if piece.len == len {
            write(piece, bufs)?;
        } else {
            write(piece, &iov::part(bufs, piece.done, piece.len))?;
        }
    }
    Ok(())
}

/// Writes zeros to a piece, in parts.
pub(crate) fn write_zeros(
    piece: Piece,
    mut write: impl FnMut(Piece, &[IoSlice<'_>]) -> Result<()>,
) -> Result<()> {
    let mut done = 0;
    while done < piece.len {
        let len = (piece.len - done).min(ZEROS.len() as u64);
        let part = Piece {
            within: piece.within + done,
            len,
            ..piece
        };
        write(part, &[IoSlice::new(&ZEROS[..len as usize])])?;
        done += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_borders_of_blocks() {
        let cut = |offset, len, block_size| -> Vec<_> {
            pieces(offset, len, block_size)
                .map(|piece| (piece.block, piece.within, piece.len, piece.done))
                .collect()
        };
        let expected = [(0, 90, 10, 0), (1, 0, 100, 10), (2, 0, 5, 110)];
        assert_eq!(cut(90, 115, 100), expected);
        assert_eq!(cut(100, 100, 100), [(1, 0, 100, 0)]);
        assert_eq!(cut(7, 8, u64::MAX), [(0, 7, 8, 0)]);
        assert_eq!(cut(7, 0, 100), []);
    }

    #[test]
    fn zeros_come_in_parts_without_a_gap() {
        let piece = Piece {
            block: 3,
            within: 500,
            len: 2 * ZEROS.len() as u64 + 1,
            done: 9,
        };
        let mut at = 500;
        let written = write_zeros(piece, |part, bufs| {
            assert_eq!((part.block, part.within), (3, at));
            assert_eq!(iov::len(bufs), part.len);
            at += part.len;
            Ok(())
        });
        assert!(written.is_ok());
        assert_eq!(at, 500 + piece.len);
    }
}
