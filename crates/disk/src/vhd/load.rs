//! Reading a VHD file's structures and checking them against each other.

use std::sync::atomic::AtomicU32;

use uuid::Uuid;

use super::layout::{
    DynamicHeader, FOOTER_LEN, Footer, HEADER_LEN, LocatorEntry, MAX_SIZE, SECTOR,
    TYPE_DIFFERENCING, TYPE_DYNAMIC, TYPE_FIXED, UNUSED,
};
use crate::backing::{self, Backing};
use crate::error::{DiskError, Result};
use crate::types::{DiskKind, ParentInfo};

const FOOTER: &str = "VHD footer";
const HEADER: &str = "VHD dynamic disk header";
const TABLE: &str = "VHD block allocation table";
const MIN_BLOCK: u32 = 4096;
const MAX_BLOCK: u32 = 256 << 20;
/// Longest path in a parent locator, in bytes.
const MAX_PATH: u32 = 64 << 10;

pub(super) struct Loaded {
    pub(super) footer: Footer,
    pub(super) header: Option<DynamicHeader>,
    pub(super) kind: DiskKind,
    pub(super) table: Vec<AtomicU32>,
    pub(super) parent: Option<ParentInfo>,
    pub(super) end: u64,
    pub(super) repair: bool,
}

pub(super) fn load(file: &dyn Backing) -> Result<Loaded> {
    let file_len = backing::len(file)?;
    if file_len < FOOTER_LEN {
        let reason = format!("a file of {file_len} bytes has no room for it");
        return Err(DiskError::corrupt(FOOTER, 0, reason));
    }
    let end = file_len - FOOTER_LEN;
    let last = read_footer(file, end)?;
    // Only the copy at the start of a file that is not fixed stands in for a lost footer.
    let copy = read_footer(file, 0)?.filter(|f| f.disk_type.get() != TYPE_FIXED);
    let (footer, at) = match (last, copy) {
        (Some(last), _) => (last, end),
        (None, Some(copy)) => (copy, 0),
        (None, None) => {
            return Err(DiskError::corrupt(
                FOOTER,
                end,
                "its cookie or checksum is wrong",
            ));
        }
    };
    let size = footer.current_size.get();
    if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR) {
        let reason = format!("a disk of {size} bytes is not whole sectors up to 2040 GiB");
        return Err(DiskError::corrupt(FOOTER, at, reason));
    }
    let kind = match footer.disk_type.get() {
        TYPE_FIXED => return load_fixed(footer, size, end),
        TYPE_DYNAMIC => DiskKind::Dynamic,
        TYPE_DIFFERENCING => DiskKind::Differencing,
        other => {
            return Err(DiskError::unsupported(
                FOOTER,
                at,
                format!("disk type {other} is unknown"),
            ));
        }
    };
    let header = read_header(file, &footer, size, file_len)?;
    let mut used = Vec::new();
    let table = read_table(file, &header, size, file_len, &mut used)?;
    let used_end = check_blocks(&header, &footer, used, file_len)?;
    let same = last
        .zip(copy)
        .is_some_and(|(a, b)| a.encode() == b.encode());
    let end = if last.is_some() {
        end.max(used_end)
    } else {
        used_end
    };
    let parent = match kind {
        DiskKind::Differencing => Some(read_parent(file, &header, file_len)?),
        _ => None,
    };
    Ok(Loaded {
        footer,
        header: Some(header),
        kind,
        table,
        parent,
        end,
        repair: !same,
    })
}

fn read_footer(file: &dyn Backing, at: u64) -> Result<Option<Footer>> {
    let mut bytes = [0; FOOTER_LEN as usize];
    backing::read_exact(file, at, &mut bytes)?;
    Ok(Footer::parse(&bytes))
}

fn load_fixed(footer: Footer, size: u64, end: u64) -> Result<Loaded> {
    if size > end {
        let reason = format!("a disk of {size} bytes does not fit before it");
        return Err(DiskError::corrupt(FOOTER, end, reason));
    }
    let (table, kind) = (Vec::new(), DiskKind::Fixed);
    Ok(Loaded {
        footer,
        header: None,
        kind,
        table,
        parent: None,
        end,
        repair: false,
    })
}

fn read_header(
    file: &dyn Backing,
    footer: &Footer,
    size: u64,
    file_len: u64,
) -> Result<DynamicHeader> {
    let at = footer.data_offset.get();
    let corrupt = |reason: String| DiskError::corrupt(HEADER, at, reason);
    if !at.is_multiple_of(SECTOR) || at.checked_add(HEADER_LEN).is_none_or(|e| e > file_len) {
        return Err(corrupt("it lies outside the file".into()));
    }
    let mut bytes = [0; HEADER_LEN as usize];
    backing::read_exact(file, at, &mut bytes)?;
    let header = DynamicHeader::parse(&bytes)
        .ok_or_else(|| corrupt("its cookie, version or checksum is wrong".into()))?;
    let block = header.block_size.get();
    if !block.is_power_of_two() || !(MIN_BLOCK..=MAX_BLOCK).contains(&block) {
        let reason = format!("a block of {block} bytes is not a power of two up to 256 MiB");
        return Err(corrupt(reason));
    }
    let entries = u64::from(header.max_entries.get());
    if entries < size.div_ceil(u64::from(block)) {
        return Err(corrupt(format!(
            "{entries} blocks are too few for {size} bytes"
        )));
    }
    let table = header.table_offset.get();
    let inside = table
        .checked_add(entries * 4)
        .is_some_and(|end| end <= file_len);
    if !table.is_multiple_of(SECTOR) || table < FOOTER_LEN || !inside {
        return Err(corrupt(format!(
            "the table at {table:#x} lies outside the file"
        )));
    }
    Ok(header)
}

/// Reads the table and collects where its blocks start.
fn read_table(
    file: &dyn Backing,
    header: &DynamicHeader,
    size: u64,
    file_len: u64,
    used: &mut Vec<u32>,
) -> Result<Vec<AtomicU32>> {
    let block = u64::from(header.block_size.get());
    let block_len = super::bitmap_len(block) + block;
    let (at, entries) = (header.table_offset.get(), size.div_ceil(block));
    let mut table = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    while (table.len() as u64) < entries {
        let done = table.len() as u64 * 4;
        let n = (entries * 4 - done).min(buffer.len() as u64) as usize;
        backing::read_exact(file, at + done, &mut buffer[..n])?;
        for raw in buffer[..n].as_chunks::<4>().0 {
            let entry = u32::from_be_bytes(*raw);
            let start = u64::from(entry) * SECTOR;
            if entry != UNUSED && start + block_len > file_len {
                let offset = at + table.len() as u64 * 4;
                let reason = format!("block {} at {start:#x} lies outside the file", table.len());
                return Err(DiskError::corrupt(TABLE, offset, reason));
            }
            if entry != UNUSED {
                used.push(entry);
            }
            table.push(AtomicU32::new(entry));
        }
    }
    Ok(table)
}

/// Refuses blocks that overlap each other or the structures; returns where the last one ends.
fn check_blocks(
    header: &DynamicHeader,
    footer: &Footer,
    used: Vec<u32>,
    file_len: u64,
) -> Result<u64> {
    let block = u64::from(header.block_size.get());
    let block_len = super::bitmap_len(block) + block;
    let table_len = (u64::from(header.max_entries.get()) * 4).next_multiple_of(SECTOR);
    let mut parts = vec![
        (0, FOOTER_LEN),
        (footer.data_offset.get(), HEADER_LEN),
        (header.table_offset.get(), table_len),
    ];
    for locator in header.locators.iter().filter(|l| l.code != [0; 4]) {
        parts.push((locator.offset.get(), u64::from(locator.length.get())));
    }
    parts.extend(
        used.into_iter()
            .map(|entry| (u64::from(entry) * SECTOR, block_len)),
    );
    parts.sort_unstable();
    let mut end = 0u64;
    for (start, len) in parts {
        if start < end {
            let reason = format!("what lies at {start:#x} overlaps what lies before it");
            return Err(DiskError::corrupt(TABLE, header.table_offset.get(), reason));
        }
        end = start
            .checked_add(len)
            .filter(|e| *e <= file_len + SECTOR)
            .ok_or_else(|| {
                DiskError::corrupt(
                    HEADER,
                    footer.data_offset.get(),
                    "it points outside the file",
                )
            })?;
    }
    Ok(end.next_multiple_of(SECTOR))
}

fn read_parent(file: &dyn Backing, header: &DynamicHeader, file_len: u64) -> Result<ParentInfo> {
    let text = |code: &[u8; 4]| -> Result<Option<String>> {
        match header.locators.iter().find(|l| l.code == *code) {
            Some(locator) => read_path(file, locator, file_len).map(Some),
            None => Ok(None),
        }
    };
    Ok(ParentInfo {
        linkage: Uuid::from_bytes(header.parent_id),
        linkage2: None,
        relative_path: text(b"W2ru")?,
        absolute_path: text(b"W2ku")?,
        resolved: None,
    })
}

fn read_path(file: &dyn Backing, locator: &LocatorEntry, file_len: u64) -> Result<String> {
    let (at, length) = (locator.offset.get(), locator.length.get());
    let corrupt = |reason: &str| DiskError::corrupt("VHD parent locator", at, reason);
    if length > MAX_PATH
        || at
            .checked_add(u64::from(length))
            .is_none_or(|end| end > file_len)
    {
        return Err(corrupt("it is too long or lies outside the file"));
    }
    let mut bytes = vec![0; length as usize];
    backing::read_exact(file, at, &mut bytes)?;
    let units: Vec<u16> = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|b| u16::from_le_bytes(*b))
        .collect();
    let text = String::from_utf16(&units).map_err(|_| corrupt("it is not UTF-16 text"))?;
    Ok(text.trim_end_matches('\0').to_owned())
}
