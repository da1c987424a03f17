//! Kernel modules, out of the kernel's own package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::support::packages::Fetched;

/// A module: its name, and its file's contents.
pub(crate) type Module = (&'static str, Vec<u8>);

/// The modules of `names` that are not part of the kernel itself, in that order.
///
/// # Errors
/// If the package cannot be had: what to do.
pub(crate) fn of(cache: &Path, kernel: &Fetched, names: &[&'static str]) -> Result<Vec<Module>> {
    let (package, version) = kernel
        .package
        .split_once(' ')
        .context("the kernel's package has no version")?;
    let folder = cache.join(format!("unpacked-{package}_{version}"));
    if !folder.is_dir() {
        fetch(cache, package, version, &folder)?;
    }
    let release = package.trim_start_matches("linux-image-");
    let tree = ["lib/modules", "usr/lib/modules"]
        .map(|modules| folder.join(modules).join(release))
        .into_iter()
        .find(|tree| tree.is_dir())
        .with_context(|| format!("{} has no modules of {release}", folder.display()))?;
    let mut files = Vec::new();
    collect(&tree.join("kernel"), &mut files)?;
    let module = |&name: &&'static str| {
        let file = files.iter().find(|file| {
            let stem = file.file_stem().and_then(|stem| stem.to_str());
            stem.is_some_and(|stem| stem.replace('-', "_") == name.replace('-', "_"))
        })?;
        Some(fs::read(file).map(|bytes| (name, bytes)))
    };
    Ok(names.iter().filter_map(module).collect::<Result<_, _>>()?)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            files.push(path);
        }
    }
    Ok(())
}

fn fetch(cache: &Path, package: &str, version: &str, folder: &Path) -> Result<()> {
    let work = tempfile::Builder::new()
        .prefix(".download-")
        .tempdir_in(cache)?;
    eprintln!("Fetching the modules of {package} {version}");
    let mut download = Command::new("apt-get");
    download.args(["-o", "APT::Sandbox::User=root", "download", "-q", "--"]);
    download.arg(format!("{package}={version}"));
    succeed(download.current_dir(work.path()))?;
    let mut files = fs::read_dir(work.path())?;
    let file = files.next().context("apt-get has downloaded nothing")??;
    let root = work.path().join("root");
    succeed(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(file.path())
            .arg(&root),
    )?;
    fs::rename(&root, folder)?;
    Ok(())
}

fn succeed(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{name} cannot be run"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{name} failed: {}",
            errors.lines().last().unwrap_or("it gave no reason")
        );
    }
    Ok(())
}
