//! Giving blocks space in the file, and taking it back.

use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::Vhdx;
use super::bat::{Entry, State};
use super::bitmap::Bitmaps;
use super::commit::Meta;
use super::layout::MIB;
use crate::error::{DiskError, IoContext, Result};

impl Vhdx {
    /// Renews the identities in the header before the first change of a session
    /// (MS-VHDX 2.2.2: FileWriteGuid and DataWriteGuid).
    pub(super) fn begin_write(&self) -> Result<()> {
        if self.writing.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.read_only() {
            return Err(DiskError::ReadOnly);
        }
        let mut meta = self.meta.lock();
        if !self.writing.load(Ordering::Acquire) {
            meta.header.file_write = Uuid::new_v4();
            if !self.keep_identity.load(Ordering::Acquire) {
                meta.header.data_write = Uuid::new_v4();
            }
            meta.header.write(&*self.file)?;
            self.writing.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// The bitmaps of a disk with a parent.
    pub(super) fn bitmaps(&self) -> Result<&Bitmaps> {
        self.bitmaps
            .as_ref()
            .ok_or_else(|| DiskError::invalid("the disk has no sector bitmaps"))
    }

    /// Where the sector bitmap of a block's chunk lies.
    pub(super) fn bitmap_at(&self, block: u64) -> u64 {
        self.bat
            .bitmap(block / self.geometry.chunk_ratio())
            .offset()
    }

    /// Gives a block space. Where it showed zeros it still does; where it showed the parent, no
    /// sector is here yet. Several threads may ask at once: one of them does it.
    pub(super) fn allocate(&self, block: u64) -> Result<Entry> {
        let mut meta = self.meta.lock();
        let old = self.bat.payload(block);
        if old.is_present() {
            return Ok(old);
        }
        self.make_room(&mut meta)?;
        let shows_parent = self.geometry.has_parent && old.state() == Some(State::NotPresent);
        let entry = if shows_parent {
            self.clear_bitmap(&mut meta, block)?;
            let offset = self.take_space(&mut meta, self.geometry.block_size)?;
            Entry::new(State::PartiallyPresent, offset)
        } else if self.leave_allocated && old.offset() != 0 {
            let (offset, len) = (old.offset(), self.geometry.block_size);
            self.file
                .write_zeroes(offset, len)
                .at("clear a block", offset)?;
            Entry::new(State::FullyPresent, offset)
        } else {
            let offset = self.take_space(&mut meta, self.geometry.block_size)?;
            Entry::new(State::FullyPresent, offset)
        };
        let page = self.bat.set_payload(block, entry);
        meta.dirty_bat.insert(page);
        Ok(entry)
    }

    /// Makes sure that the chunk has a bitmap block, and that no bit of `block` is set in it.
    fn clear_bitmap(&self, meta: &mut Meta, block: u64) -> Result<()> {
        let bitmaps = self.bitmaps()?;
        let chunk = block / self.geometry.chunk_ratio();
        if !self.bat.bitmap(chunk).is_bitmap_present() {
            let offset = self.take_space(meta, MIB)?;
            bitmaps.reset(chunk);
            let page = self.bat.set_bitmap(chunk, Entry::bitmap(offset));
            meta.dirty_bat.insert(page);
            return Ok(());
        }
        let (first, count) = (bitmaps.first_sector(block), bitmaps.sectors_per_block());
        let at = self.bitmap_at(block);
        meta.dirty_bitmaps
            .extend(bitmaps.mark(&*self.file, at, first, count, false)?);
        Ok(())
    }

    /// Takes zeroed space in the file.
    pub(super) fn take_space(&self, meta: &mut Meta, len: u64) -> Result<u64> {
        let (offset, stale) = meta.space.take(len);
        let prepared = self.prepare_space(meta, offset, len, stale);
        if prepared.is_err() {
            meta.space.give(offset, len);
        }
        prepared.map(|()| offset)
    }

    fn prepare_space(&self, meta: &mut Meta, offset: u64, len: u64, stale: bool) -> Result<()> {
        let end = offset + len;
        if end > meta.file_len {
            self.file.set_len(end).at("grow the file", end)?;
            meta.file_len = end;
        }
        if stale {
            self.file
                .punch_hole(offset, len)
                .at("clear reused space", offset)?;
        }
        Ok(())
    }

    /// Records that sectors of a partially present block are here now, after they were written.
    pub(super) fn mark_present(&self, block: u64, within: u64, len: u64) -> Result<()> {
        let bitmaps = self.bitmaps()?;
        let sector = u64::from(self.geometry.sector_size);
        let first = bitmaps.first_sector(block) + within / sector;
        let at = self.bitmap_at(block);
        if bitmaps.run(&*self.file, at, first, len / sector)? == (true, len / sector) {
            return Ok(());
        }
        // Under the lock, so that whoever sees the bits set also flushes them.
        let mut meta = self.meta.lock();
        self.make_room(&mut meta)?;
        let pages = bitmaps.mark(&*self.file, at, first, len / sector, true)?;
        meta.dirty_bitmaps.extend(pages);
        if len == self.geometry.block_size {
            let old = self.bat.payload(block);
            let whole = Entry::new(State::FullyPresent, old.offset());
            if old.state() == Some(State::PartiallyPresent) {
                meta.dirty_bat.insert(self.bat.set_payload(block, whole));
            }
        }
        Ok(())
    }

    /// Gives a whole block back, so that it reads as zeros. False when requests keep it busy.
    pub(super) fn free_block(&self, block: u64, to: State) -> Result<bool> {
        let Some(_alone) = self.shards.alone(block) else {
            return Ok(false);
        };
        let mut meta = self.meta.lock();
        self.make_room(&mut meta)?;
        self.free_locked(&mut meta, block, to);
        Ok(true)
    }

    /// [`free_block`](Self::free_block) by who already has the block alone.
    pub(super) fn free_locked(&self, meta: &mut Meta, block: u64, to: State) {
        let old = self.bat.payload(block);
        let hides_parent =
            to == State::Zero && self.geometry.has_parent && old.state() == Some(State::NotPresent);
        if old.is_present() || hides_parent {
            meta.dirty_bat
                .insert(self.bat.set_payload(block, Entry::new(to, 0)));
        }
        if old.is_present() {
            meta.freed.push((old.offset(), self.geometry.block_size));
        }
    }
}
