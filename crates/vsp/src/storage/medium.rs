//! What a logical unit's medium offers, and the buffers that data moves
//! through.

use std::os::fd::BorrowedFd;
use vid::HostPiece;

/// Bytes that are copied at a time where data cannot move in place.
pub const COPY_SIZE: usize = 256 << 10;

/// A buffer's bytes are not accessible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the buffer is not accessible")]
pub struct BufferError;

/// Why a medium did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum MediumError {
    /// The medium cannot be written.
    #[error("the medium is read-only")]
    ReadOnly,
    /// There is no room left below the medium.
    #[error("no space is left: {0}")]
    Full(Box<dyn std::error::Error + Send + Sync>),
    /// A request beyond the medium's end.
    #[error("beyond the end of the medium")]
    OutOfRange,
    /// The buffer is not accessible.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// What the host says.
    #[error(transparent)]
    Io(Box<dyn std::error::Error + Send + Sync>),
}

impl From<std::io::Error> for MediumError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::Full(error.into())
            }
            _ => Self::Io(error.into()),
        }
    }
}

/// A request's data: bytes that a guest may access at the same time.
pub trait DataBuffer: Send + Sync {
    /// Bytes.
    fn len(&self) -> usize;

    /// No byte at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies out of the buffer.
    ///
    /// # Errors
    ///
    /// [`BufferError`] beyond its end.
    fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), BufferError>;

    /// Copies into the buffer.
    ///
    /// # Errors
    ///
    /// [`BufferError`] beyond its end.
    fn write(&self, offset: usize, data: &[u8]) -> Result<(), BufferError>;

    /// The buffer as memory of this process, all of it and in order, for
    /// system calls to work on. `None` where it has to be copied.
    fn host_pieces(&self) -> Option<Vec<HostPiece>> {
        None
    }

    /// To be called when a system call has written to
    /// [`DataBuffer::host_pieces`].
    fn written(&self) {}
}

/// A part of a buffer.
#[derive(Clone, Copy)]
pub struct DataRange<'a> {
    buffer: &'a dyn DataBuffer,
    start: usize,
    length: usize,
}

impl<'a> DataRange<'a> {
    /// The first `length` bytes of a buffer; `None` when it has fewer.
    pub fn new(buffer: &'a dyn DataBuffer, length: usize) -> Option<Self> {
        (length <= buffer.len()).then_some(Self {
            buffer,
            start: 0,
            length,
        })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// No byte at all.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// `length` bytes from `offset` on, cut at the range's end.
    pub fn part(&self, offset: usize, length: usize) -> Self {
        let offset = offset.min(self.length);
        let length = length.min(self.length - offset);
        Self {
            buffer: self.buffer,
            start: self.start + offset,
            length,
        }
    }

    /// Copies out.
    ///
    /// # Errors
    ///
    /// [`BufferError`] beyond the range.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), BufferError> {
        self.check(offset, data.len())?;
        self.buffer.read(self.start + offset, data)
    }

    /// Copies in.
    ///
    /// # Errors
    ///
    /// [`BufferError`] beyond the range.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<(), BufferError> {
        self.check(offset, data.len())?;
        self.buffer.write(self.start + offset, data)
    }

    fn check(&self, offset: usize, length: usize) -> Result<(), BufferError> {
        let end = offset.checked_add(length).ok_or(BufferError)?;
        if end <= self.length {
            Ok(())
        } else {
            Err(BufferError)
        }
    }

    /// Fills the range with zeros.
    ///
    /// # Errors
    ///
    /// [`BufferError`] where it is not accessible.
    pub fn zero(&self) -> Result<(), BufferError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < self.length {
            let here = ZEROS.len().min(self.length - done);
            self.write(done, &ZEROS[..here])?;
            done += here;
        }
        Ok(())
    }

    /// The range as memory of this process, where system calls can work on
    /// it: see [`DataBuffer::host_pieces`].
    pub fn host_pieces(&self) -> Option<Vec<HostPiece>> {
        let pieces = self.buffer.host_pieces()?;
        let (mut skip, mut left) = (self.start, self.length);
        let mut part = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let here = piece.length.saturating_sub(skip).min(left);
            if here > 0 {
                part.push(HostPiece {
                    address: piece.address.wrapping_add(skip),
                    length: here,
                });
            }
            skip = skip.saturating_sub(piece.length);
            left -= here;
        }
        (left == 0).then_some(part)
    }

    /// Tells that a system call has written to the pieces.
    pub fn written(&self) {
        self.buffer.written();
    }
}

/// What is known of a medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediumInfo {
    /// Size in bytes. A part behind the last whole sector is not used.
    pub size: u64,
    /// Unit of addressing in bytes: 512, 4096, or 2048 for a DVD.
    pub logical_sector: u32,
    /// Unit that is written best, in bytes; a multiple of the above.
    pub physical_sector: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Takes [`Medium::unmap`], and space given back reads as zeros.
    pub unmap: bool,
    /// Unit in bytes in which space is given back; 0 where it is not known.
    pub unmap_granularity: u32,
    /// Lasting identity of the medium, in the order that a GUID is written.
    pub identity: Option<[u8; 16]>,
}

/// Where a range of a medium lies in a file, for transfers by the host's
/// kernel. It stays there until this is dropped.
pub trait FileRange: Send {
    /// The file: the same at each call, and open until this is dropped.
    fn file(&self) -> Option<BorrowedFd<'_>>;

    /// Its stretches, in order: byte offset and length.
    fn extents(&self) -> &[(u64, u64)];
}

/// The medium of a logical unit. Calls block, and any number may run at once.
/// Offsets and lengths are whole logical sectors within the medium's size at
/// the time of the check; the medium checks again.
pub trait Medium: Send + Sync {
    /// Describes the medium as it is now.
    fn info(&self) -> MediumInfo;

    /// Fills `data` from byte `offset` on.
    ///
    /// # Errors
    ///
    /// [`MediumError`].
    fn read(&self, offset: u64, data: DataRange<'_>) -> Result<(), MediumError>;

    /// Writes `data` at byte `offset`; with `fua` it is durable on return.
    ///
    /// # Errors
    ///
    /// [`MediumError`].
    fn write(&self, offset: u64, data: DataRange<'_>, fua: bool) -> Result<(), MediumError>;

    /// Where the range lies in a file, if all of it does, for overwriting it
    /// there (`write`) or for reading. `None` where [`Medium::read`] and
    /// [`Medium::write`] have to be used, which also tell why.
    fn file_range(&self, offset: u64, length: u64, write: bool) -> Option<Box<dyn FileRange>> {
        let _ = (offset, length, write);
        None
    }

    /// Makes all that was done durable.
    ///
    /// # Errors
    ///
    /// [`MediumError`].
    fn flush(&self) -> Result<(), MediumError>;

    /// The range is not needed any more: it reads as zeros or as before.
    ///
    /// # Errors
    ///
    /// [`MediumError`].
    fn unmap(&self, offset: u64, length: u64) -> Result<(), MediumError>;

    /// The range reads as zeros from now on.
    ///
    /// # Errors
    ///
    /// [`MediumError`].
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), MediumError>;

    /// The guest has ejected the medium from its drive: no more calls come
    /// from there.
    fn ejected(&self) {}
}

/// A buffer on the heap: for data that a device makes itself.
pub struct HeapBuffer(parking_lot::Mutex<Vec<u8>>);

impl HeapBuffer {
    /// A buffer with these bytes.
    pub fn new(data: Vec<u8>) -> Self {
        Self(parking_lot::Mutex::new(data))
    }

    /// The bytes.
    pub fn into_inner(self) -> Vec<u8> {
        self.0.into_inner()
    }
}

fn span(offset: usize, length: usize) -> Result<std::ops::Range<usize>, BufferError> {
    Ok(offset..offset.checked_add(length).ok_or(BufferError)?)
}

impl DataBuffer for HeapBuffer {
    fn len(&self) -> usize {
        self.0.lock().len()
    }

    fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), BufferError> {
        let own = self.0.lock();
        data.copy_from_slice(own.get(span(offset, data.len())?).ok_or(BufferError)?);
        Ok(())
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), BufferError> {
        let mut own = self.0.lock();
        own.get_mut(span(offset, data.len())?)
            .ok_or(BufferError)?
            .copy_from_slice(data);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_inside() {
        let buffer = HeapBuffer::new((0..100).collect());
        assert!(DataRange::new(&buffer, 101).is_none());
        let range = DataRange::new(&buffer, 50).unwrap().part(10, 20);
        let mut two = [0; 2];
        range.read(18, &mut two).unwrap();
        assert_eq!(two, [28, 29]);
        assert_eq!(range.read(19, &mut two), Err(BufferError));
        assert_eq!(range.read(usize::MAX, &mut two), Err(BufferError));
        range.zero().unwrap();
        assert_eq!(range.part(15, 100).len(), 5);
        let bytes = buffer.into_inner();
        assert_eq!((bytes[9], bytes[10], bytes[29], bytes[30]), (9, 0, 0, 30));
    }
}
