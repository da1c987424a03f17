//! The metadata region: what kind of disk the file holds (MS-VHDX 2.6).

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use super::header::Region;
use super::layout::{
    FileParameters, Geometry, HAS_PARENT, ITEM_DISK_ID, ITEM_FILE_PARAMETERS, ITEM_IS_REQUIRED,
    ITEM_IS_USER, ITEM_IS_VIRTUAL_DISK, ITEM_LOGICAL_SECTOR, ITEM_PARENT_LOCATOR,
    ITEM_PHYSICAL_SECTOR, ITEM_VIRTUAL_SIZE, LEAVE_BLOCKS_ALLOCATED, MAX_SIZE, MAX_TABLE_ENTRIES,
    METADATA_TABLE_LEN, MIB, MetadataEntry, MetadataHeader, guid,
};
use super::locator::Locator;
use crate::backing::{self, Backing};
use crate::error::{DiskError, Result};

const TABLE: &str = "VHDX metadata table";

/// What the metadata region says.
#[derive(Debug, Clone)]
pub(super) struct Metadata {
    pub(super) geometry: Geometry,
    pub(super) leave_allocated: bool,
    pub(super) virtual_size: u64,
    pub(super) physical_sector_size: u32,
    pub(super) disk_id: Uuid,
    pub(super) locator: Option<Locator>,
    /// File offset of the virtual size item, for growing.
    pub(super) size_at: u64,
    /// Every item, for rewriting the parent locator.
    pub(super) items: Vec<Item>,
}

/// An entry of the metadata table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) id: Uuid,
    /// Bytes from the start of the region.
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) flags: u32,
}

/// Reads and checks the metadata region.
pub(super) fn read(file: &dyn Backing, region: &Region) -> Result<Metadata> {
    let items = read_table(file, region)?;
    let reader = Reader {
        file,
        region,
        items: &items,
    };
    let params_at = reader.at(ITEM_FILE_PARAMETERS);
    let raw: [u8; 8] = reader.fixed(ITEM_FILE_PARAMETERS, "VHDX file parameters")?;
    let params = FileParameters::read_from_bytes(&raw)
        .map_err(|_| DiskError::corrupt(TABLE, region.offset, "file parameters are too short"))?;
    let sector_size = u32::from_le_bytes(reader.fixed(ITEM_LOGICAL_SECTOR, "VHDX sector size")?);
    let physical = u32::from_le_bytes(reader.fixed(ITEM_PHYSICAL_SECTOR, "VHDX sector size")?);
    let virtual_size = u64::from_le_bytes(reader.fixed(ITEM_VIRTUAL_SIZE, "VHDX virtual size")?);
    let disk_id = guid(reader.fixed(ITEM_DISK_ID, "VHDX virtual disk ID")?);
    for (size, id) in [
        (sector_size, ITEM_LOGICAL_SECTOR),
        (physical, ITEM_PHYSICAL_SECTOR),
    ] {
        if size != 512 && size != 4096 {
            let reason = format!("{size} bytes is neither 512 nor 4096");
            return Err(DiskError::corrupt(
                "VHDX sector size",
                reader.at(id),
                reason,
            ));
        }
    }
    let block_size = u64::from(params.block_size.get());
    if !block_size.is_power_of_two() || !(MIB..=256 * MIB).contains(&block_size) {
        let reason =
            format!("a block of {block_size} bytes is not a power of two from 1 to 256 MiB");
        return Err(DiskError::corrupt(
            "VHDX file parameters",
            params_at,
            reason,
        ));
    }
    let size_at = reader.at(ITEM_VIRTUAL_SIZE);
    if virtual_size == 0 || virtual_size > MAX_SIZE || virtual_size % u64::from(sector_size) != 0 {
        let reason = format!("{virtual_size} bytes is not whole sectors up to 64 TiB");
        return Err(DiskError::corrupt("VHDX virtual size", size_at, reason));
    }
    let flags = params.flags.get();
    let has_parent = flags & HAS_PARENT != 0;
    let locator = if has_parent {
        Some(reader.locator()?)
    } else {
        None
    };
    Ok(Metadata {
        geometry: Geometry {
            block_size,
            sector_size,
            has_parent,
        },
        leave_allocated: flags & LEAVE_BLOCKS_ALLOCATED != 0,
        virtual_size,
        physical_sector_size: physical,
        disk_id,
        locator,
        size_at,
        items,
    })
}

fn read_table(file: &dyn Backing, region: &Region) -> Result<Vec<Item>> {
    let corrupt = |reason: String| DiskError::corrupt(TABLE, region.offset, reason);
    let mut table = vec![0; METADATA_TABLE_LEN as usize];
    backing::read_exact(file, region.offset, &mut table)?;
    let (header, rest) = MetadataHeader::read_from_prefix(&table[..])
        .map_err(|_| corrupt("it is too short".into()))?;
    if header.signature != *b"metadata" {
        return Err(corrupt("the signature is missing".into()));
    }
    if u32::from(header.count.get()) > MAX_TABLE_ENTRIES {
        return Err(corrupt(format!("{} entries are too many", header.count)));
    }
    let mut items = Vec::new();
    for raw in rest.chunks_exact(32).take(usize::from(header.count.get())) {
        let entry =
            MetadataEntry::read_from_bytes(raw).map_err(|_| corrupt("an entry is cut".into()))?;
        let item = Item {
            id: guid(entry.item),
            offset: entry.offset.get(),
            length: entry.length.get(),
            flags: entry.flags.get(),
        };
        check_item(&item, region)?;
        items.push(item);
    }
    check_overlap(&items, region)?;
    Ok(items)
}

fn check_item(item: &Item, region: &Region) -> Result<()> {
    let corrupt = |reason: String| DiskError::corrupt(TABLE, region.offset, reason);
    let Item {
        id,
        offset,
        length,
        flags,
    } = *item;
    let end = u64::from(offset) + u64::from(length);
    let empty = length == 0 && offset == 0;
    if !empty && (u64::from(offset) < METADATA_TABLE_LEN || end > u64::from(region.length)) {
        return Err(corrupt(format!(
            "item {id} lies outside the metadata region"
        )));
    }
    if u64::from(length) > MIB {
        return Err(corrupt(format!(
            "item {id} of {length} bytes is longer than 1 MiB"
        )));
    }
    let known = [
        ITEM_FILE_PARAMETERS,
        ITEM_VIRTUAL_SIZE,
        ITEM_DISK_ID,
        ITEM_LOGICAL_SECTOR,
        ITEM_PHYSICAL_SECTOR,
        ITEM_PARENT_LOCATOR,
    ];
    if flags & ITEM_IS_REQUIRED != 0 && (flags & ITEM_IS_USER != 0 || !known.contains(&id)) {
        let reason = format!("item {id} is required but unknown");
        return Err(DiskError::unsupported(TABLE, region.offset, reason));
    }
    Ok(())
}

fn check_overlap(items: &[Item], region: &Region) -> Result<()> {
    let corrupt = |reason: String| DiskError::corrupt(TABLE, region.offset, reason);
    let mut spans: Vec<&Item> = items.iter().filter(|i| i.length != 0).collect();
    spans.sort_by_key(|i| i.offset);
    for pair in spans.windows(2) {
        if u64::from(pair[0].offset) + u64::from(pair[0].length) > u64::from(pair[1].offset) {
            return Err(corrupt(format!(
                "items {} and {} overlap",
                pair[0].id, pair[1].id
            )));
        }
    }
    let mut keys: Vec<_> = items
        .iter()
        .map(|i| (i.id, i.flags & ITEM_IS_USER))
        .collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(corrupt(format!("item {} is there twice", pair[0].0))),
        None => Ok(()),
    }
}

struct Reader<'a> {
    file: &'a dyn Backing,
    region: &'a Region,
    items: &'a [Item],
}

impl Reader<'_> {
    fn find(&self, id: Uuid) -> Option<&Item> {
        self.items
            .iter()
            .find(|i| i.id == id && i.flags & ITEM_IS_USER == 0)
    }

    fn at(&self, id: Uuid) -> u64 {
        self.region.offset + self.find(id).map_or(0, |item| u64::from(item.offset))
    }

    fn fixed<const N: usize>(&self, id: Uuid, name: &'static str) -> Result<[u8; N]> {
        let Some(item) = self.find(id) else {
            return Err(DiskError::corrupt(
                TABLE,
                self.region.offset,
                format!("no {name} item"),
            ));
        };
        if item.length as usize != N {
            let reason = format!("the item has {} bytes instead of {N}", item.length);
            return Err(DiskError::corrupt(name, self.at(id), reason));
        }
        let mut bytes = [0; N];
        backing::read_exact(self.file, self.at(id), &mut bytes)?;
        Ok(bytes)
    }

    fn locator(&self) -> Result<Locator> {
        let Some(item) = self.find(ITEM_PARENT_LOCATOR) else {
            let reason = "the disk has a parent, but no parent locator item";
            return Err(DiskError::corrupt(TABLE, self.region.offset, reason));
        };
        let mut bytes = vec![0; item.length as usize];
        backing::read_exact(self.file, self.at(ITEM_PARENT_LOCATOR), &mut bytes)?;
        Locator::parse(&bytes, self.at(ITEM_PARENT_LOCATOR))
    }
}

/// What a new metadata region shall say.
pub(super) struct NewMetadata<'a> {
    pub(super) geometry: Geometry,
    pub(super) leave_allocated: bool,
    pub(super) virtual_size: u64,
    pub(super) physical_sector_size: u32,
    pub(super) disk_id: Uuid,
    pub(super) locator: Option<&'a Locator>,
}

/// Lays out the used part of a metadata region: the table, and 4 KiB-aligned items after it.
pub(super) fn encode(new: &NewMetadata<'_>) -> Result<Vec<u8>> {
    let mut flags = 0;
    if new.leave_allocated {
        flags |= LEAVE_BLOCKS_ALLOCATED;
    }
    if new.geometry.has_parent {
        flags |= HAS_PARENT;
    }
    let params = FileParameters {
        block_size: (new.geometry.block_size as u32).into(),
        flags: flags.into(),
    };
    let disk = ITEM_IS_VIRTUAL_DISK | ITEM_IS_REQUIRED;
    let mut items = vec![
        (
            ITEM_FILE_PARAMETERS,
            ITEM_IS_REQUIRED,
            params.as_bytes().to_vec(),
        ),
        (
            ITEM_VIRTUAL_SIZE,
            disk,
            new.virtual_size.to_le_bytes().to_vec(),
        ),
        (ITEM_DISK_ID, disk, new.disk_id.to_bytes_le().to_vec()),
        (
            ITEM_LOGICAL_SECTOR,
            disk,
            new.geometry.sector_size.to_le_bytes().to_vec(),
        ),
        (
            ITEM_PHYSICAL_SECTOR,
            disk,
            new.physical_sector_size.to_le_bytes().to_vec(),
        ),
    ];
    if let Some(locator) = new.locator {
        items.push((ITEM_PARENT_LOCATOR, ITEM_IS_REQUIRED, locator.encode()?));
    }
    let mut bytes = vec![0; METADATA_TABLE_LEN as usize];
    let mut table = Vec::new();
    for (id, flags, data) in items {
        let (offset, length) = (bytes.len() as u32, data.len() as u32);
        table.push(Item {
            id,
            offset,
            length,
            flags,
        });
        bytes.extend_from_slice(&data);
        bytes.resize(bytes.len().next_multiple_of(4096), 0);
    }
    bytes[..METADATA_TABLE_LEN as usize].copy_from_slice(&encode_table(&table));
    Ok(bytes)
}

/// Lays out a metadata table, 64 KiB.
pub(super) fn encode_table(items: &[Item]) -> Vec<u8> {
    let mut bytes = vec![0; METADATA_TABLE_LEN as usize];
    let header = MetadataHeader {
        signature: *b"metadata",
        reserved: 0.into(),
        count: (items.len() as u16).into(),
        reserved2: [0; 20],
    };
    bytes[..32].copy_from_slice(header.as_bytes());
    for (item, out) in items.iter().zip(bytes[32..].chunks_exact_mut(32)) {
        let entry = MetadataEntry {
            item: item.id.to_bytes_le(),
            offset: item.offset.into(),
            length: item.length.into(),
            flags: item.flags.into(),
            reserved: 0.into(),
        };
        out.copy_from_slice(entry.as_bytes());
    }
    bytes
}
