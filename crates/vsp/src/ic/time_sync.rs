//! Time synchronization: the host's time, at once when the guest starts and
//! then every five seconds as a sample.
//!
//! From version 4.0 on a message says which reference time of the partition
//! (TLFS 12.4) belongs to the host's time. Linux derives `/dev/ptp` with the
//! name `hyperv` from the samples, and sets its clock only by the others.

use super::device::IcDevice;
use super::exchange::Exchange;
use super::session::{Beat, Profile, Service};
use super::wire::{IcVersion, TYPE_TIME_SYNC, Versions};
use super::{IcError, Reply};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use vmbus::bus::Vsp;
use vmbus::protocol::Guid;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Between two samples.
pub(super) const SAMPLE_PERIOD: Duration = Duration::from_secs(5);
/// 100 ns units from 1601 to 1970.
const UNIX_EPOCH_TICKS: i64 = 116_444_736_000_000_000;

static PROFILE: Profile = Profile {
    name: "timesync",
    // 9527e630-d0ae-497b-adce-e80ab0175caf
    interface_id: Guid::from_u128(0x9527e630_d0ae_497b_adce_e80ab0175caf),
    // 2dd1ce17-079e-403c-b352-a1921ee207ee
    instance_id: Guid::from_u128(0x2dd1ce17_079e_403c_b352_a1921ee207ee),
    message_type: TYPE_TIME_SYNC,
    versions: &[
        IcVersion::new(1, 0),
        IcVersion::new(3, 0),
        IcVersion::new(4, 0),
    ],
};

/// Set the clock.
const FLAG_SYNC: u8 = 1;
/// The time by the way.
const FLAG_SAMPLE: u8 = 2;

/// The message up to version 3.0.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct TimeSyncMessage {
    /// Host's time in 100 ns units since 1601, UTC.
    parent_time: U64,
    child_time: U64,
    round_trip_time: U64,
    flags: u8,
    reserved: [u8; 7],
}

/// The message from version 4.0 on.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct TimeSyncMessageV4 {
    /// Host's time in 100 ns units since 1601, UTC.
    parent_time: U64,
    /// The partition's reference time at that moment, in 100 ns units.
    reference_time: U64,
    flags: u8,
    leap_indicator: u8,
    stratum: u8,
    reserved: [u8; 5],
}

/// The two clocks that a message brings together.
pub trait GuestClock: Send + Sync {
    /// The host's time, and the partition's reference time in 100 ns units,
    /// read one right after the other.
    fn now(&self) -> (SystemTime, u64);
}

impl<F: Fn() -> u64 + Send + Sync> GuestClock for F {
    /// For a function that reads the reference time: with the system's time.
    fn now(&self) -> (SystemTime, u64) {
        (SystemTime::now(), self())
    }
}

struct Clock {
    source: Box<dyn GuestClock>,
    /// What the guest's time is to be ahead of the host's, in 100 ns units.
    offset: AtomicI64,
}

impl Clock {
    fn encode(&self, versions: Versions, flags: u8) -> Vec<u8> {
        let (wall, reference) = self.source.now();
        let parent = ticks(wall)
            .saturating_add(self.offset.load(Ordering::Relaxed))
            .max(0);
        let parent_time = U64::new(parent as u64);
        if versions.message.at_least(4, 0) {
            let reference_time = reference.into();
            TimeSyncMessageV4 {
                parent_time,
                reference_time,
                flags,
                ..Default::default()
            }
            .as_bytes()
            .to_vec()
        } else {
            TimeSyncMessage {
                parent_time,
                flags,
                ..Default::default()
            }
            .as_bytes()
            .to_vec()
        }
    }
}

/// A time in 100 ns units since 1601, at most what 63 bits hold.
fn ticks(time: SystemTime) -> i64 {
    let units = |duration: Duration| i64::try_from(duration.as_nanos() / 100).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => UNIX_EPOCH_TICKS.saturating_add(units(after)),
        Err(before) => UNIX_EPOCH_TICKS.saturating_sub(units(before.duration())),
    }
}

/// A handle by which the guest's clock is set.
#[derive(Clone)]
pub struct TimeSync {
    clock: Arc<Clock>,
    exchange: Arc<Exchange>,
}

impl TimeSync {
    /// A device for the bus, and its handle.
    pub fn new(source: Box<dyn GuestClock>) -> (Box<dyn Vsp>, Self) {
        let clock = Arc::new(Clock {
            source,
            offset: AtomicI64::new(0),
        });
        let handle = Self {
            clock: clock.clone(),
            exchange: Arc::default(),
        };
        let service = TimeSyncService {
            clock,
            next: None,
            synced: false,
        };
        (
            Box::new(IcDevice::new(service, handle.exchange.clone())),
            handle,
        )
    }

    /// Has the guest set its clock now, and waits for its answer: to `time`,
    /// or to the host's. Later messages keep the difference, also those to a
    /// guest that starts later.
    ///
    /// # Errors
    ///
    /// [`IcError`]. The difference is kept all the same.
    pub fn set(&self, time: Option<SystemTime>, timeout: Duration) -> Result<(), IcError> {
        let offset = time.map_or(0, |time| {
            ticks(time).saturating_sub(ticks(self.clock.source.now().0))
        });
        self.clock.offset.store(offset, Ordering::Relaxed);
        let clock = self.clock.clone();
        // The time is read when the message is made, not while it waits.
        let encode = move |versions| Ok(clock.encode(versions, FLAG_SYNC));
        self.exchange.call(0, timeout, encode)?.body().map(|_| ())
    }

    /// Whether the guest has opened the channel.
    pub fn is_connected(&self) -> bool {
        self.exchange.is_open()
    }
}

struct TimeSyncService {
    clock: Arc<Clock>,
    next: Option<Instant>,
    /// The guest has had the time once.
    synced: bool,
}

impl Service for TimeSyncService {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn opened(&mut self, _now: Instant) {
        (self.next, self.synced) = (None, false);
    }

    fn negotiated(&mut self, versions: Option<Versions>, now: Instant) {
        self.next = versions.map(|_| now);
    }

    fn next_beat(&self) -> Option<Instant> {
        self.next
    }

    fn beat(&mut self, versions: Versions, now: Instant) -> Option<Beat> {
        self.next = Some(now + SAMPLE_PERIOD);
        let flags = if self.synced { FLAG_SAMPLE } else { FLAG_SYNC };
        Some(Beat {
            body: self.clock.encode(versions, flags),
            patience: SAMPLE_PERIOD,
        })
    }

    fn beat_done(&mut self, result: Result<Reply, IcError>, _now: Instant) {
        // The guest's status does not matter: some leave the request's, some
        // say that they do not follow the host.
        self.synced |= result.is_ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock(offset: i64) -> Clock {
        let source = Box::new(Fixed);
        Clock {
            source,
            offset: AtomicI64::new(offset),
        }
    }

    struct Fixed;

    impl GuestClock for Fixed {
        fn now(&self) -> (SystemTime, u64) {
            (SystemTime::UNIX_EPOCH + Duration::from_secs(1), 0x1234)
        }
    }

    fn versions(major: u16) -> Versions {
        let message = IcVersion::new(major, 0);
        Versions {
            framework: message,
            message,
        }
    }

    #[test]
    fn both_forms() {
        let bytes = clock(0).encode(versions(4), FLAG_SAMPLE);
        assert_eq!(bytes.len(), 24);
        let expected = (UNIX_EPOCH_TICKS + 10_000_000).to_le_bytes();
        assert_eq!(bytes[..8], expected);
        assert_eq!(bytes[8..17], [0x34, 0x12, 0, 0, 0, 0, 0, 0, 2]);
        let old = clock(0).encode(versions(3), FLAG_SYNC);
        assert_eq!((old.len(), old[24]), (32, 1));
        assert_eq!(old[..8], expected);
    }

    #[test]
    fn differences_are_kept_within_bounds() {
        let parent = |offset| {
            let bytes = clock(offset).encode(versions(4), 0);
            u64::from_le_bytes(bytes[..8].try_into().unwrap())
        };
        assert_eq!(parent(-10_000_000), UNIX_EPOCH_TICKS as u64);
        assert_eq!(parent(i64::MIN), 0);
        assert_eq!(parent(i64::MAX), i64::MAX as u64);
    }

    #[test]
    fn a_time_in_ticks() {
        let day = Duration::from_secs(86400);
        assert_eq!(ticks(SystemTime::UNIX_EPOCH), UNIX_EPOCH_TICKS);
        assert_eq!(
            ticks(SystemTime::UNIX_EPOCH - day),
            UNIX_EPOCH_TICKS - 864_000_000_000
        );
    }
}
