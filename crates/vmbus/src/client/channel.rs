//! An open channel in the guest.

use super::{ClientError, ClientTransport};
use crate::protocol::{OfferChannel, PAGE_SIZE, RingFeatures};
use crate::ring::{Batch, Incoming, Outgoing, PacketOut, RingMemory};
use std::sync::Arc;
use std::time::Duration;

/// The guest's end of a channel.
pub struct ClientChannel {
    transport: Arc<dyn ClientTransport>,
    channel_id: u32,
    connection_id: u32,
    gpadl_id: u32,
    incoming: Incoming,
    outgoing: Outgoing,
}

/// How long the host may take.
const PATIENCE: Duration = Duration::from_secs(20);

impl ClientChannel {
    pub(super) fn new(
        transport: Arc<dyn ClientTransport>,
        offer: &OfferChannel,
        gpadl_id: u32,
        pfns: &[u64],
        border: usize,
    ) -> Result<Self, ClientError> {
        let pages = transport.pages(pfns);
        let (border, end) = (border * PAGE_SIZE as usize, pages.len());
        let upstream = RingMemory::new(pages.clone(), 0, border)?;
        let downstream = RingMemory::new(pages, border, end)?;
        upstream.initialize(RingFeatures::PENDING_SEND_SIZE)?;
        downstream.initialize(RingFeatures::PENDING_SEND_SIZE)?;
        Ok(Self {
            transport,
            channel_id: offer.channel_id,
            connection_id: offer.connection_id,
            gpadl_id,
            incoming: Incoming::new(downstream)?,
            outgoing: Outgoing::new(upstream)?,
        })
    }

    /// The channel.
    pub fn channel_id(&self) -> u32 {
        self.channel_id
    }

    /// The GPADL of its rings.
    pub fn gpadl_id(&self) -> u32 {
        self.gpadl_id
    }

    /// The rings themselves: from the host, and to it.
    pub fn rings(&mut self) -> (&mut Incoming, &mut Outgoing) {
        (&mut self.incoming, &mut self.outgoing)
    }

    /// Signals the host.
    pub fn signal(&self) {
        self.transport.signal(self.connection_id);
    }

    /// Sends a packet if there is room.
    ///
    /// # Errors
    ///
    /// [`ClientError::Ring`].
    pub fn try_send(&mut self, packet: &PacketOut<'_>) -> Result<bool, ClientError> {
        let written = self.outgoing.write(packet)?;
        if written == Some(true) {
            self.signal();
        }
        Ok(written.is_some())
    }

    /// Sends a packet, waiting for room.
    ///
    /// # Errors
    ///
    /// [`ClientError::Ring`], or [`ClientError::Rescinded`] when the host
    /// makes no room.
    pub fn send(&mut self, packet: &PacketOut<'_>) -> Result<(), ClientError> {
        while !self.try_send(packet)? {
            if self.outgoing.wait_for_room(packet.ring_size())? {
                self.wait()?;
            }
        }
        Ok(self.outgoing.stop_waiting()?)
    }

    /// Takes packets, waiting for some.
    ///
    /// # Errors
    ///
    /// [`ClientError::Ring`], or [`ClientError::Rescinded`] when none comes.
    pub fn read(&mut self, batch: &mut Batch) -> Result<(), ClientError> {
        loop {
            self.try_read(batch)?;
            if !batch.is_empty() {
                return Ok(());
            }
            if self.incoming.unmask()? {
                self.wait()?;
            }
        }
    }

    /// Takes the packets that are there.
    ///
    /// # Errors
    ///
    /// [`ClientError::Ring`].
    pub fn try_read(&mut self, batch: &mut Batch) -> Result<(), ClientError> {
        if self.incoming.read(batch)? {
            self.signal();
        }
        Ok(())
    }

    /// Waits for the host's signal.
    ///
    /// # Errors
    ///
    /// [`ClientError::Rescinded`] when none comes.
    pub fn wait(&self) -> Result<(), ClientError> {
        let signaled = self.transport.wait_event(self.channel_id as u16, PATIENCE);
        if signaled {
            Ok(())
        } else {
            Err(ClientError::Rescinded(self.channel_id))
        }
    }
}
