//! What is in the guest's memory before an input changes it.

use super::arena::{NO_EXECUTE_PAGE, PAGES};
use std::sync::OnceLock;

/// The descriptor table.
pub const GDT: u64 = 0x1000;
/// The interrupt descriptor table of 16-bit and 32-bit code.
pub const IDT: u64 = 0x2000;
/// The interrupt descriptor table of long mode.
pub const IDT64: u64 = 0x3000;
/// The task-state segment of long mode.
pub const TSS64: u64 = 0x4000;
/// Another 32-bit task.
pub const TSS_OTHER: u64 = 0x4400;
/// The 32-bit task-state segment; its I/O bitmap reaches to its limit.
pub const TSS: u64 = 0x4800;
/// A 16-bit task.
pub const TSS16: u64 = 0x4c00;
/// The input's code.
pub const CODE: u64 = 0x8000;
/// Handlers: IRET with the operand size of the gate.
pub const HANDLER: u64 = 0xa000;
/// Stack of the code.
pub const STACK: u64 = 0x7000;
/// Stack of handlers that come from level 3.
pub const INNER_STACK: u64 = 0x6800;
/// Four-level tables: PML4, PDPT, PD, PT in turn.
pub const TABLES: u64 = 0x10000;
/// 32-bit page directory, then its table.
pub const TABLES32: u64 = 0x14000;
/// PAE page-directory pointers; the directory is the four-level one.
pub const TABLES_PAE: u64 = 0x16000;

/// The first byte of a page number beyond which there is no memory.
const MMIO: u64 = 0xfee0_0000;

/// Descriptors, in the order of their selectors.
const DESCRIPTORS: [u64; 24] = [
    0,
    0x00cf_9b00_0000_ffff,        // 08 code, 32-bit
    0x00cf_9300_0000_ffff,        // 10 data
    0x00cf_fb00_0000_ffff,        // 18 code, level 3
    0x00cf_f300_0000_ffff,        // 20 data, level 3
    0x0000_8900_4800_0067 | 0x98, // 28 TSS
    0x0000_8200_5000_00ff,        // 30 LDT
    0x00af_9b00_0000_ffff,        // 38 code, 64-bit
    0x00cf_f300_0000_ffff,        // 40 data, level 3
    0x00af_fb00_0000_ffff,        // 48 code, 64-bit, level 3
    0x0000_9b00_0000_ffff,        // 50 code, 16-bit
    0x0000_9300_0000_ffff,        // 58 data, 64 KiB
    0x0000_8900_4400_0067,        // 60 TSS
    0x0000_8100_4c00_002b,        // 68 TSS, 16-bit
    0x0000_8500_0060_0000,        // 70 task gate to 60
    0x0000_8c00_0008_a000,        // 78 call gate, 32-bit
    0x0000_ec02_0008_a000,        // 80 call gate from level 3, two parameters
    0x0000_e400_0050_a000,        // 88 call gate, 16-bit
    0x00cf_9f00_0000_ffff,        // 90 conforming code
    0x0040_9700_0000_0fff,        // 98 data, expands down
    0x0000_8900_4000_0067,        // a0 TSS of long mode, upper half follows
    0,
    0x0000_ec00_0038_a100, // b0 call gate of long mode, upper half follows
    0,
];

type Image = [[u8; 4096]; PAGES];

/// The memory, the same for every mode.
pub fn image() -> &'static Image {
    static IMAGE: OnceLock<Box<Image>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let mut image = Box::new([[0; 4096]; PAGES]);
        // HLT wherever nothing else is, lest most time go to running zeros.
        for page in [
            CODE as usize >> 12..HANDLER as usize >> 12,
            0xb..0x10,
            0x17..PAGES,
        ] {
            image[page].fill([0xf4; 4096]);
        }
        descriptors(&mut image);
        tasks(&mut image);
        tables(&mut image);
        // 16-bit and 32-bit: IRET; 64-bit: IRETQ.
        put(&mut image, HANDLER, &[0xcf]);
        put(&mut image, HANDLER + 0x100, &[0x48, 0xcf]);
        image[NO_EXECUTE_PAGE] = [0x90; 4096];
        image
    })
}

fn put(image: &mut Image, at: u64, bytes: &[u8]) {
    let (page, offset) = (at as usize / 4096, at as usize % 4096);
    image[page][offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn put64(image: &mut Image, at: u64, value: u64) {
    put(image, at, &value.to_le_bytes());
}

fn put32(image: &mut Image, at: u64, value: u32) {
    put(image, at, &value.to_le_bytes());
}

fn descriptors(image: &mut Image) {
    for (index, descriptor) in DESCRIPTORS.into_iter().enumerate() {
        put64(image, GDT + 8 * index as u64, descriptor);
    }
    for vector in 0..256 {
        // Real mode's table is at 0.
        put32(image, 4 * vector, HANDLER as u32);
        let gate = match vector {
            8 => 0x0000_8500_0060_0000,
            0x30 => 0x0000_8600_0050_a000,
            0x31 => 0x0000_e500_0060_0000,
            3 | 4 | 0x80..=0xff => 0x0000_ee00_0008_a000,
            _ => 0x0000_8e00_0008_a000,
        };
        put64(image, IDT + 8 * vector, gate);
        let stack = if vector == 8 { 1 << 32 } else { 0 };
        put64(image, IDT64 + 16 * vector, 0x0000_ee00_0038_a100 | stack);
    }
}

fn tasks(image: &mut Image) {
    for task in [TSS, TSS_OTHER] {
        put32(image, task + 4, INNER_STACK as u32);
        put32(image, task + 8, 0x10);
        put32(image, task + 0x64, 0x68 << 16);
    }
    put32(image, TSS_OTHER + 0x20, HANDLER as u32);
    put32(image, TSS_OTHER + 0x24, 2);
    put32(image, TSS_OTHER + 0x38, STACK as u32);
    for (register, selector) in [0x10, 0x08, 0x10, 0x10, 0x10, 0x10].into_iter().enumerate() {
        put32(image, TSS_OTHER + 0x48 + 4 * register as u64, selector);
    }
    put(image, TSS16 + 2, &(INNER_STACK as u16).to_le_bytes());
    put(image, TSS16 + 4, &[0x58]);
    for stack in 0..10 {
        put64(image, TSS64 + 4 + 8 * stack, INNER_STACK);
    }
    put32(image, TSS64 + 0x64, 0x68 << 16);
}

fn tables(image: &mut Image) {
    let [pml4, pdpt, pd, pt] = [0, 1, 2, 3].map(|level| TABLES + 0x1000 * level);
    for (table, next) in [(pml4, pdpt), (pdpt, pd), (pd, pt)] {
        put64(image, table, next | 7);
    }
    // The same again from the upper half, as a 1 GiB and as a 2 MiB page.
    put64(image, pml4 + 8 * 511, pdpt | 7);
    put64(image, pdpt + 8, 0x87);
    put64(image, pd + 8, 0x87);
    put64(image, pd + 16, 0x183);
    put64(image, TABLES32, TABLES32 + 0x1007);
    put64(image, TABLES32 + 4, 0x87);
    put64(image, TABLES_PAE, pd | 1);
    put64(image, TABLES_PAE + 8, pd | 1);
    for page in 0..PAGES as u64 {
        put64(image, pt + 8 * page, page << 12 | 7);
        put32(
            image,
            TABLES32 + 0x1000 + 4 * page as u32 as u64,
            (page << 12) as u32 | 7,
        );
    }
    let special = [
        0x5005,           // read-only
        0,                // not present
        0x5007 | 1 << 63, // no execute
        MMIO | 7,         // no memory
        pt | 7,           // the tables themselves
        0x5003,           // supervisor
        0x5107,           // global
        0x5007 | 1 << 51, // a reserved bit
        super::arena::ALIAS << 12 | 7,
    ];
    for (index, entry) in special.into_iter().enumerate() {
        let page = (PAGES + index) as u64;
        put64(image, pt + 8 * page, entry);
        put32(image, TABLES32 + 0x1000 + 4 * page, entry as u32);
    }
}
