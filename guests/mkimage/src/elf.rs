//! ELF64 to ELF32: keeps the loadable segments and drops everything else.

const HEADER64: usize = 64;
const SEGMENT64: usize = 56;
const HEADER32: usize = 52;
const SEGMENT32: usize = 32;
const PT_LOAD: u32 = 1;
const EM_386: u16 = 3;
/// Where file contents start: behind the headers, and within the 8 KiB that multiboot searches.
const FIRST_CONTENT: usize = 0x1000;

struct Segment {
    offset: usize,
    address: u32,
    file_size: usize,
    memory_size: u32,
    flags: u32,
}

/// Rewrites a static ELF64 executable whose addresses lie below 4 GiB as ELF32.
///
/// # Errors
///
/// Says what is wrong with the input when it is no such executable.
pub fn to_elf32(input: &[u8]) -> Result<Vec<u8>, String> {
    if input.len() < HEADER64 || &input[..5] != b"\x7fELF\x02" {
        return Err("not an ELF64 file".into());
    }
    let entry = narrow(u64_at(input, 24)?)?;
    let segments = load_segments(input)?;
    let mut output = header(entry, segments.len());
    let mut content = Vec::new();
    for segment in &segments {
        let data = input
            .get(segment.offset..segment.offset + segment.file_size)
            .ok_or("a segment lies outside the file")?;
        let offset = FIRST_CONTENT + content.len();
        for field in [
            PT_LOAD,
            offset as u32,
            segment.address,
            segment.address,
            segment.file_size as u32,
            segment.memory_size,
            segment.flags,
            0x1000,
        ] {
            output.extend_from_slice(&field.to_le_bytes());
        }
        content.extend_from_slice(data);
        content.resize(content.len().next_multiple_of(0x1000), 0);
    }
    output.resize(FIRST_CONTENT, 0);
    output.extend_from_slice(&content);
    Ok(output)
}

fn header(entry: u32, segments: usize) -> Vec<u8> {
    let mut output = b"\x7fELF\x01\x01\x01".to_vec();
    output.resize(16, 0);
    output.extend_from_slice(&2u16.to_le_bytes());
    output.extend_from_slice(&EM_386.to_le_bytes());
    for field in [1, entry, HEADER32 as u32, 0, 0] {
        output.extend_from_slice(&field.to_le_bytes());
    }
    for field in [HEADER32 as u16, SEGMENT32 as u16, segments as u16, 40, 0, 0] {
        output.extend_from_slice(&field.to_le_bytes());
    }
    output
}

fn load_segments(input: &[u8]) -> Result<Vec<Segment>, String> {
    let table = u64_at(input, 32)? as usize;
    let count = u16::from_le_bytes([input[56], input[57]]) as usize;
    let mut segments = Vec::new();
    for index in 0..count {
        let base = table + index * SEGMENT64;
        let kind = u64_at(input, base)?;
        let memory_size = narrow(u64_at(input, base + 40)?)?;
        if kind as u32 == PT_LOAD && memory_size != 0 {
            segments.push(Segment {
                offset: u64_at(input, base + 8)? as usize,
                address: narrow(u64_at(input, base + 24)?)?,
                file_size: u64_at(input, base + 32)? as usize,
                memory_size,
                flags: (kind >> 32) as u32,
            });
        }
    }
    if segments.is_empty() {
        Err("nothing to load".into())
    } else {
        Ok(segments)
    }
}

fn u64_at(input: &[u8], offset: usize) -> Result<u64, String> {
    let bytes = input
        .get(offset..offset + 8)
        .ok_or("the file is cut short")?;
    Ok(u64::from_le_bytes(
        bytes.try_into().map_err(|_| "the file is cut short")?,
    ))
}

fn narrow(value: u64) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{value:#x} does not fit 32 bits"))
}
