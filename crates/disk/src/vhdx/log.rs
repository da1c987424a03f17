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
    let log = Log {
        file,
        header,
        length: u64::from(header.log_length),
    };
    let mut entries = log.find_entries()?;
    let Some(active) = active_sequence(&mut entries, log.length) else {
        // A writer sets the GUID before its first entry is durable; nothing was changed yet.
        return Ok(Replay::default());
    };
    let head = active[active.len() - 1];
    let at = header.log_offset + head.offset;
    let file_len = backing::len(file)?;
    if file_len < head.flushed {
        let reason = format!(
            "the file had {:#x} bytes, now {file_len:#x}: it was cut",
            head.flushed
        );
        return Err(DiskError::corrupt(ENTRY, at, reason));
    }
    if head.last > MAX_FILE {
        let reason = format!("a file of {:#x} bytes is impossible", head.last);
        return Err(DiskError::corrupt(ENTRY, at, reason));
    }
    let mut replay = Replay {
        min_len: head.last,
        entries: active.len(),
        ..Replay::default()
    };
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
    let by_offset: HashMap<u64, usize> = entries
        .iter()
        .enumerate()
        .map(|(i, e)| (e.offset, i))
        .collect();
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
        let Ok((header, _)) = LogHeader::read_from_prefix(&first[..]) else {
            return Ok(None);
        };
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
            let Ok(sector) = LogDataSector::read_from_bytes(&sector[..]) else {
                return Ok(false);
            };
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
            let len = if is_zero {
                u64::from_le_bytes(descriptor.leading)
            } else {
                LOG_SECTOR
            };
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
            Some(end) if len.is_multiple_of(LOG_SECTOR) && end <= limit => end,
            _ => {
                return refuse(format!(
                    "it changes {len:#x} bytes at {offset:#x}, past the end"
                ));
            }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use uuid::Uuid;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::backing::SimBacking;
    use crate::vhdx::overlay::Overlay;

    const LOG_AT: u64 = MIB;
    const TARGET: u64 = 3 * MIB;
    const GUID: Uuid = Uuid::from_u128(7);

    /// An entry that writes each page, filled with its byte, to its offset.
    fn entry(sequence: u64, tail: u32, pages: &[(u64, u8)]) -> Vec<u8> {
        let area = descriptor_area(pages.len() as u32);
        let mut header = LogHeader {
            signature: *b"loge",
            checksum: 0.into(),
            entry_length: ((area + pages.len() as u64 * LOG_SECTOR) as u32).into(),
            tail: tail.into(),
            sequence: sequence.into(),
            descriptor_count: (pages.len() as u32).into(),
            reserved: 0.into(),
            log_guid: GUID.to_bytes_le(),
            flushed_file_offset: (4 * MIB).into(),
            last_file_offset: (5 * MIB).into(),
        };
        let mut bytes = header.as_bytes().to_vec();
        for &(offset, byte) in pages {
            let descriptor = LogDescriptor {
                signature: *b"desc",
                trailing: [byte; 4],
                leading: [byte; 8],
                file_offset: offset.into(),
                sequence: sequence.into(),
            };
            bytes.extend_from_slice(descriptor.as_bytes());
        }
        bytes.resize(area as usize, 0);
        for &(_, byte) in pages {
            let sector = LogDataSector {
                signature: *b"data",
                sequence_high: ((sequence >> 32) as u32).into(),
                data: [byte; 4084],
                sequence_low: (sequence as u32).into(),
            };
            bytes.extend_from_slice(sector.as_bytes());
        }
        header.checksum = crc32c::crc32c(&bytes).into();
        bytes[..64].copy_from_slice(header.as_bytes());
        bytes
    }

    /// Puts entries into a circular log and gives the first byte of four target pages after
    /// replay.
    fn replayed(entries: &[(u64, Vec<u8>)]) -> Result<([u8; 4], usize)> {
        let file = Arc::new(SimBacking::from_bytes(&vec![0xee; 4 * MIB as usize]));
        for (offset, bytes) in entries {
            for (i, part) in bytes.chunks(LOG_SECTOR as usize).enumerate() {
                let at = (offset + i as u64 * LOG_SECTOR) % MIB;
                backing::write_all(&*file, LOG_AT + at, part)?;
            }
        }
        let header = HeaderState {
            slot: 0,
            sequence: 1,
            file_write: GUID,
            data_write: GUID,
            log: GUID,
            log_offset: LOG_AT,
            log_length: MIB as u32,
            both_valid: true,
        };
        let replay = read(&*file, &header)?;
        let count = replay.entries;
        let overlay = Overlay::new(file, replay.changes, replay.min_len)?;
        let mut found = [0; 4];
        for (i, byte) in found.iter_mut().enumerate() {
            let at = TARGET + i as u64 * LOG_SECTOR;
            backing::read_exact(&overlay, at, std::slice::from_mut(byte))?;
        }
        Ok((found, count))
    }

    fn page(i: u64, byte: u8) -> (u64, u8) {
        (TARGET + i * LOG_SECTOR, byte)
    }

    #[test]
    fn a_sequence_is_replayed_from_its_tail_and_later_entries_win() {
        let entries = [
            (0, entry(10, 0, &[page(0, 1)])),
            (8192, entry(11, 8192, &[page(0, 2), page(1, 2)])),
            (20480, entry(12, 8192, &[page(1, 3), page(2, 3)])),
        ];
        // Entry 10 lies before the tail of the last one, so it is already in place.
        assert_eq!(replayed(&entries).expect("valid"), ([2, 3, 3, 0xee], 2));
    }

    #[test]
    fn a_torn_last_entry_is_as_good_as_none() {
        let mut torn = entry(11, 0, &[page(1, 2)]);
        torn[5000] ^= 1;
        let entries = [(0, entry(10, 0, &[page(0, 1)])), (8192, torn)];
        assert_eq!(
            replayed(&entries).expect("valid"),
            ([1, 0xee, 0xee, 0xee], 1)
        );
    }

    #[test]
    fn a_sequence_with_a_hole_does_not_count() {
        let entries = [
            (0, entry(10, 0, &[page(0, 1)])),
            // Entry 11 is gone: what 12 builds on is not there.
            (16384, entry(12, 0, &[page(1, 2)])),
        ];
        assert_eq!(
            replayed(&entries).expect("valid"),
            ([1, 0xee, 0xee, 0xee], 1)
        );
    }

    #[test]
    fn entries_wrap_around_the_end_of_the_log() {
        let end = MIB - 8192;
        let entries = [
            (end - 8192, entry(20, (end - 8192) as u32, &[page(0, 1)])),
            (
                end,
                entry(21, (end - 8192) as u32, &[page(1, 2), page(2, 2)]),
            ),
            (4096, entry(22, (end - 8192) as u32, &[page(2, 3)])),
        ];
        assert_eq!(replayed(&entries).expect("valid"), ([1, 2, 3, 0xee], 3));
    }

    #[test]
    fn entries_of_another_log_are_ignored() {
        let mut foreign = entry(30, 0, &[page(0, 1)]);
        foreign[32] ^= 1;
        foreign[4..8].fill(0);
        let sum = crc32c::crc32c(&foreign);
        foreign[4..8].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(replayed(&[(0, foreign)]).expect("valid"), ([0xee; 4], 0));
    }

    #[test]
    fn a_file_that_was_cut_is_refused() {
        let mut cut = entry(10, 0, &[page(0, 1)]);
        cut[48..56].copy_from_slice(&(9 * MIB).to_le_bytes());
        cut[4..8].fill(0);
        let sum = crc32c::crc32c(&cut);
        cut[4..8].copy_from_slice(&sum.to_le_bytes());
        let error = replayed(&[(0, cut)]).expect_err("cut");
        assert!(error.to_string().contains("it was cut"), "{error}");
    }
}
