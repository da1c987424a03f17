//! Loading of kernels: from the bytes of files to a [`LoadPlan`].
//!
//! Nothing here touches guest memory or a processor; the worker carries the plan out. All input
//! is untrusted: whatever the files contain, the result is a plan whose segments lie in the VM's
//! RAM, or a [`LoadError`].
//!
//! Formats: bzImage (its kernel is unpacked here, not in the guest, and entered in 64-bit mode),
//! ELF with a PVH note, ELF64 Linux kernels without one, and multiboot-1 images.

mod bzimage;
mod elf;
mod entry;
mod error;
pub mod layout;
mod linux;
mod multiboot;
mod plan;
mod pvh;
pub mod unpack;

use std::sync::Arc;

pub use self::entry::{EntryProtocol, EntryState, SegmentRegister, TableRegister};
pub use self::error::{Input, LoadError};
pub use self::layout::MemoryMap;
pub use self::plan::{LoadPlan, Segment, SegmentData};

use self::elf::{ElfKernel, LoadSegment};
use self::linux::LinuxLimits;
use self::plan::PlanBuilder;

/// The command line of a Linux kernel for which the user gave none: its console is the first
/// serial port.
pub const DEFAULT_LINUX_CMDLINE: &str = "console=ttyS0";

/// What to load, and the machine to load it for.
#[derive(Clone, Copy, Debug)]
pub struct BootConfig<'a> {
    /// Contents of the kernel file.
    pub kernel: &'a [u8],
    /// Name of the kernel file, which a multiboot image gets as its first argument.
    pub kernel_name: &'a str,
    /// Contents of the initial RAM disk, or of the module for a multiboot image.
    pub initrd: Option<&'a [u8]>,
    /// Command line; [`DEFAULT_LINUX_CMDLINE`] for Linux kernels if absent.
    pub cmdline: Option<&'a str>,
    /// RAM in bytes, see [`MemoryMap::for_size`].
    pub memory_bytes: u64,
    /// Number of virtual processors.
    pub processors: u32,
    /// Whether the VM has the test devices; multiboot images without a module then get the
    /// environment module.
    pub test_device: bool,
}

/// Makes the plan for booting `config`.
///
/// The ACPI tables are not part of the plan: their root pointer is expected at
/// [`layout::ACPI_GPA`], in memory that the guest's memory map calls reserved.
///
/// # Errors
/// [`LoadError`] says in one sentence what is wrong with which input.
pub fn load<'a>(config: &BootConfig<'a>) -> Result<LoadPlan<'a>, LoadError> {
    let plan = PlanBuilder::new(&MemoryMap::for_size(config.memory_bytes));
    let image = config.kernel;
    if bzimage::is_bzimage(image) {
        return load_bzimage(plan, config);
    }
    let header = multiboot::find_header(image);
    let elf = if is_elf(image) {
        Some(elf::parse(image)?)
    } else {
        None
    };
    match (elf, header) {
        (Some(elf), header) if elf.pvh_entry.is_some() || (elf.is_64_bit && header.is_none()) => {
            load_elf(plan, config, &elf)
        }
        (elf, Some(header)) => load_multiboot(plan, config, header, elf),
        (Some(_), None) => Err(LoadError::Unsupported(
            "is a 32-bit ELF file with neither a PVH note nor a multiboot header; give a kernel \
             with one of them",
        )),
        (None, None) => Err(LoadError::NotAKernel {
            looks_like: looks_like(image),
        }),
    }
}

fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

fn load_bzimage<'a>(
    mut plan: PlanBuilder<'a>,
    config: &BootConfig<'a>,
) -> Result<LoadPlan<'a>, LoadError> {
    let image = bzimage::parse(config.kernel)?;
    let kernel = Arc::new(unpack::unpack(image.payload, config.memory_bytes)?);
    if !is_elf(&kernel) {
        return Err(LoadError::Malformed("what it unpacks to is no ELF kernel"));
    }
    let elf = elf::parse(&kernel)?;
    if !elf.is_64_bit {
        return Err(LoadError::Unsupported(
            "is a 32-bit Linux kernel; give an x86-64 one",
        ));
    }
    for segment in &elf.segments {
        let data = SegmentData::Unpacked(Arc::clone(&kernel), segment.file.clone());
        plan.place(segment.gpa, data, segment.memory_size, "the kernel")?;
    }
    let limits = LinuxLimits {
        cmdline: image.cmdline_limit,
        initrd_addr_max: image.initrd_addr_max,
    };
    let cmdline = config.cmdline.unwrap_or(DEFAULT_LINUX_CMDLINE);
    linux::finish(
        plan,
        elf.entry,
        image.header,
        &limits,
        cmdline,
        config.initrd,
    )
}

fn load_elf<'a>(
    mut plan: PlanBuilder<'a>,
    config: &BootConfig<'a>,
    elf: &ElfKernel,
) -> Result<LoadPlan<'a>, LoadError> {
    place_from_file(&mut plan, config.kernel, &elf.segments)?;
    let cmdline = config.cmdline.unwrap_or(DEFAULT_LINUX_CMDLINE);
    match elf.pvh_entry {
        Some(eip) => pvh::finish(plan, eip, cmdline, config.initrd),
        None => {
            let limits = LinuxLimits::default();
            linux::finish(plan, elf.entry, &[], &limits, cmdline, config.initrd)
        }
    }
}

fn load_multiboot<'a>(
    mut plan: PlanBuilder<'a>,
    config: &BootConfig<'a>,
    header: multiboot::Header,
    elf: Option<ElfKernel>,
) -> Result<LoadPlan<'a>, LoadError> {
    let (segments, eip) = multiboot::segments(config.kernel, header, elf)?;
    place_from_file(&mut plan, config.kernel, &segments)?;
    let cmdline = match config.cmdline {
        Some(arguments) if !arguments.is_empty() => format!("{} {arguments}", config.kernel_name),
        _ => config.kernel_name.to_owned(),
    };
    let environment = config
        .test_device
        .then(|| multiboot::environment(config.processors, config.memory_bytes, true));
    let handover = multiboot::Handover {
        cmdline,
        module: config.initrd,
        environment,
    };
    multiboot::finish(plan, eip, &handover)
}

fn place_from_file<'a>(
    plan: &mut PlanBuilder<'a>,
    image: &'a [u8],
    segments: &[LoadSegment],
) -> Result<(), LoadError> {
    for segment in segments {
        let bytes = image.get(segment.file.clone()).unwrap_or_default();
        plan.place(
            segment.gpa,
            SegmentData::Input(bytes),
            segment.memory_size,
            "the kernel",
        )?;
    }
    Ok(())
}

/// A guess at what a file that is no kernel is, for the message.
fn looks_like(image: &[u8]) -> &'static str {
    let starts = |magic: &[u8]| image.starts_with(magic);
    if image.is_empty() {
        "it is empty"
    } else if starts(&[0x1f, 0x8b]) || starts(&[0xfd, b'7', b'z', b'X', b'Z']) {
        "it is a compressed file: unpack it first"
    } else if starts(b"070701") || starts(b"070702") {
        "it is a cpio archive, perhaps the initrd"
    } else if starts(b"MZ") {
        "it is an EFI or DOS program"
    } else if starts(b"QFI\xfb") || starts(b"vhdxfile") || starts(b"conectix") {
        "it is a disk image"
    } else if starts(b"!<arch>") {
        "it is a package or archive: extract the kernel from it"
    } else if image.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) {
        "it is a boot sector or disk image"
    } else {
        "it has no known header"
    }
}

#[cfg(test)]
mod tests;
