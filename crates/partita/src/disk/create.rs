//! `partita disk create` and `partita disk convert`.

use disk::{CreateOptions, DiskKind, Format, OpenOptions, ops};

use super::Verdict;
use super::arguments::{ConvertArguments, CreateArguments, LayoutArguments};
use super::failure::{Failure, format_of};
use super::output::{NamedDisk, format_name, kind_name, print};
use super::progress::Meter;
use super::size::Bytes;
use super::stop::Stop;

const MIB: u64 = 1 << 20;

/// Makes an empty disk.
pub(super) fn create(arguments: &CreateArguments, stop: &Stop) -> Result<Verdict, Failure> {
    let file = &arguments.file;
    let format = format_of(file, arguments.layout.format, "--format")?;
    let kind = match (arguments.layout.kind, &arguments.parent) {
        (Some(DiskKind::Differencing), None) => {
            return Err(usage("--type differencing needs --parent FILE"));
        }
        (Some(kind @ (DiskKind::Fixed | DiskKind::Dynamic)), Some(_)) => {
            let kind = kind_name(kind);
            return Err(usage(format!(
                "--parent makes a differencing disk, so --type {kind} does not fit"
            )));
        }
        (_, Some(_)) => DiskKind::Differencing,
        (given, None) => given.unwrap_or(default_kind(format)),
    };
    if arguments.size.is_none() && arguments.parent.is_none() {
        return Err(usage("the size is missing; give one like --size 10G"));
    }
    let options = CreateOptions {
        parent: arguments.parent.clone(),
        ..options(format, kind, arguments.size, &arguments.layout)?
    };
    let info = {
        let mut meter = Meter::new("Reserving space", arguments.report.progress.progress, stop);
        ops::create_with_progress(file, &options, &mut |p| meter.update(p))
    };
    let info = info.map_err(|error| {
        Failure::of(file)(error).unless_stopped(stop, || format!("{} was not made", file.display()))
    })?;
    let named = NamedDisk::new(file, &info);
    print(arguments.report.result.json, &named, || named.text())?;
    Ok(Verdict::Good)
}

/// Copies a disk into another format or type.
pub(super) fn convert(arguments: &ConvertArguments, stop: &Stop) -> Result<Verdict, Failure> {
    let (source, target) = (&arguments.source, &arguments.target);
    let source_format = format_of(source, arguments.source_format, "--source-format")?;
    let format = format_of(target, arguments.layout.format, "--format")?;
    let kind = arguments.layout.kind.unwrap_or(default_kind(format));
    if kind == DiskKind::Differencing {
        return Err(usage(
            "--type differencing does not fit; a disk is converted to fixed or dynamic",
        ));
    }
    let options = options(format, kind, arguments.size, &arguments.layout)?;
    let source_options = OpenOptions {
        read_only: true,
        format: Some(source_format),
        raw_sector_size: None,
    };
    let info = {
        let mut meter = Meter::new("Converting", arguments.report.progress.progress, stop);
        ops::convert(source, &source_options, target, &options, &mut |p| {
            meter.update(p)
        })
    };
    let info = info.map_err(|error| {
        Failure::of(target)(error)
            .unless_stopped(stop, || format!("{} was not made", target.display()))
    })?;
    let named = NamedDisk::new(target, &info);
    print(arguments.report.result.json, &named, || named.text())?;
    Ok(Verdict::Good)
}

fn usage(text: impl Into<String>) -> Failure {
    Failure::Usage(text.into())
}

fn default_kind(format: Format) -> DiskKind {
    match format {
        Format::Raw => DiskKind::Fixed,
        Format::Vhdx | Format::Vhd => DiskKind::Dynamic,
    }
}

/// Checks what does not need the files, so that messages can name the option.
fn options(
    format: Format,
    kind: DiskKind,
    size: Option<u64>,
    layout: &LayoutArguments,
) -> Result<CreateOptions, Failure> {
    if format == Format::Raw && kind != DiskKind::Fixed {
        let kind = kind_name(kind);
        return Err(usage(format!(
            "a raw disk is fixed, so --type {kind} does not fit"
        )));
    }
    let sector = layout.logical_sector_size;
    if format != Format::Vhdx {
        let name = format_name(format);
        if sector.is_some_and(|s| s != 512) {
            return Err(usage(format!(
                "--logical-sector-size: a {name} disk has 512-byte sectors"
            )));
        }
        if layout.physical_sector_size.is_some() {
            return Err(usage(format!(
                "--physical-sector-size: only VHDX has it, not a {name} disk"
            )));
        }
    }
    if let Some(size) = size {
        check_size(format, size, sector.unwrap_or(512))?;
    }
    Ok(CreateOptions {
        format,
        kind,
        size,
        block_size: block_size(format, kind, layout.block_size)?,
        logical_sector_size: sector,
        physical_sector_size: layout.physical_sector_size,
        parent: None,
    })
}

fn check_size(format: Format, size: u64, sector: u32) -> Result<(), Failure> {
    let most = match format {
        Format::Vhdx => 64 << 40,
        Format::Vhd => 2040 << 30,
        Format::Raw => i64::MAX as u64,
    };
    if size > most {
        let (name, most) = (format_name(format), Bytes(most));
        return Err(usage(format!("--size: a {name} disk has at most {most}")));
    }
    if !size.is_multiple_of(sector.into()) {
        let right = Bytes(size.next_multiple_of(sector.into()));
        return Err(usage(format!(
            "--size: a disk has whole sectors of {sector} bytes; the next size is {right}"
        )));
    }
    Ok(())
}

fn block_size(format: Format, kind: DiskKind, given: Option<u64>) -> Result<Option<u32>, Failure> {
    let Some(size) = given else {
        return Ok(None);
    };
    let (least, range) = match (format, kind) {
        (Format::Vhdx, _) => (MIB, "1M to 256M"),
        (Format::Vhd, DiskKind::Dynamic | DiskKind::Differencing) => (64 << 10, "64K to 256M"),
        _ => {
            let (name, kind) = (format_name(format), kind_name(kind));
            return Err(usage(format!(
                "--block-size: a {kind} {name} disk has no blocks"
            )));
        }
    };
    let fits = size.is_power_of_two() && (least..=256 * MIB).contains(&size);
    match u32::try_from(size) {
        Ok(size) if fits => Ok(Some(size)),
        _ => {
            let name = format_name(format);
            Err(usage(format!(
                "--block-size: a {name} block is a power of two from {range}"
            )))
        }
    }
}
