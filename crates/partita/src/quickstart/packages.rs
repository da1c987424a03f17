//! The kernel and BusyBox, from Debian packages by way of a cache folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::apt::{Apt, AptError, Package};
use super::deb;
use super::progress::Progress;
use crate::size;

/// A file taken out of a package, in the cache.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    /// Name and version of the package.
    pub(super) package: String,
    /// The file.
    pub(super) path: PathBuf,
}

/// What is known about a cached file; kept beside it.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Manifest {
    /// The package that was asked for, which may only depend on the one with the file.
    asked: String,
    package: String,
    version: String,
    size: u64,
    sha256: String,
}

const MANIFEST: &str = "manifest.json";
/// How many packages that only depend on the next are followed.
const MAX_DEPTH: usize = 4;

/// Where packages come from, and where their files go.
#[derive(Debug)]
pub(super) struct Packages<'a> {
    cache: &'a Path,
    progress: &'a Progress,
    apt: Apt,
    own_lists: bool,
}

impl<'a> Packages<'a> {
    /// Uses `cache`, a folder that exists.
    pub(super) fn new(cache: &'a Path, progress: &'a Progress) -> Self {
        Self {
            cache,
            progress,
            apt: Apt::system(),
            own_lists: false,
        }
    }

    /// The file in the newest version of `name`, or of the package that `name` stands for, whose
    /// path satisfies `wanted`; `prefix` tells the names of packages that may have such a file.
    ///
    /// # Errors
    /// One line for the person, who is told what to do without the package tool.
    pub(super) fn fetch(
        &mut self,
        name: &str,
        prefix: &str,
        file: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Fetched> {
        let error = match self.fetch_current(name, prefix, file, &wanted) {
            Ok(fetched) => return Ok(fetched),
            Err(error) => error,
        };
        if let Some(fetched) = self.newest_cached(name, file) {
            self.progress.note(&format!(
                "Using {} from the cache: {error}",
                fetched.package
            ));
            return Ok(fetched);
        }
        bail!("{error}; with a kernel at hand, use: partita run --kernel FILE --initrd FILE")
    }

    fn fetch_current(
        &mut self,
        name: &str,
        prefix: &str,
        file: &str,
        wanted: &impl Fn(&str) -> bool,
    ) -> Result<Fetched> {
        loop {
            let result = self.try_fetch(name, prefix, file, wanted);
            let lists_may_help = matches!(
                result
                    .as_ref()
                    .err()
                    .and_then(|e| e.downcast_ref::<AptFailure>()),
                Some(AptFailure(AptError::Unknown(_) | AptError::Download(_)))
            );
            if self.own_lists || !lists_may_help {
                return result;
            }
            // The system's lists are missing or name files that are gone from the mirrors.
            self.apt = Apt::private(&self.cache.join("apt"), self.progress).map_err(AptFailure)?;
            self.own_lists = true;
        }
    }

    fn try_fetch(
        &self,
        name: &str,
        prefix: &str,
        file: &str,
        wanted: &impl Fn(&str) -> bool,
    ) -> Result<Fetched> {
        let package = self.resolve(name, prefix)?;
        let folder = self.cache.join(folder_name(&package));
        if let Some(fetched) = cached(&folder, file)
            && fetched.0.version == package.version
        {
            self.progress
                .note(&format!("Using {} from the cache", fetched.1.package));
            return Ok(fetched.1);
        }
        let download = tempfile::Builder::new()
            .prefix(".download-")
            .tempdir_in(self.cache);
        let download = download.context("the cache folder cannot be written to")?;
        let deb = self.apt.download(&package, download.path(), self.progress);
        let deb = deb.map_err(AptFailure)?;
        let bytes = fs::read(&deb).context("the package cannot be read")?;
        if hash(&bytes) != package.sha256 {
            bail!("the download of {} is damaged; try again", package.name);
        }
        drop(bytes);
        let step = self.progress.step(format!("Unpacking {file}"));
        let contents = deb::extract(&deb, wanted)
            .with_context(|| format!("{} cannot be used", package.name))?;
        let manifest = Manifest {
            asked: name.to_owned(),
            package: package.name.clone(),
            version: package.version.clone(),
            size: contents.len() as u64,
            sha256: hash(&contents),
        };
        let fetched = store(&folder, file, &contents, &manifest);
        let fetched = fetched.with_context(|| format!("{} cannot be written", folder.display()))?;
        step.done(&size::display(manifest.size));
        Ok(fetched)
    }

    /// Follows packages that only depend on the current one of a family.
    fn resolve(&self, name: &str, prefix: &str) -> Result<Package> {
        let mut package = self.apt.show(name).map_err(AptFailure)?;
        for _ in 0..MAX_DEPTH {
            let next = package
                .depends
                .iter()
                .find(|d| d.starts_with(prefix) && **d != package.name);
            match next {
                Some(next) => package = self.apt.show(next).map_err(AptFailure)?,
                None => return Ok(package),
            }
        }
        bail!("package {name} depends on others without end")
    }

    /// The file that was fetched last for a package name, for when the package tool is no help.
    fn newest_cached(&self, name: &str, file: &str) -> Option<Fetched> {
        let folders = fs::read_dir(self.cache).ok()?.flatten();
        let usable = folders.filter_map(|folder| {
            let (manifest, fetched) = cached(&folder.path(), file)?;
            let time = folder.metadata().and_then(|m| m.modified()).ok()?;
            (manifest.asked == name).then_some((time, fetched))
        });
        usable
            .max_by_key(|(time, _)| *time)
            .map(|(_, fetched)| fetched)
    }
}

/// An [`AptError`] on its way to the person.
#[derive(Debug)]
struct AptFailure(AptError);

impl std::fmt::Display for AptFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            AptError::Missing => f.write_str(
                "quickstart needs apt-get and apt-cache to fetch a kernel, and they are not here",
            ),
            AptError::Unknown(reason) => write!(f, "no package can be fetched: {reason}"),
            AptError::Download(reason) => write!(f, "the download failed: {reason}"),
        }
    }
}

impl std::error::Error for AptFailure {}

fn folder_name(package: &Package) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "+-.~_".contains(c) {
            c
        } else {
            '_'
        }
    };
    format!("{}_{}", package.name, package.version)
        .chars()
        .map(safe)
        .collect()
}

/// The file in a cache folder, if it is whole.
fn cached(folder: &Path, file: &str) -> Option<(Manifest, Fetched)> {
    let manifest = fs::read(folder.join(MANIFEST)).ok()?;
    let manifest: Manifest = serde_json::from_slice(&manifest).ok()?;
    let path = folder.join(file);
    if fs::metadata(&path).ok()?.len() != manifest.size {
        return None;
    }
    if hash(&fs::read(&path).ok()?) != manifest.sha256 {
        return None;
    }
    let package = format!("{} {}", manifest.package, manifest.version);
    Some((manifest, Fetched { package, path }))
}

/// Puts a file into its cache folder. The manifest comes last, so that a folder with a manifest
/// that fits its file is always whole.
fn store(folder: &Path, file: &str, contents: &[u8], manifest: &Manifest) -> Result<Fetched> {
    fs::create_dir_all(folder)?;
    let write = |name: &str, bytes: &[u8]| -> Result<()> {
        let temporary = tempfile::NamedTempFile::new_in(folder)?;
        fs::write(temporary.path(), bytes)?;
        temporary.persist(folder.join(name))?;
        Ok(())
    };
    write(file, contents)?;
    write(MANIFEST, &serde_json::to_vec_pretty(manifest)?)?;
    let package = format!("{} {}", manifest.package, manifest.version);
    Ok(Fetched {
        package,
        path: folder.join(file),
    })
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The folder for what is fetched: the one that was asked for, or the user's cache folder.
///
/// # Errors
/// If there is no such folder and it cannot be made.
pub(super) fn cache_folder(asked: Option<&Path>) -> Result<PathBuf> {
    let from_environment = || {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|p| p.is_absolute())
        };
        absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .map(|base| base.join("partita"))
    };
    let folder = asked
        .map(Path::to_owned)
        .or_else(from_environment)
        .ok_or_else(|| {
            anyhow!("neither XDG_CACHE_HOME nor HOME is set; name a folder with --cache")
        })?;
    fs::create_dir_all(&folder)
        .and_then(|()| folder.canonicalize())
        .map_err(|error| {
            let reason = error.to_string().to_lowercase();
            let reason = reason
                .split(" (os error")
                .next()
                .unwrap_or_default()
                .to_owned();
            anyhow!(
                "--cache {} cannot be made: {reason}; name a folder that you may write to",
                folder.display()
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(contents: &[u8]) -> Manifest {
        Manifest {
            asked: "meta".into(),
            package: "real".into(),
            version: "1:2".into(),
            size: contents.len() as u64,
            sha256: hash(contents),
        }
    }

    #[test]
    fn a_damaged_cache_entry_is_not_used() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("real_1_2");
        store(&folder, "vmlinuz", b"kernel", &manifest(b"kernel")).unwrap();
        let (read, fetched) = cached(&folder, "vmlinuz").unwrap();
        assert_eq!(read, manifest(b"kernel"));
        assert_eq!(fetched.package, "real 1:2");
        fs::write(&fetched.path, b"kernal").unwrap();
        assert!(cached(&folder, "vmlinuz").is_none());
        fs::write(&fetched.path, b"kern").unwrap();
        assert!(cached(&folder, "vmlinuz").is_none());
    }

    #[test]
    fn the_cache_answers_by_the_name_that_was_asked_for() {
        let cache = tempfile::tempdir().unwrap();
        let progress = Progress::new();
        let packages = Packages::new(cache.path(), &progress);
        store(
            &cache.path().join("a"),
            "vmlinuz",
            b"kernel",
            &manifest(b"kernel"),
        )
        .unwrap();
        assert!(packages.newest_cached("meta", "vmlinuz").is_some());
        assert!(packages.newest_cached("other", "vmlinuz").is_none());
    }

    #[test]
    fn folder_names_are_plain() {
        let package = Package {
            name: "busybox-static".into(),
            version: "1:1.35.0-4+deb12u1/../x".into(),
            sha256: String::new(),
            size: 0,
            depends: vec![],
        };
        assert_eq!(
            folder_name(&package),
            "busybox-static_1_1.35.0-4+deb12u1_.._x"
        );
    }
}
