//! The commands that start the guests, as far as all have it in common.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::options::Common;
use super::qemu::Qemu;

/// Memory of a guest, in MiB.
const MEMORY: &str = "512";

/// What both sides give their guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) cmdline: &'a str,
    pub(crate) processors: u32,
}

/// Partita's executable and how to start it.
#[derive(Debug, Clone)]
pub(crate) struct Partita {
    program: PathBuf,
    processor_mode: Option<String>,
}

impl Partita {
    /// As the options say, or the one that was `built`.
    pub(crate) fn of(options: &Common, built: &Path) -> Self {
        Self {
            program: options.partita.clone().unwrap_or_else(|| built.to_owned()),
            processor_mode: options.processor_mode.clone(),
        }
    }

    /// The command for a guest.
    pub(crate) fn command(&self, guest: Guest<'_>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("run");
        command.arg("--kernel").arg(guest.kernel);
        command.arg("--initrd").arg(guest.initrd);
        command.args(["--cmdline", guest.cmdline, "--memory", MEMORY]);
        command.args(["--processors", &guest.processors.to_string()]);
        command.arg("--no-reboot");
        if let Some(mode) = &self.processor_mode {
            command.args(["--processor-mode", mode]);
        }
        command
    }
}

impl Qemu {
    /// The command for a guest.
    pub(crate) fn run(&self, guest: Guest<'_>) -> Command {
        let mut command = self.command();
        command.args(["-accel", "tcg", "-cpu", "max", "-m", MEMORY]);
        command.args(["-smp", &guest.processors.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args(["-serial", "stdio", "-no-reboot"]);
        command.arg("-kernel").arg(guest.kernel);
        command.arg("-initrd").arg(guest.initrd);
        command.args(["-append", guest.cmdline]);
        command
    }
}
