//! `partita disk resize`, `compact`, `merge` and `rebase`.

use std::path::Path;

use disk::{Progress, RebaseMode, ops};
use serde::Serialize;

use super::Verdict;
use super::arguments::{CompactArguments, MergeArguments, RebaseArguments, ResizeArguments};
use super::failure::{Failure, format_of};
use super::output::{NamedDisk, print, printable};
use super::progress::Meter;
use super::size::{Bytes, Change};
use super::stop::Stop;

/// Grows a disk.
pub(super) fn resize(arguments: &ResizeArguments, stop: &Stop) -> Result<Verdict, Failure> {
    let disk = &arguments.disk;
    let file = &disk.file;
    let format = format_of(file, disk.format, "--format")?;
    let now = ops::info(file, Some(format)).map_err(Failure::of(file))?;
    let size = match arguments.size {
        Change::To(size) => size,
        Change::By(more) => now.virtual_size.saturating_add(more),
    };
    if size < now.virtual_size {
        return Err(Failure::Other(format!(
            "{}: a disk of {} cannot shrink to {}; copy its file systems to a smaller disk instead",
            file.display(),
            Bytes(now.virtual_size),
            Bytes(size)
        )));
    }
    if let Some(signal) = stop.signal() {
        let left = format!("{} has its old size", file.display());
        return Err(Failure::Stopped(signal, left));
    }
    let info = ops::resize(file, Some(format), size).map_err(Failure::of(file))?;
    let named = NamedDisk::new(file, &info);
    print(disk.result.json, &named, || named.text())?;
    Ok(Verdict::Good)
}

/// What compacting did, as JSON has it.
#[derive(Debug, Serialize)]
struct Compacted {
    file: String,
    file_size_before: u64,
    file_size: u64,
}

/// Makes a disk's file as small as its contents allow.
pub(super) fn compact(arguments: &CompactArguments, stop: &Stop) -> Result<Verdict, Failure> {
    let disk = &arguments.disk;
    let file = &disk.file;
    let format = format_of(file, disk.format, "--format")?;
    let length = |file: &Path| ops::info(file, Some(format)).map(|info| info.file_size);
    let before = length(file).map_err(Failure::of(file))?;
    let done = {
        let mut meter = Meter::new("Compacting", arguments.progress.progress, stop);
        ops::compact(file, Some(format), &mut |p| meter.update(p))
    };
    done.map_err(|error| {
        Failure::of(file)(error).unless_stopped(stop, || {
            format!(
                "{} shows the same contents as before; compact it again to finish",
                file.display()
            )
        })
    })?;
    let result = Compacted {
        file: file.display().to_string(),
        file_size_before: before,
        file_size: length(file).map_err(Failure::of(file))?,
    };
    print(disk.result.json, &result, || {
        let file = printable(&result.file);
        let (before, after) = (Bytes(result.file_size_before), Bytes(result.file_size));
        format!("{file} went from {before} to {after}.\n")
    })?;
    Ok(Verdict::Good)
}

/// What merging did, as JSON has it.
#[derive(Debug, Serialize)]
struct Merged {
    file: String,
    parent: String,
    deleted: bool,
}

/// Writes what a differencing disk holds into its parent.
pub(super) fn merge(arguments: &MergeArguments, stop: &Stop) -> Result<Verdict, Failure> {
    let file = &arguments.file;
    let merged = {
        let mut meter = Meter::new("Merging", arguments.report.progress.progress, stop);
        ops::merge(file, &mut |p| meter.update(p))
    };
    let parent = merged.map_err(|error| {
        Failure::of(file)(error).unless_stopped(stop, || {
            format!(
                "{} shows the same contents as before; merge it again to finish",
                file.display()
            )
        })
    })?;
    if arguments.delete {
        std::fs::remove_file(file).map_err(|error| {
            let (file, parent) = (file.display(), parent.display());
            Failure::Other(format!(
                "{file} is merged into {parent}, but could not be deleted: {error}"
            ))
        })?;
    }
    let result = Merged {
        file: file.display().to_string(),
        parent: parent.display().to_string(),
        deleted: arguments.delete,
    };
    print(arguments.report.result.json, &result, || {
        let (file, parent) = (printable(&result.file), printable(&result.parent));
        let rest = if result.deleted {
            "and was deleted"
        } else {
            "and can be deleted"
        };
        format!("{file} is merged into {parent}, {rest}.\n")
    })?;
    Ok(Verdict::Good)
}

/// Gives a differencing disk another parent.
pub(super) fn rebase(arguments: &RebaseArguments, stop: &Stop) -> Result<Verdict, Failure> {
    let file = &arguments.file;
    let mode = if arguments.reference_only {
        RebaseMode::ReferenceOnly
    } else {
        RebaseMode::KeepContents
    };
    let done = {
        let mut meter = Meter::new("Comparing", arguments.report.progress.progress, stop);
        let mut update = |p: Progress| meter.update(p);
        ops::rebase(file, &arguments.parent, mode, &mut update)
    };
    let info = done.map_err(|error| {
        Failure::of(file)(error)
            .unless_stopped(stop, || format!("{} keeps its old parent", file.display()))
    })?;
    let named = NamedDisk::new(file, &info);
    print(arguments.report.result.json, &named, || named.text())?;
    Ok(Verdict::Good)
}
