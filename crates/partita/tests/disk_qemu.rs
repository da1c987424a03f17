//! `partita disk` and QEMU read each other's disks: `qemu-img` checks, compares and converts what
//! Partita wrote, and the other way round.

#[macro_use]
#[path = "support/disks.rs"]
#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod disks;
#[path = "support/tools.rs"]
#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod tools;

use std::ffi::OsStr;
use std::path::Path;

use disks::{Folder, MIB, contents, done, fill, json};
use serde_json::Value;
use tools::{qemu_img, qemu_io};

/// Runs `qemu-img`, which must succeed.
fn qemu<S: AsRef<OsStr>>(arguments: &[S]) -> String {
    let output = qemu_img()
        .args(arguments)
        .output()
        .expect("qemu-img starts");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let words: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    assert!(output.status.success(), "qemu-img {words:?}: {text}");
    text
}

/// A kind of disk, as both sides name it.
#[derive(Debug, Clone, Copy)]
struct Kind {
    /// Name of the file.
    name: &'static str,
    /// Partita's `--type`.
    kind: &'static str,
    /// QEMU's driver.
    driver: &'static str,
    /// QEMU's options for making one.
    options: &'static str,
}

const KINDS: [Kind; 4] = [
    Kind {
        name: "a.vhdx",
        kind: "dynamic",
        driver: "vhdx",
        options: "subformat=dynamic",
    },
    Kind {
        name: "b.vhdx",
        kind: "fixed",
        driver: "vhdx",
        options: "subformat=fixed",
    },
    Kind {
        name: "c.vhd",
        kind: "dynamic",
        driver: "vpc",
        options: "subformat=dynamic,force_size=on",
    },
    Kind {
        name: "d.vhd",
        kind: "fixed",
        driver: "vpc",
        options: "subformat=fixed,force_size=on",
    },
];

/// Size of the samples: not a whole number of blocks of any size, nor of a cylinder.
const SIZE: u64 = 37 * MIB + 4096;

/// Little data in a large disk, and a disk full of it.
fn samples() -> [Vec<(u64, u64)>; 2] {
    let sparse = [0, 2 * MIB - 4096, 17 * MIB + 512, SIZE - 8192];
    [sparse.map(|at| (at, 8192)).to_vec(), vec![(0, SIZE)]]
}

/// `qemu-img` knows how to check VHDX, but not VHD.
fn qemu_checks(kind: Kind, file: &Path) {
    if kind.driver == "vhdx" {
        let text = qemu(&args!["check", "-f", "vhdx", file]);
        assert!(text.contains("No errors were found"), "{text}");
    }
}

/// Has QEMU make a disk with a raw file's contents.
fn qemu_makes(kind: Kind, raw: &Path, file: &Path) {
    let (driver, options) = (kind.driver, kind.options);
    qemu(&args![
        "convert", "-f", "raw", "-O", driver, "-o", options, raw, file
    ]);
}

fn qemu_compares(raw: &Path, kind: Kind, file: &Path) {
    let text = qemu(&args!["compare", "-f", "raw", "-F", kind.driver, raw, file]);
    assert!(text.contains("Images are identical"), "{text}");
}

#[test]
fn qemu_checks_compares_and_converts_what_partita_wrote() {
    for sample in samples() {
        for kind in KINDS {
            let folder = Folder::new();
            let raw = folder.raw("sample.raw", SIZE, &sample);
            let (file, back) = (folder.path(kind.name), folder.path("back.raw"));
            done(&args!["convert", raw, file, "--type", kind.kind]);
            qemu_checks(kind, &file);
            qemu_compares(&raw, kind, &file);
            qemu(&args![
                "convert",
                "-f",
                kind.driver,
                "-O",
                "raw",
                file,
                back
            ]);
            let (seen, expected) = (std::fs::read(&back), std::fs::read(&raw));
            assert!(seen.expect("read") == expected.expect("read"), "{kind:?}");
        }
    }
}

#[test]
fn partita_checks_and_converts_what_qemu_wrote() {
    for sample in samples() {
        for kind in KINDS {
            let folder = Folder::new();
            let raw = folder.raw("sample.raw", SIZE, &sample);
            let (file, back) = (folder.path(kind.name), folder.path("back.raw"));
            qemu_makes(kind, &raw, &file);
            let found = json(&args!["check", file]);
            assert_eq!(found["clean"], true, "{found}");
            assert_eq!(found["info"]["kind"], kind.kind);
            assert_eq!(found["info"]["virtual_size"], SIZE);
            done(&args!["convert", file, back]);
            let (seen, expected) = (std::fs::read(&back), std::fs::read(&raw));
            assert!(seen.expect("read") == expected.expect("read"), "{kind:?}");
        }
    }
}

/// Each command that changes a disk in place, on disks that QEMU made.
#[test]
fn what_partita_changed_qemu_still_reads() {
    for kind in KINDS {
        let folder = Folder::new();
        let raw = folder.raw("sample.raw", SIZE, &samples()[0]);
        let (file, now) = (folder.path(kind.name), folder.path("now.raw"));
        qemu_makes(kind, &raw, &file);
        done(&args!["resize", file, "+20M"]);
        fill(&file, &[(3 * MIB, 5 * MIB), (50 * MIB, 4096)]);
        if kind.kind == "dynamic" {
            let disk = disks::open(&file);
            disk.write_zeroes(2 * MIB, 6 * MIB).expect("zeros");
            disk.close().expect("close");
            drop(disk);
            done(&args!["compact", file]);
        }
        assert_eq!(json(&args!["check", file])["clean"], true, "{kind:?}");
        std::fs::write(&now, contents(&file)).expect("write");
        qemu_checks(kind, &file);
        qemu_compares(&now, kind, &file);
    }
}

/// What a child held, QEMU finds in its parent once they are merged.
#[test]
fn qemu_reads_what_was_merged() {
    for (extension, kind) in [("vhdx", KINDS[0]), ("vhd", KINDS[2])] {
        let folder = Folder::new();
        let raw = folder.raw("sample.raw", SIZE, &samples()[0]);
        let path = |name: &str| folder.path(&format!("{name}.{extension}"));
        let (base, child, now) = (path("base"), path("child"), folder.path("now.raw"));
        qemu_makes(kind, &raw, &base);
        done(&args!["create", child, "--parent", base]);
        fill(&child, &[(512, 1024), (9 * MIB, 4 * MIB)]);
        std::fs::write(&now, contents(&child)).expect("write");
        done(&args!["merge", child, "--delete"]);
        qemu_checks(kind, &base);
        qemu_compares(&now, kind, &base);
    }
}

/// The smallest and largest blocks, and both physical sectors. (QEMU refuses VHDX disks with
/// logical sectors of 4096 bytes; libvhdi reads those in `disk_vhdi.rs`.)
#[test]
fn layouts_that_differ_from_the_defaults() {
    for (physical, block) in [("512", "1M"), ("4096", "1M"), ("512", "256M")] {
        let folder = Folder::new();
        let raw = folder.raw("sample.raw", SIZE, &samples()[0]);
        let file = folder.path("a.vhdx");
        done(&args![
            "convert",
            raw,
            file,
            "--physical-sector-size",
            physical,
            "--block-size",
            block
        ]);
        qemu_checks(KINDS[0], &file);
        qemu_compares(&raw, KINDS[0], &file);
        let text = qemu(&args!["info", "--output=json", "-f", "vhdx", file]);
        let info: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(info["virtual-size"], SIZE);
    }
}

/// QEMU writes into a disk of Partita's, and Partita finds it.
#[test]
fn partita_reads_what_qemu_wrote_into_its_disk() {
    for kind in KINDS {
        let folder = Folder::new();
        let file = folder.path(kind.name);
        done(&args!["create", file, "--size", "40M", "--type", kind.kind]);
        let written = qemu_io()
            .args([
                "-f",
                kind.driver,
                "-c",
                "write -P 0x5a 7M 3M",
                "-c",
                "write -P 0x33 39M 4k",
            ])
            .args(["-c", "flush"])
            .arg(&file)
            .output()
            .expect("qemu-io starts");
        assert!(written.status.success(), "{written:?}");
        assert_eq!(json(&args!["check", file])["clean"], true, "{kind:?}");
        let mut expected = vec![0; 40 * MIB as usize];
        expected[7 * MIB as usize..10 * MIB as usize].fill(0x5a);
        expected[39 * MIB as usize..][..4096].fill(0x33);
        assert!(contents(&file) == expected, "{kind:?}");
    }
}
