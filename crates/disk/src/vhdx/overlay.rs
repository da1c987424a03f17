//! A file as it will be after its log is replayed, without writing to it.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use super::layout::LOG_SECTOR;
use crate::backing::{self, Backing};
use crate::error::{DiskError, IoContext, Result};
use crate::iov;

type Sector = Box<[u8; LOG_SECTOR as usize]>;

/// Most sectors that are held in memory: 256 MiB, far above any honest log.
const MAX_SECTORS: usize = 65_536;

/// Changes in the order of the log: later ones win.
#[derive(Debug, Default)]
pub(super) struct Changes {
    sectors: BTreeMap<u64, Sector>,
    /// Zeroed ranges, start to end, apart from each other.
    zeros: BTreeMap<u64, u64>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.sectors.is_empty() && self.zeros.is_empty()
    }

    /// Records a sector; `entry_at` is where the log entry lies, for the error.
    pub(super) fn write(&mut self, offset: u64, sector: Sector, entry_at: u64) -> Result<()> {
        if self.sectors.len() >= MAX_SECTORS && !self.sectors.contains_key(&offset) {
            let reason = "the log holds more than 256 MiB of changes";
            return Err(DiskError::unsupported("VHDX log entry", entry_at, reason));
        }
        self.sectors.insert(offset, sector);
        Ok(())
    }

    /// Records a zeroed range.
    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let (mut start, mut end) = (offset, offset + len);
        let gone: Vec<u64> = self.sectors.range(start..end).map(|s| *s.0).collect();
        for at in gone {
            self.sectors.remove(&at);
        }
        while let Some((&s, &e)) = self.zeros.range(..=end).next_back() {
            if e < start {
                break;
            }
            (start, end) = (start.min(s), end.max(e));
            self.zeros.remove(&s);
        }
        if start < end {
            self.zeros.insert(start, end);
        }
    }

    /// Whether the sector at `offset` is changed; `Some(None)` means to zeros.
    fn get(&self, offset: u64) -> Option<Option<&Sector>> {
        if let Some(sector) = self.sectors.get(&offset) {
            return Some(Some(sector));
        }
        let (_, end) = self.zeros.range(..=offset).next_back()?;
        (*end > offset).then_some(None)
    }

    /// Writes every change to the file; not yet durable.
    pub(super) fn apply(&self, file: &dyn Backing, min_len: u64) -> Result<()> {
        if backing::len(file)? < min_len {
            file.set_len(min_len).at("grow the file", min_len)?;
        }
        for (&start, &end) in &self.zeros {
            file.write_zeroes(start, end - start)
                .at("replay the log", start)?;
        }
        for (&offset, sector) in &self.sectors {
            backing::write_all(file, offset, &sector[..])?;
        }
        Ok(())
    }
}

/// The file below with changes on top; refuses writes.
pub(super) struct Overlay {
    below: Arc<dyn Backing>,
    below_len: u64,
    len: u64,
    changes: Changes,
}

impl Overlay {
    pub(super) fn new(below: Arc<dyn Backing>, changes: Changes, min_len: u64) -> Result<Self> {
        let below_len = backing::len(&*below)?;
        Ok(Self {
            below,
            below_len,
            len: below_len.max(min_len),
            changes,
        })
    }

    /// Gives the changes back, for applying them.
    pub(super) fn into_changes(self) -> Changes {
        self.changes
    }

    fn read_piece(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let sector = offset - offset % LOG_SECTOR;
        let within = (offset - sector) as usize;
        match self.changes.get(sector) {
            Some(Some(data)) => out.copy_from_slice(&data[within..within + out.len()]),
            Some(None) => out.fill(0),
            None => {
                let there = self.below_len.saturating_sub(offset).min(out.len() as u64) as usize;
                let (inside, beyond) = out.split_at_mut(there);
                beyond.fill(0);
                self.below.read_at(offset, &mut [IoSliceMut::new(inside)])?;
            }
        }
        Ok(())
    }
}

impl Backing for Overlay {
    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let end = offset
            .checked_add(iov::len_mut(bufs))
            .ok_or(io::ErrorKind::InvalidInput)?;
        if end > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = offset;
        for buf in bufs {
            let mut rest: &mut [u8] = buf;
            while !rest.is_empty() {
                let n = (LOG_SECTOR - at % LOG_SECTOR).min(rest.len() as u64);
                let (piece, tail) = rest.split_at_mut(n as usize);
                self.read_piece(at, piece)?;
                (rest, at) = (tail, at + n);
            }
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _bufs: &[IoSlice<'_>]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn punch_hole(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn read_only(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::SimBacking;

    #[test]
    fn later_changes_win() {
        let file = Arc::new(SimBacking::from_bytes(&[1; 5 * 4096]));
        let mut changes = Changes::default();
        changes.write(4096, Box::new([2; 4096]), 0).expect("room");
        changes.zero(4096, 8192);
        changes.zero(12288, 4096);
        changes.write(8192, Box::new([3; 4096]), 0).expect("room");
        let overlay = Overlay::new(file.clone(), changes, 6 * 4096).expect("overlay");
        let mut bytes = vec![9; 6 * 4096];
        overlay
            .read_at(0, &mut [IoSliceMut::new(&mut bytes)])
            .expect("read");
        let firsts: Vec<u8> = bytes.chunks(4096).map(|c| c[4095]).collect();
        assert_eq!(firsts, [1, 0, 3, 0, 1, 0]);
        overlay
            .into_changes()
            .apply(&*file, 6 * 4096)
            .expect("apply");
        assert_eq!(file.to_bytes(), bytes);
    }
}
