//! The two headers and the region table (MS-VHDX 2.2).

use uuid::Uuid;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::layout::{
    FILE_ID_SIGNATURE, HEADER_OFFSETS, Header, LOG_SECTOR, MAX_TABLE_ENTRIES, MIB, REGION_BAT,
    REGION_METADATA, REGION_TABLE_LEN, REGION_TABLE_OFFSETS, RegionEntry, RegionTableHeader,
    checksum, guid,
};
use crate::backing::{self, Backing};
use crate::error::{DiskError, Result};

const HEADER: &str = "VHDX header";
const REGION_TABLE: &str = "VHDX region table";

/// The header in force, and where the next one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeaderState {
    /// Which of the two places holds the header in force.
    pub(super) slot: usize,
    pub(super) sequence: u64,
    pub(super) file_write: Uuid,
    pub(super) data_write: Uuid,
    /// Nil when the log holds nothing.
    pub(super) log: Uuid,
    pub(super) log_offset: u64,
    pub(super) log_length: u32,
    /// Whether both places hold a valid header.
    pub(super) both_valid: bool,
}

/// Checks the file type identifier and picks the header in force (MS-VHDX 2.2.1, 2.2.2).
pub(super) fn read_header(file: &dyn Backing) -> Result<HeaderState> {
    let file_len = backing::len(file)?;
    if file_len < MIB {
        let reason = format!("the file has {file_len} bytes, less than the 1 MiB header section");
        return Err(DiskError::corrupt("VHDX file type identifier", 0, reason));
    }
    let mut signature = [0; 8];
    backing::read_exact(file, 0, &mut signature)?;
    if signature != FILE_ID_SIGNATURE {
        return Err(DiskError::corrupt(
            "VHDX file type identifier",
            0,
            "the signature is missing",
        ));
    }
    let found = [read_slot(file, 0)?, read_slot(file, 1)?];
    let both_valid = found.iter().all(Option::is_some);
    let slot = match &found {
        [None, None] => {
            let reason = "neither of the two headers has a valid signature and checksum";
            return Err(DiskError::corrupt(HEADER, HEADER_OFFSETS[0], reason));
        }
        [Some(_), None] => 0,
        [None, Some(_)] => 1,
        [Some(a), Some(b)] => usize::from(b.sequence.get() > a.sequence.get()),
    };
    let Some(header) = found[slot] else {
        return Err(DiskError::corrupt(
            HEADER,
            HEADER_OFFSETS[slot],
            "it vanished",
        ));
    };
    check_header(&header, slot, both_valid, file_len)
}

fn read_slot(file: &dyn Backing, slot: usize) -> Result<Option<Header>> {
    let mut bytes = [0u8; LOG_SECTOR as usize];
    backing::read_exact(file, HEADER_OFFSETS[slot], &mut bytes)?;
    let Ok(header) = Header::read_from_bytes(&bytes) else {
        return Ok(None);
    };
    let valid = header.signature == *b"head" && header.checksum.get() == checksum(&bytes);
    Ok(valid.then_some(header))
}

fn check_header(h: &Header, slot: usize, both_valid: bool, file_len: u64) -> Result<HeaderState> {
    let at = HEADER_OFFSETS[slot];
    if h.version.get() != 1 {
        let reason = format!("version {} is unknown", h.version);
        return Err(DiskError::unsupported(HEADER, at, reason));
    }
    if h.log_version.get() != 0 {
        let reason = format!("log version {} is unknown", h.log_version);
        return Err(DiskError::unsupported(HEADER, at, reason));
    }
    let (offset, length) = (h.log_offset.get(), u64::from(h.log_length.get()));
    let inside = offset
        .checked_add(length)
        .is_some_and(|end| end <= file_len);
    if offset < MIB || offset % MIB != 0 || length == 0 || length % MIB != 0 || !inside {
        let reason = format!("the log of {length:#x} bytes at {offset:#x} is misplaced");
        return Err(DiskError::corrupt(HEADER, at, reason));
    }
    Ok(HeaderState {
        slot,
        sequence: h.sequence.get(),
        file_write: guid(h.file_write),
        data_write: guid(h.data_write),
        log: guid(h.log),
        log_offset: offset,
        log_length: h.log_length.get(),
        both_valid,
    })
}

impl HeaderState {
    /// Writes the state as a new header over the older of the two, and makes it durable. Only
    /// then is it in force; a cut before leaves the one before.
    pub(super) fn write(&mut self, file: &dyn Backing) -> Result<()> {
        let slot = 1 - self.slot;
        let sequence = self.sequence.checked_add(1).ok_or_else(|| {
            DiskError::corrupt(
                HEADER,
                HEADER_OFFSETS[self.slot],
                "no sequence numbers are left",
            )
        })?;
        backing::write_all(file, HEADER_OFFSETS[slot], &self.encode(sequence))?;
        backing::flush(file)?;
        (self.slot, self.sequence) = (slot, sequence);
        Ok(())
    }

    fn encode(&self, sequence: u64) -> Vec<u8> {
        let mut header = Header::new_zeroed();
        header.signature = *b"head";
        header.sequence = sequence.into();
        header.file_write = self.file_write.to_bytes_le();
        header.data_write = self.data_write.to_bytes_le();
        header.log = self.log.to_bytes_le();
        header.version = 1.into();
        header.log_length = self.log_length.into();
        header.log_offset = self.log_offset.into();
        header.checksum = checksum(header.as_bytes()).into();
        header.as_bytes().to_vec()
    }
}

/// A region: where it lies and how long it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) guid: Uuid,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) required: bool,
}

/// The region table (MS-VHDX 2.2.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Regions {
    pub(super) all: Vec<Region>,
    pub(super) bat: Region,
    pub(super) metadata: Region,
    /// Whether both copies are valid and equal.
    pub(super) both_valid: bool,
}

/// Reads the region table from the first valid copy.
pub(super) fn read_regions(file: &dyn Backing) -> Result<Regions> {
    let file_len = backing::len(file)?;
    let mut copies = Vec::with_capacity(2);
    for offset in REGION_TABLE_OFFSETS {
        let mut bytes = vec![0; REGION_TABLE_LEN];
        backing::read_exact(file, offset, &mut bytes)?;
        copies.push(region_entries(&bytes).map(|all| (offset, all)));
    }
    let both_valid = match &copies[..] {
        [Some((_, a)), Some((_, b))] => a == b,
        _ => false,
    };
    let Some((at, all)) = copies.into_iter().flatten().next() else {
        let reason = "neither of the two copies has a valid signature, checksum and entry count";
        return Err(DiskError::corrupt(
            REGION_TABLE,
            REGION_TABLE_OFFSETS[0],
            reason,
        ));
    };
    check_regions(at, all, both_valid, file_len)
}

fn region_entries(bytes: &[u8]) -> Option<Vec<Region>> {
    let (header, rest) = RegionTableHeader::read_from_prefix(bytes).ok()?;
    if header.signature != *b"regi"
        || header.checksum.get() != checksum(bytes)
        || header.count.get() > MAX_TABLE_ENTRIES
    {
        return None;
    }
    let entries = rest
        .chunks_exact(size_of::<RegionEntry>())
        .take(header.count.get() as usize);
    entries
        .map(|raw| {
            let entry = RegionEntry::read_from_bytes(raw).ok()?;
            Some(Region {
                guid: guid(entry.guid),
                offset: entry.offset.get(),
                length: entry.length.get(),
                required: entry.required.get() & 1 != 0,
            })
        })
        .collect()
}

fn check_regions(at: u64, all: Vec<Region>, both_valid: bool, file_len: u64) -> Result<Regions> {
    let corrupt = |reason: String| DiskError::corrupt(REGION_TABLE, at, reason);
    let mut sorted = all.clone();
    sorted.sort_by_key(|r| r.offset);
    let mut free_from = MIB;
    for region in &sorted {
        let (guid, length) = (region.guid, u64::from(region.length));
        if region.offset % MIB != 0 || length % MIB != 0 || length == 0 {
            return Err(corrupt(format!(
                "region {guid} is not a whole number of MiB"
            )));
        }
        if region.offset < free_from {
            return Err(corrupt(format!(
                "region {guid} overlaps what lies before it"
            )));
        }
        free_from = match region.offset.checked_add(length) {
            Some(end) if end <= file_len => end,
            _ => {
                return Err(corrupt(format!(
                    "region {guid} reaches past the end of the file"
                )));
            }
        };
        let known = guid == REGION_BAT || guid == REGION_METADATA;
        if region.required && !known {
            let reason = format!("region {guid} is required but unknown");
            return Err(DiskError::unsupported(REGION_TABLE, at, reason));
        }
    }
    let only = |wanted: Uuid, name: &str| {
        let mut found = all.iter().filter(|r| r.guid == wanted);
        match (found.next(), found.next()) {
            (Some(region), None) => Ok(*region),
            (None, _) => Err(corrupt(format!("the {name} region is missing"))),
            _ => Err(corrupt(format!("there are two {name} regions"))),
        }
    };
    let (bat, metadata) = (only(REGION_BAT, "BAT")?, only(REGION_METADATA, "metadata")?);
    Ok(Regions {
        bat,
        metadata,
        all,
        both_valid,
    })
}

/// Lays out a region table, 64 KiB with its checksum.
pub(super) fn encode_regions(all: &[Region]) -> Vec<u8> {
    let mut bytes = vec![0; REGION_TABLE_LEN];
    let header = RegionTableHeader {
        signature: *b"regi",
        checksum: 0.into(),
        count: (all.len() as u32).into(),
        reserved: 0.into(),
    };
    bytes[..16].copy_from_slice(header.as_bytes());
    for (region, out) in all.iter().zip(bytes[16..].chunks_exact_mut(32)) {
        let entry = RegionEntry {
            guid: region.guid.to_bytes_le(),
            offset: region.offset.into(),
            length: region.length.into(),
            required: u32::from(region.required).into(),
        };
        out.copy_from_slice(entry.as_bytes());
    }
    let sum = checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}
