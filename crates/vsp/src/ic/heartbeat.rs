//! Heartbeat: a message every two seconds that the guest answers.

use super::device::IcDevice;
use super::session::{Beat, Profile, Service};
use super::wire::{IcVersion, TYPE_HEARTBEAT, Versions};
use super::{IcError, Reply};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vmbus::bus::Vsp;
use vmbus::protocol::Guid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Between two heartbeats.
pub(super) const PERIOD: Duration = Duration::from_secs(2);
/// A guest that has not answered for this long is lost.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(10);

static PROFILE: Profile = Profile {
    name: "heartbeat",
    // 57164f39-9115-4e78-ab55-382f3bd5422d
    interface_id: Guid::from_u128(0x57164f39_9115_4e78_ab55_382f3bd5422d),
    // fd149e91-82e0-4a7d-afa6-2a4166cbd7c0
    instance_id: Guid::from_u128(0xfd149e91_82e0_4a7d_afa6_2a4166cbd7c0),
    message_type: TYPE_HEARTBEAT,
    versions: &[IcVersion::new(1, 0), IcVersion::new(3, 0)],
};

/// The message, both ways. Linux reads the first field only.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct HeartbeatMessage {
    /// The guest adds 1.
    sequence: U64,
    /// From 3.0: [`ApplicationState`].
    application_state: U32,
    reserved: [U32; 7],
}

/// How the guest's applications are, as the guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplicationState {
    /// The guest does not say; Linux never does.
    Unknown,
    /// They work.
    Healthy,
    /// One has a problem that cannot wait.
    Critical,
    /// They have ended.
    Stopped,
}

impl ApplicationState {
    fn from_wire(value: u32) -> Self {
        match value {
            1 => Self::Healthy,
            2 => Self::Critical,
            3 => Self::Stopped,
            _ => Self::Unknown,
        }
    }
}

/// Whether the guest answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeartbeatState {
    /// The guest has not opened the channel.
    #[default]
    NotConnected,
    /// The guest has opened the channel and has not answered yet.
    Starting,
    /// The guest answers.
    Ok,
    /// The guest has not answered for ten seconds.
    Lost,
    /// The guest speaks another version, or breaks the protocol.
    Failed,
}

/// What is known of the guest's heart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatStatus {
    /// Whether the guest answers.
    pub state: HeartbeatState,
    /// How its applications are.
    pub applications: ApplicationState,
    /// The sequence number of the last answer: the guest's count of beats on
    /// this channel.
    pub sequence: u64,
    /// Beats that were answered since the device was made.
    pub answered: u64,
    /// Beats without a proper answer since the device was made.
    pub missed: u64,
    /// How long ago the last answer came.
    pub since_answer: Option<Duration>,
}

#[derive(Default)]
struct Pulse {
    state: HeartbeatState,
    application_state: u32,
    sequence: u64,
    answered: u64,
    missed: u64,
    last_answer: Option<Instant>,
}

/// A handle to the guest's heartbeat.
#[derive(Clone)]
pub struct Heartbeat {
    pulse: Arc<Mutex<Pulse>>,
}

impl Heartbeat {
    /// A device for the bus, and its handle.
    pub fn new() -> (Box<dyn Vsp>, Self) {
        let (service, handle) = Self::parts();
        (Box::new(IcDevice::new(service, Arc::default())), handle)
    }

    pub(super) fn parts() -> (HeartbeatService, Self) {
        let handle = Self {
            pulse: Arc::default(),
        };
        let service = HeartbeatService {
            pulse: handle.pulse.clone(),
            next: None,
            sequence: 0,
        };
        (service, handle)
    }

    /// What is known now. Does not wait.
    pub fn status(&self) -> HeartbeatStatus {
        let pulse = lock(&self.pulse);
        let since_answer = pulse.last_answer.map(|at| at.elapsed());
        // A beat may be on its way that will tell, but the clock knows now.
        let stale = since_answer.is_some_and(|since| since >= LOST_AFTER);
        let state = match pulse.state {
            HeartbeatState::Ok if stale => HeartbeatState::Lost,
            state => state,
        };
        HeartbeatStatus {
            state,
            applications: ApplicationState::from_wire(pulse.application_state),
            sequence: pulse.sequence,
            answered: pulse.answered,
            missed: pulse.missed,
            since_answer,
        }
    }
}

fn lock(pulse: &Mutex<Pulse>) -> MutexGuard<'_, Pulse> {
    pulse.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) struct HeartbeatService {
    pulse: Arc<Mutex<Pulse>>,
    next: Option<Instant>,
    sequence: u64,
}

impl Service for HeartbeatService {
    fn profile(&self) -> &'static Profile {
        &PROFILE
    }

    fn opened(&mut self, _now: Instant) {
        self.sequence = 0;
        self.next = None;
        lock(&self.pulse).state = HeartbeatState::Starting;
    }

    fn negotiated(&mut self, versions: Option<Versions>, now: Instant) {
        match versions {
            Some(_) => self.next = Some(now),
            None => lock(&self.pulse).state = HeartbeatState::Failed,
        }
    }

    fn next_beat(&self) -> Option<Instant> {
        self.next
    }

    fn beat(&mut self, _versions: Versions, now: Instant) -> Option<Beat> {
        self.next = Some(now + PERIOD);
        let message = HeartbeatMessage {
            sequence: self.sequence.into(),
            ..Default::default()
        };
        Some(Beat {
            body: message.as_bytes().to_vec(),
            patience: LOST_AFTER,
        })
    }

    fn beat_done(&mut self, result: Result<Reply, IcError>, now: Instant) {
        let expected = self.sequence.wrapping_add(1);
        let answer = result.ok().and_then(|reply| parse(&reply.body));
        let mut pulse = lock(&self.pulse);
        match answer.filter(|&(sequence, _)| sequence == expected) {
            Some((sequence, application_state)) => {
                self.sequence = sequence;
                pulse.state = HeartbeatState::Ok;
                pulse.sequence = sequence;
                pulse.application_state = application_state;
                pulse.answered += 1;
                pulse.last_answer = Some(now);
            }
            None => {
                pulse.missed += 1;
                let since = pulse
                    .last_answer
                    .map(|at| now.saturating_duration_since(at));
                if since.is_none_or(|since| since >= LOST_AFTER) {
                    pulse.state = HeartbeatState::Lost;
                }
            }
        }
    }

    fn ended(&mut self, failed: bool, _now: Instant) {
        self.next = None;
        let mut pulse = lock(&self.pulse);
        pulse.state = if failed {
            HeartbeatState::Failed
        } else {
            HeartbeatState::NotConnected
        };
        pulse.last_answer = None;
    }
}

/// The sequence number and application state. Old guests may leave the
/// latter out.
fn parse(body: &[u8]) -> Option<(u64, u32)> {
    let (sequence, rest) = U64::read_from_prefix(body).ok()?;
    let state = U32::read_from_prefix(rest).map_or(0, |(state, _)| state.get());
    Some((sequence.get(), state))
}
