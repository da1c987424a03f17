//! The files of a guest: an initial RAM disk, or a root file system on a disk.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use vmwp::cpio::Archive;

use super::packages;
use super::tools::Root;

#[derive(Clone, Debug)]
enum Entry {
    Folder,
    File(u32, Vec<u8>),
    Link(String),
}

/// Files by path, without a slash at the start.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    entries: BTreeMap<String, Entry>,
}

/// What guests are given from Debian beside BusyBox.
const PACKAGES: &[&str] = &["e2fsprogs", "eject", "hyperv-daemons", "kexec-tools"];
fn debian() -> Root {
    let _turn = super::tools::turn();
    Root::of(&PACKAGES.join("-"), PACKAGES)
}

/// Names and places of the libraries of a program, as the loader finds them.
fn libraries(root: &Root, program: &str) -> Vec<(String, PathBuf)> {
    let words = root.run(program);
    let (last, words) = words.split_last().expect("a program");
    let output = Command::new(&words[0])
        .args(&words[1..])
        .arg("--list")
        .arg(last)
        .output()
        .expect("the loader starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let entries = text
        .lines()
        .filter_map(|line| line.trim().split_once(" => "));
    entries
        // The loader itself comes with its whole path.
        .filter(|(name, _)| !name.contains('/'))
        .map(|(name, place)| {
            let place = place.rsplit_once(" (").map_or(place, |(place, _)| place);
            (name.to_owned(), place.into())
        })
        .collect()
}

impl Tree {
    /// BusyBox and the folders that a system has.
    pub(crate) fn new() -> Self {
        let mut tree = Self::default();
        for folder in [
            "dev",
            "mnt",
            "proc",
            "root",
            "run",
            "sys",
            "tmp",
            "var/lib/hyperv",
        ] {
            tree.folder(folder);
        }
        let busybox = fs::read(packages::busybox()).expect("BusyBox can be read");
        tree.file("bin/busybox", 0o755, busybox);
        // Where the kernel looks for it.
        tree.link("sbin/modprobe", "/bin/busybox");
        tree
    }

    /// Adds programs of Debian's, such as `usr/sbin/hv_kvp_daemon` or
    /// `sbin/mke2fs`, and the libraries that they need.
    pub(crate) fn programs(&mut self, paths: &[&str]) {
        let root = debian();
        let read = |path: &Path| fs::read(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        for path in paths {
            let file = root.path.join(path);
            let data = read(&file);
            if data.starts_with(b"\x7fELF") {
                for (name, place) in libraries(&root, path) {
                    self.file(&format!("lib/{name}"), 0o755, read(&place));
                }
            }
            self.file(path, 0o755, data);
        }
        let loader = PathBuf::from(&root.run("")[0]);
        self.file("lib64/ld-linux-x86-64.so.2", 0o755, read(&loader));
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, data: Vec<u8>) {
        self.parents(path);
        self.entries
            .insert(path.to_owned(), Entry::File(mode, data));
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entries
            .insert(path.to_owned(), Entry::Link(target.to_owned()));
    }

    pub(crate) fn folder(&mut self, path: &str) {
        self.parents(path);
        self.entries.insert(path.to_owned(), Entry::Folder);
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.entries
                .entry(path[..end].to_owned())
                .or_insert(Entry::Folder);
        }
    }

    /// Writes an initial RAM disk.
    pub(crate) fn write_initrd(&self, path: &Path) {
        let mut archive = Archive::new();
        for (name, entry) in &self.entries {
            match entry {
                Entry::Folder => archive.directory(name, 0o755),
                Entry::File(mode, data) => archive.file(name, *mode, data),
                Entry::Link(target) => archive.symlink(name, target),
            }
            .unwrap();
        }
        archive.char_device("dev/console", 0o600, 5, 1).unwrap();
        fs::write(path, archive.finish()).expect("the RAM disk can be written");
    }

    /// Makes a raw disk of `size` bytes with an ext4 file system with these files.
    pub(crate) fn write_ext4(&self, path: &Path, size: u64) {
        let folder = path.with_extension("d");
        fs::create_dir(&folder).expect("a folder");
        for (name, entry) in &self.entries {
            let path = folder.join(name);
            match entry {
                Entry::Folder => fs::create_dir(&path),
                Entry::File(mode, data) => fs::write(&path, data)
                    .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(*mode))),
                Entry::Link(target) => symlink(target, &path),
            }
            .unwrap_or_else(|error| panic!("{path:?}: {error}"));
        }
        File::create(path)
            .and_then(|file| file.set_len(size))
            .expect("a raw disk");
        let arguments: [OsString; 7] = [
            "-q".into(),
            "-F".into(),
            "-d".into(),
            folder.clone().into(),
            "-E".into(),
            "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0".into(),
            path.into(),
        ];
        e2fs(
            "sbin/mke2fs",
            &[&["-t".into(), "ext4".into()], &arguments[..]].concat(),
        );
        fs::remove_dir_all(folder).expect("the folder can be removed");
    }
}

/// Runs a program of e2fsprogs on the host, which must succeed; gives what it printed.
pub(crate) fn e2fs<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let words = debian().run(program);
    let output = Command::new(&words[0])
        .args(&words[1..])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(
        output.status.success(),
        "{program}: {}\n{text}",
        output.status
    );
    text
}
