//! The ring that this side writes.

use super::{RingError, RingMemory, barrier};
use crate::protocol::{
    DESCRIPTOR_SIZE, FOOTER_SIZE, MAX_PACKET_SIZE, PACKET_ALIGN, PACKET_FLAG_COMPLETION_REQUESTED,
    PacketDescriptor, PacketType, RING_IN, RING_INTERRUPT_MASK, RING_OUT, RING_PENDING_SEND_SIZE,
    RingFeatures,
};
use zerocopy::IntoBytes;

/// A packet to send.
#[derive(Clone, Copy, Debug)]
pub struct PacketOut<'a> {
    /// The type.
    pub packet_type: PacketType,
    /// Whether the receiver shall complete it.
    pub completion_requested: bool,
    /// Comes back in the completion; in a completion, that of its packet.
    pub transaction_id: u64,
    /// Between descriptor and data: lists of ranges. A multiple of 8 bytes,
    /// or it is padded.
    pub header: &'a [u8],
    /// The data, in parts that are joined.
    pub data: &'a [&'a [u8]],
}

impl<'a> PacketOut<'a> {
    /// Data in the ring; no completion wanted.
    pub fn in_band(transaction_id: u64, data: &'a [&'a [u8]]) -> Self {
        let (completion_requested, header) = (false, &[][..]);
        let packet_type = PacketType::IN_BAND;
        Self {
            packet_type,
            completion_requested,
            transaction_id,
            header,
            data,
        }
    }

    /// The completion of a packet.
    pub fn completion(transaction_id: u64, data: &'a [&'a [u8]]) -> Self {
        Self {
            packet_type: PacketType::COMPLETION,
            ..Self::in_band(transaction_id, data)
        }
    }

    /// The same with a completion wanted.
    pub fn with_completion_requested(self) -> Self {
        Self {
            completion_requested: true,
            ..self
        }
    }

    /// The length without the footer.
    fn length(&self) -> usize {
        let data: usize = self.data.iter().map(|part| part.len()).sum();
        self.data_offset() + data.next_multiple_of(PACKET_ALIGN)
    }

    fn data_offset(&self) -> usize {
        DESCRIPTOR_SIZE + self.header.len().next_multiple_of(PACKET_ALIGN)
    }

    /// Bytes that it takes in a ring.
    pub fn ring_size(&self) -> usize {
        self.length() + FOOTER_SIZE
    }
}

/// The writing side of a ring.
pub struct Outgoing {
    ring: RingMemory,
    /// Where the next packet goes that the other side is to see.
    index: u32,
    /// The other side's index, as it was last read.
    out: u32,
    /// Packets that the other side does not see yet.
    staged: Vec<u8>,
    waiting: bool,
    broken: Option<RingError>,
}

impl Outgoing {
    /// Writes a ring from where its indices stand.
    ///
    /// # Errors
    ///
    /// [`RingError`] when they stand nowhere.
    pub fn new(ring: RingMemory) -> Result<Self, RingError> {
        let index = ring.index(RING_IN)?;
        let out = ring.index(RING_OUT)?;
        Ok(Self {
            ring,
            index,
            out,
            staged: Vec::new(),
            waiting: false,
            broken: None,
        })
    }

    /// Whether the reader signals when it has made the room that was asked
    /// for. Otherwise a full ring must be looked at from time to time.
    ///
    /// # Errors
    ///
    /// [`RingError`] when the pages are gone.
    pub fn reader_signals_room(&self) -> Result<bool, RingError> {
        Ok(self
            .ring
            .features()?
            .contains(RingFeatures::PENDING_SEND_SIZE))
    }

    /// Bytes that can be staged now, by the index that was last read.
    fn room(&self) -> usize {
        let used = self.ring.distance(self.out, self.index) as usize + self.staged.len();
        // A full ring would look empty, so 8 bytes stay free.
        (self.ring.size() as usize - PACKET_ALIGN).saturating_sub(used)
    }

    /// Adds a packet to those that [`Outgoing::publish`] shows to the other
    /// side. False when there is no room for it now.
    ///
    /// # Errors
    ///
    /// [`RingError`] when the ring is broken, or could not even hold the
    /// packet when empty.
    pub fn stage(&mut self, packet: &PacketOut<'_>) -> Result<bool, RingError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let size = packet.ring_size();
        if packet.length() > MAX_PACKET_SIZE || size > self.ring.size() as usize - PACKET_ALIGN {
            return Err(RingError::Length(packet.length()));
        }
        if size > self.room() {
            self.out = self.checked(|ring| ring.index(RING_OUT))?;
            if size > self.room() {
                return Ok(false);
            }
        }
        self.append(packet);
        Ok(true)
    }

    fn append(&mut self, packet: &PacketOut<'_>) {
        let staged = self.staged.len() as u32;
        let start = self.ring.advance(self.index, staged);
        let descriptor = PacketDescriptor {
            packet_type: packet.packet_type,
            data_offset8: (packet.data_offset() / PACKET_ALIGN) as u16,
            length8: (packet.length() / PACKET_ALIGN) as u16,
            flags: if packet.completion_requested {
                PACKET_FLAG_COMPLETION_REQUESTED
            } else {
                0
            },
            transaction_id: packet.transaction_id,
        };
        self.staged.extend_from_slice(descriptor.as_bytes());
        self.staged.extend_from_slice(packet.header);
        self.pad();
        for part in packet.data {
            self.staged.extend_from_slice(part);
        }
        self.pad();
        self.staged
            .extend_from_slice(&(u64::from(start) << 32).to_le_bytes());
    }

    fn pad(&mut self) {
        self.staged
            .resize(self.staged.len().next_multiple_of(PACKET_ALIGN), 0);
    }

    /// Shows the staged packets to the other side. True when it must be
    /// signalled: the ring was empty, and it has not masked signals.
    ///
    /// # Errors
    ///
    /// [`RingError`] when the ring is broken.
    #[must_use = "the other side may have to be signalled"]
    pub fn publish(&mut self) -> Result<bool, RingError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        if self.staged.is_empty() {
            return Ok(false);
        }
        let (before, staged) = (self.index, std::mem::take(&mut self.staged));
        self.checked(|ring| ring.write(before, &staged))?;
        self.index = self.ring.advance(before, staged.len() as u32);
        self.staged = staged;
        self.staged.clear();
        let index = self.index;
        self.checked(|ring| {
            ring.store(RING_IN, index)?;
            barrier();
            if ring.load(RING_INTERRUPT_MASK)? != 0 {
                return Ok(false);
            }
            Ok(ring.index(RING_OUT)? == before)
        })
    }

    /// Stages and publishes one packet: `None` when there is no room,
    /// otherwise whether the other side must be signalled.
    ///
    /// # Errors
    ///
    /// As [`Outgoing::stage`] and [`Outgoing::publish`].
    pub fn write(&mut self, packet: &PacketOut<'_>) -> Result<Option<bool>, RingError> {
        if self.stage(packet)? {
            self.publish().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Asks the reader for a signal when `bytes` (of
    /// [`PacketOut::ring_size`]) fit. False when they fit already: do not
    /// wait. What is staged should be published before.
    ///
    /// # Errors
    ///
    /// [`RingError`] when the ring is broken.
    pub fn wait_for_room(&mut self, bytes: usize) -> Result<bool, RingError> {
        self.waiting = true;
        self.checked(|ring| {
            ring.store(RING_PENDING_SEND_SIZE, bytes as u32)?;
            barrier();
            Ok(())
        })?;
        self.out = self.checked(|ring| ring.index(RING_OUT))?;
        Ok(bytes > self.room())
    }

    /// Takes the request for a signal back.
    ///
    /// # Errors
    ///
    /// [`RingError`] when the ring is broken.
    pub fn stop_waiting(&mut self) -> Result<(), RingError> {
        if self.waiting {
            self.waiting = false;
            self.checked(|ring| ring.store(RING_PENDING_SEND_SIZE, 0))?;
        }
        Ok(())
    }

    /// Works on the ring; an error breaks it for good.
    fn checked<T>(
        &mut self,
        work: impl FnOnce(&RingMemory) -> Result<T, RingError>,
    ) -> Result<T, RingError> {
        work(&self.ring).inspect_err(|&error| self.broken = Some(error))
    }
}
