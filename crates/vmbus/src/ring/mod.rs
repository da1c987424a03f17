//! Rings in guest memory.
//!
//! The guest can write all of a ring at any time. So indices are read once
//! and checked, packets are copied before they are looked at, and what this
//! side knows of its own index is never read back. Both sides of a channel
//! work alike: a guest can use these types too, with the roles of the rings
//! exchanged.

mod incoming;
mod memory;
mod outgoing;
mod packet;
#[cfg(test)]
mod tests;

pub use incoming::{Batch, Incoming};
pub use memory::{GuestPages, HeapPages, PagesError};
pub use outgoing::{Outgoing, PacketOut};
pub use packet::{Packet, TransferPages, pipe_data, pipe_header};

use crate::protocol::{
    PACKET_ALIGN, RING_CONTROL_SIZE, RING_FEATURE_BITS, RING_IN, RING_INTERRUPT_MASK, RING_OUT,
    RING_PENDING_SEND_SIZE, RingFeatures,
};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Bytes of data in a ring at most: sums of two indices must fit 32 bits.
const MAX_RING_SIZE: u32 = 1 << 30;

/// A ring is broken: its channel cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The ring's pages are no ring.
    #[error("a ring of {0} bytes")]
    Size(usize),
    /// The other side's index is outside the ring or not a multiple of 8.
    #[error("index {index:#x} in a ring of {size:#x} bytes")]
    Index {
        /// The index.
        index: u32,
        /// Bytes of data in the ring.
        size: u32,
    },
    /// A packet is longer than what is in the ring, or than a ring.
    #[error("a packet of {0} bytes does not fit")]
    Length(usize),
    /// A packet's data would begin outside it.
    #[error("data offset {0} is outside the packet")]
    DataOffset(usize),
    /// Not a type of packet.
    #[error("packet type {0}")]
    PacketType(u16),
    /// Flags without a meaning.
    #[error("packet flags {0:#x}")]
    Flags(u16),
    /// A list of ranges is malformed.
    #[error("a malformed list of ranges")]
    Ranges,
    /// A pipe's header does not fit its packet.
    #[error("a malformed pipe header")]
    Pipe,
    /// The pages are gone.
    #[error("{0}")]
    Pages(#[from] PagesError),
}

/// One ring: its control page and its data, within the pages of a GPADL.
#[derive(Clone)]
pub struct RingMemory {
    pages: Arc<dyn GuestPages>,
    control: usize,
    size: u32,
}

impl RingMemory {
    /// The ring in the bytes from `start` to `end`, both on page borders.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`] when they are not at least two pages within `pages`.
    pub fn new(pages: Arc<dyn GuestPages>, start: usize, end: usize) -> Result<Self, RingError> {
        let length = end.saturating_sub(start);
        let size = u32::try_from(length.saturating_sub(RING_CONTROL_SIZE)).unwrap_or(u32::MAX);
        let aligned = (start | end).is_multiple_of(RING_CONTROL_SIZE);
        if size == 0 || size > MAX_RING_SIZE || !aligned || end > pages.len() {
            return Err(RingError::Size(length));
        }
        Ok(Self {
            pages,
            control: start,
            size,
        })
    }

    /// Bytes of data.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The features that the ring's pages say.
    ///
    /// # Errors
    ///
    /// [`RingError::Pages`] when they are gone.
    pub fn features(&self) -> Result<RingFeatures, RingError> {
        Ok(RingFeatures::from_bits_truncate(
            self.load(RING_FEATURE_BITS)?,
        ))
    }

    /// Empties the ring and sets its features, as a guest does before it
    /// opens a channel.
    ///
    /// # Errors
    ///
    /// [`RingError::Pages`] when the pages are gone.
    pub fn initialize(&self, features: RingFeatures) -> Result<(), RingError> {
        for field in [
            RING_IN,
            RING_OUT,
            RING_INTERRUPT_MASK,
            RING_PENDING_SEND_SIZE,
        ] {
            self.store(field, 0)?;
        }
        self.store(RING_FEATURE_BITS, features.bits())
    }

    fn load(&self, field: usize) -> Result<u32, RingError> {
        Ok(self.pages.load_u32(self.control + field)?)
    }

    fn store(&self, field: usize, value: u32) -> Result<(), RingError> {
        Ok(self.pages.store_u32(self.control + field, value)?)
    }

    /// Reads an index of the other side, once, and checks it.
    fn index(&self, field: usize) -> Result<u32, RingError> {
        let index = self.load(field)?;
        if index >= self.size || !(index as usize).is_multiple_of(PACKET_ALIGN) {
            return Err(RingError::Index {
                index,
                size: self.size,
            });
        }
        Ok(index)
    }

    /// Bytes from `from` forward to `to`.
    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from {
            to - from
        } else {
            self.size - from + to
        }
    }

    fn advance(&self, index: u32, bytes: u32) -> u32 {
        // Neither is above the ring's size, which is far below 2^31.
        let next = index + bytes;
        if next >= self.size {
            next - self.size
        } else {
            next
        }
    }

    fn data(&self, index: u32) -> usize {
        self.control + RING_CONTROL_SIZE + index as usize
    }

    /// Copies out of the data from `index` on, around the end.
    fn read(&self, index: u32, data: &mut [u8]) -> Result<(), RingError> {
        let first = data.len().min((self.size - index) as usize);
        let (head, tail) = data.split_at_mut(first);
        self.pages.read(self.data(index), head)?;
        Ok(self.pages.read(self.data(0), tail)?)
    }

    /// Copies into the data from `index` on, around the end.
    fn write(&self, index: u32, data: &[u8]) -> Result<(), RingError> {
        let (head, tail) = data.split_at(data.len().min((self.size - index) as usize));
        self.pages.write(self.data(index), head)?;
        Ok(self.pages.write(self.data(0), tail)?)
    }
}

/// Orders a store to the ring before a load from it. Without it each side
/// could miss what the other has just written, and nobody would signal.
fn barrier() {
    fence(Ordering::SeqCst);
}
