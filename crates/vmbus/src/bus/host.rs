//! What the bus needs from its partition.

use crate::protocol::{VMBUS_SINT, channel_connection_id};
use crate::ring::{GuestPages, PagesError};
use std::sync::Arc;
use tlfs::{HvMessage, HvMessageType, HvPortInfo, HvStatus};
use vid::{HvError, Partition};

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Posted {
    /// It will arrive.
    Sent,
    /// Too many wait: try again.
    Busy,
    /// It cannot arrive: the guest has turned its SynIC off, say.
    Dropped,
}

/// A port could not be made.
#[derive(Debug, thiserror::Error)]
#[error("port {connection_id:#x}: {source}")]
pub struct PortError {
    /// The connection that the guest would have had.
    pub connection_id: u32,
    /// Why.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// A partition as the bus sees it.
pub trait BusHost: Send + Sync {
    /// Virtual processors: indexes below this exist.
    fn processors(&self) -> u32;

    /// Posts a control message to a SINT.
    fn post_message(&self, vp: u32, sint: u8, message: &[u8]) -> Posted;

    /// Sets an event flag of a SINT. A guest that has masked it gets nothing.
    fn signal_event(&self, vp: u32, sint: u8, flag: u16);

    /// Gives the guest a connection to post messages by. What comes arrives
    /// as a notification for a port of the same number.
    ///
    /// # Errors
    ///
    /// [`PortError`]: the number is taken, say.
    fn open_message_port(&self, connection_id: u32) -> Result<(), PortError>;

    /// Undoes [`BusHost::open_message_port`].
    fn close_message_port(&self, connection_id: u32);

    /// Gives the guest a connection to signal by. What comes arrives as a
    /// notification for a port of the same number.
    ///
    /// # Errors
    ///
    /// [`PortError`]: the number is taken, say.
    fn open_event_port(&self, connection_id: u32) -> Result<(), PortError>;

    /// Undoes [`BusHost::open_event_port`].
    fn close_event_port(&self, connection_id: u32);

    /// Guest pages as a range of bytes.
    ///
    /// # Errors
    ///
    /// [`PagesError`] where one is not RAM.
    fn map_pages(&self, pfns: &[u64]) -> Result<Arc<dyn GuestPages>, PagesError>;
}

/// A partition of `vid`.
pub struct PartitionHost {
    partition: Arc<Partition>,
    processors: u32,
}

impl PartitionHost {
    /// The partition, which has `processors` virtual processors.
    pub fn new(partition: Arc<Partition>, processors: u32) -> Self {
        Self {
            partition,
            processors,
        }
    }

    fn open(&self, connection_id: u32, info: HvPortInfo) -> Result<(), PortError> {
        self.partition
            .open_root_port(connection_id, connection_id, info)
            .map_err(|source| PortError {
                connection_id,
                source: source.into(),
            })
    }

    fn close(&self, connection_id: u32) {
        // Refused only where it is gone already.
        let _ = self.partition.close_root_port(connection_id, connection_id);
    }
}

impl BusHost for PartitionHost {
    fn processors(&self) -> u32 {
        self.processors
    }

    fn post_message(&self, vp: u32, sint: u8, message: &[u8]) -> Posted {
        let message = HvMessage::new(HvMessageType::VMBUS, 0, message);
        match self.partition.post_message(vp, sint, &message) {
            Ok(()) => Posted::Sent,
            Err(HvError {
                status: HvStatus::INSUFFICIENT_BUFFERS,
                ..
            }) => Posted::Busy,
            Err(error) => {
                tracing::debug!("no message to virtual processor {vp}: {error}");
                Posted::Dropped
            }
        }
    }

    fn signal_event(&self, vp: u32, sint: u8, flag: u16) {
        // A SINT that is masked takes no events, and its guest wants none.
        let _ = self.partition.signal_event(vp, sint, flag);
    }

    fn open_message_port(&self, connection_id: u32) -> Result<(), PortError> {
        self.open(connection_id, HvPortInfo::message(VMBUS_SINT.into(), 0))
    }

    fn close_message_port(&self, connection_id: u32) {
        self.close(connection_id);
    }

    fn open_event_port(&self, connection_id: u32) -> Result<(), PortError> {
        // The guest signals flag 0 of the connection, which is the channel's.
        let flag = connection_id as u16 & (crate::protocol::MAX_CHANNELS - 1);
        debug_assert_eq!(channel_connection_id(flag, VMBUS_SINT), connection_id);
        self.open(
            connection_id,
            HvPortInfo::event(VMBUS_SINT.into(), 0, flag, 1),
        )
    }

    fn close_event_port(&self, connection_id: u32) {
        self.close(connection_id);
    }

    fn map_pages(&self, pfns: &[u64]) -> Result<Arc<dyn GuestPages>, PagesError> {
        let pages = vid::GuestPages::new(&self.partition, pfns).map_err(|_| PagesError)?;
        Ok(Arc::new(pages))
    }
}
