//! What devices can do with the bus.

mod common;

use common::{LINUX, Machine};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vmbus::bus::{ChannelError, Gpadl, OpenChannel, Vsp, Wake};
use vmbus::client::ClientTransport;
use vmbus::protocol::*;
use vmbus::ring::{Batch, GuestPages, PacketOut};
use vmbus::server::OfferParams;

const SHORT: Duration = Duration::from_millis(50);

/// Hands its channel to the test, and drops what the test gives back.
struct Puppet {
    params: OfferParams,
    channels: Sender<OpenChannel>,
    refuse: bool,
    mapped: Arc<Mutex<Option<Gpadl>>>,
    teardowns: Arc<AtomicU32>,
    /// The test has let go of the channel.
    released: Receiver<()>,
}

struct Strings {
    channels: Receiver<OpenChannel>,
    mapped: Arc<Mutex<Option<Gpadl>>>,
    teardowns: Arc<AtomicU32>,
    release: Sender<()>,
}

fn puppet(instance: u128, refuse: bool) -> (Box<Puppet>, Strings) {
    let params = OfferParams::new(common::INTERFACE, Guid::from_u128(instance));
    let (channels, opened) = channel();
    let (release, released) = channel();
    let mapped = Arc::new(Mutex::new(None));
    let teardowns = Arc::new(AtomicU32::new(0));
    let strings = Strings {
        channels: opened,
        mapped: mapped.clone(),
        teardowns: teardowns.clone(),
        release,
    };
    (
        Box::new(Puppet {
            params,
            channels,
            refuse,
            mapped,
            teardowns,
            released,
        }),
        strings,
    )
}

impl Vsp for Puppet {
    fn offer(&self) -> OfferParams {
        self.params.clone()
    }

    fn open(&mut self, channel: OpenChannel) -> Result<(), Box<dyn std::error::Error>> {
        if self.refuse {
            return Err("not today".into());
        }
        Ok(self.channels.send(channel)?)
    }

    fn close(&mut self) {
        self.mapped.lock().unwrap().take();
        let _ = self.released.recv_timeout(SHORT);
    }

    fn gpadl_teardown(&mut self, gpadl_id: u32) {
        self.teardowns.store(gpadl_id, Ordering::SeqCst);
    }
}

/// A machine with a puppet whose channel is open.
fn open() -> (Machine, Strings, OpenChannel, vmbus::client::ClientChannel) {
    let mut machine = Machine::new();
    let (vsp, strings) = puppet(1, false);
    machine.bus.offer(vsp).unwrap();
    machine.client.connect(&LINUX).unwrap();
    let offers = machine.client.request_offers().unwrap();
    let guest = machine
        .client
        .open(&offers[0], &machine.pages(4, 0))
        .unwrap();
    let host = strings.channels.recv().unwrap();
    (machine, strings, host, guest)
}

#[test]
fn a_device_that_refuses() {
    let mut machine = Machine::new();
    machine.bus.offer(puppet(1, true).0).unwrap();
    machine.client.connect(&LINUX).unwrap();
    let offers = machine.client.request_offers().unwrap();
    for set in 0..3 {
        let refused = machine.client.open(&offers[0], &machine.pages(4, set));
        assert!(refused.is_err());
        assert_eq!(machine.partition.ports(), [1, 4], "its port is gone again");
    }
}

/// Panics when it is opened.
struct Faulty;

impl Vsp for Faulty {
    fn offer(&self) -> OfferParams {
        OfferParams::new(common::INTERFACE, Guid::from_u128(7))
    }

    fn open(&mut self, _channel: OpenChannel) -> Result<(), Box<dyn std::error::Error>> {
        panic!("a fault of the device's own");
    }

    fn close(&mut self) {}
}

#[test]
fn a_device_that_panics_takes_its_channel_only() {
    let (mut machine, _strings, mut host, mut guest) = open();
    machine.bus.offer(Box::new(Faulty)).unwrap();
    let offer: OfferChannel = machine.client.expect().unwrap();
    for set in 1..3 {
        assert!(machine.client.open(&offer, &machine.pages(4, set)).is_err());
    }
    host.writer.send(&PacketOut::in_band(1, &[])).unwrap();
    let mut batch = Batch::new();
    guest.read(&mut batch).unwrap();
    assert_eq!(batch.len(), 1);
    assert_eq!(machine.bus.usage().channels, 2);
}

#[test]
fn gpadls_are_the_guests_again_when_unmapped() {
    let (mut machine, strings, host, _guest) = open();
    let buffer = [50, 60, 61];
    let gpadl_id = machine.client.create_gpadl(1, &buffer).unwrap();
    let gpadl = host.gpadl(gpadl_id).unwrap();
    let second = host.gpadl(gpadl_id).unwrap();
    assert_eq!(gpadl.ranges()[0].byte_count, 3 * 4096);
    gpadl.pages(0).unwrap().write(4095, b"hello").unwrap();
    let mut seen = [0; 4];
    machine
        .partition
        .memory()
        .read(60 * 4096, &mut seen)
        .unwrap();
    assert_eq!(&seen, b"ello");
    *strings.mapped.lock().unwrap() = Some(gpadl);
    machine.client.post(&GpadlTeardown {
        channel_id: 1,
        gpadl_id,
    });
    assert!(machine.client.poll::<GpadlTorndown>(SHORT).is_none());
    assert_eq!(strings.teardowns.load(Ordering::SeqCst), gpadl_id);
    assert_eq!(
        host.gpadl(gpadl_id).err(),
        Some(ChannelError::Gpadl(gpadl_id))
    );
    drop(second);
    assert!(machine.client.poll::<GpadlTorndown>(SHORT).is_none());
    strings.mapped.lock().unwrap().take();
    let torndown: GpadlTorndown = machine.client.expect().unwrap();
    assert_eq!(torndown.gpadl_id, gpadl_id);
    assert_eq!(host.gpadl(77).err(), Some(ChannelError::Gpadl(77)));
    let outside = machine.client.create_gpadl(1, &[1 << 30]).unwrap();
    assert_eq!(
        host.gpadl(outside).err(),
        Some(ChannelError::Gpadl(outside))
    );
    // A mapping that failed holds nothing.
    machine.client.teardown_gpadl(1, outside).unwrap();
}

#[test]
fn signals_go_to_the_chosen_processor() {
    let (mut machine, _strings, mut host, mut guest) = open();
    let packet = PacketOut::in_band(1, &[b"hi"]);
    host.writer.send(&packet).unwrap();
    assert_eq!(machine.partition.last_target(), Some(0));
    let mut batch = Batch::new();
    guest.read(&mut batch).unwrap();
    for target_vp in [3, 1] {
        machine.client.post(&ModifyChannel {
            channel_id: 1,
            target_vp,
        });
        let response: ModifyChannelResponse = machine.client.expect().unwrap();
        assert_eq!(response.status, 0);
        host.writer.send(&packet).unwrap();
        assert_eq!(machine.partition.last_target(), Some(target_vp));
        guest.read(&mut batch).unwrap();
    }
}

#[test]
fn a_full_ring_wakes_its_writer_when_the_guest_reads() {
    let (_machine, _strings, mut host, mut guest) = open();
    let data = [7; 1000];
    let parts = [&data[..]];
    let packet = PacketOut::in_band(1, &parts);
    while host.writer.try_send(&packet).unwrap() {}
    let began = Instant::now();
    host.writer
        .wait_for_room(packet.ring_size(), Some(SHORT))
        .unwrap();
    assert!(began.elapsed() >= SHORT);
    let reader = std::thread::spawn(move || {
        std::thread::sleep(SHORT);
        let mut batch = Batch::new();
        guest.read(&mut batch).unwrap();
        batch.len()
    });
    host.writer.send(&packet).unwrap();
    assert_eq!(reader.join().unwrap(), 3);
}

#[test]
fn a_writer_polls_where_the_guest_does_not_signal_room() {
    let (machine, _strings, mut host, mut guest) = open();
    // The host-to-guest ring begins with its third page.
    let ring = machine.partition.pages(&machine.pages(4, 0));
    ring.store_u32(2 * 4096 + RING_FEATURE_BITS, 0).unwrap();
    let data = [7; 1000];
    let parts = [&data[..]];
    let packet = PacketOut::in_band(1, &parts);
    while host.writer.try_send(&packet).unwrap() {}
    let reader = std::thread::spawn(move || {
        std::thread::sleep(SHORT);
        // Reads without any signal.
        let mut batch = Batch::new();
        let _ = guest.rings().0.read(&mut batch).unwrap();
    });
    host.writer.send(&packet).unwrap();
    reader.join().unwrap();
}

#[test]
fn waits_end_by_signal_time_and_close() {
    let (mut machine, strings, mut host, guest) = open();
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    host.reader.set_waker(Some(Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    })));
    assert_eq!(host.reader.wait(Some(Duration::ZERO)), Wake::TimedOut);
    guest.signal();
    guest.signal();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert_eq!(host.reader.wait(None), Wake::Signaled);
    assert_eq!(host.reader.wait(Some(SHORT)), Wake::TimedOut);
    machine.client.post(&CloseChannel { channel_id: 1 });
    assert_eq!(host.reader.wait(None), Wake::Closed);
    assert!(host.reader.is_closing());
    let mut batch = Batch::new();
    assert_eq!(host.reader.read(&mut batch), Err(ChannelError::Closed));
    let packet = PacketOut::in_band(1, &[]);
    assert_eq!(host.writer.send(&packet), Err(ChannelError::Closed));
    let signals = machine.partition.signals();
    drop(host);
    strings.release.send(()).unwrap();
    machine.client.unload().unwrap();
    assert_eq!(
        machine.partition.signals(),
        signals,
        "a closed channel is silent"
    );
}

#[test]
fn subchannels_come_from_their_device() {
    let (mut machine, _strings, host, _guest) = open();
    let (mut vsp, strings) = puppet(1, false);
    vsp.params = vsp.params.subchannel(1);
    let sub = host.bus.offer(vsp).unwrap();
    let offer: OfferChannel = machine.client.expect().unwrap();
    assert_eq!((offer.subchannel_index, offer.channel_id), (1, 2));
    machine.client.open(&offer, &machine.pages(4, 1)).unwrap();
    let second = strings.channels.recv().unwrap();
    assert_eq!((second.info.offer, second.info.channel_id), (sub, 2));
    // The bus does not wait for what is still open when it stops.
    let bus = host.bus.clone();
    machine.bus.stop();
    assert!(bus.offer(puppet(9, false).0).is_err());
    assert!(machine.partition.ports().is_empty());
}

#[test]
fn the_guests_words_reach_the_device() {
    let (mut machine, strings, host, guest) = open();
    assert_eq!((host.info.channel_id, host.info.reserved), (1, false));
    drop(host);
    strings.release.send(()).unwrap();
    machine.client.close(guest).unwrap();
    let gpadl = machine
        .client
        .create_gpadl(1, &machine.pages(4, 0))
        .unwrap();
    machine.client.post(&vmbus::protocol::OpenChannel {
        channel_id: 1,
        open_id: 1,
        ring_buffer_gpadl_id: gpadl,
        target_vp: VP_INDEX_DISABLE_INTERRUPT,
        downstream_ring_buffer_page_offset: 2,
        user_data: [9; 120],
    });
    let result: OpenChannelResult = machine.client.expect().unwrap();
    assert_eq!(result.status, 0);
    let mut host = strings.channels.recv().unwrap();
    assert_eq!(host.info.user_data, [9; 120]);
    let signals = machine.partition.signals();
    host.writer.send(&PacketOut::in_band(1, &[])).unwrap();
    assert_eq!(machine.partition.signals(), signals, "interrupts are off");
}
