//! A bus over a pretended partition, and devices for it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file is a crate and uses its part"
)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use vmbus::bus::{Bus, BusConfig, ChannelError, OpenChannel, Vsp};
use vmbus::client::{Client, Loopback};
use vmbus::protocol::{Guid, OfferChannel, PacketType, Version};
use vmbus::ring::{Batch, PacketOut};
use vmbus::server::OfferParams;

pub const INTERFACE: Guid = Guid::from_u128(0xba6163d9_04a1_4d29_b605_72e2ffb1dc7f);

/// Versions in a new guest's order.
pub const LINUX: [Version; 8] = [
    Version::IRON,
    Version::WIN10_RS5,
    Version::WIN10_RS4,
    Version::WIN10_RS3_1,
    Version::WIN10_RS3,
    Version::WIN10,
    Version::WIN8_1,
    Version::WIN8,
];

/// What a device tells its test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Opened(u16),
    Ended(ChannelError),
    Closed,
    Dropped,
}

/// Answers each packet with its own data.
pub struct Echo {
    params: OfferParams,
    thread: Option<JoinHandle<()>>,
    events: Arc<Mutex<Sender<Event>>>,
}

impl Echo {
    pub fn new(instance: u128) -> (Box<Self>, Receiver<Event>) {
        Self::with_params(OfferParams::new(INTERFACE, Guid::from_u128(instance)))
    }

    pub fn with_params(params: OfferParams) -> (Box<Self>, Receiver<Event>) {
        let (sender, events) = channel();
        let events_of = Arc::new(Mutex::new(sender));
        (
            Box::new(Self {
                params,
                thread: None,
                events: events_of,
            }),
            events,
        )
    }

    fn tell(&self, event: Event) {
        let _ = self.events.lock().unwrap().send(event);
    }
}

fn echo(mut channel: OpenChannel) -> ChannelError {
    let mut batch = Batch::new();
    loop {
        if let Err(error) = channel.reader.read(&mut batch) {
            return error;
        }
        for packet in batch.packets() {
            let data = [packet.data];
            let id = packet.transaction_id;
            let answer = if packet.completion_requested {
                PacketOut::completion(id, &data)
            } else {
                PacketOut::in_band(id, &data)
            };
            // Answers go out together unless they do not fit.
            let sent = match channel.writer.stage(&answer) {
                Ok(true) => Ok(()),
                Ok(false) => channel.writer.send(&answer),
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                return error;
            }
        }
        if let Err(error) = channel.writer.flush() {
            return error;
        }
    }
}

impl Vsp for Echo {
    fn offer(&self) -> OfferParams {
        self.params.clone()
    }

    fn open(&mut self, channel: OpenChannel) -> Result<(), Box<dyn std::error::Error>> {
        assert!(self.thread.is_none(), "it is open already");
        self.tell(Event::Opened(channel.info.channel_id));
        let events = self.events.clone();
        self.thread = Some(std::thread::spawn(move || {
            let error = echo(channel);
            let _ = events.lock().unwrap().send(Event::Ended(error));
        }));
        Ok(())
    }

    fn close(&mut self) {
        self.thread.take().expect("it is open").join().unwrap();
        self.tell(Event::Closed);
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.tell(Event::Dropped);
    }
}

/// A running bus with a guest that is not connected.
pub struct Machine {
    pub bus: Bus,
    pub partition: Arc<Loopback>,
    pub client: Client,
}

impl Machine {
    /// A guest that is connected as a new Linux is, with what it was offered: one [`Echo`], and what
    /// that tells.
    pub fn with_echo() -> (Self, Vec<OfferChannel>, Receiver<Event>) {
        let mut machine = Self::new();
        let (echo, events) = Echo::new(1);
        machine.bus.offer(echo).unwrap();
        machine.client.connect(&LINUX).unwrap();
        let offers = machine.client.request_offers().unwrap();
        (machine, offers, events)
    }

    pub fn new() -> Self {
        Self::with_config(BusConfig::default())
    }

    pub fn with_config(config: BusConfig) -> Self {
        let partition = Loopback::new(4, 4096);
        let bus = Bus::start(partition.clone(), config).unwrap();
        partition.attach(&bus);
        let client = Client::new(partition.clone());
        Self {
            bus,
            partition,
            client,
        }
    }

    /// Pages that are not neighbours.
    pub fn pages(&self, count: u64, set: u64) -> Vec<u64> {
        (0..count).map(|n| 4095 - set - n * 8).collect()
    }
}

/// Sends `count` packets and reads their echoes; data is the packet's number.
pub fn exchange(
    channel: &mut vmbus::client::ClientChannel,
    count: u64,
    size: impl Fn(u64) -> usize,
) {
    let (mut sent, mut received) = (0, 0);
    let mut batch = Batch::new();
    let mut data = vec![0; 1 << 16];
    while received < count {
        while sent < count {
            let bytes = size(sent);
            data[..bytes].fill(sent as u8);
            let parts = [&data[..bytes]];
            let packet = PacketOut::in_band(sent, &parts);
            let packet = if sent % 2 == 0 {
                packet.with_completion_requested()
            } else {
                packet
            };
            if !channel.try_send(&packet).unwrap() {
                break;
            }
            sent += 1;
        }
        channel.read(&mut batch).unwrap();
        for packet in batch.packets() {
            assert_eq!(packet.transaction_id, received);
            let completion = packet.packet_type == PacketType::COMPLETION;
            assert_eq!(completion, received % 2 == 0);
            assert_eq!(packet.data.len(), size(received).next_multiple_of(8));
            assert!(
                packet.data[..size(received)]
                    .iter()
                    .all(|&byte| byte == received as u8)
            );
            received += 1;
        }
    }
}
