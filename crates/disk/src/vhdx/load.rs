//! Reading the tables of a VHDX file and checking them against each other.

use super::bat::{Bat, Entry, State};
use super::header::{self, HeaderState, Region, Regions};
use super::layout::{Geometry, LOG_SECTOR, MIB};
use super::metadata::{self, Metadata};
use super::space::{Space, Used};
use crate::backing::{self, Backing};
use crate::error::{DiskError, Result};
use crate::iov;

const BAT: &str = "VHDX block allocation table";

/// Everything that the file says about itself.
pub(super) struct Loaded {
    pub(super) regions: Regions,
    pub(super) metadata: Metadata,
    pub(super) bat: Bat,
    pub(super) space: Space,
    pub(super) allocated_blocks: u64,
}

pub(super) fn load(file: &dyn Backing, header: &HeaderState) -> Result<Loaded> {
    let regions = header::read_regions(file)?;
    let metadata = metadata::read(file, &regions.metadata)?;
    let mut loader = Loader {
        geometry: metadata.geometry,
        leave_allocated: metadata.leave_allocated,
        region: regions.bat,
        bat: Bat::new(metadata.geometry),
        used: fixed_parts(header, &regions),
        partial_chunks: Vec::new(),
        allocated_blocks: 0,
    };
    loader.read(file, metadata.virtual_size)?;
    let space = Space::from_used(loader.used, backing::len(file)?)?;
    let (bat, allocated_blocks) = (loader.bat, loader.allocated_blocks);
    Ok(Loaded {
        regions,
        metadata,
        bat,
        space,
        allocated_blocks,
    })
}

fn fixed_parts(header: &HeaderState, regions: &Regions) -> Vec<Used> {
    let log_len = u64::from(header.log_length);
    let mut used = vec![
        Used {
            offset: 0,
            len: MIB,
            what: "VHDX header section",
        },
        Used {
            offset: header.log_offset,
            len: log_len,
            what: "VHDX log",
        },
    ];
    used.extend(regions.all.iter().map(|region| Used {
        offset: region.offset,
        len: u64::from(region.length),
        what: "VHDX region",
    }));
    used
}

struct Loader {
    geometry: Geometry,
    leave_allocated: bool,
    region: Region,
    bat: Bat,
    used: Vec<Used>,
    /// Chunks with partially present blocks: their bitmap block must exist.
    partial_chunks: Vec<u64>,
    allocated_blocks: u64,
}

impl Loader {
    fn read(&mut self, file: &dyn Backing, size: u64) -> Result<()> {
        let entries = self.geometry.bat_entries(size);
        if entries * 8 > u64::from(self.region.length) {
            let reason = format!("{entries} entries do not fit its region");
            return Err(DiskError::corrupt(BAT, self.region.offset, reason));
        }
        let mut buffer = vec![0; MIB as usize];
        let mut index = 0;
        while index < entries {
            let n = (entries - index).min(MIB / 8);
            let bytes = &mut buffer[..(n * 8) as usize];
            backing::read_exact(file, self.region.offset + index * 8, bytes)?;
            for (page, raw) in bytes.chunks(LOG_SECTOR as usize).enumerate() {
                if !iov::is_zero(raw) {
                    self.take_page(index + page as u64 * LOG_SECTOR / 8, raw)?;
                }
            }
            index += n;
        }
        self.check_bitmaps()
    }

    fn take_page(&mut self, first: u64, raw: &[u8]) -> Result<()> {
        let (words, _) = raw.as_chunks::<8>();
        for (i, word) in words.iter().enumerate() {
            let entry = Entry(u64::from_le_bytes(*word));
            if entry.0 != 0 {
                self.take_entry(first + i as u64, entry)?;
            }
        }
        Ok(())
    }

    fn take_entry(&mut self, index: u64, entry: Entry) -> Result<()> {
        let period = self.geometry.chunk_ratio() + 1;
        if index % period == self.geometry.chunk_ratio() {
            return self.take_bitmap(index, entry);
        }
        let corrupt = |reason: String| {
            let block = index - index / period;
            let reason = format!("entry {index} (block {block}) {reason}");
            DiskError::corrupt(BAT, self.region.offset + index * 8, reason)
        };
        let Some(state) = entry.state() else {
            return Err(corrupt(format!("has the reserved state {}", entry.0 & 7)));
        };
        if state == State::PartiallyPresent {
            if !self.geometry.has_parent {
                return Err(corrupt(
                    "is partially present, but there is no parent".into(),
                ));
            }
            let chunk = index / period;
            if self.partial_chunks.last() != Some(&chunk) {
                self.partial_chunks.push(chunk);
            }
        }
        let holds_space = entry.is_present() || (self.leave_allocated && entry.offset() != 0);
        if holds_space && entry.offset() < MIB {
            return Err(corrupt("points into the header section".into()));
        }
        if holds_space {
            self.allocated_blocks += 1;
            let (offset, len) = (entry.offset(), self.geometry.block_size);
            self.used.push(Used {
                offset,
                len,
                what: "VHDX payload block",
            });
        }
        // Where nothing is kept, the offset means nothing either.
        let kept = if holds_space {
            entry
        } else {
            Entry::new(state, 0)
        };
        self.bat.load(index, kept);
        Ok(())
    }

    fn take_bitmap(&mut self, index: u64, entry: Entry) -> Result<()> {
        if !entry.is_bitmap_present() {
            return Ok(());
        }
        self.used.push(Used {
            offset: entry.offset(),
            len: MIB,
            what: "VHDX sector bitmap block",
        });
        self.bat.load(index, entry);
        Ok(())
    }

    fn check_bitmaps(&self) -> Result<()> {
        for &chunk in &self.partial_chunks {
            if !self.bat.bitmap(chunk).is_bitmap_present() {
                let index = self.geometry.bitmap_index(chunk);
                let reason = format!("entry {index} lacks the sector bitmap of chunk {chunk}");
                return Err(DiskError::corrupt(
                    BAT,
                    self.region.offset + index * 8,
                    reason,
                ));
            }
        }
        Ok(())
    }
}
