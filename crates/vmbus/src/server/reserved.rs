//! Reserved channels: opened for a guest that is past its connection, such as
//! one that writes a crash dump. They outlive Unload, raise no interrupts, and
//! take no GPADL while they are open.

use super::channel::{Request, State};
use super::{Effect, Server, Violation};
use crate::protocol::{CloseReservedChannel, OpenReservedChannel, VP_INDEX_DISABLE_INTERRUPT};
use tlfs::HV_SYNIC_SINT_COUNT;

impl Server {
    pub(super) fn open_reserved_channel(
        &mut self,
        message: &OpenReservedChannel,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let channel_id = message.channel_id;
        self.reserved_target(channel_id, message.target_vp, message.target_sint)?;
        let offer = self.guest_channel(channel_id)?;
        let usable = self
            .channels
            .get(offer)
            .is_some_and(|channel| !channel.revoked && channel.state.is_closed());
        if !usable {
            return Err(Violation::ChannelState(channel_id));
        }
        let request = Request {
            open_id: 0,
            gpadl_id: message.ring_buffer_gpadl_id,
            target_vp: VP_INDEX_DISABLE_INTERRUPT,
            downstream_page: message.downstream_ring_buffer_page_offset,
            user_data: [0; 120],
            reserved: true,
        };
        self.start_open(offer, channel_id, request, effects)
    }

    pub(super) fn close_reserved_channel(
        &mut self,
        message: &CloseReservedChannel,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let channel_id = message.channel_id;
        let target = self.reserved_target(channel_id, message.target_vp, message.target_sint)?;
        // The guest may be disconnected, so being offered is no condition.
        let offer = self
            .channels
            .by_id(channel_id)
            .ok_or(Violation::NoChannel(channel_id))?;
        let channel = self
            .channels
            .get_mut(offer)
            .ok_or(Violation::NoChannel(channel_id))?;
        match &mut channel.state {
            state if state.is_reserved_open() => {
                self.start_close(offer, Some(target), effects);
                Ok(())
            }
            // The device was quicker (it was revoked): answer when closed.
            State::Closing {
                reply: reply @ None,
                ..
            } if channel.revoked => {
                *reply = Some(target);
                Ok(())
            }
            _ => Err(Violation::ChannelState(channel_id)),
        }
    }

    fn reserved_target(&self, channel_id: u32, vp: u32, sint: u32) -> Result<(u32, u8), Violation> {
        let good = vp < self.config.processors && sint < HV_SYNIC_SINT_COUNT as u32;
        if good {
            Ok((vp, sint as u8))
        } else {
            Err(Violation::Target(channel_id))
        }
    }
}
