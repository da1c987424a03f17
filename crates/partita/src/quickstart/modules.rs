//! The kernel's modules that the guest needs, out of the kernel's package.
//!
//! Which they are follows from what the modules themselves say they depend on (their `.modinfo`
//! section, as in Documentation/kbuild/modules.rst): packages do not hold the lists that depmod
//! makes on the machine where they are installed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use vmwp::cpio::Archive;

use super::deb::{self, Files};
use super::packages::hash;

/// Without these as modules or in the kernel itself, there is no disk.
const REQUIRED: [&str; 3] = ["hv_vmbus", "hv_storvsc", "sd_mod"];
/// What is taken where a kernel has it as a module; more follows from their dependencies. Those
/// at the end are ones that the rest depends on in Debian's kernels: with them in the list, one
/// look through the package is enough.
const WANTED: [&str; 27] = [
    "hv_vmbus",
    "hv_storvsc",
    "hv_utils",
    "uio_hv_generic",
    "sd_mod",
    "sr_mod",
    "ext4",
    "isofs",
    "crc32c_generic",
    "crct10dif_generic",
    "libcrc32c",
    "cdrom",
    "crc16",
    "crc64",
    "crc64_rocksoft",
    "crc_t10dif",
    "crct10dif_common",
    "jbd2",
    "mbcache",
    "pps_core",
    "ptp",
    "scsi_common",
    "scsi_mod",
    "scsi_transport_fc",
    "t10_pi",
    "uio",
    "nls_utf8",
];
/// How often a package is looked through for dependencies.
const MAX_ROUNDS: usize = 8;
/// The folder of modules in packages, perhaps below `usr`.
const FOLDER: &str = "lib/modules/";

/// One module.
#[derive(Debug)]
struct Module {
    /// Its path below the folder of its kernel's modules.
    path: String,
    contents: Vec<u8>,
    /// Names of the modules that it depends on directly.
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// The modules of one kernel.
#[derive(Debug, Default)]
struct Modules {
    /// The kernel's release, as `uname -r` prints it.
    release: String,
    /// By name, with underscores only.
    modules: BTreeMap<String, Module>,
    /// What the kernel has without a module.
    builtin: BTreeSet<String>,
}

/// A kernel and its modules.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: Vec<u8>,
    /// A CPIO archive to be put behind that of an initial RAM disk.
    pub(super) modules: Vec<u8>,
}

/// Takes a kernel and its modules out of the kernel's package.
///
/// # Errors
/// If the package cannot be read, or lacks what every guest needs.
pub(super) fn unpack(package: &Path) -> Result<Kernel> {
    let wanted: BTreeSet<String> = WANTED.iter().map(|&name| name.to_owned()).collect();
    let is_image = |path: &str| path.starts_with("boot/vmlinuz-");
    let mut files = deb::extract(package, |path| {
        is_image(path) || path.ends_with("/modules.builtin") || is_module(path, &wanted)
    })?;
    let image = files.keys().find(|path| is_image(path)).cloned();
    let image = image.and_then(|path| files.remove(&path));
    let image = image.context("it does not contain a kernel")?;
    let mut found = Modules::default();
    found.add(files)?;
    for _ in 0..MAX_ROUNDS {
        let missing = found.missing();
        if missing.is_empty() {
            break;
        }
        found.add(deb::extract(package, |path| is_module(path, &missing))?)?;
    }
    let modules = found.archive()?;
    Ok(Kernel { image, modules })
}

/// A module's name, from the path of its file.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn is_module(path: &str, wanted: &BTreeSet<String>) -> bool {
    path.contains(FOLDER) && name_of(path).is_some_and(|name| wanted.contains(&name))
}

/// Values of a key in the text pieces, each ended by a zero, of a module.
fn information(contents: &[u8], key: &str) -> Vec<String> {
    let start = [b"\0", key.as_bytes(), b"="].concat();
    let found = contents
        .windows(start.len())
        .enumerate()
        .filter(|(_, window)| *window == start);
    found
        .filter_map(|(at, _)| {
            let value = &contents[at + start.len()..];
            let end = value.iter().position(|&byte| byte == 0)?;
            let text = std::str::from_utf8(&value[..end]).ok()?;
            text.chars()
                .all(|c| c.is_ascii_graphic())
                .then(|| text.to_owned())
        })
        .collect()
}

impl Modules {
    fn add(&mut self, files: Files) -> Result<()> {
        for (path, contents) in files {
            let Some((_, below)) = path.split_once(FOLDER) else {
                continue;
            };
            let Some((release, path)) = below.split_once('/') else {
                continue;
            };
            if self.release.is_empty() {
                self.release = release.to_owned();
            }
            if path == "modules.builtin" {
                let text = String::from_utf8_lossy(&contents);
                self.builtin.extend(text.lines().filter_map(name_of));
                continue;
            }
            let Some(name) = name_of(path) else { continue };
            let (path, contents) = deb::plain(path, &contents)?;
            let module = Module {
                path: path.to_owned(),
                depends: information(&contents, "depends")
                    .iter()
                    .flat_map(|list| list.split(','))
                    .filter(|name| !name.is_empty())
                    .map(|name| name.replace('-', "_"))
                    .collect(),
                aliases: information(&contents, "alias"),
                contents,
            };
            self.modules.insert(name, module);
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name) || self.builtin.contains(name)
    }

    /// What the modules depend on and is neither among them nor in the kernel.
    fn missing(&self) -> BTreeSet<String> {
        let depends = self.modules.values().flat_map(|module| &module.depends);
        depends.filter(|name| !self.has(name)).cloned().collect()
    }

    /// The paths of what a module needs, in the order in which it is to be loaded.
    fn needs<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::from([name]);
        self.visit(name, &mut seen, &mut order);
        order
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<&'a str>) {
        let Some(module) = self.modules.get(name) else {
            return;
        };
        for next in &module.depends {
            if let Some(dependency) = self.modules.get(next)
                && seen.insert(next)
            {
                self.visit(next, seen, order);
                order.push(&dependency.path);
            }
        }
    }

    /// modules.dep(5): a module, then what it needs, to be loaded from the last to the first.
    fn dependencies(&self) -> String {
        let mut text = String::new();
        for (name, module) in &self.modules {
            text.push_str(&module.path);
            text.push(':');
            for path in self.needs(name).iter().rev() {
                text.push(' ');
                text.push_str(path);
            }
            text.push('\n');
        }
        text
    }

    /// modules.alias: by what else the kernel may ask for a module.
    fn aliases(&self) -> String {
        let mut text = String::new();
        for (name, module) in &self.modules {
            for alias in &module.aliases {
                text.push_str(&format!("alias {alias} {name}\n"));
            }
        }
        text
    }

    fn archive(&self) -> Result<Vec<u8>> {
        if let Some(name) = REQUIRED.iter().find(|name| !self.has(name)) {
            bail!("it has no module {name}, which a guest needs for its disk");
        }
        let missing = self.missing();
        if let Some(name) = missing.first() {
            bail!("it has no module {name}, on which others depend");
        }
        let mut files = BTreeMap::new();
        let below = |path: &str| format!("{FOLDER}{}/{path}", self.release);
        for module in self.modules.values() {
            files.insert(below(&module.path), module.contents.clone());
        }
        let builtin: String = self.builtin.iter().map(|n| format!("{n}.ko\n")).collect();
        files.insert(below("modules.builtin"), builtin.into_bytes());
        files.insert(below("modules.dep"), self.dependencies().into_bytes());
        files.insert(below("modules.alias"), self.aliases().into_bytes());
        files.insert(super::initramfs::MODULES.to_owned(), identity(&files));
        pack(&files)
    }
}

/// One line that differs for different files.
fn identity(files: &Files) -> Vec<u8> {
    let lines = files
        .iter()
        .map(|(path, contents)| format!("{path} {}\n", hash(contents)));
    let text: String = lines.collect();
    format!("{}\n", hash(text.as_bytes())).into_bytes()
}

fn pack(files: &Files) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    let mut folders = BTreeSet::new();
    for path in files.keys() {
        for (at, _) in path.match_indices('/') {
            folders.insert(&path[..at]);
        }
    }
    for folder in folders {
        archive.directory(folder, 0o755)?;
    }
    for (path, contents) in files {
        archive.file(path, 0o644, contents)?;
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str, more: &str) -> Vec<u8> {
        let more = more.replace(' ', "\0");
        format!("\x7fELF\0license=GPL\0depends={depends}\0{more}\0name=x\0").into_bytes()
    }

    fn modules(files: &[(&str, Vec<u8>)]) -> Modules {
        let mut modules = Modules::default();
        let files = files.iter().map(|(path, contents)| {
            let path = format!("lib/modules/6.1/{path}");
            (path, contents.clone())
        });
        modules.add(files.collect()).unwrap();
        modules
    }

    fn usual() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            (
                "kernel/drivers/hv/hv_vmbus.ko",
                module("", "alias=acpi*:VMBUS:*"),
            ),
            (
                "kernel/drivers/scsi/hv_storvsc.ko",
                module("scsi_mod,hv_vmbus,scsi-transport-fc", ""),
            ),
            (
                "kernel/drivers/scsi/scsi_transport_fc.ko",
                module("scsi_mod", ""),
            ),
            ("kernel/drivers/scsi/scsi_mod.ko", module("scsi_common", "")),
            ("kernel/drivers/scsi/scsi_common.ko", module("", "")),
            (
                "modules.builtin",
                b"kernel/drivers/scsi/sd-mod.ko\n".to_vec(),
            ),
        ]
    }

    #[test]
    fn what_a_module_needs_comes_before_it() {
        let modules = modules(&usual());
        assert_eq!(modules.release, "6.1");
        assert!(modules.missing().is_empty());
        let dependencies = modules.dependencies();
        let line = dependencies
            .lines()
            .find(|line| line.starts_with("kernel/drivers/scsi/hv_storvsc.ko:"));
        assert_eq!(
            line,
            Some(
                "kernel/drivers/scsi/hv_storvsc.ko: kernel/drivers/scsi/scsi_transport_fc.ko \
                 kernel/drivers/hv/hv_vmbus.ko kernel/drivers/scsi/scsi_mod.ko \
                 kernel/drivers/scsi/scsi_common.ko"
            )
        );
        assert_eq!(modules.aliases(), "alias acpi*:VMBUS:* hv_vmbus\n");
    }

    #[test]
    fn the_archive_has_the_modules_and_their_lists() {
        let archive = modules(&usual()).archive().unwrap();
        let text = String::from_utf8_lossy(&archive);
        for part in [
            "lib/modules/6.1/kernel/drivers/hv/hv_vmbus.ko\0",
            "lib/modules/6.1/modules.dep\0",
            "lib/modules/6.1/modules.alias\0",
            "etc/partita/modules\0",
        ] {
            assert!(text.contains(part), "{part}");
        }
        let mut other = usual();
        other[0].1.push(0);
        assert_ne!(archive, modules(&other).archive().unwrap());
    }

    #[test]
    fn a_kernel_without_a_disk_driver_is_refused() {
        let mut files = usual();
        files.remove(1);
        let error = modules(&files).archive().unwrap_err().to_string();
        assert!(error.contains("hv_storvsc"), "{error}");
        let mut files = usual();
        files.remove(4);
        let modules = modules(&files);
        assert_eq!(
            modules.missing(),
            BTreeSet::from(["scsi_common".to_owned()])
        );
        let error = modules.archive().unwrap_err().to_string();
        assert!(error.contains("scsi_common"), "{error}");
    }

    #[test]
    fn modules_that_depend_on_each_other_do_not_hang() {
        let modules = modules(&[
            ("kernel/a.ko", module("b", "")),
            ("kernel/b.ko", module("a", "")),
        ]);
        assert_eq!(modules.needs("a"), ["kernel/b.ko"]);
    }
}
