//! QEMU: the one that is installed, or one out of Debian's packages in the cache folder.
//!
//! The packages that are missing on this machine are downloaded and unpacked into a folder;
//! nothing is installed, and no root rights are needed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Packages with QEMU's own files.
const PARTS: [&str; 5] = [
    PACKAGE,
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
    "ipxe-qemu",
];
/// Where Debian has libraries.
const LIBRARIES: [&str; 3] = [
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/pulseaudio",
];
/// Where Debian has firmware for QEMU.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// A QEMU that runs.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    program: PathBuf,
    /// The folder with the unpacked packages, if it is not the installed one.
    root: Option<PathBuf>,
    /// What it says of its version.
    pub(crate) version: String,
}

impl Qemu {
    /// The installed QEMU; if there is none, or `fetch` says so, one from packages.
    ///
    /// # Errors
    /// If there is none and none can be fetched: what to install.
    pub(crate) fn find(cache: &Path, fetch: bool) -> Result<Self> {
        if !fetch && let Ok(qemu) = Self::check(PathBuf::from(PROGRAM), None) {
            return Ok(qemu);
        }
        Self::from_packages(&cache.join("qemu"))
            .with_context(|| format!("no QEMU; install the package {PACKAGE} and try again"))
    }

    /// A command that starts it, with its libraries and firmware.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            let folders = LIBRARIES.map(|folder| root.join(folder));
            command.env("LD_LIBRARY_PATH", join(&folders));
            command.env("QEMU_MODULE_DIR", root.join(LIBRARIES[0]).join("qemu"));
            for folder in FIRMWARE {
                command.arg("-L").arg(root.join(folder));
            }
        }
        command
    }

    fn check(program: PathBuf, root: Option<PathBuf>) -> Result<Self> {
        let mut qemu = Self {
            program,
            root,
            version: String::new(),
        };
        let output = qemu.command().arg("--version").output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        match version(&text) {
            Some(version) if output.status.success() => qemu.version = version,
            _ => bail!("{} does not run: {}", qemu.program.display(), last(&output)),
        }
        Ok(qemu)
    }

    fn from_packages(folder: &Path) -> Result<Self> {
        let root = folder.join("root");
        let program = root.join("usr/bin").join(PROGRAM);
        if let Ok(qemu) = Self::check(program.clone(), Some(root.clone())) {
            return Ok(qemu);
        }
        if Self::download(folder, None).is_err() {
            // The system's lists are missing, or name files that are gone from the mirrors.
            let lists = folder.join("apt");
            update(&lists)?;
            Self::download(folder, Some(&lists))?;
        }
        Self::check(program, Some(root))
    }

    fn download(folder: &Path, lists: Option<&Path>) -> Result<()> {
        let mut packages = needed(lists)?;
        if packages.is_empty() {
            // Installed, as far as the system knows, and so are the libraries.
            packages = PARTS.map(str::to_owned).to_vec();
        }
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        let files = tempfile::Builder::new()
            .prefix(".download-")
            .tempdir_in(folder)?;
        eprintln!(
            "Fetching QEMU: {} packages into {}",
            packages.len(),
            folder.display()
        );
        let mut command = apt("apt-get", lists);
        command.args(["download", "-q", "--"]).args(&packages);
        succeed(command.current_dir(files.path()))?;
        for file in fs::read_dir(files.path())? {
            let mut command = Command::new("dpkg-deb");
            succeed(command.arg("-x").arg(file?.path()).arg(&root))?;
        }
        Ok(())
    }
}

/// A colon between folders.
fn join(folders: &[PathBuf]) -> OsString {
    let mut text = OsString::new();
    for folder in folders {
        if !text.is_empty() {
            text.push(":");
        }
        text.push(folder);
    }
    text
}

/// The packages that this machine lacks to run QEMU, with their versions.
fn needed(lists: Option<&Path>) -> Result<Vec<String>> {
    let mut command = apt("apt-get", lists);
    command.args(["install", "--simulate", "--no-install-recommends", PACKAGE]);
    let output = succeed(&mut command)?;
    Ok(parse_simulation(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads lines like `Inst seabios (1.16.2-1 Debian:12.12/oldstable [all])`.
fn parse_simulation(text: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("Inst "));
    lines
        .filter_map(|line| {
            let (name, rest) = line.split_once(' ')?;
            let version = rest.split_once('(')?.1.split(' ').next()?;
            Some(format!("{name}={version}"))
        })
        .collect()
}

/// The package tool; with lists of our own, but the system's knowledge of what is installed.
fn apt(program: &str, lists: Option<&Path>) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    // As root, apt would otherwise download as another user, who cannot write to our folder.
    command.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"]);
    command.args(["-o", "Debug::NoLocking=1"]);
    if let Some(lists) = lists {
        for (option, folder) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
            let mut value = OsString::from(format!("{option}="));
            value.push(lists.join(folder));
            command.arg("-o").arg(value);
        }
    }
    command
}

fn update(lists: &Path) -> Result<()> {
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(lists.join(folder))?;
    }
    eprintln!("Fetching package lists");
    succeed(apt("apt-get", Some(lists)).args(["update", "-q"]))?;
    Ok(())
}

fn succeed(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("{name} cannot be run"))?;
    if !output.status.success() {
        bail!("{name} failed: {}", last(&output));
    }
    Ok(output)
}

/// The last thing that a command complained about.
fn last(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().rfind(|line| !line.trim().is_empty());
    line.unwrap_or("it gave no reason").trim().to_owned()
}

/// The version in a line like `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
fn version(text: &str) -> Option<String> {
    let rest = text
        .lines()
        .next()?
        .strip_prefix("QEMU emulator version ")?;
    rest.split(' ').next().map(str::to_owned)
}

#[cfg(test)]
#[allow(
    dead_code,
    unused_imports,
    reason = "tests need a harness: see unit.rs"
)]
mod tests {
    use super::*;

    #[test]
    fn simulations_name_packages_and_versions() {
        let text = "\
Reading package lists...
Inst libfdt1 (1.6.1-4+b1 Debian:12.12/oldstable [amd64])
Inst libc6 [2.36-9] (2.36-9+deb12u10 Debian:12.12/oldstable [amd64]) []
Conf libfdt1 (1.6.1-4+b1 Debian:12.12/oldstable [amd64])
";
        let packages = parse_simulation(text);
        assert_eq!(packages, ["libfdt1=1.6.1-4+b1", "libc6=2.36-9+deb12u10"]);
        assert!(parse_simulation("").is_empty());
    }

    #[test]
    fn versions_are_read() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright\n";
        assert_eq!(version(text).as_deref(), Some("7.2.22"));
        assert_eq!(version("bash: no such thing"), None);
    }

    #[test]
    fn unpacked_packages_bring_libraries_and_firmware() {
        let qemu = Qemu {
            program: "/c/root/usr/bin/qemu-system-x86_64".into(),
            root: Some("/c/root".into()),
            version: String::new(),
        };
        let command = qemu.command();
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(arguments[..2], ["-L", "/c/root/usr/share/qemu"]);
        let libraries = command
            .get_envs()
            .find(|(name, _)| *name == "LD_LIBRARY_PATH")
            .and_then(|(_, value)| value)
            .unwrap();
        assert!(
            libraries
                .to_string_lossy()
                .starts_with("/c/root/usr/lib/x86_64-linux-gnu:/c/root/lib/")
        );
    }
}
