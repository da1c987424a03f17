//! `vhd_open` and `vhdx_open`: disk images with right checksums.
//!
//! An image either opens, or is refused without a change. One that opens takes
//! requests, and can be opened again afterwards.

use crate::memory;
use disk::backing::{Backing, SimBacking};
use disk::{Access, Vhd, Vhdx, VirtualDisk};
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bytes of a VHDX file: it may have blocks behind its structures.
const VHDX_SIZE: usize = 6 * MIB;
/// Bytes that a target's disks may allocate: a simulated file remembers what
/// was changed since it was flushed.
const ALLOWED: usize = 96 * MIB;

/// A VHDX file is mostly zeros: an input fills its structures, each from a
/// part of its own, laid out as Partita does.
const VHDX_PARTS: [Range<usize>; 8] = [
    // Identifier, headers, region table.
    0..16,
    64 * KIB..64 * KIB + 96,
    128 * KIB..128 * KIB + 96,
    192 * KIB..192 * KIB + 112,
    // Log, metadata table, block allocation table, metadata.
    MIB..MIB + 16 * KIB,
    2 * MIB..2 * MIB + 256,
    3 * MIB..3 * MIB + 4 * KIB,
    2 * MIB + 64 * KIB..2 * MIB + 96 * KIB,
];

/// What has a checksum in its second word: where, and how long it is.
const VHDX_SEALED: [Range<usize>; 4] = [
    64 * KIB..68 * KIB,
    128 * KIB..132 * KIB,
    192 * KIB..256 * KIB,
    256 * KIB..320 * KIB,
];

fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

/// The file of an input.
fn vhdx_file(data: &[u8]) -> SimBacking {
    let mut bytes = vec![0; 3 * MIB + 4 * KIB];
    let mut rest = data;
    for part in VHDX_PARTS {
        let (here, behind) = rest.split_at(part.len().min(rest.len()));
        bytes[part.start..part.start + here.len()].copy_from_slice(here);
        rest = behind;
    }
    bytes.copy_within(192 * KIB..256 * KIB, 256 * KIB);
    for part in VHDX_SEALED {
        seal(&mut bytes[part]);
    }
    // Entries of the log, each as long as it says.
    let mut at = MIB;
    while bytes[at..].starts_with(b"loge") {
        let length = bytes[at + 8..at + 12]
            .try_into()
            .map_or(0, u32::from_le_bytes) as usize;
        if !(64..=64 * KIB).contains(&length) || at + length > 2 * MIB {
            break;
        }
        seal(&mut bytes[at..at + length]);
        at += length.next_multiple_of(4 * KIB);
    }
    let file = SimBacking::new();
    file.set_len(VHDX_SIZE as u64).expect("a file in memory");
    for part in VHDX_SEALED.into_iter().chain(VHDX_PARTS) {
        let (at, bytes) = (part.start as u64, &bytes[part]);
        let written = file.write_at(at, &[IoSlice::new(bytes)]);
        written.expect("a file in memory");
    }
    file.flush().expect("a file in memory");
    file
}

/// The input that makes (about) this file: what a seed is.
pub fn vhdx_input(file: &[u8]) -> Vec<u8> {
    let part = |range: Range<usize>| {
        let mut bytes = vec![0; range.len()];
        let end = range.end.min(file.len());
        bytes[..end - range.start].copy_from_slice(&file[range.start..end]);
        bytes
    };
    let mut input: Vec<u8> = VHDX_PARTS.into_iter().flat_map(part).collect();
    while input.last() == Some(&0) {
        input.pop();
    }
    input
}

/// The file of an input: with right checksums of its footers and its header.
fn vhd_file(data: &[u8]) -> SimBacking {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().next_multiple_of(512).max(2048), 0);
    let end = bytes.len() - 512;
    for (at, length, field) in [(0, 512, 64), (end, 512, 64), (512, 1024, 36)] {
        let part = &mut bytes[at..at + length];
        part[field..field + 4].fill(0);
        let sum = part
            .iter()
            .fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        part[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
    SimBacking::from_bytes(&bytes)
}

/// Uses a disk as a guest does: errors are as good as results.
fn exercise(disk: &dyn VirtualDisk) {
    let sector = u64::from(disk.logical_sector_size());
    let size = disk.virtual_size();
    assert!(size > 0 && size.is_multiple_of(sector), "{size} bytes");
    let mut buffer = [0xa5; 4096];
    let length = size.min(4096) / sector * sector;
    let offsets = [0, size / 2 / sector * sector, size - length];
    for offset in offsets {
        let offset = offset.min(size - length);
        let bytes = &mut buffer[..length as usize];
        let _ = disk.read(offset, &mut [IoSliceMut::new(bytes)]);
        let _ = disk.write(offset, &[IoSlice::new(bytes)], offset == 0);
        let _ = disk.map(offset, length, Access::Read);
        let _ = disk.write_zeroes(offset, sector);
        let _ = disk.unmap(offset, length);
        let _ = disk.write(offset, &[IoSlice::new(bytes)], false);
    }
    let _ = disk.read(0, &mut [IoSliceMut::new(&mut buffer)]);
    assert!(
        disk.read(size, &mut [IoSliceMut::new(&mut buffer)])
            .is_err()
    );
    let _ = disk.flush();
    let _ = disk.info();
}

fn run<D: VirtualDisk>(file: SimBacking, open: impl Fn(Arc<dyn Backing>) -> Option<D>) {
    let file = Arc::new(file);
    let before = file.changes();
    let Some(disk) = open(file.clone()) else {
        assert_eq!(file.changes(), before, "a refused image is changed");
        return;
    };
    exercise(&disk);
    drop(disk);
    assert!(open(file).is_some(), "an image that was used opens no more");
}

/// Target `vhdx_open`.
pub fn run_vhdx(data: &[u8]) {
    let open = |file| Vhdx::open(file, &|_| Ok(None)).ok();
    memory::limited(ALLOWED, || run(vhdx_file(data), open));
}

/// Target `vhd_open`.
pub fn run_vhd(data: &[u8]) {
    let open = |file| Vhd::open(file, &|_| Ok(None)).ok();
    memory::limited(ALLOWED, || run(vhd_file(data), open));
}
