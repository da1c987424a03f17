//! Against QEMU's implementation: `qemu-img` checks, compares and converts what Partita wrote, and
//! Partita reads what `qemu-img` wrote.

mod common;
#[path = "../../partita/tests/support/tools.rs"]
#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod tools;

use std::path::{Path, PathBuf};

use common::{MIB, pattern, read, write};
use disk::{CreateOptions, DiskKind, Format, OpenOptions, no_progress, ops};
use tools::{qemu_img, qemu_io};

fn qemu(args: &[&str], files: &[&Path]) -> String {
    let output = qemu_img()
        .args(args)
        .args(files)
        .output()
        .expect("qemu-img runs");
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        output.status.success(),
        "qemu-img {args:?} {files:?}: {text}"
    );
    text
}

/// A raw file of 70 MiB and a bit, with data here and there.
fn sample(dir: &Path) -> PathBuf {
    let path = dir.join("sample.raw");
    let mut bytes = vec![0; 70 * MIB as usize + 512 * 9];
    for (i, at) in [0, 3 * MIB + 512, 33 * MIB - 4096, 64 * MIB, 70 * MIB]
        .into_iter()
        .enumerate()
    {
        let data = pattern(i as u64, 4 * 1024 + 512);
        let at = at as usize;
        bytes[at..at + data.len()].copy_from_slice(&data);
    }
    std::fs::write(&path, bytes).expect("sample");
    path
}

fn cases() -> Vec<(Format, DiskKind, &'static str, &'static str)> {
    vec![
        (Format::Vhdx, DiskKind::Dynamic, "vhdx", "subformat=dynamic"),
        (Format::Vhdx, DiskKind::Fixed, "vhdx", "subformat=fixed"),
        (
            Format::Vhd,
            DiskKind::Dynamic,
            "vpc",
            "subformat=dynamic,force_size=on",
        ),
        (
            Format::Vhd,
            DiskKind::Fixed,
            "vpc",
            "subformat=fixed,force_size=on",
        ),
    ]
}

fn name(format: Format) -> &'static str {
    if format == Format::Vhd {
        "disk.vhd"
    } else {
        "disk.vhdx"
    }
}

#[test]
fn qemu_reads_what_partita_wrote() {
    for (format, kind, driver, _) in cases() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (raw, disk) = (sample(dir.path()), dir.path().join(name(format)));
        let options = CreateOptions {
            size: None,
            ..CreateOptions::new(format, kind, 0)
        };
        ops::convert(
            &raw,
            &OpenOptions::default(),
            &disk,
            &options,
            &mut no_progress(),
        )
        .expect("convert");
        qemu(&["compare", "-f", "raw", "-F", driver], &[&raw, &disk]);
        if driver == "vhdx" {
            qemu(&["check", "-f", driver], &[&disk]);
        }
        let back = dir.path().join("back.raw");
        qemu(&["convert", "-f", driver, "-O", "raw"], &[&disk, &back]);
        assert!(std::fs::read(&back).expect("back") == std::fs::read(&raw).expect("raw"));
    }
}

#[test]
fn partita_reads_and_changes_what_qemu_wrote() {
    for (format, kind, driver, options) in cases() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (raw, file) = (sample(dir.path()), dir.path().join(name(format)));
        qemu(
            &["convert", "-f", "raw", "-O", driver, "-o", options],
            &[&raw, &file],
        );
        let mut expected = std::fs::read(&raw).expect("raw");
        assert!(ops::check(&file, None).expect("check").is_clean());
        let disk = ops::open(&file, &OpenOptions::default()).expect("open");
        assert_eq!(
            (disk.info().kind, disk.virtual_size()),
            (kind, expected.len() as u64)
        );
        assert!(read(&*disk, 0, expected.len()) == expected);
        let data = pattern(99, 3 * MIB as usize);
        write(&*disk, 40 * MIB + 512, &data);
        expected[40 * MIB as usize + 512..][..data.len()].copy_from_slice(&data);
        disk.write_zeroes(32 * MIB, MIB).expect("zero");
        expected[32 * MIB as usize..33 * MIB as usize].fill(0);
        let grown = expected.len() as u64 + 90 * MIB;
        disk.resize(grown).expect("grow");
        expected.resize(grown as usize, 0);
        disk.close().expect("close");
        drop(disk);
        std::fs::write(&raw, &expected).expect("raw");
        qemu(&["compare", "-f", "raw", "-F", driver], &[&raw, &file]);
        let info = qemu(&["info", "--output=json", "-f", driver], &[&file]);
        assert!(
            info.contains(&format!("\"virtual-size\": {grown}")),
            "{info}"
        );
        if driver == "vhdx" {
            qemu(&["check", "-f", driver], &[&file]);
        }
    }
}

#[test]
fn every_block_size() {
    for block in [1, 8, 64, 256] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("disk.vhdx");
        let options = CreateOptions {
            block_size: Some(block << 20),
            ..CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, 6 << 30)
        };
        ops::create(&file, &options).expect("create");
        let disk = ops::open(&file, &OpenOptions::default()).expect("open");
        for at in [0, 4 << 30, (6 << 30) - 8192] {
            write(&*disk, at, &pattern(at, 8192));
        }
        disk.close().expect("close");
        drop(disk);
        let report = qemu(&["check", "-f", "vhdx"], &[&file]);
        assert!(report.contains("No errors"), "{report}");
        same_through_qemu(&dir.path().join("disk.raw"), &file);
    }
}

/// Compares through a sparse raw copy, which QEMU makes.
fn same_through_qemu(raw: &Path, file: &Path) {
    qemu(&["convert", "-f", "vhdx", "-O", "raw"], &[file, raw]);
    let copy = ops::open(raw, &OpenOptions::default()).expect("open");
    let disk = ops::open(file, &OpenOptions::default()).expect("open");
    for at in [0, 4 << 30, (6 << 30) - 8192, 1 << 30] {
        assert!(
            read(&*copy, at, 8192) == read(&*disk, at, 8192),
            "at {at:#x}"
        );
    }
}

#[test]
fn qemu_respects_the_lock_and_is_respected() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("disk.vhdx");
    ops::create(
        &file,
        &CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, 8 << 20),
    )
    .expect("create");
    let disk = ops::open(&file, &OpenOptions::default()).expect("open");
    let refused = qemu_img()
        .args(["info", "-f", "vhdx"])
        .arg(&file)
        .output()
        .expect("runs");
    assert!(!refused.status.success());
    drop(disk);
    let shared = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let _reader = ops::open(&file, &shared).expect("open");
    qemu(&["info", "-f", "vhdx"], &[&file]);
}

/// Turns the file back to just before QEMU wrote its last log entry in place, which is as it leaves
/// it when it dies there: the header names the log, and the table lacks the change.
fn undo_last_entry(file: &Path) {
    let mut bytes = std::fs::read(file).expect("read");
    let u64_at = |bytes: &[u8], at: usize| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    };
    let entry = (1 << 20..2 << 20)
        .step_by(4096)
        .filter(|at| &bytes[*at..*at + 4] == b"loge")
        .max_by_key(|at| u64_at(&bytes, at + 16))
        .expect("an entry");
    let target = u64_at(&bytes, entry + 64 + 16) as usize;
    bytes[target..target + 4096].fill(0);
    for header in [64 << 10, 128 << 10] {
        bytes.copy_within(entry + 32..entry + 48, header + 48);
        bytes[header + 4..header + 8].fill(0);
        let sum = crc32c::crc32c(&bytes[header..header + 4096]);
        bytes[header + 4..header + 8].copy_from_slice(&sum.to_le_bytes());
    }
    std::fs::write(file, bytes).expect("write");
}

/// QEMU dies with an entry in its log: Partita replays it.
#[test]
fn a_log_that_qemu_left_is_replayed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("disk.vhdx");
    qemu(&["create", "-f", "vhdx"], &[&file, Path::new("64M")]);
    let died = qemu_io()
        .args([
            "-f",
            "vhdx",
            "-c",
            "write -P 0x5a 3M 64k",
            "-c",
            "write -P 0x33 40M 4k",
        ])
        .args(["-c", "flush", "-c", "abort"])
        .arg(&file)
        .output()
        .expect("qemu-io runs");
    assert!(!died.status.success());
    undo_last_entry(&file);
    let found = ops::check(&file, None).expect("check");
    assert!(
        found.is_clean() && found.notes.iter().any(|n| n.contains("replayed")),
        "{found:?}"
    );
    let disk = ops::open(&file, &OpenOptions::default()).expect("open");
    assert_eq!(read(&*disk, 3 * MIB, 64 << 10), [0x5a; 64 << 10]);
    assert_eq!(read(&*disk, 40 * MIB, 4096), [0x33; 4096]);
    drop(disk);
    assert!(ops::check(&file, None).expect("check").notes.is_empty());
    qemu(&["check", "-f", "vhdx"], &[&file]);
}

/// Partita dies with entries in its log: QEMU replays them.
#[test]
fn a_log_that_partita_left_is_replayed_by_qemu() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (file, copy) = (dir.path().join("disk.vhdx"), dir.path().join("copy.vhdx"));
    let options = CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, 64 * MIB)
    };
    ops::create(&file, &options).expect("create");
    let disk = ops::open(&file, &OpenOptions::default()).expect("open");
    for i in 0..5 {
        write(&*disk, i * 9 * MIB, &pattern(i, 8192));
        disk.flush().expect("flush");
    }
    // The file of a process that was killed now; the last table update is lost with the machine.
    std::fs::copy(&file, &copy).expect("copy");
    let table = std::fs::OpenOptions::new()
        .write(true)
        .open(&copy)
        .expect("open");
    std::os::unix::fs::FileExt::write_all_at(&table, &[0; 4096], 3 << 20).expect("write");
    drop(table);
    let report = qemu(&["check", "-r", "all", "-f", "vhdx"], &[&copy]);
    assert!(
        report.contains("No errors") || report.contains("repaired"),
        "{report}"
    );
    let raw = dir.path().join("raw.raw");
    qemu(&["convert", "-f", "vhdx", "-O", "raw"], &[&copy, &raw]);
    let seen = ops::open(&raw, &OpenOptions::default()).expect("open");
    for i in 0..5 {
        assert!(
            read(&*seen, i * 9 * MIB, 8192) == pattern(i, 8192),
            "block {i}"
        );
    }
}
