//! Whole files: creating, chains of parents, merging, rebasing, compacting, checking.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::{MIB, pattern, read, write};
use disk::{CreateOptions, DiskError, DiskKind, Format, OpenOptions, RebaseMode, no_progress, ops};

const FORMATS: [(Format, &str); 2] = [(Format::Vhdx, "vhdx"), (Format::Vhd, "vhd")];

fn rw() -> OpenOptions {
    OpenOptions::default()
}

fn ro() -> OpenOptions {
    OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    }
}

struct Chain {
    dir: tempfile::TempDir,
    format: Format,
    extension: &'static str,
}

impl Chain {
    fn new(format: Format, extension: &'static str) -> Self {
        Self {
            dir: tempfile::tempdir().expect("temporary directory"),
            format,
            extension,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.{}", self.extension))
    }

    fn base(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        let options = CreateOptions {
            block_size: Some(2 << 20),
            ..CreateOptions::new(self.format, DiskKind::Dynamic, size)
        };
        ops::create(&path, &options).expect("create");
        path
    }

    fn child(&self, name: &str, parent: &Path) -> PathBuf {
        let path = self.path(name);
        ops::create(&path, &CreateOptions::differencing(self.format, parent)).expect("create");
        path
    }
}

fn put(path: &Path, at: u64, bytes: &[u8]) {
    let disk = ops::open(path, &rw()).expect("open");
    write(&*disk, at, bytes);
    disk.close().expect("close");
}

fn all(path: &Path) -> Vec<u8> {
    let disk = ops::open(path, &ro()).expect("open");
    read(&*disk, 0, disk.virtual_size() as usize)
}

#[test]
fn a_chain_of_three_reads_through_and_merges_down() {
    for (format, extension) in FORMATS {
        let chain = Chain::new(format, extension);
        let base = chain.base("base", 16 * MIB);
        put(&base, 0, &pattern(1, 3 * MIB as usize));
        let middle = chain.child("middle", &base);
        put(&middle, MIB, &pattern(2, 5 * 512));
        let top = chain.child("top", &middle);
        put(&top, MIB + 512, &pattern(3, 512));
        let mut expected = vec![0; 16 * MIB as usize];
        expected[..3 * MIB as usize].copy_from_slice(&pattern(1, 3 * MIB as usize));
        expected[MIB as usize..][..5 * 512].copy_from_slice(&pattern(2, 5 * 512));
        let middle_view = expected.clone();
        expected[MIB as usize + 512..][..512].copy_from_slice(&pattern(3, 512));
        assert!(all(&top) == expected);
        assert!(ops::check(&top, None).expect("check").is_clean());

        let parent = ops::merge(&middle, &mut no_progress()).expect("merge");
        assert_eq!(
            parent.canonicalize().expect("path"),
            base.canonicalize().expect("path")
        );
        assert!(all(&base) == middle_view);
        std::fs::remove_file(&middle).expect("remove");
        ops::rebase(&top, &base, RebaseMode::ReferenceOnly, &mut no_progress()).expect("rebase");
        assert!(all(&top) == expected);
        ops::merge(&top, &mut no_progress()).expect("merge");
        assert!(all(&base) == expected);
        assert!(ops::check(&base, None).expect("check").is_clean());
    }
}

#[test]
fn an_interrupted_merge_leaves_a_valid_chain_and_can_be_done_again() {
    for (format, extension) in FORMATS {
        let chain = Chain::new(format, extension);
        let base = chain.base("base", 16 * MIB);
        put(&base, 0, &pattern(1, 3 * MIB as usize));
        let child = chain.child("child", &base);
        put(&child, 0, &pattern(2, 9 * MIB as usize));
        let before = all(&child);
        for calls in [1, 4] {
            let mut left = calls;
            let stopped = ops::merge(&child, &mut |_| {
                left -= 1;
                if left == 0 {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            assert!(matches!(
                stopped.expect_err("stopped").root(),
                DiskError::Cancelled
            ));
            assert!(all(&child) == before);
        }
        ops::merge(&child, &mut no_progress()).expect("merge");
        assert!(all(&base) == before);
    }
}

#[test]
fn a_changed_parent_is_noticed() {
    let chain = Chain::new(Format::Vhdx, "vhdx");
    let base = chain.base("base", 8 * MIB);
    let child = chain.child("child", &base);
    put(&base, 0, &[1; 512]);
    let error = ops::open(&child, &ro()).err().expect("refused");
    assert!(matches!(error.root(), DiskError::Parent(_)), "{error}");
    assert!(!ops::check(&child, None).expect("check").is_clean());
    assert!(ops::info(&child, None).expect("info").parent.is_some());
}

#[test]
fn files_that_moved_together_still_find_each_other() {
    for (format, extension) in FORMATS {
        let chain = Chain::new(format, extension);
        let base = chain.base("base", 8 * MIB);
        put(&base, 0, &[9; 512]);
        let child = chain.child("child", &base);
        let moved = chain.dir.path().join("elsewhere");
        std::fs::create_dir(&moved).expect("folder");
        for path in [&base, &child] {
            std::fs::rename(path, moved.join(path.file_name().expect("name"))).expect("move");
        }
        assert_eq!(
            all(&moved.join(child.file_name().expect("name")))[..512],
            [9; 512]
        );
    }
}

#[test]
fn rebasing_keeps_what_a_guest_sees() {
    for (format, extension) in FORMATS {
        let chain = Chain::new(format, extension);
        let (old, new) = (chain.base("old", 8 * MIB), chain.base("new", 8 * MIB));
        put(&old, 0, &pattern(1, 2 * MIB as usize));
        put(&new, MIB, &pattern(2, 2 * MIB as usize));
        let child = chain.child("child", &old);
        put(&child, 4096, &pattern(3, 8192));
        let before = all(&child);
        let info = ops::rebase(&child, &new, RebaseMode::KeepContents, &mut no_progress());
        let link = info.expect("rebase").parent.expect("parent").linkage;
        assert_eq!(
            Some(link),
            ops::info(&new, None).expect("info").data_identity
        );
        assert!(all(&child) == before);
        std::fs::remove_file(&old).expect("remove");
        assert!(all(&child) == before);
    }
}

#[test]
fn compacting_shrinks_the_file_and_keeps_the_contents() {
    for (format, extension) in FORMATS {
        let chain = Chain::new(format, extension);
        let base = chain.base("base", 64 * MIB);
        for block in 0..20 {
            put(&base, block * 2 * MIB, &pattern(block, 2 * MIB as usize));
        }
        {
            let disk = ops::open(&base, &rw()).expect("open");
            disk.write_zeroes(4 * MIB, 10 * MIB).expect("zero");
            write(&*disk, 20 * MIB, &vec![0; 8 * MIB as usize]);
            disk.close().expect("close");
        }
        let before = all(&base);
        let gone = ops::compact(&base, None, &mut no_progress()).expect("compact");
        assert!(gone >= 18 * MIB, "{format:?}: only {gone} bytes");
        assert!(all(&base) == before);
        let report = ops::check(&base, None).expect("check");
        assert!(report.is_clean() && report.unused_bytes == 0, "{report:?}");
    }
}

#[test]
fn compacting_a_differencing_disk_keeps_its_parent() {
    let chain = Chain::new(Format::Vhdx, "vhdx");
    let base = chain.base("base", 64 * MIB);
    put(&base, 0, &pattern(1, 40 * MIB as usize));
    let child = chain.child("child", &base);
    let top = {
        let disk = ops::open(&child, &rw()).expect("open");
        for block in 0..16 {
            write(&*disk, block * 2 * MIB, &pattern(50 + block, 4096));
        }
        disk.write_zeroes(0, 8 * MIB).expect("zero");
        disk.close().expect("close");
        drop(disk);
        chain.child("top", &child)
    };
    let before = all(&top);
    assert!(ops::compact(&child, None, &mut no_progress()).expect("compact") >= 8 * MIB);
    assert!(all(&top) == before);
    assert!(matches!(
        ops::compact(&chain.dir.path().join("no.vhdx"), None, &mut no_progress()),
        Err(DiskError::Path { .. })
    ));
}

#[test]
fn trimming_gives_space_back_and_writing_uses_it_again() {
    let chain = Chain::new(Format::Vhdx, "vhdx");
    let base = chain.base("base", 64 * MIB);
    let disk = ops::open(&base, &rw()).expect("open");
    write(&*disk, 0, &pattern(1, 32 * MIB as usize));
    disk.flush().expect("flush");
    let full = disk.info().file_size;
    disk.unmap(0, 16 * MIB).expect("unmap");
    disk.flush().expect("flush");
    assert!(read(&*disk, 0, 16 * MIB as usize).iter().all(|b| *b == 0));
    write(&*disk, 40 * MIB, &pattern(2, 16 * MIB as usize));
    disk.flush().expect("flush");
    assert_eq!(disk.info().file_size, full);
    use std::os::unix::fs::MetadataExt;
    disk.unmap(0, 64 * MIB).expect("unmap");
    disk.close().expect("close");
    let blocks = std::fs::metadata(&base).expect("metadata").blocks() * 512;
    assert!(
        blocks < 4 * MIB,
        "{blocks} bytes are still allocated on the host"
    );
}

#[test]
fn creating_is_all_or_nothing_and_never_replaces() {
    let chain = Chain::new(Format::Vhdx, "vhdx");
    let base = chain.base("base", 8 * MIB);
    let bytes = std::fs::read(&base).expect("read");
    let again = CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, MIB);
    assert!(matches!(
        ops::create(&base, &again),
        Err(DiskError::Path { .. })
    ));
    assert!(std::fs::read(&base).expect("read") == bytes);
    for bad in [
        CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, 0),
        CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, (64 << 40) + 512),
        CreateOptions::new(Format::Vhd, DiskKind::Dynamic, (2040 << 30) + 512),
        CreateOptions {
            block_size: Some(3 << 20),
            ..again.clone()
        },
        CreateOptions {
            logical_sector_size: Some(1024),
            ..again.clone()
        },
        CreateOptions::new(Format::Raw, DiskKind::Differencing, MIB),
    ] {
        let path = chain.path("bad");
        assert!(ops::create(&path, &bad).is_err(), "{bad:?}");
    }
    let target = chain.path("copy");
    let stopped = ops::convert(&base, &ro(), &target, &again, &mut |_| {
        ControlFlow::Break(())
    });
    assert!(stopped.is_err());
    let left = std::fs::read_dir(chain.dir.path()).expect("folder").count();
    assert_eq!(left, 1, "something was left behind");
}

#[test]
fn the_largest_disks_open_quickly_and_grow() {
    for (format, extension, size) in [
        (Format::Vhdx, "vhdx", 64u64 << 40),
        (Format::Vhd, "vhd", 2040 << 30),
    ] {
        let chain = Chain::new(format, extension);
        let path = chain.path("huge");
        let options = CreateOptions {
            block_size: Some(if format == Format::Vhdx {
                1 << 20
            } else {
                2 << 20
            }),
            ..CreateOptions::new(format, DiskKind::Dynamic, size - (1 << 30))
        };
        ops::create(&path, &options).expect("create");
        ops::resize(&path, None, size).expect("resize");
        let disk = ops::open(&path, &rw()).expect("open");
        write(&*disk, size - 4096, &pattern(1, 4096));
        disk.close().expect("close");
        assert_eq!(read(&*disk, size - 4096, 4096), pattern(1, 4096));
        assert!(disk.resize(size + 4096).is_err());
    }
}

#[test]
fn growing_moves_the_table_when_it_must() {
    let chain = Chain::new(Format::Vhdx, "vhdx");
    let path = chain.path("disk");
    let options = CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, 8 << 30)
    };
    ops::create(&path, &options).expect("create");
    let disk = ops::open(&path, &rw()).expect("open");
    write(&*disk, 5 << 30, &pattern(1, 4096));
    disk.resize(1 << 40).expect("grow");
    write(&*disk, (1 << 40) - 4096, &pattern(2, 4096));
    disk.flush().expect("flush");
    disk.close().expect("close");
    drop(disk);
    let disk = ops::open(&path, &ro()).expect("open");
    assert_eq!(read(&*disk, 5 << 30, 4096), pattern(1, 4096));
    assert_eq!(read(&*disk, (1 << 40) - 4096, 4096), pattern(2, 4096));
    drop(disk);
    let report = ops::check(&path, None).expect("check");
    assert!(report.is_clean() && report.notes.is_empty(), "{report:?}");
}

#[test]
fn disks_with_4096_byte_sectors() {
    let chain = Chain::new(Format::Vhdx, "vhdx");
    let base = chain.path("base");
    let options = CreateOptions {
        logical_sector_size: Some(4096),
        ..CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, 64 * MIB)
    };
    ops::create(&base, &options).expect("create");
    put(&base, 4096, &pattern(1, 8192));
    let child = chain.child("child", &base);
    put(&child, 8192, &pattern(2, 4096));
    let disk = ops::open(&child, &ro()).expect("open");
    assert_eq!(
        (disk.logical_sector_size(), disk.info().physical_sector_size),
        (4096, 4096)
    );
    assert_eq!(read(&*disk, 4096, 4096), pattern(1, 8192)[..4096]);
    assert_eq!(read(&*disk, 8192, 4096), pattern(2, 4096));
    let misplaced = disk.read(512, &mut [std::io::IoSliceMut::new(&mut [0; 4096])]);
    assert!(matches!(
        misplaced,
        Err(DiskError::Misaligned { sector: 4096, .. })
    ));
}
