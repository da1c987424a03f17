//! Random operations on every kind of disk, against plain memory.

mod common;

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use common::{MIB, Parent, blank, child_of, open, pattern, read, write};
use disk::backing::SimBacking;
use disk::{Access, DiskKind, Format, Place, VirtualDisk};

const SECTOR: u64 = 512;

struct Rig {
    format: Format,
    file: Arc<SimBacking>,
    parent: Parent,
    disk: Arc<dyn VirtualDisk>,
    model: Vec<u8>,
    random: fastrand::Rng,
}

impl Rig {
    fn new(format: Format, file: Arc<SimBacking>, parent: Parent, seed: u64) -> Self {
        let disk = open(format, file.clone(), parent.clone()).expect("open");
        let model = read(&*disk, 0, disk.virtual_size() as usize);
        Self {
            format,
            file,
            parent,
            disk,
            model,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    fn range(&mut self, longest: u64) -> (u64, usize) {
        let sectors = self.model.len() as u64 / SECTOR;
        let start = self.random.u64(..sectors);
        let len = self.random.u64(1..=(sectors - start).min(longest / SECTOR));
        (start * SECTOR, (len * SECTOR) as usize)
    }

    fn step(&mut self) {
        match self.random.u32(..100) {
            0..45 => self.write(),
            45..75 => self.read(),
            75..82 => self.zero(),
            82..88 => self.unmap(),
            88..93 => self.disk.flush().expect("flush"),
            93..96 => self.reopen(),
            96..98 => self.grow(),
            _ => self.map(),
        }
    }

    fn write(&mut self) {
        let (offset, len) = self.range(300 << 10);
        let bytes = pattern(self.random.u64(..), len);
        let cut = self.random.usize(..=len);
        let list = [
            IoSlice::new(&bytes[..cut]),
            IoSlice::new(&[]),
            IoSlice::new(&bytes[cut..]),
        ];
        self.disk
            .write(offset, &list, self.random.u8(..) < 20)
            .expect("write");
        self.model[offset as usize..offset as usize + len].copy_from_slice(&bytes);
    }

    fn read(&mut self) {
        let (offset, len) = self.range(2 * MIB);
        let mut bytes = vec![0xee; len];
        let cut = self.random.usize(..=len);
        let (head, tail) = bytes.split_at_mut(cut);
        let mut list = [IoSliceMut::new(head), IoSliceMut::new(tail)];
        self.disk.read(offset, &mut list).expect("read");
        assert!(
            bytes == self.model[offset as usize..offset as usize + len],
            "at {offset:#x}+{len:#x}"
        );
    }

    fn zero(&mut self) {
        let (offset, len) = self.range(3 * MIB);
        self.disk.write_zeroes(offset, len as u64).expect("zero");
        self.model[offset as usize..offset as usize + len].fill(0);
    }

    /// What is unmapped reads as zeros or as before, and stays what it was read as.
    fn unmap(&mut self) {
        let (offset, len) = self.range(3 * MIB);
        self.disk.unmap(offset, len as u64).expect("unmap");
        let after = read(&*self.disk, offset, len);
        let before = &mut self.model[offset as usize..offset as usize + len];
        for (new, old) in after.chunks(512).zip(before.chunks_mut(512)) {
            assert!(new == old || new.iter().all(|b| *b == 0));
            old.copy_from_slice(new);
        }
    }

    fn reopen(&mut self) {
        self.disk.close().expect("close");
        self.disk = open(self.format, self.file.clone(), self.parent.clone()).expect("reopen");
    }

    fn grow(&mut self) {
        let size = self.model.len() as u64;
        if size > 24 * MIB {
            return;
        }
        let size = size + self.random.u64(1..4000) * SECTOR;
        self.disk.resize(size).expect("grow");
        self.model.resize(size as usize, 0);
    }

    fn map(&mut self) {
        let (offset, len) = self.range(4 * MIB);
        let mapping = self
            .disk
            .map(offset, len as u64, Access::Read)
            .expect("map");
        let mut at = offset;
        for extent in &mapping.extents {
            assert_eq!(extent.offset, at);
            at += extent.len;
            let model = &self.model[extent.offset as usize..(extent.offset + extent.len) as usize];
            match extent.place {
                Place::File(place) => {
                    let mut bytes = vec![0; extent.len as usize];
                    let mut list = [IoSliceMut::new(&mut bytes)];
                    disk::backing::Backing::read_at(&*self.file, place, &mut list).expect("read");
                    assert!(bytes == model);
                }
                Place::Zero => assert!(model.iter().all(|b| *b == 0)),
                Place::Parent => assert!(self.parent.is_some()),
            }
        }
        assert_eq!(at, offset + len as u64);
    }

    fn run(mut self, steps: usize) {
        for _ in 0..steps {
            self.step();
        }
        self.reopen();
        assert!(read(&*self.disk, 0, self.model.len()) == self.model);
    }
}

fn alone(format: Format, kind: DiskKind, block: u32) {
    for seed in 0..3 {
        let file = blank(format, kind, 9 * MIB + 512 * 7, block);
        Rig::new(format, file, None, seed).run(250);
    }
}

fn with_parent(format: Format, block: u32) {
    for seed in 0..3 {
        let base = blank(format, DiskKind::Dynamic, 9 * MIB + 512 * 7, block);
        let parent = open(format, base.clone(), None).expect("open");
        for i in 0..12 {
            let bytes = pattern(i, 200 << 10);
            write(&*parent, i * 700 * 1024, &bytes);
        }
        parent.close().expect("close");
        drop(parent);
        let parent = open(format, Arc::new(base.read_only_copy()), None).expect("open");
        let file = child_of(&*parent, block);
        Rig::new(format, file, Some(parent), seed).run(250);
    }
}

#[test]
fn vhdx_dynamic() {
    alone(Format::Vhdx, DiskKind::Dynamic, 1 << 20);
    alone(Format::Vhdx, DiskKind::Dynamic, 4 << 20);
}

#[test]
fn vhdx_fixed() {
    alone(Format::Vhdx, DiskKind::Fixed, 1 << 20);
}

#[test]
fn vhdx_differencing() {
    with_parent(Format::Vhdx, 1 << 20);
    with_parent(Format::Vhdx, 2 << 20);
}

#[test]
fn vhd_fixed_and_dynamic() {
    alone(Format::Vhd, DiskKind::Fixed, 0);
    alone(Format::Vhd, DiskKind::Dynamic, 512 << 10);
}

#[test]
fn vhd_differencing() {
    with_parent(Format::Vhd, 512 << 10);
}

#[test]
fn raw() {
    for seed in 0..3 {
        let file = Arc::new(SimBacking::from_bytes(&vec![0; 9 * MIB as usize]));
        Rig::new(Format::Raw, file, None, seed).run(150);
    }
}

/// One of eight threads on a disk: each owns every eighth 64 KiB, so that blocks are shared and
/// sectors are not.
fn work(disk: &dyn VirtualDisk, thread: u64, parent_byte: u8) {
    const SLOT: u64 = 64 << 10;
    let mut random = fastrand::Rng::with_seed(thread);
    let slot = |i: u64| (i * 8 + thread) * SLOT;
    let mut model = std::collections::HashMap::new();
    for _ in 0..300 {
        let (i, seed) = (random.u64(..128), random.u64(1..));
        match random.u8(..12) {
            0..5 => {
                write(disk, slot(i), &pattern(seed, SLOT as usize));
                model.insert(i, seed);
            }
            5..9 => {
                let bytes = read(disk, slot(i), SLOT as usize);
                match model.get(&i) {
                    Some(0) => assert!(bytes.iter().all(|b| *b == 0)),
                    Some(seed) => assert!(bytes == pattern(*seed, SLOT as usize)),
                    None => assert!(bytes.iter().all(|b| *b == parent_byte)),
                }
            }
            9 => {
                disk.write_zeroes(slot(i), SLOT).expect("zero");
                model.insert(i, 0);
            }
            10 => {
                // Straight to the file, as an asynchronous back end does it.
                let mapping = disk.map(slot(i), SLOT, Access::Write).expect("map");
                assert!(mapping.extents.iter().map(|e| e.len).sum::<u64>() == SLOT);
            }
            _ => disk.flush().expect("flush"),
        }
    }
}

#[test]
fn many_threads_while_the_disk_is_compacted_and_grown() {
    let base = blank(Format::Vhdx, DiskKind::Dynamic, 64 * MIB, 1 << 20);
    let parent = open(Format::Vhdx, base.clone(), None).expect("open");
    write(&*parent, 0, &vec![9; 64 * MIB as usize]);
    drop(parent);
    let parent = open(Format::Vhdx, Arc::new(base.read_only_copy()), None).expect("open");
    let child = child_of(&*parent, 1 << 20);
    let alone = blank(Format::Vhdx, DiskKind::Dynamic, 64 * MIB, 1 << 20);
    for (file, parent, byte) in [(alone, None, 0), (child, Some(parent), 9)] {
        let resolve = |_: &disk::ParentInfo| Ok(parent.clone().map(|p| ("parent".into(), p)));
        let disk = disk::Vhdx::open(file.clone(), &resolve).expect("open");
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let disk = &disk;
                scope.spawn(move || work(disk, thread, byte));
            }
            for round in 1..4 {
                disk.compact(&mut disk::no_progress()).expect("compact");
                disk.resize(64 * MIB + round * 512).expect("grow");
            }
        });
        let before = read(&disk, 0, 64 * MIB as usize);
        disk.compact(&mut disk::no_progress()).expect("compact");
        drop(disk);
        let disk = open(Format::Vhdx, file, parent).expect("open again");
        assert!(read(&*disk, 0, 64 * MIB as usize) == before);
    }
}
