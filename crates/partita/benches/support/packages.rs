//! Kernels and BusyBox, from the cache folder that `partita quickstart` fills.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The package of Debian's kernel for VMs.
pub(crate) const CLOUD: &str = "linux-image-cloud-amd64";
/// The package of Debian's kernel for all machines.
pub(crate) const GENERIC: &str = "linux-image-amd64";
/// The package of the statically linked BusyBox.
pub(crate) const BUSYBOX: &str = "busybox-static";

/// A file out of a package.
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    /// Name and version of the package.
    pub(crate) package: String,
    /// The file.
    pub(crate) path: PathBuf,
}

/// The part of a cache entry's description that is of use here.
#[derive(Debug, Deserialize)]
struct Manifest {
    asked: String,
    package: String,
    version: String,
}

/// The user's cache folder.
///
/// # Errors
/// If the environment names none.
pub(crate) fn cache() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|h| h.join(".cache")));
    let folder = base
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("partita");
    fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
    Ok(folder)
}

/// A kernel, or BusyBox. What the cache folder does not have, `partita quickstart` fetches.
///
/// # Errors
/// If it is not there, and cannot be fetched.
pub(crate) fn file(cache: &Path, package: &str, partita: &Path) -> Result<Fetched> {
    if let Some(found) = newest(cache, package) {
        return Ok(found);
    }
    let kernel = if package == BUSYBOX { CLOUD } else { package };
    // Whether the VM that it starts then fares well does not matter here.
    let output = Command::new(partita)
        .args(["quickstart", "--check", "--kernel-package", kernel])
        .arg("--cache")
        .arg(cache)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be run", partita.display()))?;
    match newest(cache, package) {
        Some(found) => Ok(found),
        None => {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = errors.lines().last().unwrap_or("no reason given");
            bail!("{package} cannot be fetched: {last}")
        }
    }
}

fn newest(cache: &Path, package: &str) -> Option<Fetched> {
    let name = if package == BUSYBOX {
        "busybox"
    } else {
        "vmlinuz"
    };
    let folders = fs::read_dir(cache).ok()?.flatten();
    let usable = folders.filter_map(|folder| {
        let manifest = fs::read(folder.path().join("manifest.json")).ok()?;
        let manifest: Manifest = serde_json::from_slice(&manifest).ok()?;
        let path = folder.path().join(name);
        let time = folder.metadata().ok()?.modified().ok()?;
        (manifest.asked == package && path.is_file()).then_some((time, manifest, path))
    });
    let (_, manifest, path) = usable.max_by_key(|(time, ..)| *time)?;
    Some(Fetched {
        package: format!("{} {}", manifest.package, manifest.version),
        path,
    })
}
