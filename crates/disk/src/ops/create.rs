//! Creating disks.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use uuid::Uuid;

use super::draft::Draft;
use super::open::{Disk, OpenOptions, Parents, open_any};
use super::path::{LocatorPaths, locator_paths};
use crate::backing::Backing;
use crate::error::{DiskError, IoContext, Result};
use crate::progress::{ProgressFn, no_progress};
use crate::types::{DiskInfo, DiskKind, Format};
use crate::{vhd, vhdx};

/// What a new disk shall be.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// The file format.
    pub format: Format,
    /// How blocks are kept. Raw disks are fixed.
    pub kind: DiskKind,
    /// Size in bytes; `None` takes the parent's (differencing) or the source's (convert).
    pub size: Option<u64>,
    /// Unit of allocation in bytes. By default 32 MiB (VHDX dynamic and fixed) or 2 MiB
    /// (everything else).
    pub block_size: Option<u32>,
    /// Unit of addressing, 512 or 4096 bytes; the parent's or source's by default, else 512.
    pub logical_sector_size: Option<u32>,
    /// What the medium writes best, 512 or 4096 bytes; 4096 by default.
    pub physical_sector_size: Option<u32>,
    /// The parent of a differencing disk, of the same format.
    pub parent: Option<PathBuf>,
}

impl CreateOptions {
    /// A disk of `size` bytes with every other value at its default.
    pub fn new(format: Format, kind: DiskKind, size: u64) -> Self {
        let size = Some(size);
        Self {
            format,
            kind,
            size,
            block_size: None,
            logical_sector_size: None,
            physical_sector_size: None,
            parent: None,
        }
    }

    /// A differencing disk on top of `parent`.
    pub fn differencing(format: Format, parent: &Path) -> Self {
        let parent = Some(parent.to_owned());
        Self {
            size: None,
            parent,
            ..Self::new(format, DiskKind::Differencing, 0)
        }
    }
}

/// Creates an empty disk; a file of that name must not exist.
///
/// # Errors
/// [`DiskError::Path`] when the file exists or cannot be written, [`DiskError::Invalid`] for
/// options that make no sense together, and what opening the parent reports.
pub fn create(path: &Path, options: &CreateOptions) -> Result<DiskInfo> {
    create_with_progress(path, options, &mut no_progress())
}

/// [`create`], which for a fixed disk can take long where the host has to clear the space.
///
/// # Errors
/// As for [`create`], and [`DiskError::Cancelled`] when `progress` said so: no file is left then.
pub fn create_with_progress(
    path: &Path,
    options: &CreateOptions,
    progress: &mut ProgressFn<'_>,
) -> Result<DiskInfo> {
    if path.symlink_metadata().is_ok() {
        return Err(std::io::Error::from(Errno::EXIST)).on("create", path);
    }
    let parent = match &options.parent {
        Some(parent) => Some(Parent::examine(path, parent, options.format)?),
        None => None,
    };
    let draft = Draft::new(path)?;
    lay_out(&*draft.backing(), options, parent.as_ref(), progress).map_err(|e| e.in_file(path))?;
    draft.publish(false)?;
    super::info(path, Some(options.format))
}

/// A parent as a new child names it.
struct Parent {
    info: DiskInfo,
    paths: LocatorPaths,
}

impl Parent {
    fn examine(child: &Path, parent: &Path, format: Format) -> Result<Self> {
        let paths = locator_paths(child, parent)?;
        let options = OpenOptions {
            read_only: true,
            format: Some(format),
            raw_sector_size: None,
        };
        let disk = open_any(parent, &options, Parents::Open)?;
        if let Disk::Raw(_) = disk {
            return Err(DiskError::invalid("a raw disk cannot be a parent"));
        }
        Ok(Self {
            info: disk.as_dyn().info(),
            paths,
        })
    }
}

/// Writes an empty disk into an empty file.
fn lay_out(
    file: &dyn Backing,
    options: &CreateOptions,
    parent: Option<&Parent>,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    if (options.kind == DiskKind::Differencing) != parent.is_some() {
        return Err(DiskError::invalid(
            "a differencing disk, and no other, has a parent",
        ));
    }
    let size = match (options.size, parent) {
        (Some(size), Some(parent)) if size < parent.info.virtual_size => {
            return Err(DiskError::invalid(
                "a disk is at least as large as its parent",
            ));
        }
        (Some(size), _) => size,
        (None, Some(parent)) => parent.info.virtual_size,
        (None, None) => return Err(DiskError::invalid("the size is missing")),
    };
    match options.format {
        Format::Vhdx => lay_out_vhdx(file, options, parent, size, progress),
        Format::Vhd => lay_out_vhd(file, options, parent, size, progress),
        Format::Raw => {
            if options.kind == DiskKind::Differencing {
                return Err(DiskError::invalid("a raw disk has no parent"));
            }
            file.set_len(size).at("grow the file", size)
        }
    }
}

fn lay_out_vhdx(
    file: &dyn Backing,
    options: &CreateOptions,
    parent: Option<&Parent>,
    size: u64,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    let inherited = parent.map_or(512, |p| p.info.logical_sector_size);
    let logical_sector_size = options.logical_sector_size.unwrap_or(inherited);
    if parent.is_some() && logical_sector_size != inherited {
        return Err(DiskError::invalid(
            "a disk has the logical sector size of its parent",
        ));
    }
    let default_block = if parent.is_some() { 2 << 20 } else { 32 << 20 };
    let linkage = parent
        .and_then(|p| p.info.data_identity)
        .unwrap_or_default();
    let new = vhdx::NewVhdx {
        size,
        block_size: options.block_size.unwrap_or(default_block),
        logical_sector_size,
        physical_sector_size: options.physical_sector_size.unwrap_or(4096),
        fixed: options.kind == DiskKind::Fixed,
        parent: parent.map(|p| vhdx::NewParent {
            linkage,
            relative: Some(&p.paths.relative),
            absolute: Some(&p.paths.absolute),
        }),
        // A child is the same disk to its guest, so it keeps the identity.
        disk_id: parent
            .and_then(|p| p.info.identity)
            .unwrap_or_else(Uuid::new_v4),
    };
    vhdx::create(file, &new, progress)
}

fn lay_out_vhd(
    file: &dyn Backing,
    options: &CreateOptions,
    parent: Option<&Parent>,
    size: u64,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    if options.logical_sector_size.is_some_and(|s| s != 512) {
        return Err(DiskError::invalid("a VHD disk has 512-byte sectors"));
    }
    let new = vhd::NewVhd {
        size,
        block_size: options.block_size.unwrap_or(2 << 20),
        fixed: options.kind == DiskKind::Fixed,
        parent: parent.map(|p| vhd::NewParent {
            id: p.info.data_identity.unwrap_or_default(),
            name: &p.paths.name,
            relative: Some(&p.paths.relative),
            absolute: Some(&p.paths.absolute),
        }),
        id: Uuid::new_v4(),
    };
    vhd::create(file, &new, progress)
}

/// Writes an empty disk into an empty backing, for callers that bring their own. A differencing
/// disk names `options.parent` as it is, and links to the contents that `parent` describes.
///
/// # Errors
/// [`DiskError::Invalid`] for options that make no sense together, or what the backing reports.
pub fn create_on(
    file: &dyn Backing,
    options: &CreateOptions,
    parent: Option<&DiskInfo>,
) -> Result<()> {
    lay_out_on(file, options, parent, &mut no_progress())
}

/// [`create_on`], which can be stopped.
pub(super) fn lay_out_on(
    file: &dyn Backing,
    options: &CreateOptions,
    parent: Option<&DiskInfo>,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    let name = options
        .parent
        .as_ref()
        .map(|p| p.display().to_string())
        .unwrap_or_default();
    let parent = parent.map(|info| Parent {
        info: info.clone(),
        paths: LocatorPaths {
            relative: name.clone(),
            absolute: name.clone(),
            name,
        },
    });
    lay_out(file, options, parent.as_ref(), progress)
}
