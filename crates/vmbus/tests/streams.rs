//! Streams through rings of a single page: both sides wait for each other all
//! the time, so a signal too few would show as a hang.

mod common;

use common::{LINUX, Machine};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use vmbus::bus::{ChannelError, OpenChannel, Vsp};
use vmbus::client::ClientChannel;
use vmbus::protocol::Guid;
use vmbus::ring::{Batch, PacketOut};
use vmbus::server::OfferParams;

const COUNT: u64 = 200_000;

/// A size that is different each time, up to most of a page.
fn size(n: u64) -> usize {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (if mixed & 7 == 0 {
        mixed % 3900
    } else {
        mixed % 200
    }) as usize
}

fn data(n: u64) -> Vec<u8> {
    vec![n as u8; size(n)]
}

/// Runs `work` on a thread of its own.
struct Stream {
    work: fn(&mut OpenChannel) -> Result<u64, ChannelError>,
    thread: Option<JoinHandle<()>>,
    results: Sender<Result<u64, ChannelError>>,
}

impl Stream {
    fn start(
        work: fn(&mut OpenChannel) -> Result<u64, ChannelError>,
    ) -> (Machine, ClientChannel, Receiver<Result<u64, ChannelError>>) {
        let mut machine = Machine::new();
        let (results, received) = channel();
        machine
            .bus
            .offer(Box::new(Self {
                work,
                thread: None,
                results,
            }))
            .unwrap();
        machine.client.connect(&LINUX).unwrap();
        let offers = machine.client.request_offers().unwrap();
        let guest = machine
            .client
            .open(&offers[0], &machine.pages(4, 0))
            .unwrap();
        (machine, guest, received)
    }
}

impl Vsp for Stream {
    fn offer(&self) -> OfferParams {
        OfferParams::new(common::INTERFACE, Guid::from_u128(1))
    }

    fn open(&mut self, mut channel: OpenChannel) -> Result<(), Box<dyn std::error::Error>> {
        let (work, results) = (self.work, self.results.clone());
        self.thread = Some(std::thread::spawn(move || {
            let _ = results.send(work(&mut channel));
        }));
        Ok(())
    }

    fn close(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn sink(channel: &mut OpenChannel) -> Result<u64, ChannelError> {
    let (mut batch, mut received) = (Batch::new(), 0);
    while received < COUNT {
        channel.reader.read(&mut batch)?;
        for packet in batch.packets() {
            assert_eq!(packet.transaction_id, received);
            assert_eq!(packet.data[..size(received)], data(received));
            received += 1;
        }
    }
    Ok(received)
}

fn source(channel: &mut OpenChannel) -> Result<u64, ChannelError> {
    for n in 0..COUNT {
        channel.writer.send(&PacketOut::in_band(n, &[&data(n)]))?;
    }
    Ok(COUNT)
}

#[test]
fn from_the_guest() {
    let (mut machine, mut guest, results) = Stream::start(sink);
    for n in 0..COUNT {
        guest.send(&PacketOut::in_band(n, &[&data(n)])).unwrap();
    }
    assert_eq!(results.recv().unwrap(), Ok(COUNT));
    machine.client.close(guest).unwrap();
}

#[test]
fn to_the_guest() {
    let (mut machine, mut guest, results) = Stream::start(source);
    let (mut batch, mut received) = (Batch::new(), 0);
    while received < COUNT {
        guest.read(&mut batch).unwrap();
        for packet in batch.packets() {
            assert_eq!(packet.transaction_id, received);
            assert_eq!(packet.data[..size(received)], data(received));
            received += 1;
        }
    }
    assert_eq!(results.recv().unwrap(), Ok(COUNT));
    machine.client.close(guest).unwrap();
}

#[test]
fn closing_wakes_whoever_waits() {
    for work in [sink, source] {
        let (mut machine, guest, results) = Stream::start(work);
        // The sink waits for packets, the source for room.
        std::thread::sleep(std::time::Duration::from_millis(20));
        machine.client.close(guest).unwrap();
        assert_eq!(results.recv().unwrap(), Err(ChannelError::Closed));
    }
}
