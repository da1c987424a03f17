//! Blocks, headers and footers of a VHD file that is being changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::create::{NewParent, encode_locators};
use super::io::Bitmap;
use super::layout::{DynamicHeader, FOOTER_LEN, HEADER_LEN, MAX_SIZE, SECTOR, UNUSED};
use super::{Meta, Vhd};
use crate::backing;
use crate::error::{DiskError, IoContext, Result};
use crate::types::DiskKind;

/// Data of blocks starts at multiples of this, which suits the host's pages.
const DATA_ALIGNMENT: u64 = 4096;
/// Dirty sectors after which they are committed before the next change.
const MAX_DIRTY: usize = 1024;

impl Vhd {
    /// Repairs a lost footer or copy before the first change of a session.
    pub(super) fn begin_write(&self) -> Result<()> {
        if self.writing.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.file.read_only() {
            return Err(DiskError::ReadOnly);
        }
        let mut meta = self.meta.lock();
        if meta.repair {
            self.write_footers(&mut meta)?;
        }
        self.writing.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes the footer at the end and makes it durable, then its copy at the start.
    fn write_footers(&self, meta: &mut Meta) -> Result<()> {
        let footer = meta.footer.encode();
        backing::write_all(&*self.file, meta.end, &footer)?;
        self.file
            .set_len(meta.end + FOOTER_LEN)
            .at("cut the file", meta.end)?;
        backing::flush(&*self.file)?;
        if self.kind != DiskKind::Fixed {
            backing::write_all(&*self.file, 0, &footer)?;
            backing::flush(&*self.file)?;
        }
        meta.repair = false;
        Ok(())
    }

    /// Takes `len` zeroed bytes where the footer was; a footer follows them at once, so that the
    /// file never ends without one for longer than a power cut could make it anyway.
    fn take_space(&self, meta: &mut Meta, start: u64, len: u64) -> Result<()> {
        let file_len = backing::len(&*self.file)?;
        let end = start + len;
        backing::write_all(&*self.file, end, &meta.footer.encode())?;
        let stale = file_len.min(end).saturating_sub(meta.end);
        self.file
            .punch_hole(meta.end, stale)
            .at("clear space", meta.end)?;
        meta.end = end;
        Ok(())
    }

    /// Gives a block space; returns the sector of its bitmap.
    pub(super) fn allocate(&self, block: u64) -> Result<u32> {
        let mut meta = self.meta.lock();
        let old = self.entry(block);
        if old != UNUSED {
            return Ok(old);
        }
        self.make_room(&mut meta)?;
        let start = (meta.end + self.bitmap_len).next_multiple_of(DATA_ALIGNMENT) - self.bitmap_len;
        let sector = u32::try_from(start / SECTOR)
            .ok()
            .filter(|s| *s != UNUSED)
            .ok_or_else(|| {
                DiskError::invalid("the file has no room for more blocks of a VHD disk")
            })?;
        self.take_space(&mut meta, start, self.bitmap_len + self.block_size)?;
        if self.kind == DiskKind::Differencing {
            self.bitmaps
                .write()
                .insert(block, Arc::new(Bitmap::clear(self.bitmap_len)));
        } else {
            // Without a parent every sector of a block counts as written.
            backing::write_all(&*self.file, start, &vec![0xff; self.bitmap_len as usize])?;
        }
        if let Some(entry) = self.table.read().get(block as usize) {
            entry.store(sector, Ordering::Release);
        }
        meta.dirty_table.insert(block * 4 / SECTOR);
        Ok(sector)
    }

    pub(super) fn entry(&self, block: u64) -> u32 {
        self.table
            .read()
            .get(block as usize)
            .map_or(UNUSED, |e| e.load(Ordering::Acquire))
    }

    fn make_room(&self, meta: &mut Meta) -> Result<()> {
        if meta.dirty_table.len() + meta.dirty_bitmaps.len() >= MAX_DIRTY {
            return self.commit(meta);
        }
        Ok(())
    }

    /// Records that sectors of a block are in this disk now, after they were written.
    pub(super) fn mark_present(&self, block: u64, within: u64, len: u64) -> Result<()> {
        let bitmap = self.bitmap(block)?;
        let (first, count) = (within / SECTOR, len / SECTOR);
        if bitmap.run(first, count) == (true, count) {
            return Ok(());
        }
        let mut meta = self.meta.lock();
        self.make_room(&mut meta)?;
        bitmap.set(first, count);
        meta.dirty_bitmaps.insert(block);
        Ok(())
    }

    /// Grows the disk to `new_size`.
    pub(super) fn grow(&self, new_size: u64) -> Result<()> {
        self.begin_write()?;
        let mut meta = self.meta.lock();
        let old_size = self.size();
        if new_size == old_size {
            return Ok(());
        }
        if new_size < old_size || new_size > MAX_SIZE || !new_size.is_multiple_of(SECTOR) {
            let reason = format!(
                "a disk of {old_size} bytes can grow to whole sectors up to 2040 GiB, not to {new_size} bytes"
            );
            return Err(DiskError::Invalid(reason));
        }
        if self
            .parent
            .as_ref()
            .is_some_and(|(_, p)| p.virtual_size() > old_size)
        {
            return Err(DiskError::invalid(
                "a disk smaller than its parent cannot grow",
            ));
        }
        self.commit(&mut meta)?;
        match meta.header {
            None => self.grow_fixed(&mut meta, old_size, new_size)?,
            Some(header) => self.grow_table(&mut meta, header, new_size)?,
        }
        self.size.store(new_size, Ordering::Release);
        Ok(())
    }

    /// The new footer is durable before the old one turns into data.
    fn grow_fixed(&self, meta: &mut Meta, old_size: u64, new_size: u64) -> Result<()> {
        let old_end = meta.end;
        meta.footer.set_size(new_size);
        self.file
            .reserve(old_end, new_size - old_size)
            .at("reserve space", old_end)?;
        let end = new_size.max(old_end);
        backing::write_all(&*self.file, end, &meta.footer.encode())?;
        backing::flush(&*self.file)?;
        meta.end = end;
        // From the old end of the disk: other tools leave a gap before the footer at times.
        let stale = end.min(old_end + FOOTER_LEN).saturating_sub(old_size);
        self.file
            .write_zeroes(old_size, stale)
            .at("write zeros", old_size)?;
        backing::flush(&*self.file)
    }

    fn grow_table(&self, meta: &mut Meta, mut header: DynamicHeader, size: u64) -> Result<()> {
        let entries = size.div_ceil(self.block_size);
        let mut table = self.table.write();
        let bytes: Vec<u8> = table
            .iter()
            .map(|e| e.load(Ordering::Acquire))
            .chain(std::iter::repeat(UNUSED))
            .take((entries * 4).next_multiple_of(SECTOR) as usize / 4)
            .flat_map(u32::to_be_bytes)
            .collect();
        let at = meta.end;
        header.table_offset = at.into();
        header.max_entries = (entries as u32).into();
        let header_at = at + bytes.len() as u64;
        let mut footer = meta.footer;
        footer.set_size(size);
        footer.data_offset = header_at.into();
        self.take_space(meta, at, bytes.len() as u64 + HEADER_LEN)?;
        backing::write_all(&*self.file, at, &bytes)?;
        backing::write_all(&*self.file, header_at, &header.encode())?;
        backing::flush(&*self.file)?;
        (meta.footer, meta.header) = (footer, Some(header));
        self.write_footers(meta)?;
        table.resize_with(entries as usize, || AtomicU32::new(UNUSED));
        Ok(())
    }

    /// Makes this the child of another parent: a new header and its paths are written and made
    /// durable, then a footer that names it.
    pub(crate) fn set_parent(&self, new: &NewParent<'_>) -> Result<()> {
        self.begin_write()?;
        let mut meta = self.meta.lock();
        let Some(mut header) = meta.header.filter(|_| self.kind == DiskKind::Differencing) else {
            return Err(DiskError::invalid("the disk has no parent"));
        };
        self.commit(&mut meta)?;
        let header_at = meta.end;
        let paths = encode_locators(&mut header, new, header_at + HEADER_LEN)?;
        let mut footer = meta.footer;
        footer.data_offset = header_at.into();
        self.take_space(&mut meta, header_at, HEADER_LEN + paths.len() as u64)?;
        backing::write_all(&*self.file, header_at, &header.encode())?;
        backing::write_all(&*self.file, header_at + HEADER_LEN, &paths)?;
        backing::flush(&*self.file)?;
        (meta.footer, meta.header) = (footer, Some(header));
        if let Some(parent) = &mut meta.parent {
            parent.linkage = new.id;
            parent.relative_path = new.relative.map(str::to_owned);
            parent.absolute_path = new.absolute.map(str::to_owned);
        }
        self.write_footers(&mut meta)
    }

    /// Sets the disk's identity. Durable on return.
    pub(crate) fn set_identity(&self, identity: uuid::Uuid) -> Result<()> {
        self.begin_write()?;
        let mut meta = self.meta.lock();
        self.commit(&mut meta)?;
        meta.footer.unique_id = identity.into_bytes();
        self.write_footers(&mut meta)
    }
}
