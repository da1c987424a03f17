//! Laying out a new VHD file.

use uuid::Uuid;

use super::layout::{
    DynamicHeader, FOOTER_LEN, Footer, HEADER_LEN, LocatorEntry, MAX_SIZE, SECTOR,
    TYPE_DIFFERENCING, TYPE_DYNAMIC, TYPE_FIXED,
};
use crate::backing::{self, Backing};
use crate::error::{DiskError, IoContext, Result};
use crate::progress::ProgressFn;

/// The parent of a new differencing disk.
pub(crate) struct NewParent<'a> {
    pub(crate) id: Uuid,
    pub(crate) name: &'a str,
    pub(crate) relative: Option<&'a str>,
    pub(crate) absolute: Option<&'a str>,
}

/// What a new VHD file shall be.
pub(crate) struct NewVhd<'a> {
    pub(crate) size: u64,
    pub(crate) block_size: u32,
    pub(crate) fixed: bool,
    pub(crate) parent: Option<NewParent<'a>>,
    pub(crate) id: Uuid,
}

/// Writes an empty disk into an empty file and makes it durable.
pub(crate) fn create(
    file: &dyn Backing,
    new: &NewVhd<'_>,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    if new.size == 0 || new.size > MAX_SIZE || !new.size.is_multiple_of(SECTOR) {
        return Err(DiskError::invalid(
            "a VHD disk has whole sectors, and at most 2040 GiB",
        ));
    }
    if new.fixed {
        let footer = Footer::new(new.size, TYPE_FIXED, new.id);
        file.set_len(new.size).at("grow the file", new.size)?;
        backing::reserve(file, 0, new.size, progress)?;
        backing::write_all(file, new.size, &footer.encode())?;
        return backing::flush(file);
    }
    let block_size = new.block_size;
    if !block_size.is_power_of_two() || !(64 << 10..=256 << 20).contains(&block_size) {
        return Err(DiskError::invalid(
            "a VHD block is a power of two from 64 KiB to 256 MiB",
        ));
    }
    let kind = if new.parent.is_some() {
        TYPE_DIFFERENCING
    } else {
        TYPE_DYNAMIC
    };
    let mut footer = Footer::new(new.size, kind, new.id);
    footer.data_offset = FOOTER_LEN.into();
    let table_at = FOOTER_LEN + HEADER_LEN;
    let entries = new.size.div_ceil(u64::from(block_size)) as u32;
    let mut header = DynamicHeader::new(table_at, entries, block_size);
    let table = vec![0xff; (entries as usize * 4).next_multiple_of(SECTOR as usize)];
    let paths_at = table_at + table.len() as u64;
    let paths = match &new.parent {
        Some(parent) => encode_locators(&mut header, parent, paths_at)?,
        None => Vec::new(),
    };
    backing::write_all(file, 0, &footer.encode())?;
    backing::write_all(file, FOOTER_LEN, &header.encode())?;
    backing::write_all(file, table_at, &table)?;
    backing::write_all(file, paths_at, &paths)?;
    backing::write_all(file, paths_at + paths.len() as u64, &footer.encode())?;
    backing::flush(file)
}

/// Names the parent in a header; returns the paths, which belong at `at`.
pub(super) fn encode_locators(
    header: &mut DynamicHeader,
    parent: &NewParent<'_>,
    at: u64,
) -> Result<Vec<u8>> {
    header.parent_id = parent.id.into_bytes();
    header.parent_timestamp = super::layout::now().into();
    header.set_parent_name(parent.name);
    header.locators = [LocatorEntry::new([0; 4], 0, 0, 0); 8];
    let mut bytes = Vec::new();
    let paths = [(*b"W2ru", parent.relative), (*b"W2ku", parent.absolute)];
    let given = paths
        .into_iter()
        .filter_map(|(code, path)| Some((code, path?)));
    for (slot, (code, path)) in header.locators.iter_mut().zip(given) {
        let raw: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
        if raw.len() > 32 << 10 {
            return Err(DiskError::invalid("the parent's path is too long"));
        }
        let space = raw.len().next_multiple_of(SECTOR as usize);
        *slot = LocatorEntry::new(
            code,
            at + bytes.len() as u64,
            raw.len() as u32,
            space as u32,
        );
        bytes.extend_from_slice(&raw);
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
    }
    Ok(bytes)
}
