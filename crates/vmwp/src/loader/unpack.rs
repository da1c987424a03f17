//! Unpacking of compressed kernels on the host.
//!
//! A bzImage carries its kernel compressed, with a small program in front that unpacks it inside
//! the guest. Doing that on the host instead saves the guest seconds. Every decompressor here
//! stops at a limit, so that a small file cannot fill the host's memory.

use std::fmt;
use std::io::Read;

use super::error::LoadError;

/// The compressions that kernels are shipped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// xz, with any of its branch filters.
    Xz,
    /// The older "lzma alone" format.
    Lzma,
    /// LZ4 in its legacy frame format.
    Lz4,
    /// Zstandard (RFC 8878).
    Zstd,
    /// Not compressed: an ELF file.
    None,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::None => "uncompressed",
        })
    }
}

const LZ4_LEGACY_MAGIC: [u8; 4] = 0x184c_2102u32.to_le_bytes();
/// Uncompressed size of every block of a legacy LZ4 frame but the last.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// Most memory that an xz or lzma decoder may take for its dictionary, in KiB.
const LZMA_MEMORY_KIB: u32 = 256 << 10;
/// Most memory that a zstd decoder may take for its window, in bytes.
const ZSTD_WINDOW: u64 = 256 << 20;
/// Length of the uncompressed size that a kernel build appends to the payload.
const SIZE_TRAILER: usize = 4;

/// Tells the compression of a bzImage payload by its first bytes.
///
/// # Errors
/// [`LoadError::UnsupportedCompression`] names the compression that is known but not supported,
/// or says that it is unknown.
pub fn detect(payload: &[u8]) -> Result<Compression, LoadError> {
    let known: [(&[u8], Result<Compression, &'static str>); 9] = [
        (&[0x1f, 0x8b], Ok(Compression::Gzip)),
        (&[0x1f, 0x9e], Ok(Compression::Gzip)),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0], Ok(Compression::Xz)),
        (&[0x5d, 0, 0], Ok(Compression::Lzma)),
        (&LZ4_LEGACY_MAGIC, Ok(Compression::Lz4)),
        (&[0x28, 0xb5, 0x2f, 0xfd], Ok(Compression::Zstd)),
        (b"\x7fELF", Ok(Compression::None)),
        (b"BZh", Err("bzip2")),
        (&[0x89, b'L', b'Z', b'O'], Err("lzo")),
    ];
    let found = known.iter().find(|(magic, _)| payload.starts_with(magic));
    match found {
        Some((_, Ok(compression))) => Ok(*compression),
        Some((_, Err(name))) => Err(LoadError::UnsupportedCompression(name)),
        None => Err(LoadError::UnsupportedCompression("an unknown method")),
    }
}

/// Unpacks a bzImage payload to at most `limit` bytes.
///
/// # Errors
/// See [`LoadError`]: unsupported or damaged compression, or a result above the limit.
pub fn unpack(payload: &[u8], limit: u64) -> Result<Vec<u8>, LoadError> {
    let compression = detect(payload)?;
    let limit_error = LoadError::UnpacksTooLarge { memory: limit };
    let size = declared_size(payload, limit);
    let result = match compression {
        Compression::None => Ok(payload.to_vec()),
        Compression::Gzip => read_bounded(flate2::read::GzDecoder::new(payload), size, limit),
        Compression::Xz => {
            let reader = lzma_rust2::XzReader::new_mem_limit(payload, false, LZMA_MEMORY_KIB);
            read_bounded(reader, size, limit)
        }
        Compression::Lzma => lzma_rust2::LzmaReader::new_mem_limit(payload, LZMA_MEMORY_KIB, None)
            .map_err(|e| Failure::Damaged(e.to_string()))
            .and_then(|reader| read_bounded(reader, size, limit)),
        Compression::Lz4 => unpack_lz4_legacy(payload, size, limit),
        Compression::Zstd => {
            use ruzstd::decoding::StreamingDecoder;
            StreamingDecoder::new_with_max_window_size(payload, ZSTD_WINDOW)
                .map_err(|e| Failure::Damaged(e.to_string()))
                .and_then(|reader| read_bounded(reader, size, limit))
        }
    };
    result.map_err(|failure| match failure {
        Failure::TooLarge => limit_error,
        Failure::Damaged(reason) => LoadError::DamagedPayload {
            compression,
            reason,
        },
    })
}

enum Failure {
    TooLarge,
    Damaged(String),
}

/// The uncompressed size in the payload's last four bytes, as a hint for the first allocation.
fn declared_size(payload: &[u8], limit: u64) -> usize {
    /// No hint makes more than this be allocated ahead.
    const MOST: u64 = 128 << 20;
    let trailer = payload
        .last_chunk::<SIZE_TRAILER>()
        .copied()
        .unwrap_or_default();
    u64::from(u32::from_le_bytes(trailer)).min(limit).min(MOST) as usize
}

fn read_bounded(reader: impl Read, size: usize, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut out = Vec::with_capacity(size);
    reader
        .take(limit.saturating_add(1))
        .read_to_end(&mut out)
        .map_err(|e| Failure::Damaged(e.to_string()))?;
    if out.len() as u64 > limit {
        Err(Failure::TooLarge)
    } else {
        Ok(out)
    }
}

/// The legacy frame: the magic, then blocks with their compressed length in front. The kernel's
/// build appends the uncompressed size, which is no block.
fn unpack_lz4_legacy(payload: &[u8], size: usize, limit: u64) -> Result<Vec<u8>, Failure> {
    let damaged = |reason: &str| Failure::Damaged(reason.to_owned());
    let mut out: Vec<u8> = Vec::with_capacity(size);
    // One for all blocks: small blocks must not each cost the clearing of a large one.
    let mut space = vec![0; LZ4_LEGACY_BLOCK];
    let mut rest = payload.get(LZ4_LEGACY_MAGIC.len()..).unwrap_or_default();
    while rest.len() > SIZE_TRAILER {
        let (head, tail) = rest.split_at(4);
        if head == LZ4_LEGACY_MAGIC {
            rest = tail;
            continue;
        }
        let length = u32::from_le_bytes(head.try_into().unwrap_or_default()) as usize;
        let block = tail
            .get(..length)
            .ok_or_else(|| damaged("a block is cut off"))?;
        let written = lz4_flex::block::decompress_into(block, &mut space)
            .map_err(|e| Failure::Damaged(e.to_string()))?;
        out.extend_from_slice(&space[..written]);
        if out.len() as u64 > limit {
            return Err(Failure::TooLarge);
        }
        rest = &tail[length..];
    }
    if out.is_empty() || !(rest.is_empty() || rest.len() == SIZE_TRAILER) {
        return Err(damaged("it is cut off"));
    }
    Ok(out)
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// Compresses like a kernel build, size trailer included.
    pub(in super::super) fn pack(data: &[u8], compression: Compression) -> Vec<u8> {
        let mut packed = match compression {
            Compression::Gzip => {
                let mut writer = flate2::write::GzEncoder::new(Vec::new(), Default::default());
                writer.write_all(data).unwrap();
                return writer.finish().unwrap();
            }
            Compression::Xz => {
                let mut options = lzma_rust2::XzOptions::with_preset(1);
                options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
                let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Compression::Lzma => {
                let options = lzma_rust2::LzmaOptions::with_preset(1);
                let mut writer =
                    lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Compression::Lz4 => {
                let mut out = LZ4_LEGACY_MAGIC.to_vec();
                for block in data.chunks(LZ4_LEGACY_BLOCK) {
                    let packed = lz4_flex::block::compress(block);
                    out.extend_from_slice(&(packed.len() as u32).to_le_bytes());
                    out.extend_from_slice(&packed);
                }
                out
            }
            Compression::Zstd => {
                ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest)
            }
            Compression::None => return data.to_vec(),
        };
        packed.extend_from_slice(&(data.len() as u32).to_le_bytes());
        packed
    }

    const ALL: [Compression; 5] = [
        Compression::Gzip,
        Compression::Xz,
        Compression::Lzma,
        Compression::Lz4,
        Compression::Zstd,
    ];

    /// Bytes with x86 calls in them, so that the branch filter changes something.
    fn sample(len: usize) -> Vec<u8> {
        (0..len as u32)
            .flat_map(|i| [0xe8, i as u8, 0, 0, 0, 0x90, 0xc3])
            .take(len)
            .collect()
    }

    #[test]
    fn every_compression_gives_the_bytes_back() {
        let data = sample(300_000);
        for compression in ALL {
            let packed = pack(&data, compression);
            assert_eq!(detect(&packed), Ok(compression));
            assert_eq!(unpack(&packed, 1 << 20).unwrap(), data, "{compression}");
        }
    }

    #[test]
    fn lz4_continues_over_blocks() {
        let data = sample(LZ4_LEGACY_BLOCK + 12_345);
        assert_eq!(
            unpack(&pack(&data, Compression::Lz4), 1 << 30).unwrap(),
            data
        );
    }

    #[test]
    fn many_small_lz4_blocks_cost_what_they_hold() {
        let block = lz4_flex::block::compress(&[7]);
        let mut packed = LZ4_LEGACY_MAGIC.to_vec();
        for _ in 0..200_000 {
            packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
            packed.extend_from_slice(&block);
        }
        // With 8 MiB touched for each, this would take minutes.
        let start = std::time::Instant::now();
        assert_eq!(unpack(&packed, 1 << 20).unwrap(), vec![7; 200_000]);
        assert!(start.elapsed().as_secs() < 10);
    }

    #[test]
    fn nothing_unpacks_beyond_the_limit() {
        let data = vec![0; 4 << 20];
        for compression in ALL {
            let error = unpack(&pack(&data, compression), 1 << 20).unwrap_err();
            assert_eq!(
                error,
                LoadError::UnpacksTooLarge { memory: 1 << 20 },
                "{compression}"
            );
        }
    }

    #[test]
    fn damage_is_an_error_that_names_the_compression() {
        let data = sample(100_000);
        for compression in ALL {
            let packed = pack(&data, compression);
            for cut in [5, 20, packed.len() / 2] {
                if let Err(error) = unpack(&packed[..cut], 1 << 20) {
                    let text = error.to_string();
                    assert!(text.contains(&compression.to_string()), "{text}");
                } else {
                    panic!("{compression} cut to {cut} bytes was accepted");
                }
            }
        }
    }

    #[test]
    fn flipped_bytes_never_panic() {
        let data = sample(20_000);
        for compression in ALL {
            let packed = pack(&data, compression);
            for at in (0..packed.len()).step_by(7) {
                let mut bad = packed.clone();
                bad[at] ^= 0x55;
                let _ = unpack(&bad, 1 << 20);
            }
        }
    }

    #[test]
    fn unsupported_compressions_are_named() {
        let text = unpack(b"BZh91AY", 1 << 20).unwrap_err().to_string();
        assert!(text.contains("compressed with bzip2"), "{text}");
        let text = unpack(&[0x89, b'L', b'Z', b'O', 0], 1)
            .unwrap_err()
            .to_string();
        assert!(text.contains("compressed with lzo"), "{text}");
        assert!(unpack(b"", 1).unwrap_err().to_string().contains("unknown"));
    }
}
