//! Versions of the protocol and their features.

use bitflags::bitflags;
use std::fmt;

/// A protocol version: major in the high 16 bits, minor in the low.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u32);

impl Version {
    /// 0.13: the first.
    pub const V1: Self = Self::new(0, 13);
    /// 1.1: Windows 7.
    pub const WIN7: Self = Self::new(1, 1);
    /// 2.4: Windows 8; an event flag per channel.
    pub const WIN8: Self = Self::new(2, 4);
    /// 3.0: Windows 8.1; a virtual processor for messages.
    pub const WIN8_1: Self = Self::new(3, 0);
    /// 4.0: Windows 10; reserved channels, sockets.
    pub const WIN10: Self = Self::new(4, 0);
    /// 4.1: Windows 10 RS3; channels move between processors.
    pub const WIN10_RS3: Self = Self::new(4, 1);
    /// 5.0: the SINT for messages, connection ids for the guest's messages.
    pub const WIN10_RS3_1: Self = Self::new(5, 0);
    /// 5.1: Windows 10 RS4; a VTL.
    pub const WIN10_RS4: Self = Self::new(5, 1);
    /// 5.2: Windows 10 RS5; silos.
    pub const WIN10_RS5: Self = Self::new(5, 2);
    /// 5.3: answers to ModifyChannel.
    pub const IRON: Self = Self::new(5, 3);
    /// 6.0: feature flags.
    pub const COPPER: Self = Self::new(6, 0);

    /// The versions that this host speaks, ascending.
    pub const SUPPORTED: [Self; 9] = [
        Self::WIN8,
        Self::WIN8_1,
        Self::WIN10,
        Self::WIN10_RS3,
        Self::WIN10_RS3_1,
        Self::WIN10_RS4,
        Self::WIN10_RS5,
        Self::IRON,
        Self::COPPER,
    ];

    /// From its parts.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self((major as u32) << 16 | minor as u32)
    }

    /// Whether this host speaks it.
    pub fn is_supported(self) -> bool {
        Self::SUPPORTED.contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Version({self})")
    }
}

bitflags! {
    /// Features negotiated from version 6.0 on.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct FeatureFlags: u32 {
        /// OpenChannel2: the guest chooses signal parameters.
        const GUEST_SPECIFIED_SIGNAL_PARAMETERS = 0x1;
        /// Channel interrupts may go to a redirected SINT.
        const CHANNEL_INTERRUPT_REDIRECTION = 0x2;
        /// ModifyConnection.
        const MODIFY_CONNECTION = 0x4;
        /// InitiateContact2 carries the client's GUID.
        const CLIENT_ID = 0x8;
        /// Confidential channels (messages that are trusted).
        const CONFIDENTIAL_CHANNELS = 0x10;
        /// Pause and Resume.
        const PAUSE_RESUME = 0x20;
        /// The server chooses the monitor pages.
        const SERVER_SPECIFIED_MONITOR_PAGES = 0x40;
        /// Pinned guest pages.
        const GPA_PINNING = 0x80;
    }
}

impl FeatureFlags {
    /// What this host offers: the features of use to a guest without a
    /// paravisor and without monitor pages.
    pub const SUPPORTED: Self = Self::MODIFY_CONNECTION
        .union(Self::CLIENT_ID)
        .union(Self::PAUSE_RESUME);
}
