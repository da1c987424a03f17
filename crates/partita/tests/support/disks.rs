//! `partita disk`, and files for it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use disk::{OpenOptions, VirtualDisk, ops};
use serde_json::Value;

pub(crate) const MIB: u64 = 1 << 20;

/// A folder for the files of one test.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
}

impl Folder {
    pub(crate) fn new() -> Self {
        // In the target folder: a temporary one may be in memory, which has no room for disks.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"));
        Self {
            folder: folder.expect("a folder in the target folder"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The names in the folder, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path())
            .expect("the folder")
            .flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// A raw file of `size` bytes with these parts filled.
    pub(crate) fn raw(&self, name: &str, size: u64, filled: &[(u64, u64)]) -> PathBuf {
        let path = self.path(name);
        let file = File::create(&path).expect("a raw file");
        file.set_len(size).expect("its length");
        for &(at, len) in filled {
            file.write_all_at(&pattern(at, len), at)
                .expect("its contents");
        }
        path
    }
}

/// Bytes that tell where they belong, none of them zero.
pub(crate) fn pattern(seed: u64, len: u64) -> Vec<u8> {
    // The step of Knuth's MMIX generator.
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8 | 1
    };
    (0..len).map(|_| next()).collect()
}

/// Runs `partita disk`.
pub(crate) fn disk<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    command(arguments).output().expect("partita starts")
}

/// `partita disk`, not started yet.
pub(crate) fn command<S: AsRef<OsStr>>(arguments: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_partita"));
    command.arg("disk").args(arguments).stdin(Stdio::null());
    command
}

/// Words and files as the arguments of a command.
#[macro_export]
macro_rules! args {
    ($($argument:expr),* $(,)?) => {
        [$(std::ffi::OsString::from(&$argument)),*]
    };
}

/// Runs `partita disk`, which must succeed in silence, and gives what it printed.
pub(crate) fn done<S: AsRef<OsStr>>(arguments: &[S]) -> String {
    let output = disk(arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let words: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    assert_eq!(output.status.code(), Some(0), "{words:?}: {errors}");
    assert_eq!(errors, "", "{words:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Runs `partita disk ... --json`, which must succeed, and gives what it printed.
pub(crate) fn json<S: AsRef<OsStr>>(arguments: &[S]) -> Value {
    let mut words: Vec<_> = arguments.iter().map(AsRef::as_ref).collect();
    words.push(OsStr::new("--json"));
    let text = done(&words);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Opens a disk for reading and writing.
pub(crate) fn open(path: &Path) -> std::sync::Arc<dyn VirtualDisk> {
    ops::open(path, &OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// Fills parts of a disk, as a guest does.
pub(crate) fn fill(path: &Path, parts: &[(u64, u64)]) {
    let disk = open(path);
    for &(at, len) in parts {
        let bytes = pattern(at ^ len << 32, len);
        disk.write(at, &[std::io::IoSlice::new(&bytes)], false)
            .expect("the disk can be written");
    }
    disk.close().expect("the disk can be closed");
}

/// All that a guest sees.
pub(crate) fn contents(path: &Path) -> Vec<u8> {
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let disk = ops::open(path, &options).unwrap_or_else(|error| panic!("{error}"));
    let mut bytes = vec![0xee; disk.virtual_size() as usize];
    disk.read(0, &mut [std::io::IoSliceMut::new(&mut bytes)])
        .expect("the disk can be read");
    bytes
}
