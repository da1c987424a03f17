//! Arguments of `partita disk`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use disk::{DiskKind, Format};

use super::help;
use super::size::{Change, parse_change, parse_size};

/// Arguments of `partita disk`.
#[derive(Debug, Args)]
#[command(arg_required_else_help = false)]
pub(crate) struct DiskArguments {
    #[command(subcommand)]
    pub(super) command: DiskCommand,
}

/// What to do with a disk.
#[derive(Debug, Subcommand)]
pub(super) enum DiskCommand {
    /// Make an empty disk
    #[command(after_help = help::CREATE)]
    Create(CreateArguments),
    /// Tell what a file is, without reading its contents
    #[command(after_help = help::INFO)]
    Info(InfoArguments),
    /// Check every structure of a disk; nothing is written
    #[command(after_help = help::CHECK)]
    Check(ExistingArguments),
    /// Copy a disk, with all its parents, into a new file of another format or type
    #[command(after_help = help::CONVERT)]
    Convert(ConvertArguments),
    /// Grow a disk that no VM uses
    #[command(after_help = help::RESIZE)]
    Resize(ResizeArguments),
    /// Make the file of a dynamic or differencing disk as small as its contents allow
    #[command(after_help = help::COMPACT)]
    Compact(CompactArguments),
    /// Write what a differencing disk holds into its parent
    #[command(after_help = help::MERGE)]
    Merge(MergeArguments),
    /// Give a differencing disk another parent
    #[command(after_help = help::REBASE)]
    Rebase(RebaseArguments),
}

/// How results are told.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct ResultArguments {
    /// Print the result as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// How an operation that may take long tells of itself.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct ProgressArguments {
    /// Tell progress also where standard error is no terminal, a line each second
    #[arg(long)]
    pub(super) progress: bool,
}

/// How an operation that may take long, and has a result, tells of both.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct ReportArguments {
    #[command(flatten)]
    pub(super) result: ResultArguments,
    #[command(flatten)]
    pub(super) progress: ProgressArguments,
}

/// What a new file shall be, besides its size.
#[derive(Debug, Clone, Args)]
pub(super) struct LayoutArguments {
    /// Format: vhdx, vhd or raw [default: as the new file's name tells]
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    pub(super) format: Option<Format>,
    /// How space is kept: fixed, dynamic or differencing [default: dynamic; raw is fixed; with --parent
    /// differencing]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_kind)]
    pub(super) kind: Option<DiskKind>,
    /// Unit in which space is taken: a power of two, VHDX 1M to 256M [default: 32M; differencing 2M],
    /// VHD 64K to 256M [default: 2M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) block_size: Option<u64>,
    /// Sector in which guests address the disk: 512 or 4096 [default: the source's or parent's, else 512]
    #[arg(long, value_name = "BYTES", value_parser = parse_sector)]
    pub(super) logical_sector_size: Option<u32>,
    /// Sector that guests are told the medium writes best: 512 or 4096 [default: 4096]
    #[arg(long, value_name = "BYTES", value_parser = parse_sector)]
    pub(super) physical_sector_size: Option<u32>,
}

/// Arguments of `partita disk create`.
#[derive(Debug, Args)]
pub(super) struct CreateArguments {
    /// The new file; nothing may have this name yet
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Size that a guest sees: a number with B, K, M, G or T [default: the parent's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) size: Option<u64>,
    /// Parent of a differencing disk, in the same format
    #[arg(long, value_name = "FILE")]
    pub(super) parent: Option<PathBuf>,
    #[command(flatten)]
    pub(super) layout: LayoutArguments,
    #[command(flatten)]
    pub(super) report: ReportArguments,
}

/// A disk that exists.
#[derive(Debug, Args)]
pub(super) struct ExistingArguments {
    /// The disk
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Format: vhdx, vhd or raw [default: as the file's name tells; never as its contents tell]
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    pub(super) format: Option<Format>,
    #[command(flatten)]
    pub(super) result: ResultArguments,
}

/// Arguments of `partita disk info`.
#[derive(Debug, Args)]
pub(super) struct InfoArguments {
    #[command(flatten)]
    pub(super) disk: ExistingArguments,
    /// Find and describe all parents too
    #[arg(long)]
    pub(super) chain: bool,
}

/// Arguments of `partita disk convert`.
#[derive(Debug, Args)]
pub(super) struct ConvertArguments {
    /// The disk to copy
    #[arg(value_name = "SOURCE")]
    pub(super) source: PathBuf,
    /// The new file; nothing may have this name yet
    #[arg(value_name = "TARGET")]
    pub(super) target: PathBuf,
    /// Format of SOURCE [default: as its name tells]
    #[arg(long, value_name = "FORMAT", value_parser = parse_format)]
    pub(super) source_format: Option<Format>,
    /// Size that a guest sees, at least the source's: a number with B, K, M, G or T
    /// [default: the source's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) size: Option<u64>,
    #[command(flatten)]
    pub(super) layout: LayoutArguments,
    #[command(flatten)]
    pub(super) report: ReportArguments,
}

/// Arguments of `partita disk resize`.
#[derive(Debug, Args)]
pub(super) struct ResizeArguments {
    #[command(flatten)]
    pub(super) disk: ExistingArguments,
    /// The new size, or with a plus sign how much to add: a number with B, K, M, G or T
    #[arg(value_name = "SIZE", value_parser = parse_change)]
    pub(super) size: Change,
}

/// Arguments of `partita disk compact`.
#[derive(Debug, Args)]
pub(super) struct CompactArguments {
    #[command(flatten)]
    pub(super) disk: ExistingArguments,
    #[command(flatten)]
    pub(super) progress: ProgressArguments,
}

/// Arguments of `partita disk merge`.
#[derive(Debug, Args)]
pub(super) struct MergeArguments {
    /// The differencing disk
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Delete FILE when its parent holds everything
    #[arg(long)]
    pub(super) delete: bool,
    #[command(flatten)]
    pub(super) report: ReportArguments,
}

/// Arguments of `partita disk rebase`.
#[derive(Debug, Args)]
pub(super) struct RebaseArguments {
    /// The differencing disk
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// The new parent
    #[arg(long, value_name = "FILE")]
    pub(super) parent: PathBuf,
    /// Change only the reference: the new parent has the old one's contents. Without this, what
    /// differs is copied into FILE, so that its guest sees no change
    #[arg(long)]
    pub(super) reference_only: bool,
    #[command(flatten)]
    pub(super) report: ReportArguments,
}

fn parse_format(text: &str) -> Result<Format, String> {
    match text.to_ascii_lowercase().as_str() {
        "vhdx" => Ok(Format::Vhdx),
        "vhd" => Ok(Format::Vhd),
        "raw" => Ok(Format::Raw),
        _ => Err("it is no known format; give vhdx, vhd or raw".to_owned()),
    }
}

fn parse_kind(text: &str) -> Result<DiskKind, String> {
    match text.to_ascii_lowercase().as_str() {
        "fixed" => Ok(DiskKind::Fixed),
        "dynamic" => Ok(DiskKind::Dynamic),
        "differencing" => Ok(DiskKind::Differencing),
        _ => Err("it is no known type; give fixed, dynamic or differencing".to_owned()),
    }
}

fn parse_sector(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" | "4K" | "4k" => Ok(4096),
        _ => Err("it is no sector size; give 512 or 4096".to_owned()),
    }
}
