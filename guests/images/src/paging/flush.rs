//! Invalidation of cached translations (Intel SDM 3A 4.10).
//!
//! A processor may drop translations at any time, so the tests only demand that what must be
//! dropped is.

use guest_kit::cpu::{self, cr4};
use guest_kit::memory::{self, Tables, pte};
use guest_kit::trap::{attempt, vector};
use guest_kit::{check_eq, check_fault, insn, report};

use crate::{RW, WINDOW, with_tables};

/// Two pages that tell themselves apart.
fn pages() -> [u64; 2] {
    let pages = [memory::page(), memory::page()];
    memory::write64(pages[0], 100);
    memory::write64(pages[1], 101);
    pages
}

/// Maps alternating pages at the window, invalidating by `invalidate`; counts stale reads.
fn stale(tables: &Tables, bits: u64, address: u64, invalidate: impl Fn()) -> u32 {
    let pages = pages();
    let mut stale = 0;
    for round in 0..200usize {
        tables.map(address, pages[round & 1], bits, 1);
        invalidate();
        stale += u32::from(memory::read64(address) != 100 + (round as u64 & 1));
    }
    stale
}

pub fn invlpg() {
    with_tables(|tables| {
        let drop = || cpu::invlpg(WINDOW);
        check_eq!(stale(tables, RW, WINDOW, drop), 0, "INVLPG");
        let inside = || cpu::invlpg(WINDOW + 0xabc);
        check_eq!(
            stale(tables, RW, WINDOW, inside),
            0,
            "INVLPG within the page"
        );
        let global = || cpu::invlpg(WINDOW);
        cpu::write_cr4(cpu::read_cr4() | cr4::PGE);
        check_eq!(
            stale(tables, RW | pte::G, WINDOW, global),
            0,
            "INVLPG of a global page"
        );
        cpu::write_cr4(cpu::read_cr4() & !cr4::PGE);
        // INVLPG also drops what is cached of the upper levels.
        let tops = [memory::page(), memory::page()];
        let pages = pages();
        for (top, page) in tops.iter().zip(pages) {
            memory::write64(top + (WINDOW >> 12 & 0x1ff) * 8, page | RW);
        }
        let mut wrong = 0;
        for round in 0..200usize {
            memory::write64(tables.entry(WINDOW, 2), tops[round & 1] | RW);
            cpu::invlpg(WINDOW);
            wrong += u32::from(memory::read64(WINDOW) != 100 + (round as u64 & 1));
        }
        check_eq!(wrong, 0, "INVLPG after a change of the upper level");
        check_eq!(
            attempt(|| cpu::invlpg(1 << 63)).is_ok(),
            true,
            "INVLPG of a non-canonical address does nothing"
        );
    });
}

pub fn address_space_switch() {
    with_tables(|tables| {
        let reload = || tables.load();
        check_eq!(stale(tables, RW, WINDOW, reload), 0, "writing CR3");
        let other = Tables::sharing_identity();
        let own = pages();
        tables.map(WINDOW, own[0], RW, 1);
        other.map(WINDOW, own[1], RW, 1);
        let mut wrong = 0;
        for _ in 0..100 {
            other.load();
            wrong += u32::from(memory::read64(WINDOW) != 101);
            tables.load();
            wrong += u32::from(memory::read64(WINDOW) != 100);
        }
        check_eq!(wrong, 0, "two address spaces");
    });
}

pub fn global_pages() {
    with_tables(|tables| {
        let value4 = cpu::read_cr4();
        cpu::write_cr4(value4 | cr4::PGE);
        let toggle = || {
            cpu::write_cr4(value4 & !cr4::PGE);
            cpu::write_cr4(value4 | cr4::PGE);
        };
        check_eq!(
            stale(tables, RW | pte::G, WINDOW, toggle),
            0,
            "toggling CR4.PGE"
        );
        cpu::write_cr4(value4 & !cr4::PGE);
        let reload = || tables.load();
        check_eq!(
            stale(tables, RW | pte::G, WINDOW, reload),
            0,
            "writing CR3 drops global pages when CR4.PGE is clear"
        );
        cpu::write_cr4(value4);
    });
}

const NO_FLUSH: u64 = 1 << 63;

pub fn identifiers() {
    if !cpu::feature_1c(17) {
        return report::skip("PCID", "not in CPUID");
    }
    with_tables(|tables| {
        let value4 = cpu::read_cr4();
        cpu::write_cr4(value4 | cr4::PCIDE);
        let other = Tables::sharing_identity();
        let own = pages();
        tables.map(WINDOW, own[0], RW, 1);
        other.map(WINDOW, own[1], RW, 1);
        cpu::write_cr3(other.root | 2);
        cpu::write_cr3(tables.root | 1);
        check_eq!(cpu::read_cr3(), tables.root | 1, "CR3 shows the PCID");
        let mut wrong = 0;
        for _ in 0..100 {
            cpu::write_cr3(other.root | 2 | NO_FLUSH);
            wrong += u32::from(memory::read64(WINDOW) != 101);
            cpu::write_cr3(tables.root | 1 | NO_FLUSH);
            wrong += u32::from(memory::read64(WINDOW) != 100);
        }
        check_eq!(wrong, 0, "two PCIDs do not mix");
        check_eq!(cpu::read_cr3() >> 63, 0, "bit 63 of CR3 is not kept");
        let flush = || cpu::write_cr3(tables.root | 1);
        check_eq!(
            stale(tables, RW, WINDOW, flush),
            0,
            "writing CR3 flushes its own PCID"
        );
        // A change for another PCID, flushed when that is loaded without bit 63.
        let mut wrong = 0;
        for round in 0..100usize {
            cpu::write_cr3(tables.root | 1 | NO_FLUSH);
            other.map(WINDOW, own[round & 1], RW, 1);
            cpu::write_cr3(other.root | 2);
            wrong += u32::from(memory::read64(WINDOW) != 100 + (round as u64 & 1));
        }
        check_eq!(wrong, 0, "loading a PCID without bit 63 flushes it");
        cpu::write_cr3(tables.root);
        cpu::write_cr4(value4);
        check_fault!(
            attempt(|| cpu::write_cr3(tables.root | NO_FLUSH)),
            vector::GP,
            0,
            "#GP: bit 63 of CR3 without CR4.PCIDE"
        );
    });
}

/// Executes INVPCID.
fn invpcid(kind: u64, pcid: u64, address: u64) {
    let descriptor = [pcid, address];
    insn!("invpcid {}, [{}]", in(reg) kind, in(reg) descriptor.as_ptr());
}

pub fn invalidate_by_identifier() {
    if !cpu::feature_7b(10) || !cpu::feature_1c(17) {
        return report::skip("INVPCID", "not in CPUID");
    }
    with_tables(|tables| {
        let value4 = cpu::read_cr4();
        cpu::write_cr4(value4 | cr4::PCIDE | cr4::PGE);
        cpu::write_cr3(tables.root | 3);
        check_eq!(
            stale(tables, RW, WINDOW, || invpcid(0, 3, WINDOW)),
            0,
            "INVPCID of an address"
        );
        check_eq!(
            stale(tables, RW, WINDOW, || invpcid(1, 3, 0)),
            0,
            "INVPCID of a PCID"
        );
        check_eq!(
            stale(tables, RW | pte::G, WINDOW, || invpcid(2, 0, 0)),
            0,
            "INVPCID of everything, global pages included"
        );
        check_eq!(
            stale(tables, RW, WINDOW, || invpcid(3, 0, 0)),
            0,
            "INVPCID of all but global"
        );
        let gp = vector::GP;
        check_fault!(
            attempt(|| invpcid(4, 0, 0)),
            gp,
            0,
            "#GP: unknown type of INVPCID"
        );
        check_fault!(
            attempt(|| invpcid(1, 1 << 12, 0)),
            gp,
            0,
            "#GP: reserved descriptor bits"
        );
        check_fault!(
            attempt(|| invpcid(0, 3, 1 << 63)),
            gp,
            0,
            "#GP: non-canonical address"
        );
        cpu::write_cr3(tables.root);
        cpu::write_cr4(value4 | cr4::PGE);
        check_fault!(
            attempt(|| invpcid(1, 1, 0)),
            gp,
            0,
            "#GP: a PCID without CR4.PCIDE"
        );
        cpu::write_cr4(value4);
    });
}
