//! Volume shadow copy: the guest's file systems are frozen while the host
//! takes a snapshot of their disks.
//!
//! A frozen guest is thawed in any case: by the one who froze it, or else
//! when that one is gone, when the time is over that he has asked for, when a
//! freeze has not been answered, or when the guest comes back on another
//! channel.

use super::device::IcDevice;
use super::exchange::Exchange;
use super::session::{Beat, Profile, Service};
use super::wire::{IcStatus, IcVersion, TYPE_VSS, Versions};
use super::{IcError, Reply};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vmbus::bus::Vsp;
use vmbus::protocol::Guid;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

static PROFILE: Profile = Profile {
    name: "vss",
    // 35fa2e29-ea23-4236-96ae-3a6ebacba440
    interface_id: Guid::from_u128(0x35fa2e29_ea23_4236_96ae_3a6ebacba440),
    // 2450ee40-33bf-4fbd-892e-9fb06e9214cf
    instance_id: Guid::from_u128(0x2450ee40_33bf_4fbd_892e_9fb06e9214cf),
    message_type: TYPE_VSS,
    // Freeze and thaw came with 5.0.
    versions: &[IcVersion::new(5, 0)],
};

const OP_HOT_BACKUP: u8 = 2;
pub(super) const OP_FREEZE: u8 = 5;
pub(super) const OP_THAW: u8 = 6;

/// A thaw that nobody waits for. Linux gives its daemon 30 seconds.
pub(super) const THAW_PATIENCE: Duration = Duration::from_secs(60);
/// Until a thaw is tried again.
pub(super) const THAW_RETRY: Duration = Duration::from_secs(5);
/// A guest that refuses or ignores so many thaws is left alone.
pub(super) const MAX_THAWS: u32 = 10;

/// The message, both ways.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct VssMessage {
    operation: u8,
    reserved: [u8; 7],
    /// In answers: features.
    flags: U32,
    padding: U32,
}

fn message(operation: u8) -> Vec<u8> {
    VssMessage {
        operation,
        ..VssMessage::default()
    }
    .as_bytes()
    .to_vec()
}

/// What a guest says of its backups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupFeatures {
    /// The guest's flags.
    pub flags: u32,
}

impl BackupFeatures {
    /// The flags of a guest that cannot repair a snapshot after the fact.
    const NO_AUTO_RECOVERY: u32 = 5;

    /// Whether the guest may want to see the snapshot to repair it. Linux does
    /// not need to, but 6.1 with its daemon does not set the flags that say so.
    pub const fn auto_recovery(self) -> bool {
        self.flags & Self::NO_AUTO_RECOVERY != Self::NO_AUTO_RECOVERY
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Thawed,
    /// The guest has been asked to freeze.
    Freezing,
    Frozen {
        until: Instant,
    },
    /// The component itself shall thaw the guest.
    ThawDue {
        at: Instant,
        tries: u32,
    },
    /// It is at it.
    Thawing {
        tries: u32,
    },
}

pub(super) struct Freezer {
    pub(super) phase: Phase,
    /// Counts freezes, so that each knows whether it is the present one.
    generation: u64,
    hold: Duration,
}

impl Freezer {
    fn thaw_soon(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Freezing | Phase::Frozen { .. }) {
            self.phase = Phase::ThawDue { at: now, tries: 0 };
        }
    }

    #[cfg(test)]
    pub(super) fn hold(&mut self, time: Duration) {
        self.hold = time;
    }

    fn holds(&self, generation: u64) -> bool {
        self.generation == generation && matches!(self.phase, Phase::Frozen { .. })
    }
}

fn lock(freezer: &Mutex<Freezer>) -> MutexGuard<'_, Freezer> {
    freezer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A handle by which the guest's file systems are frozen.
#[derive(Clone)]
pub struct Vss {
    pub(super) freezer: Arc<Mutex<Freezer>>,
    exchange: Arc<Exchange>,
    /// Held by whoever freezes.
    turn: Arc<Mutex<()>>,
}

impl Vss {
    /// A device for the bus, and its handle.
    pub fn new() -> (Box<dyn Vsp>, Self) {
        let (service, handle) = Self::parts();
        (
            Box::new(IcDevice::new(service, handle.exchange.clone())),
            handle,
        )
    }

    pub(super) fn parts() -> (VssService, Self) {
        let freezer = Freezer {
            phase: Phase::Thawed,
            generation: 0,
            hold: Duration::ZERO,
        };
        let freezer = Arc::new(Mutex::new(freezer));
        let service = VssService {
            freezer: freezer.clone(),
        };
        (
            service,
            Self {
                freezer,
                exchange: Arc::default(),
                turn: Arc::default(),
            },
        )
    }

    /// Asks whether the guest can be backed up while it runs.
    ///
    /// # Errors
    ///
    /// [`IcError`].
    pub fn features(&self, timeout: Duration) -> Result<BackupFeatures, IcError> {
        let reply = self
            .exchange
            .call(OP_HOT_BACKUP, timeout, |_| Ok(message(OP_HOT_BACKUP)))?;
        let message: VssMessage = reply.read()?;
        Ok(BackupFeatures {
            flags: message.flags.get(),
        })
    }

    /// Has the guest write out and freeze its file systems. They stay frozen
    /// as long as the result lives, and no longer than `hold`.
    ///
    /// # Errors
    ///
    /// [`IcError`]; after any, the guest is thawed. [`IcError::Busy`] when it
    /// is frozen already or just being thawed.
    pub fn freeze(&self, timeout: Duration, hold: Duration) -> Result<Frozen, IcError> {
        if !self.exchange.is_open() {
            return Err(IcError::NotConnected);
        }
        let _turn = self.turn.try_lock().map_err(|_| IcError::Busy)?;
        let generation = {
            let mut freezer = lock(&self.freezer);
            if freezer.phase != Phase::Thawed {
                return Err(IcError::Busy);
            }
            freezer.generation += 1;
            freezer.hold = hold;
            freezer.generation
        };
        let frozen = Frozen {
            vss: self.clone(),
            generation,
        };
        self.exchange
            .call(OP_FREEZE, timeout, |_| Ok(message(OP_FREEZE)))?
            .body()?;
        Ok(frozen)
    }

    /// Thaws the guest, whoever has frozen it.
    ///
    /// # Errors
    ///
    /// [`IcError`]. If the guest was frozen, it is tried again.
    pub fn thaw(&self, timeout: Duration) -> Result<(), IcError> {
        let result = self
            .exchange
            .call(OP_THAW, timeout, |_| Ok(message(OP_THAW)));
        let result = result.and_then(Reply::body).map(|_| ());
        if result.is_err() {
            self.thaw_soon();
        }
        result
    }

    /// Whether the guest is, as far as is known, frozen.
    pub fn is_frozen(&self) -> bool {
        lock(&self.freezer).phase != Phase::Thawed
    }

    /// Whether the guest has opened the channel.
    pub fn is_connected(&self) -> bool {
        self.exchange.is_open()
    }

    fn thaw_soon(&self) {
        lock(&self.freezer).thaw_soon(Instant::now());
        self.exchange.kick();
    }
}

/// A frozen guest. It is thawed when this is dropped.
#[must_use = "the guest is thawed when this is dropped"]
pub struct Frozen {
    vss: Vss,
    generation: u64,
}

impl Frozen {
    /// Whether the guest has been frozen all the time until now: only then is
    /// a snapshot that was taken meanwhile consistent.
    pub fn is_intact(&self) -> bool {
        lock(&self.vss.freezer).holds(self.generation)
    }

    /// Thaws the guest. True when it was frozen until now.
    ///
    /// # Errors
    ///
    /// [`IcError`] when the guest does not thaw; it is tried again.
    pub fn thaw(self, timeout: Duration) -> Result<bool, IcError> {
        if !self.is_intact() {
            return Ok(false);
        }
        self.vss.thaw(timeout).map(|()| true)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if self.is_intact() {
            self.vss.thaw_soon();
        }
    }
}

pub(super) struct VssService {
    pub(super) freezer: Arc<Mutex<Freezer>>,
}

impl VssService {
    /// The end of a thaw.
    fn thawed(freezer: &mut Freezer, result: &Result<Reply, IcError>, tries: u32, now: Instant) {
        let done = result
            .as_ref()
            .is_ok_and(|reply| reply.status == IcStatus::OK);
        if !done && tries >= MAX_THAWS {
            tracing::error!("the guest does not thaw");
        }
        freezer.phase = if done || tries >= MAX_THAWS {
            Phase::Thawed
        } else {
            Phase::ThawDue {
                at: now + THAW_RETRY,
                tries,
            }
        };
    }
}

impl Service for VssService {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn opened(&mut self, now: Instant) {
        let mut freezer = lock(&self.freezer);
        if freezer.phase != Phase::Thawed {
            freezer.phase = Phase::ThawDue { at: now, tries: 0 };
        }
    }

    fn next_beat(&self) -> Option<Instant> {
        match lock(&self.freezer).phase {
            Phase::Frozen { until: at } | Phase::ThawDue { at, .. } => Some(at),
            Phase::Thawed | Phase::Freezing | Phase::Thawing { .. } => None,
        }
    }

    fn beat(&mut self, _versions: Versions, _now: Instant) -> Option<Beat> {
        let mut freezer = lock(&self.freezer);
        let tries = match freezer.phase {
            Phase::ThawDue { tries, .. } => tries,
            _ => 0,
        };
        freezer.phase = Phase::Thawing { tries: tries + 1 };
        Some(Beat {
            body: message(OP_THAW),
            patience: THAW_PATIENCE,
        })
    }

    fn beat_done(&mut self, result: Result<Reply, IcError>, now: Instant) {
        let mut freezer = lock(&self.freezer);
        if let Phase::Thawing { tries } = freezer.phase {
            Self::thawed(&mut freezer, &result, tries, now);
        }
    }

    fn call_sent(&mut self, tag: u8, _now: Instant) {
        if tag == OP_FREEZE {
            lock(&self.freezer).phase = Phase::Freezing;
        }
    }

    fn call_done(&mut self, tag: u8, result: &Result<Reply, IcError>, now: Instant) {
        let mut freezer = lock(&self.freezer);
        let frozen = matches!(freezer.phase, Phase::Freezing | Phase::Frozen { .. });
        let ok = result
            .as_ref()
            .is_ok_and(|reply| reply.status == IcStatus::OK);
        match tag {
            OP_FREEZE if ok => {
                let until = now.checked_add(freezer.hold).unwrap_or(now);
                freezer.phase = Phase::Frozen { until };
            }
            // Perhaps the guest did freeze, or is going to.
            OP_FREEZE => freezer.phase = Phase::ThawDue { at: now, tries: 0 },
            OP_THAW if ok || frozen => Self::thawed(&mut freezer, result, 1, now),
            _ => {}
        }
    }

    fn orphaned(&mut self, tag: u8, now: Instant) {
        if tag == OP_FREEZE {
            lock(&self.freezer).thaw_soon(now);
        }
    }

    fn ended(&mut self, _failed: bool, now: Instant) {
        lock(&self.freezer).thaw_soon(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_and_layout() {
        assert_eq!(size_of::<VssMessage>(), 16);
        assert_eq!(message(OP_FREEZE)[..2], [5, 0]);
        assert!(!BackupFeatures { flags: 5 }.auto_recovery());
        assert!(BackupFeatures { flags: 0 }.auto_recovery());
    }
}
