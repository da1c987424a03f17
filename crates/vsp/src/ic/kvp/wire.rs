//! The messages of key-value exchange.

use crate::ic::{IcError, text};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

pub(super) const OP_GET: u8 = 0;
pub(super) const OP_SET: u8 = 1;
pub(super) const OP_DELETE: u8 = 2;
pub(super) const OP_ENUMERATE: u8 = 3;
pub(super) const OP_GET_IP: u8 = 4;
pub(super) const OP_SET_IP: u8 = 5;

/// Registry type of text.
pub(super) const REG_SZ: u32 = 1;
/// Registry type of text with environment variables in it.
pub(super) const REG_EXPAND_SZ: u32 = 2;
/// Registry type of a number of 32 bits.
pub(super) const REG_DWORD: u32 = 4;
/// What Linux takes for a number of 64 bits.
pub(super) const REG_U64_LINUX: u32 = 8;
/// Registry type of a number of 64 bits.
pub(super) const REG_QWORD: u32 = 11;

/// Units of UTF-16 in a key, with its terminator.
const KEY_UNITS: usize = 256;
/// Bytes in a value; of text, with its terminator.
const VALUE_BYTES: usize = 2048;
/// Bytes of every message about addresses.
pub(super) const IP_MESSAGE_SIZE: usize = 7428;
/// Addresses of a kind in the binary form.
pub(super) const MAX_ADDRESSES: usize = 64;
/// Gateways of a kind in the binary form.
pub(super) const MAX_GATEWAYS: usize = 5;

/// A key with its value.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Pair {
    pub(super) value_type: U32,
    /// Bytes of the key.
    pub(super) key_size: U32,
    /// Bytes of the value.
    pub(super) value_size: U32,
    pub(super) key: [U16; KEY_UNITS],
    pub(super) value: [u8; VALUE_BYTES],
}

/// Get and set.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct PairMessage {
    pub(super) operation: u8,
    pub(super) pool: u8,
    pub(super) padding: U16,
    pub(super) pair: Pair,
    pub(super) unused: U32,
}

/// Enumerate: a pair by its number.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct EnumerateMessage {
    pub(super) operation: u8,
    pub(super) pool: u8,
    pub(super) padding: U16,
    pub(super) index: U32,
    pub(super) pair: Pair,
}

/// Delete.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DeleteMessage {
    pub(super) operation: u8,
    pub(super) pool: u8,
    pub(super) padding: U16,
    pub(super) key_size: U32,
    pub(super) key: [U16; KEY_UNITS],
    pub(super) unused: [u8; 2060],
}

/// Addresses as text, version 4. Lists have semicolons between their items.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IpTextMessage {
    pub(super) operation: u8,
    pub(super) pool: u8,
    pub(super) adapter_id: [U16; 128],
    /// Bit 0: IPv4, bit 1: IPv6.
    pub(super) family: u8,
    pub(super) dhcp: u8,
    pub(super) addresses: [U16; 1024],
    pub(super) subnets: [U16; 1024],
    pub(super) gateways: [U16; 512],
    pub(super) dns_servers: [U16; 1024],
}

/// Addresses as bytes, version 5.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IpBinaryMessage {
    pub(super) operation: u8,
    pub(super) pool: u8,
    pub(super) padding: U16,
    pub(super) v4_count: U32,
    pub(super) v6_count: U32,
    pub(super) v4_gateway_count: U32,
    pub(super) v6_gateway_count: U32,
    pub(super) v4_dns_count: U32,
    pub(super) v6_dns_count: U32,
    pub(super) adapter_id: [U16; 128],
    /// Bit 0: IPv4, bit 1: IPv6.
    pub(super) family: u8,
    pub(super) dhcp: u8,
    pub(super) reserved: U16,
    pub(super) v4: [[u8; 4]; MAX_ADDRESSES],
    pub(super) v6: [[u8; 16]; MAX_ADDRESSES],
    /// Masks.
    pub(super) v4_subnets: [[u8; 4]; MAX_ADDRESSES],
    /// Lengths of prefixes.
    pub(super) v6_subnets: [U32; MAX_ADDRESSES],
    pub(super) v4_gateways: [[u8; 4]; MAX_GATEWAYS],
    pub(super) v6_gateways: [[u8; 16]; MAX_GATEWAYS],
    pub(super) v4_dns: [[u8; 4]; MAX_ADDRESSES],
    pub(super) v6_dns: [[u8; 16]; MAX_ADDRESSES],
    /// First those of the IPv4 addresses, then at once those of IPv6.
    pub(super) origins: [U32; 2 * MAX_ADDRESSES],
}

const _: () = assert!(size_of::<PairMessage>() == 2580);
const _: () = assert!(size_of::<EnumerateMessage>() == 2580);
const _: () = assert!(size_of::<DeleteMessage>() == 2580);
const _: () = assert!(size_of::<IpTextMessage>() == IP_MESSAGE_SIZE);

/// A request about the pair of a key.
pub(super) fn pair_message(operation: u8, pool: u8, key: &str) -> Result<PairMessage, IcError> {
    let mut message = PairMessage::new_zeroed();
    (message.operation, message.pool) = (operation, pool);
    message.pair.key_size = text::put(&mut message.pair.key, key)?.into();
    Ok(message)
}

/// A request to delete a key.
pub(super) fn delete_message(pool: u8, key: &str) -> Result<DeleteMessage, IcError> {
    let mut message = DeleteMessage::new_zeroed();
    (message.operation, message.pool) = (OP_DELETE, pool);
    message.key_size = text::put(&mut message.key, key)?.into();
    Ok(message)
}

/// A request for the pair of a number.
pub(super) fn enumerate_message(pool: u8, index: u32) -> EnumerateMessage {
    let mut message = EnumerateMessage::new_zeroed();
    (message.operation, message.pool) = (OP_ENUMERATE, pool);
    message.index = index.into();
    message
}
