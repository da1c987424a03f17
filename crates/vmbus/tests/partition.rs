//! The bus on a partition of `vid`. No processor runs; what a guest's
//! hypercalls would bring is handed to the bus.

mod common;

use common::{Echo, Event};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vid::{Partition, PartitionConfig, RamRange, RootNotification};
use vmbus::bus::{Bus, BusConfig, BusHost, PartitionHost, Posted};
use vmbus::protocol::*;
use vmbus::ring::{Batch, Incoming, Outgoing, PacketOut, RingMemory};

const RING: [u64; 8] = [9, 3, 40, 41, 42, 100, 7, 8];

fn partition() -> Arc<Partition> {
    let ram = vec![RamRange {
        gpa: 0,
        size: 1 << 20,
    }];
    Partition::new(&PartitionConfig {
        processors: 2,
        ram,
        processor_mode: vid::ProcessorMode::default(),
    })
    .unwrap()
    .0
}

fn post(bus: &Bus, message: &ControlMessage) {
    let payload = message.as_bytes().to_vec();
    let port = MESSAGE_CONNECTION_ID;
    bus.notify(RootNotification::Message {
        port,
        message_type: 1,
        payload,
    })
    .unwrap();
}

#[test]
fn ports_are_opened_once_and_given_back() {
    let host = Arc::new(PartitionHost::new(partition(), 2));
    for _ in 0..2 {
        let bus = Bus::start(host.clone(), BusConfig::default()).unwrap();
        assert!(Bus::start(host.clone(), BusConfig::default()).is_err());
        bus.stop();
    }
    host.open_event_port(0x2001).unwrap();
    assert!(host.open_event_port(0x2001).is_err());
    host.close_event_port(0x2001);
    host.open_event_port(0x2001).unwrap();
}

#[test]
fn what_is_not_there_is_refused() {
    let host = PartitionHost::new(partition(), 2);
    // No guest has turned its SynIC on, and there is no third processor.
    assert_eq!(host.post_message(1, VMBUS_SINT, &[1; 240]), Posted::Dropped);
    assert_eq!(host.post_message(2, VMBUS_SINT, &[1]), Posted::Dropped);
    host.signal_event(1, VMBUS_SINT, 1);
    assert!(host.map_pages(&[255]).is_ok());
    assert!(host.map_pages(&[256]).is_err());
}

#[test]
fn a_ring_in_the_partitions_memory() {
    let partition = partition();
    let host = Arc::new(PartitionHost::new(partition.clone(), 2));
    let bus = Bus::start(host.clone(), BusConfig::default()).unwrap();
    let handle = bus.handle();
    partition.set_notification_sink(Some(Arc::new(move |what| handle.notify(what).is_ok())));
    let (echo, events) = Echo::new(1);
    bus.offer(echo).unwrap();
    let contact = InitiateContact {
        version_requested: Version::WIN10.0,
        ..InitiateContact::default()
    };
    post(&bus, &ControlMessage::new(&contact));
    post(&bus, &ControlMessage::new(&RequestOffers {}));
    let pages = host.map_pages(&RING).unwrap();
    let upstream = RingMemory::new(pages.clone(), 0, 4 << 12).unwrap();
    let downstream = RingMemory::new(pages, 4 << 12, 8 << 12).unwrap();
    upstream
        .initialize(RingFeatures::PENDING_SEND_SIZE)
        .unwrap();
    downstream
        .initialize(RingFeatures::PENDING_SEND_SIZE)
        .unwrap();
    let mut list = [(8_u32 << 12).to_le_bytes(), [0; 4]].concat();
    list.extend(RING.iter().flat_map(|pfn| pfn.to_le_bytes()));
    let header = GpadlHeader {
        channel_id: 1,
        gpadl_id: 5,
        len: list.len() as u16,
        count: 1,
    };
    post(&bus, &ControlMessage::with_data(&header, &list));
    let open = OpenChannel {
        channel_id: 1,
        open_id: 1,
        ring_buffer_gpadl_id: 5,
        target_vp: 1,
        downstream_ring_buffer_page_offset: 4,
        user_data: [0; 120],
    };
    post(&bus, &ControlMessage::new(&open));
    assert_eq!(events.recv().unwrap(), Event::Opened(1));
    let mut writer = Outgoing::new(upstream).unwrap();
    let mut reader = Incoming::new(downstream).unwrap();
    let mut batch = Batch::new();
    for n in 0..2000_u64 {
        let data = vec![n as u8; n as usize * 8 % 4000];
        let packet = [&data[..]];
        if writer.write(&PacketOut::in_band(n, &packet)).unwrap() == Some(true) {
            bus.notify(RootNotification::Event {
                port: 0x2001,
                flag: 0,
            })
            .unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let _ = reader.read(&mut batch).unwrap();
            if !batch.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "no answer to packet {n}");
            std::thread::yield_now();
        }
        let answer = batch.packets().next().unwrap();
        assert_eq!((answer.transaction_id, answer.data), (n, &data[..]));
    }
    bus.stop();
    assert_eq!(events.iter().last(), Some(Event::Dropped));
}
