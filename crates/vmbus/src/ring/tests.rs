//! Rings, both ends of them over the same heap pages.

use super::*;
use crate::protocol::*;
use zerocopy::IntoBytes;

const DATA: usize = 2;

struct Pair {
    memory: RingMemory,
    writer: Outgoing,
    reader: Incoming,
}

fn memory(pages: usize) -> RingMemory {
    let pages = Arc::new(HeapPages::new(1 + pages));
    let end = pages.len();
    let memory = RingMemory::new(pages, 0, end).unwrap();
    memory.initialize(RingFeatures::PENDING_SEND_SIZE).unwrap();
    memory
}

fn pair(pages: usize) -> Pair {
    let memory = memory(pages);
    let writer = Outgoing::new(memory.clone()).unwrap();
    let reader = Incoming::new(memory.clone()).unwrap();
    Pair {
        memory,
        writer,
        reader,
    }
}

fn read(reader: &mut Incoming) -> Vec<(u64, Vec<u8>)> {
    let mut batch = Batch::new();
    let _ = reader.read(&mut batch).unwrap();
    batch
        .packets()
        .map(|packet| (packet.transaction_id, packet.data.to_vec()))
        .collect()
}

#[test]
fn a_ring_needs_two_pages() {
    let pages: Arc<dyn GuestPages> = Arc::new(HeapPages::new(4));
    assert!(RingMemory::new(pages.clone(), 0, 0x1000).is_err());
    assert!(RingMemory::new(pages.clone(), 0, 0x5000).is_err());
    assert!(RingMemory::new(pages.clone(), 8, 0x2008).is_err());
    assert!(RingMemory::new(pages.clone(), 0x2000, 0x1000).is_err());
    assert_eq!(
        RingMemory::new(pages, 0x2000, 0x4000).unwrap().size(),
        0x1000
    );
}

#[test]
fn packets_arrive_as_they_were_sent() {
    let mut ring = pair(DATA);
    let packet = PacketOut::in_band(7, &[b"hello", b" world"]).with_completion_requested();
    assert_eq!(ring.writer.write(&packet), Ok(Some(true)));
    let list = [16_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat();
    let header = [&[0, 0, 0, 0, 1, 0, 0, 0][..], &list, &5_u64.to_le_bytes()].concat();
    let direct = PacketOut {
        packet_type: PacketType::GPA_DIRECT,
        header: &header,
        ..PacketOut::in_band(8, &[b"x"])
    };
    assert_eq!(
        ring.writer.write(&direct),
        Ok(Some(false)),
        "the ring was not empty"
    );
    let mut batch = Batch::new();
    assert_eq!(ring.reader.read(&mut batch), Ok(false));
    let packets: Vec<Packet<'_>> = batch.packets().collect();
    assert_eq!(packets.len(), 2);
    assert_eq!(&packets[0].data[..11], b"hello world");
    assert_eq!(packets[0].data.len(), 16);
    assert!(packets[0].completion_requested && !packets[1].completion_requested);
    let ranges = packets[1].gpa_direct().unwrap();
    assert_eq!(ranges[0].segments().collect::<Vec<_>>(), [(0x5000, 16)]);
    assert_eq!(packets[0].gpa_direct(), Err(RingError::Ranges));
    assert_eq!(packets[1].transfer_pages(), Err(RingError::Ranges));
}

#[test]
fn transfer_pages_are_listed() {
    let mut ring = pair(DATA);
    let header = TransferPageHeader {
        transfer_page_set_id: 0xcafe,
        reserved: 0,
        range_count: 2,
    };
    let ranges = [1, 2].map(|n| TransferPageRange {
        byte_count: n,
        byte_offset: n * 64,
    });
    let header = [header.as_bytes(), ranges.as_bytes()].concat();
    let mut packet = PacketOut {
        packet_type: PacketType::TRANSFER_PAGES,
        header: &header,
        ..PacketOut::in_band(1, &[])
    };
    assert_eq!(ring.writer.write(&packet), Ok(Some(true)));
    packet.header = &header[..16];
    assert_eq!(ring.writer.write(&packet), Ok(Some(false)));
    let mut batch = Batch::new();
    assert_eq!(ring.reader.read(&mut batch), Ok(false));
    let packets: Vec<_> = batch
        .packets()
        .map(|packet| packet.transfer_pages())
        .collect();
    let good = TransferPages {
        transfer_page_set_id: 0xcafe,
        ranges: ranges.to_vec(),
    };
    assert_eq!(packets, [Ok(good), Err(RingError::Ranges)]);
}

#[test]
fn pipes_have_a_header() {
    let header = pipe_header(3);
    let data = [header.as_bytes(), b"abc\0\0\0\0\0"].concat();
    assert_eq!(pipe_data(&data), Ok((&b"abc"[..], false)));
    assert_eq!(pipe_data(&data[..7]), Err(RingError::Pipe));
    assert_eq!(pipe_data(pipe_header(1).as_bytes()), Err(RingError::Pipe));
    assert_eq!(
        pipe_data(pipe_header(u32::MAX).as_bytes()),
        Err(RingError::Pipe)
    );
    assert_eq!(pipe_data(&[0; 16]), Err(RingError::Pipe));
}

#[test]
fn a_ring_never_gets_full() {
    let mut ring = pair(1);
    // 16 + 8 bytes of data + 8: 128 of them would fill it.
    let packet = PacketOut::in_band(0, &[&[1; 8]]);
    for _ in 0..127 {
        assert!(ring.writer.stage(&packet).unwrap());
    }
    assert_eq!(ring.writer.stage(&packet), Ok(false));
    assert_eq!(ring.writer.publish(), Ok(true));
    assert_eq!(ring.memory.load(RING_IN), Ok(127 * 32));
    assert_eq!(read(&mut ring.reader).len(), 127);
    assert!(ring.writer.write(&packet).unwrap().is_some());
    assert!(ring.writer.write(&packet).unwrap().is_some());
    assert_eq!(read(&mut ring.reader).len(), 2);
    let huge = [0; 4096];
    let too_long = ring.writer.stage(&PacketOut::in_band(0, &[&huge]));
    assert_eq!(too_long, Err(RingError::Length(4112)));
    let largest = [&huge[..4096 - 8 - 24]];
    let largest = PacketOut::in_band(0, &largest);
    assert!(
        ring.writer.write(&largest).unwrap().is_some(),
        "all but 8 bytes"
    );
    assert_eq!(read(&mut ring.reader).len(), 1);
}

#[test]
fn the_writer_signals_an_empty_ring_only() {
    let mut ring = pair(DATA);
    let packet = PacketOut::in_band(0, &[b"12345678"]);
    assert_eq!(ring.writer.publish(), Ok(false), "nothing was staged");
    assert_eq!(ring.writer.write(&packet), Ok(Some(true)));
    assert_eq!(ring.writer.write(&packet), Ok(Some(false)));
    assert_eq!(read(&mut ring.reader).len(), 2);
    ring.reader.mask().unwrap();
    assert_eq!(ring.writer.write(&packet), Ok(Some(false)));
    assert_eq!(
        ring.reader.unmask(),
        Ok(false),
        "one came while signals were off"
    );
    assert_eq!(read(&mut ring.reader).len(), 1);
    assert_eq!(ring.reader.unmask(), Ok(true));
    assert_eq!(ring.writer.write(&packet), Ok(Some(true)));
}

#[test]
fn the_reader_signals_when_awaited_room_is_there() {
    let mut ring = pair(1);
    let packet = PacketOut::in_band(0, &[&[1; 1000]]);
    let size = packet.ring_size();
    while ring.writer.write(&packet).unwrap().is_some() {}
    assert_eq!(ring.writer.wait_for_room(size), Ok(true), "there is none");
    let mut batch = Batch::new();
    assert_eq!(ring.reader.read(&mut batch), Ok(true));
    assert_eq!(ring.writer.wait_for_room(size), Ok(false), "there is now");
    ring.writer.stop_waiting().unwrap();
    assert_eq!(ring.memory.load(RING_PENDING_SEND_SIZE), Ok(0));
    assert!(ring.writer.write(&packet).unwrap().is_some());
    assert_eq!(ring.reader.read(&mut batch), Ok(false), "nobody waits");
    // One that asks for one byte less is signalled at the exact size too.
    while ring.writer.write(&packet).unwrap().is_some() {}
    ring.memory.store(RING_PENDING_SEND_SIZE, 4095).unwrap();
    assert_eq!(ring.reader.read(&mut batch), Ok(true));
}

#[test]
fn wrong_indices_break_a_ring() {
    for bad in [4, 1, 0x2000, 0x2008, u32::MAX, 0xffff_fff8] {
        let mut ring = pair(DATA);
        ring.memory.store(RING_IN, bad).unwrap();
        let error = RingError::Index {
            index: bad,
            size: 0x2000,
        };
        let mut batch = Batch::new();
        assert_eq!(ring.reader.read(&mut batch), Err(error));
        ring.memory.store(RING_IN, 0).unwrap();
        assert_eq!(ring.reader.read(&mut batch), Err(error), "it stays broken");
        assert_eq!(ring.reader.unmask(), Err(error));
        assert!(batch.is_empty());

        let mut ring = pair(DATA);
        ring.memory.store(RING_OUT, bad).unwrap();
        let packet = PacketOut::in_band(0, &[b"1"]);
        assert_eq!(ring.writer.write(&packet), Err(error));
        ring.memory.store(RING_OUT, 0).unwrap();
        assert_eq!(ring.writer.write(&packet), Err(error));
        let memory = memory(DATA);
        memory.store(RING_OUT, bad).unwrap();
        assert!(Incoming::new(memory.clone()).is_err());
        assert!(Outgoing::new(memory).is_err());
    }
}

#[test]
fn wrong_packets_break_a_ring() {
    let descriptor = |packet_type, data_offset8, length8, flags| PacketDescriptor {
        packet_type: PacketType(packet_type),
        data_offset8,
        length8,
        flags,
        transaction_id: 0,
    };
    let cases = [
        (descriptor(6, 2, 1, 0), 32, RingError::Length(8)),
        (descriptor(6, 2, 0, 0), 32, RingError::Length(0)),
        (descriptor(6, 2, 4, 0), 32, RingError::Length(32)),
        (descriptor(6, 2, 0xffff, 0), 32, RingError::Length(0x7fff8)),
        (descriptor(6, 1, 2, 0), 32, RingError::DataOffset(8)),
        (descriptor(6, 4, 3, 0), 32, RingError::DataOffset(32)),
        (
            descriptor(6, 0xffff, 3, 0),
            32,
            RingError::DataOffset(0x7fff8),
        ),
        (descriptor(8, 2, 3, 0), 32, RingError::PacketType(8)),
        (descriptor(6, 2, 3, 2), 32, RingError::Flags(2)),
        (descriptor(6, 2, 2, 0), 32, RingError::Length(8)),
        (descriptor(6, 2, 2, 0), 16, RingError::Length(16)),
        (descriptor(6, 2, 2, 0), 8, RingError::Length(8)),
    ];
    for (descriptor, index, error) in cases {
        let mut ring = pair(DATA);
        ring.memory.write(0, descriptor.as_bytes()).unwrap();
        ring.memory.store(RING_IN, index).unwrap();
        assert_eq!(
            ring.reader.read(&mut Batch::new()),
            Err(error),
            "{descriptor:?}"
        );
        assert_eq!(ring.memory.load(RING_OUT), Ok(0), "nothing was taken");
    }
}

#[test]
fn packets_longer_than_a_batch() {
    let mut ring = pair(100);
    let big: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    for n in 0..20 {
        let small = PacketOut::in_band(n, &[&[1; 8]]);
        assert!(ring.writer.stage(&small).unwrap());
        assert!(ring.writer.stage(&PacketOut::in_band(n, &[&big])).unwrap());
        let _ = ring.writer.publish().unwrap();
        assert_eq!(read(&mut ring.reader), [(n, vec![1; 8])]);
        assert_eq!(read(&mut ring.reader), [(n, big.clone())]);
        assert_eq!(read(&mut ring.reader), []);
    }
}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }
}

#[test]
fn random_packets_in_random_batches() {
    let mut ring = pair(3);
    let mut random = Random(1);
    let (mut sent, mut received) = (0_u64, 0_u64);
    while received < 200_000 {
        for _ in 0..random.below(40) {
            let data = vec![sent as u8; random.below(50) as usize * 8];
            if !ring
                .writer
                .stage(&PacketOut::in_band(sent, &[&data]))
                .unwrap()
            {
                break;
            }
            sent += 1;
        }
        let _ = ring.writer.publish().unwrap();
        if random.below(3) > 0 {
            for (id, data) in read(&mut ring.reader) {
                assert_eq!(id, received);
                assert!(data.iter().all(|&byte| byte == id as u8));
                received += 1;
            }
        }
    }
}

#[test]
fn scribbled_rings_never_panic() {
    let mut random = Random(7);
    for _ in 0..3000 {
        let mut ring = pair(1);
        let junk: Vec<u8> = (0..4096).map(|_| random.below(9) as u8).collect();
        ring.memory.write(0, &junk).unwrap();
        for field in [
            RING_IN,
            RING_OUT,
            RING_PENDING_SEND_SIZE,
            RING_INTERRUPT_MASK,
        ] {
            ring.memory
                .store(field, random.below(512) as u32 * 8)
                .unwrap();
        }
        let mut batch = Batch::new();
        while let Ok(_signal) = ring.reader.read(&mut batch) {
            if batch.is_empty() {
                break;
            }
            for packet in batch.packets() {
                let _ = packet.gpa_direct();
                let _ = packet.transfer_pages();
                let _ = pipe_data(packet.data);
            }
        }
        let _ = ring.writer.write(&PacketOut::in_band(1, &[b"abc"]));
        let _ = ring.writer.wait_for_room(64);
    }
}
