//! Disks in files.

use super::guest::{Channel, DATA_PAGE, Data, Guest, NO_DATA, each_way, scsi_request};
use crate::storage::scsi::op;
use crate::storage::{Attachment, DiskMedium, Io};
use disk::ops::{create, open};
use disk::{CreateOptions, DiskKind, Format, OpenOptions};
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::path::Path;
use std::sync::Arc;

const SIZE: usize = 8 << 20;
const SECTORS: u64 = SIZE as u64 / 512;
/// Requests that are on their way at once, each with a buffer of its own.
const LANES: u64 = 24;
/// Pages of each buffer.
const LANE_PAGES: u64 = 8;

each_way!(
    every_format_holds_what_was_written,
    forced_writes_and_flushes,
    a_file_that_was_cut,
);

fn disk(path: &Path) -> Attachment {
    let disk = open(path, &OpenOptions::default()).unwrap();
    Attachment::Disk(Arc::new(DiskMedium::new(disk)))
}

fn transfer(opcode: u8, flags: u8, lba: u64, sectors: u64) -> [u8; 10] {
    let (lba, sectors) = ((lba as u32).to_be_bytes(), (sectors as u16).to_be_bytes());
    let [a, b, c, d] = lba;
    [opcode, flags, a, b, c, d, 0, sectors[0], sectors[1], 0]
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A request that is on its way, and what a read should bring.
struct Sent {
    id: u64,
    data: Data,
    expected: Option<Vec<u8>>,
}

/// Random requests, many at once, compared with a model. Those that are on
/// their way do not overlap: their order would not be certain.
fn exercise(guest: &Guest, channel: &mut Channel, model: &mut [u8], rounds: u64, seed: u64) {
    let mut random = Random(seed);
    let mut sent: VecDeque<Sent> = VecDeque::new();
    let stripe = SECTORS / LANES;
    for round in 0..rounds {
        let lane = round % LANES;
        if sent.len() as u64 == LANES {
            settle(guest, channel, sent.pop_front().unwrap());
        }
        let sectors = 1 + random.below(LANE_PAGES * 8 - 8);
        let lba = lane * stripe + random.below(stripe - sectors);
        let (at, length) = (lba as usize * 512, sectors as usize * 512);
        let write = random.below(2) == 0;
        let data = Data {
            page: DATA_PAGE + lane * LANE_PAGES,
            offset: random.below(4096) as u32,
            length: length as u32,
            data_in: u8::from(!write),
        };
        let expected = if write {
            let bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
            guest.write_memory(data.page, data.offset as usize, &bytes);
            model[at..at + length].copy_from_slice(&bytes);
            None
        } else {
            Some(model[at..at + length].to_vec())
        };
        let opcode = if write { op::WRITE_10 } else { op::READ_10 };
        let cdb = transfer(opcode, 0, lba, sectors);
        let id = channel.submit(&scsi_request(0, &cdb, data), data);
        sent.push_back(Sent { id, data, expected });
    }
    for sent in sent {
        settle(guest, channel, sent);
    }
}

fn settle(guest: &Guest, channel: &mut Channel, sent: Sent) {
    let result = channel.result(sent.id);
    assert_eq!(result.srb_status, 1);
    assert_eq!(result.data_transfer_length, sent.data.length);
    if let Some(expected) = sent.expected {
        let (page, offset) = (sent.data.page, sent.data.offset as usize);
        assert!(guest.read_memory(page, offset, expected.len()) == expected);
    }
}

fn every_format_holds_what_was_written(io: Io) {
    let folder = tempfile::tempdir().unwrap();
    for (name, format, kind) in [
        ("a.raw", Format::Raw, DiskKind::Fixed),
        ("a.vhdx", Format::Vhdx, DiskKind::Dynamic),
        ("b.vhdx", Format::Vhdx, DiskKind::Fixed),
        ("a.vhd", Format::Vhd, DiskKind::Dynamic),
    ] {
        let path = folder.path().join(name);
        let mut options = CreateOptions::new(format, kind, SIZE as u64);
        if kind == DiskKind::Dynamic {
            // Requests cross the borders of blocks.
            options.block_size = Some(if format == Format::Vhd {
                512 << 10
            } else {
                1 << 20
            });
        }
        create(&path, &options).unwrap();
        let mut guest = Guest::new(0, io);
        guest.handle.attach(0, disk(&path)).unwrap();
        let mut channel = guest.ready();
        let mut model = vec![0; SIZE];
        exercise(&guest, &mut channel, &mut model, 1200, 7);
        guest.client.close(channel.ring).unwrap();
        // The same again, on blocks that are there.
        let mut channel = guest.ready();
        exercise(&guest, &mut channel, &mut model, 1200, 8);
        let statistics = guest.handle.statistics().luns[0].1;
        assert_eq!(statistics.reads + statistics.writes, 2400, "{name}");
        assert_eq!(statistics.errors, 0);
        guest.handle.detach(0).unwrap();
        let disk = open(&path, &OpenOptions::default()).unwrap();
        let mut back = vec![0; SIZE];
        disk.read(0, &mut [IoSliceMut::new(&mut back)]).unwrap();
        assert!(back == model, "{name}");
    }
}

fn forced_writes_and_flushes(io: Io) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    let options = CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, SIZE as u64);
    create(&path, &options).unwrap();
    let mut guest = Guest::new(0, io);
    guest.handle.attach(0, disk(&path)).unwrap();
    let mut channel = guest.ready();
    let ids: Vec<u64> = (0..100)
        .map(|at| {
            let data = Data {
                page: DATA_PAGE + at,
                offset: 0,
                length: 4096,
                data_in: 0,
            };
            guest.write_memory(data.page, 0, &[at as u8 + 1; 4096]);
            let cdb = transfer(op::WRITE_10, 8, at * 8, 8);
            channel.submit(&scsi_request(0, &cdb, data), data)
        })
        .collect();
    let flush = [op::SYNCHRONIZE_CACHE_10, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(channel.command(0, &flush, NO_DATA).srb_status, 1);
    for id in ids {
        assert_eq!(channel.result(id).data_transfer_length, 4096);
    }
    guest.handle.detach(0).unwrap();
    let disk = open(&path, &OpenOptions::default()).unwrap();
    let mut back = vec![0; 100 * 4096];
    disk.read(0, &mut [IoSliceMut::new(&mut back)]).unwrap();
    assert!((0..100).all(|at| back[at * 4096..][..4096] == [at as u8 + 1; 4096]));
}

fn a_file_that_was_cut(io: Io) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.raw");
    std::fs::write(&path, vec![7; SIZE]).unwrap();
    let mut guest = Guest::new(0, io);
    guest.handle.attach(0, disk(&path)).unwrap();
    let mut channel = guest.ready();
    let cut = std::fs::File::options().write(true).open(&path).unwrap();
    cut.set_len(SIZE as u64 / 2 + 1024).unwrap();
    let data = |lane: u64| Data {
        page: DATA_PAGE + lane * LANE_PAGES,
        offset: 0,
        length: 4096,
        data_in: 1,
    };
    // Before the end, across it, behind it.
    let ids: Vec<u64> = [0, SECTORS / 2, SECTORS / 2 + 8]
        .into_iter()
        .zip(0..)
        .map(|(lba, lane)| {
            let cdb = transfer(op::READ_10, 0, lba, 8);
            channel.submit(&scsi_request(0, &cdb, data(lane)), data(lane))
        })
        .collect();
    let results: Vec<_> = ids.into_iter().map(|id| channel.result(id)).collect();
    assert_eq!(
        (results[0].srb_status, results[0].data_transfer_length),
        (1, 4096)
    );
    for result in &results[1..] {
        assert_eq!((result.srb_status, result.data_transfer_length), (0x84, 0));
        // MEDIUM ERROR, unrecovered read error.
        let sense = result.payload;
        assert_eq!((sense[2], sense[12], sense[13]), (3, 0x11, 0));
    }
    assert_eq!(guest.handle.statistics().luns[0].1.errors, 2);
}
