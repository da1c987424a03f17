//! Against libvhdi, which reads chains of differencing disks: VHDX and VHD.

mod common;
#[path = "../../partita/tests/support/tools.rs"]
#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod tools;

use std::path::Path;

use common::{MIB, pattern, read, write};
use disk::{CreateOptions, DiskKind, Format, OpenOptions, ops};
use tools::python_with_libvhdi;

/// Opens the files given, each the parent of the one before, and prints the disk's bytes.
const SCRIPT: &str = r#"
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
"#;

fn seen_by_libvhdi(files: &[&Path]) -> Vec<u8> {
    let output = python_with_libvhdi()
        .arg("-c")
        .arg(SCRIPT)
        .args(files)
        .output()
        .expect("python runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn libvhdi_reads_differencing_chains() {
    for (format, extension) in [(Format::Vhdx, "vhdx"), (Format::Vhd, "vhd")] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| dir.path().join(format!("{name}.{extension}"));
        let (base, middle, top) = (path("base"), path("middle"), path("top"));
        ops::create(
            &base,
            &CreateOptions::new(format, DiskKind::Dynamic, 48 * MIB),
        )
        .expect("create");
        let fill = |path: &Path, ranges: &[(u64, usize)]| {
            let disk = ops::open(path, &OpenOptions::default()).expect("open");
            for &(at, len) in ranges {
                // libvhdi 20260901 takes the rest of a VHD bitmap's byte, eight sectors, for set
                // after its first set bit; so no range of a VHD may end inside one.
                let end = at + len as u64;
                let end = if format == Format::Vhd {
                    end.next_multiple_of(4096)
                } else {
                    end
                };
                write(&*disk, at, &pattern(end, (end - at) as usize));
            }
            disk.close().expect("close");
        };
        fill(&base, &[(0, 5 << 20), (40 * MIB, 1 << 20)]);
        ops::create(&middle, &CreateOptions::differencing(format, &base)).expect("create");
        fill(
            &middle,
            &[(MIB + 512, 1536), (10 * MIB, 4 << 20), (47 * MIB, 4096)],
        );
        ops::create(&top, &CreateOptions::differencing(format, &middle)).expect("create");
        fill(
            &top,
            &[
                (MIB + 1024, 512),
                (11 * MIB - 512, 1024),
                (30 * MIB, 2 << 20),
            ],
        );
        let disk = ops::open(&top, &OpenOptions::default()).expect("open");
        let expected = read(&*disk, 0, disk.virtual_size() as usize);
        drop(disk);
        let seen = seen_by_libvhdi(&[&top, &middle, &base]);
        assert_eq!(seen.len(), expected.len());
        let wrong = seen
            .chunks(512)
            .zip(expected.chunks(512))
            .position(|(a, b)| a != b);
        assert_eq!(wrong, None, "{format:?}: first sector that differs");
    }
}
