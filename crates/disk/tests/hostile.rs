//! Corrupt and hostile images: an error that names the structure, no panic, no write, no hang.

mod common;

use std::io::IoSliceMut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{MIB, blank, child_of, open, pattern, write};
use disk::backing::{Crash, SimBacking};
use disk::{DiskError, DiskKind, Format};

const KIB: usize = 1 << 10;
const REGION_TABLES: [usize; 2] = [192 * KIB, 256 * KIB];
const LOG: usize = 1 << 20;
const METADATA: usize = 2 << 20;
const BAT: usize = 3 << 20;

/// A dynamic VHDX with three blocks.
fn vhdx() -> Vec<u8> {
    let file = blank(Format::Vhdx, DiskKind::Dynamic, 16 * MIB, 1 << 20);
    let disk = open(Format::Vhdx, file.clone(), None).expect("open");
    for block in [0, 3, 5] {
        write(&*disk, block * MIB, &pattern(block, 4096));
    }
    drop(disk);
    file.to_bytes()
}

/// The same with entries waiting in its log.
fn dirty_vhdx() -> Vec<u8> {
    let file = blank(Format::Vhdx, DiskKind::Dynamic, 16 * MIB, 1 << 20);
    let disk = open(Format::Vhdx, file.clone(), None).expect("open");
    for block in [0, 3, 5] {
        write(&*disk, block * MIB, &pattern(block, 4096));
        disk.flush().expect("flush");
    }
    let found = file.crash(Crash::KeepAll).to_bytes();
    assert_eq!(&found[LOG..LOG + 4], b"loge");
    found
}

fn vhd(kind: DiskKind) -> Vec<u8> {
    if kind == DiskKind::Differencing {
        let base = blank(Format::Vhd, DiskKind::Dynamic, 4 * MIB, 512 << 10);
        let parent = open(Format::Vhd, base, None).expect("open");
        return child_of(&*parent, 512 << 10).to_bytes();
    }
    let file = blank(Format::Vhd, kind, 4 * MIB, 512 << 10);
    let disk = open(Format::Vhd, file.clone(), None).expect("open");
    write(&*disk, MIB, &pattern(1, 4096));
    drop(disk);
    file.to_bytes()
}

/// Sets the checksum of a VHDX structure of `len` bytes at `at`.
fn seal(bytes: &mut [u8], at: usize, len: usize) {
    bytes[at + 4..at + 8].fill(0);
    let sum = crc32c::crc32c(&bytes[at..at + len]);
    bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
}

fn seal_all(bytes: &mut [u8]) {
    for at in [64 * KIB, 128 * KIB] {
        seal(bytes, at, 4 * KIB);
    }
    for at in REGION_TABLES {
        seal(bytes, at, 64 * KIB);
    }
    let mut at = LOG;
    while at < METADATA {
        let len = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().expect("four")) as usize;
        if &bytes[at..at + 4] == b"loge" && len >= 4096 && at + len <= METADATA {
            seal(bytes, at, len);
        }
        at += 4096;
    }
}

/// Opens for writing and uses the disk if it opens; an error must come before any change.
fn survive(format: Format, bytes: &[u8]) -> Result<(), DiskError> {
    let started = Instant::now();
    let file = Arc::new(SimBacking::from_bytes(bytes));
    let result = open(format, file.clone(), None);
    let outcome = match result {
        Ok(disk) => {
            let size = disk.virtual_size();
            let mut buffer = [0; 8192];
            for at in [
                0,
                size / 2 / 4096 * 4096,
                size.saturating_sub(8192) / 4096 * 4096,
            ] {
                let _ = disk.read(at, &mut [IoSliceMut::new(&mut buffer)]);
                let _ = disk.write(at, &[std::io::IoSlice::new(&buffer)], false);
            }
            let _ = disk.flush();
            Ok(())
        }
        Err(error) => {
            assert_eq!(file.changes(), 0, "{error}, but the file was changed");
            Err(error)
        }
    };
    assert!(started.elapsed() < Duration::from_secs(10), "too slow");
    outcome
}

fn refused(bytes: &[u8], part: &str) {
    let mut bytes = bytes.to_vec();
    seal_all(&mut bytes);
    let error = survive(Format::Vhdx, &bytes).expect_err(part);
    let text = error.to_string();
    assert!(
        text.contains(part) && text.contains("at file offset"),
        "{part}: {text}"
    );
}

fn changed(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

fn both_tables(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let first = changed(bytes, REGION_TABLES[0] + at, new);
    changed(&first, REGION_TABLES[1] + at, new)
}

#[test]
fn every_broken_rule_is_named() {
    let good = vhdx();
    assert!(survive(Format::Vhdx, &good).is_ok());
    refused(&changed(&good, 0, b"x"), "file type identifier");
    let cut = survive(Format::Vhdx, &good[..(1 << 20) - 1]).expect_err("cut");
    assert!(cut.to_string().contains("file type identifier"), "{cut}");
    let no_headers = changed(&changed(&good, 64 * KIB, b"x"), 128 * KIB, b"x");
    refused(&no_headers, "VHDX header");
    let version = |v: &[u8]| changed(&changed(&good, 64 * KIB + 66, v), 128 * KIB + 66, v);
    refused(&version(&[2, 0]), "VHDX header");
    refused(&both_tables(&good, 0, b"x"), "region table");
    refused(&both_tables(&good, 16 + 16, &[1]), "region table");
    refused(
        &both_tables(&good, 16 + 16, &(2 * MIB).to_le_bytes()),
        "region table",
    );
    refused(
        &both_tables(&good, 16 + 16, &(1u64 << 60).to_le_bytes()),
        "region table",
    );
    refused(&both_tables(&good, 16, &[0xaa]), "region table");
    refused(&changed(&good, METADATA, b"x"), "metadata table");
    refused(
        &changed(&good, METADATA + 32 + 16, &[0xff; 4]),
        "metadata table",
    );
    refused(&changed(&good, METADATA + 32, &[0xaa]), "metadata table");
    refused(
        &changed(&good, METADATA + 64 * KIB, &[1]),
        "file parameters",
    );
    refused(
        &changed(&good, METADATA + 68 * KIB, &[0xff; 8]),
        "virtual size",
    );
    refused(
        &changed(&good, METADATA + 68 * KIB, &[0; 8]),
        "virtual size",
    );
    refused(&changed(&good, METADATA + 76 * KIB, &[1]), "sector size");
    refused(&changed(&good, BAT + 8, &[4]), "block allocation table");
    refused(&changed(&good, BAT + 8, &[7]), "block allocation table");
    refused(&changed(&good, BAT + 8, &[6]), "block allocation table");
    let doubled: [u8; 8] = good[BAT..BAT + 8].try_into().expect("eight");
    refused(&changed(&good, BAT + 8, &doubled), "payload block");
    refused(
        &changed(&good, BAT + 8, &(6 | 1u64 << 50).to_le_bytes()),
        "payload block",
    );
    refused(
        &changed(&good, BAT + 8, &(6 | MIB).to_le_bytes()),
        "overlaps",
    );
    let grown = changed(&good, METADATA + 68 * KIB, &(64u64 << 40).to_le_bytes());
    refused(&grown, "block allocation table");
}

#[test]
fn a_log_cannot_change_what_it_must_not() {
    let good = dirty_vhdx();
    assert!(survive(Format::Vhdx, &good).is_ok());
    let last = (0..3)
        .map(|i| LOG + i * 8192)
        .filter(|at| &good[*at..at + 4] == b"loge")
        .count();
    let entry = LOG + (last - 1) * 8192;
    let target = |offset: u64| changed(&good, entry + 64 + 16, &offset.to_le_bytes());
    for offset in [0, 64 * KIB as u64, MIB, MIB + 4096, 1 << 62] {
        refused(&target(offset), "log entry");
    }
    refused(
        &changed(&good, entry + 48, &(1u64 << 40).to_le_bytes()),
        "log entry",
    );
    refused(
        &changed(&good, entry + 56, &(1u64 << 62).to_le_bytes()),
        "log entry",
    );
    let zeros = changed(&good, entry + 64, b"zero");
    assert!(
        survive(Format::Vhdx, &zeros).is_ok(),
        "a malformed entry is as good as none"
    );
}

#[test]
fn random_damage_to_a_vhdx() {
    let mut random = fastrand::Rng::with_seed(7);
    let images = [vhdx(), dirty_vhdx()];
    let places: [(usize, usize); 6] = [
        (64 * KIB, 128),
        (128 * KIB, 128),
        (REGION_TABLES[0], 96),
        (LOG, 4 * 8192),
        (METADATA, 224),
        (BAT, 256),
    ];
    for round in 0..600 {
        let mut bytes = images[round % 2].clone();
        for _ in 0..random.usize(1..6) {
            let (start, len) = places[random.usize(..places.len())];
            let at = start + random.usize(..len);
            bytes[at] = if random.bool() {
                random.u8(..)
            } else {
                bytes[at] ^ 1 << random.u8(..8)
            };
        }
        if random.u8(..4) > 0 {
            seal_all(&mut bytes);
        }
        let _ = survive(Format::Vhdx, &bytes);
    }
}

#[test]
fn random_damage_to_a_vhd() {
    let mut random = fastrand::Rng::with_seed(8);
    for kind in [DiskKind::Dynamic, DiskKind::Differencing, DiskKind::Fixed] {
        let good = vhd(kind);
        for _ in 0..400 {
            let mut bytes = good.clone();
            let end = bytes.len();
            for _ in 0..random.usize(1..6) {
                let at = match random.u8(..3) {
                    0 => random.usize(..2048),
                    1 => end - 512 + random.usize(..512),
                    _ => random.usize(512..1024),
                };
                bytes[at] = random.u8(..);
            }
            if random.u8(..4) > 0 {
                for (at, len, field) in [(0, 512, 64), (end - 512, 512, 64), (512, 1024, 36)] {
                    seal_vhd(&mut bytes[at..at + len], field);
                }
            }
            bytes.truncate(
                end - if random.u8(..10) == 0 {
                    random.usize(..2000)
                } else {
                    0
                },
            );
            let _ = survive(Format::Vhd, &bytes);
        }
    }
}

fn seal_vhd(bytes: &mut [u8], field: usize) {
    bytes[field..field + 4].fill(0);
    let sum = !bytes
        .iter()
        .fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
    bytes[field..field + 4].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn an_image_that_is_not_one() {
    for len in [0, 1, 511, 512, 1 << 20, 5 << 20] {
        for format in [Format::Vhdx, Format::Vhd] {
            assert!(survive(format, &vec![0; len]).is_err());
        }
    }
}

#[test]
fn one_lost_header_or_table_is_survived() {
    let good = vhdx();
    for at in [64 * KIB, 128 * KIB, REGION_TABLES[0], REGION_TABLES[1]] {
        let bytes = changed(&good, at, b"x");
        let file = Arc::new(SimBacking::from_bytes(&bytes).read_only_copy());
        let disk = disk::Vhdx::open(file, &|_| Ok(None)).expect("open");
        assert!(disk.notes().one_header || disk.notes().one_region_table);
    }
}
