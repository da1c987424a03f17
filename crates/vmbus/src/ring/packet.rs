//! Packets as they are received.

use super::RingError;
use crate::protocol::{
    DESCRIPTOR_SIZE, GpaDirectHeader, GpaRange, MAX_PIPE_PACKET, PACKET_ALIGN,
    PACKET_FLAG_COMPLETION_REQUESTED, PIPE_HEADER_SIZE, PacketDescriptor, PacketType, PipeHeader,
    PipePacketType, TransferPageHeader, TransferPageRange, parse_ranges,
};
use zerocopy::FromBytes;

/// A packet, copied out of its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The type: one of the four.
    pub packet_type: PacketType,
    /// The sender wants a completion.
    pub completion_requested: bool,
    /// The sender's; belongs into the completion.
    pub transaction_id: u64,
    /// Between the descriptor and the data.
    header: &'a [u8],
    /// The data, padded to 8 bytes.
    pub data: &'a [u8],
}

/// What a transfer-page packet lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransferPages {
    /// The pages.
    pub transfer_page_set_id: u16,
    /// Ranges in them, not checked against their size.
    pub ranges: Vec<TransferPageRange>,
}

/// Checks a descriptor for itself; the length of the packet.
pub(super) fn check_descriptor(descriptor: &PacketDescriptor) -> Result<usize, RingError> {
    let length = usize::from(descriptor.length8) * PACKET_ALIGN;
    let offset = usize::from(descriptor.data_offset8) * PACKET_ALIGN;
    if length < DESCRIPTOR_SIZE {
        return Err(RingError::Length(length));
    }
    if offset < DESCRIPTOR_SIZE || offset > length {
        return Err(RingError::DataOffset(offset));
    }
    if descriptor.packet_type.name().is_none() {
        return Err(RingError::PacketType(descriptor.packet_type.0));
    }
    if descriptor.flags & !PACKET_FLAG_COMPLETION_REQUESTED != 0 {
        return Err(RingError::Flags(descriptor.flags));
    }
    Ok(length)
}

impl<'a> Packet<'a> {
    /// Reads a packet without its footer.
    ///
    /// # Errors
    ///
    /// [`RingError`] where it is malformed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RingError> {
        let (descriptor, _) = PacketDescriptor::read_from_prefix(bytes)
            .map_err(|_| RingError::Length(bytes.len()))?;
        let length = check_descriptor(&descriptor)?;
        let packet = bytes.get(..length).ok_or(RingError::Length(length))?;
        let offset = usize::from(descriptor.data_offset8) * PACKET_ALIGN;
        Ok(Self {
            packet_type: descriptor.packet_type,
            completion_requested: descriptor.flags & PACKET_FLAG_COMPLETION_REQUESTED != 0,
            transaction_id: descriptor.transaction_id,
            header: &packet[DESCRIPTOR_SIZE..offset],
            data: &packet[offset..],
        })
    }

    /// The guest pages that a GPA-direct packet lists: at least one range,
    /// each with bytes. Whether they are RAM is not checked.
    ///
    /// # Errors
    ///
    /// [`RingError::Ranges`] for another packet, or a malformed list.
    pub fn gpa_direct(&self) -> Result<Vec<GpaRange>, RingError> {
        let (header, list) =
            GpaDirectHeader::read_from_prefix(self.header).map_err(|_| RingError::Ranges)?;
        if self.packet_type != PacketType::GPA_DIRECT {
            return Err(RingError::Ranges);
        }
        parse_ranges(list, header.range_count as usize).map_err(|_| RingError::Ranges)
    }

    /// What a transfer-page packet lists.
    ///
    /// # Errors
    ///
    /// [`RingError::Ranges`] for another packet, or a malformed list.
    pub fn transfer_pages(&self) -> Result<TransferPages, RingError> {
        let (header, list) =
            TransferPageHeader::read_from_prefix(self.header).map_err(|_| RingError::Ranges)?;
        let count = header.range_count as usize;
        if self.packet_type != PacketType::TRANSFER_PAGES || count == 0 {
            return Err(RingError::Ranges);
        }
        let size = size_of::<TransferPageRange>();
        if count > list.len() / size {
            return Err(RingError::Ranges);
        }
        let ranges = list.chunks_exact(size).take(count);
        let ranges: Result<_, _> = ranges.map(TransferPageRange::read_from_bytes).collect();
        let transfer_page_set_id = header.transfer_page_set_id;
        Ok(TransferPages {
            transfer_page_set_id,
            ranges: ranges.map_err(|_| RingError::Ranges)?,
        })
    }
}

/// The header of a pipe's packet with `length` bytes of data, all of a message.
pub fn pipe_header(length: u32) -> PipeHeader {
    PipeHeader {
        packet_type: PipePacketType::DATA,
        length,
    }
}

/// The data of a pipe's packet, and whether more follows.
///
/// # Errors
///
/// [`RingError::Pipe`] when the header is none, or says more than is there.
pub fn pipe_data(data: &[u8]) -> Result<(&[u8], bool), RingError> {
    let (header, _) = PipeHeader::read_from_prefix(data).map_err(|_| RingError::Pipe)?;
    let length = header.length as usize;
    let partial = match header.packet_type {
        PipePacketType::DATA => false,
        PipePacketType::PARTIAL => true,
        _ => return Err(RingError::Pipe),
    };
    let end = PIPE_HEADER_SIZE.saturating_add(length);
    let body = data
        .get(PIPE_HEADER_SIZE..end)
        .filter(|_| length <= MAX_PIPE_PACKET);
    Ok((body.ok_or(RingError::Pipe)?, partial))
}
