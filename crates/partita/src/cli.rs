//! Arguments of the command line, and one-line messages for wrong ones.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use tracing::level_filters::LevelFilter;
use vmwp::config::{MAX_PROCESSORS, MIN_PROCESSORS};
use vmwp::{DiskConfig, Platform, ProcessorMode};

use crate::disk::{self, DiskArguments};
use crate::drives::{parse_disk, parse_dvd};
use crate::log::parse_level;
use crate::size::parse_memory;

/// Exit status: the guest powered off, or everything held.
pub(crate) const EXIT_OK: u8 = 0;
/// Exit status: Partita's own error.
pub(crate) const EXIT_ERROR: u8 = 1;
/// Exit status: wrong usage.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Exit status: the guest crashed.
pub(crate) const EXIT_CRASHED: u8 = 3;

const RUN_EXAMPLES: &str = "\
Examples:
  partita run --kernel vmlinuz --initrd initrd.img
  partita run --kernel vmlinuz --memory 2G --processors 4 --cmdline \"console=ttyS0 quiet\"
  partita run --kernel vmlinuz --initrd initrd.img --disk root.vhdx --cmdline \"root=/dev/sda1\"
  partita run --kernel test.flat --test-device --memory 128M

Keys, if standard input is a terminal:
  Ctrl-A x       end the VM
  Ctrl-A Ctrl-A  send Ctrl-A to the guest
  Ctrl-A h       show these keys

Exit status:
  0  the guest powered off, reset itself with --no-reboot, or was ended with Ctrl-A x
  1  Partita's own error: a file that is missing or wrong, or a VM that cannot go on
  2  wrong usage
  3  the guest crashed: a triple fault, or a panic that it reported
  With --test-device, a guest that writes N to the debug exit port ends with (N << 1) | 1.";

const QUICKSTART_EXAMPLES: &str = "\
Examples:
  partita quickstart
  partita quickstart --check
  partita quickstart --check --json --processors 4
  partita quickstart --kernel-package linux-image-amd64 --memory 1G
  partita quickstart --fresh

The VM's disk is quickstart.vhdx in the cache folder. What is stored on it is there again the next
time; --fresh starts with a new one. With --check the disk is a temporary one.

Exit status:
  0  the guest powered off; with --check, all proofs held
  1  Partita's own error; with --check, a proof failed or the guest did not answer
  2  wrong usage
  3  the guest crashed";

/// Partita runs child partitions whose unmodified guests find the Hyper-V interface, with no
/// hardware virtualization needed.
#[derive(Debug, Parser)]
#[command(name = "partita", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one VM in the foreground, its serial console on standard input and output.
    #[command(after_help = RUN_EXAMPLES)]
    Run(RunArguments),
    /// Fetch a Debian kernel and boot it to a shell, with nothing prepared.
    #[command(after_help = QUICKSTART_EXAMPLES)]
    Quickstart(QuickstartArguments),
    /// Make, examine and change virtual disk files: VHDX, VHD and raw.
    #[command(after_help = disk::EXAMPLES)]
    Disk(DiskArguments),
}

/// Size of the VM.
#[derive(Debug, Clone, Args)]
pub(crate) struct MachineArguments {
    /// Memory: a number with K, M, G or T; a plain number counts MiB
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory)]
    pub(crate) memory: u64,
    /// Virtual processors, 1 to 16
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_processors)]
    pub(crate) processors: u32,
    /// What runs the guest's instructions: auto (the fastest that works here) or software
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = parse_platform)]
    pub(crate) platform: Platform,
    /// How the software processor runs code: interpret, translate, or check (translated and
    /// compared with the interpreter at every step; stops at the first difference; slow, and for
    /// one processor)
    #[arg(long, value_name = "NAME", default_value = "translate", value_parser = parse_processor_mode)]
    pub(crate) processor_mode: ProcessorMode,
}

/// Arguments of `partita run`.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Kernel: a bzImage, an ELF kernel (PVH or x86-64 Linux) or a multiboot-1 image
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,
    /// Initial RAM disk; for a multiboot image, its module
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// Kernel command line; without it a Linux kernel gets "console=ttyS0"
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
    /// Add the devices that kernel test images expect: debug exit, test ports, Hyper-V test device
    #[arg(long)]
    pub(crate) test_device: bool,
    /// End when the guest resets itself, instead of starting it again
    #[arg(long)]
    pub(crate) no_reboot: bool,
    /// Add a disk (VHDX, VHD or raw, by the file's name; repeatable): FILE[,ro][,controller=N][,lun=N]
    #[arg(long = "disk", value_name = "FILE", value_parser = parse_disk)]
    disks: Vec<DiskConfig>,
    /// Add an optical drive with an ISO image, or an empty one (""): [FILE][,controller=N][,lun=N]
    #[arg(long = "dvd", value_name = "FILE", value_parser = parse_dvd)]
    dvds: Vec<DiskConfig>,
    /// Make a control socket at this path
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,
    /// Write events of the VM to the end of this file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Which events to tell: off, error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = parse_level)]
    pub(crate) log_level: LevelFilter,
}

impl RunArguments {
    /// The VM's disks, then its optical drives.
    pub(crate) fn drives(&self) -> Vec<DiskConfig> {
        [&self.disks[..], &self.dvds].concat()
    }
}

/// Arguments of `partita quickstart`.
#[derive(Debug, Args)]
pub(crate) struct QuickstartArguments {
    /// Run proofs inside the guest with nobody at the keyboard, and print a table of them
    #[arg(long)]
    pub(crate) check: bool,
    /// With --check: print the result as JSON
    #[arg(long, requires = "check")]
    pub(crate) json: bool,
    /// Debian package of the kernel
    #[arg(long, value_name = "NAME", default_value = "linux-image-cloud-amd64", value_parser = parse_package)]
    pub(crate) kernel_package: String,
    #[command(flatten)]
    pub(crate) machine: MachineArguments,
    /// Folder for what is fetched [default: $XDG_CACHE_HOME/partita or ~/.cache/partita]
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Start with a new disk; what the old one holds is lost
    #[arg(long, conflicts_with = "check")]
    pub(crate) fresh: bool,
    /// With --check: how many seconds the guest has to finish its proofs
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_timeout)]
    pub(crate) timeout: u64,
}

fn parse_processors(text: &str) -> Result<u32, String> {
    let range = MIN_PROCESSORS..=MAX_PROCESSORS;
    text.parse()
        .ok()
        .filter(|n| range.contains(n))
        .ok_or_else(|| {
            format!("it is not a number of processors from {MIN_PROCESSORS} to {MAX_PROCESSORS}")
        })
}

fn parse_platform(text: &str) -> Result<Platform, String> {
    match text {
        "auto" => Ok(Platform::Auto),
        "software" => Ok(Platform::Software),
        _ => Err("it is no known platform; give auto or software".to_owned()),
    }
}

fn parse_processor_mode(text: &str) -> Result<ProcessorMode, String> {
    match text {
        "interpret" => Ok(ProcessorMode::Interpret),
        "translate" => Ok(ProcessorMode::Translate),
        "check" => Ok(ProcessorMode::Check),
        _ => Err("it is no known mode; give interpret, translate or check".to_owned()),
    }
}

fn parse_timeout(text: &str) -> Result<u64, String> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds| (1..=86_400).contains(seconds));
    seconds.ok_or_else(|| "it is not a number of seconds from 1 to 86400".to_owned())
}

/// Debian policy 5.6.7: lower case letters, digits, plus, minus and full stop.
fn parse_package(text: &str) -> Result<String, String> {
    let first = text
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    if first && text.len() > 1 && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("it is not the name of a Debian package; give one like linux-image-amd64".to_owned())
    }
}

/// Reads the command line. Help and version are printed here; so is what is wrong, in one line.
pub(crate) fn parse() -> Result<Command, ExitCode> {
    Cli::try_parse()
        .map(|cli| cli.command)
        .map_err(|error| match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                // Nobody can be told that standard output is gone.
                let _ = error.print();
                ExitCode::from(EXIT_OK)
            }
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                eprintln!(
                    "partita: no command given; try 'partita quickstart' or 'partita --help'"
                );
                ExitCode::from(EXIT_USAGE)
            }
            _ => {
                eprintln!("partita: {}", one_line(&error.render().to_string()));
                ExitCode::from(EXIT_USAGE)
            }
        })
}

/// Clap explains over several lines; what matters comes before the usage.
fn one_line(rendered: &str) -> String {
    let ends = |line: &str| line.starts_with("Usage:") || line.starts_with("For more information");
    let lines: Vec<&str> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !ends(line))
        .filter(|line| !line.is_empty())
        .collect();
    let text = lines.join(" ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    format!("{text} (see 'partita --help')")
}

/// Prints one line about an error of Partita itself.
pub(crate) fn report(error: &dyn std::fmt::Display) -> ExitCode {
    let text = error.to_string();
    let line: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    eprintln!("partita: {}", line.join(" "));
    ExitCode::from(EXIT_ERROR)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn messages_become_one_line() {
        let text = "error: invalid value 'x' for '--memory <SIZE>': it is not a size\n\n\
                    For more information, try '--help'.\n";
        assert_eq!(
            one_line(text),
            "invalid value 'x' for '--memory <SIZE>': it is not a size (see 'partita --help')"
        );
    }

    #[test]
    fn package_names_cannot_be_options_or_paths() {
        assert!(parse_package("linux-image-cloud-amd64").is_ok());
        for name in ["", "-o", "a b", "../x", "Linux", "pkg=1", "a/b"] {
            assert!(parse_package(name).is_err(), "{name}");
        }
    }
}
