//! Compacting: blocks of zeros are given back, and blocks at the end of the file move into the
//! gaps before them. Each step goes through the log, so it may be interrupted at any time.

use std::sync::atomic::Ordering;

use super::Vhdx;
use super::bat::{Entry, State};
use super::commit::Meta;
use super::layout::MIB;
use crate::backing;
use crate::error::{DiskError, IoContext, Result};
use crate::iov;
use crate::progress::{ProgressFn, report};

/// Who uses a place in the file.
#[derive(Debug, Clone, Copy)]
enum Owner {
    Payload(u64),
    Bitmap(u64),
}

impl Vhdx {
    /// Makes the file as small as its contents allow; returns the bytes by which it shrank.
    ///
    /// # Errors
    /// [`DiskError::Invalid`] for a fixed disk, [`DiskError::Cancelled`], or what the host reports.
    pub fn compact(&self, progress: &mut ProgressFn<'_>) -> Result<u64> {
        if self.leave_allocated {
            return Err(DiskError::invalid("a fixed disk has nothing to compact"));
        }
        let before = backing::len(&*self.file)?;
        // What a guest sees stays the same, so children keep their parent.
        self.keep_identity.store(true, Ordering::Release);
        self.begin_write()?;
        let blocks = self.geometry.blocks(self.size());
        for block in 0..blocks {
            self.free_if_zero(block)?;
            if block % 64 == 0 {
                report(progress, block * self.geometry.block_size / 2, self.size())?;
            }
        }
        self.commit(&mut self.meta.lock())?;
        self.close_gaps(blocks, progress)?;
        self.cut_end()?;
        // The next change of a guest is one again.
        self.keep_identity.store(false, Ordering::Release);
        self.writing.store(false, Ordering::Release);
        report(progress, self.size(), self.size())?;
        Ok(before.saturating_sub(backing::len(&*self.file)?))
    }

    fn free_if_zero(&self, block: u64) -> Result<()> {
        if self.bat.payload(block).state() != Some(State::FullyPresent) {
            return Ok(());
        }
        let Some(_alone) = self.shards.alone(block) else {
            return Ok(());
        };
        let entry = self.bat.payload(block);
        if entry.state() != Some(State::FullyPresent) {
            return Ok(());
        }
        let mut buffer = vec![0; MIB as usize];
        for at in (entry.offset()..entry.offset() + self.geometry.block_size).step_by(MIB as usize)
        {
            backing::read_exact(&*self.file, at, &mut buffer)?;
            if !iov::is_zero(&buffer) {
                return Ok(());
            }
        }
        let mut meta = self.meta.lock();
        self.make_room(&mut meta)?;
        self.free_locked(&mut meta, block, State::Zero);
        Ok(())
    }

    fn close_gaps(&self, blocks: u64, progress: &mut ProgressFn<'_>) -> Result<()> {
        let mut owners = self.owners(blocks);
        owners.sort_unstable_by_key(|(offset, _)| std::cmp::Reverse(*offset));
        let total = owners.len() as u64;
        for (done, (_, owner)) in owners.into_iter().enumerate() {
            let half = self.size() / 2;
            report(
                progress,
                half + (half as u128 * done as u128 / u128::from(total)) as u64,
                self.size(),
            )?;
            match owner {
                Owner::Payload(block) => {
                    let Some(_alone) = self.shards.alone(block) else {
                        continue;
                    };
                    self.lower(owner)?;
                }
                Owner::Bitmap(_) => {
                    let Some(_all) = self.shards.all_alone() else {
                        continue;
                    };
                    self.lower(owner)?;
                }
            }
        }
        self.commit(&mut self.meta.lock())
    }

    fn owners(&self, blocks: u64) -> Vec<(u64, Owner)> {
        let chunks = blocks.div_ceil(self.geometry.chunk_ratio());
        let payload = (0..blocks)
            .map(|block| (self.bat.payload(block), Owner::Payload(block)))
            .filter(|(entry, _)| entry.is_present());
        let bitmaps = (0..chunks)
            .map(|chunk| (self.bat.bitmap(chunk), Owner::Bitmap(chunk)))
            .filter(|(entry, _)| entry.is_bitmap_present());
        payload
            .chain(bitmaps)
            .map(|(entry, owner)| (entry.offset(), owner))
            .collect()
    }

    /// Moves a block to the first gap before it, if there is one.
    fn lower(&self, owner: Owner) -> Result<()> {
        let mut meta = self.meta.lock();
        self.make_room(&mut meta)?;
        let (entry, len) = match owner {
            Owner::Payload(block) => (self.bat.payload(block), self.geometry.block_size),
            Owner::Bitmap(chunk) => (self.bat.bitmap(chunk), MIB),
        };
        let from = entry.offset();
        if !entry.is_present() {
            return Ok(());
        }
        let Some(to) = meta.space.take_below(len, from) else {
            return Ok(());
        };
        if let Err(error) = self.copy_block(from, to, len) {
            meta.space.give(to, len);
            return Err(error);
        }
        let page = match (owner, entry.state()) {
            (Owner::Payload(block), Some(state)) => {
                self.bat.set_payload(block, Entry::new(state, to))
            }
            (Owner::Payload(_), None) => return Ok(()),
            (Owner::Bitmap(chunk), _) => self.bat.set_bitmap(chunk, Entry::bitmap(to)),
        };
        meta.dirty_bat.insert(page);
        meta.freed.push((from, len));
        Ok(())
    }

    fn copy_block(&self, from: u64, to: u64, len: u64) -> Result<()> {
        let mut buffer = vec![0; MIB as usize];
        for at in (0..len).step_by(MIB as usize) {
            backing::read_exact(&*self.file, from + at, &mut buffer)?;
            if iov::is_zero(&buffer) {
                self.file
                    .punch_hole(to + at, MIB)
                    .at("clear space", to + at)?;
            } else {
                backing::write_all(&*self.file, to + at, &buffer)?;
            }
        }
        Ok(())
    }

    /// Cuts free space off the end of the file, once no log entry asks for its old length.
    fn cut_end(&self) -> Result<()> {
        let mut guard = self.meta.lock();
        let meta: &mut Meta = &mut guard;
        if meta.is_dirty() {
            self.commit(meta)?;
        }
        meta.retire_log(&*self.file)?;
        let end = meta.space.trim_end();
        if end < meta.file_len {
            self.file.set_len(end).at("shrink the file", end)?;
            meta.file_len = end;
        }
        backing::flush(&*self.file)
    }
}
