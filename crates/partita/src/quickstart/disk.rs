//! The guest's disks: the one that a person's work stays on, and one for a check.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use disk::ops::{self, CreateOptions, OpenOptions};
use disk::{DiskError, DiskKind, Format};
use tempfile::TempDir;

use super::progress::Progress;
use crate::size;

/// The file in the cache folder.
const NAME: &str = "quickstart.vhdx";
/// Size of the disk that is kept, in bytes. Its file takes what the guest has written.
const SIZE: u64 = 2 << 30;
/// Size of the disk for a check, in bytes.
const CHECK_SIZE: u64 = 256 << 20;
/// Unit in which the files grow, in bytes: the least, as a file system begins with a little of
/// everything all over the disk.
const BLOCK_SIZE: u32 = 1 << 20;

fn create(path: &Path, size: u64) -> Result<()> {
    let mut options = CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, size);
    options.block_size = Some(BLOCK_SIZE);
    ops::create(path, &options).with_context(|| format!("{} cannot be made", path.display()))?;
    Ok(())
}

/// The disk in the cache folder, made if it is not there, or made anew if `fresh`.
///
/// # Errors
/// One line: it is in use, damaged, or cannot be written.
pub(super) fn kept(cache: &Path, fresh: bool, progress: &Progress) -> Result<PathBuf> {
    let path = cache.join(NAME);
    let name = path.display();
    if path.symlink_metadata().is_ok() {
        match ops::open(&path, &OpenOptions::default()) {
            Err(DiskError::Locked { .. }) => bail!(
                "{name} is in use, perhaps by another quickstart; end that one, or name another \
                 folder with --cache"
            ),
            Err(error) if !fresh => {
                bail!("{name} cannot be used: {error}; --fresh makes a new one")
            }
            _ => {}
        }
        if !fresh {
            progress.note(&format!(
                "Disk: {name}, as it was left; --fresh makes a new one"
            ));
            return Ok(path);
        }
        std::fs::remove_file(&path).with_context(|| format!("{name} cannot be removed"))?;
    }
    create(&path, SIZE)?;
    progress.note(&format!("Disk: {name}, new, {}", size::display(SIZE)));
    Ok(path)
}

/// A new disk for a check, and room for other files of the check. All is gone when dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    folder: TempDir,
}

impl Temporary {
    /// # Errors
    /// One line that names the folder.
    pub(super) fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("partita-").tempdir();
        let folder = folder.with_context(|| {
            let folder = std::env::temp_dir();
            format!("no folder can be made in {}", folder.display())
        })?;
        let disk = Self { folder };
        create(&disk.path(), CHECK_SIZE)?;
        Ok(disk)
    }

    /// The disk.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("check.vhdx")
    }

    /// Where a control socket can be made.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    /// What is wrong with the disk, if anything is, and how many bytes its blocks take.
    pub(super) fn examine(&self) -> Result<u64, String> {
        let report = ops::check(&self.path(), None).map_err(|error| error.to_string())?;
        match report.errors.first() {
            Some(error) => Err(error.clone()),
            None => Ok(report.allocated_blocks * u64::from(BLOCK_SIZE)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;

    #[test]
    fn the_disk_is_kept_until_a_fresh_one_is_asked_for() {
        let cache = tempfile::tempdir().unwrap();
        let progress = Progress::new();
        let identity = |path: &Path| ops::info(path, None).unwrap().identity;
        let path = kept(cache.path(), false, &progress).unwrap();
        let first = identity(&path);
        assert_eq!(kept(cache.path(), false, &progress).unwrap(), path);
        assert_eq!(identity(&path), first);
        kept(cache.path(), true, &progress).unwrap();
        assert_ne!(identity(&path), first);
    }

    #[test]
    fn a_disk_in_use_is_left_alone() {
        let cache = tempfile::tempdir().unwrap();
        let progress = Progress::new();
        let path = kept(cache.path(), false, &progress).unwrap();
        let used = ops::open(&path, &OpenOptions::default()).unwrap();
        for fresh in [false, true] {
            let error = kept(cache.path(), fresh, &progress)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("in use") && error.contains("--cache"),
                "{error}"
            );
        }
        drop(used);
        assert!(kept(cache.path(), false, &progress).is_ok());
    }

    #[test]
    fn a_damaged_disk_can_be_replaced() {
        let cache = tempfile::tempdir().unwrap();
        let progress = Progress::new();
        std::fs::write(cache.path().join(NAME), "no disk").unwrap();
        let error = kept(cache.path(), false, &progress)
            .unwrap_err()
            .to_string();
        assert!(error.contains("--fresh"), "{error}");
        kept(cache.path(), true, &progress).unwrap();
        kept(cache.path(), false, &progress).unwrap();
    }

    #[test]
    fn what_is_written_to_a_check_disk_is_seen() {
        let temporary = Temporary::new().unwrap();
        assert_eq!(temporary.examine(), Ok(0));
        let disk = ops::open(&temporary.path(), &OpenOptions::default()).unwrap();
        disk.write(0, &[IoSlice::new(&[1; 4096])], true).unwrap();
        disk.close().unwrap();
        drop(disk);
        assert_eq!(temporary.examine(), Ok(BLOCK_SIZE.into()));
        std::fs::write(temporary.path(), vec![0; 4 << 20]).unwrap();
        assert!(temporary.examine().is_err());
    }
}
