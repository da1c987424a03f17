//! Changing chains of differencing disks: merging into a parent, and moving to another parent.

use std::io::{IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::open::{Disk, OpenOptions, Parents, open_any, parent_path};
use super::path::locator_paths;
use crate::error::{DiskError, Result};
use crate::progress::{ProgressFn, report};
use crate::types::{Access, DiskInfo, Place, VirtualDisk, read_from_parent};
use crate::{vhd, vhdx};

/// Bytes that are looked at at once.
const CHUNK: u64 = 1 << 20;

/// Copies what a differencing disk holds into its parent, which then has the child's contents and
/// data identity: disks made from the child can be rebased to the parent. Returns the parent's
/// path. The child is left for the caller to delete; after an interruption it is still valid and
/// the merge can be done again. Other children of the parent become unusable, and say so.
///
/// # Errors
/// [`DiskError::Invalid`] when the disk has no parent, [`DiskError::Locked`] when one of the two is
/// in use, [`DiskError::Cancelled`], and as for [`super::open`].
pub fn merge(child: &Path, progress: &mut ProgressFn<'_>) -> Result<PathBuf> {
    let writable = OpenOptions::default();
    let kid = open_any(child, &writable, Parents::Ignore)?;
    let info = kid.as_dyn().info();
    let link = info
        .parent
        .clone()
        .ok_or_else(|| DiskError::invalid("the disk has no parent"))?;
    let path = parent_path(child, &link, info.format).map_err(|e| e.in_file(child))?;
    let options = OpenOptions {
        format: Some(info.format),
        ..writable
    };
    let parent = open_any(&path, &options, Parents::Open)?;
    let merged = merge_into(&kid, &info, &parent, progress);
    merged
        .and_then(|()| parent.as_dyn().close())
        .map_err(|e| e.in_file(&path))?;
    Ok(path)
}

fn merge_into(
    child: &Disk,
    info: &DiskInfo,
    parent: &Disk,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    if let (Disk::Vhdx(child), Disk::Vhdx(parent)) = (child, parent) {
        announce(child, info, parent)?;
    }
    let to = parent.as_dyn();
    if to.virtual_size() < info.virtual_size {
        to.resize(info.virtual_size)?;
    }
    copy_local(child.as_dyn(), to, progress)?;
    to.flush()?;
    if let (Disk::Vhdx(parent), Some(identity)) = (parent, info.data_identity) {
        parent.set_data_identity(identity)?;
    }
    Ok(())
}

/// Gives the parent an identity that only this child knows, so that no other child takes the
/// changing parent for the one that it was made from.
fn announce(child: &vhdx::Vhdx, info: &DiskInfo, parent: &vhdx::Vhdx) -> Result<()> {
    let now = parent.info().data_identity;
    let link = info.parent.as_ref();
    parent.keep_identity();
    child.keep_identity();
    if now.is_some() && now == link.and_then(|l| l.linkage2) {
        return Ok(());
    }
    let identity = Uuid::new_v4();
    child.set_second_linkage(Some(identity))?;
    child.close()?;
    parent.set_data_identity(identity)
}

fn copy_local(
    from: &dyn VirtualDisk,
    to: &dyn VirtualDisk,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    let size = from.virtual_size();
    let mut buffer = vec![0; CHUNK as usize];
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(CHUNK);
        for extent in from.map(offset, len, Access::Read)?.extents {
            match extent.place {
                Place::Parent => {}
                Place::Zero => to.write_zeroes(extent.offset, extent.len)?,
                Place::File(_) => {
                    let bytes = &mut buffer[..extent.len as usize];
                    from.read(extent.offset, &mut [IoSliceMut::new(bytes)])?;
                    to.write(extent.offset, &[IoSlice::new(bytes)], false)?;
                }
            }
        }
        offset += len;
        report(progress, offset, size)?;
    }
    Ok(())
}

/// How a disk is moved to another parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RebaseMode {
    /// What a guest sees stays the same: where the new parent differs from the old one, the old
    /// contents are copied into the disk first.
    KeepContents,
    /// Only the reference changes: for a parent that was moved, or has the same contents.
    ReferenceOnly,
}

/// Makes `child` a child of `new_parent`.
///
/// # Errors
/// [`DiskError::Invalid`] when the disk has no parent or the new one does not fit,
/// [`DiskError::Locked`], [`DiskError::Cancelled`], and as for [`super::open`].
pub fn rebase(
    child: &Path,
    new_parent: &Path,
    mode: RebaseMode,
    progress: &mut ProgressFn<'_>,
) -> Result<DiskInfo> {
    let parents = match mode {
        RebaseMode::KeepContents => Parents::Open,
        RebaseMode::ReferenceOnly => Parents::Ignore,
    };
    let kid = open_any(child, &OpenOptions::default(), parents)?;
    let info = kid.as_dyn().info();
    if info.parent.is_none() {
        return Err(DiskError::invalid("the disk has no parent"));
    }
    let options = OpenOptions {
        read_only: true,
        format: Some(info.format),
        raw_sector_size: None,
    };
    let base = open_any(new_parent, &options, Parents::Open)?.into_dyn();
    check_fit(&info, &base.info())?;
    if let Disk::Vhdx(disk) = &kid {
        disk.keep_identity();
    }
    if mode == RebaseMode::KeepContents {
        keep_contents(kid.as_dyn(), &*base, progress).map_err(|e| e.in_file(child))?;
    }
    let linkage = base.info().data_identity.unwrap_or_default();
    point_to(&kid, child, new_parent, linkage).map_err(|e| e.in_file(child))?;
    kid.as_dyn().close().map_err(|e| e.in_file(child))?;
    Ok(kid.as_dyn().info())
}

fn check_fit(child: &DiskInfo, parent: &DiskInfo) -> Result<()> {
    if parent.logical_sector_size != child.logical_sector_size {
        return Err(DiskError::invalid(
            "the new parent has another logical sector size",
        ));
    }
    if parent.virtual_size > child.virtual_size {
        return Err(DiskError::invalid("the new parent is larger than the disk"));
    }
    Ok(())
}

fn point_to(kid: &Disk, child: &Path, new_parent: &Path, linkage: Uuid) -> Result<()> {
    let paths = locator_paths(child, new_parent)?;
    let (relative, absolute) = (Some(paths.relative.as_str()), Some(paths.absolute.as_str()));
    match kid {
        Disk::Vhdx(disk) => disk.set_parent(&vhdx::NewParent {
            linkage,
            relative,
            absolute,
        }),
        Disk::Vhd(disk) => {
            let name = &paths.name;
            disk.set_parent(&vhd::NewParent {
                id: linkage,
                name,
                relative,
                absolute,
            })
        }
        Disk::Raw(_) => Err(DiskError::invalid("a raw disk has no parent")),
    }
}

/// Copies into the child what it would otherwise see differently through the new parent.
fn keep_contents(
    child: &dyn VirtualDisk,
    base: &dyn VirtualDisk,
    progress: &mut ProgressFn<'_>,
) -> Result<()> {
    let size = child.virtual_size();
    let (mut old, mut new) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut offset = 0;
    while offset < size {
        let len = (size - offset).min(CHUNK);
        let extents = child.map(offset, len, Access::Read)?.extents;
        for extent in extents.iter().filter(|e| e.place == Place::Parent) {
            let n = extent.len as usize;
            child.read(extent.offset, &mut [IoSliceMut::new(&mut old[..n])])?;
            read_from_parent(base, extent.offset, &mut [IoSliceMut::new(&mut new[..n])])?;
            copy_differences(child, extent.offset, &old[..n], &new[..n])?;
        }
        offset += len;
        report(progress, offset, size)?;
    }
    child.flush()
}

/// Writes the runs of sectors in which `old` differs from `new`.
fn copy_differences(disk: &dyn VirtualDisk, offset: u64, old: &[u8], new: &[u8]) -> Result<()> {
    let sector = disk.logical_sector_size() as usize;
    let mut run: Option<usize> = None;
    for at in (0..old.len()).step_by(sector).chain([old.len()]) {
        let differs = at < old.len() && old[at..at + sector] != new[at..at + sector];
        match (run, differs) {
            (None, true) => run = Some(at),
            (Some(start), false) => {
                disk.write(
                    offset + start as u64,
                    &[IoSlice::new(&old[start..at])],
                    false,
                )?;
                run = None;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backing::{Crash, SimBacking};
    use crate::ops::{CreateOptions, create_on};
    use crate::progress::no_progress;
    use crate::types::{DiskKind, Format};
    use crate::vhdx::Vhdx;

    const SIZE: u64 = 4 << 20;

    fn open(file: Arc<SimBacking>, parent: Option<Arc<SimBacking>>) -> Result<Arc<Vhdx>> {
        let resolve = |_: &crate::types::ParentInfo| match &parent {
            Some(file) => {
                let disk: Arc<dyn VirtualDisk> = open(Arc::new(file.read_only_copy()), None)?;
                Ok(Some((PathBuf::from("parent"), disk)))
            }
            None => Ok(None),
        };
        Ok(Arc::new(Vhdx::open(file, &resolve)?))
    }

    fn fill(disk: &dyn VirtualDisk, at: u64, len: usize, byte: u8) {
        disk.write(at, &[IoSlice::new(&vec![byte; len])], false)
            .expect("write");
    }

    fn contents(disk: &dyn VirtualDisk) -> Vec<u8> {
        let mut bytes = vec![0xee; disk.virtual_size() as usize];
        disk.read(0, &mut [IoSliceMut::new(&mut bytes)])
            .expect("read");
        bytes
    }

    /// A parent and its child, which differ from each other in every way that they can.
    fn chain() -> (Arc<SimBacking>, Arc<SimBacking>) {
        let (base, child) = (Arc::new(SimBacking::new()), Arc::new(SimBacking::new()));
        let block_size = Some(1 << 20);
        let options = CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, SIZE);
        create_on(
            &*base,
            &CreateOptions {
                block_size,
                ..options
            },
            None,
        )
        .expect("create");
        let parent = open(base.clone(), None).expect("open");
        fill(&*parent, 0, 2 << 20, 1);
        parent.close().expect("close");
        let info = parent.info();
        drop(parent);
        let options = CreateOptions::differencing(Format::Vhdx, Path::new("parent"));
        let options = CreateOptions {
            block_size,
            ..options
        };
        create_on(&*child, &options, Some(&info)).expect("create");
        let disk = open(child.clone(), Some(base.clone())).expect("open");
        fill(&*disk, 4096, 8192, 2);
        fill(&*disk, 3 << 20, 512, 3);
        disk.write_zeroes(1 << 20, 1 << 20).expect("zero");
        disk.close().expect("close");
        drop(disk);
        (base, child)
    }

    /// Merges until one of the files stops; returns both as a power cut leaves them.
    fn cut_merge(
        files: &(Arc<SimBacking>, Arc<SimBacking>),
        how: Crash,
        stop: impl Fn(&SimBacking, &SimBacking),
    ) -> (Arc<SimBacking>, Arc<SimBacking>) {
        let copy = |file: &SimBacking| Arc::new(file.crash(Crash::KeepAll));
        let (base, child) = (copy(&files.0), copy(&files.1));
        let (parent, kid) = (open(base.clone(), None), open(child.clone(), None));
        let (parent, kid) = (parent.expect("open"), kid.expect("open"));
        stop(&base, &child);
        let info = kid.info();
        let (kid, parent) = (Disk::Vhdx(kid), Disk::Vhdx(parent));
        let _ = merge_into(&kid, &info, &parent, &mut no_progress());
        (Arc::new(base.crash(how)), Arc::new(child.crash(how)))
    }

    #[test]
    fn a_merge_can_be_cut_anywhere() {
        let files = chain();
        let expected = contents(&*open(files.1.clone(), Some(files.0.clone())).expect("open"));
        let identity = open(files.1.clone(), None)
            .expect("open")
            .info()
            .data_identity;
        let mut finished = 0;
        for cut in 0..40 {
            for how in [
                Crash::KeepAll,
                Crash::DropAll,
                Crash::Random(cut),
                Crash::Random(!cut),
            ] {
                for parent_stops in [false, true] {
                    let (base, child) = cut_merge(&files, how, |base, child| {
                        if parent_stops {
                            base.fail_after(cut)
                        } else {
                            child.fail_after(cut)
                        }
                    });
                    let parent = open(base.clone(), None).expect("the parent opens");
                    if parent.info().data_identity == identity {
                        finished += 1;
                        assert!(contents(&*parent) == expected, "cut {cut}, {how:?}");
                        continue;
                    }
                    drop(parent);
                    let disk = open(child, Some(base)).expect("the child opens");
                    assert!(contents(&*disk) == expected, "cut {cut}, {how:?}");
                }
            }
        }
        assert!(finished > 40, "the merge never finished");
    }

    /// A child alone, on a simulated file.
    fn open_child(format: Format, file: Arc<SimBacking>) -> Disk {
        let nobody = |_: &crate::types::ParentInfo| Ok(None);
        match format {
            Format::Vhdx => Disk::Vhdx(Arc::new(Vhdx::open(file, &nobody).expect("it opens"))),
            _ => Disk::Vhd(Arc::new(vhd::Vhd::open(file, &nobody).expect("it opens"))),
        }
    }

    /// A cut at any boundary leaves the old parent or the new one, and the new one for good once
    /// the change is acknowledged.
    #[test]
    fn a_change_of_the_parent_can_be_cut_anywhere() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (path, new) = (dir.path().join("child"), dir.path().join("new"));
        std::fs::write(&new, "").expect("write");
        for format in [Format::Vhdx, Format::Vhd] {
            let (base, template) = (SimBacking::new(), SimBacking::new());
            let options = CreateOptions::new(format, DiskKind::Dynamic, SIZE);
            create_on(&base, &options, None).expect("create");
            let nobody = |_: &crate::types::ParentInfo| Ok(None);
            let info = match format {
                Format::Vhdx => open(Arc::new(base), None).expect("open").info(),
                _ => vhd::Vhd::open(Arc::new(base), &nobody)
                    .expect("open")
                    .info(),
            };
            let options = CreateOptions::differencing(format, Path::new("old"));
            create_on(&template, &options, Some(&info)).expect("create");
            let linkage = Uuid::new_v4();
            let mut seen = [0; 2];
            for cut in 0.. {
                let file = Arc::new(template.crash(Crash::KeepAll));
                let kid = open_child(format, file.clone());
                file.fail_after(cut);
                let ended = point_to(&kid, &path, &new, linkage).is_ok();
                for how in [
                    Crash::KeepAll,
                    Crash::DropAll,
                    Crash::Random(cut),
                    Crash::Random(!cut),
                ] {
                    let found = open_child(format, Arc::new(file.crash(how)));
                    let parent = found.as_dyn().info().parent.expect("a parent");
                    let is_new = parent.linkage == linkage;
                    let name = if is_new { ".\\new" } else { "old" };
                    assert_eq!(
                        parent.relative_path.as_deref(),
                        Some(name),
                        "cut {cut}, {how:?}"
                    );
                    assert!(
                        is_new || !ended,
                        "cut {cut}, {how:?}: acknowledged, but lost"
                    );
                    seen[usize::from(is_new)] += 1;
                }
                if ended {
                    break;
                }
            }
            assert!(seen[0] > 8 && seen[1] >= 4, "{format:?}: {seen:?}");
        }
    }
}
