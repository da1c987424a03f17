//! What the guests of both sides are given.

use std::ffi::OsString;
use std::path::Path;

use crate::results::Side;

/// A panic ends the guest; everything else is as the kernel chooses.
pub(crate) const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1";

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

    /// The options that give its guest the disk.
    pub(crate) fn disk(self, file: &Path) -> Vec<OsString> {
        match self {
            Self::Partita => vec!["--disk".into(), file.into()],
            Self::Qemu => {
                // A comma in a value is written twice.
                let file = file.display().to_string().replace(',', ",,");
                vec![
                    "-drive".into(),
                    format!("if=none,id=disk,format=raw,cache=writeback,file={file}").into(),
                    "-device".into(),
                    "virtio-blk-pci,drive=disk".into(),
                ]
            }
        }
    }
}
