//! Reading and writing a VHDX disk.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::Vhdx;
use super::bat::{Entry, State};
use crate::backing;
use crate::error::{DiskError, IoContext, Result};
use crate::iov;
use crate::pieces::{self, Piece, pieces};
use crate::types::{
    Access, DiskInfo, Extent, Mapping, Place, VirtualDisk, check_request, push_extent,
    read_from_parent,
};

impl Vhdx {
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> + use<> {
        pieces(offset, len, self.geometry.block_size)
    }

    fn check(&self, offset: u64, len: u64) -> Result<()> {
        check_request(offset, len, self.size(), self.geometry.sector_size)
    }

    fn read_piece(&self, piece: Piece, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let _placed = self.shards.share(piece.block);
        let entry = self.bat.payload(piece.block);
        match entry.state() {
            Some(State::FullyPresent) => {
                let at = entry.offset() + piece.within;
                self.file.read_at(at, bufs).at("read", at)
            }
            Some(State::PartiallyPresent) => self.read_mixed(entry, piece, bufs),
            Some(State::NotPresent) if self.geometry.has_parent => {
                let at = piece.block * self.geometry.block_size + piece.within;
                self.read_parent(at, bufs)
            }
            _ => {
                iov::zero(bufs);
                Ok(())
            }
        }
    }

    fn read_parent(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        match &self.parent {
            Some((_, parent)) => read_from_parent(&**parent, offset, bufs),
            None => Err(DiskError::Parent("it is not open".into())),
        }
    }

    fn read_mixed(&self, entry: Entry, piece: Piece, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.each_run(piece, |present, within, len| {
            let mut part = iov::part_mut(bufs, within - piece.within, len);
            if present {
                let at = entry.offset() + within;
                self.file.read_at(at, &mut part).at("read", at)
            } else {
                self.read_parent(piece.block * self.geometry.block_size + within, &mut part)
            }
        })
    }

    /// Visits the runs of sectors of a partially present block: (is here, offset, length).
    fn each_run(
        &self,
        piece: Piece,
        mut visit: impl FnMut(bool, u64, u64) -> Result<()>,
    ) -> Result<()> {
        let bitmaps = self.bitmaps()?;
        let sector = u64::from(self.geometry.sector_size);
        let at = self.bitmap_at(piece.block);
        let first = bitmaps.first_sector(piece.block);
        let (mut within, end) = (piece.within, piece.within + piece.len);
        while within < end {
            let left = (end - within) / sector;
            let (present, count) = bitmaps.run(&*self.file, at, first + within / sector, left)?;
            visit(present, within, count * sector)?;
            within += count * sector;
        }
        Ok(())
    }

    fn write_piece(&self, piece: Piece, bufs: &[IoSlice<'_>]) -> Result<()> {
        let _placed = self.shards.share(piece.block);
        let mut entry = self.bat.payload(piece.block);
        if !entry.is_present() {
            entry = self.allocate(piece.block)?;
        }
        let at = entry.offset() + piece.within;
        self.file.write_at(at, bufs).at("write", at)?;
        if entry.state() == Some(State::PartiallyPresent) {
            self.mark_present(piece.block, piece.within, piece.len)?;
        }
        Ok(())
    }

    /// Zeros in a part of a block, or in a block that cannot be given back.
    fn zero_piece(&self, piece: Piece) -> Result<()> {
        let placed = self.shards.share(piece.block);
        let entry = self.bat.payload(piece.block);
        let at = entry.offset() + piece.within;
        match entry.state() {
            Some(State::FullyPresent) => {
                self.file.write_zeroes(at, piece.len).at("write zeros", at)
            }
            Some(State::PartiallyPresent) => {
                self.file
                    .write_zeroes(at, piece.len)
                    .at("write zeros", at)?;
                self.mark_present(piece.block, piece.within, piece.len)
            }
            Some(State::NotPresent) if self.geometry.has_parent => {
                drop(placed);
                self.write_zero_bytes(piece)
            }
            _ => Ok(()),
        }
    }

    fn write_zero_bytes(&self, piece: Piece) -> Result<()> {
        pieces::write_zeros(piece, |part, zeros| self.write_piece(part, zeros))
    }

    /// Whether a piece is a whole block; the disk's last block may be cut by its size.
    fn is_whole(&self, piece: Piece) -> bool {
        let start = piece.block * self.geometry.block_size;
        piece.within == 0
            && (piece.len == self.geometry.block_size || start + piece.len == self.size())
    }

    fn unmap_piece(&self, piece: Piece) -> Result<()> {
        let entry = self.bat.payload(piece.block);
        if !entry.is_present() {
            return Ok(());
        }
        if self.is_whole(piece) && self.free_block(piece.block, State::Unmapped)? {
            return Ok(());
        }
        let _placed = self.shards.share(piece.block);
        let entry = self.bat.payload(piece.block);
        if entry.state() == Some(State::FullyPresent) {
            let at = entry.offset() + piece.within;
            return self.file.discard(at, piece.len).at("free space", at);
        }
        Ok(())
    }

    fn map_piece(&self, piece: Piece, access: Access, extents: &mut Vec<Extent>) -> Result<()> {
        let start = piece.block * self.geometry.block_size;
        let offset = start + piece.within;
        let entry = self.bat.payload(piece.block);
        let place = match entry.state() {
            Some(State::FullyPresent) => Place::File(entry.offset() + piece.within),
            Some(State::PartiallyPresent) => {
                return self.each_run(piece, |present, within, len| {
                    let file = Place::File(entry.offset() + within);
                    let place = if present { file } else { Place::Parent };
                    push_extent(
                        extents,
                        Extent {
                            offset: start + within,
                            len,
                            place,
                        },
                    );
                    Ok(())
                });
            }
            Some(State::NotPresent) if self.geometry.has_parent => Place::Parent,
            _ => Place::Zero,
        };
        debug_assert!(access == Access::Read || !self.read_only());
        push_extent(
            extents,
            Extent {
                offset,
                len: piece.len,
                place,
            },
        );
        Ok(())
    }
}

impl VirtualDisk for Vhdx {
    fn info(&self) -> DiskInfo {
        self.describe()
    }

    fn virtual_size(&self) -> u64 {
        self.size()
    }

    fn logical_sector_size(&self) -> u32 {
        self.geometry.sector_size
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
        if self.read_only() {
            return Ok(());
        }
        let mut meta = self.meta.lock();
        if meta.is_dirty() {
            return self.commit(&mut meta);
        }
        drop(meta);
        backing::flush(&*self.file)
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<()> {
        self.begin_write()?;
        self.check(offset, len)?;
        if self.leave_allocated {
            return Ok(());
        }
        self.pieces(offset, len)
            .try_for_each(|piece| self.unmap_piece(piece))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.begin_write()?;
        self.check(offset, len)?;
        for piece in self.pieces(offset, len) {
            let entry = self.bat.payload(piece.block);
            let shows_parent = self.geometry.has_parent && entry.state() == Some(State::NotPresent);
            if !entry.is_present() && !shows_parent {
                continue;
            }
            let freed = !self.leave_allocated
                && self.is_whole(piece)
                && self.free_block(piece.block, State::Zero)?;
            if !freed {
                self.zero_piece(piece)?;
            }
        }
        Ok(())
    }

    fn resize(&self, new_size: u64) -> Result<()> {
        self.grow(new_size)
    }

    fn map(&self, offset: u64, len: u64, access: Access) -> Result<Mapping> {
        if access == Access::Write {
            self.begin_write()?;
        }
        self.check(offset, len)?;
        let blocks =
            offset / self.geometry.block_size..(offset + len).div_ceil(self.geometry.block_size);
        let lease = self.shards.lease(blocks);
        let mut extents = Vec::new();
        for piece in self.pieces(offset, len) {
            self.map_piece(piece, access, &mut extents)?;
        }
        Ok(Mapping {
            extents,
            _lease: lease,
        })
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_fd()
    }

    fn parent(&self) -> Option<Arc<dyn VirtualDisk>> {
        self.parent.as_ref().map(|(_, parent)| parent.clone())
    }

    fn close(&self) -> Result<()> {
        self.shut()
    }
}
