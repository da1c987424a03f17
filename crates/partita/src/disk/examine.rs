//! `partita disk info` and `partita disk check`.

use std::path::PathBuf;

use disk::{CheckReport, DiskInfo, OpenOptions, ops};
use serde::Serialize;

use super::Verdict;
use super::arguments::{ExistingArguments, InfoArguments};
use super::failure::{Failure, format_of};
use super::output::{NamedDisk, print, printable};
use super::size::Bytes;

/// A disk and its parents, the nearest first.
#[derive(Debug, Serialize)]
struct Chain<'a> {
    #[serde(flatten)]
    disk: NamedDisk<'a>,
    parents: Vec<NamedDisk<'a>>,
}

/// Tells what a file is.
pub(super) fn info(arguments: &InfoArguments) -> Result<Verdict, Failure> {
    let disk = &arguments.disk;
    let format = format_of(&disk.file, disk.format, "--format")?;
    if !arguments.chain {
        let info = ops::info(&disk.file, Some(format)).map_err(Failure::of(&disk.file))?;
        let named = NamedDisk::new(&disk.file, &info);
        print(disk.result.json, &named, || named.text())?;
        return Ok(Verdict::Good);
    }
    let options = OpenOptions {
        read_only: true,
        format: Some(format),
        raw_sector_size: None,
    };
    let opened = ops::open(&disk.file, &options).map_err(Failure::of(&disk.file))?;
    let mut found: Vec<(PathBuf, DiskInfo)> = vec![(disk.file.clone(), opened.info())];
    let mut next = opened.parent();
    while let Some(parent) = next {
        let link = found.last().and_then(|(_, info)| info.parent.as_ref());
        let path = link
            .and_then(|link| link.resolved.clone())
            .unwrap_or_default();
        found.push((path, parent.info()));
        next = parent.parent();
    }
    let mut named = found.iter().map(|(path, info)| NamedDisk::new(path, info));
    if let Some(disk) = named.next() {
        let chain = Chain {
            disk,
            parents: named.collect(),
        };
        print(arguments.disk.result.json, &chain, || {
            let all = std::iter::once(&chain.disk).chain(&chain.parents);
            let texts: Vec<String> = all.map(NamedDisk::text).collect();
            texts.join("\n")
        })?;
    }
    Ok(Verdict::Good)
}

/// What a check found, as JSON has it.
#[derive(Debug, Serialize)]
struct Checked<'a> {
    file: String,
    clean: bool,
    #[serde(flatten)]
    report: &'a CheckReport,
}

/// Checks a disk.
pub(super) fn check(disk: &ExistingArguments) -> Result<Verdict, Failure> {
    let format = format_of(&disk.file, disk.format, "--format")?;
    let report = ops::check(&disk.file, Some(format)).map_err(Failure::of(&disk.file))?;
    let clean = report.is_clean();
    let checked = Checked {
        file: disk.file.display().to_string(),
        clean,
        report: &report,
    };
    print(disk.result.json, &checked, || check_text(&checked))?;
    Ok(if clean { Verdict::Good } else { Verdict::Bad })
}

fn check_text(checked: &Checked<'_>) -> String {
    let (file, report) = (printable(&checked.file), checked.report);
    let mut text = String::new();
    for error in &report.errors {
        text.push_str(&format!("Error: {}\n", printable(error)));
    }
    for note in &report.notes {
        text.push_str(&format!("Note: {}\n", printable(note)));
    }
    if let Some(info) = report.info.as_ref().filter(|info| info.block_size != 0) {
        let all = info.virtual_size.div_ceil(info.block_size.into());
        text.push_str(&format!(
            "{} of {all} blocks of {} are allocated; {} of the file are unused.\n",
            report.allocated_blocks,
            Bytes(info.block_size.into()),
            Bytes(report.unused_bytes)
        ));
    }
    text.push_str(&match report.errors.len() {
        0 => format!("{file} is clean.\n"),
        1 => format!("{file} has 1 error.\n"),
        n => format!("{file} has {n} errors.\n"),
    });
    text
}
