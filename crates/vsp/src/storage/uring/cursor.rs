//! How far a transfer between a file and scattered memory has come.

use super::super::direct::advance;
use std::io;
use vid::HostPiece;

/// Pieces that the kernel takes in one call (`IOV_MAX`).
const MAX_PIECES: usize = 1024;
/// How often a transfer that gets nowhere is tried again.
const MAX_STALLS: u8 = 16;

/// Where data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    FromFile,
    ToFile,
}

/// What is to be done after a part.
#[derive(Debug)]
pub(crate) enum Step {
    /// There is more to be done: see [`Cursor::next`].
    More,
    /// All is done.
    Done,
    /// It cannot be done.
    Failed(io::Error),
}

/// What the kernel is to be asked for.
pub(crate) struct Next<'a> {
    /// Byte offset in the file.
    pub(crate) offset: u64,
    /// Memory, in order.
    pub(crate) vectors: &'a [libc::iovec],
}

/// A stretch of the file, and the end of the vectors that belong to it.
struct Part {
    offset: u64,
    end: usize,
}

/// A transfer of some stretches of a file from or to memory, in order. The
/// kernel may do it in smaller parts than it is asked for.
pub(crate) struct Cursor {
    direction: Direction,
    vectors: Vec<libc::iovec>,
    /// Vectors before this are done.
    first: usize,
    parts: Vec<Part>,
    /// Parts before this are done.
    part: usize,
    stalls: u8,
}

// SAFETY: the addresses in the vectors are only numbers here; who makes the
// kernel use them answers for what they lead to.
unsafe impl Send for Cursor {}

impl Cursor {
    /// A transfer between `extents`, each a byte offset in the file and a
    /// length, and `pieces`. `None` where they have not the same length, or
    /// nothing is to be done.
    pub(crate) fn new(
        direction: Direction,
        extents: &[(u64, u64)],
        pieces: &[HostPiece],
    ) -> Option<Self> {
        let mut cursor = Self {
            direction,
            vectors: Vec::with_capacity(pieces.len() + extents.len()),
            first: 0,
            parts: Vec::with_capacity(extents.len()),
            part: 0,
            stalls: 0,
        };
        let mut pieces = pieces.iter().copied();
        let mut piece = pieces.next();
        for &(offset, length) in extents.iter().filter(|(_, length)| *length > 0) {
            let mut left = usize::try_from(length).ok()?;
            offset
                .checked_add(length)
                .filter(|&end| i64::try_from(end).is_ok())?;
            while left > 0 {
                let here = piece.as_mut()?;
                let taken = here.length.min(left);
                if taken > 0 {
                    cursor.vectors.push(libc::iovec {
                        iov_base: here.address.cast(),
                        iov_len: taken,
                    });
                }
                here.address = here.address.wrapping_add(taken);
                here.length -= taken;
                left -= taken;
                if here.length == 0 {
                    piece = pieces.next();
                }
            }
            let end = cursor.vectors.len();
            cursor.parts.push(Part { offset, end });
        }
        let rest = piece
            .into_iter()
            .chain(pieces)
            .any(|piece| piece.length > 0);
        (!rest && !cursor.parts.is_empty()).then_some(cursor)
    }

    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    /// What is to be done now; nothing when all is done.
    pub(crate) fn next(&self) -> Option<Next<'_>> {
        let part = self.parts.get(self.part)?;
        let vectors = self.vectors.get(self.first..part.end)?;
        Some(Next {
            offset: part.offset,
            vectors: &vectors[..vectors.len().min(MAX_PIECES)],
        })
    }

    /// Takes what the kernel says of [`Cursor::next`]: bytes that were moved,
    /// or an error number, negative.
    pub(crate) fn advance(&mut self, result: i32) -> Step {
        let Ok(moved) = usize::try_from(result) else {
            return self.stalled(io::Error::from_raw_os_error(result.saturating_neg()));
        };
        let Some(part) = self.parts.get_mut(self.part) else {
            return Step::Done;
        };
        let asked = &mut self.vectors[self.first..part.end];
        if moved == 0 {
            let kind = match self.direction {
                Direction::FromFile => io::ErrorKind::UnexpectedEof,
                Direction::ToFile => io::ErrorKind::WriteZero,
            };
            return Step::Failed(kind.into());
        }
        let rest = advance(asked, moved).len();
        self.first = part.end - rest;
        part.offset += moved as u64;
        self.stalls = 0;
        if rest == 0 {
            self.part += 1;
        }
        if self.part < self.parts.len() {
            Step::More
        } else {
            Step::Done
        }
    }

    /// An error: some only mean that it is to be tried again.
    fn stalled(&mut self, error: io::Error) -> Step {
        let again = matches!(
            error.kind(),
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
        );
        if again && self.stalls < MAX_STALLS {
            self.stalls += 1;
            Step::More
        } else {
            Step::Failed(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(address: usize, length: usize) -> HostPiece {
        HostPiece {
            address: std::ptr::without_provenance_mut(address),
            length,
        }
    }

    fn next(cursor: &Cursor) -> Option<(u64, Vec<(usize, usize)>)> {
        let next = cursor.next()?;
        let vectors = next.vectors.iter();
        let vectors = vectors.map(|vector| (vector.iov_base.addr(), vector.iov_len));
        Some((next.offset, vectors.collect()))
    }

    #[test]
    fn extents_and_pieces_have_borders_of_their_own() {
        let pieces = [piece(0x1000, 300), piece(0x5000, 0), piece(0x9000, 700)];
        let extents = [(10_000, 500), (0, 0), (70_000, 500)];
        let mut cursor = Cursor::new(Direction::FromFile, &extents, &pieces).unwrap();
        let first = vec![(0x1000, 300), (0x9000, 200)];
        assert_eq!(next(&cursor), Some((10_000, first)));
        // Short, in the middle of a piece.
        assert!(matches!(cursor.advance(100), Step::More));
        let rest = vec![(0x1064, 200), (0x9000, 200)];
        assert_eq!(next(&cursor), Some((10_100, rest)));
        assert!(matches!(cursor.advance(200), Step::More));
        assert_eq!(next(&cursor), Some((10_300, vec![(0x9000, 200)])));
        assert!(matches!(cursor.advance(200), Step::More));
        assert_eq!(next(&cursor), Some((70_000, vec![(0x90c8, 500)])));
        assert!(matches!(cursor.advance(500), Step::Done));
        assert_eq!(next(&cursor), None);
    }

    #[test]
    fn lengths_must_agree() {
        let make = |extents: &[(u64, u64)], pieces: &[HostPiece]| {
            Cursor::new(Direction::ToFile, extents, pieces).is_some()
        };
        assert!(make(&[(0, 8)], &[piece(8, 8)]));
        assert!(!make(&[(0, 8)], &[piece(8, 7)]));
        assert!(!make(&[(0, 8)], &[piece(8, 8), piece(99, 1)]));
        assert!(make(&[(0, 8)], &[piece(8, 8), piece(99, 0)]));
        assert!(!make(&[], &[]));
        assert!(!make(&[(u64::MAX, 8)], &[piece(8, 8)]));
        assert!(!make(&[(i64::MAX as u64, 8)], &[piece(8, 8)]));
    }

    #[test]
    fn more_pieces_than_one_call_takes() {
        let pieces: Vec<HostPiece> = (0..2500).map(|at| piece(at * 4096, 512)).collect();
        let extents = [(0, 2500 * 512)];
        let mut cursor = Cursor::new(Direction::ToFile, &extents, &pieces).unwrap();
        let mut sizes = Vec::new();
        while let Some(next) = cursor.next() {
            sizes.push((next.offset, next.vectors.len()));
            let length: usize = next.vectors.iter().map(|vector| vector.iov_len).sum();
            let step = cursor.advance(length as i32);
            assert!(!matches!(step, Step::Failed(_)));
        }
        assert_eq!(sizes, [(0, 1024), (1024 * 512, 1024), (2048 * 512, 452)]);
    }

    #[test]
    fn errors_end_it_unless_they_pass() {
        let extents = [(0, 8)];
        let make = |direction| Cursor::new(direction, &extents, &[piece(8, 8)]).unwrap();
        let failed = |step| match step {
            Step::Failed(error) => error,
            other => panic!("{other:?}"),
        };
        let mut cursor = make(Direction::FromFile);
        let error = failed(cursor.advance(-libc::EIO));
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let error = failed(make(Direction::FromFile).advance(0));
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let error = failed(make(Direction::ToFile).advance(0));
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
        failed(make(Direction::ToFile).advance(i32::MIN));
        let mut cursor = make(Direction::ToFile);
        for _ in 0..MAX_STALLS {
            assert!(matches!(cursor.advance(-libc::EINTR), Step::More));
        }
        failed(cursor.advance(-libc::EAGAIN));
        // Progress is a new beginning.
        let mut cursor = make(Direction::ToFile);
        for _ in 0..MAX_STALLS {
            assert!(matches!(cursor.advance(-libc::EAGAIN), Step::More));
        }
        assert!(matches!(cursor.advance(3), Step::More));
        assert!(matches!(cursor.advance(-libc::EAGAIN), Step::More));
        assert!(matches!(cursor.advance(5), Step::Done));
    }
}
