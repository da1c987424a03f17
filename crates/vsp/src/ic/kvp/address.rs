//! Addresses of a guest's adapters, as text or as bytes.

use super::wire::{IP_MESSAGE_SIZE, IpBinaryMessage, IpTextMessage, OP_GET_IP, OP_SET_IP};
use crate::ic::wire::{IcVersion, Versions};
use crate::ic::{IcError, Reply, text};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zerocopy::little_endian::U32;
use zerocopy::{FromZeros, IntoBytes};

const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;
/// The pool of requests about addresses.
const POOL: u8 = 1;

/// Where an address comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddressOrigin {
    /// The guest does not say; before version 5.0 it cannot.
    #[default]
    Unknown,
    /// Not from a person: DHCP, say.
    Other,
    /// Set by a person.
    Static,
}

/// An address with its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network's prefix: 0 to 32, or 0 to 128. From a guest: `None`
    /// where it makes no sense.
    pub prefix: Option<u8>,
    /// Where it comes from. Not sent to the guest.
    pub origin: AddressOrigin,
}

/// The addresses of an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpInfo {
    /// The adapter has IPv4.
    pub ipv4: bool,
    /// The adapter has IPv6.
    pub ipv6: bool,
    /// The guest asks a DHCP server for its addresses.
    pub dhcp: bool,
    /// Its own addresses.
    pub addresses: Vec<IpAddress>,
    /// Gateways.
    pub gateways: Vec<IpAddr>,
    /// Name servers.
    pub dns_servers: Vec<IpAddr>,
}

impl IpInfo {
    fn family(&self) -> u8 {
        (u8::from(self.ipv4) * FAMILY_V4) | (u8::from(self.ipv6) * FAMILY_V6)
    }
}

/// Whether addresses are bytes; an error where there are none at all.
fn is_binary(version: IcVersion) -> Result<bool, IcError> {
    if !version.at_least(4, 0) {
        return Err(IcError::Unsupported("the guest is too old for addresses"));
    }
    Ok(version.at_least(5, 0))
}

pub(super) fn encode_get(versions: Versions, adapter_id: &str) -> Result<Vec<u8>, IcError> {
    // Linux looks at the family for the answer's sake: it wants none.
    encode(versions, OP_GET_IP, adapter_id, &IpInfo::default())
}

pub(super) fn encode_set(
    versions: Versions,
    adapter_id: &str,
    info: &IpInfo,
) -> Result<Vec<u8>, IcError> {
    encode(versions, OP_SET_IP, adapter_id, info)
}

fn encode(
    versions: Versions,
    operation: u8,
    adapter_id: &str,
    info: &IpInfo,
) -> Result<Vec<u8>, IcError> {
    let mut bytes = if is_binary(versions.message)? {
        let mut message = binary(info)?;
        (message.operation, message.pool) = (operation, POOL);
        text::put(&mut message.adapter_id, adapter_id)?;
        message.as_bytes().to_vec()
    } else {
        let mut message = textual(info)?;
        (message.operation, message.pool) = (operation, POOL);
        text::put(&mut message.adapter_id, adapter_id)?;
        message.as_bytes().to_vec()
    };
    bytes.resize(IP_MESSAGE_SIZE, 0);
    Ok(bytes)
}

pub(super) fn decode(version: IcVersion, reply: Reply) -> Result<IpInfo, IcError> {
    if is_binary(version)? {
        from_binary(&reply.read()?)
    } else {
        from_textual(&reply.read()?)
    }
}

fn textual(info: &IpInfo) -> Result<IpTextMessage, IcError> {
    let mut message = IpTextMessage::new_zeroed();
    (message.family, message.dhcp) = (info.family(), info.dhcp.into());
    let joined = |list: &[IpAddr]| {
        let list: Vec<String> = list.iter().map(IpAddr::to_string).collect();
        list.join(";")
    };
    let addresses: Vec<IpAddr> = info.addresses.iter().map(|own| own.address).collect();
    let subnets: Result<Vec<String>, IcError> = info.addresses.iter().map(subnet_text).collect();
    text::put(&mut message.addresses, &joined(&addresses))?;
    text::put(&mut message.subnets, &subnets?.join(";"))?;
    text::put(&mut message.gateways, &joined(&info.gateways))?;
    text::put(&mut message.dns_servers, &joined(&info.dns_servers))?;
    Ok(message)
}

/// The network of an address: a mask for IPv4, `/64` or the like for IPv6.
fn subnet_text(own: &IpAddress) -> Result<String, IcError> {
    let prefix = checked_prefix(own)?;
    Ok(match own.address {
        IpAddr::V4(_) => mask(prefix).to_string(),
        IpAddr::V6(_) => format!("/{prefix}"),
    })
}

fn checked_prefix(own: &IpAddress) -> Result<u8, IcError> {
    let most = if own.address.is_ipv4() { 32 } else { 128 };
    let prefix = own.prefix.unwrap_or(most);
    if prefix > most {
        return Err(IcError::Argument("a prefix longer than its address"));
    }
    Ok(prefix)
}

fn mask(prefix: u8) -> Ipv4Addr {
    let ones = u32::MAX.checked_shl(32 - u32::from(prefix.min(32)));
    Ipv4Addr::from_bits(ones.unwrap_or(0))
}

fn prefix_of(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let ones = bits.leading_ones();
    (ones == bits.count_ones()).then_some(ones as u8)
}

fn from_textual(message: &IpTextMessage) -> Result<IpInfo, IcError> {
    let subnets = text::take(&message.subnets)?;
    let mut subnets = subnets.split(';');
    let mut addresses = Vec::new();
    for item in text::take(&message.addresses)?.split(';') {
        let subnet = subnets.next().unwrap_or_default();
        addresses.extend(parse_address(item).map(|address| IpAddress {
            address,
            prefix: parse_subnet(address, subnet),
            origin: AddressOrigin::Unknown,
        }));
    }
    let list = |text: &str| text.split(';').filter_map(parse_address).collect();
    Ok(IpInfo {
        ipv4: message.family & FAMILY_V4 != 0 || addresses.iter().any(|own| own.address.is_ipv4()),
        ipv6: message.family & FAMILY_V6 != 0 || addresses.iter().any(|own| own.address.is_ipv6()),
        dhcp: message.dhcp != 0,
        addresses,
        gateways: list(&text::take(&message.gateways)?),
        dns_servers: list(&text::take(&message.dns_servers)?),
    })
}

/// An address of a list; some guests put their interface behind it.
fn parse_address(item: &str) -> Option<IpAddr> {
    let (address, _) = item.split_once('%').unwrap_or((item, ""));
    address.trim().parse().ok()
}

fn parse_subnet(address: IpAddr, subnet: &str) -> Option<u8> {
    let subnet = subnet.trim();
    let length = subnet
        .strip_prefix('/')
        .unwrap_or(subnet)
        .parse::<u8>()
        .ok();
    match address {
        IpAddr::V4(_) => subnet
            .parse()
            .ok()
            .map_or(length.filter(|&length| length <= 32), prefix_of),
        IpAddr::V6(_) => length.filter(|&length| length <= 128),
    }
}

fn binary(info: &IpInfo) -> Result<IpBinaryMessage, IcError> {
    let mut message = IpBinaryMessage::new_zeroed();
    (message.family, message.dhcp) = (info.family(), info.dhcp.into());
    let (mut v4, mut v6) = (0, 0);
    for own in &info.addresses {
        let prefix = checked_prefix(own)?;
        match own.address {
            IpAddr::V4(address) => {
                place(&mut message.v4, v4, address.octets())?;
                place(&mut message.v4_subnets, v4, mask(prefix).octets())?;
                v4 += 1;
            }
            IpAddr::V6(address) => {
                place(&mut message.v6, v6, address.octets())?;
                place(&mut message.v6_subnets, v6, u32::from(prefix).into())?;
                v6 += 1;
            }
        }
    }
    (message.v4_count, message.v6_count) = ((v4 as u32).into(), (v6 as u32).into());
    (message.v4_gateway_count, message.v6_gateway_count) = split(
        &info.gateways,
        &mut message.v4_gateways,
        &mut message.v6_gateways,
    )?;
    (message.v4_dns_count, message.v6_dns_count) =
        split(&info.dns_servers, &mut message.v4_dns, &mut message.v6_dns)?;
    Ok(message)
}

fn place<T>(room: &mut [T], at: usize, value: T) -> Result<(), IcError> {
    *room
        .get_mut(at)
        .ok_or(IcError::Argument("too many addresses"))? = value;
    Ok(())
}

/// Puts a list into the places of the two kinds; how many of each.
fn split(list: &[IpAddr], v4: &mut [[u8; 4]], v6: &mut [[u8; 16]]) -> Result<(U32, U32), IcError> {
    let mut counts = (0, 0);
    for address in list {
        match address {
            IpAddr::V4(address) => {
                place(v4, counts.0, address.octets())?;
                counts.0 += 1;
            }
            IpAddr::V6(address) => {
                place(v6, counts.1, address.octets())?;
                counts.1 += 1;
            }
        }
    }
    Ok(((counts.0 as u32).into(), (counts.1 as u32).into()))
}

fn counted<T>(list: &[T], count: U32) -> Result<&[T], IcError> {
    list.get(..count.get() as usize)
        .ok_or(IcError::Protocol("more addresses than there is room"))
}

fn from_binary(message: &IpBinaryMessage) -> Result<IpInfo, IcError> {
    let v4 = counted(&message.v4, message.v4_count)?;
    let v6 = counted(&message.v6, message.v6_count)?;
    // Both counts are at most half of the origins.
    let origins = message.origins.iter().map(|origin| match origin.get() {
        1 => AddressOrigin::Other,
        2 => AddressOrigin::Static,
        _ => AddressOrigin::Unknown,
    });
    let v4_own = v4
        .iter()
        .zip(&message.v4_subnets)
        .map(|(&address, &subnet)| (IpAddr::from(address), prefix_of(Ipv4Addr::from(subnet))));
    let v6_own = v6
        .iter()
        .zip(&message.v6_subnets)
        .map(|(&address, subnet)| {
            let prefix = u8::try_from(subnet.get())
                .ok()
                .filter(|&prefix| prefix <= 128);
            (IpAddr::from(Ipv6Addr::from(address)), prefix)
        });
    let addresses = v4_own.chain(v6_own).zip(origins);
    let addresses = addresses.map(|((address, prefix), origin)| IpAddress {
        address,
        prefix,
        origin,
    });
    Ok(IpInfo {
        ipv4: message.family & FAMILY_V4 != 0,
        ipv6: message.family & FAMILY_V6 != 0,
        dhcp: message.dhcp != 0,
        addresses: addresses.collect(),
        gateways: merged(
            counted(&message.v4_gateways, message.v4_gateway_count)?,
            counted(&message.v6_gateways, message.v6_gateway_count)?,
        ),
        dns_servers: merged(
            counted(&message.v4_dns, message.v4_dns_count)?,
            counted(&message.v6_dns, message.v6_dns_count)?,
        ),
    })
}

fn merged(v4: &[[u8; 4]], v6: &[[u8; 16]]) -> Vec<IpAddr> {
    let v4 = v4.iter().map(|&address| IpAddr::from(address));
    v4.chain(v6.iter().map(|&address| IpAddr::from(address)))
        .collect()
}
