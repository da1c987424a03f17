//! VHDX parser: any bytes either open or are refused without a change; an open disk takes requests.

#![no_main]

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use disk::backing::SimBacking;
use disk::{Vhdx, VirtualDisk};
use libfuzzer_sys::fuzz_target;

/// A VHDX file is mostly zeros: the input fills its structures, each from its own part.
const PARTS: [(usize, usize); 7] = [
    (0, 16),
    (64 << 10, 96),
    (128 << 10, 96),
    (192 << 10, 112),
    (1 << 20, 8192),
    (2 << 20, 256),
    (3 << 20, 4096),
];

fn image(data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 6 << 20];
    let mut rest = data;
    for (at, len) in PARTS {
        let n = len.min(rest.len());
        bytes[at..at + n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
    }
    let n = rest.len().min(32 << 10);
    bytes[(2 << 20) + (64 << 10)..][..n].copy_from_slice(&rest[..n]);
    bytes.copy_within(192 << 10..256 << 10, 256 << 10);
    for (at, len) in [
        (64 << 10, 4096),
        (128 << 10, 4096),
        (192 << 10, 65536),
        (256 << 10, 65536),
    ] {
        seal(&mut bytes[at..at + len]);
    }
    let len = u32::from_le_bytes(bytes[(1 << 20) + 8..][..4].try_into().unwrap_or_default());
    if (64..=1 << 20).contains(&len) {
        seal(&mut bytes[1 << 20..][..len as usize]);
    }
    bytes
}

fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = crc32c::crc32c(bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
}

fuzz_target!(|data: &[u8]| {
    let file = Arc::new(SimBacking::from_bytes(&image(data)));
    let Ok(disk) = Vhdx::open(file.clone(), &|_| Ok(None)) else {
        assert_eq!(file.changes(), 0);
        return;
    };
    let mut buffer = [0; 4096];
    let last = disk.virtual_size().saturating_sub(4096) / 4096 * 4096;
    for at in [0, last] {
        let _ = disk.read(at, &mut [IoSliceMut::new(&mut buffer)]);
        let _ = disk.write(at, &[IoSlice::new(&buffer)], true);
        let _ = disk.unmap(at, 4096);
    }
});
