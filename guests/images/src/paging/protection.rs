//! CR0.WP, SMEP, SMAP and EFER.NXE.

use guest_kit::cpu::{self, cr0, cr4, msr};
use guest_kit::memory::{self, Tables, pte};
use guest_kit::trap::attempt;
use guest_kit::{check_eq, insn, report};

use crate::{Access, RWU, WINDOW, error, outcome, page_fault, window, with_tables};

pub fn write_protect() {
    with_tables(|tables| {
        let value0 = cpu::read_cr0();
        window(tables, pte::P | pte::U);
        cpu::write_cr0(value0 & !cr0::WP);
        check_eq!(
            Access::Write.kernel(WINDOW),
            Ok(()),
            "without CR0.WP the kernel may write"
        );
        check_eq!(
            memory::read64(tables.entry(WINDOW, 1)) & pte::D,
            pte::D,
            "which sets the dirty bit"
        );
        check_eq!(
            Access::Write.user(WINDOW),
            page_fault(error::P | error::W | error::U, WINDOW),
            "the user still may not"
        );
        cpu::write_cr0(value0);
        check_eq!(
            Access::Write.kernel(WINDOW),
            page_fault(error::P | error::W, WINDOW),
            "with CR0.WP the kernel may not"
        );
    });
}

/// Tables whose identity map is the supervisor's, with a user page at the window.
fn with_supervisor_tables(code: impl FnOnce(&Tables)) {
    let tables = Tables::supervisor_identity();
    let page = memory::page();
    memory::write8(page, 0xc3);
    tables.map(WINDOW, page, RWU, 1);
    tables.load();
    code(&tables);
    Tables::boot().load();
}

pub fn execution_prevention() {
    if !cpu::feature_7b(7) {
        return report::skip("SMEP", "not in CPUID");
    }
    let value4 = cpu::read_cr4();
    with_supervisor_tables(|tables| {
        check_eq!(
            Access::Fetch.kernel(WINDOW),
            Ok(()),
            "fetch from a user page without SMEP"
        );
        cpu::write_cr4(value4 | cr4::SMEP);
        check_eq!(
            Access::Fetch.kernel(WINDOW),
            page_fault(error::P | error::I, WINDOW),
            "fetch from a user page with SMEP"
        );
        check_eq!(
            Access::Write.kernel(WINDOW),
            Ok(()),
            "data accesses are not concerned"
        );
        memory::write8(WINDOW, 0xc3);
        let entry = tables.entry(WINDOW, 1);
        memory::write64(entry, memory::read64(entry) & !pte::U);
        cpu::invlpg(WINDOW);
        check_eq!(Access::Fetch.kernel(WINDOW), Ok(()), "nor supervisor pages");
        cpu::write_cr4(value4);
    });
}

pub fn access_prevention() {
    if !cpu::feature_7b(20) {
        return report::skip("SMAP", "not in CPUID");
    }
    let value4 = cpu::read_cr4();
    with_supervisor_tables(|_| {
        cpu::write_cr4(value4 | cr4::SMAP);
        check_eq!(
            Access::Read.kernel(WINDOW),
            page_fault(error::P, WINDOW),
            "read of a user page with SMAP"
        );
        check_eq!(
            Access::Write.kernel(WINDOW),
            page_fault(error::P | error::W, WINDOW),
            "write to a user page with SMAP"
        );
        check_eq!(
            Access::Fetch.kernel(WINDOW),
            Ok(()),
            "fetches are not concerned"
        );
        let set = attempt(|| {
            insn!("stac", "mov byte ptr [{w}], 0xc3", "mov {t}, [{w}]", "clac",
                w = in(reg) WINDOW, t = out(reg) _);
        });
        check_eq!(outcome(set), Ok(()), "STAC lifts it");
        let clear = attempt(|| {
            insn!("stac", "clac", "mov {t}, [{w}]", w = in(reg) WINDOW, t = out(reg) _);
        });
        check_eq!(
            outcome(clear),
            page_fault(error::P, WINDOW),
            "CLAC restores it"
        );
        let value0 = cpu::read_cr0();
        cpu::write_cr0(value0 & !cr0::WP);
        check_eq!(
            Access::Write.kernel(WINDOW),
            page_fault(error::P | error::W, WINDOW),
            "CR0.WP makes no difference"
        );
        cpu::write_cr0(value0);
        cpu::write_cr4(value4);
    });
}

pub fn no_execute_disabled() {
    with_tables(|tables| {
        let efer = cpu::rdmsr(msr::EFER);
        cpu::wrmsr(msr::EFER, efer & !(1 << 11));
        window(tables, RWU);
        check_eq!(
            Access::Fetch.kernel(WINDOW + 0x2000),
            page_fault(0, WINDOW + 0x2000),
            "without EFER.NXE (and SMEP) a fetch is reported like a read"
        );
        window(tables, RWU | pte::NX);
        check_eq!(
            Access::Read.kernel(WINDOW),
            page_fault(error::P | error::RSVD, WINDOW),
            "without EFER.NXE bit 63 is reserved"
        );
        cpu::wrmsr(msr::EFER, efer);
        tables.load();
        check_eq!(
            Access::Read.kernel(WINDOW),
            Ok(()),
            "with EFER.NXE it is not"
        );
    });
}
