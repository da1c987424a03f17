//! VHDX: Virtual Hard Disk v2 (MS-VHDX).
//!
//! # How nothing acknowledged is lost
//!
//! Changes to the block allocation table and sector bitmaps happen in memory first. A flush makes
//! them durable in this order: the pages that changed are copied; everything written so far
//! (the blocks they point to) is flushed; one log entry with the copies is written and flushed;
//! then the pages are written in place. A cut before the entry is durable leaves the old tables,
//! a cut after it has them replayed at the next open, and never a mixture. Because every commit
//! starts with a flush, all earlier entries are already in place by then, so each entry is its
//! own tail and the log never fills.
//!
//! Space that a trim gave back is used again only after the commit that gave it back.

mod alloc;
mod bat;
mod bitmap;
mod commit;
mod compact;
mod create;
mod header;
mod io;
mod layout;
mod load;
mod locator;
mod log;
mod merge;
mod metadata;
mod overlay;
mod resize;
mod space;

pub(crate) use create::{NewVhdx, create};
pub(crate) use merge::NewParent;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::backing::{self, Backing};
use crate::error::{DiskError, Result};
use crate::lease::Shards;
use crate::types::{DiskInfo, DiskKind, Format, ParentInfo, VirtualDisk};
use bat::Bat;
use bitmap::Bitmaps;
use commit::Meta;
use layout::Geometry;
use overlay::Overlay;

/// Finds the parent of a differencing disk. `Ok(None)` opens the child alone: reading what only
/// the parent has then fails.
pub type ParentResolver<'a> =
    dyn Fn(&ParentInfo) -> Result<Option<(PathBuf, Arc<dyn VirtualDisk>)>> + 'a;

/// What was unusual when a VHDX file was opened; not errors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenNotes {
    /// Log entries that had to be replayed.
    pub replayed: usize,
    /// Only one of the two headers was valid.
    pub one_header: bool,
    /// Only one of the two region tables was valid, or they differed.
    pub one_region_table: bool,
    /// Bytes of the file that nothing uses.
    pub unused_bytes: u64,
    /// Payload blocks in the file.
    pub allocated_blocks: u64,
}

/// An open VHDX disk.
pub struct Vhdx {
    file: Arc<dyn Backing>,
    geometry: Geometry,
    leave_allocated: bool,
    physical_sector_size: u32,
    disk_id: Uuid,
    size: AtomicU64,
    bat: Bat,
    bitmaps: Option<Bitmaps>,
    shards: Shards,
    meta: Mutex<Meta>,
    parent: Option<(PathBuf, Arc<dyn VirtualDisk>)>,
    /// The header was already renewed for the changes of this session.
    writing: AtomicBool,
    /// A merge keeps the data identity until it is complete.
    keep_identity: AtomicBool,
    notes: OpenNotes,
}

impl Vhdx {
    /// Opens a VHDX file. Every structure is checked, with a dirty log replayed in memory, before
    /// the first byte is written; a backing that refuses writes gives a read-only disk.
    ///
    /// # Errors
    /// [`DiskError::Corrupt`] or [`DiskError::Unsupported`] with structure and offset,
    /// [`DiskError::Parent`] when the parent has other contents than this disk was made from, or
    /// what the host or `resolve` reports.
    pub fn open(file: Arc<dyn Backing>, resolve: &ParentResolver<'_>) -> Result<Self> {
        let header = header::read_header(&*file)?;
        let replay = log::read(&*file, &header)?;
        let dirty = !replay.changes.is_empty();
        let (entries, min_len) = (replay.entries, replay.min_len);
        let overlay = Arc::new(Overlay::new(file.clone(), replay.changes, min_len)?);
        let loaded = load::load(&*overlay, &header)?;
        let parent = match &loaded.metadata.locator {
            Some(locator) => open_parent(&locator.info(), &loaded.metadata, resolve)?,
            None => None,
        };
        let notes = OpenNotes {
            replayed: entries,
            one_header: !header.both_valid,
            one_region_table: !loaded.regions.both_valid,
            unused_bytes: loaded.space.free_bytes(),
            allocated_blocks: loaded.allocated_blocks,
        };
        let file: Arc<dyn Backing> = if file.read_only() {
            if dirty { overlay } else { file }
        } else {
            if let Some(overlay) = Arc::into_inner(overlay) {
                overlay.into_changes().apply(&*file, min_len)?;
            }
            file
        };
        let mut meta = Meta::new(header, &loaded, backing::len(&*file)?);
        if !file.read_only() {
            meta.retire_log(&*file)?;
        }
        let m = &loaded.metadata;
        Ok(Self {
            geometry: m.geometry,
            leave_allocated: m.leave_allocated,
            physical_sector_size: m.physical_sector_size,
            disk_id: m.disk_id,
            size: AtomicU64::new(m.virtual_size),
            bat: loaded.bat,
            bitmaps: m.geometry.has_parent.then(|| Bitmaps::new(m.geometry)),
            shards: Shards::new(),
            meta: Mutex::new(meta),
            parent,
            writing: AtomicBool::new(false),
            keep_identity: AtomicBool::new(false),
            notes,
            file,
        })
    }

    /// Describes a VHDX file without opening its parent.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn inspect(file: Arc<dyn Backing>) -> Result<DiskInfo> {
        let header = header::read_header(&*file)?;
        let replay = log::read(&*file, &header)?;
        let len = backing::len(&*file)?;
        let overlay = Overlay::new(file.clone(), replay.changes, replay.min_len)?;
        let regions = header::read_regions(&overlay)?;
        let m = metadata::read(&overlay, &regions.metadata)?;
        Ok(describe(
            &m,
            header.data_write,
            m.virtual_size,
            len,
            file.read_only(),
        ))
    }

    /// What was unusual at open.
    pub fn notes(&self) -> &OpenNotes {
        &self.notes
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.file.read_only()
    }

    fn describe(&self) -> DiskInfo {
        let meta = self.meta.lock();
        let parent = meta.locator.as_ref().map(|locator| ParentInfo {
            resolved: self.parent.as_ref().map(|p| p.0.clone()),
            ..locator.info()
        });
        DiskInfo {
            format: Format::Vhdx,
            kind: kind(self.geometry.has_parent, self.leave_allocated),
            virtual_size: self.size(),
            file_size: self.file.len().unwrap_or(meta.file_len),
            logical_sector_size: self.geometry.sector_size,
            physical_sector_size: self.physical_sector_size,
            block_size: self.geometry.block_size as u32,
            identity: Some(self.disk_id),
            data_identity: Some(meta.header.data_write),
            parent,
            read_only: self.read_only(),
        }
    }
}

fn kind(has_parent: bool, leave_allocated: bool) -> DiskKind {
    match (has_parent, leave_allocated) {
        (true, _) => DiskKind::Differencing,
        (_, true) => DiskKind::Fixed,
        _ => DiskKind::Dynamic,
    }
}

fn describe(
    m: &metadata::Metadata,
    data_write: Uuid,
    virtual_size: u64,
    file_size: u64,
    read_only: bool,
) -> DiskInfo {
    DiskInfo {
        format: Format::Vhdx,
        kind: kind(m.geometry.has_parent, m.leave_allocated),
        virtual_size,
        file_size,
        logical_sector_size: m.geometry.sector_size,
        physical_sector_size: m.physical_sector_size,
        block_size: m.geometry.block_size as u32,
        identity: Some(m.disk_id),
        data_identity: Some(data_write),
        parent: m.locator.as_ref().map(locator::Locator::info),
        read_only,
    }
}

fn open_parent(
    info: &ParentInfo,
    metadata: &metadata::Metadata,
    resolve: &ParentResolver<'_>,
) -> Result<Option<(PathBuf, Arc<dyn VirtualDisk>)>> {
    let Some((path, parent)) = resolve(info)? else {
        return Ok(None);
    };
    if !parent
        .info()
        .data_identity
        .is_some_and(|id| info.accepts(id))
    {
        let reason = format!(
            "{} was changed since this disk was made from it",
            path.display()
        );
        return Err(DiskError::Parent(reason));
    }
    if parent.logical_sector_size() != metadata.geometry.sector_size {
        let reason = format!("{} has another logical sector size", path.display());
        return Err(DiskError::Parent(reason));
    }
    Ok(Some((path, parent)))
}

impl Drop for Vhdx {
    fn drop(&mut self) {
        if let Err(error) = self.shut() {
            tracing::warn!(%error, "a disk could not be closed cleanly; its log will be replayed");
        }
    }
}
