//! The commands that start the guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::qemu::Qemu;

/// Memory of both guests, in MiB.
const MEMORY: &str = "512";
/// A panic ends the guest; mitigations are as the kernel chooses.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 earlyprintk=ttyS0,115200 panic=-1";

/// What both guests are given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) processors: u32,
}

/// Partita's executable and how to start it.
#[derive(Debug, Clone)]
pub(crate) struct Partita {
    pub(crate) program: PathBuf,
    pub(crate) processor_mode: Option<String>,
}

impl Partita {
    /// The command for a guest.
    pub(crate) fn command(&self, guest: Guest<'_>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("run");
        command.arg("--kernel").arg(guest.kernel);
        command.arg("--initrd").arg(guest.initrd);
        command.args(["--cmdline", KERNEL_COMMAND_LINE, "--memory", MEMORY]);
        command.args(["--processors", &guest.processors.to_string()]);
        command.arg("--no-reboot");
        if let Some(mode) = &self.processor_mode {
            command.args(["--processor-mode", mode]);
        }
        command
    }
}

/// The command for a guest of QEMU's.
pub(crate) fn qemu(qemu: &Qemu, guest: Guest<'_>) -> Command {
    let mut command = qemu.command();
    command.args(["-accel", "tcg", "-cpu", "max", "-m", MEMORY]);
    command.args(["-smp", &guest.processors.to_string()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(guest.kernel);
    command.arg("-initrd").arg(guest.initrd);
    command.args(["-append", KERNEL_COMMAND_LINE]);
    command
}
