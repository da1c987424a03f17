//! Virtual disk files, in place and with a copy.

use super::*;
use crate::storage::medium::{DataBuffer, HeapBuffer};
use crate::storage::memory::GuestMemory;
use disk::ops::{create, open};
use disk::{CreateOptions, Format, OpenOptions};
use std::path::Path;
use vid::{Partition, PartitionConfig, RamRange};
use vmbus::protocol::GpaRange;

const SIZE: u64 = 8 << 20;

fn partition() -> Arc<Partition> {
    let ram = vec![RamRange {
        gpa: 0,
        size: 1 << 20,
    }];
    Partition::new(&PartitionConfig {
        processors: 1,
        ram,
        processor_mode: vid::ProcessorMode::default(),
    })
    .unwrap()
    .0
}

/// A buffer in a guest's memory: two pieces, with a border inside a sector.
fn guest_buffer(partition: &Partition, length: u32) -> Box<dyn DataBuffer> {
    let range = |byte_count: u32, byte_offset: u32, first: u64| {
        let count = GpaRange::page_count(byte_count, byte_offset) as u64;
        GpaRange {
            byte_count,
            byte_offset,
            pfns: (first..first + count).collect(),
        }
    };
    partition
        .buffer(&[range(700, 0xf00, 3), range(length - 700, 0x123, 40)])
        .unwrap()
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|at| (at / 512) as u8 ^ at as u8 ^ seed)
        .collect()
}

fn write(medium: &DiskMedium, buffer: &dyn DataBuffer, offset: u64, data: &[u8]) {
    buffer.write(0, data).unwrap();
    medium
        .write(offset, DataRange::new(buffer, data.len()).unwrap(), true)
        .unwrap();
}

fn read(medium: &DiskMedium, buffer: &dyn DataBuffer, offset: u64, length: usize) -> Vec<u8> {
    buffer.write(0, &vec![0xee; length]).unwrap();
    medium
        .read(offset, DataRange::new(buffer, length).unwrap())
        .unwrap();
    let mut data = vec![0; length];
    buffer.read(0, &mut data).unwrap();
    data
}

/// Writes and reads over borders of blocks, through both kinds of buffers.
fn exercise(path: &Path) {
    let partition = partition();
    let length = 64 << 10;
    let buffers: [Box<dyn DataBuffer>; 2] = [
        guest_buffer(&partition, length as u32),
        Box::new(HeapBuffer::new(vec![0; length])),
    ];
    let medium = DiskMedium::new(open(path, &OpenOptions::default()).unwrap());
    assert_eq!(medium.info().size, SIZE);
    for (seed, buffer) in buffers.iter().enumerate() {
        let (seed, buffer) = (seed as u8 + 1, &**buffer);
        let offset = (2 << 20) - 32 * 1024;
        let data = pattern(length, seed);
        // First into nowhere, then in place.
        for data in [data.clone(), pattern(length, seed ^ 0x80), data] {
            write(&medium, buffer, offset, &data);
            for other in &buffers {
                assert_eq!(read(&medium, &**other, offset, length), data);
            }
        }
        assert_eq!(read(&medium, buffer, 6 << 20, 4096), [0; 4096]);
    }
    medium.write_zeroes(2 << 20, 4096).unwrap();
    assert_eq!(read(&medium, &*buffers[0], 2 << 20, 4096), [0; 4096]);
    medium.unmap(2 << 20, 2 << 20).unwrap();
    medium.flush().unwrap();
    let kept = pattern(length, 2);
    assert_eq!(
        read(&medium, &*buffers[0], (2 << 20) - 512, 512),
        kept[length / 2 - 512..][..512]
    );
}

#[test]
fn every_format() {
    let folder = tempfile::tempdir().unwrap();
    for (name, format, kind) in [
        ("a.raw", Format::Raw, DiskKind::Fixed),
        ("a.vhdx", Format::Vhdx, DiskKind::Dynamic),
        ("b.vhdx", Format::Vhdx, DiskKind::Fixed),
        ("a.vhd", Format::Vhd, DiskKind::Dynamic),
    ] {
        let path = folder.path().join(name);
        let mut options = CreateOptions::new(format, kind, SIZE);
        if kind == DiskKind::Dynamic {
            options.block_size = Some(2 << 20);
        }
        create(&path, &options).unwrap();
        exercise(&path);
    }
}

#[test]
fn differencing_disks_read_through_their_parents() {
    let folder = tempfile::tempdir().unwrap();
    let (parent, child) = (folder.path().join("p.vhdx"), folder.path().join("c.vhdx"));
    create(
        &parent,
        &CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, SIZE),
    )
    .unwrap();
    let partition = partition();
    let buffer = guest_buffer(&partition, 64 << 10);
    {
        let medium = DiskMedium::new(open(&parent, &OpenOptions::default()).unwrap());
        write(&medium, &*buffer, 4096, &pattern(8192, 1));
    }
    create(&child, &CreateOptions::differencing(Format::Vhdx, &parent)).unwrap();
    let medium = DiskMedium::new(open(&child, &OpenOptions::default()).unwrap());
    assert_eq!(read(&medium, &*buffer, 4096, 8192), pattern(8192, 1));
    write(&medium, &*buffer, 8192, &pattern(512, 9));
    let data = read(&medium, &*buffer, 0, 16384);
    assert_eq!(data[..4096], [0; 4096]);
    assert_eq!(data[4096..8192], pattern(8192, 1)[..4096]);
    assert_eq!(data[8192..8704], pattern(512, 9));
    assert_eq!(data[8704..12288], pattern(8192, 1)[4608..]);
    assert_eq!(data[12288..], [0; 4096]);
}

#[test]
fn read_only_media_refuse_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhdx");
    create(
        &path,
        &CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, SIZE),
    )
    .unwrap();
    let medium = DiskMedium::read_only(open(&path, &OpenOptions::default()).unwrap());
    assert!(medium.info().read_only);
    let buffer = HeapBuffer::new(vec![0; 512]);
    let data = DataRange::new(&buffer, 512).unwrap();
    assert!(matches!(
        medium.write(0, data, false),
        Err(MediumError::ReadOnly)
    ));
    assert!(matches!(medium.unmap(0, 512), Err(MediumError::ReadOnly)));
    assert!(matches!(
        medium.write_zeroes(0, 512),
        Err(MediumError::ReadOnly)
    ));
    let beyond = medium.read(SIZE, data);
    assert!(matches!(beyond, Err(MediumError::OutOfRange)));
}
