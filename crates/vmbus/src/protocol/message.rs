//! The control messages, 1 to 29. Each is one SynIC message of type 1.

use super::{Guid, OfferFlags, Version};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Most bytes of a control message: a SynIC message's payload.
pub const MAX_MESSAGE_SIZE: usize = 240;
/// Bytes of the header before each body.
pub const HEADER_SIZE: usize = 8;

open_enum! {
    /// The type of a control message.
    pub struct MessageType(u32) {
        /// Host: a channel is offered.
        OFFER_CHANNEL = 1,
        /// Host: an offer is withdrawn.
        RESCIND_CHANNEL_OFFER = 2,
        /// Guest: asks for the offers.
        REQUEST_OFFERS = 3,
        /// Host: all present offers were sent.
        ALL_OFFERS_DELIVERED = 4,
        /// Guest: opens a channel.
        OPEN_CHANNEL = 5,
        /// Host: how opening went.
        OPEN_CHANNEL_RESULT = 6,
        /// Guest: closes a channel. There is no answer.
        CLOSE_CHANNEL = 7,
        /// Guest: begins a GPADL.
        GPADL_HEADER = 8,
        /// Guest: more of a GPADL.
        GPADL_BODY = 9,
        /// Host: a GPADL is complete, or refused.
        GPADL_CREATED = 10,
        /// Guest: takes a GPADL back.
        GPADL_TEARDOWN = 11,
        /// Host: no mapping of the GPADL is left.
        GPADL_TORNDOWN = 12,
        /// Guest: a rescinded channel's id is free again.
        REL_ID_RELEASED = 13,
        /// Guest: connects.
        INITIATE_CONTACT = 14,
        /// Host: accepts or refuses a version.
        VERSION_RESPONSE = 15,
        /// Guest: disconnects.
        UNLOAD = 16,
        /// Host: has disconnected.
        UNLOAD_COMPLETE = 17,
        /// Guest: opens a channel beyond its connection (4.0).
        OPEN_RESERVED_CHANNEL = 18,
        /// Guest: closes such a channel (4.0).
        CLOSE_RESERVED_CHANNEL = 19,
        /// Host: has closed it (4.0).
        CLOSE_RESERVED_CHANNEL_RESPONSE = 20,
        /// Guest: asks for a socket (4.0).
        TL_CONNECT_REQUEST = 21,
        /// Guest: moves a channel's interrupts (4.1).
        MODIFY_CHANNEL = 22,
        /// Host: a socket was refused (4.1).
        TL_CONNECT_RESULT = 23,
        /// Host: answers ModifyChannel (5.3).
        MODIFY_CHANNEL_RESPONSE = 24,
        /// Guest: changes the connection's monitor pages (6.0 and feature).
        MODIFY_CONNECTION = 25,
        /// Host: answers it.
        MODIFY_CONNECTION_RESPONSE = 26,
        /// Guest: asks for silence (6.0 and feature).
        PAUSE = 27,
        /// Host: the last message before the silence.
        PAUSE_RESPONSE = 28,
        /// Guest: ends the silence.
        RESUME = 29,
    }
}

impl MessageType {
    /// The lowest version that has the message; `None` for a type without a
    /// name. Types with a feature of their own are checked apart.
    pub fn minimum_version(self) -> Option<Version> {
        Some(match self.0 {
            1..=16 => Version::V1,
            17 => Version::WIN7,
            18..=21 => Version::WIN10,
            22 | 23 => Version::WIN10_RS3,
            24 => Version::IRON,
            25..=29 => Version::COPPER,
            _ => return None,
        })
    }
}

wire! {
    /// What every message begins with.
    pub struct MessageHeader {
        /// The type.
        pub message_type: MessageType,
        /// Zero.
        pub padding: u32,
    }
}

/// A control message's body.
pub trait Body: FromBytes + IntoBytes + Immutable {
    /// Its type.
    const TYPE: MessageType;
}

macro_rules! body {
    (
        $(#[$meta:meta])*
        $name:ident = $type:ident {
            $( $(#[$fmeta:meta])* $field:ident : $ty:ty, )*
        }
    ) => {
        wire! {
            $(#[$meta])*
            pub struct $name {
                $( $(#[$fmeta])* pub $field : $ty, )*
            }
        }

        impl Body for $name {
            const TYPE: MessageType = MessageType::$type;
        }
    };
}

body! {
    /// OfferChannel (1), 188 bytes.
    OfferChannel = OFFER_CHANNEL {
        /// What kind of device.
        interface_id: Guid,
        /// Which of its kind.
        instance_id: Guid,
        /// Zero.
        reserved: [u32; 4],
        /// [`OfferFlags`].
        flags: u16,
        /// MiB of memory-mapped space that the device needs.
        mmio_megabytes: u16,
        /// The device's own; [`super::UserDefined`].
        user_defined: [u8; 120],
        /// 0, or which subchannel.
        subchannel_index: u16,
        /// MiB of memory-mapped space that the device can use.
        mmio_megabytes_optional: u16,
        /// The channel, 1 to 2047.
        channel_id: u32,
        /// The monitored notification, 0xff for none.
        monitor_id: u8,
        /// 1 with a monitored notification.
        monitor_allocated: u8,
        /// 1: the channel has its own event flag.
        is_dedicated: u16,
        /// The connection that the guest signals.
        connection_id: u32,
    }
}

impl OfferChannel {
    /// The flags that have names.
    pub fn offer_flags(&self) -> OfferFlags {
        OfferFlags::from_bits_truncate(self.flags)
    }
}

body! {
    /// RescindChannelOffer (2).
    RescindChannelOffer = RESCIND_CHANNEL_OFFER {
        /// The channel.
        channel_id: u32,
    }
}

/// Declares messages that consist of their header.
macro_rules! empty {
    ($( $(#[$meta:meta])* $name:ident = $type:ident, )*) => {
        $(
            $(#[$meta])*
            #[derive(
                Clone, Copy, Debug, Default, PartialEq, Eq,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable,
                zerocopy::KnownLayout,
            )]
            #[repr(C)]
            pub struct $name {}

            impl Body for $name {
                const TYPE: MessageType = MessageType::$type;
            }
        )*
    };
}

empty! {
    /// RequestOffers (3).
    RequestOffers = REQUEST_OFFERS,
    /// AllOffersDelivered (4).
    AllOffersDelivered = ALL_OFFERS_DELIVERED,
    /// Unload (16).
    Unload = UNLOAD,
    /// UnloadComplete (17).
    UnloadComplete = UNLOAD_COMPLETE,
    /// Pause (27).
    Pause = PAUSE,
    /// PauseResponse (28).
    PauseResponse = PAUSE_RESPONSE,
    /// Resume (29).
    Resume = RESUME,
}

body! {
    /// OpenChannel (5), 140 bytes.
    OpenChannel = OPEN_CHANNEL {
        /// The channel.
        channel_id: u32,
        /// Comes back in the result.
        open_id: u32,
        /// The GPADL with both rings.
        ring_buffer_gpadl_id: u32,
        /// The virtual processor to interrupt, or [`VP_INDEX_DISABLE_INTERRUPT`].
        target_vp: u32,
        /// The page where the host-to-guest ring begins.
        downstream_ring_buffer_page_offset: u32,
        /// The device's own.
        user_data: [u8; 120],
    }
}

/// A target processor that turns a channel's interrupts off.
pub const VP_INDEX_DISABLE_INTERRUPT: u32 = u32::MAX;

body! {
    /// OpenChannel2 (5 with [`super::FeatureFlags::GUEST_SPECIFIED_SIGNAL_PARAMETERS`]).
    OpenChannel2 = OPEN_CHANNEL {
        /// What every guest sends.
        open_channel: OpenChannel,
        /// The connection that the guest signals.
        connection_id: u32,
        /// The event flag that the host sets.
        event_flag: u16,
        /// Bit 0: interrupts go to the redirected SINT.
        flags: u16,
    }
}

body! {
    /// OpenChannelResult (6).
    OpenChannelResult = OPEN_CHANNEL_RESULT {
        /// The channel.
        channel_id: u32,
        /// From the request.
        open_id: u32,
        /// 0, or an NTSTATUS.
        status: u32,
    }
}

body! {
    /// CloseChannel (7).
    CloseChannel = CLOSE_CHANNEL {
        /// The channel.
        channel_id: u32,
    }
}

body! {
    /// GpadlHeader (8); `len` bytes of ranges follow, in part.
    GpadlHeader = GPADL_HEADER {
        /// The channel.
        channel_id: u32,
        /// The GPADL, of the guest's choice.
        gpadl_id: u32,
        /// Bytes of all ranges, over all messages.
        len: u16,
        /// Ranges.
        count: u16,
    }
}

body! {
    /// GpadlBody (9); more of the ranges follows.
    GpadlBody = GPADL_BODY {
        /// Not used.
        message_number: u32,
        /// The GPADL.
        gpadl_id: u32,
    }
}

body! {
    /// GpadlCreated (10).
    GpadlCreated = GPADL_CREATED {
        /// The channel.
        channel_id: u32,
        /// The GPADL.
        gpadl_id: u32,
        /// 0, or an NTSTATUS.
        status: u32,
    }
}

body! {
    /// GpadlTeardown (11).
    GpadlTeardown = GPADL_TEARDOWN {
        /// The channel.
        channel_id: u32,
        /// The GPADL.
        gpadl_id: u32,
    }
}

body! {
    /// GpadlTorndown (12).
    GpadlTorndown = GPADL_TORNDOWN {
        /// The GPADL.
        gpadl_id: u32,
    }
}

body! {
    /// RelIdReleased (13).
    RelIdReleased = REL_ID_RELEASED {
        /// The channel.
        channel_id: u32,
    }
}

body! {
    /// InitiateContact (14), 32 bytes.
    InitiateContact = INITIATE_CONTACT {
        /// The version that the guest wants.
        version_requested: u32,
        /// From 3.0: the virtual processor for messages.
        target_message_vp: u32,
        /// Before 5.0 the interrupt page's address, then a [`TargetInfo`].
        interrupt_page_or_target_info: u64,
        /// Monitor page, host to guest: an address, or 0.
        parent_to_child_monitor_page_gpa: u64,
        /// Monitor page, guest to host: an address, or 0.
        child_to_parent_monitor_page_gpa: u64,
    }
}

body! {
    /// InitiateContact2 (14): with the client's GUID.
    InitiateContact2 = INITIATE_CONTACT {
        /// What every guest sends.
        initiate_contact: InitiateContact,
        /// Who connects.
        client_id: Guid,
    }
}

wire! {
    /// How a guest of version 5.0 or later wants its messages.
    pub struct TargetInfo {
        /// The SINT.
        pub sint: u8,
        /// From 5.1: the VTL.
        pub vtl: u8,
        /// Zero.
        pub padding: u16,
        /// From 6.0: [`super::FeatureFlags`] that are asked for.
        pub feature_flags: u32,
    }
}

impl TargetInfo {
    /// From the field of [`InitiateContact`].
    pub fn from_field(value: u64) -> Self {
        let [sint, vtl, _, _, f0, f1, f2, f3] = value.to_le_bytes();
        let feature_flags = u32::from_le_bytes([f0, f1, f2, f3]);
        Self {
            sint,
            vtl,
            padding: 0,
            feature_flags,
        }
    }

    /// As the field of [`InitiateContact`].
    pub fn to_field(self) -> u64 {
        u64::from(self.sint) | u64::from(self.vtl) << 8 | u64::from(self.feature_flags) << 32
    }
}

open_enum! {
    /// What a [`VersionResponse`] says about a version that is supported.
    pub struct ConnectionState(u8) {
        /// Connected.
        SUCCESSFUL = 0,
        /// The host lacks resources.
        FAILED_LOW_RESOURCES = 1,
        /// Another failure.
        FAILED_UNKNOWN_FAILURE = 2,
    }
}

body! {
    /// VersionResponse (15), 8 bytes.
    VersionResponse = VERSION_RESPONSE {
        /// 1, or 0: try a lower version.
        version_supported: u8,
        /// How connecting went.
        connection_state: ConnectionState,
        /// Zero.
        padding: u16,
        /// Before 5.0 the version, then the connection for all further messages.
        selected_version_or_connection_id: u32,
    }
}

body! {
    /// VersionResponse2 (15, 6.0).
    VersionResponse2 = VERSION_RESPONSE {
        /// What every guest gets.
        version_response: VersionResponse,
        /// [`super::FeatureFlags`] in force.
        supported_features: u32,
    }
}

body! {
    /// VersionResponse3 (15, 6.0 with
    /// [`super::FeatureFlags::SERVER_SPECIFIED_MONITOR_PAGES`]).
    VersionResponse3 = VERSION_RESPONSE {
        /// What a guest of 6.0 gets.
        version_response2: VersionResponse2,
        /// Zero.
        padding: u32,
        /// The host's choice of monitor page, host to guest, in two halves.
        parent_to_child_monitor_page_gpa: [u32; 2],
        /// Guest to host, in two halves.
        child_to_parent_monitor_page_gpa: [u32; 2],
    }
}

body! {
    /// OpenReservedChannel (18).
    OpenReservedChannel = OPEN_RESERVED_CHANNEL {
        /// The channel.
        channel_id: u32,
        /// The virtual processor for the answer to closing.
        target_vp: u32,
        /// The SINT for it.
        target_sint: u32,
        /// The GPADL with both rings.
        ring_buffer_gpadl_id: u32,
        /// The page where the host-to-guest ring begins.
        downstream_ring_buffer_page_offset: u32,
    }
}

body! {
    /// CloseReservedChannel (19).
    CloseReservedChannel = CLOSE_RESERVED_CHANNEL {
        /// The channel.
        channel_id: u32,
        /// The virtual processor for the answer.
        target_vp: u32,
        /// The SINT for it.
        target_sint: u32,
    }
}

body! {
    /// CloseReservedChannelResponse (20).
    CloseReservedChannelResponse = CLOSE_RESERVED_CHANNEL_RESPONSE {
        /// The channel.
        channel_id: u32,
    }
}

body! {
    /// TlConnectRequest (21).
    TlConnectRequest = TL_CONNECT_REQUEST {
        /// The guest's end.
        endpoint_id: Guid,
        /// The host's service.
        service_id: Guid,
    }
}

body! {
    /// TlConnectRequest2 (21, 5.2).
    TlConnectRequest2 = TL_CONNECT_REQUEST {
        /// What every guest sends.
        base: TlConnectRequest,
        /// The container that connects.
        silo_id: Guid,
    }
}

body! {
    /// TlConnectResult (23).
    TlConnectResult = TL_CONNECT_RESULT {
        /// The guest's end.
        endpoint_id: Guid,
        /// The host's service.
        service_id: Guid,
        /// An NTSTATUS.
        status: u32,
    }
}

body! {
    /// ModifyChannel (22).
    ModifyChannel = MODIFY_CHANNEL {
        /// The channel.
        channel_id: u32,
        /// The virtual processor to interrupt.
        target_vp: u32,
    }
}

body! {
    /// ModifyChannelResponse (24).
    ModifyChannelResponse = MODIFY_CHANNEL_RESPONSE {
        /// The channel.
        channel_id: u32,
        /// 0, or an NTSTATUS.
        status: u32,
    }
}

body! {
    /// ModifyConnection (25).
    ModifyConnection = MODIFY_CONNECTION {
        /// Monitor page, host to guest: an address, or 0.
        parent_to_child_monitor_page_gpa: u64,
        /// Monitor page, guest to host: an address, or 0.
        child_to_parent_monitor_page_gpa: u64,
    }
}

body! {
    /// ModifyConnectionResponse (26).
    ModifyConnectionResponse = MODIFY_CONNECTION_RESPONSE {
        /// How it went.
        connection_state: ConnectionState,
        /// Zero.
        padding: [u8; 3],
    }
}

/// Codes of NTSTATUS that control messages carry.
pub mod ntstatus {
    /// Done.
    pub const SUCCESS: u32 = 0;
    /// Refused or failed.
    pub const UNSUCCESSFUL: u32 = 0xC000_0001;
    /// Nobody listens there.
    pub const CONNECTION_REFUSED: u32 = 0xC000_0236;
}

/// Reads the body behind a header; bytes beyond it are left alone.
pub fn parse_body<T: FromBytes>(message: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(message.get(HEADER_SIZE..)?).ok()
}

/// The type of a message.
pub fn parse_type(message: &[u8]) -> Option<MessageType> {
    let (header, _) = MessageHeader::read_from_prefix(message).ok()?;
    Some(header.message_type)
}

/// A control message, owned: a header, a body, and for GPADLs what follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ControlMessage {
    length: u8,
    bytes: [u8; MAX_MESSAGE_SIZE],
}

impl ControlMessage {
    /// A message with a body.
    pub fn new<T: Body>(body: &T) -> Self {
        Self::with_data(body, &[])
    }

    /// A message with a body and data behind it, cut to
    /// [`MAX_MESSAGE_SIZE`].
    pub fn with_data<T: Body>(body: &T, data: &[u8]) -> Self {
        let header = MessageHeader {
            message_type: T::TYPE,
            padding: 0,
        };
        let mut bytes = [0; MAX_MESSAGE_SIZE];
        let mut length = 0;
        for part in [header.as_bytes(), body.as_bytes(), data] {
            let size = part.len().min(MAX_MESSAGE_SIZE - length);
            bytes[length..length + size].copy_from_slice(&part[..size]);
            length += size;
        }
        Self {
            length: length as u8,
            bytes,
        }
    }

    /// The whole message.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// Its type.
    pub fn message_type(&self) -> MessageType {
        parse_type(self.as_bytes()).unwrap_or_default()
    }

    /// Its body read as `T`, if it is one.
    pub fn body<T: Body>(&self) -> Option<T> {
        (self.message_type() == T::TYPE)
            .then(|| parse_body(self.as_bytes()).map(|(body, _)| body))?
    }
}

impl std::fmt::Debug for ControlMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}({} bytes)", self.message_type(), self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_on_the_wire() {
        fn size<T: Body>() -> usize {
            HEADER_SIZE + size_of::<T>()
        }
        assert_eq!(size::<OfferChannel>(), 196);
        assert_eq!(size::<OpenChannel>(), 148);
        assert_eq!(size::<OpenChannel2>(), 156);
        assert_eq!(size::<OpenChannelResult>(), 20);
        assert_eq!(size::<GpadlHeader>(), 20);
        assert_eq!(size::<GpadlBody>(), 16);
        assert_eq!(size::<GpadlCreated>(), 20);
        assert_eq!(size::<GpadlTorndown>(), 12);
        assert_eq!(size::<InitiateContact>(), 40);
        assert_eq!(size::<InitiateContact2>(), 56);
        assert_eq!(size::<VersionResponse>(), 16);
        assert_eq!(size::<VersionResponse2>(), 20);
        assert_eq!(size::<VersionResponse3>(), 40);
        assert_eq!(size::<OpenReservedChannel>(), 28);
        assert_eq!(size::<TlConnectRequest>(), 40);
        assert_eq!(size::<TlConnectRequest2>(), 56);
        assert_eq!(size::<TlConnectResult>(), 44);
        assert_eq!(size::<ModifyChannelResponse>(), 16);
        assert_eq!(size::<Unload>(), 8);
    }

    #[test]
    fn bodies_come_back() {
        let body = OpenChannelResult {
            channel_id: 7,
            open_id: 9,
            status: 1,
        };
        let message = ControlMessage::new(&body);
        assert_eq!(message.body::<OpenChannelResult>(), Some(body));
        assert_eq!(message.body::<CloseChannel>(), None);
        assert_eq!(parse_body::<OpenChannel>(message.as_bytes()), None);
        assert_eq!(parse_type(&[1, 0, 0]), None);
        let long = ControlMessage::with_data(&GpadlBody::default(), &[1; 500]);
        assert_eq!(long.as_bytes().len(), MAX_MESSAGE_SIZE);
    }

    #[test]
    fn target_info_is_one_field() {
        let info = TargetInfo {
            sint: 2,
            vtl: 1,
            padding: 0,
            feature_flags: 0x28,
        };
        assert_eq!(TargetInfo::from_field(info.to_field()), info);
        assert_eq!(info.to_field(), 0x28_0000_0102);
    }
}
