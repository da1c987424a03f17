//! Opening, closing and moving channels.

use super::channel::{Opened, Request, State};
use super::{Effect, OfferId, OpenRequest, Server, Violation};
use crate::protocol::{
    CloseChannel, CloseReservedChannelResponse, ControlMessage, GpaRange, ModifyChannel,
    ModifyChannelResponse, OpenChannel, OpenChannelResult, VMBUS_SINT, VP_INDEX_DISABLE_INTERRUPT,
    Version, channel_connection_id, ntstatus,
};
use std::sync::Arc;

/// The least pages of a ring: its control page and one of data.
const MIN_RING_PAGES: usize = 2;

impl Server {
    pub(super) fn open_channel(
        &mut self,
        message: &OpenChannel,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let request = Request {
            open_id: message.open_id,
            gpadl_id: message.ring_buffer_gpadl_id,
            target_vp: message.target_vp,
            downstream_page: message.downstream_ring_buffer_page_offset,
            user_data: message.user_data,
            reserved: false,
        };
        let result = self.try_open(message.channel_id, request, effects);
        if result.is_err() {
            self.send_open_result(message.channel_id, message.open_id, false, effects);
        }
        result
    }

    fn try_open(
        &mut self,
        channel_id: u32,
        request: Request,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let offer = self.guest_channel(channel_id)?;
        let channel = self
            .channels
            .get_mut(offer)
            .ok_or(Violation::NoChannel(channel_id))?;
        match &mut channel.state {
            _ if channel.revoked => Err(Violation::ChannelState(channel_id)),
            State::Closed => self.start_open(offer, channel_id, request, effects),
            State::Closing {
                reopen: reopen @ None,
                ..
            } => {
                *reopen = Some(Box::new(request));
                Ok(())
            }
            _ => Err(Violation::ChannelState(channel_id)),
        }
    }

    /// Checks a request and hands it to the device.
    pub(super) fn start_open(
        &mut self,
        offer: OfferId,
        channel_id: u32,
        request: Request,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let vp = request.target_vp;
        let target_vp = (vp != VP_INDEX_DISABLE_INTERRUPT).then_some(vp);
        if target_vp.is_some_and(|vp| vp >= self.config.processors) {
            return Err(Violation::Target(channel_id));
        }
        let ring = self
            .ring_pages(offer, &request)
            .ok_or(Violation::Ring(channel_id))?;
        let sequence = self.next_sequence();
        let channel = self
            .channels
            .get_mut(offer)
            .ok_or(Violation::NoChannel(channel_id))?;
        let id = channel.id.ok_or(Violation::NoChannel(channel_id))?;
        channel.state = State::Opening(Opened {
            sequence,
            open_id: request.open_id,
            gpadl_id: request.gpadl_id,
            reserved: request.reserved,
        });
        effects.push(Effect::Open(OpenRequest {
            offer,
            sequence,
            channel_id: id,
            connection_id: channel_connection_id(id, VMBUS_SINT),
            target_vp,
            sint: VMBUS_SINT,
            ring,
            downstream_page: request.downstream_page as usize,
            user_data: request.user_data,
            reserved: request.reserved,
        }));
        Ok(())
    }

    /// The pages of a ring, if the GPADL and its division make two rings.
    fn ring_pages(&self, offer: OfferId, request: &Request) -> Option<Arc<[GpaRange]>> {
        let gpadl = self.channels.get(offer)?.gpadls.get(&request.gpadl_id)?;
        let [range] = &gpadl.ranges[..] else {
            return None;
        };
        let pages = range.pfns.len();
        let whole = range.byte_offset == 0 && !gpadl.tearing_down;
        let upstream = request.downstream_page as usize;
        let downstream = pages.checked_sub(upstream)?;
        let room = upstream >= MIN_RING_PAGES && downstream >= MIN_RING_PAGES;
        (whole && room).then(|| gpadl.ranges.clone())
    }

    fn send_open_result(
        &mut self,
        channel_id: u32,
        open_id: u32,
        opened: bool,
        effects: &mut Vec<Effect>,
    ) {
        let status = if opened {
            ntstatus::SUCCESS
        } else {
            ntstatus::UNSUCCESSFUL
        };
        self.send(
            &OpenChannelResult {
                channel_id,
                open_id,
                status,
            },
            effects,
        );
    }

    pub(super) fn open_done(
        &mut self,
        offer: OfferId,
        sequence: u64,
        success: bool,
        effects: &mut Vec<Effect>,
    ) {
        let Some(channel) = self.channels.get_mut(offer) else {
            return;
        };
        // An answer to a request that was taken back since means nothing.
        let State::Opening(opened) = channel.state else {
            return;
        };
        if opened.sequence != sequence {
            return;
        }
        channel.state = if success {
            State::Open(opened)
        } else {
            State::Closed
        };
        let channel_id = channel.id.map_or(0, u32::from);
        if !opened.reserved {
            self.send_open_result(channel_id, opened.open_id, success, effects);
        }
        if !success {
            self.after_close(offer, effects);
        }
    }

    pub(super) fn close_channel(
        &mut self,
        message: &CloseChannel,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let offer = self.guest_channel(message.channel_id)?;
        let wrong = Violation::ChannelState(message.channel_id);
        let channel = self.channels.get_mut(offer).ok_or(wrong)?;
        match &mut channel.state {
            State::Opening(opened) | State::Open(opened) if !opened.reserved => {
                self.start_close(offer, None, effects);
                Ok(())
            }
            // The guest has changed its mind about opening it again.
            State::Closing {
                reopen: reopen @ Some(_),
                ..
            } => {
                *reopen = None;
                Ok(())
            }
            // It crossed the rescind.
            _ if channel.revoked => Ok(()),
            _ => Err(wrong),
        }
    }

    /// Has the device close a channel that is open or opening; forgets a
    /// request to open it again.
    pub(super) fn start_close(
        &mut self,
        offer: OfferId,
        reply: Option<(u32, u8)>,
        effects: &mut Vec<Effect>,
    ) {
        let next = self.next_sequence();
        let Some(channel) = self.channels.get_mut(offer) else {
            return;
        };
        match &mut channel.state {
            State::Closed => {}
            State::Closing { reopen, .. } => *reopen = None,
            State::Opening(opened) | State::Open(opened) => {
                let gpadl_id = opened.gpadl_id;
                channel.state = State::Closing {
                    sequence: next,
                    gpadl_id,
                    reopen: None,
                    reply,
                };
                effects.push(Effect::Close {
                    offer,
                    sequence: next,
                });
            }
        }
    }

    pub(super) fn close_done(&mut self, offer: OfferId, done: u64, effects: &mut Vec<Effect>) {
        let Some(channel) = self.channels.get_mut(offer) else {
            return;
        };
        let State::Closing {
            sequence,
            reopen,
            reply,
            ..
        } = &mut channel.state
        else {
            return;
        };
        if *sequence != done {
            return;
        }
        let (reopen, reply) = (reopen.take(), reply.take());
        channel.state = State::Closed;
        let channel_id = channel.id.map_or(0, u32::from);
        if let Some((vp, sint)) = reply {
            let message = ControlMessage::new(&CloseReservedChannelResponse { channel_id });
            effects.push(Effect::Send { vp, sint, message });
        }
        if let Some(request) = reopen {
            let open_id = request.open_id;
            if self
                .start_open(offer, channel_id, *request, effects)
                .is_err()
            {
                self.send_open_result(channel_id, open_id, false, effects);
            }
        }
        self.after_close(offer, effects);
    }

    /// What waited for a channel to be closed.
    fn after_close(&mut self, offer: OfferId, effects: &mut Vec<Effect>) {
        self.send_torndown(offer, effects);
        self.remove_if_gone(offer, effects);
        self.finish_disconnect(effects);
    }

    pub(super) fn modify_channel(
        &mut self,
        message: &ModifyChannel,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let channel_id = message.channel_id;
        let result = self.set_target(channel_id, message.target_vp, effects);
        if self
            .connection
            .info()
            .is_some_and(|info| info.version >= Version::IRON)
        {
            let status = if result.is_ok() {
                ntstatus::SUCCESS
            } else {
                ntstatus::UNSUCCESSFUL
            };
            self.send(&ModifyChannelResponse { channel_id, status }, effects);
        }
        result
    }

    fn set_target(
        &mut self,
        channel_id: u32,
        vp: u32,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let offer = self.guest_channel(channel_id)?;
        // This also refuses to turn interrupts off.
        if vp >= self.config.processors {
            return Err(Violation::Target(channel_id));
        }
        let open = self.channels.get(offer).map(|channel| &channel.state);
        let Some(State::Open(opened)) = open else {
            return Err(Violation::ChannelState(channel_id));
        };
        if opened.reserved {
            return Err(Violation::ChannelState(channel_id));
        }
        effects.push(Effect::SetTarget { offer, vp });
        Ok(())
    }
}
