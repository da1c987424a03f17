//! Opening a disk with all its parents.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::path::candidates;
use crate::backing::FileBacking;
use crate::error::{DiskError, Result};
use crate::raw::RawDisk;
use crate::types::{Format, ParentInfo, VirtualDisk};
use crate::vhd::Vhd;
use crate::vhdx::Vhdx;

/// Longest chain of parents: far above what anyone uses, and an end for chains that are circular.
const MAX_CHAIN: usize = 128;

/// How a disk is to be opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Open for reading only: other readers may have the file too, and nothing is written.
    pub read_only: bool,
    /// The format; by default what the file's name tells ([`Format::of_path`]).
    pub format: Option<Format>,
    /// Sector size of raw disks; 512 by default, 2048 for optical media.
    pub raw_sector_size: Option<u32>,
}

/// Opens a disk and its parents, which are opened for reading.
///
/// # Errors
/// [`DiskError::Locked`] when another process uses one of the files, [`DiskError::Corrupt`] and
/// [`DiskError::Unsupported`] with structure and offset, [`DiskError::Parent`] when a parent is
/// missing or was changed; always with the file concerned.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<dyn VirtualDisk>> {
    Ok(open_any(path, options, Parents::Open)?.into_dyn())
}

/// A disk of a known format.
pub(super) enum Disk {
    Vhdx(Arc<Vhdx>),
    Vhd(Arc<Vhd>),
    Raw(Arc<RawDisk>),
}

impl Disk {
    pub(super) fn into_dyn(self) -> Arc<dyn VirtualDisk> {
        match self {
            Self::Vhdx(disk) => disk,
            Self::Vhd(disk) => disk,
            Self::Raw(disk) => disk,
        }
    }

    pub(super) fn as_dyn(&self) -> &dyn VirtualDisk {
        match self {
            Self::Vhdx(disk) => &**disk,
            Self::Vhd(disk) => &**disk,
            Self::Raw(disk) => &**disk,
        }
    }
}

/// Whether the parents are opened too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parents {
    Open,
    Ignore,
}

pub(super) fn open_any(path: &Path, options: &OpenOptions, parents: Parents) -> Result<Disk> {
    open_at_depth(path, options, parents, 0).map_err(|e| e.in_file(path))
}

fn open_at_depth(
    path: &Path,
    options: &OpenOptions,
    parents: Parents,
    depth: usize,
) -> Result<Disk> {
    let format = match options.format {
        Some(format) => format,
        None => Format::of_path(path)?,
    };
    let file = Arc::new(FileBacking::open(path, options.read_only)?);
    let resolve = |info: &ParentInfo| match parents {
        Parents::Ignore => Ok(None),
        Parents::Open => find_parent(path, info, format, depth).map(Some),
    };
    Ok(match format {
        Format::Vhdx => Disk::Vhdx(Arc::new(Vhdx::open(file, &resolve)?)),
        Format::Vhd => Disk::Vhd(Arc::new(Vhd::open(file, &resolve)?)),
        Format::Raw => {
            let growable = !file.is_block_device();
            let sector_size = options.raw_sector_size.unwrap_or(512);
            Disk::Raw(Arc::new(RawDisk::new(file, sector_size, growable)?))
        }
    })
}

fn find_parent(
    child: &Path,
    info: &ParentInfo,
    format: Format,
    depth: usize,
) -> Result<(PathBuf, Arc<dyn VirtualDisk>)> {
    if depth >= MAX_CHAIN {
        return Err(DiskError::Parent(format!(
            "the chain has more than {MAX_CHAIN} disks"
        )));
    }
    let candidates = candidates(child, info);
    let mut changed = None;
    for path in candidates.iter().filter(|p| p.exists()) {
        let options = OpenOptions {
            read_only: true,
            format: Some(format),
            raw_sector_size: None,
        };
        let opened = open_at_depth(path, &options, Parents::Open, depth + 1);
        let parent = opened.map_err(|e| e.in_file(path))?.into_dyn();
        if parent
            .info()
            .data_identity
            .is_some_and(|id| info.accepts(id))
        {
            return Ok((path.clone(), parent));
        }
        changed.get_or_insert(path);
    }
    Err(DiskError::Parent(match changed {
        Some(path) => {
            format!(
                "{} was changed since the child was made from it",
                path.display()
            )
        }
        None => {
            let tried: Vec<_> = candidates.iter().map(|p| p.display().to_string()).collect();
            format!("it was not found; looked for {}", tried.join(", "))
        }
    }))
}

/// Where the parent of `child` is, without keeping it open.
pub(super) fn parent_path(child: &Path, info: &ParentInfo, format: Format) -> Result<PathBuf> {
    Ok(find_parent(child, info, format, 0)?.0)
}
