//! The modules of Debian's kernels, from the kernel's own package.
//!
//! The package is fetched once, without root rights, in the version of the kernel in the cache
//! folder. Needs `apt-get` and `dpkg-deb`, and a network or the cache.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, copy};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::packages;
use super::tools;
use super::tree::Tree;

/// The modules that any of the tests loads, and what they depend on, in either kernel; some are
/// part of the kernel itself in one of them.
const WANTED: &[&str] = &[
    "cdrom",
    "crc-t10dif",
    "crc16",
    "crc32c_generic",
    "crc64",
    "crc64-rocksoft",
    "crct10dif_common",
    "crct10dif_generic",
    "dummy",
    "ext4",
    "hv_storvsc",
    "hv_utils",
    "hv_vmbus",
    "isofs",
    "jbd2",
    "mbcache",
    "scsi_common",
    "scsi_mod",
    "scsi_transport_fc",
    "sd_mod",
    "sr_mod",
    "t10-pi",
];

/// The modules of one kernel.
pub(crate) struct Modules {
    /// What `uname -r` prints.
    release: String,
    /// Their files by name.
    files: BTreeMap<String, Vec<u8>>,
}

impl Modules {
    /// The modules of the kernel that [`packages::kernel`] gives.
    pub(crate) fn of(package: &str) -> Self {
        let kernel = packages::kernel(package);
        let manifest = fs::read(kernel.with_file_name("manifest.json")).expect("a manifest");
        let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest is JSON");
        let text = |name: &str| manifest[name].as_str().expect("a text").to_owned();
        let (name, version) = (text("package"), text("version"));
        let release = name
            .strip_prefix("linux-image-")
            .expect("a kernel's package")
            .to_owned();
        let folder = tools::folder().join(format!("modules-{name}-{version}"));
        let _turn = tools::turn();
        if !folder.join("complete").is_file() {
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder).expect("a folder in the cache folder");
            unpack(&download(&folder, &name, &version), &folder);
            fs::write(folder.join("complete"), "").expect("a file in the cache folder");
        }
        let files = WANTED.iter().filter_map(|&name| {
            let file = fs::read(folder.join(name).with_extension("ko")).ok()?;
            Some((name.to_owned(), file))
        });
        Self {
            release,
            files: files.collect(),
        }
    }

    /// Puts all of them where `modprobe` looks for them, with the list that it needs.
    pub(crate) fn install(&self, tree: &mut Tree) {
        let folder = format!("lib/modules/{}", self.release);
        let mut list = String::new();
        for (name, file) in &self.files {
            tree.file(&format!("{folder}/{name}.ko"), 0o644, file.clone());
            list += &format!("{name}.ko:");
            for dependency in self.dependencies(name) {
                list += &format!(" {dependency}.ko");
            }
            list.push('\n');
        }
        tree.file(&format!("{folder}/modules.dep"), 0o644, list.into_bytes());
    }

    /// All that must be loaded before `name`, the last first.
    fn dependencies(&self, name: &str) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut order = Vec::new();
        self.visit(name, &mut seen, &mut order);
        order.pop();
        order.reverse();
        order
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
        let file = self.files.get(name);
        let file = file.unwrap_or_else(|| panic!("the module {name} is missing"));
        for dependency in depends(file) {
            // Names in the list have underscores whatever the file is called.
            let found = self
                .files
                .keys()
                .find(|key| key.replace('-', "_") == dependency);
            let found = found.unwrap_or_else(|| panic!("{name} needs {dependency}: not listed"));
            if seen.insert(found.clone()) {
                self.visit(found, seen, order);
            }
        }
        order.push(name.to_owned());
    }
}

/// The names in a module's `depends` field.
fn depends(file: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"\0depends=";
    let at = file.windows(FIELD.len()).position(|bytes| bytes == FIELD);
    let Some(at) = at else { return Vec::new() };
    let rest = &file[at + FIELD.len()..];
    let end = rest
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(rest.len());
    let names = String::from_utf8_lossy(&rest[..end]).into_owned();
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

fn download(folder: &Path, name: &str, version: &str) -> PathBuf {
    let lists = tools::folder().join("apt");
    fs::create_dir_all(lists.join("lists/partial")).expect("a folder in the cache folder");
    let fetch = |own_lists: bool| {
        tools::apt_get(&lists, own_lists)
            .args(["download", "--", &format!("{name}={version}")])
            .current_dir(folder)
            .output()
            .expect("apt-get starts")
    };
    let mut output = fetch(false);
    if !output.status.success() {
        // The system's lists are missing or too old.
        let _ = tools::apt_get(&lists, true).arg("update").output();
        output = fetch(true);
    }
    let found = fs::read_dir(folder).expect("a folder").flatten();
    let found = found
        .map(|entry| entry.path())
        .find(|path| path.extension() == Some(OsStr::new("deb")));
    found.unwrap_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        panic!("apt-get could not fetch {name} {version}; is a newer kernel out? {errors}")
    })
}

/// Takes the wanted modules out of a package, and removes it.
fn unpack(package: &Path, folder: &Path) {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .expect("dpkg-deb starts");
    let mut output = child.stdout.take().expect("a pipe was asked for");
    let mut archive = tar::Archive::new(&mut output);
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a name").into_owned();
        let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        if path.extension() == Some(OsStr::new("ko")) && WANTED.contains(&stem) {
            let mut file = fs::File::create(folder.join(stem).with_extension("ko"))
                .expect("a file in the cache folder");
            copy(&mut entry, &mut file).expect("a module can be unpacked");
        }
    }
    copy(&mut output.by_ref(), &mut std::io::sink()).expect("the rest of the archive");
    assert!(
        child.wait().expect("dpkg-deb ends").success(),
        "{package:?}"
    );
    fs::remove_file(package).expect("the package can be removed");
}
