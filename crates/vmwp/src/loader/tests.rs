//! Tests of whole loads, with images built here.

use super::layout::{
    ACPI_GPA, BOOT_PARAMS_GPA, CMDLINE_GPA, GIB, LOW_RAM_END, MIB, MULTIBOOT_INFO_GPA, PAGE_SIZE,
    START_INFO_GPA,
};
use super::unpack::Compression;
use super::unpack::tests::pack;
use super::*;

const ENTRY: u64 = 0x100_0000;
const MEMORY: u64 = 64 * MIB;

/// A program header to be written.
#[derive(Clone, Copy)]
struct Program {
    kind: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

const LOAD: u32 = 1;
const NOTE: u32 = 4;
/// Where the tests' ELF files have their contents.
const DATA: u64 = 0x200;

fn load_at(address: u64, file_size: u64, memory_size: u64) -> Program {
    Program {
        kind: LOAD,
        offset: DATA,
        address,
        file_size,
        memory_size,
    }
}

fn elf64(entry: u64, programs: &[Program], data: &[u8]) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend_from_slice(&[2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [entry, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, programs.len() as u16, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    for p in programs {
        file.extend_from_slice(&p.kind.to_le_bytes());
        file.extend_from_slice(&7u32.to_le_bytes());
        for word in [
            p.offset,
            p.address,
            p.address,
            p.file_size,
            p.memory_size,
            4,
        ] {
            file.extend_from_slice(&word.to_le_bytes());
        }
    }
    file.resize(DATA as usize, 0);
    file.extend_from_slice(data);
    file
}

fn elf32(entry: u32, programs: &[Program], data: &[u8]) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend_from_slice(&[2, 0, 3, 0, 1, 0, 0, 0]);
    for word in [entry, 52, 0, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for half in [52u16, 32, programs.len() as u16, 0, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    for p in programs {
        let words = [
            p.kind as u64,
            p.offset,
            p.address,
            p.address,
            p.file_size,
            p.memory_size,
            7,
            4,
        ];
        for word in words {
            file.extend_from_slice(&(word as u32).to_le_bytes());
        }
    }
    file.resize(DATA as usize, 0);
    file.extend_from_slice(data);
    file
}

fn vmlinux() -> Vec<u8> {
    let code: Vec<u8> = (0..50_000u32).map(|i| (i * 7) as u8).collect();
    elf64(ENTRY, &[load_at(ENTRY, 50_000, 3 * MIB)], &code)
}

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024 + 64];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x201] = 0x6a;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&64u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn config(kernel: &[u8]) -> BootConfig<'_> {
    BootConfig {
        kernel,
        kernel_name: "kernel",
        initrd: None,
        cmdline: None,
        memory_bytes: MEMORY,
        processors: 2,
        test_device: false,
    }
}

/// Carries a plan out, and checks that nothing in it overlaps or lies outside of RAM.
fn memory_of(plan: &LoadPlan<'_>, size: u64) -> Vec<u8> {
    let mut memory = vec![0xcc; size as usize];
    let mut written = vec![false; size as usize];
    let map = MemoryMap::for_size(size);
    for segment in &plan.segments {
        let start = segment.gpa as usize;
        let end = start + segment.bytes().len();
        assert!(map.is_usable(segment.gpa, segment.bytes().len() as u64));
        assert!(
            !written[start..end].contains(&true),
            "{} overlaps",
            segment.what
        );
        written[start..end].fill(true);
        memory[start..end].copy_from_slice(segment.bytes());
    }
    for range in &plan.zero {
        assert!(!written[range.start as usize..range.end as usize].contains(&true));
        memory[range.start as usize..range.end as usize].fill(0);
    }
    memory
}

fn u32_at(memory: &[u8], at: u64) -> u32 {
    u32::from_le_bytes(memory[at as usize..at as usize + 4].try_into().unwrap())
}

fn u64_at(memory: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(memory[at as usize..at as usize + 8].try_into().unwrap())
}

fn text_at(memory: &[u8], at: u64) -> String {
    let bytes = &memory[at as usize..];
    let end = bytes.iter().position(|&b| b == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

fn error(config: &BootConfig<'_>) -> LoadError {
    let error = load(config).expect_err("the image must be refused");
    let text = error.to_string();
    assert!(
        !text.contains('\n') && text.len() < 240,
        "not one clear line: {text}"
    );
    error
}

#[test]
fn a_bzimage_of_every_compression_is_entered_in_64_bit_mode() {
    use Compression::{Gzip, Lz4, Lzma, None, Xz, Zstd};
    let kernel = vmlinux();
    for compression in [Gzip, Xz, Lzma, Lz4, Zstd, None] {
        let image = bzimage(&pack(&kernel, compression));
        let initrd = vec![0x5a; 70_000];
        let boot = BootConfig {
            initrd: Some(&initrd),
            cmdline: Some("quiet"),
            ..config(&image)
        };
        let plan = load(&boot).unwrap();
        assert_eq!(plan.entry.protocol, EntryProtocol::Linux64);
        assert_eq!((plan.entry.rip, plan.entry.rsi), (ENTRY, BOOT_PARAMS_GPA));
        let memory = memory_of(&plan, MEMORY);
        assert_eq!(
            memory[ENTRY as usize..ENTRY as usize + 50_000],
            kernel[DATA as usize..]
        );
        assert!(
            memory[ENTRY as usize + 50_000..(ENTRY + 3 * MIB) as usize]
                .iter()
                .all(|b| *b == 0)
        );
        assert_eq!(text_at(&memory, CMDLINE_GPA), "quiet");

        let field = |at| u32_at(&memory, BOOT_PARAMS_GPA + at);
        assert_eq!(field(0x228), CMDLINE_GPA as u32);
        assert_eq!(field(0x202).to_le_bytes(), *b"HdrS");
        assert_eq!(field(0x210) & 0xff, 0xff);
        assert_eq!(u64_at(&memory, BOOT_PARAMS_GPA + 0x70), ACPI_GPA);
        let (at, size) = (field(0x218) as usize, field(0x21c) as usize);
        assert_eq!(size, initrd.len());
        assert_eq!(at % PAGE_SIZE as usize, 0);
        assert_eq!(memory[at..at + size], initrd);
        assert_eq!(memory[(BOOT_PARAMS_GPA + 0x1e8) as usize], 3);
        assert_eq!(u64_at(&memory, BOOT_PARAMS_GPA + 0x2d0), 0);
        assert_eq!(u64_at(&memory, BOOT_PARAMS_GPA + 0x2d8), LOW_RAM_END);
        assert_eq!(u64_at(&memory, BOOT_PARAMS_GPA + 0x2d0 + 40), MIB);
        assert_eq!(u64_at(&memory, BOOT_PARAMS_GPA + 0x2d8 + 40), MEMORY - MIB);
    }
}

#[test]
fn a_linux_kernel_without_a_command_line_gets_the_serial_console() {
    let kernel = vmlinux();
    let memory = memory_of(&load(&config(&kernel)).unwrap(), MEMORY);
    assert_eq!(text_at(&memory, CMDLINE_GPA), DEFAULT_LINUX_CMDLINE);
}

#[test]
fn an_elf_entry_may_be_a_virtual_address() {
    let mut image = elf64(
        0xffff_ffff_8100_0010,
        &[load_at(ENTRY, 64, 64)],
        &[0x90; 64],
    );
    // The virtual address of the only segment.
    image[64 + 16..64 + 24].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    assert_eq!(load(&config(&image)).unwrap().entry.rip, ENTRY + 0x10);
}

#[test]
fn memory_above_the_gap_is_in_the_map() {
    let kernel = vmlinux();
    let plan = load(&BootConfig {
        memory_bytes: 6 * GIB,
        ..config(&kernel)
    })
    .unwrap();
    let params = plan
        .segments
        .iter()
        .find(|s| s.gpa == BOOT_PARAMS_GPA)
        .unwrap();
    assert_eq!(params.bytes()[0x1e8], 4);
    assert_eq!(u64_at(params.bytes(), 0x2d0 + 60), 4 * GIB);
    assert_eq!(u64_at(params.bytes(), 0x2d8 + 60), 3 * GIB);
}

fn pvh_kernel() -> Vec<u8> {
    let mut data = vec![0x90; 64];
    // Another note first, then the one that counts.
    for (kind, value) in [(6u32, 0u32), (18, ENTRY as u32 + 0x20)] {
        for word in [4u32, 4, kind] {
            data.extend_from_slice(&word.to_le_bytes());
        }
        data.extend_from_slice(b"Xen\0");
        data.extend_from_slice(&value.to_le_bytes());
    }
    let notes = Program {
        kind: NOTE,
        offset: DATA + 64,
        address: 0,
        file_size: 40,
        memory_size: 40,
    };
    elf64(ENTRY, &[load_at(ENTRY, 64, 64), notes], &data)
}

#[test]
fn a_pvh_kernel_gets_its_start_info() {
    let kernel = pvh_kernel();
    let initrd = [1, 2, 3];
    let boot = BootConfig {
        initrd: Some(&initrd),
        cmdline: Some("a b"),
        ..config(&kernel)
    };
    let plan = load(&boot).unwrap();
    assert_eq!(plan.entry.protocol, EntryProtocol::Pvh);
    assert_eq!(
        (plan.entry.rip, plan.entry.rbx),
        (ENTRY + 0x20, START_INFO_GPA)
    );
    let memory = memory_of(&plan, MEMORY);
    assert_eq!(u32_at(&memory, START_INFO_GPA), 0x336e_c578);
    assert_eq!(u32_at(&memory, START_INFO_GPA + 12), 1);
    let module = u64_at(&memory, START_INFO_GPA + 16);
    let at = u64_at(&memory, module) as usize;
    assert_eq!(u64_at(&memory, module + 8), 3);
    assert_eq!(memory[at..at + 3], initrd);
    assert_eq!(
        text_at(&memory, u64_at(&memory, START_INFO_GPA + 24)),
        "a b"
    );
    assert_eq!(u64_at(&memory, START_INFO_GPA + 32), ACPI_GPA);
    let map = u64_at(&memory, START_INFO_GPA + 40);
    assert_eq!(u32_at(&memory, START_INFO_GPA + 48), 3);
    assert_eq!(
        (u64_at(&memory, map), u64_at(&memory, map + 8)),
        (0, LOW_RAM_END)
    );
    assert_eq!(u32_at(&memory, map + 24 + 16), 2);
}

fn multiboot_header(flags: u32, address_fields: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, checksum];
    words
        .iter()
        .chain(address_fields)
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

fn multiboot_image() -> Vec<u8> {
    let mut data = multiboot_header(0, &[]);
    data.resize(256, 0x90);
    elf32(0x40_00c0, &[load_at(0x40_00b0, 256, 4096)], &data)
}

#[test]
fn a_multiboot_image_gets_arguments_memory_and_environment() {
    let image = multiboot_image();
    let boot = BootConfig {
        kernel_name: "x.flat",
        cmdline: Some("one two"),
        test_device: true,
        ..config(&image)
    };
    let plan = load(&boot).unwrap();
    assert_eq!(plan.entry.protocol, EntryProtocol::Multiboot);
    assert_eq!(
        (plan.entry.rip, plan.entry.rbx),
        (0x40_00c0, MULTIBOOT_INFO_GPA)
    );
    let memory = memory_of(&plan, MEMORY);
    let info = |at| u64::from(u32_at(&memory, MULTIBOOT_INFO_GPA + at));
    assert_eq!(info(0) & 0x4d, 0x4d);
    assert_eq!(info(8), (MEMORY - MIB) >> 10);
    assert_eq!(text_at(&memory, info(16)), "x.flat one two");
    assert_eq!(info(20), 1);
    let (from, to) = (u32_at(&memory, info(24)), u32_at(&memory, info(24) + 4));
    let text = std::str::from_utf8(&memory[from as usize..to as usize]).unwrap();
    assert_eq!(text, "NR_CPUS=2\nMEMSIZE=64\nTEST_DEVICE=1\n");
    assert_eq!(info(44), 3 * 24);
    assert_eq!(u32_at(&memory, info(48)), 20);
    assert_eq!(u64_at(&memory, info(48) + 4 + 48), MIB);
}

#[test]
fn a_file_for_a_multiboot_image_is_its_only_module() {
    let image = multiboot_image();
    let boot = BootConfig {
        initrd: Some(b"NR_CPUS=1\n"),
        test_device: true,
        ..config(&image)
    };
    let memory = memory_of(&load(&boot).unwrap(), MEMORY);
    let modules = u64::from(u32_at(&memory, MULTIBOOT_INFO_GPA + 24));
    assert_eq!(u32_at(&memory, MULTIBOOT_INFO_GPA + 20), 1);
    let (from, to) = (
        u32_at(&memory, modules) as usize,
        u32_at(&memory, modules + 4) as usize,
    );
    assert_eq!(&memory[from..to], b"NR_CPUS=1\n");
    // Without the test devices and without a file there is no module at all.
    let memory = memory_of(&load(&config(&image)).unwrap(), MEMORY);
    assert_eq!(u32_at(&memory, MULTIBOOT_INFO_GPA + 20), 0);
}

#[test]
fn multiboot_address_fields_replace_the_elf_header() {
    let base = 0x20_0000u32;
    let mut image = vec![0xaa; 16];
    let end = base + 64;
    image.extend(multiboot_header(
        1 << 16,
        &[base + 16, base, end, base + 8192, base + 48],
    ));
    image.resize(128, 0xbb);
    let plan = load(&config(&image)).unwrap();
    assert_eq!(plan.entry.rip, u64::from(base) + 48);
    let memory = memory_of(&plan, MEMORY);
    assert_eq!(memory[base as usize..end as usize], image[..64]);
    assert!(
        memory[end as usize..base as usize + 8192]
            .iter()
            .all(|b| *b == 0)
    );
    for fields in [
        [base - 1, base, end, 0, base],
        [base + 17, base, end, 0, base],
        [base + 16, base, base - 1, 0, base],
        [base + 16, base, end, base + 1, base],
        [base + 16, base, base + 4096, 0, base],
    ] {
        let mut image = vec![0; 16];
        image.extend(multiboot_header(1 << 16, &fields));
        image.resize(128, 0);
        error(&config(&image));
    }
}

#[test]
fn multiboot_requirements_that_are_unknown_are_refused() {
    let mut data = multiboot_header(8, &[]);
    data.resize(256, 0);
    let image = elf32(0x40_0000, &[load_at(0x40_0000, 256, 256)], &data);
    assert!(matches!(error(&config(&image)), LoadError::Unsupported(_)));
}

#[test]
fn what_is_no_kernel_is_named() {
    let mut sector = vec![0; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    for (bytes, what) in [
        (b"".as_slice(), "empty"),
        (b"#!/bin/sh\n", "no known header"),
        (&[0x1f, 0x8b, 8], "compressed file"),
        (b"070701", "cpio"),
        (b"MZ", "EFI"),
        (b"vhdxfile", "disk image"),
        (b"!<arch>\n", "archive"),
        (&sector, "boot sector"),
    ] {
        let text = error(&config(bytes)).to_string();
        assert!(
            text.contains(what) && text.contains("give a bzImage"),
            "{text}"
        );
    }
}

#[test]
fn a_truncated_kernel_is_called_truncated() {
    let bz = bzimage(&pack(&vmlinux(), Compression::Gzip));
    for (image, cuts) in [
        (&bz, [0x210, 0x250, 1000, bz.len() - 1].as_slice()),
        (&vmlinux(), &[20, 70, 1000]),
        (&multiboot_image(), &[0x20c]),
    ] {
        for &cut in cuts {
            let text = error(&config(&image[..cut])).to_string();
            assert!(text.contains("truncated"), "cut to {cut}: {text}");
        }
    }
}

#[test]
fn no_cut_of_any_image_panics() {
    let images = [
        bzimage(&pack(
            &elf64(ENTRY, &[load_at(ENTRY, 64, 64)], &[0; 64]),
            Compression::Lz4,
        )),
        pvh_kernel(),
        multiboot_image(),
    ];
    for image in images {
        for cut in 0..image.len() {
            let _ = load(&config(&image[..cut]));
        }
    }
}

#[test]
fn no_change_of_any_byte_panics_or_leaves_ram() {
    let images = [
        bzimage(&pack(
            &elf64(ENTRY, &[load_at(ENTRY, 64, 64)], &[0; 64]),
            Compression::None,
        )),
        pvh_kernel(),
        multiboot_image(),
    ];
    let map = MemoryMap::for_size(MEMORY);
    for image in images {
        for at in 0..image.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bad = image.clone();
                bad[at] = value;
                let Ok(plan) = load(&config(&bad)) else {
                    continue;
                };
                for segment in &plan.segments {
                    assert!(map.is_usable(segment.gpa, segment.bytes().len() as u64));
                }
                assert!(
                    plan.zero
                        .iter()
                        .all(|r| map.is_usable(r.start, r.end - r.start))
                );
            }
        }
    }
}

#[test]
fn hostile_segments_are_refused() {
    let data = [0; 64];
    let cases: [(&[Program], &str); 7] = [
        (&[load_at(ENTRY, 64, 32)], "larger in the file"),
        (&[load_at(ENTRY, 65, 100)], "truncated"),
        (&[load_at(ENTRY, u64::MAX, u64::MAX)], "truncated"),
        (
            &[load_at(u64::MAX - 10, 64, 64)],
            "end of the address space",
        ),
        (
            &[load_at(ENTRY, 64, u64::MAX - ENTRY)],
            "where no VM has RAM",
        ),
        (
            &[load_at(ENTRY, 64, 64), load_at(ENTRY + 63, 64, 64)],
            "overlap",
        ),
        (&[load_at(BOOT_PARAMS_GPA, 64, 64)], "overlap"),
    ];
    for (programs, what) in cases {
        let image = elf64(programs[0].address, programs, &data);
        let text = error(&config(&image)).to_string();
        assert!(text.contains(what), "{what}: {text}");
    }
    let image = elf64(0x5000, &[load_at(ENTRY, 64, 64)], &data);
    assert!(error(&config(&image)).to_string().contains("entry point"));
    let image = elf64(ENTRY, &[], &data);
    assert!(
        error(&config(&image))
            .to_string()
            .contains("nothing to load")
    );
}

#[test]
fn a_kernel_for_another_processor_is_refused() {
    let mut image = vmlinux();
    image[18] = 183;
    assert!(
        error(&config(&image))
            .to_string()
            .contains("another processor")
    );
    let image = elf32(ENTRY as u32, &[load_at(ENTRY, 4, 4)], &[0; 4]);
    assert!(
        error(&config(&image))
            .to_string()
            .contains("neither a PVH note nor")
    );
}

#[test]
fn too_little_memory_names_what_would_do() {
    let kernel = vmlinux();
    let small = BootConfig {
        memory_bytes: 16 * MIB,
        ..config(&kernel)
    };
    assert!(
        error(&small)
            .to_string()
            .contains("at least 19 MiB with --memory")
    );
    let bz = bzimage(&pack(&vec![0; 20 << 20], Compression::Zstd));
    let small = BootConfig {
        memory_bytes: 16 * MIB,
        ..config(&bz)
    };
    assert_eq!(
        error(&small),
        LoadError::UnpacksTooLarge { memory: 16 * MIB }
    );
}

#[test]
fn an_initrd_must_fit_beside_the_kernel() {
    let kernel = vmlinux();
    let initrd = vec![0; 46 << 20];
    let boot = BootConfig {
        initrd: Some(&initrd),
        ..config(&kernel)
    };
    let too_large = error(&boot);
    assert_eq!(too_large.input(), Input::Initrd);
    assert!(
        too_large
            .to_string()
            .contains("at least 65 MiB with --memory"),
        "{too_large}"
    );
    load(&BootConfig {
        memory_bytes: 65 * MIB,
        ..boot
    })
    .unwrap();
    let boot = BootConfig {
        initrd: Some(b""),
        ..config(&kernel)
    };
    assert_eq!(error(&boot), LoadError::InitrdEmpty);
}

#[test]
fn a_command_line_must_fit() {
    let kernel = vmlinux();
    let long = "x".repeat(2048);
    let boot = BootConfig {
        cmdline: Some(&long),
        ..config(&kernel)
    };
    assert_eq!(
        error(&boot),
        LoadError::CmdlineTooLong {
            length: 2048,
            limit: 2047
        }
    );
    load(&BootConfig {
        cmdline: Some(&long[1..]),
        ..boot
    })
    .unwrap();
    let boot = BootConfig {
        cmdline: Some("a\0b"),
        ..config(&kernel)
    };
    assert_eq!(error(&boot).input(), Input::Cmdline);
    let image = multiboot_image();
    let long = "x".repeat(30_000);
    let boot = BootConfig {
        cmdline: Some(&long),
        ..config(&image)
    };
    assert_eq!(error(&boot).input(), Input::Cmdline);
}
