//! What the end-to-end tests share: packages, VMs and their consoles.

pub(crate) mod initramfs;
pub(crate) mod kernel;
pub(crate) mod packages;
pub(crate) mod terminal;
pub(crate) mod turn;
pub(crate) mod vm;
