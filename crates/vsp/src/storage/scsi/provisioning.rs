//! UNMAP and WRITE SAME (SBC-3 5.30, 5.48): large ranges with little data.

use super::cdb::Blocks;
use super::disk::Disk;
use super::inquiry::{MAX_UNMAP_BYTES, MAX_UNMAP_DESCRIPTORS, MAX_WRITE_SAME_BYTES};
use super::sense::Sense;
use super::{Direction, Fault, Outcome, Request, medium_fault};
use crate::storage::medium::{DataRange, HeapBuffer};

const HEADER_SIZE: usize = 8;
const DESCRIPTOR_SIZE: usize = 16;
/// Bytes of a repeated block that are written at a time.
const PATTERN_SIZE: usize = 64 << 10;

/// The ranges of an UNMAP command's parameters.
fn descriptors(data: &[u8]) -> Result<Vec<Blocks>, Fault> {
    let length = data.get(2..4).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let length = usize::from(length[0]) << 8 | usize::from(length[1]);
    let list = data
        .get(HEADER_SIZE..)
        .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    // Descriptors that were not sent whole are not there.
    let (list, _) = list[..length.min(list.len())].as_chunks::<DESCRIPTOR_SIZE>();
    if list.len() > MAX_UNMAP_DESCRIPTORS as usize {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
    }
    let blocks = |d: &[u8; DESCRIPTOR_SIZE]| Blocks {
        lba: u64::from_be_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]),
        count: u32::from_be_bytes([d[8], d[9], d[10], d[11]]),
    };
    Ok(list.iter().map(blocks).collect())
}

/// UNMAP.
pub(super) fn unmap(disk: &Disk, request: &Request<'_>, length: u32) -> Outcome {
    let info = disk.info();
    if info.read_only {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    if !info.unmap {
        return Err(Sense::INVALID_OPCODE.into());
    }
    let data = request.parameters(length)?;
    if data.is_empty() {
        return Ok(0);
    }
    // All are checked before the first is carried out.
    let mut ranges = Vec::new();
    let mut total = 0_u64;
    for blocks in descriptors(&data)? {
        let (offset, bytes) = disk.extent(blocks)?;
        total += bytes;
        ranges.push((offset, bytes));
    }
    if total > MAX_UNMAP_BYTES {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
    }
    for (offset, bytes) in ranges.into_iter().filter(|&(_, bytes)| bytes > 0) {
        let done = disk.medium().unmap(offset, bytes);
        done.map_err(|error| medium_fault(&error, Sense::WRITE_ERROR))?;
    }
    Ok(data.len())
}

/// WRITE SAME (10) and (16). `unmap` is a wish: what reads as zeros may be
/// given back; `no_data` means zeros.
pub(super) fn write_same(
    disk: &Disk,
    request: &Request<'_>,
    blocks: Blocks,
    no_data: bool,
) -> Outcome {
    let info = disk.info();
    if info.read_only {
        return Err(Sense::WRITE_PROTECTED.into());
    }
    let (offset, length) = disk.extent(blocks)?;
    if length == 0 || length > MAX_WRITE_SAME_BYTES {
        return Err(Sense::INVALID_FIELD_IN_CDB.into());
    }
    let sector = info.logical_sector as usize;
    let mut block = vec![0; sector];
    if !no_data {
        request.range(Direction::Out, sector)?.read(0, &mut block)?;
    }
    let done = if block.iter().all(|&byte| byte == 0) {
        disk.medium().write_zeroes(offset, length)
    } else {
        write_pattern(disk, offset, length, &block)
    };
    done.map_err(|error| medium_fault(&error, Sense::WRITE_ERROR))?;
    disk.after_write()?;
    Ok(if no_data { 0 } else { sector })
}

fn write_pattern(
    disk: &Disk,
    offset: u64,
    length: u64,
    block: &[u8],
) -> Result<(), crate::storage::medium::MediumError> {
    let buffer = HeapBuffer::new(block.repeat((PATTERN_SIZE / block.len()).max(1)));
    let mut done = 0;
    while done < length {
        let here = (length - done).min(PATTERN_SIZE as u64) as usize;
        let Some(data) = DataRange::new(&buffer, here) else {
            break;
        };
        disk.medium().write(offset + done, data, false)?;
        done += here as u64;
    }
    Ok(())
}
