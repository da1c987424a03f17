//! A guest on a bus that opens a component's channel.

use super::{agree, answer};
use crate::ic::wire::{IcStatus, IcVersion, TYPE_NEGOTIATE};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use vmbus::bus::{Bus, BusConfig, Vsp};
use vmbus::client::{Client, ClientChannel, Loopback};
use vmbus::protocol::{OfferChannel, PAGE_SIZE, Version};
use vmbus::ring::{Batch, GuestPages, PacketOut, pipe_data, pipe_header};
use zerocopy::IntoBytes;

pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Pages of the guest's rings: 16 KiB and a control page for each direction.
const RING_PAGES: u64 = 10;

/// A guest with one component.
pub(super) struct Guest {
    // Before the bus: the channel needs its partition only.
    client: Client,
    offer: OfferChannel,
    next_page: u64,
    partition: Arc<Loopback>,
    _bus: Bus,
}

impl Guest {
    pub(super) fn new(device: Box<dyn Vsp>) -> Self {
        let partition = Loopback::new(1, 256);
        let bus = Bus::start(partition.clone(), BusConfig::default()).unwrap();
        partition.attach(&bus);
        bus.offer(device).unwrap();
        let mut client = Client::new(partition.clone());
        client.connect(&[Version::WIN10_RS5]).unwrap();
        let offers = client.request_offers().unwrap();
        Self {
            client,
            offer: offers[0],
            next_page: 16,
            partition,
            _bus: bus,
        }
    }

    pub(super) fn open(&mut self) -> ClientChannel {
        let pages: Vec<u64> = (self.next_page..self.next_page + RING_PAGES).collect();
        self.next_page += RING_PAGES;
        self.client.open(&self.offer, &pages).unwrap()
    }

    /// Writes nonsense over the index of the ring to the host of the channel
    /// that was opened last.
    pub(super) fn corrupt(&self, channel: &ClientChannel) {
        let control = (self.next_page - RING_PAGES) * PAGE_SIZE;
        self.partition
            .memory()
            .store_u32(control as usize, 0xdead_beef)
            .unwrap();
        channel.signal();
    }

    pub(super) fn close(&mut self, channel: ClientChannel) {
        self.client.close(channel).unwrap();
    }

    /// Opens the channel and has `service` answer on a thread.
    pub(super) fn serve(
        &mut self,
        version: IcVersion,
        service: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Running {
        let channel = self.open();
        Running::start(channel, version, service)
    }
}

/// The next message of the host, without the pipe's header.
pub(super) fn receive(channel: &mut ClientChannel) -> Vec<Vec<u8>> {
    let mut batch = Batch::new();
    channel.read(&mut batch).unwrap();
    let message = |data| pipe_data(data).unwrap().0.to_vec();
    batch.packets().map(|packet| message(packet.data)).collect()
}

/// Sends a message to the host, with the daemon's odd transaction id.
pub(super) fn send(channel: &mut ClientChannel, bytes: &[u8]) {
    let header = pipe_header(bytes.len() as u32);
    let packet = [header.as_bytes(), bytes];
    channel
        .send(&PacketOut::in_band(u64::MAX, &packet))
        .unwrap();
}

/// A guest's component at work.
pub(super) struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<ClientChannel>,
}

impl Running {
    fn start(
        mut channel: ClientChannel,
        version: IcVersion,
        mut service: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut batch = Batch::new();
            while !stopped.load(Ordering::Relaxed) {
                channel.try_read(&mut batch).unwrap();
                if batch.is_empty() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                for packet in batch.packets() {
                    let request = pipe_data(packet.data).unwrap().0;
                    let reply = if u16::from(request[4]) == TYPE_NEGOTIATE {
                        Some(agree(request, IcVersion::new(3, 0), version))
                    } else {
                        service(request)
                    };
                    if let Some(reply) = reply {
                        send(&mut channel, &reply);
                    }
                }
            }
            channel
        });
        Self { stop, thread }
    }

    pub(super) fn stop(self) -> ClientChannel {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Answers with a status alone.
pub(super) fn say(status: IcStatus) -> impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static {
    move |request| Some(answer(request, status))
}
