//! Growing a disk while it is in use.

use std::sync::atomic::Ordering;

use super::Vhdx;
use super::bat::{ENTRIES_PER_PAGE, Entry, State};
use super::commit::{Meta, Page};
use super::header::{Region, encode_regions};
use super::layout::{LOG_SECTOR, MAX_SIZE, MIB, REGION_BAT, REGION_TABLE_OFFSETS};
use crate::backing;
use crate::error::{DiskError, IoContext, Result};

impl Vhdx {
    /// Grows the disk. Everything that the new size needs is written where nothing looks yet;
    /// then one log entry with the size, and the table's place if it moved, makes it count.
    pub(super) fn grow(&self, new_size: u64) -> Result<()> {
        self.begin_write()?;
        let mut meta = self.meta.lock();
        let old_size = self.size();
        if new_size == old_size {
            return Ok(());
        }
        self.check_growth(old_size, new_size)?;
        self.commit(&mut meta)?;
        self.clear_tail(old_size)?;
        if self.leave_allocated {
            self.allocate_fixed(&mut meta, old_size, new_size)?;
        }
        let bytes = self.geometry.bat_entries(new_size) * 8;
        if bytes > u64::from(meta.bat_region.length) {
            self.move_table(&mut meta, bytes)?;
        } else {
            self.extend_table(&mut meta, old_size, new_size)?;
        }
        let at = meta.size_at;
        self.patch(&mut meta, at, &new_size.to_le_bytes())?;
        self.commit(&mut meta)?;
        self.size.store(new_size, Ordering::Release);
        Ok(())
    }

    fn check_growth(&self, old_size: u64, new_size: u64) -> Result<()> {
        let sector = u64::from(self.geometry.sector_size);
        if new_size < old_size || new_size > MAX_SIZE || !new_size.is_multiple_of(sector) {
            let reason = format!(
                "a disk of {old_size} bytes can grow to whole sectors up to 64 TiB, not to {new_size} bytes"
            );
            return Err(DiskError::Invalid(reason));
        }
        if self
            .parent
            .as_ref()
            .is_some_and(|(_, parent)| parent.virtual_size() > old_size)
        {
            return Err(DiskError::invalid(
                "a disk smaller than its parent cannot grow",
            ));
        }
        Ok(())
    }

    /// Zeros what lies after the end of the disk in its last block.
    fn clear_tail(&self, old_size: u64) -> Result<()> {
        let (block, within) = (
            old_size / self.geometry.block_size,
            old_size % self.geometry.block_size,
        );
        let entry = self.bat.payload(block);
        if within == 0 || entry.state() != Some(State::FullyPresent) {
            return Ok(());
        }
        let at = entry.offset() + within;
        self.file
            .write_zeroes(at, self.geometry.block_size - within)
            .at("write zeros", at)
    }

    fn allocate_fixed(&self, meta: &mut Meta, old_size: u64, new_size: u64) -> Result<()> {
        let (first, end) = (
            self.geometry.blocks(old_size),
            self.geometry.blocks(new_size),
        );
        let len = (end - first) * self.geometry.block_size;
        if len == 0 {
            return Ok(());
        }
        let at = self.take_space(meta, len)?;
        self.file.reserve(at, len).at("reserve space", at)?;
        for block in first..end {
            let offset = at + (block - first) * self.geometry.block_size;
            self.bat
                .set_payload(block, Entry::new(State::FullyPresent, offset));
        }
        Ok(())
    }

    /// Prepares the entries after the old end of the table, in its region.
    fn extend_table(&self, meta: &mut Meta, old_size: u64, new_size: u64) -> Result<()> {
        let old_pages = self
            .geometry
            .bat_entries(old_size)
            .div_ceil(ENTRIES_PER_PAGE);
        let new_pages = self
            .geometry
            .bat_entries(new_size)
            .div_ceil(ENTRIES_PER_PAGE);
        let at = meta.bat_region.offset + old_pages * LOG_SECTOR;
        self.file
            .write_zeroes(at, (new_pages - old_pages) * LOG_SECTOR)
            .at("clear the BAT", at)?;
        self.write_pages(meta.bat_region.offset, old_pages..new_pages)?;
        // The page that both old and new entries share counts already: it goes through the log.
        meta.dirty_bat.insert(old_pages.saturating_sub(1));
        Ok(())
    }

    /// Writes the table to a larger region and has the region tables point there.
    fn move_table(&self, meta: &mut Meta, bytes: u64) -> Result<()> {
        let length = bytes.next_multiple_of(MIB);
        let offset = self.take_space(meta, length)?;
        self.write_pages(offset, 0..bytes.div_ceil(LOG_SECTOR))?;
        let old = meta.bat_region;
        let region = Region {
            offset,
            length: length as u32,
            ..old
        };
        for entry in &mut meta.regions {
            if entry.guid == REGION_BAT {
                *entry = region;
            }
        }
        let table = encode_regions(&meta.regions);
        for at in REGION_TABLE_OFFSETS {
            self.patch(meta, at, &table)?;
        }
        meta.bat_region = region;
        meta.freed.push((old.offset, u64::from(old.length)));
        Ok(())
    }

    /// Writes the pages that hold anything to a table that reads as zeros.
    fn write_pages(&self, table_at: u64, pages: std::ops::Range<u64>) -> Result<()> {
        for page in pages {
            let bytes = self.bat.page_bytes(page);
            if !crate::iov::is_zero(&bytes[..]) {
                backing::write_all(&*self.file, table_at + page * LOG_SECTOR, &bytes[..])?;
            }
        }
        Ok(())
    }

    /// Changes bytes of a metadata structure with the next commit.
    pub(super) fn patch(&self, meta: &mut Meta, at: u64, bytes: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let position = at + done as u64;
            let within = (position % LOG_SECTOR) as usize;
            let sector = position - within as u64;
            let n = (LOG_SECTOR as usize - within).min(bytes.len() - done);
            let mut page = match meta.dirty_sectors.remove(&sector) {
                Some(page) => page,
                None => {
                    let mut page: Page = Box::new([0; LOG_SECTOR as usize]);
                    backing::read_exact(&*self.file, sector, &mut page[..])?;
                    page
                }
            };
            page[within..within + n].copy_from_slice(&bytes[done..done + n]);
            meta.dirty_sectors.insert(sector, page);
            done += n;
        }
        Ok(())
    }
}
