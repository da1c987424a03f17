//! The service thread: takes the guest's messages, carries out effects.

use super::{BusHandle, ChannelInfo, Link, OpenChannel, Posted, Shared, State, Vsp};
use crate::protocol::{
    ControlMessage, MESSAGE_CONNECTION_ID, MULTICLIENT_MESSAGE_CONNECTION_ID, PAGE_SIZE,
};
use crate::ring::{Incoming, Outgoing, RingMemory};
use crate::server::{Effect, Input, OfferId, OpenRequest};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

/// How soon a message is posted again that the guest had no room for. The
/// pause doubles up to the second value.
const RETRY: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));

type BoxError = Box<dyn std::error::Error>;

pub(super) struct Service {
    shared: Arc<Shared>,
    /// Messages on their way to the guest. Its own messages wait while there
    /// are any, so there are never more than one of them leads to, and what
    /// the devices cause.
    outbox: VecDeque<(u32, u8, ControlMessage)>,
    retry: Duration,
}

enum Work {
    Effects(VecDeque<Effect>),
    Post,
    Stop,
}

impl Service {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            outbox: VecDeque::new(),
            retry: RETRY.0,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            match self.next_work() {
                Work::Effects(effects) => {
                    for effect in effects {
                        self.carry_out(effect);
                    }
                    self.drop_orphans();
                }
                Work::Post => {}
                Work::Stop => break,
            }
            self.post();
        }
        self.shut_down();
    }

    /// Waits for something to do.
    fn next_work(&mut self) -> Work {
        let shared = self.shared.clone();
        let mut state = shared.state();
        loop {
            if state.stopping {
                return Work::Stop;
            }
            if !state.effects.is_empty() {
                return Work::Effects(std::mem::take(&mut state.effects));
            }
            if self.take_message(&mut state) {
                continue;
            }
            if state.server.is_disconnected() {
                shared.progress.notify_all();
            }
            if self.outbox.is_empty() {
                state = shared
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = shared.work.wait_timeout(state, self.retry);
            let (after, result) = waited.unwrap_or_else(PoisonError::into_inner);
            state = after;
            if result.timed_out() {
                self.retry = (self.retry * 2).min(RETRY.1);
                return Work::Post;
            }
        }
    }

    /// Gives the server a message of the guest, if it may have one now.
    fn take_message(&self, state: &mut MutexGuard<'_, State>) -> bool {
        let ready = self.outbox.is_empty() && state.server.wants_messages();
        // A guest that starts anew will never read what its predecessor
        // was sent, so it must not wait for that.
        if !ready && !state.has_reset() {
            return false;
        }
        let Some((connection_id, bytes)) = state.inbox.pop_front() else {
            return false;
        };
        self.shared.input_locked(
            state,
            Input::Message {
                connection_id,
                bytes: &bytes,
            },
        );
        true
    }

    /// Posts what waits, in order, as far as the guest has room.
    fn post(&mut self) {
        while let Some((vp, sint, message)) = self.outbox.front() {
            match self
                .shared
                .host
                .post_message(*vp, *sint, message.as_bytes())
            {
                Posted::Busy => return,
                Posted::Sent | Posted::Dropped => {
                    self.outbox.pop_front();
                    self.retry = RETRY.0;
                }
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { vp, sint, message } => self.outbox.push_back((vp, sint, message)),
            Effect::DiscardMessages => self.outbox.clear(),
            Effect::Open(request) => self.open(&request),
            Effect::Close { offer, sequence } => {
                self.close(offer);
                self.shared.input(Input::CloseDone { offer, sequence });
            }
            Effect::SetTarget { offer, vp } => {
                if let Some(link) = self.link(offer) {
                    link.set_target(vp);
                }
            }
            Effect::ReleaseGpadl { offer, gpadl_id } => self.release_gpadl(offer, gpadl_id),
            Effect::Removed(offer) => {
                // The device may take its time with its end, so without lock.
                let slot = self.shared.state().slots.remove(&offer);
                drop(slot);
            }
            Effect::TlConnect {
                endpoint_id,
                service_id,
                silo_id,
            } => {
                if let Some(sockets) = &self.shared.sockets {
                    sockets.connect(&self.handle(), endpoint_id, service_id, silo_id);
                }
            }
        }
    }

    /// Ends devices that were withdrawn: what they hold must be free even if
    /// the guest never lets go of the channel.
    fn drop_orphans(&self) {
        let orphans: Vec<Box<dyn Vsp>> = {
            let mut guard = self.shared.state();
            let state = &mut *guard;
            let offers = state.server.orphans();
            offers
                .filter_map(|offer| state.slots.get_mut(&offer)?.vsp.take())
                .collect()
        };
        drop(orphans);
    }

    fn handle(&self) -> BusHandle {
        BusHandle {
            shared: Arc::downgrade(&self.shared),
        }
    }

    fn link(&self, offer: OfferId) -> Option<Arc<Link>> {
        self.shared.state().slots.get(&offer)?.link.clone()
    }

    /// Calls a device with no lock held. A device that panics is gone, and
    /// its channel with it; the others go on.
    fn with_vsp<T>(&self, offer: OfferId, call: impl FnOnce(&mut dyn Vsp) -> T) -> Option<T> {
        let mut vsp = self.shared.state().slots.get_mut(&offer)?.vsp.take()?;
        let called = catch_unwind(AssertUnwindSafe(|| call(&mut *vsp)));
        let Ok(result) = called else {
            tracing::error!("the device of a channel panicked");
            return None;
        };
        if let Some(slot) = self.shared.state().slots.get_mut(&offer) {
            slot.vsp = Some(vsp);
        }
        Some(result)
    }

    fn open(&mut self, request: &OpenRequest) {
        let &OpenRequest {
            offer,
            sequence,
            channel_id,
            ..
        } = request;
        let result = self.try_open(request);
        if let Err(error) = &result {
            // A guest can cause this as often as it likes: no louder than this.
            tracing::debug!("channel {channel_id} does not open: {error}");
        }
        self.shared.input(Input::OpenDone {
            offer,
            sequence,
            opened: result.is_ok(),
        });
    }

    fn try_open(&mut self, request: &OpenRequest) -> Result<(), BoxError> {
        let (incoming, outgoing) = self.map_rings(request)?;
        let &OpenRequest {
            offer,
            connection_id,
            sint,
            channel_id,
            target_vp,
            ..
        } = request;
        let host = self.shared.host.clone();
        let link = Arc::new(Link::new(host, sint, channel_id, target_vp));
        // The guest may signal as soon as the device has seen the channel.
        self.shared.host.open_event_port(connection_id)?;
        self.links(|links| links.insert(connection_id, link.clone()));
        if let Some(slot) = self.shared.state().slots.get_mut(&offer) {
            slot.link = Some(link.clone());
            slot.connection_id = connection_id;
        }
        let info = ChannelInfo {
            offer,
            channel_id,
            user_data: request.user_data,
            reserved: request.reserved,
        };
        let channel = OpenChannel::new(incoming, outgoing, &link, info, self.handle());
        let opened = self.with_vsp(offer, |vsp| vsp.open(channel));
        let opened = opened.unwrap_or_else(|| Err("the device is gone".into()));
        if opened.is_err() {
            self.disconnect(offer);
        }
        opened
    }

    fn map_rings(&self, request: &OpenRequest) -> Result<(Incoming, Outgoing), BoxError> {
        let range = request.ring.first().ok_or("no ring")?;
        let pages = self.shared.host.map_pages(&range.pfns)?;
        let border = request.downstream_page * PAGE_SIZE as usize;
        let end = pages.len();
        let incoming = Incoming::new(RingMemory::new(pages.clone(), 0, border)?)?;
        let outgoing = Outgoing::new(RingMemory::new(pages, border, end)?)?;
        Ok((incoming, outgoing))
    }

    fn links(&self, change: impl FnOnce(&mut LinkMap) -> Option<Arc<Link>>) {
        change(
            &mut self
                .shared
                .links
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Closes a channel if it is open.
    fn close(&self, offer: OfferId) {
        let Some(link) = self.link(offer) else { return };
        link.close();
        self.with_vsp(offer, |vsp| vsp.close());
        self.disconnect(offer);
    }

    /// Takes a channel's signals away.
    fn disconnect(&self, offer: OfferId) {
        let (link, connection_id) = {
            let mut state = self.shared.state();
            let Some(slot) = state.slots.get_mut(&offer) else {
                return;
            };
            (slot.link.take(), slot.connection_id)
        };
        if let Some(link) = link {
            link.close();
            link.set_waker(None);
            self.links(|links| links.remove(&connection_id));
            self.shared.host.close_event_port(connection_id);
        }
    }

    fn release_gpadl(&self, offer: OfferId, gpadl_id: u32) {
        self.with_vsp(offer, |vsp| vsp.gpadl_teardown(gpadl_id));
        let mut state = self.shared.state();
        match state.mappings.get_mut(&(offer, gpadl_id)) {
            // The last of its users will say so.
            Some(mapping) => mapping.tearing_down = true,
            None => self
                .shared
                .input_locked(&mut state, Input::GpadlReleased { offer, gpadl_id }),
        }
    }

    fn shut_down(self) {
        let offers: Vec<OfferId> = self.shared.state().slots.keys().copied().collect();
        for offer in offers {
            self.close(offer);
        }
        let slots = std::mem::take(&mut self.shared.state().slots);
        drop(slots);
        self.shared.host.close_message_port(MESSAGE_CONNECTION_ID);
        self.shared
            .host
            .close_message_port(MULTICLIENT_MESSAGE_CONNECTION_ID);
        self.shared.progress.notify_all();
    }
}

type LinkMap = std::collections::HashMap<u32, Arc<Link>>;
