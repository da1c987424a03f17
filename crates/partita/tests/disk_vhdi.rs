//! libvhdi reads what `partita disk` makes: chains of differencing disks, and large sectors.
//!
//! Each child has been written to: of a VHDX without a single block, libvhdi 20260901 reads sector
//! bitmaps that the file does not have, at offset 0.

#[macro_use]
#[path = "support/disks.rs"]
#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod disks;
#[path = "support/tools.rs"]
#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod tools;

use std::path::Path;

use disks::{Folder, MIB, contents, done, fill};
use tools::python_with_libvhdi;

/// Opens the files given, each the parent of the one before, and prints the disk's bytes.
const SCRIPT: &str = "
import sys, pyvhdi
files = []
for path in sys.argv[1:]:
    file = pyvhdi.file()
    file.open(path)
    files.append(file)
for child, parent in zip(files, files[1:]):
    child.set_parent(parent)
left = files[0].get_media_size()
while left:
    data = files[0].read_buffer(min(left, 1 << 20))
    sys.stdout.buffer.write(data)
    left -= len(data)
";

/// What libvhdi finds in a chain must be what Partita finds in its first disk.
fn compare(chain: &[&Path]) {
    let output = python_with_libvhdi()
        .args(["-c", SCRIPT])
        .args(chain)
        .output()
        .expect("python starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{chain:?}: {errors}");
    let expected = contents(chain[0]);
    assert_eq!(output.stdout.len(), expected.len(), "{chain:?}");
    let sectors = output.stdout.chunks(512).zip(expected.chunks(512));
    let wrong = sectors
        .enumerate()
        .find(|(_, (a, b))| a != b)
        .map(|(i, _)| i);
    assert_eq!(wrong, None, "first sector that differs in {chain:?}");
}

/// Fills parts of a disk. libvhdi takes the rest of a byte of a VHD's bitmap, eight sectors, for
/// set after its first set bit; so no part that is written into a VHD ends inside one.
fn fill_for_libvhdi(file: &Path, parts: &[(u64, u64)]) {
    let vhd = file.extension().is_some_and(|e| e == "vhd");
    let rounded = parts.iter().map(|&(at, len)| match vhd {
        true => (at, (at + len).next_multiple_of(4096) - at),
        false => (at, len),
    });
    fill(file, &rounded.collect::<Vec<_>>());
}

#[test]
fn chains_of_three_before_and_after_changes() {
    for extension in ["vhdx", "vhd"] {
        let folder = Folder::new();
        let path = |name: &str| folder.path(&format!("{name}.{extension}"));
        let (base, middle, top) = (path("base"), path("middle"), path("top"));
        let raw = folder.raw("sample.raw", 30 * MIB, &[(0, 5 * MIB), (22 * MIB, MIB)]);
        done(&args!["convert", raw, base]);
        done(&args!["create", middle, "--parent", base]);
        fill_for_libvhdi(
            &middle,
            &[(MIB + 512, 1536), (10 * MIB, 4 * MIB), (29 * MIB, 4096)],
        );
        compare(&[&middle, &base]);
        done(&args!["create", top, "--parent", middle]);
        fill_for_libvhdi(
            &top,
            &[
                (MIB + 1024, 512),
                (11 * MIB - 512, 1024),
                (18 * MIB, 2 * MIB),
            ],
        );
        compare(&[&top, &middle, &base]);

        // Onto another parent, with everything that a guest sees kept.
        let other = path("other");
        done(&args!["create", other, "--size", "30M"]);
        fill_for_libvhdi(&other, &[(4 * MIB, 3 * MIB)]);
        done(&args!["rebase", top, "--parent", other]);
        compare(&[&top, &other]);
        done(&args!["merge", top, "--delete"]);
        compare(&[&other]);
    }
}

/// Logical sectors of 4096 bytes, which QEMU does not read.
#[test]
fn disks_with_large_sectors() {
    const SIZE: u64 = 21 * MIB + 4096;
    let sparse = [(0, 4096), (2 * MIB - 4096, 8192), (SIZE - 4096, 4096)];
    for filled in [sparse.as_slice(), &[(0, SIZE)]] {
        for kind in ["dynamic", "fixed"] {
            let folder = Folder::new();
            let raw = folder.raw("sample.raw", SIZE, filled);
            let file = folder.path("a.vhdx");
            let large = ["--logical-sector-size", "4096"];
            done(&args![
                "convert", raw, file, "--type", kind, large[0], large[1]
            ]);
            assert!(
                contents(&file) == std::fs::read(&raw).expect("read"),
                "{kind}"
            );
            compare(&[&file]);
        }
    }
}

#[test]
fn differencing_disks_with_other_layouts() {
    for (sector, block) in [("512", "1M"), ("4096", "2M"), ("512", "8M")] {
        let folder = Folder::new();
        let (base, top) = (folder.path("base.vhdx"), folder.path("top.vhdx"));
        let raw = folder.raw("sample.raw", 24 * MIB, &[(0, 3 * MIB), (17 * MIB, MIB)]);
        done(&args![
            "convert",
            raw,
            base,
            "--logical-sector-size",
            sector
        ]);
        done(&args![
            "create",
            top,
            "--parent",
            base,
            "--block-size",
            block
        ]);
        fill(&top, &[(MIB + 4096, 8192), (20 * MIB, 4096)]);
        compare(&[&top, &base]);
        done(&args!["compact", top]);
        compare(&[&top, &base]);
    }
}
