//! Reading and writing a VHD disk.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::Vhd;
use super::layout::{SECTOR, UNUSED};
use crate::backing;
use crate::error::{DiskError, IoContext, Result};
use crate::iov;
use crate::pieces::{self, Piece, pieces};
use crate::types::{
    Access, DiskInfo, DiskKind, Extent, Mapping, Place, VirtualDisk, check_request, push_extent,
    read_from_parent,
};

/// Which sectors of a differencing disk's block are in it; the first is the top bit.
pub(super) struct Bitmap(Box<[AtomicU8]>);

impl Bitmap {
    pub(super) fn clear(len: u64) -> Self {
        Self((0..len).map(|_| AtomicU8::new(0)).collect())
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.0.iter().map(|b| b.load(Ordering::Acquire)).collect()
    }

    fn has(&self, sector: u64) -> bool {
        let byte = self
            .0
            .get((sector / 8) as usize)
            .map_or(0, |b| b.load(Ordering::Acquire));
        byte & (0x80 >> (sector % 8)) != 0
    }

    /// Whether a sector is here, and for how many sectors (at most `max`) that stays so.
    pub(super) fn run(&self, first: u64, max: u64) -> (bool, u64) {
        let present = self.has(first);
        let same = (1..max).find(|i| self.has(first + i) != present);
        (present, same.unwrap_or(max))
    }

    pub(super) fn set(&self, first: u64, count: u64) {
        for sector in first..first + count {
            if let Some(byte) = self.0.get((sector / 8) as usize) {
                byte.fetch_or(0x80 >> (sector % 8), Ordering::AcqRel);
            }
        }
    }
}

impl Vhd {
    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check_request(offset, len, self.size(), SECTOR as u32)
    }

    /// Cuts a request at block borders; a fixed disk is one block.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + use<> {
        let block_size = if self.kind == DiskKind::Fixed {
            u64::MAX
        } else {
            self.block_size
        };
        pieces(offset, len, block_size)
    }

    /// Where a piece's data is in the file, if its block is there.
    fn place(&self, piece: Piece) -> Option<u64> {
        if self.kind == DiskKind::Fixed {
            return Some(piece.within);
        }
        match self.entry(piece.block) {
            UNUSED => None,
            sector => Some(self.data_at(sector) + piece.within),
        }
    }

    fn data_at(&self, sector: u32) -> u64 {
        u64::from(sector) * SECTOR + self.bitmap_len
    }

    /// The bitmap of a block that is in the file.
    pub(super) fn bitmap(&self, block: u64) -> Result<Arc<Bitmap>> {
        if let Some(bitmap) = self.bitmaps.read().get(&block) {
            return Ok(bitmap.clone());
        }
        let mut bytes = vec![0; self.bitmap_len as usize];
        let at = u64::from(self.entry(block)) * SECTOR;
        backing::read_exact(&*self.file, at, &mut bytes)?;
        let loaded = Arc::new(Bitmap(bytes.into_iter().map(AtomicU8::new).collect()));
        // Another thread may have been first, and its bits may have changed since.
        Ok(self.bitmaps.write().entry(block).or_insert(loaded).clone())
    }

    fn read_piece(&self, piece: Piece, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let _placed = self.shards.share(piece.block);
        let differencing = self.kind == DiskKind::Differencing;
        match self.place(piece) {
            Some(at) if !differencing => self.file.read_at(at, bufs).at("read", at),
            Some(_) => self.each_run(piece, |present, run| {
                let mut part = iov::part_mut(bufs, run.within - piece.within, run.len);
                match self.place(run) {
                    Some(at) if present => self.file.read_at(at, &mut part).at("read", at),
                    _ => self.read_parent(run, &mut part),
                }
            }),
            None if differencing => self.read_parent(piece, bufs),
            None => {
                iov::zero(bufs);
                Ok(())
            }
        }
    }

    fn read_parent(&self, piece: Piece, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let at = piece.block * self.block_size + piece.within;
        match &self.parent {
            Some((_, parent)) => read_from_parent(&**parent, at, bufs),
            None => Err(DiskError::Parent("it is not open".into())),
        }
    }

    fn each_run(
        &self,
        piece: Piece,
        mut visit: impl FnMut(bool, Piece) -> Result<()>,
    ) -> Result<()> {
        let bitmap = self.bitmap(piece.block)?;
        let (mut within, end) = (piece.within, piece.within + piece.len);
        while within < end {
            let (present, count) = bitmap.run(within / SECTOR, (end - within) / SECTOR);
            visit(
                present,
                Piece {
                    within,
                    len: count * SECTOR,
                    ..piece
                },
            )?;
            within += count * SECTOR;
        }
        Ok(())
    }

    fn write_piece(&self, piece: Piece, bufs: &[IoSlice<'_>]) -> Result<()> {
        let _placed = self.shards.share(piece.block);
        let at = match self.place(piece) {
            Some(at) => at,
            None => self.data_at(self.allocate(piece.block)?) + piece.within,
        };
        self.file.write_at(at, bufs).at("write", at)?;
        if self.kind == DiskKind::Differencing {
            self.mark_present(piece.block, piece.within, piece.len)?;
        }
        Ok(())
    }

    fn zero_piece(&self, piece: Piece) -> Result<()> {
        match self.place(piece) {
            Some(at) if self.kind != DiskKind::Differencing => {
                return self.file.write_zeroes(at, piece.len).at("write zeros", at);
            }
            None if self.kind == DiskKind::Dynamic => return Ok(()),
            _ => {}
        }
        pieces::write_zeros(piece, |part, zeros| self.write_piece(part, zeros))
    }

    fn map_piece(&self, piece: Piece, extents: &mut Vec<Extent>) -> Result<()> {
        let start = match self.kind {
            DiskKind::Fixed => 0,
            _ => piece.block * self.block_size,
        };
        let mut push = |run: Piece, place| {
            push_extent(
                extents,
                Extent {
                    offset: start + run.within,
                    len: run.len,
                    place,
                },
            );
            Ok(())
        };
        match (self.place(piece), self.kind) {
            (Some(_), DiskKind::Differencing) => self.each_run(piece, |present, run| {
                let place = match self.place(run) {
                    Some(at) if present => Place::File(at),
                    _ => Place::Parent,
                };
                push(run, place)
            }),
            (Some(at), _) => push(piece, Place::File(at)),
            (None, DiskKind::Differencing) => push(piece, Place::Parent),
            (None, _) => push(piece, Place::Zero),
        }
    }
}

impl VirtualDisk for Vhd {
    fn info(&self) -> DiskInfo {
        self.describe()
    }

    fn virtual_size(&self) -> u64 {
        self.size()
    }

    fn logical_sector_size(&self) -> u32 {
        SECTOR as u32
    }

    fn read(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let len = iov::len_mut(bufs);
        self.check(offset, len)?;
        let pieces = self.pieces(offset, len);
        pieces::read(pieces, bufs, |piece, bufs| self.read_piece(piece, bufs))
    }

    fn write(&self, offset: u64, bufs: &[IoSlice<'_>], fua: bool) -> Result<()> {
        let len = iov::len(bufs);
        self.begin_write()?;
        self.check(offset, len)?;
        let pieces = self.pieces(offset, len);
        pieces::write(pieces, bufs, |piece, bufs| self.write_piece(piece, bufs))?;
        if fua { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<()> {
        if self.file.read_only() {
            return Ok(());
        }
        let mut meta = self.meta.lock();
        if meta.dirty_table.is_empty() && meta.dirty_bitmaps.is_empty() {
            drop(meta);
            return backing::flush(&*self.file);
        }
        self.commit(&mut meta)
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<()> {
        self.begin_write()?;
        self.check(offset, len)?;
        if self.kind != DiskKind::Dynamic {
            return Ok(());
        }
        for piece in self.pieces(offset, len) {
            let _placed = self.shards.share(piece.block);
            if let Some(at) = self.place(piece) {
                self.file.discard(at, piece.len).at("free space", at)?;
            }
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.begin_write()?;
        self.check(offset, len)?;
        self.pieces(offset, len)
            .try_for_each(|piece| self.zero_piece(piece))
    }

    fn resize(&self, new_size: u64) -> Result<()> {
        self.grow(new_size)
    }

    fn map(&self, offset: u64, len: u64, access: Access) -> Result<Mapping> {
        if access == Access::Write {
            self.begin_write()?;
        }
        self.check(offset, len)?;
        let mut extents = Vec::new();
        for piece in self.pieces(offset, len) {
            self.map_piece(piece, &mut extents)?;
        }
        // Blocks of a VHD never move and are never taken back: nothing has to be held.
        Ok(Mapping {
            extents,
            _lease: Default::default(),
        })
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_fd()
    }

    fn parent(&self) -> Option<Arc<dyn VirtualDisk>> {
        self.parent.as_ref().map(|(_, parent)| parent.clone())
    }
}
