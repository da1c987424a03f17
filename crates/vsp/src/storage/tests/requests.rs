//! A guest that behaves.

use super::guest::{DATA_PAGE, Data, Guest, NO_DATA, data_in, data_out, each_way, scsi_request};
use crate::storage::protocol::{ChannelProperties, Packet, ProtocolVersion, operation};
use crate::storage::scsi::{op, test_medium::Op, test_medium::TestMedium};
use crate::storage::{Attachment, DEFAULT_MAX_TRANSFER, Io};
use std::time::Duration;
use vmbus::protocol::OfferChannel;

const READ: [u8; 10] = [op::READ_10, 0, 0, 0, 0, 1, 0, 0, 8, 0];
const WRITE: [u8; 10] = [op::WRITE_10, 8, 0, 0, 0, 1, 0, 0, 8, 0];
const READY: [u8; 6] = [0; 6];

each_way!(
    reads_writes_and_flushes,
    failures_carry_sense_data,
    versions_fall_back_and_properties_are_told,
    hot_plug_is_announced,
    resets_are_told_to_every_unit,
    many_requests_at_once,
    subchannels_serve_requests_too,
);

fn reads_writes_and_flushes(io: Io) {
    let mut guest = Guest::new(0, io);
    let medium = TestMedium::new(64, 512);
    guest
        .handle
        .attach(0, Attachment::Disk(medium.clone()))
        .unwrap();
    let mut channel = guest.ready();
    // From the middle of a page to the middle of the next.
    let data = Data {
        page: DATA_PAGE,
        offset: 0x803,
        length: 4096,
        data_in: 1,
    };
    let result = channel.command(0, &READ, data);
    assert_eq!((result.srb_status, result.scsi_status), (1, 0));
    assert_eq!(result.data_transfer_length, 4096);
    let expected = medium.data.lock()[512..512 + 4096].to_vec();
    assert_eq!(guest.read_memory(DATA_PAGE, 0x803, 4096), expected);
    guest.write_memory(DATA_PAGE, 0, &[0x5a; 4096]);
    assert_eq!(channel.command(0, &WRITE, data_out(4096)).srb_status, 1);
    assert_eq!(medium.data.lock()[512..512 + 4096], [0x5a; 4096]);
    let flush = [op::SYNCHRONIZE_CACHE_10, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(channel.command(0, &flush, NO_DATA).srb_status, 1);
    let ops = [Op::Read(512, 4096), Op::Write(512, 4096, true), Op::Flush];
    assert_eq!(medium.take_ops(), ops);
    let mut list = [0; 24];
    (list[1], list[3], list[15], list[19]) = (22, 16, 8, 8);
    guest.write_memory(DATA_PAGE, 0, &list);
    let unmap = [op::UNMAP, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    assert_eq!(channel.command(0, &unmap, data_out(24)).srb_status, 1);
    assert_eq!(medium.take_ops(), [Op::Unmap(4096, 4096)]);
    let statistics = guest.handle.statistics();
    assert_eq!((statistics.requests, statistics.malformed), (4, 0));
    let lun = statistics.luns[0].1;
    assert_eq!(
        (lun.reads, lun.bytes_written, lun.flushes, lun.unmaps),
        (1, 4096, 1, 1)
    );
    guest.client.close(channel.ring).unwrap();
    guest.bus.stop();
}

fn failures_carry_sense_data(io: Io) {
    let mut guest = Guest::new(0, io);
    guest
        .handle
        .attach(0, Attachment::Disk(TestMedium::read_only(64, 512)))
        .unwrap();
    let mut channel = guest.ready();
    let result = channel.command(0, &WRITE, data_out(4096));
    assert_eq!((result.srb_status, result.scsi_status), (0x84, 2));
    assert_eq!((result.sense_length, result.data_transfer_length), (18, 0));
    let sense = result.payload;
    assert_eq!(
        (sense[0], sense[2], sense[12], sense[13]),
        (0x70, 7, 0x27, 0)
    );
    // Where nothing is.
    assert_eq!(channel.command(1, &READY, NO_DATA).srb_status, 0x20);
    let inquiry = channel.command(1, &[op::INQUIRY, 0, 0, 0, 36, 0], data_in(36));
    assert_eq!((inquiry.srb_status, inquiry.data_transfer_length), (1, 36));
    assert_eq!(guest.read_memory(DATA_PAGE, 0, 1), [0x7f]);
    let mut elsewhere = scsi_request(0, &READY, NO_DATA);
    elsewhere.target_id = 1;
    let id = channel.submit(&elsewhere, NO_DATA);
    assert_eq!(channel.result(id).srb_status, 0x20);
}

fn versions_fall_back_and_properties_are_told(io: Io) {
    let mut guest = Guest::new(3, io);
    let offer = guest.offers[0];
    let mut channel = guest.open(&offer, 0);
    assert_eq!(channel.step(operation::QUERY_PROPERTIES), 0xc000_0184);
    assert_eq!(channel.step(operation::BEGIN_INITIALIZATION), 0);
    assert_eq!(channel.version(ProtocolVersion(0x0700)), 0xc000_0059);
    assert_eq!(channel.version(ProtocolVersion::WIN8), 0);
    let (status, packet) = channel.exchange(&Packet::new(operation::QUERY_PROPERTIES));
    let properties: ChannelProperties = packet.payload_as().unwrap();
    assert_eq!(
        (status, properties.max_channel_count, properties.flags),
        (0, 3, 1)
    );
    assert_eq!(properties.max_transfer_bytes, DEFAULT_MAX_TRANSFER);
    // Requests have to wait for the end.
    assert_eq!(channel.step(operation::EXECUTE_SRB), 0xc000_0184);
    assert_eq!(channel.step(operation::END_INITIALIZATION), 0);
    assert_eq!(channel.step(12), 0xc000_0184);
    assert_eq!(channel.step(99), 0xc000_0010);
    assert_eq!(channel.step(operation::RESET_BUS), 0);
}

fn hot_plug_is_announced(io: Io) {
    let mut guest = Guest::new(0, io);
    let mut channel = guest.ready();
    let medium = TestMedium::new(64, 512);
    guest
        .handle
        .attach(5, Attachment::Disk(medium.clone()))
        .unwrap();
    let announced = channel.next();
    assert!(!announced.completion);
    assert_eq!(
        (announced.transaction_id, announced.packet.operation),
        (0, 11)
    );
    assert_eq!(channel.command(5, &READY, NO_DATA).srb_status, 1);
    medium.resize(128 * 512);
    guest.handle.resized(5).unwrap();
    assert_eq!(channel.next().packet.operation, operation::ENUMERATE_BUS);
    let changed = channel.command(5, &READY, NO_DATA);
    assert_eq!(
        (changed.payload[2], changed.payload[12], changed.payload[13]),
        (6, 0x2a, 9)
    );
    guest.handle.detach(5).unwrap();
    assert_eq!(channel.next().packet.operation, operation::ENUMERATE_BUS);
    assert_eq!(channel.command(5, &READY, NO_DATA).srb_status, 0x20);
    // The medium belongs to nobody else any more.
    assert_eq!(std::sync::Arc::strong_count(&medium), 1);
    assert!(guest.handle.insert(5, medium).is_err());
}

fn resets_are_told_to_every_unit(io: Io) {
    let mut guest = Guest::new(0, io);
    for lun in [0, 7] {
        guest
            .handle
            .attach(lun, Attachment::Disk(TestMedium::new(8, 512)))
            .unwrap();
    }
    guest.handle.attach(8, Attachment::Dvd(None)).unwrap();
    let mut channel = guest.ready();
    assert_eq!(channel.step(operation::RESET_BUS), 0);
    for lun in [0, 7, 8] {
        assert_eq!(channel.command(lun, &READY, NO_DATA).payload[12], 0x29);
    }
    let request = scsi_request(7, &[], NO_DATA);
    let packet = Packet::new(operation::RESET_LUN).with_payload(&request);
    assert_eq!(channel.exchange(&packet).0, 0);
    assert_eq!(channel.command(0, &READY, NO_DATA).srb_status, 1);
    assert_eq!(channel.command(7, &READY, NO_DATA).payload[12], 0x29);
}

fn many_requests_at_once(io: Io) {
    let mut guest = Guest::new(0, io);
    let medium = TestMedium::new(4096, 512);
    guest
        .handle
        .attach(0, Attachment::Disk(medium.clone()))
        .unwrap();
    let mut channel = guest.ready();
    for round in 0..20_u8 {
        let ids: Vec<u64> = (0..64_u8)
            .map(|lane| {
                let page = DATA_PAGE + u64::from(lane);
                let data = Data {
                    page,
                    ..data_in(512)
                };
                let cdb = [op::READ_10, 0, 0, 0, round & 0xf, lane, 0, 0, 1, 0];
                channel.submit(&scsi_request(0, &cdb, data), data)
            })
            .collect();
        for id in ids {
            assert_eq!(channel.result(id).data_transfer_length, 512);
        }
        for lane in 0..64 {
            let at = ((usize::from(round) & 0xf) * 256 + lane) * 512;
            let expected = medium.data.lock()[at..at + 512].to_vec();
            assert_eq!(guest.read_memory(DATA_PAGE + lane as u64, 0, 512), expected);
        }
    }
    assert_eq!(guest.handle.statistics().luns[0].1.reads, 20 * 64);
}

fn subchannels_serve_requests_too(io: Io) {
    let mut guest = Guest::new(2, io);
    guest
        .handle
        .attach(0, Attachment::Disk(TestMedium::new(64, 512)))
        .unwrap();
    for round in 0..3 {
        let mut channel = guest.ready();
        let packet = Packet::new(operation::CREATE_SUB_CHANNELS).with_payload(&2_u16);
        assert_eq!(channel.exchange(&packet).0, 0);
        let mut others = Vec::new();
        for number in 1..=2 {
            let offer: OfferChannel = guest.client.expect().unwrap();
            assert_eq!(offer.instance_id, guest.offers[0].instance_id);
            assert_ne!(offer.subchannel_index, 0);
            let mut other = guest.open(&offer, number);
            let result = other.command(0, &READ, data_in(4096));
            assert_eq!((result.srb_status, result.data_transfer_length), (1, 4096));
            // Negotiation is for the first channel.
            assert_eq!(
                other.step(operation::BEGIN_INITIALIZATION),
                0xc000_0184,
                "{round}"
            );
            others.push(other);
        }
        for other in others {
            guest.client.close(other.ring).unwrap();
        }
        guest.client.close(channel.ring).unwrap();
        for _ in 0..2 {
            guest.client.release_rescinded().unwrap();
        }
        assert!(
            guest
                .client
                .poll::<OfferChannel>(Duration::from_millis(1))
                .is_none()
        );
    }
}
