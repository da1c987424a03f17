//! Guests that do not behave. They hurt nobody but themselves.

mod common;

use common::{Echo, Event, LINUX, Machine, exchange};
use std::time::Duration;
use vmbus::bus::ChannelError;
use vmbus::client::{ClientError, ClientTransport};
use vmbus::protocol::*;
use vmbus::ring::RingError;

#[test]
fn a_broken_ring_closes_its_channel_only() {
    let mut machine = Machine::new();
    let (bad, bad_events) = Echo::new(1);
    machine.bus.offer(bad).unwrap();
    machine.bus.offer(Echo::new(2).0).unwrap();
    machine.client.connect(&LINUX).unwrap();
    let offers = machine.client.request_offers().unwrap();
    let pages = machine.pages(8, 0);
    let broken = machine.client.open(&offers[0], &pages).unwrap();
    let mut good = machine
        .client
        .open(&offers[1], &machine.pages(8, 1))
        .unwrap();
    exchange(&mut good, 10, |_| 8);
    let ring = machine.partition.pages(&pages);
    ring.store_u32(RING_IN, 0x1234_5678).unwrap();
    broken.signal();
    assert_eq!(bad_events.recv().unwrap(), Event::Opened(1));
    let error = RingError::Index {
        index: 0x1234_5678,
        size: 3 * 4096,
    };
    assert_eq!(
        bad_events.recv().unwrap(),
        Event::Ended(ChannelError::Ring(error))
    );
    exchange(&mut good, 1000, |n| n as usize);
    // And it can be opened again, with whole rings.
    machine.client.close(broken).unwrap();
    let mut again = machine.client.open(&offers[0], &pages).unwrap();
    exchange(&mut again, 100, |_| 8);
    machine.client.close(again).unwrap();
    machine.client.close(good).unwrap();
}

#[test]
fn packets_that_lie_close_their_channel() {
    let (mut machine, offers, events) = Machine::with_echo();
    let pages = machine.pages(8, 0);
    for length8 in [0_u16, 1, 5, 0xffff] {
        let channel = machine.client.open(&offers[0], &pages).unwrap();
        let ring = machine.partition.pages(&pages);
        ring.write(
            4096,
            &[6, 0, 2, 0, length8 as u8, (length8 >> 8) as u8, 0, 0],
        )
        .unwrap();
        ring.store_u32(RING_IN, 32).unwrap();
        channel.signal();
        assert_eq!(events.recv().unwrap(), Event::Opened(1));
        let length = usize::from(length8) * 8;
        let error = ChannelError::Ring(RingError::Length(length));
        assert_eq!(events.recv().unwrap(), Event::Ended(error));
        machine.client.close(channel).unwrap();
        assert_eq!(events.recv().unwrap(), Event::Closed);
    }
}

#[test]
fn rings_outside_memory_are_refused() {
    let (mut machine, offers, events) = Machine::with_echo();
    let far = [0, 1, 2, 1 << 30];
    let gpadl = machine
        .client
        .create_gpadl(offers[0].channel_id, &far)
        .unwrap();
    let open = OpenChannel {
        channel_id: offers[0].channel_id,
        open_id: 5,
        ring_buffer_gpadl_id: gpadl,
        target_vp: 0,
        downstream_ring_buffer_page_offset: 2,
        user_data: [0; 120],
    };
    machine.client.post(&open);
    let result: OpenChannelResult = machine.client.expect().unwrap();
    assert_eq!((result.open_id, result.status), (5, ntstatus::UNSUCCESSFUL));
    // Wrong divisions, targets and GPADLs.
    let good = machine
        .client
        .create_gpadl(offers[0].channel_id, &[0, 1, 2, 3])
        .unwrap();
    let wrong = [
        OpenChannel {
            downstream_ring_buffer_page_offset: 0,
            ..open
        },
        OpenChannel {
            downstream_ring_buffer_page_offset: 3,
            ..open
        },
        OpenChannel {
            downstream_ring_buffer_page_offset: u32::MAX,
            ..open
        },
        OpenChannel {
            target_vp: 4,
            ..open
        },
        OpenChannel {
            ring_buffer_gpadl_id: 1,
            ..open
        },
        OpenChannel {
            channel_id: 2,
            ..open
        },
        OpenChannel {
            channel_id: u32::MAX,
            ..open
        },
    ];
    for wrong in wrong {
        let gpadl_id = if wrong.ring_buffer_gpadl_id == gpadl {
            good
        } else {
            wrong.ring_buffer_gpadl_id
        };
        machine.client.post(&OpenChannel {
            ring_buffer_gpadl_id: gpadl_id,
            ..wrong
        });
        let result: OpenChannelResult = machine.client.expect().unwrap();
        assert_eq!(result.status, ntstatus::UNSUCCESSFUL, "{wrong:?}");
    }
    assert!(events.try_recv().is_err(), "the device never heard of it");
    machine
        .client
        .teardown_gpadl(offers[0].channel_id, gpadl)
        .unwrap();
    machine
        .client
        .teardown_gpadl(offers[0].channel_id, good)
        .unwrap();
}

#[test]
fn a_ring_in_use_is_not_torn_down() {
    let (mut machine, offers, _) = Machine::with_echo();
    let mut channel = machine
        .client
        .open(&offers[0], &machine.pages(4, 0))
        .unwrap();
    let (channel_id, gpadl_id) = (channel.channel_id(), channel.gpadl_id());
    machine.client.post(&GpadlTeardown {
        channel_id,
        gpadl_id,
    });
    assert!(
        machine
            .client
            .poll::<GpadlTorndown>(Duration::from_millis(50))
            .is_none()
    );
    exchange(&mut channel, 100, |_| 8);
    machine.client.post(&CloseChannel { channel_id });
    let torndown: GpadlTorndown = machine.client.expect().unwrap();
    assert_eq!(torndown.gpadl_id, gpadl_id);
}

#[test]
fn double_opens_do_not_disturb_the_first() {
    let (mut machine, offers, events) = Machine::with_echo();
    let mut channel = machine
        .client
        .open(&offers[0], &machine.pages(4, 0))
        .unwrap();
    for _ in 0..100 {
        let again = machine.client.open(&offers[0], &machine.pages(4, 1));
        assert_eq!(
            again.err(),
            Some(ClientError::Status(ntstatus::UNSUCCESSFUL))
        );
    }
    exchange(&mut channel, 100, |_| 8);
    assert_eq!(events.try_iter().collect::<Vec<_>>(), [Event::Opened(1)]);
}

#[test]
fn floods_wait_and_are_forgotten() {
    let machine = Machine::new();
    machine.bus.offer(Echo::new(1).0).unwrap();
    let mut client = machine.client;
    client.connect(&LINUX).unwrap();
    let offers = client.request_offers().unwrap();
    // A guest that asks without reading: soon the host takes no more.
    let teardown = ControlMessage::new(&GpadlTeardown {
        channel_id: 1,
        gpadl_id: 1,
    });
    let mut taken = 0;
    while machine
        .partition
        .post(MESSAGE_CONNECTION_ID, teardown.as_bytes())
    {
        taken += 1;
        assert!(taken < 10_000, "the host takes everything");
        std::thread::sleep(Duration::from_micros(100));
    }
    assert!(taken < 100, "{taken} messages are in flight");
    // A new start gets through all the same.
    let version = loop {
        while machine
            .partition
            .receive(Duration::from_millis(20))
            .is_some()
        {}
        if let Ok(version) = client.connect(&LINUX) {
            break version;
        }
    };
    assert_eq!(version, Version::IRON);
    assert_eq!(client.request_offers().unwrap(), offers);
    let mut channel = client.open(&offers[0], &[1, 2, 3, 4]).unwrap();
    exchange(&mut channel, 10, |_| 8);
}

#[test]
fn a_new_guest_does_not_wait_for_its_predecessors_messages() {
    let machine = Machine::new();
    machine.bus.offer(Echo::new(1).0).unwrap();
    let mut client = machine.client;
    client.connect(&LINUX).unwrap();
    client.request_offers().unwrap();
    let teardown = ControlMessage::new(&GpadlTeardown {
        channel_id: 1,
        gpadl_id: 1,
    });
    // More than the SINT holds, less than the host's queue.
    for _ in 0..24 {
        assert!(
            machine
                .partition
                .post(MESSAGE_CONNECTION_ID, teardown.as_bytes())
        );
        std::thread::sleep(Duration::from_micros(200));
    }
    let contact = InitiateContact {
        version_requested: Version::WIN10.0,
        ..InitiateContact::default()
    };
    let contact = ControlMessage::new(&contact);
    assert!(
        machine
            .partition
            .post(MESSAGE_CONNECTION_ID, contact.as_bytes())
    );
    while machine.bus.version() != Some(Version::WIN10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut seen = Vec::new();
    while let Some(message) = machine.partition.receive(Duration::from_millis(50)) {
        seen.extend(parse_type(&message));
    }
    // What the SINT held before cannot be taken back; the rest was.
    let mut expected = vec![MessageType::GPADL_TORNDOWN; 16];
    expected.push(MessageType::VERSION_RESPONSE);
    assert_eq!(seen, expected);
}

#[test]
fn signals_and_messages_of_any_kind() {
    let (mut machine, offers, _) = Machine::with_echo();
    let mut state = 1_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 33
    };
    for _ in 0..20_000 {
        let mut bytes = [0_u8; 240];
        bytes.fill_with(|| if random() % 3 == 0 { random() as u8 } else { 0 });
        // Neither contact nor unload: the connection is to survive this.
        let kind = [3, 5, 7, 8, 9, 11, 18, 19, 20, 21, 22, 25, 27, 29, 99][random() as usize % 15];
        bytes[..4].copy_from_slice(&u32::to_le_bytes(kind));
        bytes[8..12].copy_from_slice(&u32::to_le_bytes(1 + random() as u32 % 2));
        let length = random() as usize % 241;
        machine
            .client
            .post_bytes(MESSAGE_CONNECTION_ID, &bytes[..length]);
        machine.partition.signal(0x2000 + random() as u32 % 4);
        while machine.partition.receive(Duration::ZERO).is_some() {}
    }
    while machine
        .partition
        .receive(Duration::from_millis(20))
        .is_some()
    {}
    machine.client.unload().unwrap();
    machine.client.connect(&LINUX).unwrap();
    assert_eq!(machine.client.request_offers().unwrap(), offers);
    let mut channel = machine
        .client
        .open(&offers[0], &machine.pages(4, 0))
        .unwrap();
    exchange(&mut channel, 10, |_| 8);
}

#[test]
fn revoking_races_with_opening() {
    let mut machine = Machine::new();
    machine.client.connect(&LINUX).unwrap();
    machine.client.request_offers().unwrap();
    for round in 0..200 {
        let (echo, events) = Echo::new(1);
        let offer = machine.bus.offer(echo).unwrap();
        let message: OfferChannel = machine.client.expect().unwrap();
        let bus = machine.bus.handle();
        let revoker = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(round * 3));
            bus.revoke(offer);
        });
        // Whatever comes first, the guest gets an answer and the id back.
        let channel = machine.client.open(&message, &machine.pages(4, 0));
        if let Ok(channel) = channel {
            machine.client.close(channel).unwrap();
        }
        revoker.join().unwrap();
        assert_eq!(machine.client.release_rescinded(), Ok(message.channel_id));
        let events: Vec<Event> = events.iter().collect();
        assert_eq!(events.last(), Some(&Event::Dropped));
        let count =
            |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
        assert_eq!(
            count(|event| matches!(event, Event::Opened(_))),
            count(|event| *event == Event::Closed)
        );
    }
}
