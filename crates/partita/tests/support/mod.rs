//! What the end-to-end tests share: packages, VMs and their consoles.

pub(crate) mod control;
pub(crate) mod daemons;
pub(crate) mod disks;
pub(crate) mod initramfs;
pub(crate) mod iso;
pub(crate) mod kernel;
pub(crate) mod linux;
pub(crate) mod matrix;
pub(crate) mod modules;
pub(crate) mod packages;
pub(crate) mod terminal;
pub(crate) mod tools;
pub(crate) mod tree;
pub(crate) mod turn;
pub(crate) mod vm;
