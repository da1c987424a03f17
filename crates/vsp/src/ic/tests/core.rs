//! The session without a channel.

use super::{agree, answer};
use crate::ic::heartbeat::{Heartbeat, HeartbeatService, LOST_AFTER, PERIOD};
use crate::ic::session::{Call, MAX_JUNK, MAX_QUEUE, Output, Service, Session};
use crate::ic::vss::{MAX_THAWS, OP_FREEZE, OP_THAW, THAW_RETRY, Vss, VssService};
use crate::ic::wire::{IcStatus, IcVersion};
use crate::ic::{HeartbeatState, IcError, Reply};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
const V3: IcVersion = IcVersion::new(3, 0);
const V5: IcVersion = IcVersion::new(5, 0);

struct Core<'a, S: Service> {
    session: Session<'a, S>,
    now: Instant,
    out: Vec<Output>,
}

impl<'a, S: Service> Core<'a, S> {
    fn new(service: &'a mut S) -> Self {
        Self::new_at(service, Instant::now())
    }

    fn new_at(service: &'a mut S, now: Instant) -> Self {
        let mut out = Vec::new();
        let session = Session::start(service, now, &mut out);
        Self { session, now, out }
    }

    fn ready(service: &'a mut S, version: IcVersion) -> Self {
        Self::ready_at(service, version, Instant::now())
    }

    fn ready_at(service: &'a mut S, version: IcVersion, now: Instant) -> Self {
        let mut core = Self::new_at(service, now);
        let request = core.sent().unwrap();
        core.receive(&agree(&request, V3, version));
        core
    }

    fn receive(&mut self, bytes: &[u8]) {
        self.session.receive(Some(bytes), self.now, &mut self.out);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.session.tick(self.now, &mut self.out);
    }

    fn submit(&mut self, ticket: u64, tag: u8, time: Duration) {
        let encode = Box::new(move |_| Ok(vec![tag; 16]));
        let call = Call {
            ticket,
            tag,
            deadline: self.now + time,
            encode,
        };
        self.session.submit(call, self.now, &mut self.out);
    }

    /// The message that was sent last, at most one.
    fn sent(&mut self) -> Option<Vec<u8>> {
        let at = self
            .out
            .iter()
            .position(|output| matches!(output, Output::Send { .. }))?;
        match self.out.remove(at) {
            Output::Send { bytes, .. } => Some(bytes),
            Output::Done { .. } => None,
        }
    }

    fn done(&mut self) -> Vec<(u64, Result<Reply, IcError>)> {
        let done = |output| match output {
            Output::Done { ticket, result, .. } => Some((ticket, result)),
            Output::Send { .. } => None,
        };
        self.out.drain(..).filter_map(done).collect()
    }
}

fn beat_answer(request: &[u8]) -> Vec<u8> {
    let mut bytes = answer(request, IcStatus::OK);
    bytes[20] = bytes[20].wrapping_add(1);
    bytes
}

#[test]
fn heartbeats_come_every_two_seconds() {
    let (mut service, handle) = Heartbeat::parts();
    assert_eq!(handle.status().state, HeartbeatState::NotConnected);
    let mut core = Core::ready(&mut service, V3);
    assert_eq!(handle.status().state, HeartbeatState::Starting);
    for beat in 1..5 {
        let request = core.sent().unwrap();
        core.receive(&beat_answer(&request));
        let status = handle.status();
        assert_eq!((status.state, status.sequence), (HeartbeatState::Ok, beat));
        assert_eq!(core.session.deadline(), Some(core.now + PERIOD));
        core.pass(PERIOD - Duration::from_millis(1));
        assert!(core.sent().is_none());
        core.pass(Duration::from_millis(1));
    }
    core.session.end(core.now, &mut core.out);
    assert_eq!(handle.status().state, HeartbeatState::NotConnected);
}

#[test]
fn a_silent_guest_is_lost_and_found() {
    let (mut service, handle): (HeartbeatService, _) = Heartbeat::parts();
    let mut core = Core::ready(&mut service, V3);
    core.sent().unwrap();
    core.pass(LOST_AFTER);
    assert_eq!(handle.status().state, HeartbeatState::Lost);
    assert_eq!(handle.status().missed, 1);
    let request = core.sent().unwrap();
    core.receive(&beat_answer(&request));
    assert_eq!(handle.status().state, HeartbeatState::Ok);
}

#[test]
fn wrong_sequences_are_no_beats() {
    let (mut service, handle) = Heartbeat::parts();
    let mut core = Core::ready(&mut service, V3);
    let request = core.sent().unwrap();
    core.receive(&answer(&request, IcStatus::OK));
    assert_eq!(handle.status().state, HeartbeatState::Lost);
    core.pass(PERIOD);
    let mut short = beat_answer(&core.sent().unwrap());
    short.truncate(24);
    short[10] = 4;
    core.receive(&short);
    assert_eq!((handle.status().answered, handle.status().missed), (0, 2));
}

#[test]
fn a_guest_without_our_versions() {
    let (mut service, handle) = Heartbeat::parts();
    let mut core = Core::new(&mut service);
    core.submit(1, 0, SECOND);
    let request = core.sent().unwrap();
    core.receive(&agree(&request, V3, IcVersion::new(9, 9)));
    assert_eq!(handle.status().state, HeartbeatState::Failed);
    core.submit(2, 0, SECOND);
    let done = core.done();
    assert_eq!(done.len(), 2);
    assert!(
        done.iter()
            .all(|(_, result)| matches!(result, Err(IcError::Unsupported(_))))
    );
}

#[test]
fn negotiation_may_take_its_time() {
    let (mut service, _vss) = Vss::parts();
    let mut core = Core::new(&mut service);
    let request = core.sent().unwrap();
    core.submit(1, 2, SECOND);
    core.pass(SECOND);
    assert_eq!(core.done(), [(1, Err(IcError::NotReady))]);
    core.pass(100 * SECOND);
    assert!(core.out.is_empty() && core.session.deadline().is_none());
    core.submit(2, 2, SECOND);
    core.receive(&agree(&request, V3, V5));
    assert_eq!(core.sent().unwrap()[20], 2);
}

#[test]
fn one_request_at_a_time_and_late_answers_are_dropped() {
    let (mut service, _vss) = Vss::parts();
    let mut core = Core::ready(&mut service, V5);
    core.submit(1, 2, SECOND);
    core.submit(2, 3, 3 * SECOND);
    let first = core.sent().unwrap();
    assert!(core.sent().is_none());
    core.pass(SECOND);
    let second = core.sent().unwrap();
    assert_eq!(core.done(), [(1, Err(IcError::Timeout))]);
    core.receive(&answer(&first, IcStatus::OK));
    assert!(core.out.is_empty());
    core.receive(&answer(&second, IcStatus::FAIL));
    let done = core.done();
    assert_eq!(done[0].1.as_ref().unwrap().status, IcStatus::FAIL);
}

#[test]
fn the_queue_is_bounded() {
    let (mut service, _vss) = Vss::parts();
    let mut core = Core::ready(&mut service, V5);
    let room = MAX_QUEUE as u64 + 1;
    (0..room + 3).for_each(|ticket| core.submit(ticket, 2, SECOND));
    let busy = core.done();
    assert_eq!(busy.len(), 3);
    assert!(
        busy.iter()
            .all(|(ticket, result)| *ticket >= room && *result == Err(IcError::Busy))
    );
    core.pass(SECOND);
    assert_eq!(core.done().len() as u64, room);
}

#[test]
fn hostile_messages_change_nothing_and_then_end_the_session() {
    let (mut service, _vss) = Vss::parts();
    let mut core = Core::ready(&mut service, V5);
    core.submit(1, 2, SECOND);
    let good = answer(&core.sent().unwrap(), IcStatus::OK);
    let mut kinds = vec![
        None,
        Some(vec![]),
        Some(vec![0xff; 20]),
        Some(vec![0xff; 4000]),
    ];
    for at in [10, 11, 16, 17] {
        let mut bad = good.clone();
        bad[at] ^= 0x7e;
        kinds.push(Some(bad));
    }
    let as_negotiation = [&good[..4], &[0, 0], &good[6..]].concat();
    kinds.push(Some(as_negotiation));
    for bad in kinds.iter().cycle().take(MAX_JUNK as usize) {
        core.session
            .receive(bad.as_deref(), core.now, &mut core.out);
    }
    assert!(core.out.is_empty());
    core.receive(&good);
    assert_eq!(core.done()[0].0, 1);
    core.submit(2, 2, SECOND);
    let good = answer(&core.sent().unwrap(), IcStatus::OK);
    (0..=MAX_JUNK).for_each(|_| core.receive(&[]));
    assert!(core.session.has_failed());
    assert!(matches!(core.done()[..], [(2, Err(IcError::Protocol(_)))]));
    core.receive(&good);
    core.submit(3, 2, SECOND);
    assert!(matches!(core.done()[..], [(3, Err(IcError::Protocol(_)))]));
}

#[test]
fn an_answer_of_another_type_is_an_error() {
    let (mut service, _vss) = Vss::parts();
    let mut core = Core::ready(&mut service, V5);
    core.submit(1, 2, SECOND);
    let mut bytes = answer(&core.sent().unwrap(), IcStatus::OK);
    bytes[4] = 1;
    core.receive(&bytes);
    assert!(matches!(core.done()[..], [(1, Err(IcError::Protocol(_)))]));
}

fn is_thaw(message: &[u8]) -> bool {
    message[20] == OP_THAW
}

#[test]
fn a_freeze_without_answer_is_thawed() {
    let (mut service, vss): (VssService, _) = Vss::parts();
    let mut core = Core::ready(&mut service, V5);
    core.submit(1, OP_FREEZE, SECOND);
    core.sent().unwrap();
    assert!(vss.is_frozen());
    core.pass(SECOND);
    let thaw = core.sent().unwrap();
    assert!(is_thaw(&thaw) && vss.is_frozen());
    core.receive(&answer(&thaw, IcStatus::OK));
    assert!(!vss.is_frozen());
}

#[test]
fn a_thaw_is_tried_again_but_not_for_ever() {
    let (mut service, vss) = Vss::parts();
    let mut core = Core::ready(&mut service, V5);
    core.submit(1, OP_FREEZE, SECOND);
    let request = core.sent().unwrap();
    core.receive(&answer(&request, IcStatus::FAIL));
    for _ in 0..MAX_THAWS {
        let thaw = core.sent().unwrap();
        assert!(is_thaw(&thaw));
        core.receive(&answer(&thaw, IcStatus::FAIL));
        core.pass(THAW_RETRY);
    }
    assert!(core.sent().is_none() && !vss.is_frozen());
}

#[test]
fn an_orphaned_freeze_is_thawed() {
    let (mut service, vss) = Vss::parts();
    vss.freezer.lock().unwrap().hold(100 * SECOND);
    let mut core = Core::ready(&mut service, V5);
    core.submit(1, OP_FREEZE, SECOND);
    let request = core.sent().unwrap();
    core.receive(&answer(&request, IcStatus::OK));
    assert!(core.sent().is_none());
    let now = core.now;
    core.session.service().orphaned(OP_FREEZE, now);
    core.pass(Duration::ZERO);
    assert!(is_thaw(&core.sent().unwrap()));
}

#[test]
fn a_freeze_ends_with_its_time_and_with_its_channel() {
    let (mut service, vss) = Vss::parts();
    vss.freezer.lock().unwrap().hold(10 * SECOND);
    let mut core = Core::ready(&mut service, V5);
    core.submit(1, OP_FREEZE, SECOND);
    let request = core.sent().unwrap();
    core.receive(&answer(&request, IcStatus::OK));
    core.pass(9 * SECOND);
    assert!(core.sent().is_none());
    core.pass(SECOND);
    assert!(is_thaw(&core.sent().unwrap()));
    // The guest goes without an answer and comes back at once.
    let now = core.now;
    core.session.end(now, &mut core.out);
    let mut core = Core::ready_at(&mut service, V5, now);
    assert!(is_thaw(&core.sent().unwrap()));
}
