//! GPADLs: lists of guest pages that a channel may use.

use super::channel::State;
use super::{Effect, OfferId, Server, Violation};
use crate::protocol::{
    GpaRange, GpadlBody, GpadlCreated, GpadlHeader, GpadlTeardown, GpadlTorndown, ntstatus,
    parse_ranges,
};
use std::sync::Arc;

/// GPADLs that may be incomplete at a time.
const MAX_IN_PROGRESS: usize = 64;
/// GPADLs of all channels.
const MAX_GPADLS: usize = 16384;
/// Bytes of page lists of all channels: 8 GiB of guest memory.
const MAX_GPADL_BYTES: usize = 16 << 20;
/// Bytes that a range takes here beside its pages, whether it has many or
/// one.
pub(super) const RANGE_BYTES: usize = size_of::<GpaRange>() + 32;

/// A complete GPADL.
#[derive(Debug)]
pub(super) struct Gpadl {
    pub(super) ranges: Arc<[GpaRange]>,
    /// Bytes that it counts for.
    bytes: usize,
    /// The guest wants it back.
    pub(super) tearing_down: bool,
    /// And no device has it mapped any more.
    released: bool,
}

/// A GPADL of which bodies are to come.
#[derive(Debug)]
pub(super) struct InProgress {
    pub(super) offer: OfferId,
    channel_id: u32,
    count: usize,
    length: usize,
    /// Bytes that it counts for.
    bytes: usize,
    data: Vec<u8>,
}

impl Server {
    /// The pages of a GPADL that a channel's device may map.
    pub fn gpadl(&self, offer: OfferId, gpadl_id: u32) -> Option<Arc<[GpaRange]>> {
        let gpadl = self.channels.get(offer)?.gpadls.get(&gpadl_id)?;
        (!gpadl.tearing_down).then(|| gpadl.ranges.clone())
    }

    pub(super) fn gpadl_header(
        &mut self,
        header: &GpadlHeader,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let &GpadlHeader {
            channel_id,
            gpadl_id,
            len,
            count,
        } = header;
        let refused = Violation::Gpadl(gpadl_id);
        let entry = self.begin_gpadl(header);
        let Some(entry) = entry else {
            self.send_created(channel_id, gpadl_id, false, effects);
            return Err(refused);
        };
        debug_assert_eq!((entry.length, entry.count), (len.into(), count.into()));
        self.in_progress.insert(gpadl_id, entry);
        self.gpadl_data(gpadl_id, data, effects)
    }

    /// Makes room for a GPADL, if it may be.
    fn begin_gpadl(&mut self, header: &GpadlHeader) -> Option<InProgress> {
        let offer = self.guest_channel(header.channel_id).ok()?;
        let channel = self.channels.get(offer)?;
        let taken = channel.gpadls.contains_key(&header.gpadl_id)
            || self.in_progress.contains_key(&header.gpadl_id);
        let length = usize::from(header.len);
        let bytes = length + usize::from(header.count) * RANGE_BYTES;
        let full = self.in_progress.len() >= MAX_IN_PROGRESS
            || self.usage().gpadls >= MAX_GPADLS
            || self.gpadl_bytes + bytes > MAX_GPADL_BYTES;
        if taken || full || channel.state.is_reserved_open() || header.count == 0 {
            return None;
        }
        self.gpadl_bytes += bytes;
        Some(InProgress {
            offer,
            channel_id: header.channel_id,
            count: header.count.into(),
            length,
            bytes,
            data: Vec::new(),
        })
    }

    pub(super) fn gpadl_body(
        &mut self,
        body: &GpadlBody,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        if !self.in_progress.contains_key(&body.gpadl_id) {
            return Err(Violation::Gpadl(body.gpadl_id));
        }
        self.gpadl_data(body.gpadl_id, data, effects)
    }

    /// Adds bytes to a GPADL, and completes it with the last.
    fn gpadl_data(
        &mut self,
        gpadl_id: u32,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let refused = Violation::Gpadl(gpadl_id);
        let entry = self.in_progress.get_mut(&gpadl_id).ok_or(refused)?;
        // Some firmware sends messages of full size always.
        let useful = data.len().min(entry.length - entry.data.len());
        entry.data.extend_from_slice(&data[..useful]);
        if entry.data.len() < entry.length {
            return Ok(());
        }
        let entry = self.in_progress.remove(&gpadl_id).ok_or(refused)?;
        let done = self.complete_gpadl(gpadl_id, &entry);
        if done.is_none() {
            self.gpadl_bytes -= entry.bytes;
        }
        self.send_created(entry.channel_id, gpadl_id, done.is_some(), effects);
        done.ok_or(refused)
    }

    fn complete_gpadl(&mut self, gpadl_id: u32, entry: &InProgress) -> Option<()> {
        let ranges = parse_ranges(&entry.data, entry.count).ok()?;
        let channel = self.channels.get_mut(entry.offer)?;
        // One on a revoked channel is taken too, or the guest would wait.
        let gpadl = Gpadl {
            ranges: ranges.into(),
            bytes: entry.bytes,
            tearing_down: false,
            released: false,
        };
        channel.gpadls.insert(gpadl_id, gpadl);
        Some(())
    }

    fn send_created(
        &mut self,
        channel_id: u32,
        gpadl_id: u32,
        created: bool,
        effects: &mut Vec<Effect>,
    ) {
        let status = if created {
            ntstatus::SUCCESS
        } else {
            ntstatus::UNSUCCESSFUL
        };
        self.send(
            &GpadlCreated {
                channel_id,
                gpadl_id,
                status,
            },
            effects,
        );
    }

    pub(super) fn gpadl_teardown(
        &mut self,
        message: &GpadlTeardown,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let &GpadlTeardown {
            channel_id,
            gpadl_id,
        } = message;
        let offer = self.guest_channel(channel_id).ok();
        let gpadl = offer
            .and_then(|offer| self.channels.get_mut(offer))
            .and_then(|channel| channel.gpadls.get_mut(&gpadl_id));
        if let (Some(offer), Some(gpadl)) = (offer, gpadl) {
            if gpadl.tearing_down {
                return Err(Violation::Gpadl(gpadl_id));
            }
            gpadl.tearing_down = true;
            effects.push(Effect::ReleaseGpadl { offer, gpadl_id });
            return Ok(());
        }
        // Incomplete or unknown: nothing is mapped, and the guest waits.
        self.drop_in_progress_of(gpadl_id, offer);
        self.send(&GpadlTorndown { gpadl_id }, effects);
        Err(Violation::Gpadl(gpadl_id))
    }

    pub(super) fn gpadl_released(
        &mut self,
        offer: OfferId,
        gpadl_id: u32,
        effects: &mut Vec<Effect>,
    ) {
        let channel = self.channels.get_mut(offer);
        let gpadl = channel.and_then(|channel| channel.gpadls.get_mut(&gpadl_id));
        if let Some(gpadl) = gpadl.filter(|gpadl| gpadl.tearing_down) {
            gpadl.released = true;
            self.send_torndown(offer, effects);
        }
    }

    /// Tells the guest of GPADLs that nobody uses any more.
    pub(super) fn send_torndown(&mut self, offer: OfferId, effects: &mut Vec<Effect>) {
        let Some(channel) = self.channels.get_mut(offer) else {
            return;
        };
        let ring = channel.state.ring();
        let done =
            |id: &u32, gpadl: &Gpadl| gpadl.tearing_down && gpadl.released && ring != Some(*id);
        let gone: Vec<u32> = channel
            .gpadls
            .iter()
            .filter(|(id, gpadl)| done(id, gpadl))
            .map(|(id, _)| *id)
            .collect();
        for gpadl_id in gone {
            let removed = self
                .channels
                .get_mut(offer)
                .and_then(|c| c.gpadls.remove(&gpadl_id));
            self.gpadl_bytes -= removed.map_or(0, |gpadl| gpadl.bytes);
            self.send(&GpadlTorndown { gpadl_id }, effects);
        }
    }

    /// Forgets all GPADLs of a channel whose guest side is gone.
    pub(super) fn drop_gpadls(&mut self, offer: OfferId) {
        let Some(channel) = self.channels.get_mut(offer) else {
            return;
        };
        debug_assert!(
            matches!(channel.state, State::Closed),
            "its rings are still in use"
        );
        let gpadls = std::mem::take(&mut channel.gpadls);
        self.gpadl_bytes -= gpadls.values().map(|gpadl| gpadl.bytes).sum::<usize>();
    }

    /// Forgets incomplete GPADLs.
    pub(super) fn drop_in_progress(&mut self, gone: impl Fn(&InProgress) -> bool) {
        let bytes = &mut self.gpadl_bytes;
        self.in_progress.retain(|_, entry| {
            let drop = gone(entry);
            if drop {
                *bytes -= entry.bytes;
            }
            !drop
        });
    }

    fn drop_in_progress_of(&mut self, gpadl_id: u32, offer: Option<OfferId>) {
        let Some(entry) = self.in_progress.get(&gpadl_id) else {
            return;
        };
        if Some(entry.offer) == offer {
            self.gpadl_bytes -= entry.bytes;
            self.in_progress.remove(&gpadl_id);
        }
    }
}
