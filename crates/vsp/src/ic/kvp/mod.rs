//! Key-value exchange: pairs in the guest's pools, and the addresses of its
//! network adapters.

mod address;
mod wire;

pub use address::{AddressOrigin, IpAddress, IpInfo};

use super::device::IcDevice;
use super::exchange::Exchange;
use super::session::{Profile, Service};
use super::wire::{IcStatus, IcVersion, TYPE_KVP_EXCHANGE, Versions};
use super::{IcError, text};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmbus::bus::Vsp;
use vmbus::protocol::Guid;
use wire::{
    EnumerateMessage, OP_GET, OP_SET, Pair, PairMessage, REG_DWORD, REG_EXPAND_SZ, REG_QWORD,
    REG_SZ, REG_U64_LINUX,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// Pairs of a pool at most: a guest that has more, or never ends, is refused.
pub(super) const MAX_PAIRS: u32 = 1024;

static PROFILE: Profile = Profile {
    name: "kvp",
    // a9a0f4e7-5a45-4d96-b827-8a841e8c03e6
    interface_id: Guid::from_u128(0xa9a0f4e7_5a45_4d96_b827_8a841e8c03e6),
    // 242ff919-07db-4180-9c2e-b86cb68c8c55
    instance_id: Guid::from_u128(0x242ff919_07db_4180_9c2e_b86cb68c8c55),
    message_type: TYPE_KVP_EXCHANGE,
    versions: &[
        IcVersion::new(1, 0),
        IcVersion::new(3, 0),
        IcVersion::new(4, 0),
        IcVersion::new(5, 0),
    ],
};

/// A guest's pool of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KvpPool {
    /// The host's pairs for the guest.
    External = 0,
    /// The guest's pairs for the host.
    Guest = 1,
    /// What the guest says of itself: its name, version and addresses.
    Auto = 2,
    /// What the host says of itself.
    AutoExternal = 3,
    /// The guest's own.
    AutoInternal = 4,
}

impl KvpPool {
    /// All pools.
    pub const ALL: [Self; 5] = [
        Self::External,
        Self::Guest,
        Self::Auto,
        Self::AutoExternal,
        Self::AutoInternal,
    ];
}

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvpValue {
    /// Text, at most 1023 units of UTF-16. All that Linux gives back.
    Text(String),
    /// A number of 32 bits.
    U32(u32),
    /// A number of 64 bits.
    U64(u64),
}

/// A handle to the guest's pairs and addresses.
#[derive(Clone)]
pub struct Kvp {
    exchange: Arc<Exchange>,
}

impl Kvp {
    /// A device for the bus, and its handle.
    pub fn new() -> (Box<dyn Vsp>, Self) {
        let handle = Self {
            exchange: Arc::default(),
        };
        (
            Box::new(IcDevice::new(KvpService, handle.exchange.clone())),
            handle,
        )
    }

    /// All pairs of a pool, in the guest's order. The time is for all of them.
    ///
    /// # Errors
    ///
    /// [`IcError`]; [`IcError::Protocol`] also for a pool without an end.
    pub fn enumerate(
        &self,
        pool: KvpPool,
        timeout: Duration,
    ) -> Result<Vec<(String, KvpValue)>, IcError> {
        let begin = Instant::now();
        let mut pairs = Vec::new();
        for index in 0..=MAX_PAIRS {
            let left = timeout.saturating_sub(begin.elapsed());
            let encode = move |_| {
                Ok(wire::enumerate_message(pool as u8, index)
                    .as_bytes()
                    .to_vec())
            };
            let reply = self.exchange.call(0, left, encode)?;
            if reply.status == IcStatus::NO_MORE_ITEMS {
                return Ok(pairs);
            }
            let message: EnumerateMessage = reply.read()?;
            let key = text::take_sized(&message.pair.key, message.pair.key_size.get())?;
            pairs.push((key, value(&message.pair)?));
        }
        Err(IcError::Protocol("a pool without an end"))
    }

    /// The value of a key, or `None` where there is no such key.
    ///
    /// Linux answers a question for one key with an empty value whatever its
    /// value is, and finds none of its own ([`KvpPool::Auto`]). So where there
    /// seems to be nothing, all pairs are looked through.
    ///
    /// # Errors
    ///
    /// [`IcError`].
    pub fn get(
        &self,
        pool: KvpPool,
        key: &str,
        timeout: Duration,
    ) -> Result<Option<KvpValue>, IcError> {
        let begin = Instant::now();
        match self.ask(pool, key, timeout)? {
            Some(KvpValue::Text(text)) if text.is_empty() => {}
            None => {}
            found => return Ok(found),
        }
        let left = timeout.saturating_sub(begin.elapsed());
        let mut pairs = self.enumerate(pool, left)?.into_iter();
        Ok(pairs.find(|pair| pair.0 == key).map(|pair| pair.1))
    }

    /// What the guest answers to a question for one key.
    fn ask(
        &self,
        pool: KvpPool,
        key: &str,
        timeout: Duration,
    ) -> Result<Option<KvpValue>, IcError> {
        let message = wire::pair_message(OP_GET, pool as u8, key)?;
        let reply = self
            .exchange
            .call(0, timeout, move |_| Ok(message.as_bytes().to_vec()))?;
        if reply.status == IcStatus::NO_MORE_ITEMS {
            return Ok(None);
        }
        let message: PairMessage = reply.read()?;
        value(&message.pair).map(Some)
    }

    /// Sets a key, new or not.
    ///
    /// # Errors
    ///
    /// [`IcError`]; [`IcError::Argument`] for a key of more than 255 or a
    /// text of more than 1023 units of UTF-16,
    /// [`IcStatus::NO_MORE_ITEMS`] where Linux cannot store it.
    pub fn set(
        &self,
        pool: KvpPool,
        key: &str,
        value: &KvpValue,
        timeout: Duration,
    ) -> Result<(), IcError> {
        let mut message = wire::pair_message(OP_SET, pool as u8, key)?;
        put_value(&mut message.pair, value)?;
        let encode = move |versions: Versions| {
            // Linux, which stops at 4.0, has a number of its own for this.
            if message.pair.value_type == REG_QWORD && !versions.message.at_least(5, 0) {
                message.pair.value_type = REG_U64_LINUX.into();
            }
            Ok(message.as_bytes().to_vec())
        };
        self.exchange.call(0, timeout, encode)?.body().map(|_| ())
    }

    /// Deletes a key; false where there is no such key.
    ///
    /// # Errors
    ///
    /// [`IcError`].
    pub fn delete(&self, pool: KvpPool, key: &str, timeout: Duration) -> Result<bool, IcError> {
        let message = wire::delete_message(pool as u8, key)?;
        let reply = self
            .exchange
            .call(0, timeout, move |_| Ok(message.as_bytes().to_vec()))?;
        if reply.status == IcStatus::NO_MORE_ITEMS {
            return Ok(false);
        }
        reply.body().map(|_| true)
    }

    /// The addresses of a network adapter. Linux knows its adapters by their
    /// hardware addresses, written like `00:15:5D:01:02:03`.
    ///
    /// # Errors
    ///
    /// [`IcError`]; [`IcStatus::NOT_FOUND`] where the guest has no such
    /// adapter, [`IcError::Unsupported`] from guests before version 4.0.
    pub fn ip_addresses(&self, adapter_id: &str, timeout: Duration) -> Result<IpInfo, IcError> {
        let adapter_id = adapter_id.to_owned();
        let encode = move |versions| address::encode_get(versions, &adapter_id);
        // The form of the answer tells itself apart only by the version, and
        // that may change while the request waits: so the request says.
        let (tell, version) = std::sync::mpsc::channel();
        let encode = move |versions: Versions| {
            // Whoever made the request still waits for its answer.
            let _ = tell.send(versions.message);
            encode(versions)
        };
        let reply = self.exchange.call(0, timeout, encode)?;
        let version = version.try_recv().map_err(|_| IcError::Closed)?;
        address::decode(version, reply)
    }

    /// Has the guest set up an adapter with these addresses, or DHCP. Known as
    /// IP injection.
    ///
    /// # Errors
    ///
    /// As [`Kvp::ip_addresses`]; [`IcError::Argument`] when there are too many
    /// addresses.
    pub fn inject_ip(
        &self,
        adapter_id: &str,
        info: &IpInfo,
        timeout: Duration,
    ) -> Result<(), IcError> {
        let (adapter_id, info) = (adapter_id.to_owned(), info.clone());
        let encode = move |versions| address::encode_set(versions, &adapter_id, &info);
        self.exchange.call(0, timeout, encode)?.body().map(|_| ())
    }

    /// Whether the guest has opened the channel.
    pub fn is_connected(&self) -> bool {
        self.exchange.is_open()
    }
}

fn put_value(pair: &mut Pair, value: &KvpValue) -> Result<(), IcError> {
    let (value_type, size) = match value {
        KvpValue::Text(text) => {
            let mut field = [U16::ZERO; 1024];
            let size = text::put(&mut field, text)?;
            pair.value.copy_from_slice(field.as_bytes());
            (REG_SZ, size)
        }
        KvpValue::U32(number) => {
            pair.value[..4].copy_from_slice(&number.to_le_bytes());
            (REG_DWORD, 4)
        }
        KvpValue::U64(number) => {
            pair.value[..8].copy_from_slice(&number.to_le_bytes());
            (REG_QWORD, 8)
        }
    };
    (pair.value_type, pair.value_size) = (value_type.into(), size.into());
    Ok(())
}

fn value(pair: &Pair) -> Result<KvpValue, IcError> {
    let malformed = IcError::Protocol("a value of another size than its type");
    let size = pair.value_size.get();
    match pair.value_type.get() {
        REG_SZ | REG_EXPAND_SZ => {
            let units = <[U16]>::ref_from_bytes(&pair.value).map_err(|_| malformed)?;
            text::take_sized(units, size).map(KvpValue::Text)
        }
        REG_DWORD if size == 4 => {
            let number = U32::read_from_prefix(&pair.value).map_err(|_| malformed)?;
            Ok(KvpValue::U32(number.0.get()))
        }
        REG_QWORD | REG_U64_LINUX if size == 8 => {
            let number = U64::read_from_prefix(&pair.value).map_err(|_| malformed)?;
            Ok(KvpValue::U64(number.0.get()))
        }
        REG_DWORD | REG_QWORD | REG_U64_LINUX => Err(malformed),
        _ => Err(IcError::Protocol("a value of an unknown type")),
    }
}

struct KvpService;

impl Service for KvpService {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }
}
