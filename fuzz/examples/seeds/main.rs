//! Writes the seed corpora of all targets: `cargo run --example seeds -- DIR`
//! fills DIR/TARGET for every target (by default `corpus`, where cargo-fuzz
//! looks for them).

mod bus;
mod device;
mod hypercall;
mod image;
mod interpreter;
mod loader;
mod parent;
mod recorder;

use partita_fuzz::component::Component;
use std::path::{Path, PathBuf};

/// Where the seeds of one target go.
struct Corpus {
    directory: PathBuf,
    count: usize,
}

impl Corpus {
    fn new(root: &Path, target: &str) -> std::io::Result<Self> {
        let directory = root.join(target);
        std::fs::create_dir_all(&directory)?;
        Ok(Self {
            directory,
            count: 0,
        })
    }

    fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let path = self.directory.join(format!("seed-{:05}", self.count));
        self.count += 1;
        std::fs::write(path, bytes)
    }
}

fn main() -> std::io::Result<()> {
    let root = std::env::args_os()
        .nth(1)
        .map_or_else(|| "corpus".into(), PathBuf::from);
    let mut hypercall = Corpus::new(&root, "hypercall")?;
    hypercall::seeds(&mut hypercall)?;
    parent::seeds(&mut hypercall)?;
    interpreter::seeds(&mut Corpus::new(&root, "interpreter")?)?;
    loader::bzimage_seeds(&mut Corpus::new(&root, "loader_bzimage")?)?;
    loader::elf_seeds(&mut Corpus::new(&root, "loader_elf")?)?;
    loader::multiboot_seeds(&mut Corpus::new(&root, "loader_multiboot")?)?;
    bus::control_seeds(&mut Corpus::new(&root, "vmbus_control")?)?;
    bus::ring_seeds(&mut Corpus::new(&root, "vmbus_ring")?)?;
    device::scsi_seeds(&mut Corpus::new(&root, "scsi")?)?;
    device::storage_seeds(&mut Corpus::new(&root, "storage")?)?;
    device::storage_file_seeds(&mut Corpus::new(&root, "storage_file")?)?;
    for (_, target) in Component::ALL {
        device::component_seeds(&mut Corpus::new(&root, target)?)?;
    }
    image::vhd_seeds(&mut Corpus::new(&root, "vhd_open")?)?;
    image::vhdx_seeds(&mut Corpus::new(&root, "vhdx_open")?)
}
