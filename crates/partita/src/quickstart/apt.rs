//! The system's package tool, asked to look up and to download packages.
//!
//! Nothing is installed and no state of the system changes. If the system's package lists are
//! missing or too old, lists of our own are kept in the cache folder.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::progress::Progress;
use crate::size;

/// Why a package could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AptError {
    /// `apt-get` or `apt-cache` is not there.
    Missing,
    /// The lists do not know the package.
    Unknown(String),
    /// The package could not be downloaded.
    Download(String),
}

/// A package in one version, as the lists describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// SHA-256 of the package file, in lower-case hexadecimal digits.
    pub(super) sha256: String,
    /// Size of the package file in bytes.
    pub(super) size: u64,
    /// Names of the packages that it depends on, first alternatives only.
    pub(super) depends: Vec<String>,
}

/// The package tool with a set of lists.
#[derive(Debug)]
pub(super) struct Apt {
    /// Where our own lists are; the system's are used if absent.
    private: Option<PathBuf>,
    /// Why our own lists are not up to date.
    stale: Option<String>,
}

impl Apt {
    /// With the system's own lists.
    pub(super) fn system() -> Self {
        Self {
            private: None,
            stale: None,
        }
    }

    /// With lists of our own in `directory`, brought up to date. A failure to update shows later,
    /// when a package is not found: some of the system's sources may well have answered.
    pub(super) fn private(directory: &Path, progress: &Progress) -> Result<Self, AptError> {
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            let _ = std::fs::create_dir_all(directory.join(sub));
        }
        let _ = std::fs::write(directory.join("state/status"), "");
        let mut apt = Self {
            private: Some(directory.to_owned()),
            stale: None,
        };
        let step = progress.step("Fetching package lists");
        let output = apt.wait(apt.command("apt-get").args(["update", "-q"]), step, &|| {
            size::display(size_of_folder(&directory.join("state/lists")))
        })?;
        apt.stale = update_failure(&output);
        Ok(apt)
    }

    /// The newest version of a package.
    pub(super) fn show(&self, name: &str) -> Result<Package, AptError> {
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions", "--", name]);
        let output = command.output().map_err(|_| AptError::Missing)?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse_package(&text).filter(|package| package.name == name).ok_or_else(|| {
            AptError::Unknown(match &self.stale {
                Some(reason) => format!(
                    "the package lists could not be fetched, this machine may be offline ({reason})"
                ),
                None => format!("the package lists do not have {name}"),
            })
        })
    }

    /// Downloads a package into an empty folder and gives the path of its file.
    pub(super) fn download(
        &self,
        package: &Package,
        folder: &Path,
        progress: &Progress,
    ) -> Result<PathBuf, AptError> {
        let total = size::display(package.size);
        let step = progress.step(format!("Fetching {} ({total})", package.name));
        let mut command = self.command("apt-get");
        command.args(["download", "-q", "--"]);
        command.arg(format!("{}={}", package.name, package.version));
        command.current_dir(folder);
        let output = self.wait(&mut command, step, &|| {
            format!("{} of {total}", size::display(size_of_folder(folder)))
        })?;
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let deb = files
            .map(|f| f.path())
            .find(|p| p.extension().is_some_and(|e| e == "deb"));
        match deb {
            Some(path) if output.status.success() => Ok(path),
            _ => Err(AptError::Download(last_complaint(&output))),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command.args(["-o", "APT::Color=0", "-o", "Acquire::Retries=2"]);
        command.args([
            "-o",
            "Acquire::http::Timeout=30",
            "-o",
            "Acquire::https::Timeout=30",
        ]);
        // As root, apt would otherwise download as another user, who cannot write to our folder.
        command.args(["-o", "APT::Sandbox::User=root"]);
        if let Some(directory) = &self.private {
            for (option, sub) in [
                ("Dir::State", "state"),
                ("Dir::State::lists", "state/lists"),
                ("Dir::State::status", "state/status"),
                ("Dir::Cache", "cache"),
            ] {
                let mut value = OsString::from(format!("{option}="));
                value.push(directory.join(sub));
                command.arg("-o").arg(value);
            }
        }
        command
    }

    /// Runs a command while showing progress.
    fn wait(
        &self,
        command: &mut Command,
        mut step: super::progress::Step,
        detail: &dyn Fn() -> String,
    ) -> Result<Output, AptError> {
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let child = child.map_err(|_| AptError::Missing)?;
        let waiter = std::thread::spawn(move || child.wait_with_output());
        while !waiter.is_finished() {
            std::thread::sleep(Duration::from_millis(50));
            step.update(&detail());
        }
        let output = waiter
            .join()
            .ok()
            .and_then(Result::ok)
            .ok_or(AptError::Missing)?;
        step.done(if output.status.success() {
            ""
        } else {
            "failed"
        });
        Ok(output)
    }
}

/// Reads the first stanza of `apt-cache show`.
fn parse_package(text: &str) -> Option<Package> {
    let stanza = text.split("\n\n").next()?;
    let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
    for line in stanza.lines().filter(|line| !line.starts_with([' ', '\t'])) {
        if let Some((name, value)) = line.split_once(':') {
            fields.insert(name, value.trim());
        }
    }
    let first_alternative = |dependency: &str| {
        let name = dependency.split(['|', '(', ':']).next().unwrap_or_default();
        name.trim().to_owned()
    };
    Some(Package {
        name: (*fields.get("Package")?).to_owned(),
        version: (*fields.get("Version")?).to_owned(),
        sha256: fields.get("SHA256")?.to_ascii_lowercase(),
        size: fields.get("Size")?.parse().ok()?,
        depends: fields
            .get("Depends")
            .map(|list| list.split(',').map(first_alternative).collect())
            .unwrap_or_default(),
    })
}

/// Why lists did not come, if some did not. The tool itself counts that as a warning only.
fn update_failure(output: &Output) -> Option<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let failed = text.lines().find(|line| line.contains("Failed to fetch"));
    match failed {
        // The reason stands behind the address, two spaces away.
        Some(line) => Some(line.rsplit("  ").next().unwrap_or(line).trim().to_owned()),
        None if output.status.success() => None,
        None => Some(last_complaint(output)),
    }
}

/// The last thing that the tool complained about, errors before warnings.
fn last_complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let last = |prefix: &str| text.lines().rfind(|line| line.starts_with(prefix));
    let line = last("E:")
        .or_else(|| last("W:"))
        .or_else(|| text.lines().last());
    line.unwrap_or("apt gave no reason")
        .trim_start_matches(['E', 'W', ':', ' '])
        .to_owned()
}

fn size_of_folder(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of_folder(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOW: &str = "\
Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (6.1.192+2)
Version: 6.1.192-2
Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), foo:any | bar
Description: Linux for cloud
 Size: this is text, not a field
Size: 1504
SHA256: ABCDEF

Package: second
";

    #[test]
    fn a_stanza_is_understood() {
        let package = parse_package(SHOW).unwrap();
        assert_eq!(package.name, "linux-image-cloud-amd64");
        assert_eq!((package.size, package.sha256.as_str()), (1504, "abcdef"));
        assert_eq!(package.depends, ["linux-image-6.1.0-56-cloud-amd64", "foo"]);
        assert_eq!(parse_package(""), None);
        assert_eq!(parse_package("Package: x\nVersion: 1\n"), None);
    }
}
