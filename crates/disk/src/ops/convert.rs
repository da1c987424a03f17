//! Copying a disk into another format or kind.

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::create::{CreateOptions, lay_out_on};
use super::draft::Draft;
use super::open::{OpenOptions, Parents, open_any};
use crate::error::{DiskError, IoContext, Result};
use crate::iov;
use crate::progress::{Progress, ProgressFn, report};
use crate::raw::RawDisk;
use crate::types::{Access, DiskInfo, DiskKind, Extent, Format, Place, VirtualDisk};
use crate::vhd::Vhd;
use crate::vhdx::Vhdx;

/// Bytes that are copied at once.
const CHUNK: u64 = 1 << 20;

/// Copies what a guest sees of `source`, with all its parents, into the new disk `target`. Space
/// that is all zeros is not written. The target appears only when it is complete.
///
/// # Errors
/// What opening the source or creating the target reports; [`DiskError::Cancelled`] when
/// `progress` said so.
pub fn convert(
    source: &Path,
    source_options: &OpenOptions,
    target: &Path,
    options: &CreateOptions,
    progress: &mut ProgressFn<'_>,
) -> Result<DiskInfo> {
    if target.symlink_metadata().is_ok() {
        return Err(std::io::Error::from(Errno::EXIST)).on("create", target);
    }
    if options.kind == DiskKind::Differencing {
        return Err(DiskError::invalid(
            "a disk is converted to fixed or dynamic",
        ));
    }
    let read_only = OpenOptions {
        read_only: true,
        ..source_options.clone()
    };
    let from = open_any(source, &read_only, Parents::Open)?.into_dyn();
    check_whole(source, &from.info())?;
    let draft = Draft::new(target)?;
    copy_into(&*from, &draft, options, progress).map_err(|e| e.in_file(target))?;
    draft.publish(false)?;
    super::info(target, Some(options.format))
}

/// Refuses a raw file whose end would not be copied.
fn check_whole(source: &Path, info: &DiskInfo) -> Result<()> {
    if info.format == Format::Raw && info.file_size != info.virtual_size {
        let (source, sector) = (source.display(), info.logical_sector_size);
        let reason = format!(
            "{source} ends inside a sector; pad it, for example with truncate --size=%{sector}"
        );
        return Err(DiskError::Invalid(reason));
    }
    Ok(())
}

/// Lays out a disk in the draft, fills it and makes it durable.
pub(super) fn copy_into(
    from: &dyn VirtualDisk,
    draft: &Draft,
    options: &CreateOptions,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    let info = from.info();
    let sector = options.logical_sector_size.unwrap_or(match options.format {
        Format::Vhdx if info.logical_sector_size != 2048 => info.logical_sector_size,
        _ => 512,
    });
    let unit = u64::from(sector.max(info.logical_sector_size));
    let options = CreateOptions {
        size: Some(
            options
                .size
                .unwrap_or(info.virtual_size)
                .next_multiple_of(unit),
        ),
        logical_sector_size: Some(sector),
        ..options.clone()
    };
    if options.size.is_some_and(|size| size < info.virtual_size) {
        return Err(DiskError::invalid("the target is smaller than the source"));
    }
    let total = info.virtual_size;
    let mut begun = |_| progress(Progress { done: 0, total });
    lay_out_on(&*draft.backing(), &options, None, &mut begun)?;
    let nobody = |_: &crate::types::ParentInfo| Ok(None);
    let to: Arc<dyn VirtualDisk> = match options.format {
        Format::Vhdx => Arc::new(Vhdx::open(draft.backing(), &nobody)?),
        Format::Vhd => Arc::new(Vhd::open(draft.backing(), &nobody)?),
        Format::Raw => Arc::new(RawDisk::new(draft.backing(), 512, true)?),
    };
    copy(from, &*to, progress)?;
    to.close()?;
    draft.flush()?;
    // That may have taken long: the last chance to stop before the file gets its name.
    report(progress, total, total)
}

/// Copies everything that is not zero.
fn copy(from: &dyn VirtualDisk, to: &dyn VirtualDisk, progress: &mut ProgressFn<'_>) -> Result<()> {
    let size = from.virtual_size();
    let mut buffer = vec![0; CHUNK as usize];
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(CHUNK);
        let mapping = from.map(offset, len, Access::Read)?;
        let empty = mapping.extents.iter().all(|e| is_hole(from, e));
        drop(mapping);
        if !empty {
            let bytes = &mut buffer[..len as usize];
            from.read(offset, &mut [IoSliceMut::new(bytes)])?;
            if !iov::is_zero(bytes) {
                write_rounded(to, offset, bytes)?;
            }
        }
        offset += len;
        report(progress, offset, size)?;
    }
    Ok(())
}

/// Whether a piece of a disk is known to be zeros without reading it.
fn is_hole(disk: &dyn VirtualDisk, extent: &Extent) -> bool {
    match (extent.place, disk.file()) {
        (Place::Zero, _) => true,
        (Place::File(at), Some(file)) => {
            // The file's own position, which this moves, is not used by anyone.
            match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data >= at + extent.len,
                Err(error) => error == Errno::NXIO,
            }
        }
        _ => false,
    }
}

/// Writes data whose end may lie inside a sector of a target with larger sectors.
fn write_rounded(to: &dyn VirtualDisk, offset: u64, bytes: &[u8]) -> Result<()> {
    let sector = to.logical_sector_size() as usize;
    let padding = vec![0; bytes.len().next_multiple_of(sector) - bytes.len()];
    to.write(
        offset,
        &[IoSlice::new(bytes), IoSlice::new(&padding)],
        false,
    )
}
