//! What can be wrong with a boot image.

use super::unpack::Compression;

/// Why a kernel and its companions cannot be loaded. Each message is one sentence that says what
/// is wrong and what would be right; the caller puts the file's name in front.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file is none of the known kernel formats.
    #[error(
        "is not a kernel that can be started ({looks_like}); give a bzImage, an ELF kernel or a \
         multiboot-1 image"
    )]
    NotAKernel {
        /// What the file appears to be.
        looks_like: &'static str,
    },
    /// The file ends before something that its headers promise.
    #[error(
        "is truncated: {what} ends at byte {needed}, but the file has only {have}; get it again"
    )]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// File size that the headers ask for, in bytes.
        needed: u64,
        /// File size in bytes.
        have: u64,
    },
    /// A header field makes no sense.
    #[error("is damaged: {0}; get it again")]
    Malformed(&'static str),
    /// The kernel is for another machine or of an unsupported kind.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The kernel inside a bzImage has a compression that cannot be unpacked.
    #[error(
        "has a kernel compressed with {0}, which cannot be unpacked; use one compressed with \
         gzip, xz, lzma, lz4 or zstd, or an uncompressed ELF kernel"
    )]
    UnsupportedCompression(&'static str),
    /// Unpacking failed.
    #[error("cannot be unpacked: its {compression} data is damaged ({reason}); get the file again")]
    DamagedPayload {
        /// The compression in use.
        compression: Compression,
        /// What the decompressor said.
        reason: String,
    },
    /// The unpacked kernel does not fit in the VM's memory.
    #[error(
        "unpacks to more than the VM's {} MiB of memory; give it more with --memory",
        to_mib(*memory)
    )]
    UnpacksTooLarge {
        /// Guest memory in bytes.
        memory: u64,
    },
    /// A part of the kernel does not lie in guest memory.
    #[error(
        "needs memory from {start:#x} to {end:#x}, which is not RAM of a VM with {} MiB; \
         give at least {} MiB with --memory",
        to_mib(*memory),
        to_mib_up(*end)
    )]
    KernelTooLarge {
        /// First guest-physical address.
        start: u64,
        /// First guest-physical address behind it.
        end: u64,
        /// Guest memory in bytes.
        memory: u64,
    },
    /// A part of the kernel asks for guest-physical addresses that can never be RAM.
    #[error(
        "asks to be loaded from {start:#x} to {end:#x}, where no VM has RAM; use a kernel linked \
         for addresses between 1 MiB and 3 GiB"
    )]
    ImpossibleAddress {
        /// First guest-physical address.
        start: u64,
        /// First guest-physical address behind it.
        end: u64,
    },
    /// Two things claim the same guest memory.
    #[error("is damaged or linked for an address in use: {first} and {second} overlap at {gpa:#x}")]
    Overlap {
        /// What was there first.
        first: &'static str,
        /// What came second.
        second: &'static str,
        /// Where the second one starts.
        gpa: u64,
    },
    /// The initial RAM disk does not fit.
    #[error(
        "does not fit: it has {} MiB, and the VM's {} MiB of memory leave {} MiB for it beside \
         the kernel; give at least {} MiB with --memory",
        to_mib_up(*size),
        to_mib(*memory),
        to_mib(*free),
        to_mib_up(*needed)
    )]
    InitrdTooLarge {
        /// Size of the file in bytes.
        size: u64,
        /// Bytes that are free for it.
        free: u64,
        /// Guest memory in bytes.
        memory: u64,
        /// Guest memory in bytes with which it would fit.
        needed: u64,
    },
    /// The initial RAM disk is so large that no memory size helps.
    #[error(
        "does not fit: it has {} MiB, and this kernel takes at most {} MiB; use a smaller one",
        to_mib_up(*size),
        to_mib(*limit)
    )]
    InitrdOverLimit {
        /// Size of the file in bytes.
        size: u64,
        /// Most that could be placed, in bytes.
        limit: u64,
    },
    /// The initial RAM disk is empty.
    #[error("is empty; give a cpio archive, or leave --initrd away")]
    InitrdEmpty,
    /// The command line is too long for the kernel.
    #[error("has {length} bytes, but this kernel takes at most {limit}; shorten it")]
    CmdlineTooLong {
        /// Length in bytes without the terminating zero.
        length: usize,
        /// Most that the kernel takes.
        limit: usize,
    },
    /// The command line contains a zero byte.
    #[error("contains a zero byte; remove it")]
    CmdlineZeroByte,
}

/// Which input of a boot an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The kernel file.
    Kernel,
    /// The initial RAM disk or module.
    Initrd,
    /// The command line.
    Cmdline,
}

impl LoadError {
    /// The input that the error is about, so that the caller can name its file or flag.
    #[must_use]
    pub fn input(&self) -> Input {
        match self {
            Self::InitrdTooLarge { .. } | Self::InitrdOverLimit { .. } | Self::InitrdEmpty => {
                Input::Initrd
            }
            Self::CmdlineTooLong { .. } | Self::CmdlineZeroByte => Input::Cmdline,
            _ => Input::Kernel,
        }
    }
}

fn to_mib(bytes: u64) -> u64 {
    bytes >> 20
}

fn to_mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
