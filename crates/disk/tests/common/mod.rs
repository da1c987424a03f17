//! What the tests of this crate share.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses another part of this"
)]

use std::io::{IoSlice, IoSliceMut};
use std::path::PathBuf;
use std::sync::Arc;

use disk::backing::{Backing, SimBacking};
use disk::ops::create_on;
use disk::{CreateOptions, DiskKind, Format, ParentInfo, Result, Vhd, Vhdx, VirtualDisk};

pub const MIB: u64 = 1 << 20;

pub type Parent = Option<Arc<dyn VirtualDisk>>;

/// Opens a disk on a simulated file.
pub fn open(
    format: Format,
    file: Arc<dyn Backing>,
    parent: Parent,
) -> Result<Arc<dyn VirtualDisk>> {
    let resolve = |_: &ParentInfo| Ok(parent.clone().map(|p| (PathBuf::from("parent"), p)));
    Ok(match format {
        Format::Vhdx => Arc::new(Vhdx::open(file, &resolve)?),
        Format::Vhd => Arc::new(Vhd::open(file, &resolve)?),
        Format::Raw => Arc::new(disk::RawDisk::new(file, 512, true)?),
    })
}

/// An empty disk on a simulated file.
pub fn blank(format: Format, kind: DiskKind, size: u64, block: u32) -> Arc<SimBacking> {
    let file = Arc::new(SimBacking::new());
    let options = CreateOptions {
        block_size: Some(block),
        ..CreateOptions::new(format, kind, size)
    };
    create_on(&*file, &options, None).expect("create");
    file
}

/// An empty child of a disk, on a simulated file.
pub fn child_of(parent: &dyn VirtualDisk, block: u32) -> Arc<SimBacking> {
    let file = Arc::new(SimBacking::new());
    let info = parent.info();
    let options = CreateOptions {
        block_size: Some(block),
        ..CreateOptions::differencing(info.format, "parent".as_ref())
    };
    create_on(&*file, &options, Some(&info)).expect("create child");
    file
}

pub fn read(disk: &dyn VirtualDisk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    disk.read(offset, &mut [IoSliceMut::new(&mut bytes)])
        .expect("read");
    bytes
}

pub fn write(disk: &dyn VirtualDisk, offset: u64, bytes: &[u8]) {
    disk.write(offset, &[IoSlice::new(bytes)], false)
        .expect("write");
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(1..)).collect()
}
