//! What goes to the guest, from all threads of a channel. Nobody waits for
//! room in the ring but the channel's own thread, so that a guest which reads
//! nothing holds up nothing else.

use super::doorbell::Doorbell;
use super::protocol::{PACKET_SIZE, Packet, operation};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vmbus::bus::{ChannelError, ChannelWriter};
use vmbus::ring::PacketOut;
use zerocopy::IntoBytes;

/// Requests of a channel that are being carried out. A guest that has more
/// of them waits with the rest in its ring.
pub(super) const MAX_OUTSTANDING: usize = 1024;
/// Pages that those requests list, before no further ones are taken: a
/// packet may list 65,000 of them, and each is remembered.
pub(super) const MAX_PAGES: usize = 1 << 16;

/// How much a channel has to do.
pub(super) struct Load {
    outstanding: AtomicUsize,
    pages: AtomicUsize,
    doorbell: Arc<Doorbell>,
}

impl Load {
    pub(super) fn new(doorbell: Arc<Doorbell>) -> Arc<Self> {
        Arc::new(Self {
            outstanding: AtomicUsize::new(0),
            pages: AtomicUsize::new(0),
            doorbell,
        })
    }

    /// There may be another request.
    pub(super) fn has_room(&self) -> bool {
        self.outstanding() < MAX_OUTSTANDING && self.pages.load(Ordering::Acquire) < MAX_PAGES
    }

    /// Requests that were begun and not answered.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Counts a request with a list of so many pages.
    pub(super) fn begin(self: &Arc<Self>, pages: usize) -> Counted {
        self.outstanding.fetch_add(1, Ordering::AcqRel);
        self.pages.fetch_add(pages, Ordering::AcqRel);
        Counted {
            load: self.clone(),
            pages,
        }
    }
}

/// A request that is counted as long as this exists.
pub(super) struct Counted {
    load: Arc<Load>,
    pages: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let requests = self.load.outstanding.fetch_sub(1, Ordering::AcqRel);
        let pages = self.load.pages.fetch_sub(self.pages, Ordering::AcqRel);
        if requests >= MAX_OUTSTANDING || pages >= MAX_PAGES {
            self.load.doorbell.ring();
        }
    }
}

/// A packet for the guest.
pub(super) struct Message {
    /// The transaction that it completes.
    transaction_id: Option<u64>,
    packet: Packet,
    size: usize,
    _counted: Option<Counted>,
}

impl Message {
    /// A completion of `size` bytes, which ends `counted`.
    pub(super) fn completion(
        transaction_id: u64,
        packet: Packet,
        size: usize,
        counted: Option<Counted>,
    ) -> Self {
        Self {
            transaction_id: Some(transaction_id),
            packet,
            size: size.min(PACKET_SIZE),
            _counted: counted,
        }
    }

    fn enumerate() -> Self {
        Self {
            transaction_id: None,
            packet: Packet::new(operation::ENUMERATE_BUS),
            size: PACKET_SIZE,
            _counted: None,
        }
    }

    fn with_packet<T>(&self, call: impl FnOnce(&PacketOut<'_>) -> T) -> T {
        let data = [&self.packet.as_bytes()[..self.size]];
        call(&match self.transaction_id {
            Some(id) => PacketOut::completion(id, &data),
            None => PacketOut::in_band(0, &data),
        })
    }
}

struct Inner {
    writer: ChannelWriter,
    /// What the ring had no room for, in order.
    backlog: VecDeque<Message>,
    /// ENUMERATE_BUS is in the backlog.
    enumerating: bool,
    /// The guest was asked to tell when there is room.
    waiting: bool,
}

impl Inner {
    fn stage(&mut self, message: Message) -> Result<(), ChannelError> {
        let room = self.backlog.is_empty();
        if !(room && message.with_packet(|packet| self.writer.stage(packet))?) {
            self.backlog.push_back(message);
        }
        Ok(())
    }

    /// Stages what waits; whether there is room for all of it.
    fn stage_backlog(&mut self) -> Result<bool, ChannelError> {
        while let Some(message) = self.backlog.front() {
            let staged = message.with_packet(|packet| self.writer.stage(packet))?;
            if !staged {
                self.writer.flush()?;
                let size = message.with_packet(|packet| packet.ring_size());
                self.waiting = true;
                if self.writer.request_room(size)? {
                    return Ok(false);
                }
                continue;
            }
            let message = self.backlog.pop_front();
            if message.is_some_and(|message| message.transaction_id.is_none()) {
                self.enumerating = false;
            }
        }
        if std::mem::take(&mut self.waiting) {
            self.writer.stop_waiting()?;
        }
        Ok(true)
    }
}

/// The channel's side to the guest.
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    doorbell: Arc<Doorbell>,
}

impl Outbox {
    pub(super) fn new(writer: ChannelWriter, doorbell: Arc<Doorbell>) -> Self {
        let inner = Inner {
            writer,
            backlog: VecDeque::new(),
            enumerating: false,
            waiting: false,
        };
        Self {
            inner: Mutex::new(inner),
            doorbell,
        }
    }

    /// Adds a message to those that the channel's thread is about to send
    /// with [`Outbox::flush`].
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub(super) fn stage(&self, message: Message) -> Result<(), ChannelError> {
        self.inner.lock().stage(message)
    }

    /// Sends what was staged, as far as there is room. False when some has to
    /// wait for room.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub(super) fn flush(&self) -> Result<bool, ChannelError> {
        let mut inner = self.inner.lock();
        let all = inner.stage_backlog()?;
        inner.writer.flush()?;
        Ok(all)
    }

    /// Sends a message, from any thread.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub(super) fn send(&self, message: Message) -> Result<(), ChannelError> {
        let mut inner = self.inner.lock();
        inner.stage(message)?;
        self.publish(&mut inner)
    }

    fn publish(&self, inner: &mut Inner) -> Result<(), ChannelError> {
        inner.writer.flush()?;
        if !inner.backlog.is_empty() {
            self.doorbell.ring();
        }
        Ok(())
    }

    /// Tells the guest that units have come or gone. Not a second time while
    /// the first waits for room.
    ///
    /// # Errors
    ///
    /// [`ChannelError`]: the channel cannot go on.
    pub(super) fn enumerate(&self) -> Result<(), ChannelError> {
        let mut inner = self.inner.lock();
        if inner.enumerating {
            return Ok(());
        }
        inner.stage(Message::enumerate())?;
        inner.enumerating = !inner.backlog.is_empty();
        self.publish(&mut inner)
    }

    /// Messages wait for room.
    pub(super) fn is_blocked(&self) -> bool {
        !self.inner.lock().backlog.is_empty()
    }

    /// Forgets what waits: the channel is closed.
    pub(super) fn clear(&self) {
        self.inner.lock().backlog.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_the_pages_they_list_are_bounded() {
        let load = Load::new(Arc::new(Doorbell::new().unwrap()));
        let long = load.begin(MAX_PAGES);
        assert!(!load.has_room());
        drop(long);
        let mut many: Vec<_> = (0..MAX_OUTSTANDING).map(|_| load.begin(1)).collect();
        assert!(!load.has_room());
        many.pop();
        assert!(load.has_room());
        drop(many);
        assert_eq!(load.outstanding(), 0);
    }
}
