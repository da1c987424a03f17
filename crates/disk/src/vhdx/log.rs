//! Reading and replaying the log (MS-VHDX 2.3.2, 2.3.3).
//!
//! Every sector of the log is tried as the start of an entry. An entry's own sectors cannot look
//! like starts, so valid entries never overlap and the search is linear in the log's length, even
//! for a hostile one.

use std::collections::HashMap;

use zerocopy::FromBytes;

use super::header::HeaderState;
use super::layout::{
    LOG_SECTOR, LogDataSector, LogDescriptor, LogHeader, MAX_FILE, MIB, REGION_TABLE_OFFSETS, guid,
};
use super::overlay::Changes;
use crate::backing::{self, Backing};
use crate::error::{DiskError, Result};

const ENTRY: &str = "VHDX log entry";
const HEADER_LEN: u64 = size_of::<LogHeader>() as u64;
const DESCRIPTOR_LEN: u64 = size_of::<LogDescriptor>() as u64;

type Sector = [u8; LOG_SECTOR as usize];

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Bytes from the start of the log.
    offset: u64,
    length: u64,
    tail: u64,
    sequence: u64,
    flushed: u64,
    last: u64,
    descriptors: u32,
}

/// What the log asks to be changed in the file.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub(super) changes: Changes,
    /// The file must be at least this long afterwards.
    pub(super) min_len: u64,
    /// How many entries are replayed.
    pub(super) entries: usize,
}

/// Finds the active sequence and collects its changes; touches nothing.
pub(super) fn read(file: &dyn Backing, header: &HeaderState) -> Result<Replay> {
    if header.log.is_nil() {
        return Ok(Replay::default());
    }
    let log = Log { file, header, length: u64::from(header.log_length) };
    let mut entries = log.find_entries()?;
    let Some(active) = active_sequence(&mut entries, log.length) else {
        // A writer sets the GUID before its first entry is durable; nothing was changed yet.
        return Ok(Replay::default());
    };
    let head = active[active.len() - 1];
    let at = header.log_offset + head.offset;
    let file_len = backing::len(file)?;
    if file_len < head.flushed {
        let reason = format!("the file had {:#x} bytes, now {file_len:#x}: it was cut", head.flushed);
        return Err(DiskError::corrupt(ENTRY, at, reason));
    }
    if head.last > MAX_FILE {
        let reason = format!("a file of {:#x} bytes is impossible", head.last);
        return Err(DiskError::corrupt(ENTRY, at, reason));
    }
    let mut replay = Replay { min_len: head.last, entries: active.len(), ..Replay::default() };
    let limit = file_len.max(head.last);
    for entry in active {
        log.collect(entry, limit, &mut replay.changes)?;
    }
    Ok(replay)
}

/// The longest-reaching sequence whose tail is still in the log (MS-VHDX 2.3.2).
fn active_sequence(entries: &mut [Entry], length: u64) -> Option<&[Entry]> {
    entries.sort_by_key(|e| e.sequence);
    // `run_start[i]`: first index of the unbroken run that entry i belongs to.
    let mut run_start: Vec<usize> = Vec::with_capacity(entries.len());
    let by_offset: HashMap<u64, usize> =
        entries.iter().enumerate().map(|(i, e)| (e.offset, i)).collect();
    for (i, entry) in entries.iter().enumerate() {
        let start = match i.checked_sub(1).map(|p| &entries[p]) {
            Some(before) if follows(before, entry, length) => run_start[i - 1],
            _ => i,
        };
        run_start.push(start);
    }
    for head in (0..entries.len()).rev() {
        if let Some(&tail) = by_offset.get(&entries[head].tail)
            && tail <= head
            && tail >= run_start[head]
        {
            return Some(&entries[tail..=head]);
        }
    }
    None
}

/// Whether `after` comes next in the circular log of `length` bytes.
fn follows(before: &Entry, after: &Entry, length: u64) -> bool {
    before.sequence.checked_add(1) == Some(after.sequence)
        && (before.offset + before.length) % length == after.offset
}

struct Log<'a> {
    file: &'a dyn Backing,
    header: &'a HeaderState,
    length: u64,
}

impl Log<'_> {
    /// Reads the sector at `offset` bytes in the circular log.
    fn sector(&self, offset: u64) -> Result<Sector> {
        let mut sector = [0; LOG_SECTOR as usize];
        let at = self.header.log_offset + offset % self.length;
        backing::read_exact(self.file, at, &mut sector)?;
        Ok(sector)
    }

    fn find_entries(&self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        let mut offset = 0;
        while offset < self.length {
            match self.entry(offset)? {
                Some(entry) => {
                    offset += entry.length;
                    found.push(entry);
                }
                None => offset += LOG_SECTOR,
            }
        }
        Ok(found)
    }

    /// The entry that starts at `offset`, if there is a whole and valid one.
    fn entry(&self, offset: u64) -> Result<Option<Entry>> {
        let first = self.sector(offset)?;
        let Ok((header, _)) = LogHeader::read_from_prefix(&first[..]) else { return Ok(None) };
        let length = u64::from(header.entry_length.get());
        let tail = u64::from(header.tail.get());
        let shaped = header.signature == *b"loge"
            && guid(header.log_guid) == self.header.log
            && length >= LOG_SECTOR
            && length % LOG_SECTOR == 0
            && length <= self.length
            && tail % LOG_SECTOR == 0
            && tail < self.length
            && header.sequence.get() > 0
            && header.flushed_file_offset.get() % MIB == 0
            && header.last_file_offset.get() % MIB == 0;
        if !shaped {
            return Ok(None);
        }
        let entry = Entry {
            offset,
            length,
            tail,
            sequence: header.sequence.get(),
            flushed: header.flushed_file_offset.get(),
            last: header.last_file_offset.get(),
            descriptors: header.descriptor_count.get(),
        };
        let whole = self.well_formed(&entry)? && self.checksum(&entry)? == header.checksum.get();
        Ok(whole.then_some(entry))
    }

    /// Whether every descriptor and data sector carries its signature and sequence number.
    fn well_formed(&self, entry: &Entry) -> Result<bool> {
        let mut data = 0;
        let fine = self.each_descriptor(entry, |descriptor| {
            data += u64::from(descriptor.signature == *b"desc");
            Ok(matches!(&descriptor.signature, b"zero" | b"desc")
                && descriptor.sequence.get() == entry.sequence
                && descriptor.file_offset.get() % LOG_SECTOR == 0)
        })?;
        let data_at = descriptor_area(entry.descriptors);
        if !fine || data_at + data * LOG_SECTOR != entry.length {
            return Ok(false);
        }
        for i in 0..data {
            let sector = self.sector(entry.offset + data_at + i * LOG_SECTOR)?;
            let Ok(sector) = LogDataSector::read_from_bytes(&sector[..]) else { return Ok(false) };
            let high = u64::from(sector.sequence_high.get()) << 32;
            let sequence = high | u64::from(sector.sequence_low.get());
            if sector.signature != *b"data" || sequence != entry.sequence {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Visits the descriptors until one is refused; false when one was, or the entry is too short.
    fn each_descriptor(
        &self,
        entry: &Entry,
        mut visit: impl FnMut(&LogDescriptor) -> Result<bool>,
    ) -> Result<bool> {
        if descriptor_area(entry.descriptors) > entry.length {
            return Ok(false);
        }
        let (mut sector, mut loaded) = (self.sector(entry.offset)?, 0);
        for i in 0..u64::from(entry.descriptors) {
            let at = HEADER_LEN + i * DESCRIPTOR_LEN;
            if at / LOG_SECTOR != loaded {
                loaded = at / LOG_SECTOR;
                sector = self.sector(entry.offset + loaded * LOG_SECTOR)?;
            }
            let start = (at % LOG_SECTOR) as usize;
            let Ok((descriptor, _)) = LogDescriptor::read_from_prefix(&sector[start..]) else {
                return Ok(false);
            };
            if !visit(&descriptor)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn checksum(&self, entry: &Entry) -> Result<u32> {
        let mut crc = 0;
        for at in (0..entry.length).step_by(LOG_SECTOR as usize) {
            let mut sector = self.sector(entry.offset + at)?;
            if at == 0 {
                sector[4..8].fill(0);
            }
            crc = crc32c::crc32c_append(crc, &sector);
        }
        Ok(crc)
    }

    /// Adds the changes of one entry.
    fn collect(&self, entry: &Entry, limit: u64, changes: &mut Changes) -> Result<()> {
        let at = self.header.log_offset + entry.offset;
        let mut data_at = entry.offset + descriptor_area(entry.descriptors);
        self.each_descriptor(entry, |descriptor| {
            let offset = descriptor.file_offset.get();
            let is_zero = descriptor.signature == *b"zero";
            let len =
                if is_zero { u64::from_le_bytes(descriptor.leading) } else { LOG_SECTOR };
            self.check_target(at, offset, len, limit)?;
            if is_zero {
                changes.zero(offset, len);
            } else {
                let mut sector = self.sector(data_at)?;
                data_at += LOG_SECTOR;
                sector[..8].copy_from_slice(&descriptor.leading);
                sector[LOG_SECTOR as usize - 4..].copy_from_slice(&descriptor.trailing);
                changes.write(offset, Box::new(sector), at)?;
            }
            Ok(true)
        })?;
        Ok(())
    }

    /// A descriptor may change anything but the headers and the log itself.
    fn check_target(&self, at: u64, offset: u64, len: u64, limit: u64) -> Result<()> {
        let refuse = |reason: String| Err(DiskError::corrupt(ENTRY, at, reason));
        let end = match offset.checked_add(len) {
            Some(end) if len % LOG_SECTOR == 0 && end <= limit => end,
            _ => return refuse(format!("it changes {len:#x} bytes at {offset:#x}, past the end")),
        };
        let (log, log_end) = (self.header.log_offset, self.header.log_offset + self.length);
        if offset < REGION_TABLE_OFFSETS[0] || (offset < log_end && end > log) {
            return refuse(format!("it changes the headers or the log, at {offset:#x}"));
        }
        Ok(())
    }
}

/// Bytes of an entry's header and descriptors, in whole sectors.
pub(super) fn descriptor_area(descriptors: u32) -> u64 {
    (HEADER_LEN + u64::from(descriptors) * DESCRIPTOR_LEN).next_multiple_of(LOG_SECTOR)
}
