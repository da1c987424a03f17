//! An open channel in the hands of its device.

use super::link::{Link, Wake, Waker};
use super::{BusHandle, Gpadl};
use crate::ring::{Batch, Incoming, Outgoing, PacketOut, RingError};
use crate::server::OfferId;
use std::sync::Arc;
use std::time::Duration;

/// How often a full ring is looked at whose reader does not signal room.
const ROOM_POLL: Duration = Duration::from_millis(10);

/// A channel cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// It is being closed.
    #[error("the channel is closed")]
    Closed,
    /// The guest broke its ring.
    #[error("broken ring: {0}")]
    Ring(#[from] RingError),
    /// There is no such GPADL, or its pages are not RAM.
    #[error("GPADL {0:#x} cannot be mapped")]
    Gpadl(u32),
}

/// What the guest said when it opened the channel.
#[derive(Clone, Debug)]
pub struct ChannelInfo {
    /// The channel.
    pub offer: OfferId,
    /// Its id for the guest.
    pub channel_id: u16,
    /// The guest's bytes for the device.
    pub user_data: [u8; 120],
    /// Opened beyond the connection, for a crash dump say.
    pub reserved: bool,
}

/// A channel that a guest has opened. A device that uses more than one thread
/// takes the two sides apart.
pub struct OpenChannel {
    /// From the guest.
    pub reader: ChannelReader,
    /// To the guest.
    pub writer: ChannelWriter,
    /// What was said at opening.
    pub info: ChannelInfo,
    /// The bus, for GPADLs and further offers.
    pub bus: BusHandle,
}

impl OpenChannel {
    pub(super) fn new(
        incoming: Incoming,
        outgoing: Outgoing,
        link: &Arc<Link>,
        info: ChannelInfo,
        bus: BusHandle,
    ) -> Self {
        let reader = ChannelReader {
            incoming,
            link: link.clone(),
            seen: 0,
        };
        let writer = ChannelWriter {
            outgoing,
            link: link.clone(),
            seen: 0,
        };
        Self {
            reader,
            writer,
            info,
            bus,
        }
    }

    /// Maps a GPADL of the channel. The mapping must be given up when the
    /// guest takes the GPADL back, and when the channel closes.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Gpadl`] where there is none, or it is not all RAM.
    pub fn gpadl(&self, gpadl_id: u32) -> Result<Gpadl, ChannelError> {
        self.bus.gpadl(self.info.offer, gpadl_id)
    }
}

/// The channel's side from the guest.
pub struct ChannelReader {
    incoming: Incoming,
    link: Arc<Link>,
    seen: u64,
}

impl ChannelReader {
    /// Takes the packets that are there, possibly none.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn try_read(&mut self, batch: &mut Batch) -> Result<(), ChannelError> {
        if self.link.is_closing() {
            return Err(ChannelError::Closed);
        }
        if self.incoming.read(batch)? {
            self.link.signal_guest();
        }
        Ok(())
    }

    /// Takes packets, waiting until there are some.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn read(&mut self, batch: &mut Batch) -> Result<(), ChannelError> {
        loop {
            self.incoming.mask()?;
            self.try_read(batch)?;
            if !batch.is_empty() {
                return Ok(());
            }
            if self.prepare_wait()? && self.wait(None) == Wake::Closed {
                return Err(ChannelError::Closed);
            }
        }
    }

    /// Asks the guest not to signal, for a device that is going to look again
    /// anyway.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn mask(&mut self) -> Result<(), ChannelError> {
        Ok(self.incoming.mask()?)
    }

    /// To be called before a wait for packets. False when some are there:
    /// do not wait.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn prepare_wait(&mut self) -> Result<bool, ChannelError> {
        Ok(self.incoming.unmask()?)
    }

    /// Waits for a signal that came after the last wait.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Wake {
        self.link.wait(&mut self.seen, timeout)
    }

    /// Has `waker` called at each signal and at closing: for a device that
    /// waits for more than its channel.
    pub fn set_waker(&self, waker: Option<Waker>) {
        self.link.set_waker(waker);
    }

    /// The channel is being closed: the device must let go of it.
    pub fn is_closing(&self) -> bool {
        self.link.is_closing()
    }
}

/// The channel's side to the guest.
pub struct ChannelWriter {
    outgoing: Outgoing,
    link: Arc<Link>,
    seen: u64,
}

impl ChannelWriter {
    /// Adds a packet to those that [`ChannelWriter::flush`] sends. False when
    /// there is no room now.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn stage(&mut self, packet: &PacketOut<'_>) -> Result<bool, ChannelError> {
        if self.link.is_closing() {
            return Err(ChannelError::Closed);
        }
        Ok(self.outgoing.stage(packet)?)
    }

    /// Sends what was staged.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        if self.link.is_closing() {
            return Err(ChannelError::Closed);
        }
        if self.outgoing.publish()? {
            self.link.signal_guest();
        }
        Ok(())
    }

    /// Sends a packet if there is room; false when there is none now.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn try_send(&mut self, packet: &PacketOut<'_>) -> Result<bool, ChannelError> {
        let staged = self.stage(packet)?;
        self.flush()?;
        Ok(staged)
    }

    /// Sends a packet, waiting for room.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn send(&mut self, packet: &PacketOut<'_>) -> Result<(), ChannelError> {
        while !self.try_send(packet)? {
            self.wait_for_room(packet.ring_size(), None)?;
        }
        Ok(self.outgoing.stop_waiting()?)
    }

    /// Asks the guest to signal when `bytes` (of [`PacketOut::ring_size`])
    /// fit. False when they fit already.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn request_room(&mut self, bytes: usize) -> Result<bool, ChannelError> {
        Ok(self.outgoing.wait_for_room(bytes)?)
    }

    /// Takes [`ChannelWriter::request_room`] back.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn stop_waiting(&mut self) -> Result<(), ChannelError> {
        Ok(self.outgoing.stop_waiting()?)
    }

    /// Waits until `bytes` may fit, or the time is over.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub fn wait_for_room(
        &mut self,
        bytes: usize,
        timeout: Option<Duration>,
    ) -> Result<(), ChannelError> {
        if !self.outgoing.wait_for_room(bytes)? {
            return Ok(());
        }
        let polled = (!self.outgoing.reader_signals_room()?).then_some(ROOM_POLL);
        let timeout = [timeout, polled].into_iter().flatten().min();
        match self.link.wait(&mut self.seen, timeout) {
            Wake::Closed => Err(ChannelError::Closed),
            Wake::Signaled | Wake::TimedOut => Ok(()),
        }
    }
}
