//! What LUN 0 lies on, and where the guest's data is.

use crate::medium::HeapMedium;
use disk::backing::SimBacking;
use disk::ops::{check, create_on, open};
use disk::{CreateOptions, DiskKind, Format, OpenOptions, VirtualDisk};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use vid::{Partition, PartitionConfig, ProcessorMode, RamRange};
use vmbus::client::Loopback;
use vmbus::protocol::PAGE_SIZE;
use vmbus::ring::GuestPages;
use vsp::storage::DiskMedium;
use vsp::storage::medium::Medium;
use vsp::storage::memory::{CopiedMemory, GuestMemory};

/// Bytes of LUN 0 when it is on the heap.
const HEAP_SIZE: usize = 128 << 10;
/// Bytes of LUN 0 in a file, and how many of them have blocks at first.
const FILE_SIZE: u64 = 4 << 20;
const WRITTEN: usize = 64 << 10;
/// Granularity in which files are put together.
const CHUNK: usize = 4096;

/// What LUN 0 lies on, and where the guest's data is.
pub(super) trait Place {
    /// The guest's data, for the controller.
    fn memory(&self) -> Arc<dyn GuestMemory>;

    /// LUN 0.
    fn medium(&self) -> Arc<dyn Medium>;

    /// What the host puts at LUN 2.
    fn another(&self) -> Arc<dyn Medium>;

    /// The guest stores `bytes`.
    fn store(&self, address: u64, bytes: &[u8]);

    /// What the guest has in its memory.
    fn load(&self, address: u64, bytes: &mut [u8]);

    /// The host changes the size of LUN 0, or of what it lies on.
    fn change(&self, choice: u8);

    /// LUN 0 can be read again, as far as `change` was in the way.
    fn restore(&self);

    /// What LUN 0 holds.
    fn contents(&self, offset: u64, bytes: &mut [u8]);

    /// All is over, and nobody uses LUN 0 any more.
    fn end(self: Box<Self>);
}

/// Everything on the heap: data is copied, by threads.
pub(super) struct Heap {
    loopback: Arc<Loopback>,
    disk: Arc<HeapMedium>,
}

impl Heap {
    pub(super) fn new(loopback: &Arc<Loopback>) -> Self {
        Self {
            loopback: loopback.clone(),
            disk: HeapMedium::new(HEAP_SIZE as u64, 512, false, false),
        }
    }
}

impl Place for Heap {
    fn memory(&self) -> Arc<dyn GuestMemory> {
        Arc::new(CopiedMemory(self.loopback.clone()))
    }

    fn medium(&self) -> Arc<dyn Medium> {
        self.disk.clone()
    }

    fn another(&self) -> Arc<dyn Medium> {
        HeapMedium::new(64 << 10, 512, false, false)
    }

    fn store(&self, address: u64, bytes: &[u8]) {
        let stored = self.loopback.memory().write(address as usize, bytes);
        assert!(stored.is_ok());
    }

    fn load(&self, address: u64, bytes: &mut [u8]) {
        let loaded = self.loopback.memory().read(address as usize, bytes);
        assert!(loaded.is_ok());
    }

    fn change(&self, choice: u8) {
        self.disk.resize(u64::from(choice) << 10);
    }

    fn restore(&self) {
        self.disk.resize(HEAP_SIZE as u64);
    }

    fn contents(&self, offset: u64, bytes: &mut [u8]) {
        let contents = self.disk.contents(offset as usize, bytes.len());
        bytes.copy_from_slice(&contents);
    }

    fn end(self: Box<Self>) {}
}

/// The guest's data in a partition's memory and LUN 0 in a file without a
/// name, so that the host's kernel moves data between them. The file is in
/// memory, or in the folder for temporary files, whose file system may be one
/// that tells what it has in its cache.
pub(super) struct InFile {
    partition: Arc<Partition>,
    format: Format,
    file: File,
    disk: Arc<dyn VirtualDisk>,
}

impl InFile {
    /// `kind` tells the format (modulo 3), and whether the file is in memory
    /// (the next bit).
    pub(super) fn new(pages: u64, kind: u8) -> Self {
        let ram = vec![RamRange {
            gpa: 0,
            size: pages * PAGE_SIZE,
        }];
        let partition = Partition::new(&PartitionConfig {
            processors: 1,
            ram,
            processor_mode: ProcessorMode::Interpret,
        });
        let formats = [Format::Raw, Format::Vhdx, Format::Vhd];
        let which = usize::from(kind) % formats.len();
        let in_memory = usize::from(kind) / formats.len() % 2 == 0;
        let file = if in_memory { memory() } else { temporary() };
        Template::of(which, formats[which]).write_to(&file);
        let disk = open(&path(&file), &options(formats[which])).expect("a new disk");
        Self {
            partition: partition.expect("a partition").0,
            format: formats[which],
            file,
            disk,
        }
    }
}

fn options(format: Format) -> OpenOptions {
    OpenOptions {
        format: Some(format),
        ..OpenOptions::default()
    }
}

/// A file in memory.
fn memory() -> File {
    let file = memfd_create("disk", MemfdFlags::CLOEXEC);
    file.expect("a file in memory").into()
}

/// A file in the folder for temporary files.
fn temporary() -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::open(std::env::temp_dir(), flags, Mode::RUSR | Mode::WUSR);
    file.expect("a temporary file").into()
}

/// A way to open a file that has no name.
fn path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

impl Place for InFile {
    fn memory(&self) -> Arc<dyn GuestMemory> {
        self.partition.clone()
    }

    fn medium(&self) -> Arc<dyn Medium> {
        Arc::new(DiskMedium::new(self.disk.clone()))
    }

    fn another(&self) -> Arc<dyn Medium> {
        self.medium()
    }

    fn store(&self, address: u64, bytes: &[u8]) {
        let stored = self.partition.write_guest(address, bytes);
        assert!(stored.is_ok());
    }

    fn load(&self, address: u64, bytes: &mut [u8]) {
        let loaded = self.partition.read_guest(address, bytes);
        assert!(loaded.is_ok());
    }

    /// A raw disk's file is cut; others grow.
    fn change(&self, choice: u8) {
        if self.format == Format::Raw {
            let cut = self.file.set_len(u64::from(choice) << 12);
            cut.expect("a file that can be cut");
        } else {
            // It may be larger already.
            let _ = self.disk.resize(FILE_SIZE + (u64::from(choice) << 16));
        }
    }

    fn restore(&self) {
        if self.format == Format::Raw {
            self.file.set_len(FILE_SIZE).expect("room for a file");
        }
    }

    fn contents(&self, offset: u64, bytes: &mut [u8]) {
        let read = self.disk.read(offset, &mut [IoSliceMut::new(bytes)]);
        read.expect("a disk that can be read");
    }

    fn end(self: Box<Self>) {
        let Self {
            format, file, disk, ..
        } = *self;
        assert_eq!(Arc::strong_count(&disk), 1, "somebody has the disk still");
        disk.close().expect("a disk that can be closed");
        drop(disk);
        let report = check(&path(&file), Some(format)).expect("a disk");
        assert!(report.is_clean(), "{report:?}");
    }
}

/// A new disk's file: the chunks that are not zeros.
struct Template {
    size: u64,
    chunks: Vec<(u64, Vec<u8>)>,
}

impl Template {
    /// Made once for each format.
    fn of(which: usize, format: Format) -> &'static Self {
        static TEMPLATES: [OnceLock<Template>; 3] = [const { OnceLock::new() }; 3];
        TEMPLATES[which].get_or_init(|| Self::new(format))
    }

    fn new(format: Format) -> Self {
        let kind = match format {
            Format::Raw => DiskKind::Fixed,
            _ => DiskKind::Dynamic,
        };
        let mut options = CreateOptions::new(format, kind, FILE_SIZE);
        options.block_size = match format {
            Format::Raw => None,
            Format::Vhdx => Some(1 << 20),
            Format::Vhd => Some(64 << 10),
        };
        let backing = Arc::new(SimBacking::new());
        create_on(&*backing, &options, None).expect("a new disk");
        let disk: Box<dyn VirtualDisk> = match format {
            Format::Raw => {
                Box::new(disk::RawDisk::new(backing.clone(), 512, true).expect("a disk"))
            }
            Format::Vhdx => {
                Box::new(disk::Vhdx::open(backing.clone(), &|_| Ok(None)).expect("a disk"))
            }
            Format::Vhd => {
                Box::new(disk::Vhd::open(backing.clone(), &|_| Ok(None)).expect("a disk"))
            }
        };
        let data: Vec<u8> = (1..=251).cycle().take(WRITTEN).collect();
        let written = disk.write(0, &[IoSlice::new(&data)], true);
        written.and_then(|()| disk.close()).expect("a disk");
        let bytes = backing.to_bytes();
        let chunks = bytes.chunks(CHUNK).zip(0..);
        let used = chunks.filter(|(chunk, _)| chunk.iter().any(|&byte| byte != 0));
        Self {
            size: bytes.len() as u64,
            chunks: used
                .map(|(chunk, at)| (at * CHUNK as u64, chunk.to_vec()))
                .collect(),
        }
    }

    fn write_to(&self, file: &File) {
        file.set_len(self.size).expect("room for a file");
        for (at, chunk) in &self.chunks {
            file.write_all_at(chunk, *at).expect("room for a file");
        }
    }
}
