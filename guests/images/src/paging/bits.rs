//! Accessed and dirty bits, rights of the upper levels, page sizes.

use guest_kit::memory::{self, Tables, pte};
use guest_kit::{check, check_eq, cpu, report};

use crate::{Access, RW, RWU, WINDOW, error, page_fault, window, with_tables};

/// The accessed and dirty bits of the four entries of the window, level 1 first.
fn bits(tables: &Tables) -> [u64; 4] {
    [1, 2, 3, 4].map(|level| memory::read64(tables.entry(WINDOW, level)) & (pte::A | pte::D))
}

fn clear(tables: &Tables) {
    for level in 1..=4 {
        let entry = tables.entry(WINDOW, level);
        memory::write64(entry, memory::read64(entry) & !(pte::A | pte::D));
    }
    cpu::invlpg(WINDOW);
}

pub fn accessed_and_dirty() {
    with_tables(|tables| {
        window(tables, RWU);
        clear(tables);
        check_eq!(bits(tables), [0; 4], "clear at first");
        let _ = Access::Read.kernel(WINDOW);
        check_eq!(
            bits(tables),
            [pte::A; 4],
            "a read sets A at all levels, D nowhere"
        );
        let _ = Access::Write.kernel(WINDOW);
        check_eq!(
            bits(tables),
            [pte::A | pte::D, pte::A, pte::A, pte::A],
            "a write sets D of the page, though the translation was cached"
        );
        clear(tables);
        let _ = Access::Fetch.kernel(WINDOW);
        check_eq!(bits(tables), [pte::A; 4], "a fetch sets A");
        clear(tables);
        let _ = Access::Write.user(WINDOW);
        check_eq!(
            bits(tables),
            [pte::A | pte::D, pte::A, pte::A, pte::A],
            "a first write sets A and D"
        );
        window(tables, pte::P);
        clear(tables);
        let _ = Access::Write.kernel(WINDOW);
        check_eq!(
            bits(tables)[0] & pte::D,
            0,
            "a write that faults leaves D clear"
        );
        // Another entry of the same table is not touched.
        let other = tables.entry(WINDOW + 0x1000, 1);
        memory::write64(other, memory::page() | RW);
        window(tables, RW);
        let _ = Access::Write.kernel(WINDOW);
        check_eq!(
            memory::read64(other) & (pte::A | pte::D),
            0,
            "the neighbour's stay clear"
        );
    });
}

/// Rights are the narrowest of all levels.
pub fn upper_levels() {
    with_tables(|tables| {
        for level in 2..=4 {
            window(tables, RWU);
            let entry = tables.entry(WINDOW, level);
            let normal = memory::read64(entry);
            memory::write64(entry, normal & !pte::W);
            cpu::invlpg(WINDOW);
            check_eq!(
                Access::Write.kernel(WINDOW),
                page_fault(error::P | error::W, WINDOW),
                "read-only by level {level}"
            );
            memory::write64(entry, normal & !pte::U);
            cpu::invlpg(WINDOW);
            check_eq!(
                Access::Read.user(WINDOW),
                page_fault(error::P | error::U, WINDOW),
                "supervisor page by level {level}"
            );
            memory::write64(entry, normal | pte::NX);
            cpu::invlpg(WINDOW);
            check_eq!(
                Access::Fetch.kernel(WINDOW),
                page_fault(error::P | error::I, WINDOW),
                "no-execute by level {level}"
            );
            memory::write64(entry, normal);
            cpu::invlpg(WINDOW);
            check_eq!(
                Access::Write.user(WINDOW),
                Ok(()),
                "everything by level {level}"
            );
        }
    });
}

pub fn large_pages() {
    with_tables(|tables| {
        let two_mib = memory::aligned_pages(512, 2 << 20);
        memory::write64(two_mib + 0x12_3458, 0x2222);
        tables.map(WINDOW, two_mib, RW, 2);
        cpu::invlpg(WINDOW);
        check_eq!(memory::read64(WINDOW + 0x12_3458), 0x2222, "2 MiB page");
        let entry = tables.entry(WINDOW, 2);
        check_eq!(
            memory::read64(entry) & (pte::A | pte::D),
            pte::A,
            "its A bit"
        );
        memory::write64(WINDOW + 0x1f_fff8, 0x3333);
        check_eq!(
            memory::read64(entry) & (pte::A | pte::D),
            pte::A | pte::D,
            "its D bit"
        );
        check_eq!(
            memory::read64(two_mib + 0x1f_fff8),
            0x3333,
            "its last bytes"
        );
        check_eq!(
            Access::Read.kernel(WINDOW + 0x1f_fffc),
            page_fault(0, WINDOW + 0x20_0000),
            "reading beyond it"
        );
        memory::write64(entry, memory::read64(entry) & !pte::W);
        cpu::invlpg(WINDOW + 0x10_0000);
        check_eq!(
            Access::Write.kernel(WINDOW + 0x5000),
            page_fault(error::P | error::W, WINDOW + 0x5000),
            "INVLPG anywhere in it drops all of it"
        );
        if !cpu::feature_ext_d(26) {
            return report::skip("1 GiB pages", "not in CPUID");
        }
        let giga = WINDOW + (1 << 30);
        tables.map(giga, 0, RW, 3);
        check_eq!(
            memory::read64(giga + two_mib + 0x12_3458),
            0x2222,
            "1 GiB page"
        );
        memory::write64(giga + two_mib + 8, 0x4444);
        check!(memory::read64(two_mib + 8) == 0x4444, "writing through it");
        let flags = memory::read64(tables.entry(giga, 3)) & (pte::A | pte::D);
        check_eq!(flags, pte::A | pte::D, "its A and D bits");
        memory::write64(tables.entry(giga, 3), RW | pte::PS | 1 << 13);
        cpu::invlpg(giga);
        check_eq!(
            Access::Read.kernel(giga),
            page_fault(error::P | error::RSVD, giga),
            "misaligned 1 GiB page"
        );
    });
}
