//! The guest's connection: its state, offers, pauses and its end.

use super::contact::ContactRequest;
use super::{Effect, Server, Violation};
use crate::protocol::{
    AllOffersDelivered, ConnectionState, ControlMessage, FeatureFlags, MessageType,
    ModifyConnection, ModifyConnectionResponse, PauseResponse, UnloadComplete, VMBUS_SINT, Version,
};

/// A connection that was agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    pub(super) version: Version,
    pub(super) features: FeatureFlags,
    /// Where messages go.
    pub(super) vp: u32,
    pub(super) sint: u8,
    pub(super) offers_requested: bool,
    pub(super) paused: bool,
}

impl Info {
    /// Whether the feature that a message belongs to is in force.
    pub(super) fn has_feature_for(&self, kind: MessageType) -> bool {
        let needed = match kind {
            MessageType::MODIFY_CONNECTION => FeatureFlags::MODIFY_CONNECTION,
            MessageType::PAUSE | MessageType::RESUME => FeatureFlags::PAUSE_RESUME,
            _ => FeatureFlags::empty(),
        };
        self.features.contains(needed)
    }
}

/// What follows when all channels are closed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// Nothing: nobody waits.
    Nothing,
    /// UnloadComplete, to this virtual processor and SINT.
    Unloaded(u32, u8),
    /// The answer to InitiateContact.
    Contact(ContactRequest),
}

/// Whether a guest is there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Connection {
    Disconnected,
    Connected(Info),
    Disconnecting(Next),
}

impl Connection {
    pub(super) fn info(&self) -> Option<&Info> {
        match self {
            Self::Connected(info) => Some(info),
            _ => None,
        }
    }

    fn info_mut(&mut self) -> Option<&mut Info> {
        match self {
            Self::Connected(info) => Some(info),
            _ => None,
        }
    }
}

impl Server {
    pub(super) fn unload(&mut self, effects: &mut Vec<Effect>) {
        let (vp, sint) = match &self.connection {
            Connection::Connected(info) => (info.vp, info.sint),
            Connection::Disconnecting(Next::Unloaded(vp, sint)) => (*vp, *sint),
            // A guest that thinks it is connected waits for the answer.
            _ => (0, VMBUS_SINT),
        };
        self.disconnect(Next::Unloaded(vp, sint), effects);
    }

    /// Takes everything back that the guest knew, and goes on with `next`
    /// once the devices have closed their channels.
    pub(super) fn disconnect(&mut self, next: Next, effects: &mut Vec<Effect>) {
        effects.push(Effect::DiscardMessages);
        self.held.clear();
        self.connect_requests.clear();
        self.drop_in_progress(|_| true);
        self.connection = Connection::Disconnecting(next);
        let keep_reserved = matches!(next, Next::Unloaded(..));
        for offer in self.channels.ids() {
            self.forget_channel(offer, keep_reserved, effects);
        }
        self.finish_disconnect(effects);
    }

    /// Goes on where a disconnect waited for the devices.
    pub(super) fn finish_disconnect(&mut self, effects: &mut Vec<Effect>) {
        let Connection::Disconnecting(next) = self.connection else {
            return;
        };
        let keep_reserved = matches!(next, Next::Unloaded(..));
        let done = |reserved: bool, closed: bool| closed || reserved && keep_reserved;
        if self
            .channels
            .iter()
            .any(|(_, channel)| !done(channel.state.is_reserved_open(), channel.state.is_closed()))
        {
            return;
        }
        self.connection = Connection::Disconnected;
        match next {
            Next::Nothing => {}
            Next::Unloaded(vp, sint) => {
                let message = ControlMessage::new(&UnloadComplete {});
                effects.push(Effect::Send { vp, sint, message });
            }
            Next::Contact(request) => self.answer_contact(&request, effects),
        }
    }

    pub(super) fn request_offers(&mut self, effects: &mut Vec<Effect>) -> Result<(), Violation> {
        let info = self.connection.info_mut();
        let info = info.ok_or(Violation::NotConnected(MessageType::REQUEST_OFFERS))?;
        if info.offers_requested {
            return Err(Violation::OffersRequested);
        }
        info.offers_requested = true;
        self.send_offers(effects);
        self.send(&AllOffersDelivered {}, effects);
        Ok(())
    }

    pub(super) fn modify_connection(
        &mut self,
        request: &ModifyConnection,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        // No channel is monitored, so the pages themselves do not matter.
        let [down, up] = [
            request.parent_to_child_monitor_page_gpa != 0,
            request.child_to_parent_monitor_page_gpa != 0,
        ];
        let good = down == up;
        let connection_state = if good {
            ConnectionState::SUCCESSFUL
        } else {
            ConnectionState::FAILED_UNKNOWN_FAILURE
        };
        self.send(
            &ModifyConnectionResponse {
                connection_state,
                padding: [0; 3],
            },
            effects,
        );
        if good {
            Ok(())
        } else {
            Err(Violation::MonitorPages)
        }
    }

    pub(super) fn pause(&mut self, effects: &mut Vec<Effect>) -> Result<(), Violation> {
        self.send(&PauseResponse {}, effects);
        if let Some(info) = self.connection.info_mut() {
            info.paused = true;
        }
        Ok(())
    }

    pub(super) fn resume(&mut self, effects: &mut Vec<Effect>) -> Result<(), Violation> {
        let info = self.connection.info_mut();
        let info = info.ok_or(Violation::NotConnected(MessageType::RESUME))?;
        info.paused = false;
        let (vp, sint) = (info.vp, info.sint);
        let held = self.held.drain(..);
        effects.extend(held.map(|message| Effect::Send { vp, sint, message }));
        Ok(())
    }
}
