//! Power cuts at every write boundary: nothing flushed is lost, and nothing is torn.

mod common;

use std::io::IoSliceMut;
use std::sync::Arc;

use common::{MIB, Parent, blank, child_of, open, write};
use disk::backing::{Backing, Crash, SimBacking};
use disk::{DiskKind, Format, Result, VirtualDisk};

const SECTOR: usize = 512;

/// What a sector may hold: 0 for zeros, otherwise the number of the write.
type Stamp = u32;

fn fill(stamp: Stamp, sector: u64, out: &mut [u8]) {
    let word = if stamp == 0 {
        0
    } else {
        u64::from(stamp) << 32 | sector
    };
    out.as_chunks_mut::<8>()
        .0
        .iter_mut()
        .for_each(|w| *w = word.to_le_bytes());
}

fn stamp_of(sector: u64, bytes: &[u8]) -> Option<Stamp> {
    let (words, _) = bytes.as_chunks::<8>();
    let first = u64::from_le_bytes(words[0]);
    let whole = words.iter().all(|w| *w == words[0]);
    let placed = first == 0 || first & 0xffff_ffff == sector;
    (whole && placed).then_some((first >> 32) as Stamp)
}

/// Every value that a sector may have after a cut: the flushed one first, then what came later.
struct Model {
    sectors: Vec<Vec<Stamp>>,
    sizes: Vec<u64>,
    next: Stamp,
}

impl Model {
    fn flushed(&mut self) {
        for values in &mut self.sectors {
            values.drain(..values.len() - 1);
        }
        self.sizes.drain(..self.sizes.len() - 1);
    }

    fn allows(&self, sector: u64, stamp: Stamp) -> bool {
        self.sectors
            .get(sector as usize)
            .is_none_or(|values| values.contains(&stamp))
    }
}

struct Script {
    format: Format,
    kind: DiskKind,
    block: u32,
    size: u64,
    seed: u64,
    steps: usize,
    /// Commits before the script begins, so that its own lie further on in the log.
    commits: u64,
}

impl Script {
    fn parent(&self) -> Parent {
        if self.kind != DiskKind::Differencing {
            return None;
        }
        let file = blank(self.format, DiskKind::Dynamic, self.size, self.block);
        let disk = open(self.format, file.clone(), None).expect("open");
        let mut bytes = vec![0; MIB as usize];
        for (sector, out) in bytes.chunks_mut(SECTOR).enumerate() {
            fill(1, sector as u64, out);
        }
        write(&*disk, 0, &bytes);
        disk.close().expect("close");
        drop(disk);
        Some(open(self.format, Arc::new(file.read_only_copy()), None).expect("open"))
    }

    fn file(&self, parent: &Parent) -> Arc<SimBacking> {
        match parent {
            Some(parent) => child_of(&**parent, self.block),
            None => blank(self.format, self.kind, self.size, self.block),
        }
    }

    fn model(&self, parent: &Parent) -> Model {
        let sectors = (0..self.size / SECTOR as u64)
            .map(|s| vec![Stamp::from(parent.is_some() && s < MIB / SECTOR as u64)])
            .collect();
        Model {
            sectors,
            sizes: vec![self.size],
            next: 2,
        }
    }

    /// Opens the disk and moves on in its log, of which 128 commits fill 1 MiB.
    fn begin(&self, file: &Arc<SimBacking>, parent: &Parent) -> Arc<dyn VirtualDisk> {
        let disk = open(self.format, file.clone(), parent.clone()).expect("open");
        for _ in 0..self.commits {
            write(&*disk, 0, &[0; SECTOR]);
            disk.flush().expect("flush");
            disk.unmap(0, u64::from(self.block)).expect("unmap");
            disk.flush().expect("flush");
        }
        disk
    }

    /// Runs until the end or the first failure.
    fn run(&self, disk: &dyn VirtualDisk, model: &mut Model) -> Result<()> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        for _ in 0..self.steps {
            let sectors = *model.sizes.last().expect("a size") / SECTOR as u64;
            let start = random.u64(..sectors);
            let count = random.u64(1..=(sectors - start).min(700));
            match random.u8(..20) {
                0..10 => step_write(disk, model, start, count, random.u8(..4) == 0)?,
                10..12 => step_zero(disk, model, start / 2048 * 2048, count * 4, true)?,
                12..14 => step_zero(disk, model, start / 2048 * 2048, count * 4, false)?,
                14 => step_grow(disk, model, random.u64(1..3000))?,
                15 => {
                    disk.close()?;
                    model.flushed();
                }
                _ => {
                    disk.flush()?;
                    model.flushed();
                }
            }
        }
        Ok(())
    }

    /// Cuts the power after each change that the whole script makes.
    fn cut_everywhere(&self) {
        let parent = self.parent();
        let file = self.file(&parent);
        let disk = self.begin(&file, &parent);
        let before = file.changes();
        self.run(&*disk, &mut self.model(&parent))
            .expect("no cut yet");
        let total = file.changes() - before;
        assert!(total > 40, "the script changes too little: {total}");
        for cut in 0..=total {
            self.cut_at(cut, &parent);
        }
    }

    fn cut_at(&self, cut: u64, parent: &Parent) {
        let file = self.file(parent);
        let disk = self.begin(&file, parent);
        file.fail_after(file.changes() + cut);
        let mut model = self.model(parent);
        let _ = self.run(&*disk, &mut model);
        let seed = self.seed * 1_000_003 + cut;
        for how in [
            Crash::KeepAll,
            Crash::DropAll,
            Crash::Random(seed),
            Crash::Random(!seed),
        ] {
            self.verify(
                &file.crash(how),
                parent,
                &model,
                &format!("cut {cut}, {how:?}"),
            );
        }
    }

    fn verify(&self, found: &SimBacking, parent: &Parent, model: &Model, what: &str) {
        let unchanged = Arc::new(found.read_only_copy());
        let disk = open(self.format, unchanged, parent.clone())
            .unwrap_or_else(|e| panic!("{what}: read-only: {e}"));
        let seen = contents(&*disk);
        assert!(
            model.sizes.contains(&(seen.len() as u64)),
            "{what}: size {:#x}",
            seen.len()
        );
        for (sector, bytes) in seen.chunks(SECTOR).enumerate() {
            // A fixed VHD has nothing to go by: until growing it was acknowledged, the old footer
            // may show in the new part.
            let growing = self.format == Format::Vhd
                && self.kind == DiskKind::Fixed
                && (sector * SECTOR) as u64 >= model.sizes[0];
            if growing {
                continue;
            }
            let stamp = stamp_of(sector as u64, bytes)
                .unwrap_or_else(|| panic!("{what}: sector {sector} is torn"));
            assert!(
                model.allows(sector as u64, stamp),
                "{what}: sector {sector} holds {stamp}, not one of {:?}",
                model.sectors[sector]
            );
        }
        let file = Arc::new(found.crash(Crash::KeepAll));
        let disk = open(self.format, file.clone(), parent.clone())
            .unwrap_or_else(|e| panic!("{what}: for writing: {e}"));
        assert!(
            contents(&*disk) == seen,
            "{what}: replaying changed the contents"
        );
        write(&*disk, 0, &[7; SECTOR]);
        disk.close().expect("close");
        drop(disk);
        let disk = open(self.format, file, parent.clone())
            .unwrap_or_else(|e| panic!("{what}: again: {e}"));
        assert!(
            contents(&*disk)[SECTOR..] == seen[SECTOR..],
            "{what}: changed by a later write"
        );
    }
}

fn contents(disk: &dyn VirtualDisk) -> Vec<u8> {
    let mut bytes = vec![0; disk.virtual_size() as usize];
    disk.read(0, &mut [IoSliceMut::new(&mut bytes)])
        .expect("read");
    bytes
}

fn step_write(
    disk: &dyn VirtualDisk,
    model: &mut Model,
    start: u64,
    count: u64,
    fua: bool,
) -> Result<()> {
    let stamp = model.next;
    model.next += 1;
    let mut bytes = vec![0; count as usize * SECTOR];
    for (sector, out) in (start..).zip(bytes.chunks_mut(SECTOR)) {
        fill(stamp, sector, out);
        model.sectors[sector as usize].push(stamp);
    }
    disk.write(start * SECTOR as u64, &[std::io::IoSlice::new(&bytes)], fua)?;
    if fua {
        for sector in start..start + count {
            let values = &mut model.sectors[sector as usize];
            values.drain(..values.len() - 1);
        }
    }
    Ok(())
}

fn step_zero(
    disk: &dyn VirtualDisk,
    model: &mut Model,
    start: u64,
    count: u64,
    unmap: bool,
) -> Result<()> {
    let count = count.min(model.sectors.len() as u64 - start);
    let range = start as usize..(start + count) as usize;
    for values in &mut model.sectors[range.clone()] {
        values.push(0);
    }
    let (offset, len) = (start * SECTOR as u64, count * SECTOR as u64);
    if !unmap {
        return disk.write_zeroes(offset, len);
    }
    disk.unmap(offset, len)?;
    // What could not be given back keeps its last value, which then is the one to keep.
    let mut bytes = vec![0; len as usize];
    disk.read(offset, &mut [IoSliceMut::new(&mut bytes)])?;
    for (sector, found) in range.zip(bytes.chunks(SECTOR)) {
        let stamp = stamp_of(sector as u64, found).expect("not torn");
        model.sectors[sector].push(stamp);
    }
    Ok(())
}

fn step_grow(disk: &dyn VirtualDisk, model: &mut Model, more: u64) -> Result<()> {
    let size = disk.virtual_size() + more * SECTOR as u64;
    if size > 7 * MIB {
        return Ok(());
    }
    model.sizes.push(size);
    model
        .sectors
        .resize((size / SECTOR as u64) as usize, vec![0]);
    disk.resize(size)?;
    model.flushed();
    Ok(())
}

fn script(format: Format, kind: DiskKind, block: u32, seed: u64) -> Script {
    Script {
        format,
        kind,
        block,
        size: 4 * MIB,
        seed,
        steps: 45,
        commits: 0,
    }
}

#[test]
fn vhdx_dynamic() {
    for seed in 1..=3 {
        script(Format::Vhdx, DiskKind::Dynamic, 1 << 20, seed).cut_everywhere();
    }
}

#[test]
fn vhdx_differencing() {
    for seed in 1..=3 {
        script(Format::Vhdx, DiskKind::Differencing, 1 << 20, seed).cut_everywhere();
    }
}

/// Entries of the log wrap around its end.
#[test]
fn vhdx_with_a_log_that_wraps() {
    let scripts = (1..20).map(|seed| Script {
        commits: 62,
        steps: 30,
        ..script(Format::Vhdx, DiskKind::Dynamic, 1 << 20, seed)
    });
    // Closing the disk starts the log anew, so not every script comes to its end.
    let wraps = |script: &Script| {
        let file = script.file(&None);
        let disk = script.begin(&file, &None);
        let _ = script.run(&*disk, &mut script.model(&None));
        // The sequence number of the entry at the start of the log, which is at 1 MiB.
        let bytes = file.to_bytes();
        let (words, _) = bytes[(1 << 20) + 16..].as_chunks::<8>();
        u64::from_le_bytes(words[0]) > 2 * script.commits
    };
    let script = scripts.into_iter().find(wraps);
    script.expect("a script that wraps").cut_everywhere();
}

#[test]
fn vhdx_fixed() {
    script(Format::Vhdx, DiskKind::Fixed, 1 << 20, 1).cut_everywhere();
}

#[test]
fn vhd() {
    script(Format::Vhd, DiskKind::Dynamic, 512 << 10, 1).cut_everywhere();
    script(Format::Vhd, DiskKind::Differencing, 512 << 10, 2).cut_everywhere();
    script(Format::Vhd, DiskKind::Fixed, 0, 3).cut_everywhere();
}

/// The machine stops while a dirty log is being replayed, at every boundary of the replay.
#[test]
fn replaying_can_be_cut_and_done_again() {
    let script = script(Format::Vhdx, DiskKind::Dynamic, 1 << 20, 9);
    let file = script.file(&None);
    let mut dirty = None;
    for cut in 0..200 {
        let file = script.file(&None);
        file.fail_after(file.changes() + cut);
        let disk = open(script.format, file.clone(), None).expect("open");
        let _ = script.run(&*disk, &mut script.model(&None));
        let found = file.crash(Crash::DropAll);
        let copy = Arc::new(found.read_only_copy());
        let vhdx = disk::Vhdx::open(copy.clone(), &|_| Ok(None)).expect("open");
        if vhdx.notes().replayed > 0 {
            dirty = Some((found, contents(&vhdx)));
        }
    }
    let (found, expected) = dirty.expect("some cut leaves a dirty log");
    drop(file);
    for cut in 0..12 {
        let file = Arc::new(found.crash(Crash::KeepAll));
        file.fail_after(cut);
        let _ = open(Format::Vhdx, file.clone(), None);
        for how in [
            Crash::KeepAll,
            Crash::DropAll,
            Crash::Random(cut),
            Crash::Random(!cut),
        ] {
            let again = Arc::new(file.crash(how));
            let disk = open(Format::Vhdx, again.clone(), None).expect("open again");
            assert!(contents(&*disk) == expected, "cut {cut}, {how:?}");
            assert!(!again.is_empty().expect("length"));
        }
    }
}

/// Compacting moves and drops blocks; a cut at any boundary leaves what the guest sees as it was.
#[test]
fn compacting_can_be_cut_anywhere() {
    let prepare = || {
        let file = blank(Format::Vhdx, DiskKind::Dynamic, 8 * MIB, 1 << 20);
        let disk = open(Format::Vhdx, file.clone(), None).expect("open");
        for block in 0..8u64 {
            write(&*disk, block * MIB, &common::pattern(block, 8192));
        }
        disk.write_zeroes(MIB, 2 * MIB).expect("zero");
        write(&*disk, 4 * MIB, &[0; 8192]);
        disk.close().expect("close");
        drop(disk);
        file
    };
    let template = prepare();
    let prepare = || Arc::new(template.crash(Crash::KeepAll));
    let expected = contents(&*open(Format::Vhdx, prepare(), None).expect("open"));
    let file = prepare();
    let disk = disk::Vhdx::open(file.clone(), &|_| Ok(None)).expect("open");
    let identity = disk.info().data_identity;
    assert!(disk.compact(&mut disk::no_progress()).expect("compact") >= 3 * MIB);
    let total = file.changes();
    assert!(total > 15, "{total}");
    for cut in 0..=total {
        let file = prepare();
        file.fail_after(cut);
        let disk = disk::Vhdx::open(file.clone(), &|_| Ok(None)).expect("open");
        let _ = disk.compact(&mut disk::no_progress());
        for how in [
            Crash::KeepAll,
            Crash::DropAll,
            Crash::Random(cut),
            Crash::Random(!cut),
        ] {
            let found = Arc::new(file.crash(how));
            let disk = open(Format::Vhdx, found, None).expect("open");
            assert!(contents(&*disk) == expected, "cut {cut}, {how:?}");
            assert_eq!(
                disk.info().data_identity,
                identity,
                "children lose their parent"
            );
        }
    }
}
