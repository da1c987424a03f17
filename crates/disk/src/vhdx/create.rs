//! Laying out a new VHDX file.

use uuid::Uuid;

use super::bat::{Entry, State};
use super::header::{HeaderState, Region, encode_regions};
use super::layout::{
    FILE_ID_SIGNATURE, Geometry, LOG_SECTOR, MAX_SIZE, MIB, REGION_BAT, REGION_METADATA,
    REGION_TABLE_OFFSETS,
};
use super::locator::Locator;
use super::merge::NewParent;
use super::metadata::{self, NewMetadata};
use crate::backing::{self, Backing};
use crate::error::{DiskError, IoContext, Result};
use crate::progress::ProgressFn;

const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const BAT_AT: u64 = 3 * MIB;
const CREATOR: &str = concat!("Partita ", env!("CARGO_PKG_VERSION"));

/// What a new VHDX file shall be.
pub(crate) struct NewVhdx<'a> {
    pub(crate) size: u64,
    pub(crate) block_size: u32,
    pub(crate) logical_sector_size: u32,
    pub(crate) physical_sector_size: u32,
    pub(crate) fixed: bool,
    pub(crate) parent: Option<NewParent<'a>>,
    pub(crate) disk_id: Uuid,
}

/// Writes an empty disk into an empty file and makes it durable.
pub(crate) fn create(
    file: &dyn Backing,
    new: &NewVhdx<'_>,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    check(new)?;
    let geometry = Geometry {
        block_size: u64::from(new.block_size),
        sector_size: new.logical_sector_size,
        has_parent: new.parent.is_some(),
    };
    let bat_len = (geometry.bat_entries(new.size) * 8).next_multiple_of(MIB);
    let payload_at = BAT_AT + bat_len;
    let payload = if new.fixed {
        geometry.blocks(new.size) * geometry.block_size
    } else {
        0
    };
    file.set_len(payload_at + payload)
        .at("grow the file", payload_at + payload)?;
    backing::reserve(file, payload_at, payload, progress)?;
    write_metadata(file, new, geometry)?;
    if new.fixed {
        write_fixed_table(file, geometry, new.size, payload_at)?;
    }
    write_headers(file, bat_len)
}

fn check(new: &NewVhdx<'_>) -> Result<()> {
    let block = u64::from(new.block_size);
    if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) {
        return Err(DiskError::invalid(
            "a VHDX block is a power of two from 1 to 256 MiB",
        ));
    }
    for sector in [new.logical_sector_size, new.physical_sector_size] {
        if sector != 512 && sector != 4096 {
            return Err(DiskError::invalid("a VHDX sector has 512 or 4096 bytes"));
        }
    }
    let whole = new.size.is_multiple_of(u64::from(new.logical_sector_size));
    if new.size == 0 || new.size > MAX_SIZE || !whole {
        return Err(DiskError::invalid(
            "a VHDX disk has whole sectors, and at most 64 TiB",
        ));
    }
    if new.fixed && new.parent.is_some() {
        return Err(DiskError::invalid("a fixed disk has no parent"));
    }
    Ok(())
}

fn write_metadata(file: &dyn Backing, new: &NewVhdx<'_>, geometry: Geometry) -> Result<()> {
    let locator = new
        .parent
        .as_ref()
        .map(|p| Locator::new(p.linkage, p.relative, p.absolute));
    let bytes = metadata::encode(&NewMetadata {
        geometry,
        leave_allocated: new.fixed,
        virtual_size: new.size,
        physical_sector_size: new.physical_sector_size,
        disk_id: new.disk_id,
        locator: locator.as_ref(),
    })?;
    if bytes.len() as u64 > MIB {
        return Err(DiskError::invalid("the parent's path is too long"));
    }
    backing::write_all(file, METADATA_AT, &bytes)
}

fn write_fixed_table(file: &dyn Backing, geometry: Geometry, size: u64, at: u64) -> Result<()> {
    let period = geometry.chunk_ratio() + 1;
    let mut bytes = Vec::with_capacity(LOG_SECTOR as usize);
    let mut table_at = BAT_AT;
    for index in 0..geometry.bat_entries(size) {
        let block = index - index / period;
        let entry = if index % period == geometry.chunk_ratio() {
            Entry::default()
        } else {
            Entry::new(State::FullyPresent, at + block * geometry.block_size)
        };
        bytes.extend_from_slice(&entry.0.to_le_bytes());
        if bytes.len() == LOG_SECTOR as usize {
            backing::write_all(file, table_at, &bytes)?;
            table_at += LOG_SECTOR;
            bytes.clear();
        }
    }
    backing::write_all(file, table_at, &bytes)
}

fn write_headers(file: &dyn Backing, bat_len: u64) -> Result<()> {
    let region = |guid, offset, length: u64| Region {
        guid,
        offset,
        length: length as u32,
        required: true,
    };
    let table = encode_regions(&[
        region(REGION_BAT, BAT_AT, bat_len),
        region(REGION_METADATA, METADATA_AT, MIB),
    ]);
    for at in REGION_TABLE_OFFSETS {
        backing::write_all(file, at, &table)?;
    }
    let mut identifier = FILE_ID_SIGNATURE.to_vec();
    identifier.extend(CREATOR.encode_utf16().flat_map(u16::to_le_bytes));
    backing::write_all(file, 0, &identifier)?;
    let mut header = HeaderState {
        slot: 1,
        sequence: 0,
        file_write: Uuid::new_v4(),
        data_write: Uuid::new_v4(),
        log: Uuid::nil(),
        log_offset: LOG_AT,
        log_length: MIB as u32,
        both_valid: true,
    };
    header.write(file)?;
    header.write(file)
}
