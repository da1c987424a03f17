//! Multiboot 1: the image header, and the information structure for the image.
//!
//! Fields are those of the Multiboot Specification version 0.6.96.

use super::elf::{ElfKernel, LoadSegment};
use super::entry;
use super::error::LoadError;
use super::layout::{
    GDT_GPA, HIGH_RAM_START, LOW_RAM_END, MULTIBOOT_INFO_GPA, MULTIBOOT_INFO_SPACE,
    firmware_memory_map,
};
use super::linux::{Placed, check_cmdline, place_initrd};
use super::plan::{LoadPlan, PlanBuilder};

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// The header lies within this many bytes of the file's start.
const SEARCH: usize = 8192;

const FLAG_ADDRESS_FIELDS: u32 = 1 << 16;
/// Bits 0 to 15 are requirements; the first three (page-aligned modules, memory information and
/// video mode) are met or, for video, allowed to fail.
const UNKNOWN_REQUIREMENTS: u32 = 0xfff8;

const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;

/// Offsets from [`MULTIBOOT_INFO_GPA`].
const MODULES_OFFSET: u32 = 0x80;
const LOADER_NAME_OFFSET: u32 = 0xa0;
const MODULE_STRING_OFFSET: u32 = 0xb0;
const MEMORY_MAP_OFFSET: u32 = 0x100;
const CMDLINE_OFFSET: u32 = 0x1000;
const ENVIRONMENT_OFFSET: u32 = 0x6000;
const CMDLINE_LIMIT: usize = (ENVIRONMENT_OFFSET - CMDLINE_OFFSET) as usize - 1;
const ENVIRONMENT_LIMIT: usize = (MULTIBOOT_INFO_SPACE as usize) - ENVIRONMENT_OFFSET as usize;

/// A multiboot header found in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    offset: usize,
    flags: u32,
    address_fields: [u32; 5],
}

/// Finds a header with a right checksum.
pub(super) fn find_header(image: &[u8]) -> Option<Header> {
    let searched = &image[..image.len().min(SEARCH)];
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    (0..searched.len()).step_by(4).find_map(|offset| {
        let (magic, flags, checksum) = (word(offset)?, word(offset + 4)?, word(offset + 8)?);
        if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
            return None;
        }
        let mut address_fields = [0; 5];
        if flags & FLAG_ADDRESS_FIELDS != 0 {
            for (i, field) in address_fields.iter_mut().enumerate() {
                *field = word(offset + 12 + 4 * i)?;
            }
        }
        Some(Header {
            offset,
            flags,
            address_fields,
        })
    })
}

/// The segments and the entry point, from the header's address fields or else the ELF headers.
pub(super) fn segments(
    image: &[u8],
    header: Header,
    elf: Option<ElfKernel>,
) -> Result<(Vec<LoadSegment>, u32), LoadError> {
    if header.flags & UNKNOWN_REQUIREMENTS != 0 {
        return Err(LoadError::Unsupported(
            "is a multiboot image that requires unknown features; give one with flags 0 to 2 only",
        ));
    }
    if header.flags & FLAG_ADDRESS_FIELDS != 0 {
        return kludge_segments(image, header);
    }
    match elf {
        Some(elf) if !elf.is_64_bit => {
            let entry = u32::try_from(elf.entry)
                .map_err(|_| LoadError::Malformed("its entry point lies above 4 GiB"))?;
            Ok((elf.segments, entry))
        }
        Some(_) => Err(LoadError::Unsupported(
            "is a 64-bit multiboot image without address fields; convert it to elf32-i386 with \
             objcopy",
        )),
        None => Err(LoadError::Unsupported(
            "is a multiboot image that is no ELF file and has no address fields; give an ELF32 \
             image",
        )),
    }
}

/// The "a.out kludge": addresses in the multiboot header itself.
fn kludge_segments(image: &[u8], header: Header) -> Result<(Vec<LoadSegment>, u32), LoadError> {
    let [header_address, load, load_end, bss_end, entry] = header.address_fields;
    let malformed = LoadError::Malformed("the addresses in its multiboot header contradict");
    let into_image = header_address.checked_sub(load).ok_or(malformed.clone())? as usize;
    let start = header
        .offset
        .checked_sub(into_image)
        .ok_or(malformed.clone())?;
    let have = image.len() as u64;
    let length = match load_end {
        0 => image.len() - start,
        end => end.checked_sub(load).ok_or(malformed.clone())? as usize,
    };
    let end = start.checked_add(length).ok_or(malformed.clone())?;
    if end > image.len() {
        return Err(LoadError::Truncated {
            what: "the loaded part",
            needed: end as u64,
            have,
        });
    }
    let memory_size = match bss_end {
        0 => length as u64,
        bss_end => u64::from(bss_end.checked_sub(load).ok_or(malformed.clone())?),
    };
    if memory_size < length as u64 {
        return Err(malformed);
    }
    let segment = LoadSegment {
        gpa: u64::from(load),
        file: start..end,
        memory_size,
    };
    Ok((vec![segment], entry))
}

/// What the image is handed besides its memory.
pub(super) struct Handover<'a> {
    /// File name and arguments.
    pub(super) cmdline: String,
    /// The one module, if the user gave a file.
    pub(super) module: Option<&'a [u8]>,
    /// Otherwise the text of the environment module, if there is to be one.
    pub(super) environment: Option<String>,
}

/// Completes a plan in which the image's segments are placed already.
pub(super) fn finish<'a>(
    mut plan: PlanBuilder<'a>,
    eip: u32,
    handover: &Handover<'a>,
) -> Result<LoadPlan<'a>, LoadError> {
    if !plan.is_loaded(u64::from(eip)) {
        return Err(LoadError::Malformed(
            "its entry point lies outside what it loads",
        ));
    }
    check_cmdline(&handover.cmdline, CMDLINE_LIMIT)?;
    let module = place_module(&mut plan, handover)?;
    let info = info_block(&plan, handover, module);
    plan.place_built(MULTIBOOT_INFO_GPA, info, "the multiboot information")?;
    let state = entry::multiboot(eip, MULTIBOOT_INFO_GPA as u32);
    plan.place_built(GDT_GPA, entry::gdt(&state), "the boot descriptor table")?;
    Ok(plan.finish(state))
}

/// A file becomes the module, high in memory; a short environment text goes with the information
/// block in low memory, where images do not put their heap.
fn place_module<'a>(
    plan: &mut PlanBuilder<'a>,
    handover: &Handover<'a>,
) -> Result<Option<Placed>, LoadError> {
    if handover.module.is_some() {
        return place_initrd(plan, handover.module, u64::from(u32::MAX)).map(Some);
    }
    let Some(text) = &handover.environment else {
        return Ok(None);
    };
    if text.len() > ENVIRONMENT_LIMIT {
        return Err(LoadError::CmdlineTooLong {
            length: text.len(),
            limit: ENVIRONMENT_LIMIT,
        });
    }
    let gpa = MULTIBOOT_INFO_GPA as u32 + ENVIRONMENT_OFFSET;
    Ok(Some(Placed {
        gpa,
        size: text.len() as u32,
    }))
}

fn info_block(plan: &PlanBuilder<'_>, handover: &Handover<'_>, module: Option<Placed>) -> Vec<u8> {
    const LOADER_NAME: &[u8] = b"partita\0";
    const MAP_ENTRY_SIZE: u32 = 20;
    let base = MULTIBOOT_INFO_GPA as u32;
    let map = firmware_memory_map(plan.memory());
    let upper = plan.memory().low_ram_end().saturating_sub(HIGH_RAM_START);

    let mut words = [0u32; 30];
    words[0] = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    words[1] = (LOW_RAM_END >> 10) as u32;
    words[2] = (upper >> 10) as u32;
    words[4] = base + CMDLINE_OFFSET;
    words[5] = u32::from(module.is_some());
    words[6] = base + MODULES_OFFSET;
    words[11] = map.len() as u32 * (MAP_ENTRY_SIZE + 4);
    words[12] = base + MEMORY_MAP_OFFSET;
    words[16] = base + LOADER_NAME_OFFSET;
    let mut block: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();

    block.resize(MODULES_OFFSET as usize, 0);
    let module = module.unwrap_or_default();
    let module_end = module.gpa.saturating_add(module.size);
    for word in [module.gpa, module_end, base + MODULE_STRING_OFFSET, 0] {
        block.extend_from_slice(&word.to_le_bytes());
    }
    block.resize(LOADER_NAME_OFFSET as usize, 0);
    block.extend_from_slice(LOADER_NAME);
    block.resize(MODULE_STRING_OFFSET as usize, 0);
    block.extend_from_slice(b"module\0");
    block.resize(MEMORY_MAP_OFFSET as usize, 0);
    for (range, kind) in map {
        block.extend_from_slice(&MAP_ENTRY_SIZE.to_le_bytes());
        block.extend_from_slice(&range.start.to_le_bytes());
        block.extend_from_slice(&(range.end - range.start).to_le_bytes());
        block.extend_from_slice(&(kind as u32).to_le_bytes());
    }
    block.resize(CMDLINE_OFFSET as usize, 0);
    block.extend_from_slice(handover.cmdline.as_bytes());
    block.push(0);
    if handover.module.is_none()
        && let Some(text) = &handover.environment
    {
        block.resize(ENVIRONMENT_OFFSET as usize, 0);
        block.extend_from_slice(text.as_bytes());
    }
    block
}

/// The text that tells a test image about its machine when no firmware configuration device does:
/// one `NAME=value` per line.
pub(super) fn environment(processors: u32, memory_bytes: u64, test_device: bool) -> String {
    format!(
        "NR_CPUS={processors}\nMEMSIZE={}\nTEST_DEVICE={}\n",
        memory_bytes >> 20,
        u32::from(test_device)
    )
}
