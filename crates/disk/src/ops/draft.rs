//! Files that take their name only when they are complete.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use uuid::Uuid;

use super::path::folder;
use crate::backing::FileBacking;
use crate::error::{DiskError, IoContext, Result};

/// A file under a temporary name beside its target; removed unless published.
pub(super) struct Draft {
    backing: Arc<FileBacking>,
    temporary: PathBuf,
    target: PathBuf,
}

impl Draft {
    /// Starts a file that will be `target`.
    pub(super) fn new(target: &Path) -> Result<Self> {
        let name = target.file_name().ok_or_else(|| {
            DiskError::invalid(format!("{} is not the name of a file", target.display()))
        })?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.partial", Uuid::new_v4().simple()));
        let temporary = folder(target).join(temporary);
        let backing = Arc::new(FileBacking::create_new(&temporary)?);
        Ok(Self {
            backing,
            temporary,
            target: target.to_owned(),
        })
    }

    /// The file.
    pub(super) fn backing(&self) -> Arc<FileBacking> {
        self.backing.clone()
    }

    /// Gives the file its name, durably. Fails when there is such a file and `replace` is false.
    pub(super) fn publish(self, replace: bool) -> Result<()> {
        crate::backing::flush(&*self.backing)?;
        let renamed = if replace {
            std::fs::rename(&self.temporary, &self.target)
        } else {
            rename_new(&self.temporary, &self.target)
        };
        renamed.on("create", &self.target)?;
        let folder = folder(&self.target);
        File::open(folder)
            .and_then(|f| f.sync_all())
            .on("flush", folder)
    }
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
        // After publishing there is nothing under this name any more.
        let _ = std::fs::remove_file(&self.temporary);
    }
}
