//! Files out of Debian packages, by way of a cache folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::apt::{Apt, AptError, Package};
use super::progress::Progress;
use crate::size;

/// What is wanted of a package.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The package to ask for, which may only depend on the one with the files.
    pub(super) name: &'a str,
    /// How the names of packages that may have the files begin.
    pub(super) prefix: &'a str,
    /// The names that the files get in the cache. What is made in another way gets another name,
    /// so that older files in the cache are not taken for it.
    pub(super) files: &'a [&'a str],
    /// Makes the files, in that order, out of a package's file.
    pub(super) unpack: fn(&Path) -> Result<Vec<Vec<u8>>>,
}

/// Files out of a package, in the cache.
#[derive(Debug, Clone)]
pub(super) struct Fetched {
    /// Name and version of the package.
    pub(super) package: String,
    folder: PathBuf,
}

impl Fetched {
    /// Where a file is.
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// A file's contents.
    ///
    /// # Errors
    /// One line that names the file.
    pub(super) fn read(&self, file: &str) -> Result<Vec<u8>> {
        let path = self.path(file);
        fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))
    }
}

/// What is known about cached files; kept beside them.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Manifest {
    /// The package that was asked for.
    asked: String,
    package: String,
    version: String,
    files: Vec<FileRecord>,
}

/// One cached file, by which it is known to be whole.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct FileRecord {
    name: String,
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

    /// The files of the newest version of a package, or of the one that it stands for.
    ///
    /// # Errors
    /// One line for the person, who is told what to do without the package tool.
    pub(super) fn fetch(&mut self, wanted: &Wanted<'_>) -> Result<Fetched> {
        let error = match self.fetch_current(wanted) {
            Ok(fetched) => return Ok(fetched),
            Err(error) => error,
        };
        if let Some(fetched) = self.newest_cached(wanted) {
            self.progress.note(&format!(
                "Using {} from the cache: {error}",
                fetched.package
            ));
            return Ok(fetched);
        }
        bail!("{error:#}; with a kernel at hand, use: partita run --kernel FILE --initrd FILE")
    }

    fn fetch_current(&mut self, wanted: &Wanted<'_>) -> Result<Fetched> {
        loop {
            let result = self.try_fetch(wanted);
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

    fn try_fetch(&self, wanted: &Wanted<'_>) -> Result<Fetched> {
        let package = self.resolve(wanted.name, wanted.prefix)?;
        let folder = self.cache.join(folder_name(&package));
        if let Some((manifest, fetched)) = cached(&folder, wanted.files)
            && manifest.version == package.version
        {
            self.progress
                .note(&format!("Using {} from the cache", fetched.package));
            return Ok(fetched);
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
        let step = self.progress.step(format!("Unpacking {}", package.name));
        let contents =
            (wanted.unpack)(&deb).with_context(|| format!("{} cannot be used", package.name))?;
        let files: Vec<_> = wanted.files.iter().copied().zip(&contents).collect();
        let fetched = store(&folder, wanted.name, &package, &files)
            .with_context(|| format!("{} cannot be written", folder.display()))?;
        let total: usize = contents.iter().map(Vec::len).sum();
        step.done(&size::display(total as u64));
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

    /// What was fetched last for a package name, for when the package tool is no help.
    fn newest_cached(&self, wanted: &Wanted<'_>) -> Option<Fetched> {
        let folders = fs::read_dir(self.cache).ok()?.flatten();
        let usable = folders.filter_map(|folder| {
            let (manifest, fetched) = cached(&folder.path(), wanted.files)?;
            let time = folder.metadata().and_then(|m| m.modified()).ok()?;
            (manifest.asked == wanted.name).then_some((time, fetched))
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

/// What is in a cache folder, if all files are there and whole.
fn cached(folder: &Path, files: &[&str]) -> Option<(Manifest, Fetched)> {
    let manifest = fs::read(folder.join(MANIFEST)).ok()?;
    let manifest: Manifest = serde_json::from_slice(&manifest).ok()?;
    let whole = |name: &&str| {
        let record = manifest.files.iter().find(|record| record.name == **name)?;
        let path = folder.join(name);
        let same_size = fs::metadata(&path).ok()?.len() == record.size;
        (same_size && hash(&fs::read(&path).ok()?) == record.sha256).then_some(())
    };
    if !files.iter().all(|name| whole(name).is_some()) {
        return None;
    }
    let fetched = manifest.fetched(folder);
    Some((manifest, fetched))
}

impl Manifest {
    fn fetched(&self, folder: &Path) -> Fetched {
        Fetched {
            package: format!("{} {}", self.package, self.version),
            folder: folder.to_owned(),
        }
    }
}

/// Puts files into their cache folder. The manifest comes last, so that a folder with a manifest
/// that fits its files is always whole.
fn store(
    folder: &Path,
    asked: &str,
    package: &Package,
    files: &[(&str, &Vec<u8>)],
) -> Result<Fetched> {
    fs::create_dir_all(folder)?;
    let write = |name: &str, bytes: &[u8]| -> Result<()> {
        let temporary = tempfile::NamedTempFile::new_in(folder)?;
        fs::write(temporary.path(), bytes)?;
        temporary.persist(folder.join(name))?;
        Ok(())
    };
    let mut records = Vec::new();
    for (name, contents) in files {
        write(name, contents)?;
        records.push(FileRecord {
            name: (*name).to_owned(),
            size: contents.len() as u64,
            sha256: hash(contents),
        });
    }
    let manifest = Manifest {
        asked: asked.to_owned(),
        package: package.name.clone(),
        version: package.version.clone(),
        files: records,
    };
    write(MANIFEST, &serde_json::to_vec_pretty(&manifest)?)?;
    Ok(manifest.fetched(folder))
}

/// The SHA-256 of some bytes in lower-case hexadecimal digits.
pub(super) fn hash(bytes: &[u8]) -> String {
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

    const WANTED: Wanted<'_> = Wanted {
        name: "meta",
        prefix: "real",
        files: &["vmlinuz", "modules"],
        unpack: |_| bail!("nothing to unpack"),
    };

    fn package() -> Package {
        Package {
            name: "real".into(),
            version: "1:2".into(),
            sha256: String::new(),
            size: 0,
            depends: vec![],
        }
    }

    fn store_both(folder: &Path) -> Fetched {
        let (kernel, modules) = (b"kernel".to_vec(), b"modules".to_vec());
        let files = [("vmlinuz", &kernel), ("modules", &modules)];
        store(folder, "meta", &package(), &files).unwrap()
    }

    #[test]
    fn a_damaged_cache_entry_is_not_used() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("real_1_2");
        store_both(&folder);
        let (manifest, fetched) = cached(&folder, WANTED.files).unwrap();
        assert_eq!(manifest.asked, "meta");
        assert_eq!(fetched.package, "real 1:2");
        assert_eq!(fetched.read("modules").unwrap(), b"modules");
        for damaged in ["modulos", "mod"] {
            fs::write(fetched.path("modules"), damaged).unwrap();
            assert!(cached(&folder, WANTED.files).is_none());
            assert!(cached(&folder, &["vmlinuz"]).is_some());
        }
    }

    #[test]
    fn an_entry_without_a_wanted_file_is_not_used() {
        let cache = tempfile::tempdir().unwrap();
        let kernel = b"kernel".to_vec();
        store(cache.path(), "meta", &package(), &[("vmlinuz", &kernel)]).unwrap();
        assert!(cached(cache.path(), &["vmlinuz"]).is_some());
        assert!(cached(cache.path(), WANTED.files).is_none());
        // As written before there could be several files.
        let old = r#"{"asked":"meta","package":"real","version":"1:2","size":6,"sha256":"00"}"#;
        fs::write(cache.path().join(MANIFEST), old).unwrap();
        assert!(cached(cache.path(), &["vmlinuz"]).is_none());
    }

    #[test]
    fn the_cache_answers_by_the_name_that_was_asked_for() {
        let cache = tempfile::tempdir().unwrap();
        let progress = Progress::new();
        let packages = Packages::new(cache.path(), &progress);
        store_both(&cache.path().join("a"));
        assert!(packages.newest_cached(&WANTED).is_some());
        let name = "other";
        let other = Wanted { name, ..WANTED };
        assert!(packages.newest_cached(&other).is_none());
    }

    #[test]
    fn folder_names_are_plain() {
        let package = Package {
            name: "busybox-static".into(),
            version: "1:1.35.0-4+deb12u1/../x".into(),
            ..package()
        };
        assert_eq!(
            folder_name(&package),
            "busybox-static_1_1.35.0-4+deb12u1_.._x"
        );
    }
}
