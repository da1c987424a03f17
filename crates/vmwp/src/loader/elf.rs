//! ELF kernels: segments at their physical addresses, the entry point, and the PVH note.

use std::ops::Range;

use object::elf::{EM_386, EM_X86_64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, elf};

use super::error::LoadError;

/// Type of the note in which a kernel names its PVH entry point (XEN_ELFNOTE_PHYS32_ENTRY).
const PHYS32_ENTRY: u32 = 18;

/// A part of an ELF file that belongs in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoadSegment {
    /// Physical address.
    pub(super) gpa: u64,
    /// Bytes of the file.
    pub(super) file: Range<usize>,
    /// Size in memory in bytes, at least the size in the file.
    pub(super) memory_size: u64,
}

/// What matters of an ELF kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ElfKernel {
    /// Whether it is an ELF64 file.
    pub(super) is_64_bit: bool,
    /// Physical address of the entry point in the ELF header.
    pub(super) entry: u64,
    /// Entry point of the PVH note.
    pub(super) pvh_entry: Option<u32>,
    /// The loadable segments.
    pub(super) segments: Vec<LoadSegment>,
}

/// Reads the headers of a little-endian x86 ELF file and checks them against its size.
pub(super) fn parse(image: &[u8]) -> Result<ElfKernel, LoadError> {
    const CLASS: usize = 4;
    const DATA: usize = 5;
    const LITTLE_ENDIAN: u8 = 1;
    if image.get(DATA) != Some(&LITTLE_ENDIAN) {
        return Err(LoadError::Unsupported(NOT_X86));
    }
    match image.get(CLASS) {
        Some(1) => parse_class::<elf::FileHeader32<LittleEndian>>(image, false),
        Some(2) => parse_class::<elf::FileHeader64<LittleEndian>>(image, true),
        _ => Err(LoadError::Malformed(
            "its ELF class is neither 32 nor 64 bit",
        )),
    }
}

const NOT_X86: &str = "is an ELF file for another processor; give a kernel built for x86";
const TOO_MANY: usize = 256;

fn parse_class<Elf>(image: &[u8], is_64_bit: bool) -> Result<ElfKernel, LoadError>
where
    Elf: FileHeader<Endian = LittleEndian>,
{
    let endian = LittleEndian;
    let header = Elf::parse(image).map_err(|_| LoadError::Truncated {
        what: "the ELF header",
        needed: size_of::<Elf>() as u64,
        have: image.len() as u64,
    })?;
    let machine = header.e_machine(endian);
    if machine != EM_X86_64 && machine != EM_386 {
        return Err(LoadError::Unsupported(NOT_X86));
    }
    let program_headers = program_headers(header, image)?;
    let mut segments = Vec::new();
    let mut pvh_entry = None;
    let mut entry = header.e_entry(endian).into();
    let virtual_entry = entry;
    for program in program_headers {
        if program.p_type(endian) == PT_LOAD {
            let segment = load_segment(program, image)?;
            let virtual_start = program.p_vaddr(endian).into();
            let offset = virtual_entry.wrapping_sub(virtual_start);
            // A kernel's entry point may be given as a virtual address.
            if offset < segment.memory_size && !in_any(program_headers, virtual_entry) {
                entry = segment.gpa.wrapping_add(offset);
            }
            if segment.memory_size > 0 {
                segments.push(segment);
            }
        } else if program.p_type(endian) == PT_NOTE {
            pvh_entry = pvh_entry.or(find_pvh_note::<Elf>(program, image)?);
        }
    }
    if segments.is_empty() {
        return Err(LoadError::Unsupported(
            "is an ELF file with nothing to load; give a linked kernel, not an object file",
        ));
    }
    Ok(ElfKernel {
        is_64_bit,
        entry,
        pvh_entry,
        segments,
    })
}

fn program_headers<'a, Elf>(
    header: &Elf,
    image: &'a [u8],
) -> Result<&'a [Elf::ProgramHeader], LoadError>
where
    Elf: FileHeader<Endian = LittleEndian>,
{
    let endian = LittleEndian;
    let count = usize::from(header.e_phnum(endian));
    if count > TOO_MANY {
        return Err(LoadError::Malformed(
            "its ELF header names too many program headers",
        ));
    }
    let size = (count * size_of::<Elf::ProgramHeader>()) as u64;
    let start: u64 = header.e_phoff(endian).into();
    header.program_headers(endian, image).map_err(|_| {
        let needed = start.saturating_add(size);
        let have = image.len() as u64;
        if needed > have {
            LoadError::Truncated {
                what: "the program header table",
                needed,
                have,
            }
        } else {
            LoadError::Malformed("its program header table has entries of a wrong size")
        }
    })
}

/// Whether some segment is loaded over this physical address.
fn in_any<P: ProgramHeader<Endian = LittleEndian>>(headers: &[P], address: u64) -> bool {
    headers.iter().any(|program| {
        program.p_type(LittleEndian) == PT_LOAD
            && address.wrapping_sub(program.p_paddr(LittleEndian).into())
                < program.p_memsz(LittleEndian).into()
    })
}

fn load_segment<P>(program: &P, image: &[u8]) -> Result<LoadSegment, LoadError>
where
    P: ProgramHeader<Endian = LittleEndian>,
{
    let endian = LittleEndian;
    let start: u64 = program.p_offset(endian).into();
    let file_size: u64 = program.p_filesz(endian).into();
    let memory_size: u64 = program.p_memsz(endian).into();
    if memory_size < file_size {
        return Err(LoadError::Malformed(
            "a segment is larger in the file than in memory",
        ));
    }
    let have = image.len() as u64;
    let end = start.saturating_add(file_size);
    if file_size == 0 {
        return Ok(LoadSegment {
            gpa: program.p_paddr(endian).into(),
            file: 0..0,
            memory_size,
        });
    }
    if end > have {
        return Err(LoadError::Truncated {
            what: "a segment",
            needed: end,
            have,
        });
    }
    let file = start as usize..end as usize;
    Ok(LoadSegment {
        gpa: program.p_paddr(endian).into(),
        file,
        memory_size,
    })
}

fn find_pvh_note<Elf>(program: &Elf::ProgramHeader, image: &[u8]) -> Result<Option<u32>, LoadError>
where
    Elf: FileHeader<Endian = LittleEndian>,
{
    let malformed = |_| LoadError::Malformed("its notes cannot be read");
    let endian = LittleEndian;
    let Some(mut notes) = program.notes(endian, image).map_err(malformed)? else {
        return Ok(None);
    };
    while let Some(note) = notes.next().map_err(malformed)? {
        if note.name() == b"Xen" && note.n_type(endian).0 == PHYS32_ENTRY {
            // The value is 4 or 8 bytes long; the entry lies below 4 GiB in both cases.
            let value = note
                .desc()
                .first_chunk::<4>()
                .copied()
                .map(u32::from_le_bytes);
            return value.map(Some).ok_or(LoadError::Malformed(
                "its PVH note is too short for an address",
            ));
        }
    }
    Ok(None)
}
