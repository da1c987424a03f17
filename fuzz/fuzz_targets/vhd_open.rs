//! VHD parser: any bytes either open or are refused without a change; an open disk takes requests.

#![no_main]

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use disk::backing::SimBacking;
use disk::{Vhd, VirtualDisk};
use libfuzzer_sys::fuzz_target;

/// Puts right checksums on the input's footers and header, which random bytes never have.
fn image(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().next_multiple_of(512).max(2048), 0);
    let end = bytes.len() - 512;
    for (at, len, field) in [(0, 512, 64), (end, 512, 64), (512, 1024, 36)] {
        let part = &mut bytes[at..at + len];
        part[field..field + 4].fill(0);
        let sum = !part
            .iter()
            .fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
        part[field..field + 4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fuzz_target!(|data: &[u8]| {
    let file = Arc::new(SimBacking::from_bytes(&image(data)));
    let Ok(disk) = Vhd::open(file.clone(), &|_| Ok(None)) else {
        assert_eq!(file.changes(), 0);
        return;
    };
    let mut buffer = [0; 512];
    let last = disk.virtual_size() - 512;
    for at in [0, last] {
        let _ = disk.read(at, &mut [IoSliceMut::new(&mut buffer)]);
        let _ = disk.write(at, &[IoSlice::new(&buffer)], true);
        let _ = disk.write_zeroes(at, 512);
    }
});
