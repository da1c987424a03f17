//! A guest without a virtual machine: memory on the heap, a SINT as a queue.

use super::ClientTransport;
use crate::bus::{Bus, BusHandle, BusHost, PortError, Posted};
use crate::protocol::PAGE_SIZE;
use crate::ring::{GuestPages, HeapPages, PagesError};
use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use vid::RootNotification;

/// Messages that wait at a SINT.
const MESSAGE_BUFFERS: usize = 16;

#[derive(Default)]
struct Synic {
    messages: VecDeque<Vec<u8>>,
    flags: BTreeSet<u16>,
    /// Connections that the guest has.
    ports: BTreeSet<u32>,
    signals: u64,
    last_target: Option<u32>,
}

/// The host's and the guest's view of the same pretended partition.
pub struct Loopback {
    memory: Arc<HeapPages>,
    processors: u32,
    synic: Mutex<Synic>,
    arrived: Condvar,
    bus: OnceLock<BusHandle>,
}

impl Loopback {
    /// A partition with `pages` pages from address 0 on.
    pub fn new(processors: u32, pages: usize) -> Arc<Self> {
        Arc::new(Self {
            memory: Arc::new(HeapPages::new(pages)),
            processors,
            synic: Mutex::default(),
            arrived: Condvar::new(),
            bus: OnceLock::new(),
        })
    }

    /// Brings the guest's hypercalls to a bus; the first call counts.
    pub fn attach(&self, bus: &Bus) {
        // A partition has one bus.
        let _ = self.bus.set(bus.handle());
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<HeapPages> {
        &self.memory
    }

    /// The connections that the guest has now.
    pub fn ports(&self) -> Vec<u32> {
        self.synic().ports.iter().copied().collect()
    }

    /// How many signals the host has sent.
    pub fn signals(&self) -> u64 {
        self.synic().signals
    }

    /// The virtual processor that the last signal went to.
    pub fn last_target(&self) -> Option<u32> {
        self.synic().last_target
    }

    fn synic(&self) -> MutexGuard<'_, Synic> {
        self.synic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, notification: RootNotification) -> bool {
        self.bus
            .get()
            .is_none_or(|bus| bus.notify(notification).is_ok())
    }

    /// Waits until `take` finds something.
    fn wait<T>(
        &self,
        timeout: Duration,
        mut take: impl FnMut(&mut Synic) -> Option<T>,
    ) -> Option<T> {
        let synic = self.synic();
        let mut found = None;
        let waited = self.arrived.wait_timeout_while(synic, timeout, |synic| {
            found = take(synic);
            found.is_none()
        });
        drop(waited);
        found
    }

    fn open(&self, connection_id: u32) -> Result<(), PortError> {
        if self.synic().ports.insert(connection_id) {
            Ok(())
        } else {
            Err(PortError {
                connection_id,
                source: "it exists".into(),
            })
        }
    }

    fn map(&self, pfns: &[u64]) -> Result<Arc<dyn GuestPages>, PagesError> {
        let pages = self.memory.len() as u64 / PAGE_SIZE;
        if pfns.iter().any(|&pfn| pfn >= pages) {
            return Err(PagesError);
        }
        Ok(Arc::new(Mapped {
            memory: self.memory.clone(),
            pfns: pfns.to_vec(),
        }))
    }
}

impl BusHost for Loopback {
    fn processors(&self) -> u32 {
        self.processors
    }

    fn post_message(&self, _vp: u32, _sint: u8, message: &[u8]) -> Posted {
        let mut synic = self.synic();
        if synic.messages.len() >= MESSAGE_BUFFERS {
            return Posted::Busy;
        }
        synic.messages.push_back(message.to_vec());
        self.arrived.notify_all();
        Posted::Sent
    }

    fn signal_event(&self, vp: u32, _sint: u8, flag: u16) {
        let mut synic = self.synic();
        synic.signals += 1;
        synic.last_target = Some(vp);
        if synic.flags.insert(flag) {
            self.arrived.notify_all();
        }
    }

    fn open_message_port(&self, connection_id: u32) -> Result<(), PortError> {
        self.open(connection_id)
    }

    fn close_message_port(&self, connection_id: u32) {
        self.synic().ports.remove(&connection_id);
    }

    fn open_event_port(&self, connection_id: u32) -> Result<(), PortError> {
        self.open(connection_id)
    }

    fn close_event_port(&self, connection_id: u32) {
        self.synic().ports.remove(&connection_id);
    }

    fn map_pages(&self, pfns: &[u64]) -> Result<Arc<dyn GuestPages>, PagesError> {
        self.map(pfns)
    }
}

impl ClientTransport for Loopback {
    fn post(&self, connection_id: u32, message: &[u8]) -> bool {
        let payload = message.to_vec();
        self.notify(RootNotification::Message {
            port: connection_id,
            message_type: 1,
            payload,
        })
    }

    fn receive(&self, timeout: Duration) -> Option<Vec<u8>> {
        self.wait(timeout, |synic| synic.messages.pop_front())
    }

    fn signal(&self, connection_id: u32) {
        self.notify(RootNotification::Event {
            port: connection_id,
            flag: 0,
        });
    }

    fn wait_event(&self, flag: u16, timeout: Duration) -> bool {
        self.wait(timeout, |synic| synic.flags.remove(&flag).then_some(()))
            .is_some()
    }

    fn pages(&self, pfns: &[u64]) -> Arc<dyn GuestPages> {
        // A guest that names pages it does not have gets none.
        self.map(pfns)
            .unwrap_or_else(|_| Arc::new(HeapPages::new(0)))
    }
}

/// Pages of the heap in the order of a list.
struct Mapped {
    memory: Arc<HeapPages>,
    pfns: Vec<u64>,
}

impl Mapped {
    fn at(&self, offset: usize) -> Result<usize, PagesError> {
        let page = self
            .pfns
            .get(offset / PAGE_SIZE as usize)
            .ok_or(PagesError)?;
        Ok((page * PAGE_SIZE) as usize + offset % PAGE_SIZE as usize)
    }

    fn pieces(
        &self,
        offset: usize,
        length: usize,
        mut each: impl FnMut(usize, std::ops::Range<usize>) -> Result<(), PagesError>,
    ) -> Result<(), PagesError> {
        let mut done = 0;
        while done < length {
            let room = PAGE_SIZE as usize - (offset + done) % PAGE_SIZE as usize;
            let here = room.min(length - done);
            each(self.at(offset + done)?, done..done + here)?;
            done += here;
        }
        Ok(())
    }
}

impl GuestPages for Mapped {
    fn len(&self) -> usize {
        self.pfns.len() * PAGE_SIZE as usize
    }

    fn read(&self, offset: usize, data: &mut [u8]) -> Result<(), PagesError> {
        self.pieces(offset, data.len(), |at, piece| {
            self.memory.read(at, &mut data[piece])
        })
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), PagesError> {
        self.pieces(offset, data.len(), |at, piece| {
            self.memory.write(at, &data[piece])
        })
    }

    fn load_u32(&self, offset: usize) -> Result<u32, PagesError> {
        self.memory.load_u32(self.at(offset)?)
    }

    fn store_u32(&self, offset: usize, value: u32) -> Result<(), PagesError> {
        self.memory.store_u32(self.at(offset)?, value)
    }
}
