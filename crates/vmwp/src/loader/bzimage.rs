//! bzImage: the setup header, and the compressed kernel behind it.
//!
//! Fields and their offsets are those of Documentation/arch/x86/boot.rst.

use super::error::LoadError;

/// Where the setup header starts, in the file as in `boot_params`.
pub(super) const HEADER_START: usize = 0x1f1;
/// The byte at this offset tells where the header ends, counted from the byte behind it.
const JUMP_OFFSET: usize = 0x201;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const CMDLINE_SIZE: usize = 0x238;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// Largest header that `boot_params` has room for.
const HEADER_MAX_END: usize = 0x290;
const SECTOR: usize = 512;
/// Protocol 2.08 brought the payload fields.
const VERSION_WITH_PAYLOAD: u16 = 0x0208;

/// What matters of a bzImage.
#[derive(Debug)]
pub(super) struct BzImage<'a> {
    /// The setup header, from [`HEADER_START`] on.
    pub(super) header: &'a [u8],
    /// The compressed kernel.
    pub(super) payload: &'a [u8],
    /// Highest address that the initial RAM disk may occupy.
    pub(super) initrd_addr_max: u64,
    /// Longest command line in bytes without the terminating zero.
    pub(super) cmdline_limit: usize,
}

/// Whether the file has the marks of a Linux kernel with a setup header.
pub(super) fn is_bzimage(image: &[u8]) -> bool {
    image.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(&[0x55, 0xaa])
        && image.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
}

/// Reads the setup header and checks it against the file's size.
pub(super) fn parse(image: &[u8]) -> Result<BzImage<'_>, LoadError> {
    const LOADED_HIGH: u8 = 1;
    let version = u16_at(image, VERSION)?;
    if version < VERSION_WITH_PAYLOAD {
        return Err(LoadError::Unsupported(
            "is a Linux kernel older than 2.6.26, without a payload field; give a newer kernel",
        ));
    }
    let header_end = JUMP_OFFSET + 1 + usize::from(byte_at(image, JUMP_OFFSET)?);
    if !(PAYLOAD_LENGTH + 4..=HEADER_MAX_END).contains(&header_end) {
        return Err(LoadError::Malformed(
            "its setup header has an impossible length",
        ));
    }
    if byte_at(image, LOADFLAGS)? & LOADED_HIGH == 0 {
        return Err(LoadError::Unsupported("is a zImage kernel; give a bzImage"));
    }
    let header = slice(
        image,
        HEADER_START as u64,
        (header_end - HEADER_START) as u64,
        "header",
    )?;
    // Zero means four sectors, for kernels from before the field existed.
    let setup_sectors = match byte_at(image, HEADER_START)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let protected_mode_start = ((setup_sectors + 1) * SECTOR) as u64;
    let payload_offset = u64::from(u32_at(image, PAYLOAD_OFFSET)?);
    let payload_length = u64::from(u32_at(image, PAYLOAD_LENGTH)?);
    let payload = slice(
        image,
        protected_mode_start + payload_offset,
        payload_length,
        "the compressed kernel",
    )?;
    Ok(BzImage {
        header,
        payload,
        initrd_addr_max: u64::from(u32_at(image, INITRD_ADDR_MAX)?),
        cmdline_limit: u32_at(image, CMDLINE_SIZE)? as usize,
    })
}

fn slice<'a>(
    image: &'a [u8],
    start: u64,
    length: u64,
    what: &'static str,
) -> Result<&'a [u8], LoadError> {
    let have = image.len() as u64;
    let needed = start.saturating_add(length);
    if needed > have {
        return Err(LoadError::Truncated { what, needed, have });
    }
    Ok(&image[start as usize..needed as usize])
}

fn byte_at(image: &[u8], at: usize) -> Result<u8, LoadError> {
    slice(image, at as u64, 1, "the setup header").map(|bytes| bytes[0])
}

fn u16_at(image: &[u8], at: usize) -> Result<u16, LoadError> {
    let bytes = slice(image, at as u64, 2, "the setup header")?;
    Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn u32_at(image: &[u8], at: usize) -> Result<u32, LoadError> {
    let bytes = slice(image, at as u64, 4, "the setup header")?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}
