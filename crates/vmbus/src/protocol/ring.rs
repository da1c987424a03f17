//! Rings and packets.
//!
//! A channel's two rings lie in one GPADL. Each is a control page and data
//! pages. Indices count bytes of data and are multiples of 8. A ring whose
//! indices are equal is empty, so it never gets quite full.

use bitflags::bitflags;

/// Control page: the writer's index.
pub const RING_IN: usize = 0;
/// Control page: the reader's index.
pub const RING_OUT: usize = 4;
/// Control page: not 0 when the reader wants no signals.
pub const RING_INTERRUPT_MASK: usize = 8;
/// Control page: room that the writer waits for, or 0.
pub const RING_PENDING_SEND_SIZE: usize = 12;
/// Control page: [`RingFeatures`].
pub const RING_FEATURE_BITS: usize = 64;
/// Bytes of the control page.
pub const RING_CONTROL_SIZE: usize = 4096;

bitflags! {
    /// A ring's feature bits.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct RingFeatures: u32 {
        /// The reader looks at the pending send size.
        const PENDING_SEND_SIZE = 1;
    }
}

/// Packets are multiples of this, and so are indices.
pub const PACKET_ALIGN: usize = 8;
/// Bytes of [`PacketDescriptor`].
pub const DESCRIPTOR_SIZE: usize = 16;
/// Bytes behind each packet: the index where it began, in the high half.
pub const FOOTER_SIZE: usize = 8;
/// Bytes of [`PipeHeader`].
pub const PIPE_HEADER_SIZE: usize = 8;
/// Most bytes of data in a pipe's packet.
pub const MAX_PIPE_PACKET: usize = 16384;
/// Most bytes of a packet without its footer.
pub const MAX_PACKET_SIZE: usize = u16::MAX as usize * PACKET_ALIGN;

open_enum! {
    /// The type of a packet.
    pub struct PacketType(u16) {
        /// Data in the ring.
        IN_BAND = 6,
        /// Data in pages that the receiver has given before.
        TRANSFER_PAGES = 7,
        /// Data in pages that the packet lists.
        GPA_DIRECT = 9,
        /// The answer to a packet.
        COMPLETION = 0xb,
    }
}

/// Packet flag: the sender wants a completion.
pub const PACKET_FLAG_COMPLETION_REQUESTED: u16 = 1;

wire! {
    /// What every packet begins with.
    pub struct PacketDescriptor {
        /// The type.
        pub packet_type: PacketType,
        /// Where the data begins, in units of 8 bytes.
        pub data_offset8: u16,
        /// The length without footer, in units of 8 bytes.
        pub length8: u16,
        /// [`PACKET_FLAG_COMPLETION_REQUESTED`].
        pub flags: u16,
        /// The sender's; a completion has that of its packet.
        pub transaction_id: u64,
    }
}

wire! {
    /// Behind the descriptor of a GPA-direct packet.
    pub struct GpaDirectHeader {
        /// Zero.
        pub reserved: u32,
        /// Ranges that follow.
        pub range_count: u32,
    }
}

wire! {
    /// Behind the descriptor of a transfer-page packet.
    pub struct TransferPageHeader {
        /// Which pages.
        pub transfer_page_set_id: u16,
        /// Zero.
        pub reserved: u16,
        /// Ranges that follow.
        pub range_count: u32,
    }
}

wire! {
    /// A range of transfer pages.
    pub struct TransferPageRange {
        /// Bytes.
        pub byte_count: u32,
        /// Where in the set of pages.
        pub byte_offset: u32,
    }
}

open_enum! {
    /// The type of a pipe's packet.
    pub struct PipePacketType(u32) {
        /// The last or only part.
        DATA = 1,
        /// More follows.
        PARTIAL = 2,
    }
}

wire! {
    /// What leads the data of a pipe's packet.
    pub struct PipeHeader {
        /// The type.
        pub packet_type: PipePacketType,
        /// Bytes of data behind it.
        pub length: u32,
    }
}
