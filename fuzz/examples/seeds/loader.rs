//! Small kernels of every format.

use crate::Corpus;
use partita_fuzz::loader::MAGICS;
use std::io::{Result, Write};

const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// Offset of the contents in an ELF file.
const DATA: u64 = 0x200;

/// Type, offset, address, size in the file, size in memory.
type Program = (u32, u64, u64, u64, u64);

fn words<const N: usize>(bytes: &mut Vec<u8>, words: [u64; N], size: usize) {
    for word in words {
        bytes.extend_from_slice(&word.to_le_bytes()[..size]);
    }
}

fn elf(class: u8, entry: u64, programs: &[Program], data: &[u8]) -> Vec<u8> {
    let wide = class == 2;
    let word = if wide { 8 } else { 4 };
    let mut file = vec![0x7f, b'E', b'L', b'F', class, 1, 1];
    file.resize(16, 0);
    words(&mut file, [2, if wide { 62 } else { 3 }], 2);
    words(&mut file, [1], 4);
    words(&mut file, [entry, if wide { 64 } else { 52 }, 0], word);
    words(&mut file, [0], 4);
    let (header, program) = if wide { (64, 56) } else { (52, 32) };
    words(
        &mut file,
        [header, program, programs.len() as u64, 0, 0, 0],
        2,
    );
    for &(kind, offset, address, in_file, in_memory) in programs {
        words(&mut file, [kind.into()], 4);
        if wide {
            words(&mut file, [7], 4);
        }
        words(
            &mut file,
            [offset, address, address, in_file, in_memory],
            word,
        );
        if !wide {
            words(&mut file, [7], 4);
        }
        words(&mut file, [4], word);
    }
    file.resize(DATA as usize, 0);
    file.extend_from_slice(data);
    file
}

const ENTRY: u64 = 0x10_0000;

/// A 64-bit kernel that its segments fill.
fn vmlinux() -> Vec<u8> {
    let code: Vec<u8> = (0..600_u32).flat_map(|i| [0xe8, i as u8, 0, 0]).collect();
    let size = code.len() as u64;
    elf(2, ENTRY, &[(LOAD, DATA, ENTRY, size, 2 * size)], &code)
}

fn pack(data: &[u8]) -> Result<[Vec<u8>; 6]> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(data)?;
    let mut options = lzma_rust2::XzOptions::with_preset(1);
    options.lzma_options.dict_size = 1 << 16;
    options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options)?;
    xz.write_all(data)?;
    let mut options = lzma_rust2::LzmaOptions::with_preset(1);
    options.dict_size = 1 << 16;
    let mut lzma = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None)?;
    lzma.write_all(data)?;
    let block = lz4_flex::block::compress(data);
    let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
    lz4.extend_from_slice(&(block.len() as u32).to_le_bytes());
    lz4.extend_from_slice(&block);
    let level = ruzstd::encoding::CompressionLevel::Fastest;
    let zstd = ruzstd::encoding::compress_to_vec(data, level);
    Ok([
        gzip.finish()?,
        xz.finish()?,
        lzma.finish()?,
        lz4,
        zstd,
        data.to_vec(),
    ])
}

pub(crate) fn bzimage_seeds(corpus: &mut Corpus) -> Result<()> {
    let kernels = [vmlinux(), vmlinux()[..0x300].to_vec(), vec![0; 1 << 16]];
    for kernel in &kernels {
        for (index, packed) in pack(kernel)?.into_iter().enumerate() {
            let compression = index as u8 + 1;
            let magic = MAGICS[usize::from(compression)];
            let mut packed = packed.strip_prefix(magic).unwrap_or(&packed).to_vec();
            if compression > 1 && compression < 6 {
                packed.extend_from_slice(&(kernel.len() as u32).to_le_bytes());
            }
            for machine in [
                vec![0],
                vec![0x1f, 3, 1, 2, 3, 5, b'q', b'u', b'i', b'e', b't'],
            ] {
                let input = [&machine[..], &[compression], &[0; 16], &packed].concat();
                corpus.add(&input)?;
            }
        }
    }
    // A whole file: boot sector, header, nothing behind it.
    let mut file = vec![0, 0];
    file.resize(2 + 0x260, 0);
    file[2 + 0x1fe..][..2].copy_from_slice(&[0x55, 0xaa]);
    file[2 + 0x202..][..4].copy_from_slice(b"HdrS");
    corpus.add(&file)
}

pub(crate) fn elf_seeds(corpus: &mut Corpus) -> Result<()> {
    let mut notes = vec![0x90; 64];
    for (kind, value) in [(6, 0), (18, ENTRY + 0x20)] {
        words(&mut notes, [4, 4, kind], 4);
        notes.extend_from_slice(b"Xen\0");
        words(&mut notes, [value], 4);
    }
    let programs = [(LOAD, DATA, ENTRY, 64, 4096), (NOTE, DATA + 64, 0, 40, 40)];
    let files = [
        vmlinux(),
        elf(2, ENTRY, &programs, &notes),
        elf(1, ENTRY, &programs, &notes),
        elf(
            2,
            ENTRY,
            &[
                (LOAD, DATA, ENTRY, 8, 8),
                (LOAD, DATA, ENTRY + 0x1000, 8, 16),
            ],
            &[0; 64],
        ),
        elf(2, u64::MAX, &[(LOAD, 0, 0, u64::MAX, u64::MAX)], &[0; 64]),
    ];
    for file in &files {
        for machine in [
            vec![0],
            vec![3],
            vec![0xee, 3, 1, 2, 3, 15, b'a', b'=', b'b'],
        ] {
            corpus.add(&[&machine[..], file].concat())?;
        }
    }
    Ok(())
}

pub(crate) fn multiboot_seeds(corpus: &mut Corpus) -> Result<()> {
    let base = 0x20_0000_u32;
    let mut header = Vec::new();
    words(
        &mut header,
        [0x1bad_b002, 0, 0x1_0000_0000 - 0x1bad_b002],
        4,
    );
    header.resize(64, 0x90);
    let mut addresses = Vec::new();
    let fields = [0x1bad_b002, 0x1_0000, 0]
        .into_iter()
        .map(|word: u32| word.to_le_bytes());
    addresses.extend(fields.flatten());
    for field in [base, base, base + 64, base + 8192, base + 48] {
        addresses.extend_from_slice(&field.to_le_bytes());
    }
    addresses.resize(128, 0xbb);
    let load = (LOAD, DATA, u64::from(base), 64, 4096);
    let wide = elf(2, base.into(), &[load], &header);
    let narrow = elf(1, base.into(), &[load], &header);
    for file in [&narrow, &wide, &addresses, &header] {
        for machine in [vec![0x30], vec![0x2c, 4, 1, 2, 3, 4, 3, b'x', b' ', b'y']] {
            for choice in [0, 1] {
                corpus.add(&[&machine[..], &[choice], file].concat())?;
            }
        }
    }
    Ok(())
}
