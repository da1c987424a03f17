//! Examples and exit statuses in the help of `partita disk`.

pub(crate) const DISK: &str = "\
Examples:
  partita disk create root.vhdx --size 10G
  partita disk info root.vhdx
  partita disk convert root.vhdx root.vhd --type fixed

A disk that a VM or another program uses is refused. Each command may be interrupted or killed at
any time: a new file appears when it is complete, and a changed one is always a valid disk.

Exit status:
  0    done; with check, nothing is wrong
  1    an error, told in one line; with check, the disk has errors
  2    wrong usage
  130  stopped by SIGINT (Ctrl-C); 143 by SIGTERM";

pub(super) const CREATE: &str = "\
Examples:
  partita disk create root.vhdx --size 10G
  partita disk create data.vhdx --size 1T --type fixed --logical-sector-size 4096
  partita disk create small.vhdx --size 4G --block-size 1M
  partita disk create today.vhdx --parent root.vhdx
  partita disk create old.vhd --size 20G --type fixed
  partita disk create plain.raw --size 2G";

pub(super) const INFO: &str = "\
Examples:
  partita disk info root.vhdx
  partita disk info today.vhdx --chain
  partita disk info --format raw /dev/vg/guest --json";

pub(super) const CHECK: &str = "\
Examples:
  partita disk check root.vhdx
  partita disk check root.vhdx --json

All structures are checked, and that the parents of a differencing disk are there, sound and
unchanged. Notes tell of what is unusual but harmless, like a log that waits to be replayed.

Exit status:
  0  nothing is wrong
  1  the disk has errors, or it could not be read
  2  wrong usage";

pub(super) const CONVERT: &str = "\
Examples:
  partita disk convert debian.raw root.vhdx
  partita disk convert root.vhdx root.vhd --type fixed
  partita disk convert today.vhdx flat.vhdx --block-size 1M
  partita disk convert --source-format raw image.bin root.vhdx

The target appears when it is complete. Space that is all zeros takes none in it.";

pub(super) const RESIZE: &str = "\
Examples:
  partita disk resize root.vhdx 20G
  partita disk resize root.vhdx +5G

The new part reads as zeros. Disks do not shrink; a running VM's disk is grown by its control
socket.";

pub(super) const COMPACT: &str = "\
Examples:
  partita disk compact root.vhdx
  partita disk compact root.vhdx --json --progress

Blocks that are all zeros, and space that guests have trimmed, are given back. Guests see no
change.";

pub(super) const MERGE: &str = "\
Examples:
  partita disk merge today.vhdx --delete
  partita disk merge today.vhdx --json

Afterwards the parent shows what FILE showed. Other children of the same parent can no longer be
used, and say so. After an interruption the merge can be done again.";

pub(super) const REBASE: &str = "\
Examples:
  partita disk rebase today.vhdx --parent fresh.vhdx
  partita disk rebase today.vhdx --parent moved/root.vhdx --reference-only";
