//! Virtual disks of each kind, new and used.

use crate::Corpus;
use disk::backing::SimBacking;
use disk::ops::create_on;
use disk::{CreateOptions, DiskInfo, DiskKind, Format, Vhd, Vhdx, VirtualDisk};
use partita_fuzz::image::vhdx_input;
use std::io::{Error, IoSlice, Result};
use std::path::PathBuf;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

fn options(format: Format, kind: DiskKind, size: u64, block_size: u32) -> CreateOptions {
    CreateOptions {
        block_size: (kind != DiskKind::Fixed || format == Format::Vhdx).then_some(block_size),
        ..CreateOptions::new(format, kind, size)
    }
}

fn create(options: &CreateOptions, parent: Option<&DiskInfo>) -> Result<Arc<SimBacking>> {
    let file = Arc::new(SimBacking::new());
    create_on(&*file, options, parent).map_err(Error::other)?;
    Ok(file)
}

/// Writes here and there, then takes the file as it is, before it is closed.
fn used(disk: &dyn VirtualDisk, file: &SimBacking) -> Result<Vec<u8>> {
    for offset in [0, disk.virtual_size() - 4096] {
        let written = disk.write(offset, &[IoSlice::new(&[7; 4096])], false);
        written.map_err(Error::other)?;
    }
    disk.flush().map_err(Error::other)?;
    Ok(file.to_bytes())
}

fn child(options: &CreateOptions) -> CreateOptions {
    CreateOptions {
        kind: DiskKind::Differencing,
        size: None,
        parent: Some(PathBuf::from("parent")),
        ..options.clone()
    }
}

pub(crate) fn vhdx_seeds(corpus: &mut Corpus) -> Result<()> {
    let open = |file: &Arc<SimBacking>| Vhdx::open(file.clone(), &|_| Ok(None));
    for (kind, sector) in [
        (DiskKind::Fixed, 512),
        (DiskKind::Dynamic, 512),
        (DiskKind::Dynamic, 4096),
    ] {
        let mut options = options(Format::Vhdx, kind, 2 * MIB, MIB as u32);
        options.logical_sector_size = Some(sector);
        let file = create(&options, None)?;
        corpus.add(&vhdx_input(&file.to_bytes()))?;
        let disk = open(&file).map_err(Error::other)?;
        corpus.add(&vhdx_input(&used(&disk, &file)?))?;
        let parent = disk.info();
        drop(disk);
        corpus.add(&vhdx_input(&file.to_bytes()))?;
        if kind == DiskKind::Dynamic {
            let mut options = child(&options);
            options.logical_sector_size = Some(sector);
            let file = create(&options, Some(&parent))?;
            corpus.add(&vhdx_input(&file.to_bytes()))?;
            let disk = open(&file).map_err(Error::other)?;
            corpus.add(&vhdx_input(&used(&disk, &file)?))?;
        }
    }
    // A disk of 64 TiB whose tables do not fit the file.
    let large = options(Format::Vhdx, DiskKind::Dynamic, 64 << 40, 256 << 20);
    corpus.add(&vhdx_input(&create(&large, None)?.to_bytes()))
}

pub(crate) fn vhd_seeds(corpus: &mut Corpus) -> Result<()> {
    let open = |file: &Arc<SimBacking>| Vhd::open(file.clone(), &|_| Ok(None));
    for (kind, size, block_size) in [
        (DiskKind::Fixed, 8192, 0),
        (DiskKind::Dynamic, 256 << 10, 64 << 10),
        (DiskKind::Dynamic, 4 * MIB, 2 << 20),
    ] {
        let options = options(Format::Vhd, kind, size, block_size);
        let file = create(&options, None)?;
        corpus.add(&file.to_bytes())?;
        let disk = open(&file).map_err(Error::other)?;
        let parent = disk.info();
        if size < MIB {
            corpus.add(&used(&disk, &file)?)?;
        }
        drop(disk);
        if kind == DiskKind::Dynamic {
            let file = create(&child(&options), Some(&parent))?;
            corpus.add(&file.to_bytes())?;
        }
    }
    Ok(())
}
