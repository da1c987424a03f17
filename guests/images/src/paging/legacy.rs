//! The paging modes of 32-bit protected mode.

use guest_kit::cpu::{self, cr4};
use guest_kit::legacy::{self, Outcome, Paging};
use guest_kit::memory::{self, pte};
use guest_kit::trap::vector;
use guest_kit::{check_eq, report};

core::arch::global_asm!(
    ".text",
    ".code32",
    ".global paging32_read, paging32_write, paging32_call, paging32_without_wp",
    "paging32_read:",
    "mov eax, [eax]",
    "ret",
    "paging32_write:",
    "mov dword ptr [eax], 0xc3",
    "ret",
    "paging32_call:",
    "call eax",
    "ret",
    "paging32_without_wp:",
    "mov ecx, cr0",
    "and ecx, 0xfffeffff",
    "mov cr0, ecx",
    "mov dword ptr [eax], 0xc3",
    "or ecx, 0x10000",
    "mov cr0, ecx",
    "ret",
    ".code64",
);

unsafe extern "C" {
    static paging32_read: u8;
    static paging32_write: u8;
    static paging32_call: u8;
    static paging32_without_wp: u8;
}

fn read() -> u64 {
    (&raw const paging32_read) as u64
}

fn write() -> u64 {
    (&raw const paging32_write) as u64
}

/// Where the tests map their pages: above all RAM.
const WINDOW: u32 = 0x7040_0000;

/// Vector, error code and CR2.
fn short(outcome: Outcome) -> Result<u32, (u8, u32, u32)> {
    outcome.map_err(|fault| (fault.vector, fault.error, fault.cr2))
}

fn page_fault(error: u32, address: u32) -> Result<u32, (u8, u32, u32)> {
    Err((vector::PF, error, address))
}

/// Two-level tables: 4 MiB pages map everything one to one, a table has the window.
fn two_level_tables() -> (Paging, u64) {
    let (directory, table) = (memory::page(), memory::page());
    for index in 0..1024u64 {
        memory::write32(directory + index * 4, (index << 22) as u32 | 0x83);
    }
    memory::write32(directory + u64::from(WINDOW >> 22) * 4, table as u32 | 7);
    (
        Paging {
            cr3: directory as u32,
            cr4: 1 << 4,
        },
        table,
    )
}

pub fn two_levels() {
    let (paging, table) = two_level_tables();
    let run = |code: u64, address: u32| short(legacy::run(code, address, paging));
    let page = memory::page();
    memory::write32(page + 8, 0x1111_2222);
    check_eq!(
        run(read(), WINDOW),
        page_fault(0, WINDOW),
        "two levels: absent"
    );
    check_eq!(
        run(write(), WINDOW + 4),
        page_fault(2, WINDOW + 4),
        "two levels: write, absent"
    );
    memory::write32(table, page as u32 | 1);
    check_eq!(run(read(), WINDOW + 8), Ok(0x1111_2222), "two levels: read");
    check_eq!(
        memory::read64(table) & (pte::A | pte::D),
        pte::A,
        "two levels: accessed bit"
    );
    check_eq!(
        run(write(), WINDOW),
        page_fault(3, WINDOW),
        "two levels: write to read-only"
    );
    let relaxed = (&raw const paging32_without_wp) as u64;
    check_eq!(
        run(relaxed, WINDOW).is_ok(),
        true,
        "two levels: write without CR0.WP"
    );
    memory::write32(table, page as u32 | 3);
    check_eq!(run(write(), WINDOW + 16).is_ok(), true, "two levels: write");
    check_eq!(memory::read32(page + 16), 0xc3, "two levels: it arrived");
    check_eq!(
        memory::read64(table) & pte::D,
        pte::D,
        "two levels: dirty bit"
    );
    let call = (&raw const paging32_call) as u64;
    check_eq!(
        run(call, WINDOW + 16).is_ok(),
        true,
        "two levels: there is no NX"
    );
    check_eq!(
        run(call, WINDOW + 0x1000),
        page_fault(0, WINDOW + 0x1000),
        "two levels: a fetch is reported like a read"
    );
    // A 4 MiB page of its own.
    let big = memory::aligned_pages(1024, 4 << 20);
    memory::write32(big + 0x3f_fff0, 0x3333);
    let entry = u64::from(paging.cr3) + u64::from(WINDOW >> 22) * 4;
    memory::write32(entry, big as u32 | 0x83);
    check_eq!(
        run(read(), WINDOW + 0x3f_fff0),
        Ok(0x3333),
        "two levels: 4 MiB page"
    );
    check_eq!(
        memory::read32(entry) & 0x60,
        0x20,
        "two levels: its accessed bit"
    );
}

/// PAE tables: 2 MiB pages map everything one to one, a table has the window.
fn three_level_tables() -> (Paging, u64, u64) {
    let (pointers, table) = (memory::page(), memory::page());
    for quarter in 0..4u64 {
        let directory = memory::page();
        memory::write64(pointers + quarter * 8, directory | pte::P);
        for index in 0..512u64 {
            memory::write64(directory + index * 8, quarter << 30 | index << 21 | 0x83);
        }
        if quarter == u64::from(WINDOW >> 30) {
            let slot = u64::from(WINDOW >> 21 & 0x1ff);
            memory::write64(directory + slot * 8, table | 7);
        }
    }
    (
        Paging {
            cr3: pointers as u32,
            cr4: cr4::PAE as u32,
        },
        pointers,
        table,
    )
}

pub fn three_levels() {
    let (paging, pointers, table) = three_level_tables();
    let run = |code: u64, address: u32| short(legacy::run(code, address, paging));
    let call = (&raw const paging32_call) as u64;
    let page = memory::page();
    memory::write32(page + 8, 0x5555_6666);
    check_eq!(run(read(), WINDOW), page_fault(0, WINDOW), "PAE: absent");
    memory::write64(table, page | pte::P);
    check_eq!(run(read(), WINDOW + 8), Ok(0x5555_6666), "PAE: read");
    check_eq!(
        memory::read64(table) & (pte::A | pte::D),
        pte::A,
        "PAE: accessed bit"
    );
    check_eq!(
        run(write(), WINDOW),
        page_fault(3, WINDOW),
        "PAE: write to read-only"
    );
    memory::write64(table, page | pte::P | pte::W | pte::NX);
    check_eq!(run(write(), WINDOW + 16).is_ok(), true, "PAE: write");
    check_eq!(memory::read64(table) & pte::D, pte::D, "PAE: dirty bit");
    check_eq!(
        run(call, WINDOW),
        page_fault(0x11, WINDOW),
        "PAE: no-execute"
    );
    check_eq!(
        run(read(), WINDOW + 0x1000),
        page_fault(0, WINDOW + 0x1000),
        "PAE: next page"
    );
    let big = memory::aligned_pages(512, 2 << 20);
    memory::write32(big + 0x1f_fff0, 0x4444);
    let directory = memory::read64(pointers + u64::from(WINDOW >> 30) * 8) & pte::ADDRESS;
    let entry = directory + u64::from(WINDOW >> 21 & 0x1ff) * 8;
    memory::write64(entry, big | 0x83);
    check_eq!(
        run(read(), WINDOW + 0x1f_fff0),
        Ok(0x4444),
        "PAE: 2 MiB page"
    );
    let bits = cpu::physical_bits();
    if bits >= 52 {
        return;
    }
    memory::write64(entry, big | 0x83 | 1 << bits);
    check_eq!(
        run(read(), WINDOW),
        page_fault(9, WINDOW),
        "PAE: address beyond {bits} bits"
    );
    if guest_kit::options::lenient() {
        return report::skip("PAE: the four pointers", "lenient emulator");
    }
    // A quarter that is absent, and the pointers are read when CR3 is loaded.
    memory::write64(entry, big | 0x83);
    let slot = pointers + u64::from(WINDOW >> 30) * 8;
    memory::write64(slot, 0);
    check_eq!(
        run(read(), WINDOW),
        page_fault(0, WINDOW),
        "PAE: absent quarter"
    );
}
