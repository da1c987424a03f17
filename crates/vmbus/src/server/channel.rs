//! Channels: offering, revoking, releasing.

use super::gpadl::Gpadl;
use super::{Effect, OfferError, OfferId, OfferParams, Server, Violation};
use crate::protocol::{
    MAX_CHANNELS, OfferChannel, OpenChannelResult, RelIdReleased, RescindChannelOffer, VMBUS_SINT,
    channel_connection_id, ntstatus,
};
use std::collections::BTreeMap;

/// A guest's wish to open a channel, checked when it is carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) open_id: u32,
    pub(super) gpadl_id: u32,
    pub(super) target_vp: u32,
    pub(super) downstream_page: u32,
    pub(super) user_data: [u8; 120],
    pub(super) reserved: bool,
}

/// An open channel, or one that is being opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    pub(super) sequence: u64,
    pub(super) open_id: u32,
    pub(super) gpadl_id: u32,
    pub(super) reserved: bool,
}

/// What the device does with a channel.
#[derive(Clone, Debug)]
pub(super) enum State {
    Closed,
    Opening(Opened),
    Open(Opened),
    Closing {
        sequence: u64,
        /// The ring, which is in use until the device has closed.
        gpadl_id: u32,
        /// The guest wants it open again.
        reopen: Option<Box<Request>>,
        /// Where the answer to CloseReservedChannel goes: VP and SINT.
        reply: Option<(u32, u8)>,
    },
}

impl State {
    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed)
    }

    /// Open, or opening, beyond the connection.
    pub(super) fn is_reserved_open(&self) -> bool {
        matches!(self, Self::Opening(opened) | Self::Open(opened) if opened.reserved)
    }

    pub(super) fn ring(&self) -> Option<u32> {
        match self {
            Self::Closed => None,
            Self::Opening(opened) | Self::Open(opened) => Some(opened.gpadl_id),
            Self::Closing { gpadl_id, .. } => Some(*gpadl_id),
        }
    }
}

/// A channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) params: OfferParams,
    /// Chosen at the first offer, then kept.
    pub(super) id: Option<u16>,
    /// The guest knows it.
    pub(super) offered: bool,
    /// The guest gave it back of its own accord.
    pub(super) released: bool,
    /// Its device is gone.
    pub(super) revoked: bool,
    pub(super) state: State,
    pub(super) gpadls: BTreeMap<u32, Gpadl>,
}

/// All channels, by offer and by id.
#[derive(Debug, Default)]
pub(super) struct Channels {
    by_offer: BTreeMap<OfferId, Channel>,
    by_id: BTreeMap<u16, OfferId>,
    last: u64,
}

impl Channels {
    pub(super) fn len(&self) -> usize {
        self.by_offer.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&OfferId, &Channel)> {
        self.by_offer.iter()
    }

    pub(super) fn ids(&self) -> Vec<OfferId> {
        self.by_offer.keys().copied().collect()
    }

    pub(super) fn get(&self, offer: OfferId) -> Option<&Channel> {
        self.by_offer.get(&offer)
    }

    pub(super) fn get_mut(&mut self, offer: OfferId) -> Option<&mut Channel> {
        self.by_offer.get_mut(&offer)
    }

    /// A channel by the id in a message, offered to the guest or not.
    pub(super) fn by_id(&self, channel_id: u32) -> Option<OfferId> {
        self.by_id.get(&u16::try_from(channel_id).ok()?).copied()
    }

    fn insert(&mut self, params: OfferParams) -> Result<OfferId, OfferError> {
        let key = params.key();
        if self
            .by_offer
            .values()
            .any(|channel| !channel.revoked && channel.params.key() == key)
        {
            return Err(OfferError::Duplicate);
        }
        if self.by_offer.len() >= usize::from(MAX_CHANNELS) - 1 {
            return Err(OfferError::Full);
        }
        self.last += 1;
        let channel = Channel {
            params,
            id: None,
            offered: false,
            released: false,
            revoked: false,
            state: State::Closed,
            gpadls: BTreeMap::new(),
        };
        self.by_offer.insert(OfferId(self.last), channel);
        Ok(OfferId(self.last))
    }

    fn remove(&mut self, offer: OfferId) -> Option<Channel> {
        let channel = self.by_offer.remove(&offer)?;
        if let Some(id) = channel.id {
            self.by_id.remove(&id);
        }
        Some(channel)
    }

    /// The channel's id, the lowest free one if it has none yet.
    fn assign_id(&mut self, offer: OfferId) -> Option<u16> {
        let channel = self.by_offer.get_mut(&offer)?;
        if channel.id.is_none() {
            channel.id = (1..MAX_CHANNELS).find(|id| !self.by_id.contains_key(id));
            self.by_id.insert(channel.id?, offer);
        }
        channel.id
    }

    /// Channels that the guest may hear of and has not, in the order in
    /// which they are offered.
    fn pending_offers(&self) -> Vec<OfferId> {
        // An instance whose predecessor the guest still holds must wait: the
        // guest would take it for the same one.
        let held = |channel: &Channel| {
            self.by_offer.values().any(|other| {
                other.revoked && other.offered && other.params.key() == channel.params.key()
            })
        };
        let mut pending: Vec<_> = self
            .by_offer
            .iter()
            .filter(|(_, c)| !c.offered && !c.released && !c.revoked && c.state.is_closed())
            .filter(|(_, channel)| !held(channel))
            .map(|(offer, channel)| {
                let params = &channel.params;
                let subchannel = params.subchannel_index;
                (
                    params.interface_id,
                    params.order,
                    params.instance_id,
                    subchannel,
                    *offer,
                )
            })
            .collect();
        pending.sort_unstable();
        pending.into_iter().map(|(.., offer)| offer).collect()
    }
}

impl Server {
    /// Offers a channel. A guest that is connected hears of it at once.
    ///
    /// # Errors
    ///
    /// [`OfferError`] when there is one like it, or no id is left.
    pub fn offer(
        &mut self,
        params: OfferParams,
        effects: &mut Vec<Effect>,
    ) -> Result<OfferId, OfferError> {
        let offer = self.channels.insert(params)?;
        self.send_new_offers(effects);
        Ok(offer)
    }

    /// The id that a channel has for the guest, once it was offered to one.
    pub fn channel_id(&self, offer: OfferId) -> Option<u16> {
        self.channels.get(offer)?.id
    }

    /// Channels whose device is not needed any more, though the guest may
    /// still hold their ids: revoked and closed.
    pub fn orphans(&self) -> impl Iterator<Item = OfferId> {
        let orphan = |channel: &Channel| channel.revoked && channel.state.is_closed();
        self.channels
            .iter()
            .filter(move |(_, channel)| orphan(channel))
            .map(|(offer, _)| *offer)
    }

    /// Sends offers that the guest has not heard of, if it has asked for any.
    fn send_new_offers(&mut self, effects: &mut Vec<Effect>) {
        if self
            .connection
            .info()
            .is_some_and(|info| info.offers_requested)
        {
            self.send_offers(effects);
        }
    }

    pub(super) fn send_offers(&mut self, effects: &mut Vec<Effect>) {
        for offer in self.channels.pending_offers() {
            // There are no more channels than ids.
            let Some(id) = self.channels.assign_id(offer) else {
                continue;
            };
            let Some(channel) = self.channels.get_mut(offer) else {
                continue;
            };
            channel.offered = true;
            let message = offer_message(&channel.params, id);
            self.send(&message, effects);
        }
    }

    /// A channel that the guest knows.
    pub(super) fn guest_channel(&self, channel_id: u32) -> Result<OfferId, Violation> {
        let offer = self
            .channels
            .by_id(channel_id)
            .ok_or(Violation::NoChannel(channel_id))?;
        let known = self
            .channels
            .get(offer)
            .is_some_and(|channel| channel.offered);
        if known {
            Ok(offer)
        } else {
            Err(Violation::NoChannel(channel_id))
        }
    }

    pub(super) fn revoke(&mut self, offer: OfferId, effects: &mut Vec<Effect>) {
        let Some(channel) = self.channels.get(offer) else {
            return;
        };
        let (interface, instance, subchannel) = channel.params.key();
        if subchannel == 0 {
            let belongs = |channel: &super::channel::Channel| {
                let (other_interface, other_instance, index) = channel.params.key();
                index != 0 && (other_interface, other_instance) == (interface, instance)
            };
            let children = self.channels.iter().filter(|(_, channel)| belongs(channel));
            let children: Vec<OfferId> = children.map(|(offer, _)| *offer).collect();
            for child in children {
                self.revoke_one(child, effects);
            }
        }
        self.revoke_one(offer, effects);
    }

    fn revoke_one(&mut self, offer: OfferId, effects: &mut Vec<Effect>) {
        let Some(channel) = self.channels.get_mut(offer) else {
            return;
        };
        if channel.revoked {
            return;
        }
        channel.revoked = true;
        let (offered, channel_id) = (channel.offered, channel.id);
        let waiting = match &mut channel.state {
            State::Opening(opened) if !opened.reserved => Some(opened.open_id),
            State::Closing { reopen, .. } => reopen.take().map(|request| request.open_id),
            _ => None,
        };
        self.start_close(offer, None, effects);
        if let (true, Some(id)) = (offered, channel_id) {
            let channel_id = u32::from(id);
            if let Some(open_id) = waiting {
                let status = ntstatus::UNSUCCESSFUL;
                self.send(
                    &OpenChannelResult {
                        channel_id,
                        open_id,
                        status,
                    },
                    effects,
                );
            }
            self.send(&RescindChannelOffer { channel_id }, effects);
        }
        self.remove_if_gone(offer, effects);
    }

    /// Removes a channel that nobody has a use for any more: revoked, closed
    /// and unknown to the guest.
    pub(super) fn remove_if_gone(&mut self, offer: OfferId, effects: &mut Vec<Effect>) {
        let Some(channel) = self.channels.get(offer) else {
            return;
        };
        if channel.offered || !channel.state.is_closed() {
            return;
        }
        let revoked = channel.revoked;
        self.drop_gpadls(offer);
        if revoked {
            self.channels.remove(offer);
            effects.push(Effect::Removed(offer));
        }
    }

    pub(super) fn rel_id_released(
        &mut self,
        message: &RelIdReleased,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let offer = self.guest_channel(message.channel_id)?;
        if let Some(channel) = self.channels.get_mut(offer) {
            channel.offered = false;
            channel.released = !channel.revoked;
        }
        self.drop_in_progress(|entry| entry.offer == offer);
        self.start_close(offer, None, effects);
        self.remove_if_gone(offer, effects);
        self.send_new_offers(effects);
        Ok(())
    }

    /// The guest is gone: takes a channel back from it.
    pub(super) fn forget_channel(
        &mut self,
        offer: OfferId,
        keep_reserved: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(channel) = self.channels.get_mut(offer) else {
            return;
        };
        channel.offered = false;
        channel.released = false;
        if !(keep_reserved && channel.state.is_reserved_open()) {
            self.start_close(offer, None, effects);
            self.remove_if_gone(offer, effects);
        }
    }
}

fn offer_message(params: &OfferParams, id: u16) -> OfferChannel {
    OfferChannel {
        interface_id: params.interface_id,
        instance_id: params.instance_id,
        reserved: [0; 4],
        flags: params.flags.bits(),
        mmio_megabytes: params.mmio_megabytes,
        user_defined: params.user_defined,
        subchannel_index: params.subchannel_index,
        mmio_megabytes_optional: params.mmio_megabytes_optional,
        channel_id: id.into(),
        monitor_id: 0xff,
        monitor_allocated: 0,
        is_dedicated: 1,
        connection_id: channel_connection_id(id, VMBUS_SINT),
    }
}
