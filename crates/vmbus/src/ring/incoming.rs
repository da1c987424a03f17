//! The ring that this side reads.

use super::packet::{Packet, check_descriptor};
use super::{RingError, RingMemory, barrier};
use crate::protocol::{
    DESCRIPTOR_SIZE, FOOTER_SIZE, PACKET_ALIGN, PacketDescriptor, RING_IN, RING_INTERRUPT_MASK,
    RING_OUT, RING_PENDING_SEND_SIZE,
};
use std::ops::Range;
use zerocopy::FromBytes;

/// Bytes that are copied at a time. A single packet may be longer.
const BATCH_SIZE: usize = 64 << 10;

/// Packets that were taken out of a ring together. Kept and used again, it
/// costs no allocation.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    packets: Vec<Range<usize>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many packets.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// No packet.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The packets, in the order in which they were sent.
    pub fn packets(&self) -> impl Iterator<Item = Packet<'_>> {
        // All were parsed when they came in, so none is dropped here.
        self.packets
            .iter()
            .filter_map(|range| Packet::parse(&self.bytes[range.clone()]).ok())
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.packets.clear();
    }
}

/// The reading side of a ring.
pub struct Incoming {
    ring: RingMemory,
    out: u32,
    masked: bool,
    broken: Option<RingError>,
}

impl Incoming {
    /// Reads a ring from where its indices stand.
    ///
    /// # Errors
    ///
    /// [`RingError`] when they stand nowhere.
    pub fn new(ring: RingMemory) -> Result<Self, RingError> {
        let out = ring.index(RING_OUT)?;
        ring.index(RING_IN)?;
        Ok(Self {
            ring,
            out,
            masked: false,
            broken: None,
        })
    }

    /// Whether there is something to read.
    ///
    /// # Errors
    ///
    /// [`RingError`] when the ring is broken.
    pub fn has_packets(&self) -> Result<bool, RingError> {
        Ok(self.ring.index(RING_IN)? != self.out)
    }

    /// Takes packets out of the ring, as many as fit a batch; none where
    /// there are none. True when the other side waits for the room and must
    /// be signalled.
    ///
    /// # Errors
    ///
    /// [`RingError`] when the ring is broken, then and ever after. Nothing
    /// has been taken out of it.
    #[must_use = "the other side may have to be signalled"]
    pub fn read(&mut self, batch: &mut Batch) -> Result<bool, RingError> {
        batch.clear();
        if let Some(error) = self.broken {
            return Err(error);
        }
        let result = self.take(batch);
        if let Err(error) = result {
            self.broken = Some(error);
            batch.clear();
        }
        result
    }

    fn take(&mut self, batch: &mut Batch) -> Result<bool, RingError> {
        let available = self.ring.distance(self.out, self.ring.index(RING_IN)?) as usize;
        if available == 0 {
            return Ok(false);
        }
        self.fetch(batch, available.min(BATCH_SIZE))?;
        let mut taken = split(batch, available)?;
        if batch.is_empty() {
            // The first packet alone is longer than a batch.
            let length = first_length(&batch.bytes)? + FOOTER_SIZE;
            self.fetch(batch, length)?;
            taken = split(batch, available)?;
        }
        self.release(taken as u32)
    }

    fn fetch(&self, batch: &mut Batch, length: usize) -> Result<(), RingError> {
        batch.bytes.clear();
        batch.bytes.resize(length, 0);
        self.ring.read(self.out, &mut batch.bytes)
    }

    /// Gives room back to the writer; whether it waits for that.
    fn release(&mut self, bytes: u32) -> Result<bool, RingError> {
        self.out = self.ring.advance(self.out, bytes);
        self.ring.store(RING_OUT, self.out)?;
        barrier();
        let pending = self.ring.load(RING_PENDING_SEND_SIZE)?;
        if pending == 0 {
            return Ok(false);
        }
        let used = self.ring.distance(self.out, self.ring.index(RING_IN)?);
        let room = self.ring.size() - used;
        let before = room.saturating_sub(bytes);
        // Some writers ask for one byte less than they need, so the exact
        // size counts as enough on both sides of the comparison.
        Ok(before <= pending && room >= pending & !(PACKET_ALIGN as u32 - 1))
    }

    /// Asks the other side not to signal, while this side is reading anyway.
    ///
    /// # Errors
    ///
    /// [`RingError`] when the pages are gone.
    pub fn mask(&mut self) -> Result<(), RingError> {
        if !self.masked {
            self.masked = true;
            self.ring.store(RING_INTERRUPT_MASK, 1)?;
        }
        Ok(())
    }

    /// Asks for signals again, before this side waits for one. False when
    /// packets have come meanwhile: it must not wait.
    ///
    /// # Errors
    ///
    /// [`RingError`] when the ring is broken.
    pub fn unmask(&mut self) -> Result<bool, RingError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        if self.masked {
            self.masked = false;
            self.ring.store(RING_INTERRUPT_MASK, 0)?;
        }
        barrier();
        Ok(!self.has_packets()?)
    }
}

/// The length of the packet at the head of `bytes`.
fn first_length(bytes: &[u8]) -> Result<usize, RingError> {
    let descriptor = PacketDescriptor::read_from_prefix(bytes);
    let (descriptor, _) = descriptor.map_err(|_| RingError::Length(bytes.len()))?;
    check_descriptor(&descriptor)
}

/// Finds the whole packets in a batch of which the ring held `available`
/// bytes; how many bytes they take.
fn split(batch: &mut Batch, available: usize) -> Result<usize, RingError> {
    let mut at = 0;
    while at < available {
        // A packet cannot be shorter, and the ring cannot hold less.
        let left = batch.bytes.len() - at;
        if available - at < DESCRIPTOR_SIZE + FOOTER_SIZE {
            return Err(RingError::Length(available - at));
        }
        if left < DESCRIPTOR_SIZE {
            break;
        }
        let length = first_length(&batch.bytes[at..])?;
        if length + FOOTER_SIZE > available - at {
            return Err(RingError::Length(length));
        }
        if length + FOOTER_SIZE > left {
            break;
        }
        batch.packets.push(at..at + length);
        at += length + FOOTER_SIZE;
    }
    Ok(at)
}
