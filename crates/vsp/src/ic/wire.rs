//! The frame that all integration components share: its header, the versions
//! and the negotiation.
//!
//! Every message is one packet of a pipe. Behind the pipe's header stand a
//! [`Header`] and the component's own data. All fields are little-endian and
//! unaligned.

use std::fmt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most bytes of a message behind the pipe's header.
pub const MAX_MESSAGE_SIZE: usize = 13312;

/// A version of the framework or of a component's messages.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IcVersion {
    major: U16,
    minor: U16,
}

impl IcVersion {
    /// A version by its two numbers.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self {
            major: U16::new(major),
            minor: U16::new(minor),
        }
    }

    /// The number before the point.
    pub const fn major(self) -> u16 {
        self.major.get()
    }

    /// The number behind the point.
    pub const fn minor(self) -> u16 {
        self.minor.get()
    }

    /// Whether this version is `major.minor` or a later one.
    pub const fn at_least(self, major: u16, minor: u16) -> bool {
        self.major() > major || (self.major() == major && self.minor() >= minor)
    }
}

impl fmt::Display for IcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Debug for IcVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a negotiation ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Of the frame.
    pub framework: IcVersion,
    /// Of the component's messages.
    pub message: IcVersion,
}

/// Framework versions that the host speaks: that of Windows Server 2008, and
/// that of all later guests.
pub const FRAMEWORK_VERSIONS: [IcVersion; 2] = [IcVersion::new(1, 0), IcVersion::new(3, 0)];

/// Type of a message: negotiation, for every component.
pub const TYPE_NEGOTIATE: u16 = 0;
/// Type of a message: heartbeat.
pub const TYPE_HEARTBEAT: u16 = 1;
/// Type of a message: key-value exchange.
pub const TYPE_KVP_EXCHANGE: u16 = 2;
/// Type of a message: shutdown.
pub const TYPE_SHUTDOWN: u16 = 3;
/// Type of a message: time synchronization.
pub const TYPE_TIME_SYNC: u16 = 4;
/// Type of a message: volume shadow copy.
pub const TYPE_VSS: u16 = 5;
/// Type of a message: guest services, which is file copy.
pub const TYPE_GUEST_INTERFACE: u16 = 7;

/// Header flag: part of a transaction, to be answered.
pub const FLAG_TRANSACTION: u8 = 1;
/// Header flag: a request.
pub const FLAG_REQUEST: u8 = 2;
/// Header flag: an answer.
pub const FLAG_RESPONSE: u8 = 4;

/// An HRESULT in a message's header, or in an answer of a daemon.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IcStatus(pub u32);

impl IcStatus {
    /// S_OK.
    pub const OK: Self = Self(0);
    /// E_FAIL: also what Linux answers when its daemon does not.
    pub const FAIL: Self = Self(0x8000_4005);
    /// No more items, or no such key.
    pub const NO_MORE_ITEMS: Self = Self(0x8007_0103);
    /// Not supported.
    pub const NOT_SUPPORTED: Self = Self(0x8007_0032);
    /// Someone works at the guest: only a forced shutdown would succeed.
    pub const MACHINE_LOCKED: Self = Self(0x8007_04f7);
    /// No such device.
    pub const DEVICE_NOT_CONNECTED: Self = Self(0x8007_048f);
    /// An invalid argument.
    pub const INVALID_ARGUMENT: Self = Self(0x8007_0057);
    /// No adapter of that name.
    pub const NOT_FOUND: Self = Self(0x8004_1002);
    /// The file exists.
    pub const ALREADY_EXISTS: Self = Self(0x8007_0050);
    /// No space left in the guest's file system.
    pub const DISK_FULL: Self = Self(0x8007_0070);

    /// What the code means, if it is one of those above.
    pub const fn text(self) -> Option<&'static str> {
        Some(match self {
            Self::OK => "success",
            Self::FAIL => "it failed",
            Self::NO_MORE_ITEMS => "no more items",
            Self::NOT_SUPPORTED => "not supported",
            Self::MACHINE_LOCKED => "the machine is locked",
            Self::DEVICE_NOT_CONNECTED => "the device is not connected",
            Self::INVALID_ARGUMENT => "an invalid argument",
            Self::NOT_FOUND => "no such adapter",
            Self::ALREADY_EXISTS => "the file exists",
            Self::DISK_FULL => "the disk is full",
            _ => return None,
        })
    }
}

impl fmt::Display for IcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => write!(f, "{text} ({:#010x})", self.0),
            None => write!(f, "status {:#010x}", self.0),
        }
    }
}

impl fmt::Debug for IcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Leads every message.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Version of the frame; 0.0 in a negotiation.
    pub framework_version: IcVersion,
    /// One of the types above.
    pub message_type: U16,
    /// Version of the data; 0.0 in a negotiation.
    pub message_version: IcVersion,
    /// Bytes of data behind this header.
    pub message_size: U16,
    /// In an answer: an HRESULT.
    pub status: U32,
    /// An answer has that of its request.
    pub transaction_id: u8,
    /// Flags.
    pub flags: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// Leads a negotiation. The versions follow: first those of the framework.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Negotiate {
    /// Framework versions that follow; in an answer 1, or 0 for a refusal.
    pub framework_count: U16,
    /// Message versions that follow those; in an answer 1 or 0.
    pub message_count: U16,
    /// Zero.
    pub reserved: U32,
}

/// A message as it came from the guest.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its header.
    pub header: Header,
    /// Its data.
    pub body: &'a [u8],
}

/// Reads a message out of a pipe's data; `None` where it is too short for
/// what it says.
pub fn parse_message(data: &[u8]) -> Option<Message<'_>> {
    let (header, rest) = Header::read_from_prefix(data).ok()?;
    let body = rest.get(..usize::from(header.message_size.get()))?;
    Some(Message { header, body })
}

/// A request to the guest, behind the pipe's header.
///
/// The body is shorter than [`MAX_MESSAGE_SIZE`] by a header.
pub fn request(versions: Versions, message_type: u16, id: u8, body: &[u8]) -> Vec<u8> {
    let header = Header {
        framework_version: versions.framework,
        message_type: message_type.into(),
        message_version: versions.message,
        message_size: (body.len() as u16).into(),
        transaction_id: id,
        flags: FLAG_TRANSACTION | FLAG_REQUEST,
        ..Header::default()
    };
    [header.as_bytes(), body].concat()
}

/// The request that opens a negotiation.
pub fn negotiate_request(id: u8, message_versions: &[IcVersion]) -> Vec<u8> {
    let lead = Negotiate {
        framework_count: (FRAMEWORK_VERSIONS.len() as u16).into(),
        message_count: (message_versions.len() as u16).into(),
        ..Negotiate::default()
    };
    let body = [
        lead.as_bytes(),
        FRAMEWORK_VERSIONS.as_bytes(),
        message_versions.as_bytes(),
    ];
    let none = Versions {
        framework: IcVersion::default(),
        message: IcVersion::default(),
    };
    request(none, TYPE_NEGOTIATE, id, &body.concat())
}

/// The outcome of a negotiation; `None` when the guest knows none of the
/// versions, or claims one that was not offered.
pub fn negotiate_answer(body: &[u8], message_versions: &[IcVersion]) -> Option<Versions> {
    let (lead, rest) = Negotiate::read_from_prefix(body).ok()?;
    let ([framework, message], _) = <[IcVersion; 2]>::read_from_prefix(rest).ok()?;
    let one_each = lead.framework_count.get() == 1 && lead.message_count.get() == 1;
    let offered = FRAMEWORK_VERSIONS.contains(&framework) && message_versions.contains(&message);
    (one_each && offered).then_some(Versions { framework, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_wire() {
        assert_eq!(size_of::<Header>(), 20);
        let bytes = negotiate_request(7, &[IcVersion::new(3, 2)]);
        assert_eq!(bytes.len(), 20 + 8 + 12);
        assert_eq!(bytes[10], 20);
        assert_eq!(bytes[16..18], [7, 3]);
        assert_eq!(bytes[20..24], [2, 0, 1, 0]);
        assert_eq!(bytes[28..], [1, 0, 0, 0, 3, 0, 0, 0, 3, 0, 2, 0]);
    }

    #[test]
    fn only_offered_versions_are_agreed_on() {
        let offered = [IcVersion::new(3, 0), IcVersion::new(4, 0)];
        let answer = |counts: [u8; 4], framework: [u8; 4], message: [u8; 4]| {
            negotiate_answer(
                &[&counts[..], &[0; 4], &framework, &message].concat(),
                &offered,
            )
        };
        let agreed = answer([1, 0, 1, 0], [3, 0, 0, 0], [4, 0, 0, 0]).unwrap();
        assert_eq!(agreed.message, IcVersion::new(4, 0));
        assert_eq!(answer([0; 4], [0; 4], [0; 4]), None);
        assert_eq!(answer([1, 0, 1, 0], [9, 0, 0, 0], [4, 0, 0, 0]), None);
        assert_eq!(answer([1, 0, 1, 0], [3, 0, 0, 0], [4, 0, 1, 0]), None);
        assert_eq!(
            negotiate_answer(&[1, 0, 1, 0, 0, 0, 0, 0, 3, 0], &offered),
            None
        );
        assert_eq!(negotiate_answer(&[], &offered), None);
    }

    #[test]
    fn lengths_are_checked() {
        let versions = Versions {
            framework: IcVersion::new(3, 0),
            message: IcVersion::new(3, 0),
        };
        let good = request(versions, TYPE_HEARTBEAT, 1, &[1, 2, 3]);
        assert_eq!(parse_message(&good).unwrap().body, [1, 2, 3]);
        assert!(parse_message(&good[..22]).is_none());
        assert!(parse_message(&good[..19]).is_none());
        assert!(parse_message(&[]).is_none());
    }
}
