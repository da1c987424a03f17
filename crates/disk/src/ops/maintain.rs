//! Examining, growing and compacting disks.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::convert::copy_into;
use super::create::CreateOptions;
use super::draft::Draft;
use super::open::{Disk, OpenOptions, Parents, open_any};
use crate::backing::FileBacking;
use crate::error::{DiskError, IoContext, Result};
use crate::progress::ProgressFn;
use crate::types::{DiskInfo, DiskKind, Format, VirtualDisk};
use crate::vhdx::Vhdx;

/// Describes a disk without its parents and without writing. The format is by default what the
/// name tells.
///
/// # Errors
/// As for [`super::open`].
pub fn info(path: &Path, format: Option<Format>) -> Result<DiskInfo> {
    let options = OpenOptions {
        read_only: true,
        format,
        raw_sector_size: None,
    };
    let format = match format {
        Some(format) => format,
        None => Format::of_path(path)?,
    };
    if format == Format::Vhdx {
        let file = Arc::new(FileBacking::open(path, true)?);
        return Vhdx::inspect(file).map_err(|e| e.in_file(path));
    }
    Ok(open_any(path, &options, Parents::Ignore)?.as_dyn().info())
}

/// What [`check`] found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckReport {
    /// The disk, if enough of it could be read.
    pub info: Option<DiskInfo>,
    /// What is wrong: the disk cannot be used.
    pub errors: Vec<String>,
    /// What is unusual, but harmless.
    pub notes: Vec<String>,
    /// Blocks that are in the file.
    pub allocated_blocks: u64,
    /// Bytes of the file that nothing uses; compacting gives them back.
    pub unused_bytes: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty()
    }
}

/// Checks every structure of a disk, and that its parents are there and unchanged. Writes nothing.
///
/// # Errors
/// Only what keeps the file from being read at all: [`DiskError::Path`], [`DiskError::Locked`].
pub fn check(path: &Path, format: Option<Format>) -> Result<CheckReport> {
    let options = OpenOptions {
        read_only: true,
        format,
        raw_sector_size: None,
    };
    let mut report = CheckReport::default();
    match open_any(path, &options, Parents::Ignore) {
        Ok(disk) => examine(&disk, &mut report),
        Err(
            error @ (DiskError::Path { .. } | DiskError::Locked { .. } | DiskError::Invalid(_)),
        ) => {
            return Err(error);
        }
        Err(error) => report.errors.push(error.to_string()),
    }
    if report
        .info
        .as_ref()
        .is_some_and(|i| i.kind == DiskKind::Differencing)
        && let Err(error) = open_any(path, &options, Parents::Open)
    {
        report.errors.push(error.to_string());
    }
    Ok(report)
}

fn examine(disk: &Disk, report: &mut CheckReport) {
    report.info = Some(disk.as_dyn().info());
    match disk {
        Disk::Vhdx(disk) => {
            let notes = disk.notes();
            report.allocated_blocks = notes.allocated_blocks;
            report.unused_bytes = notes.unused_bytes;
            if notes.replayed > 0 {
                let count = notes.replayed;
                report
                    .notes
                    .push(format!("{count} log entries wait to be replayed"));
            }
            if notes.one_header {
                report
                    .notes
                    .push("only one of the two headers is valid".into());
            }
            if notes.one_region_table {
                report
                    .notes
                    .push("the two region tables differ, or one is not valid".into());
            }
        }
        Disk::Vhd(disk) => {
            report.allocated_blocks = disk.allocated_blocks();
            if disk.needs_repair() {
                report
                    .notes
                    .push("the footer and its copy differ, or one is not valid".into());
            }
        }
        Disk::Raw(_) => {}
    }
}

/// Grows a disk that nobody uses to `new_size` bytes.
///
/// # Errors
/// As for [`super::open`] and [`VirtualDisk::resize`].
pub fn resize(path: &Path, format: Option<Format>, new_size: u64) -> Result<DiskInfo> {
    let options = OpenOptions {
        read_only: false,
        format,
        raw_sector_size: None,
    };
    let disk = open_any(path, &options, Parents::Open)?.into_dyn();
    disk.resize(new_size)
        .and_then(|()| disk.close())
        .map_err(|e| e.in_file(path))?;
    Ok(disk.info())
}

/// Makes a dynamic or differencing disk's file as small as its contents allow; returns the bytes
/// by which it shrank.
///
/// # Errors
/// [`DiskError::Invalid`] for fixed disks and differencing VHDs, [`DiskError::Cancelled`], and as
/// for [`super::open`].
pub fn compact(path: &Path, format: Option<Format>, progress: &mut ProgressFn<'_>) -> Result<u64> {
    let options = OpenOptions {
        read_only: false,
        format,
        raw_sector_size: None,
    };
    match open_any(path, &options, Parents::Ignore)? {
        Disk::Vhdx(disk) => disk.compact(progress).map_err(|e| e.in_file(path)),
        Disk::Vhd(disk) if disk.info().kind == DiskKind::Dynamic => {
            rewrite_vhd(path, &*disk, progress).map_err(|e| e.in_file(path))
        }
        _ => Err(DiskError::invalid(
            "only dynamic disks, and differencing VHDX, can be compacted",
        )),
    }
}

/// VHD blocks cannot move safely in place, so the file is written anew and then replaced.
fn rewrite_vhd(path: &Path, disk: &dyn VirtualDisk, progress: &mut ProgressFn<'_>) -> Result<u64> {
    let info = disk.info();
    let options = CreateOptions {
        block_size: Some(info.block_size),
        ..CreateOptions::new(Format::Vhd, DiskKind::Dynamic, info.virtual_size)
    };
    // The file that a link points to is replaced, not the link.
    let path = &path.canonicalize().on("find", path)?;
    let draft = Draft::new(path)?;
    draft.take_mode_of(path)?;
    copy_into(disk, &draft, &options, progress)?;
    if let Some(identity) = info.identity {
        crate::vhd::Vhd::open(draft.backing(), &|_| Ok(None))?.set_identity(identity)?;
    }
    draft.publish(true)?;
    let after = self::info(path, Some(Format::Vhd))?.file_size;
    Ok(info.file_size.saturating_sub(after))
}
