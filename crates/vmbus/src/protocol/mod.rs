//! The wire types: control messages, offers, GPADLs, rings and packets.
//!
//! All are little-endian and read from untrusted bytes by value.

mod gpadl;
mod guid;
mod message;
mod monitor;
mod offer;
mod ring;
mod version;

pub use gpadl::{GpaRange, GpadlError, MAX_RANGE_BYTES, PFN_SIZE, RANGE_HEADER_SIZE, parse_ranges};
pub use guid::{BadGuid, Guid};
pub use message::*;
pub use monitor::{
    MONITOR_GROUP_IDS, MONITOR_GROUPS, MonitorPage, MonitorParameter, MonitorTriggerGroup,
};
pub use offer::{HvSockUserDefined, OfferFlags, PIPE_USER_DATA_SIZE, PipeType, UserDefined};
pub use ring::*;
pub use version::{FeatureFlags, Version};

/// Bytes of a guest page.
pub const PAGE_SIZE: u64 = 4096;
/// The SINT that VMBus uses unless the guest says otherwise.
pub const VMBUS_SINT: u8 = 2;
/// The connection for control messages.
pub const MESSAGE_CONNECTION_ID: u32 = 1;
/// The connection for the first message of a guest of version 5.0 or later
/// ("multiclient").
pub const MULTICLIENT_MESSAGE_CONNECTION_ID: u32 = 4;
/// Channel ids are below this: a SINT has that many event flags, and the
/// first is reserved.
pub const MAX_CHANNELS: u16 = 2048;

/// The connection by which a guest signals a channel to a SINT of VTL 0.
pub const fn channel_connection_id(channel_id: u16, sint: u8) -> u32 {
    channel_id as u32 | (sint as u32) << 12
}
