//! `partita quickstart`: from nothing to a shell in a child partition.

mod apt;
mod check;
mod deb;
mod disk;
mod initramfs;
mod modules;
mod packages;
mod progress;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use vmwp::{Console, DiskConfig, Image, StopRequest, VmConfig};

use self::check::Expected;
use self::disk::Temporary;
use self::packages::{Fetched, Packages, Wanted, cache_folder};
use self::progress::Progress;
use crate::cli::{EXIT_ERROR, EXIT_OK, QuickstartArguments, report};
use crate::run::exit_code;
use crate::size;

/// Names of files in the cache. The number grows with each change to what modules are taken.
const KERNEL: &str = "vmlinuz";
const MODULES: &str = "modules-1.cpio";
const BUSYBOX: &str = "busybox";

/// Fetches, builds and boots; gives the exit status.
pub(crate) fn main(arguments: &QuickstartArguments) -> ExitCode {
    let progress = Progress::new();
    let result = start(arguments, &progress);
    result.unwrap_or_else(|error| report(&format!("{error:#}")))
}

fn start(arguments: &QuickstartArguments, progress: &Progress) -> Result<ExitCode> {
    let cache = cache_folder(arguments.cache.as_deref())?;
    let (kernel, initrd) = prepare(&cache, arguments, progress)?;
    if arguments.check {
        let disk = Temporary::new()?;
        let cmdline = initramfs::check_cmdline();
        let config = configure(arguments, &kernel, initrd, cmdline, disk.path());
        return check(arguments, config, &disk, kernel.package, progress);
    }
    let disk = disk::kept(&cache, arguments.fresh, progress)?;
    let cmdline = initramfs::shell_cmdline(terminal());
    let config = configure(arguments, &kernel, initrd, cmdline, disk);
    progress.note("Starting the VM; Ctrl-A x ends it, Ctrl-A h shows the keys");
    Ok(exit_code(vmwp::run(config)))
}

fn unpack_kernel(package: &Path) -> Result<Vec<Vec<u8>>> {
    let kernel = modules::unpack(package)?;
    Ok(vec![kernel.image, kernel.modules])
}

fn unpack_busybox(package: &Path) -> Result<Vec<Vec<u8>>> {
    let is_busybox = |path: &str| matches!(path, "bin/busybox" | "usr/bin/busybox");
    let file = deb::extract(package, is_busybox)?.into_values().next();
    Ok(vec![file.context("it does not contain BusyBox")?])
}

/// The kernel, and the initial RAM disk for it.
fn prepare(
    cache: &Path,
    arguments: &QuickstartArguments,
    progress: &Progress,
) -> Result<(Fetched, Vec<u8>)> {
    let mut packages = Packages::new(cache, progress);
    let kernel = packages.fetch(&Wanted {
        name: &arguments.kernel_package,
        prefix: "linux-image-",
        files: &[KERNEL, MODULES],
        unpack: unpack_kernel,
    })?;
    let busybox = packages.fetch(&Wanted {
        name: "busybox-static",
        prefix: "busybox-static",
        files: &[BUSYBOX],
        unpack: unpack_busybox,
    })?;
    let initrd = initramfs::build(&busybox.read(BUSYBOX)?, &kernel.read(MODULES)?)?;
    progress.note(&format!(
        "Built the initial RAM disk: {}",
        size::display(initrd.len() as u64)
    ));
    let machine = &arguments.machine;
    progress.note(&format!(
        "VM: {}, {} of memory, {} processor{}",
        kernel.package,
        size::display(machine.memory),
        machine.processors,
        if machine.processors == 1 { "" } else { "s" }
    ));
    Ok((kernel, initrd))
}

fn configure(
    arguments: &QuickstartArguments,
    kernel: &Fetched,
    initrd: Vec<u8>,
    cmdline: String,
    disk: PathBuf,
) -> VmConfig {
    let machine = &arguments.machine;
    VmConfig {
        disks: vec![DiskConfig::disk(disk)],
        kernel: Image::File(kernel.path(KERNEL)),
        initrd: Some(Image::Memory("initramfs".to_owned(), Arc::new(initrd))),
        cmdline: Some(cmdline),
        memory_bytes: machine.memory,
        processors: machine.processors,
        platform: machine.platform,
        processor_mode: machine.processor_mode,
        test_device: false,
        no_reboot: arguments.check,
        control: None,
        console: Console::Stdio,
        stop: StopRequest::new(),
    }
}

/// Kind and size of the person's terminal.
fn terminal() -> Option<(String, u16, u16)> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdin).ok()?;
    let kind = std::env::var("TERM").unwrap_or_default();
    Some((kind, size.ws_row, size.ws_col))
}

fn check(
    arguments: &QuickstartArguments,
    config: VmConfig,
    disk: &Temporary,
    kernel_package: String,
    progress: &Progress,
) -> Result<ExitCode> {
    let expected = Expected {
        kernel_package,
        processors: config.processors,
        memory_bytes: config.memory_bytes,
        timeout: Duration::from_secs(arguments.timeout),
    };
    let outcome = check::run(config, disk, &expected, progress)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        print!("{}", outcome.table());
    }
    if outcome.ok {
        return Ok(ExitCode::from(EXIT_OK));
    }
    eprintln!("partita: these proofs failed: {}", outcome.failures());
    Ok(ExitCode::from(EXIT_ERROR))
}
