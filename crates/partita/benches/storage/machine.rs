//! The commands that start the guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::qemu::Qemu;
use crate::results::Side;

/// Memory of both guests, in MiB.
const MEMORY: &str = "512";
/// A panic ends the guest; everything else is as the kernel chooses.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1";

/// What SCSI disks need, with what it builds on before it.
const SCSI_DISKS: [&str; 9] = [
    "scsi_common",
    "scsi_mod",
    "crct10dif_common",
    "crct10dif_generic",
    "crc-t10dif",
    "crc64",
    "crc64-rocksoft_generic",
    "crc64-rocksoft",
    "t10-pi",
];

impl Side {
    /// The modules that its disk needs, in the order in which they are to be loaded.
    pub(crate) fn modules(self) -> Vec<&'static str> {
        match self {
            Self::Partita => {
                let own = ["sd_mod", "hv_vmbus", "scsi_transport_fc", "hv_storvsc"];
                [&SCSI_DISKS[..], &own[..]].concat()
            }
            Self::Qemu => vec![
                "virtio_ring",
                "virtio",
                "virtio_pci_legacy_dev",
                "virtio_pci_modern_dev",
                "virtio_pci",
                "virtio_blk",
            ],
        }
    }

    /// Where its guest finds the disk.
    pub(crate) fn device(self) -> &'static str {
        match self {
            Self::Partita => "/dev/sda",
            Self::Qemu => "/dev/vda",
        }
    }
}

/// What a guest is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: &'a Path,
    pub(crate) disk: &'a Path,
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
        command.arg("--disk").arg(guest.disk);
        command.args(["--cmdline", KERNEL_COMMAND_LINE, "--memory", MEMORY]);
        command.args(["--processors", "1", "--no-reboot"]);
        if let Some(mode) = &self.processor_mode {
            command.args(["--processor-mode", mode]);
        }
        command
    }
}

/// The command for a guest of QEMU's.
pub(crate) fn qemu(qemu: &Qemu, guest: Guest<'_>) -> Command {
    let mut command = qemu.command();
    command.args(["-accel", "tcg", "-cpu", "max", "-m", MEMORY, "-smp", "1"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(guest.kernel);
    command.arg("-initrd").arg(guest.initrd);
    command.args(["-append", KERNEL_COMMAND_LINE]);
    // A comma in a value is written twice.
    let file = guest.disk.display().to_string().replace(',', ",,");
    command.arg("-drive");
    command.arg(format!(
        "if=none,id=disk,format=raw,cache=writeback,file={file}"
    ));
    command.args(["-device", "virtio-blk-pci,drive=disk"]);
    command
}
