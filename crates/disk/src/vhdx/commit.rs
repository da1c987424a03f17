//! Making metadata durable: the log is written first, then the tables (MS-VHDX 2.3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use uuid::Uuid;
use zerocopy::IntoBytes;

use super::Vhdx;
use super::bitmap::PageId;
use super::header::{HeaderState, Region};
use super::layout::{LOG_SECTOR, LogDataSector, LogDescriptor, LogHeader, MIB};
use super::load::Loaded;
use super::locator::Locator;
use super::log::descriptor_area;
use super::metadata::Item;
use super::space::Space;
use crate::backing::{self, Backing};
use crate::error::{DiskError, Result};

/// Dirty pages after which a change is committed before the next one starts. Any one change adds
/// at most 38, and half of the smallest log holds an entry of 126.
const MAX_DIRTY: usize = 64;

pub(super) type Page = Box<[u8; LOG_SECTOR as usize]>;

/// What only one thread at a time may change: allocation, the log, the headers.
pub(super) struct Meta {
    pub(super) header: HeaderState,
    pub(super) regions: Vec<Region>,
    pub(super) bat_region: Region,
    pub(super) metadata_region: Region,
    pub(super) items: Vec<Item>,
    pub(super) size_at: u64,
    pub(super) locator: Option<Locator>,
    pub(super) space: Space,
    pub(super) file_len: u64,
    pub(super) dirty_bat: BTreeSet<u64>,
    pub(super) dirty_bitmaps: BTreeSet<PageId>,
    /// Other sectors to be changed, by file offset.
    pub(super) dirty_sectors: BTreeMap<u64, Page>,
    /// Space that is free once the next commit is durable.
    pub(super) freed: Vec<(u64, u64)>,
    log_position: u64,
    log_sequence: u64,
    /// A flush failed: what is on disk is no longer known.
    broken: bool,
}

impl Meta {
    pub(super) fn new(header: HeaderState, loaded: &Loaded, file_len: u64) -> Self {
        let used = &loaded.space;
        Self {
            header,
            regions: loaded.regions.all.clone(),
            bat_region: loaded.regions.bat,
            metadata_region: loaded.regions.metadata,
            items: loaded.metadata.items.clone(),
            size_at: loaded.metadata.size_at,
            locator: loaded.metadata.locator.clone(),
            space: used.clone(),
            file_len,
            dirty_bat: BTreeSet::new(),
            dirty_bitmaps: BTreeSet::new(),
            dirty_sectors: BTreeMap::new(),
            freed: Vec::new(),
            log_position: 0,
            log_sequence: 0,
            broken: false,
        }
    }

    /// Declares the log empty, once everything it holds is in place.
    pub(super) fn retire_log(&mut self, file: &dyn Backing) -> Result<()> {
        if self.header.log.is_nil() {
            return Ok(());
        }
        backing::flush(file)?;
        self.header.log = Uuid::nil();
        self.header.write(file)?;
        // Twice, so that the other copy does not bring the old log back should this one be lost.
        self.header.write(file)
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty_bat.is_empty()
            || !self.dirty_bitmaps.is_empty()
            || !self.dirty_sectors.is_empty()
    }

    fn dirty_pages(&self) -> usize {
        self.dirty_bat.len() + self.dirty_bitmaps.len() + self.dirty_sectors.len()
    }

    /// Writes one log entry and makes it durable. Afterwards the pages may be written in place.
    fn log(&mut self, file: &dyn Backing, pages: &[(u64, Page)]) -> Result<()> {
        let fresh = self.header.log.is_nil();
        let log_guid = if fresh {
            Uuid::new_v4()
        } else {
            self.header.log
        };
        if fresh {
            (self.log_position, self.log_sequence) = (0, 0);
        }
        let length = u64::from(self.header.log_length);
        let entry = self.encode_entry(log_guid, pages);
        if entry.len() as u64 > length / 2 {
            let reason = format!("{} changes do not fit into the log", pages.len());
            return Err(DiskError::unsupported(
                "VHDX log",
                self.header.log_offset,
                reason,
            ));
        }
        let first = entry.len().min((length - self.log_position) as usize);
        backing::write_all(
            file,
            self.header.log_offset + self.log_position,
            &entry[..first],
        )?;
        if first < entry.len() {
            backing::write_all(file, self.header.log_offset, &entry[first..])?;
        }
        backing::flush(file)?;
        self.log_position = (self.log_position + entry.len() as u64) % length;
        self.log_sequence += 1;
        if fresh {
            self.header.log = log_guid;
            self.header.write(file)?;
        }
        Ok(())
    }

    fn encode_entry(&self, log_guid: Uuid, pages: &[(u64, Page)]) -> Vec<u8> {
        let sequence = self.log_sequence + 1;
        let area = descriptor_area(pages.len() as u32);
        let length = area + pages.len() as u64 * LOG_SECTOR;
        let mut header = LogHeader {
            signature: *b"loge",
            checksum: 0.into(),
            entry_length: (length as u32).into(),
            // Every commit begins with a flush, so nothing older than this entry is needed.
            tail: (self.log_position as u32).into(),
            sequence: sequence.into(),
            descriptor_count: (pages.len() as u32).into(),
            reserved: 0.into(),
            log_guid: log_guid.to_bytes_le(),
            flushed_file_offset: (self.file_len / MIB * MIB).into(),
            last_file_offset: self.space.end().into(),
        };
        let mut entry = header.as_bytes().to_vec();
        for (offset, page) in pages {
            let mut descriptor = LogDescriptor {
                signature: *b"desc",
                trailing: [0; 4],
                leading: [0; 8],
                file_offset: (*offset).into(),
                sequence: sequence.into(),
            };
            descriptor.leading.copy_from_slice(&page[..8]);
            descriptor
                .trailing
                .copy_from_slice(&page[LOG_SECTOR as usize - 4..]);
            entry.extend_from_slice(descriptor.as_bytes());
        }
        entry.resize(area as usize, 0);
        for (_, page) in pages {
            let mut sector = LogDataSector {
                signature: *b"data",
                sequence_high: ((sequence >> 32) as u32).into(),
                data: [0; 4084],
                sequence_low: (sequence as u32).into(),
            };
            sector
                .data
                .copy_from_slice(&page[8..LOG_SECTOR as usize - 4]);
            entry.extend_from_slice(sector.as_bytes());
        }
        header.checksum = crc32c::crc32c(&entry).into();
        entry[..size_of::<LogHeader>()].copy_from_slice(header.as_bytes());
        entry
    }
}

impl Vhdx {
    /// Makes everything written so far durable, with the tables that lead to it.
    pub(super) fn commit(&self, meta: &mut Meta) -> Result<()> {
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
        // Bits of a bitmap are set only after their data was written, so a copy made before the
        // flush never tells of data that the flush does not cover.
        let pages = self.snapshot(meta);
        backing::flush(&*self.file)?;
        if pages.is_empty() {
            return Ok(());
        }
        meta.log(&*self.file, &pages)?;
        for (offset, page) in &pages {
            backing::write_all(&*self.file, *offset, &page[..])?;
        }
        meta.dirty_bat.clear();
        meta.dirty_bitmaps.clear();
        meta.dirty_sectors.clear();
        for (offset, len) in std::mem::take(&mut meta.freed) {
            if let Err(error) = self.file.punch_hole(offset, len) {
                tracing::debug!(%error, "freed space stays allocated on the host");
            }
            meta.space.give(offset, len);
        }
        Ok(())
    }

    fn snapshot(&self, meta: &Meta) -> Vec<(u64, Page)> {
        let mut pages = Vec::with_capacity(meta.dirty_pages());
        for &page in &meta.dirty_bat {
            pages.push((
                meta.bat_region.offset + page * LOG_SECTOR,
                self.bat.page_bytes(page),
            ));
        }
        for &id in &meta.dirty_bitmaps {
            let block = self.bat.bitmap(id.chunk).offset();
            if let Some(bytes) = self.bitmaps.as_ref().and_then(|b| b.page_bytes(id)) {
                pages.push((block + id.page * LOG_SECTOR, bytes));
            }
        }
        pages.extend(
            meta.dirty_sectors
                .iter()
                .map(|(at, page)| (*at, page.clone())),
        );
        pages
    }

    /// Commits when so much has changed that the next change might not fit one log entry.
    pub(super) fn make_room(&self, meta: &mut Meta) -> Result<()> {
        if meta.dirty_pages() >= MAX_DIRTY {
            self.commit(meta)
        } else {
            Ok(())
        }
    }

    /// Commits, and leaves the file as after a clean shutdown.
    pub(super) fn shut(&self) -> Result<()> {
        if !self.writing.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut meta = self.meta.lock();
        self.commit(&mut meta)?;
        meta.retire_log(&*self.file)
    }
}
