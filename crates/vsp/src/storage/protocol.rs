//! The storage protocol on the wire: what storage VSC and VSP exchange.

use vmbus::protocol::Guid;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The interface of SCSI controllers.
pub const SCSI_INTERFACE: Guid = Guid::from_u128(0xba6163d9_04a1_4d29_b605_72e2ffb1dc7f);

/// Bytes of a packet.
pub const PACKET_SIZE: usize = 64;
/// Bytes of a packet before version 5.1.
pub const OLD_PACKET_SIZE: usize = 48;
/// Bytes of a packet's operation, flags and status.
pub const HEADER_SIZE: usize = 12;
/// Bytes of sense data that a request has room for.
pub const SENSE_ROOM: usize = 20;

/// What a packet asks for.
#[allow(missing_docs, reason = "the names are those of the protocol")]
pub mod operation {
    pub const COMPLETE_IO: u32 = 1;
    pub const EXECUTE_SRB: u32 = 3;
    pub const RESET_LUN: u32 = 4;
    pub const RESET_ADAPTER: u32 = 5;
    pub const RESET_BUS: u32 = 6;
    pub const BEGIN_INITIALIZATION: u32 = 7;
    pub const END_INITIALIZATION: u32 = 8;
    pub const QUERY_PROTOCOL_VERSION: u32 = 9;
    pub const QUERY_PROPERTIES: u32 = 10;
    pub const ENUMERATE_BUS: u32 = 11;
    pub const CREATE_SUB_CHANNELS: u32 = 13;
}

/// An NTSTATUS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NtStatus(pub u32);

#[allow(missing_docs, reason = "the names are Windows's")]
impl NtStatus {
    pub const SUCCESS: Self = Self(0);
    pub const INVALID_PARAMETER: Self = Self(0xc000_000d);
    pub const INVALID_DEVICE_REQUEST: Self = Self(0xc000_0010);
    pub const REVISION_MISMATCH: Self = Self(0xc000_0059);
    pub const INVALID_DEVICE_STATE: Self = Self(0xc000_0184);
}

/// SRB status of a request.
#[allow(missing_docs, reason = "the names are Windows's")]
pub mod srb_status {
    pub const SUCCESS: u8 = 0x01;
    pub const ERROR: u8 = 0x04;
    pub const INVALID_REQUEST: u8 = 0x06;
    pub const INVALID_LUN: u8 = 0x20;
    pub const AUTOSENSE_VALID: u8 = 0x80;
}

/// SCSI status of a request.
#[allow(missing_docs, reason = "the names are those of the SCSI standards")]
pub mod scsi_status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
}

/// A version of the protocol: major above minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolVersion(pub u16);

impl ProtocolVersion {
    /// Windows Server 2008.
    pub const WIN6: Self = Self(0x0200);
    /// Windows 7.
    pub const WIN7: Self = Self(0x0402);
    /// Windows 8: longer requests, subchannels.
    pub const WIN8: Self = Self(0x0501);
    /// Windows 8.1.
    pub const BLUE: Self = Self(0x0600);
    /// Windows 10.
    pub const THRESHOLD: Self = Self(0x0602);

    /// The versions that are spoken.
    pub const ALL: [Self; 5] = [
        Self::WIN6,
        Self::WIN7,
        Self::WIN8,
        Self::BLUE,
        Self::THRESHOLD,
    ];
}

/// A packet in either direction.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Packet {
    /// One of [`operation`].
    pub operation: u32,
    /// Bit 0: a completion is wanted.
    pub flags: u32,
    /// An NTSTATUS in completions.
    pub status: u32,
    /// What belongs to the operation.
    pub payload: [u8; PACKET_SIZE - HEADER_SIZE],
}

impl Packet {
    /// A packet without payload.
    pub fn new(operation: u32) -> Self {
        Self {
            operation,
            ..Self::new_zeroed()
        }
    }

    /// A packet from a ring, filled up with zeros where it is an old one.
    pub fn parse(data: &[u8]) -> Option<Self> {
        if data.len() < HEADER_SIZE {
            return None;
        }
        let mut bytes = [0; PACKET_SIZE];
        let length = data.len().min(PACKET_SIZE);
        bytes[..length].copy_from_slice(&data[..length]);
        Self::read_from_bytes(&bytes).ok()
    }

    /// The payload as what belongs to the operation.
    pub fn payload_as<T: FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(&self.payload)
            .ok()
            .map(|(value, _)| value)
    }

    /// The same packet with a payload.
    pub fn with_payload<T: IntoBytes + Immutable>(mut self, value: &T) -> Self {
        let bytes = value.as_bytes();
        let length = bytes.len().min(self.payload.len());
        self.payload[..length].copy_from_slice(&bytes[..length]);
        self
    }
}

/// A SCSI request, and its result.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ScsiRequest {
    /// Bytes: 0x34, 0x24 before version 5.1.
    pub length: u16,
    /// One of [`srb_status`].
    pub srb_status: u8,
    /// One of [`scsi_status`].
    pub scsi_status: u8,
    /// The guest's.
    pub port: u8,
    /// The bus.
    pub path_id: u8,
    /// The target on the bus.
    pub target_id: u8,
    /// The logical unit of the target.
    pub lun: u8,
    /// Bytes of the command descriptor block.
    pub cdb_length: u8,
    /// Bytes of sense data.
    pub sense_length: u8,
    /// 0: to the device; 1: from the device; 2: no data.
    pub data_in: u8,
    /// Not used.
    pub reserved: u8,
    /// Bytes of data, in the result those that were moved.
    pub data_transfer_length: u32,
    /// The command descriptor block, in the result sense data.
    pub payload: [u8; SENSE_ROOM],
    /// Not used.
    pub reserved2: u16,
    /// The guest's.
    pub queue_tag: u8,
    /// Order among other requests.
    pub queue_action: u8,
    /// The guest's.
    pub srb_flags: u32,
    /// Seconds that the guest is ready to wait.
    pub timeout: u32,
    /// The guest's.
    pub queue_sort_key: u32,
}

/// The payload of QUERY_PROTOCOL_VERSION.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct VersionQuery {
    /// A [`ProtocolVersion`].
    pub version: u16,
    /// The guest's.
    pub revision: u16,
}

/// The payload of QUERY_PROPERTIES.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ChannelProperties {
    /// Not used.
    pub reserved: u32,
    /// Subchannels that can be asked for.
    pub max_channel_count: u16,
    /// Not used.
    pub reserved1: u16,
    /// Bit 0: there can be subchannels.
    pub flags: u32,
    /// Bytes of one request.
    pub max_transfer_bytes: u32,
    /// Not used.
    pub reserved2: [u32; 2],
}

const _: () = assert!(size_of::<Packet>() == PACKET_SIZE);
const _: () = assert!(size_of::<ScsiRequest>() == 0x34);
const _: () = assert!(size_of::<ChannelProperties>() == 24);
