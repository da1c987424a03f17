//! `partita quickstart`: from nothing to a shell in a child partition.

mod apt;
mod check;
mod deb;
mod initramfs;
mod packages;
mod progress;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use vmwp::{Console, Image, StopRequest, VmConfig};

use self::check::Expected;
use self::packages::{Packages, cache_folder};
use self::progress::Progress;
use crate::cli::{EXIT_ERROR, EXIT_OK, QuickstartArguments, report};
use crate::run::exit_code;
use crate::size;

/// Fetches, builds and boots; gives the exit status.
pub(crate) fn main(arguments: &QuickstartArguments) -> ExitCode {
    let progress = Progress::new();
    let result = prepare(arguments, &progress).and_then(|(config, kernel)| {
        if arguments.check {
            check(arguments, config, kernel, &progress)
        } else {
            progress.note("Starting the VM; Ctrl-A x ends it, Ctrl-A h shows the keys");
            Ok(exit_code(vmwp::run(config)))
        }
    });
    result.unwrap_or_else(|error| report(&format!("{error:#}")))
}

/// The VM to run, and the name of its kernel's package.
fn prepare(arguments: &QuickstartArguments, progress: &Progress) -> Result<(VmConfig, String)> {
    let cache = cache_folder(arguments.cache.as_deref())?;
    let mut packages = Packages::new(&cache, progress);
    let kernel_name = &arguments.kernel_package;
    let kernel = packages.fetch(kernel_name, "linux-image-", "vmlinuz", |path| {
        path.starts_with("boot/vmlinuz-")
    })?;
    let busybox = packages.fetch("busybox-static", "busybox-static", "busybox", |path| {
        matches!(path, "bin/busybox" | "usr/bin/busybox")
    })?;
    let busybox = std::fs::read(&busybox.path)
        .with_context(|| format!("{} cannot be read", busybox.path.display()))?;
    let initrd = initramfs::build(&busybox)?;
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
    let cmdline = if arguments.check {
        initramfs::check_cmdline()
    } else {
        initramfs::shell_cmdline(terminal())
    };
    let config = VmConfig {
        disks: Vec::new(),
        kernel: Image::File(kernel.path),
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
    };
    Ok((config, kernel.package))
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
    kernel_package: String,
    progress: &Progress,
) -> Result<ExitCode> {
    let expected = Expected {
        kernel_package,
        processors: config.processors,
        memory_bytes: config.memory_bytes,
        timeout: Duration::from_secs(arguments.timeout),
    };
    let outcome = check::run(config, &expected, progress)?;
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
