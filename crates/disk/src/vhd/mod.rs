//! VHD: fixed, dynamic and differencing.
//!
//! The format has no log. Changes are ordered instead, and each step that counts is the write of
//! one sector: a block and its bitmap are durable before the table points to them, and a header
//! that moves is durable before a footer names it.

mod alloc;
mod create;
mod io;
mod layout;
mod load;

pub(crate) use create::{NewParent, NewVhd, create};

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use crate::backing::{self, Backing};
use crate::error::{DiskError, Result};
use crate::lease::Shards;
use crate::types::{DiskInfo, DiskKind, Format, ParentInfo, VirtualDisk};
use crate::vhdx::ParentResolver;
use io::Bitmap;
use layout::{DynamicHeader, FOOTER_LEN, Footer, SECTOR};

/// An open VHD disk.
pub struct Vhd {
    file: Arc<dyn Backing>,
    kind: DiskKind,
    block_size: u64,
    /// Bytes of a block's sector bitmap, which lies before its data.
    bitmap_len: u64,
    size: AtomicU64,
    /// Sector of each block in the file; `UNUSED` for none. Locked alone only while growing.
    table: RwLock<Vec<AtomicU32>>,
    bitmaps: RwLock<HashMap<u64, Arc<Bitmap>>>,
    shards: Shards,
    meta: Mutex<Meta>,
    parent: Option<(PathBuf, Arc<dyn VirtualDisk>)>,
    writing: AtomicBool,
}

struct Meta {
    footer: Footer,
    header: Option<DynamicHeader>,
    parent: Option<ParentInfo>,
    /// Where the footer lies, and the next block goes.
    end: u64,
    /// The footer at the end, or its copy, is missing or differs.
    repair: bool,
    /// Dirty sectors of the table, counted from its start.
    dirty_table: BTreeSet<u64>,
    /// Blocks with dirty bitmaps.
    dirty_bitmaps: BTreeSet<u64>,
    broken: bool,
}

impl Vhd {
    /// Opens a VHD file; every structure is checked before the first write.
    ///
    /// # Errors
    /// [`DiskError::Corrupt`] with structure and offset, [`DiskError::Parent`] when the parent is
    /// another disk, or what the host or `resolve` reports.
    pub fn open(file: Arc<dyn Backing>, resolve: &ParentResolver<'_>) -> Result<Self> {
        let loaded = load::load(&*file)?;
        let parent = match &loaded.parent {
            Some(info) => open_parent(info, resolve)?,
            None => None,
        };
        let block_size = loaded.header.map_or(0, |h| u64::from(h.block_size.get()));
        Ok(Self {
            kind: loaded.kind,
            block_size,
            bitmap_len: bitmap_len(block_size),
            size: AtomicU64::new(loaded.footer.current_size.get()),
            table: RwLock::new(loaded.table),
            bitmaps: RwLock::default(),
            shards: Shards::new(),
            meta: Mutex::new(Meta {
                footer: loaded.footer,
                header: loaded.header,
                parent: loaded.parent,
                end: loaded.end,
                repair: loaded.repair,
                dirty_table: BTreeSet::new(),
                dirty_bitmaps: BTreeSet::new(),
                broken: false,
            }),
            parent,
            writing: AtomicBool::new(false),
            file,
        })
    }

    /// Describes a VHD file without opening its parent.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn inspect(file: Arc<dyn Backing>) -> Result<DiskInfo> {
        Ok(Self::open(file, &|_| Ok(None))?.describe())
    }

    /// Whether the footer at the end or its copy needs repair, which the next write does.
    pub fn needs_repair(&self) -> bool {
        self.meta.lock().repair
    }

    /// Blocks that are in the file.
    pub fn allocated_blocks(&self) -> u64 {
        let table = self.table.read();
        table
            .iter()
            .filter(|e| e.load(Ordering::Acquire) != layout::UNUSED)
            .count() as u64
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn describe(&self) -> DiskInfo {
        let meta = self.meta.lock();
        let id = Uuid::from_bytes(meta.footer.unique_id);
        DiskInfo {
            format: Format::Vhd,
            kind: self.kind,
            virtual_size: self.size(),
            file_size: self.file.len().unwrap_or(meta.end + FOOTER_LEN),
            logical_sector_size: SECTOR as u32,
            physical_sector_size: SECTOR as u32,
            block_size: self.block_size as u32,
            identity: Some(id),
            data_identity: Some(id),
            parent: meta.parent.clone().map(|info| ParentInfo {
                resolved: self.parent.as_ref().map(|p| p.0.clone()),
                ..info
            }),
            read_only: self.file.read_only(),
        }
    }

    /// Makes everything written so far durable, with the table and bitmaps that lead to it.
    fn commit(&self, meta: &mut Meta) -> Result<()> {
        if meta.broken {
            let source = std::io::Error::other("an earlier flush failed");
            return Err(DiskError::Io {
                action: "flush the file",
                offset: 0,
                source,
            });
        }
        let result = self.try_commit(meta);
        meta.broken = result.is_err();
        result
    }

    fn try_commit(&self, meta: &mut Meta) -> Result<()> {
        let sectors = self.snapshot(meta);
        backing::flush(&*self.file)?;
        if sectors.is_empty() {
            return Ok(());
        }
        for (at, bytes) in sectors {
            backing::write_all(&*self.file, at, &bytes)?;
        }
        backing::flush(&*self.file)?;
        meta.dirty_table.clear();
        meta.dirty_bitmaps.clear();
        Ok(())
    }

    fn snapshot(&self, meta: &Meta) -> Vec<(u64, Vec<u8>)> {
        let mut sectors = Vec::new();
        let table = self.table.read();
        let bitmaps = self.bitmaps.read();
        for block in &meta.dirty_bitmaps {
            let at = table
                .get(*block as usize)
                .map_or(UNPLACED, |e| e.load(Ordering::Acquire));
            if let (Some(bitmap), true) = (bitmaps.get(block), at != UNPLACED) {
                sectors.push((u64::from(at) * SECTOR, bitmap.bytes()));
            }
        }
        let table_at = meta.header.map_or(0, |h| h.table_offset.get());
        for sector in &meta.dirty_table {
            let first = (sector * SECTOR / 4) as usize;
            let entries = &table[first..table.len().min(first + SECTOR as usize / 4)];
            let bytes = entries
                .iter()
                .flat_map(|e| e.load(Ordering::Acquire).to_be_bytes());
            sectors.push((table_at + sector * SECTOR, bytes.collect()));
        }
        sectors
    }
}

const UNPLACED: u32 = layout::UNUSED;

/// Bytes of the sector bitmap of a block, in whole sectors.
fn bitmap_len(block_size: u64) -> u64 {
    (block_size / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
}

fn open_parent(
    info: &ParentInfo,
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
            "{} is not the disk that this one was made from",
            path.display()
        );
        return Err(DiskError::Parent(reason));
    }
    if u64::from(parent.logical_sector_size()) != SECTOR {
        let reason = format!("{} has another logical sector size", path.display());
        return Err(DiskError::Parent(reason));
    }
    Ok(Some((path, parent)))
}

impl Drop for Vhd {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "a disk could not be closed cleanly");
        }
    }
}
