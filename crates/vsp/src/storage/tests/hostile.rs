//! A guest that does not behave.

use super::guest::{
    DATA_PAGE, Guest, NO_DATA, data_in, data_out, each_way, page_list, scsi_request,
};
use crate::storage::protocol::{Packet, operation};
use crate::storage::scsi::{op, test_medium::TestMedium};
use crate::storage::{Attachment, Io};
use vmbus::ring::GuestPages;
use zerocopy::IntoBytes;

const READ: [u8; 10] = [op::READ_10, 0, 0, 0, 0, 1, 0, 0, 8, 0];
const READY: [u8; 6] = [0; 6];

each_way!(
    packets_of_any_length_are_answered,
    buffers_that_do_not_fit_are_refused,
    random_requests_do_no_harm,
    a_broken_ring_takes_only_its_channel_down,
    a_guest_that_reads_no_answers_can_still_close,
);

fn guest(io: Io) -> Guest {
    let guest = Guest::new(0, io);
    guest
        .handle
        .attach(0, Attachment::Disk(TestMedium::new(64, 512)))
        .unwrap();
    guest
}

fn packets_of_any_length_are_answered(io: Io) {
    let mut guest = guest(io);
    let mut channel = guest.ready();
    let whole = Packet::new(operation::EXECUTE_SRB);
    for length in (0..48).step_by(8) {
        let id = channel.send_raw(&whole.as_bytes()[..length], None);
        assert_eq!(
            channel.completion(id).packet.status,
            0xc000_000d,
            "{length}"
        );
    }
    // An old packet gets an old answer.
    let id = channel.send_raw(&whole.as_bytes()[..48], None);
    assert_eq!(channel.completion(id).size, 48);
    let long = [whole.as_bytes(), &[0xff; 1000]].concat();
    let id = channel.send_raw(&long, None);
    assert_eq!(channel.completion(id).size, 64);
    assert_eq!(channel.command(0, &READY, NO_DATA).srb_status, 1);
    assert!(guest.handle.statistics().malformed >= 6);
}

fn buffers_that_do_not_fit_are_refused(io: Io) {
    let mut guest = guest(io);
    let mut channel = guest.ready();
    let before = guest.read_memory(DATA_PAGE, 0, 8192);
    // More than the buffer has.
    let mut request = scsi_request(0, &READ, data_in(4096));
    request.data_transfer_length = u32::MAX;
    let id = channel.submit(&request, data_in(4096));
    assert_eq!(channel.result(id).srb_status, 6);
    // No buffer at all, the wrong direction, too short for the command.
    let id = channel.submit(&scsi_request(0, &READ, data_in(4096)), NO_DATA);
    assert_eq!(channel.result(id).srb_status, 6);
    assert_eq!(channel.command(0, &READ, data_out(4096)).srb_status, 6);
    assert_eq!(channel.command(0, &READ, data_in(512)).srb_status, 6);
    // Pages that are no memory.
    let mut data = data_in(4096);
    data.page = 1 << 30;
    assert_eq!(channel.command(0, &READ, data).srb_status, 6);
    // A list of pages that is cut short.
    let packet =
        Packet::new(operation::EXECUTE_SRB).with_payload(&scsi_request(0, &READ, data_in(4096)));
    let list = page_list(data_in(4096));
    let id = channel.send_raw(packet.as_bytes(), Some(&list[..list.len() - 8]));
    assert_eq!(channel.completion(id).packet.status, 0xc000_000d);
    assert_eq!(guest.read_memory(DATA_PAGE, 0, 8192), before);
    // Command blocks of impossible lengths.
    for length in [0, 9, 17, 255] {
        let mut request = scsi_request(0, &READ, data_in(4096));
        request.cdb_length = length;
        let id = channel.submit(&request, data_in(4096));
        assert_eq!(channel.result(id).srb_status, 0x84, "{length}");
    }
    assert_eq!(channel.command(0, &READ, data_in(4096)).srb_status, 1);
}

fn random_requests_do_no_harm(io: Io) {
    let mut guest = guest(io);
    guest
        .handle
        .attach(1, Attachment::Dvd(Some(TestMedium::new(64, 2048))))
        .unwrap();
    let mut channel = guest.ready();
    let mut random = 7_u64;
    for _ in 0..3000 {
        let mut packet = Packet::new(operation::EXECUTE_SRB);
        for byte in &mut packet.payload {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (random >> 56) as u8 & (random >> 48) as u8;
        }
        // Mostly at units that exist.
        let lun = packet.payload[7] & 1;
        packet.payload[5..8].copy_from_slice(&[0, 0, lun]);
        let list = page_list(data_in(2048));
        let id = channel.send_raw(packet.as_bytes(), Some(&list));
        channel.completion(id);
    }
    assert_eq!(channel.command(0, &READY, NO_DATA).sense_length & !18, 0);
    let capacity = [op::READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut tries = (0..10).map(|_| channel.command(0, &capacity, data_in(8)).srb_status);
    assert!(tries.any(|status| status == 1));
}

fn a_broken_ring_takes_only_its_channel_down(io: Io) {
    let mut guest = guest(io);
    let channel = guest.ready();
    let memory = guest.loopback.memory().clone();
    // The guest's index, far outside of the ring.
    memory.store_u32(16 * 4096, 0xffff_fff0).unwrap();
    channel.ring.signal();
    guest.client.close(channel.ring).unwrap();
    let mut channel = guest.ready();
    assert_eq!(channel.command(0, &READY, NO_DATA).srb_status, 1);
    guest.client.close(channel.ring).unwrap();
    guest.client.unload().unwrap();
    guest.bus.stop();
}

fn a_guest_that_reads_no_answers_can_still_close(io: Io) {
    let mut guest = guest(io);
    let mut channel = guest.ready();
    // More answers than the ring to the guest holds.
    for _ in 0..2000 {
        let packet =
            Packet::new(operation::EXECUTE_SRB).with_payload(&scsi_request(0, &READY, NO_DATA));
        let data = [packet.as_bytes()];
        let packet = vmbus::ring::PacketOut::in_band(1, &data).with_completion_requested();
        if !channel.ring.try_send(&packet).unwrap() {
            break;
        }
    }
    // The host must not wait for the guest either.
    guest.handle.attach(9, Attachment::Dvd(None)).unwrap();
    guest.handle.detach(9).unwrap();
    guest.client.close(channel.ring).unwrap();
    let mut channel = guest.ready();
    assert_eq!(channel.command(0, &READY, NO_DATA).srb_status, 1);
}
