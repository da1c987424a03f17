//! The protocol of a component on one open channel, without input and output:
//! messages, requests and the time come in, messages and results go out.
//!
//! A session first negotiates versions. Then at most one transaction is under
//! way: a request of the host's users, or one that the component makes by
//! itself from time to time. Answers are matched by the frame's transaction
//! id; the packet's is not used, because the file copy daemon does not return
//! it.

use super::wire::{
    self, FLAG_RESPONSE, IcStatus, IcVersion, Message, TYPE_NEGOTIATE, Versions, parse_message,
};
use super::{IcError, Reply};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use vmbus::protocol::Guid;

/// Requests that may wait for their turn.
pub(super) const MAX_QUEUE: usize = 16;
/// Messages that nobody asked for, between two that somebody did. A guest
/// that sends more is not listened to any more.
pub(super) const MAX_JUNK: u32 = 256;
/// How long a guest may take to agree on versions before it counts as silent.
/// Linux waits up to 55 seconds for its daemons. A later answer is taken all
/// the same.
const NEGOTIATION_PATIENCE: Duration = Duration::from_secs(65);

/// What distinguishes a component from others.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) name: &'static str,
    pub(super) interface_id: Guid,
    pub(super) instance_id: Guid,
    pub(super) message_type: u16,
    /// Versions of its messages that the host speaks.
    pub(super) versions: &'static [IcVersion],
}

/// Makes the body of a request once the versions are known.
pub(super) type Encode = Box<dyn FnOnce(Versions) -> Result<Vec<u8>, IcError> + Send>;

/// A request of a user of the component.
pub(super) struct Call {
    /// Names the request in [`Output::Done`].
    pub(super) ticket: u64,
    /// The component's own name for the kind of request.
    pub(super) tag: u8,
    pub(super) deadline: Instant,
    pub(super) encode: Encode,
}

/// A request that a component makes by itself.
pub(super) struct Beat {
    pub(super) body: Vec<u8>,
    /// How long the guest may take.
    pub(super) patience: Duration,
}

/// What a component adds to the common protocol.
pub(super) trait Service: Send + 'static {
    /// Its identity.
    fn profile(&self) -> &'static Profile;

    /// The guest has opened the channel; versions are not known yet.
    fn opened(&mut self, _now: Instant) {}

    /// The versions are agreed on, or there are none in common.
    fn negotiated(&mut self, _versions: Option<Versions>, _now: Instant) {}

    /// When [`Service::beat`] wants to be called.
    fn next_beat(&self) -> Option<Instant> {
        None
    }

    /// Makes a request of its own. Its next time must not stay in the past.
    fn beat(&mut self, _versions: Versions, _now: Instant) -> Option<Beat> {
        None
    }

    /// The answer to that request.
    fn beat_done(&mut self, _result: Result<Reply, IcError>, _now: Instant) {}

    /// A user's request goes to the guest.
    fn call_sent(&mut self, _tag: u8, _now: Instant) {}

    /// The answer to a request that was sent.
    fn call_done(&mut self, _tag: u8, _result: &Result<Reply, IcError>, _now: Instant) {}

    /// Nobody takes the answer to a request any more.
    fn orphaned(&mut self, _tag: u8, _now: Instant) {}

    /// The guest has closed the channel, or is not listened to any more.
    fn ended(&mut self, _failed: bool, _now: Instant) {}
}

/// What a session wants done.
#[derive(Debug)]
pub(super) enum Output {
    /// Send a message; behind the pipe's header. While there is no room it
    /// waits, but no longer than [`Session::is_pending`].
    Send { id: u8, bytes: Vec<u8> },
    /// A request is done.
    Done {
        ticket: u64,
        tag: u8,
        result: Result<Reply, IcError>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Negotiating,
    Ready(Versions),
    /// No version in common.
    Refused,
    /// The guest broke the protocol.
    Failed,
}

enum Origin {
    Negotiation,
    Beat,
    Call { ticket: u64, tag: u8 },
}

struct Outstanding {
    id: u8,
    /// `None`: it may take as long as it takes.
    deadline: Option<Instant>,
    origin: Origin,
}

/// A component on an open channel.
pub(super) struct Session<'a, S: Service> {
    service: &'a mut S,
    state: State,
    last_id: u8,
    outstanding: Option<Outstanding>,
    queue: VecDeque<Call>,
    junk: u32,
}

impl<'a, S: Service> Session<'a, S> {
    /// Starts with the negotiation.
    pub(super) fn start(service: &'a mut S, now: Instant, out: &mut Vec<Output>) -> Self {
        service.opened(now);
        let mut session = Self {
            service,
            state: State::Negotiating,
            last_id: 0,
            outstanding: None,
            queue: VecDeque::new(),
            junk: 0,
        };
        let id = session.next_id();
        let bytes = wire::negotiate_request(id, session.service.profile().versions);
        let deadline = now.checked_add(NEGOTIATION_PATIENCE);
        session.outstanding = Some(Outstanding {
            id,
            deadline,
            origin: Origin::Negotiation,
        });
        out.push(Output::Send { id, bytes });
        session
    }

    /// The component.
    pub(super) fn service(&mut self) -> &mut S {
        self.service
    }

    /// The guest is not listened to any more.
    pub(super) fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// Whether a message that was not sent yet is still wanted.
    pub(super) fn is_pending(&self, id: u8) -> bool {
        self.outstanding
            .as_ref()
            .is_some_and(|outstanding| outstanding.id == id)
    }

    /// When [`Session::tick`] must be called at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let beat = match (self.state, &self.outstanding) {
            (State::Ready(_), None) => self.service.next_beat(),
            _ => None,
        };
        let outstanding = self
            .outstanding
            .as_ref()
            .and_then(|outstanding| outstanding.deadline);
        let queued = self.queue.iter().map(|call| call.deadline).min();
        [beat, outstanding, queued].into_iter().flatten().min()
    }

    /// Takes a request.
    pub(super) fn submit(&mut self, call: Call, now: Instant, out: &mut Vec<Output>) {
        let refusal = match self.state {
            State::Refused => Some(IcError::Unsupported("the guest knows none of our versions")),
            State::Failed => Some(IcError::Protocol("the guest is not listened to any more")),
            _ if self.queue.len() >= MAX_QUEUE => Some(IcError::Busy),
            _ => None,
        };
        match refusal {
            Some(error) => out.push(done(&call, Err(error))),
            None => self.queue.push_back(call),
        }
        self.advance(now, out);
    }

    /// Takes what a packet of the guest holds; `None` for a packet that is
    /// none of a pipe.
    pub(super) fn receive(&mut self, data: Option<&[u8]>, now: Instant, out: &mut Vec<Output>) {
        if self.has_failed() {
            return;
        }
        let message = data.and_then(parse_message);
        let answered = message.and_then(|message| {
            let taken = self
                .outstanding
                .take_if(|outstanding| answers(&message, outstanding));
            taken.map(|outstanding| (outstanding, message))
        });
        let Some((outstanding, message)) = answered else {
            return self.junk(now, out);
        };
        let name = self.service.profile().name;
        tracing::trace!(component = name, id = outstanding.id, "the guest answers");
        self.junk = 0;
        match outstanding.origin {
            Origin::Negotiation => self.negotiated(message.body, now, out),
            _ if message.header.message_type.get() != self.service.profile().message_type => {
                let error = IcError::Protocol("an answer of another type");
                self.complete(outstanding.origin, Err(error), now, out);
            }
            origin => {
                let status = IcStatus(message.header.status.get());
                let reply = Reply {
                    status,
                    body: message.body.to_vec(),
                };
                self.complete(origin, Ok(reply), now, out);
            }
        }
        self.advance(now, out);
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, now: Instant, out: &mut Vec<Output>) {
        let late = |outstanding: &mut Outstanding| {
            outstanding.deadline.is_some_and(|deadline| deadline <= now)
        };
        if let Some(outstanding) = self.outstanding.take_if(late) {
            match outstanding.origin {
                Origin::Negotiation => {
                    let name = self.service.profile().name;
                    tracing::warn!(component = name, "the guest agrees on no version");
                    self.outstanding = Some(Outstanding {
                        deadline: None,
                        ..outstanding
                    });
                }
                origin => self.complete(origin, Err(IcError::Timeout), now, out),
            }
        }
        let error = match self.state {
            State::Negotiating => IcError::NotReady,
            _ => IcError::Timeout,
        };
        self.queue.retain(|call| {
            let late = call.deadline <= now;
            if late {
                out.push(done(call, Err(error.clone())));
            }
            !late
        });
        self.advance(now, out);
    }

    /// A message can never be sent: the guest's ring is too small.
    pub(super) fn unsendable(&mut self, id: u8, now: Instant, out: &mut Vec<Output>) {
        let Some(outstanding) = self.outstanding.take_if(|outstanding| outstanding.id == id) else {
            return;
        };
        if let Origin::Negotiation = outstanding.origin {
            return self.fail(now, "a ring too small to talk", out);
        }
        let error = IcError::Unsupported("the guest's ring is too small");
        self.complete(outstanding.origin, Err(error), now, out);
        self.advance(now, out);
    }

    /// The channel closes.
    pub(super) fn end(mut self, now: Instant, out: &mut Vec<Output>) {
        let failed = self.has_failed();
        self.drop_all(&IcError::Closed, now, out);
        self.service.ended(failed, now);
    }

    /// The guest broke the protocol or its ring: nothing more is expected.
    pub(super) fn fail(&mut self, now: Instant, why: &str, out: &mut Vec<Output>) {
        if self.has_failed() {
            return;
        }
        tracing::warn!(
            component = self.service.profile().name,
            "not listening any more: {why}"
        );
        self.state = State::Failed;
        self.drop_all(&IcError::Protocol("the guest broke the protocol"), now, out);
        self.service.ended(true, now);
    }

    fn drop_all(&mut self, error: &IcError, now: Instant, out: &mut Vec<Output>) {
        if let Some(outstanding) = self.outstanding.take() {
            self.complete(outstanding.origin, Err(error.clone()), now, out);
        }
        out.extend(
            self.queue
                .drain(..)
                .map(|call| done(&call, Err(error.clone()))),
        );
    }

    fn junk(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.junk += 1;
        if self.junk > MAX_JUNK {
            self.fail(now, "too many messages that nobody asked for", out);
        }
    }

    fn negotiated(&mut self, body: &[u8], now: Instant, out: &mut Vec<Output>) {
        let profile = self.service.profile();
        let versions = wire::negotiate_answer(body, profile.versions);
        match versions {
            Some(versions) => {
                let (framework, message) = (versions.framework, versions.message);
                tracing::info!(component = profile.name, %framework, %message, "ready");
                self.state = State::Ready(versions);
            }
            None => {
                tracing::warn!(
                    component = profile.name,
                    "the guest knows none of our versions"
                );
                self.state = State::Refused;
                let error = IcError::Unsupported("the guest knows none of our versions");
                self.drop_all(&error, now, out);
            }
        }
        self.service.negotiated(versions, now);
    }

    fn complete(
        &mut self,
        origin: Origin,
        result: Result<Reply, IcError>,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        match origin {
            Origin::Negotiation => {}
            Origin::Beat => self.service.beat_done(result, now),
            Origin::Call { ticket, tag } => {
                self.service.call_done(tag, &result, now);
                out.push(Output::Done {
                    ticket,
                    tag,
                    result,
                });
            }
        }
    }

    /// Starts the next transaction if it can.
    fn advance(&mut self, now: Instant, out: &mut Vec<Output>) {
        let State::Ready(versions) = self.state else {
            return;
        };
        while self.outstanding.is_none() {
            if self.service.next_beat().is_some_and(|beat| beat <= now) {
                let Some(beat) = self.service.beat(versions, now) else {
                    return;
                };
                let deadline = now.checked_add(beat.patience);
                self.send(versions, &beat.body, deadline, Origin::Beat, out);
                return;
            }
            let Some(call) = self.queue.pop_front() else {
                return;
            };
            let Call {
                ticket,
                tag,
                deadline,
                encode,
            } = call;
            if deadline <= now {
                out.push(Output::Done {
                    ticket,
                    tag,
                    result: Err(IcError::Timeout),
                });
                continue;
            }
            match encode(versions) {
                Ok(body) => {
                    self.service.call_sent(tag, now);
                    let origin = Origin::Call { ticket, tag };
                    self.send(versions, &body, Some(deadline), origin, out);
                }
                Err(error) => out.push(Output::Done {
                    ticket,
                    tag,
                    result: Err(error),
                }),
            }
        }
    }

    fn send(
        &mut self,
        versions: Versions,
        body: &[u8],
        deadline: Option<Instant>,
        origin: Origin,
        out: &mut Vec<Output>,
    ) {
        let id = self.next_id();
        let bytes = wire::request(versions, self.service.profile().message_type, id, body);
        self.outstanding = Some(Outstanding {
            id,
            deadline,
            origin,
        });
        out.push(Output::Send { id, bytes });
    }

    fn next_id(&mut self) -> u8 {
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }
}

/// Whether a message is an answer to what is under way.
fn answers(message: &Message<'_>, outstanding: &Outstanding) -> bool {
    let negotiation = message.header.message_type.get() == TYPE_NEGOTIATE;
    message.header.flags & FLAG_RESPONSE != 0
        && message.header.transaction_id == outstanding.id
        && negotiation == matches!(outstanding.origin, Origin::Negotiation)
}

fn done(call: &Call, result: Result<Reply, IcError>) -> Output {
    Output::Done {
        ticket: call.ticket,
        tag: call.tag,
        result,
    }
}
