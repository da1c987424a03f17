//! Files that take their name only when they are complete.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, openat, renameat_with};
use rustix::io::Errno;
use uuid::Uuid;

use super::path::folder;
use crate::backing::FileBacking;
use crate::error::{DiskError, IoContext, Result};

/// A file in the target's folder that has no name, or a temporary one where the file system
/// offers nothing better. It is gone unless published: without a name even after `SIGKILL`.
pub(super) struct Draft {
    backing: Arc<FileBacking>,
    file: File,
    /// The name that has to be removed.
    temporary: Option<PathBuf>,
    target: PathBuf,
}

impl Draft {
    /// Starts a file that will be `target`.
    pub(super) fn new(target: &Path) -> Result<Self> {
        check_name(target)?;
        match open_nameless(folder(target)) {
            Some(file) => Self::over(file, None, target),
            None => Self::named(target),
        }
    }

    /// Starts a file with a temporary name, as network and older file systems need it.
    fn named(target: &Path) -> Result<Self> {
        let temporary = temporary_name(target);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary);
        Self::over(file.on("create", target)?, Some(temporary), target)
    }

    fn over(file: File, temporary: Option<PathBuf>, target: &Path) -> Result<Self> {
        let second = file.try_clone().on("create", target)?;
        let draft = |backing| Self {
            backing: Arc::new(backing),
            file: second,
            temporary: temporary.clone(),
            target: target.to_owned(),
        };
        let made = FileBacking::adopt(file, target).map(draft);
        if let (Err(_), Some(name)) = (&made, &temporary) {
            let _ = std::fs::remove_file(name);
        }
        made
    }

    /// The file.
    pub(super) fn backing(&self) -> Arc<FileBacking> {
        self.backing.clone()
    }

    /// Takes over who may read and write another file, for replacing it.
    pub(super) fn take_mode_of(&self, path: &Path) -> Result<()> {
        let mode = path.metadata().on("examine", path)?.permissions();
        self.file.set_permissions(mode).on("create", path)
    }

    /// Makes the contents durable.
    pub(super) fn flush(&self) -> Result<()> {
        crate::backing::flush(&*self.backing).map_err(|e| e.in_file(&self.target))
    }

    /// Gives the file its name, durably. Fails when there is such a file and `replace` is false.
    pub(super) fn publish(mut self, replace: bool) -> Result<()> {
        self.flush()?;
        if replace && self.temporary.is_none() {
            // A link never replaces a file, but a rename does.
            let name = temporary_name(&self.target);
            self.link(&name).on("create", &self.target)?;
            self.temporary = Some(name);
        }
        let published = match &self.temporary {
            None => self.link(&self.target),
            Some(name) if replace => std::fs::rename(name, &self.target),
            Some(name) => rename_new(name, &self.target),
        };
        published.on("create", &self.target)?;
        self.temporary = None;
        let folder = folder(&self.target);
        File::open(folder)
            .and_then(|f| f.sync_all())
            .on("flush", folder)
    }

    /// Gives a nameless file a name that must be free.
    fn link(&self, name: &Path) -> std::io::Result<()> {
        let path = descriptor_path(&self.file);
        Ok(linkat(CWD, path, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
    }
}

fn check_name(target: &Path) -> Result<()> {
    if target.file_name().is_none() {
        let reason = format!("{} is not the name of a file", target.display());
        return Err(DiskError::invalid(reason));
    }
    Ok(())
}

fn temporary_name(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.partial", Uuid::new_v4().simple()));
    folder(target).join(name)
}

fn descriptor_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// A file without a name, if the folder's file system has such files and they can be named later.
fn open_nameless(folder: &Path) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = File::from(openat(CWD, folder, flags, Mode::from_raw_mode(0o666)).ok()?);
    // Naming goes through /proc, which a closed-off environment may lack.
    std::fs::symlink_metadata(descriptor_path(&file)).ok()?;
    Some(file)
}

fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS) => {
            // Not every file system can rename without replacing; a link never replaces.
            std::fs::hard_link(from, to)?;
            std::fs::remove_file(from)
        }
        other => Ok(other?),
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary {
            let _ = std::fs::remove_file(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use super::*;
    use crate::backing::Backing;

    fn entries(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).expect("folder").flatten();
        let mut names: Vec<String> = entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Both kinds of draft, each asked for a file `disk` in a folder of its own.
    fn each_kind(test: impl Fn(&Path, &dyn Fn() -> Draft)) {
        for start in [Draft::new, Draft::named] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let target = dir.path().join("disk");
            test(dir.path(), &|| {
                let draft = start(&target).expect("a draft");
                let data = [IoSlice::new(b"new")];
                draft.backing().write_at(0, &data).expect("write");
                draft
            });
        }
    }

    #[test]
    fn a_draft_that_is_dropped_leaves_nothing() {
        each_kind(|dir, start| {
            drop(start());
            assert_eq!(entries(dir), [""; 0]);
        });
    }

    #[test]
    fn publishing_names_the_file_and_never_replaces_another() {
        each_kind(|dir, start| {
            start().publish(false).expect("published");
            assert_eq!(entries(dir), ["disk"]);
            std::fs::write(dir.join("disk"), "old").expect("write");
            let refused = start().publish(false).expect_err("refused");
            assert!(refused.to_string().contains("exists"), "{refused}");
            assert_eq!(std::fs::read(dir.join("disk")).expect("read"), b"old");
            assert_eq!(entries(dir), ["disk"]);
        });
    }

    #[test]
    fn publishing_replaces_when_told() {
        each_kind(|dir, start| {
            std::fs::write(dir.join("disk"), "old").expect("write");
            start().publish(true).expect("published");
            assert_eq!(std::fs::read(dir.join("disk")).expect("read"), b"new");
            assert_eq!(entries(dir), ["disk"]);
        });
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let error = Draft::new(Path::new("/nonexistent/disk.vhdx"))
            .err()
            .expect("refused");
        assert!(
            error.to_string().contains("/nonexistent/disk.vhdx"),
            "{error}"
        );
    }
}
