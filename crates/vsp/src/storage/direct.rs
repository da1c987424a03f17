//! Transfers between a file and memory that a guest uses at the same time.
//!
//! Such memory must not be seen through references, which promise that nobody
//! else writes. So the system calls are made with plain addresses.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use vid::HostPiece;

/// Pieces that the kernel takes in one call (`IOV_MAX`).
const MAX_PIECES: usize = 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromFile,
    ToFile,
}

/// Fills `pieces` from the file, from byte `offset` on.
///
/// # Errors
///
/// What the host says; `UnexpectedEof` where the file is too short.
///
/// # Safety
///
/// The pieces must be mapped and writable memory until this returns, and
/// nothing may rely on its contents.
pub(super) unsafe fn read_at(
    file: BorrowedFd<'_>,
    offset: u64,
    pieces: &[HostPiece],
) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { transfer(file, offset, pieces, Direction::FromFile) }
}

/// Writes `pieces` to the file, from byte `offset` on.
///
/// # Errors
///
/// What the host says.
///
/// # Safety
///
/// The pieces must be mapped and readable memory until this returns.
pub(super) unsafe fn write_at(
    file: BorrowedFd<'_>,
    offset: u64,
    pieces: &[HostPiece],
) -> io::Result<()> {
    // SAFETY: the caller's promise.
    unsafe { transfer(file, offset, pieces, Direction::ToFile) }
}

/// Reads what the host has in its cache: bytes, from the beginning, possibly
/// fewer than asked for.
///
/// # Errors
///
/// `WouldBlock` where the first byte is not there, or what else the host says.
///
/// # Safety
///
/// As for [`read_at`].
pub(super) unsafe fn read_cached(
    file: BorrowedFd<'_>,
    offset: u64,
    vectors: &[libc::iovec],
) -> io::Result<usize> {
    let position =
        libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let count = vectors.len().min(MAX_PIECES) as libc::c_int;
    let fd = file.as_raw_fd();
    // SAFETY: there are at least `count` vectors, the descriptor is borrowed,
    // and the vectors are memory by the caller's promise.
    let done = unsafe { libc::preadv2(fd, vectors.as_ptr(), count, position, libc::RWF_NOWAIT) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// # Safety
///
/// As for [`read_at`] and [`write_at`].
unsafe fn transfer(
    file: BorrowedFd<'_>,
    mut offset: u64,
    pieces: &[HostPiece],
    direction: Direction,
) -> io::Result<()> {
    let mut vectors: Vec<libc::iovec> = pieces
        .iter()
        .filter(|piece| piece.length > 0)
        .map(|piece| libc::iovec {
            iov_base: piece.address.cast(),
            iov_len: piece.length,
        })
        .collect();
    let mut left = &mut vectors[..];
    while !left.is_empty() {
        let position = libc::off_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let count = left.len().min(MAX_PIECES) as libc::c_int;
        let fd = file.as_raw_fd();
        let done = match direction {
            // SAFETY: `left` has at least `count` vectors, the descriptor is
            // borrowed, and the vectors are memory by the caller's promise.
            Direction::FromFile => unsafe { libc::preadv(fd, left.as_ptr(), count, position) },
            // SAFETY: as above.
            Direction::ToFile => unsafe { libc::pwritev(fd, left.as_ptr(), count, position) },
        };
        let done = match usize::try_from(done) {
            Ok(0) if direction == Direction::FromFile => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(done) => done,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
        };
        offset += done as u64;
        left = advance(left, done);
    }
    Ok(())
}

/// The vectors without their first `done` bytes.
pub(super) fn advance(mut vectors: &mut [libc::iovec], mut done: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if done < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(done);
            first.iov_len -= done;
            break;
        }
        done -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn pieces(data: &mut [u8], size: usize) -> Vec<HostPiece> {
        let piece = |part: &mut [u8]| HostPiece {
            address: part.as_mut_ptr(),
            length: part.len(),
        };
        data.chunks_mut(size).map(piece).collect()
    }

    #[test]
    fn what_is_cached_is_there_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, [7; 100]).unwrap();
        let file = std::fs::File::open(&path).unwrap();
        let mut data = [0; 200];
        let vector = libc::iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: data.len(),
        };
        let read = |offset| {
            // SAFETY: the vector is `data`, which nobody else uses.
            unsafe { read_cached(file.as_fd(), offset, &[vector]) }
        };
        // Some file systems cannot tell.
        if let Ok(count) = read(10) {
            assert_eq!(count, 90);
            assert_eq!(read(100).unwrap(), 0);
        }
        assert!(read(u64::MAX).is_err());
    }

    #[test]
    fn more_pieces_than_one_call_takes() {
        let file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..=250).cycle().take(9000).collect();
        let mut copy = data.clone();
        // SAFETY: the pieces are `copy`, which nobody else uses.
        unsafe { write_at(file.as_fd(), 5, &pieces(&mut copy, 3)) }.unwrap();
        let mut back = vec![0; 9000];
        // SAFETY: the pieces are `back`, which nobody else uses.
        unsafe { read_at(file.as_fd(), 5, &pieces(&mut back, 7)) }.unwrap();
        assert_eq!(back, data);
        // SAFETY: as above.
        let short = unsafe { read_at(file.as_fd(), 6, &pieces(&mut back, 7)) };
        assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
