//! Page-fault error codes and CR2 (Intel SDM 3A 4.7).

use guest_kit::memory::{self, pte};
use guest_kit::trap::{attempt, vector};
use guest_kit::{check_eq, cpu, insn, options, report};

use crate::{ALL, Access, RW, RWU, WINDOW, error, outcome, page_fault, window, with_tables};

pub fn not_present() {
    with_tables(|tables| {
        for level in (1..=4).rev() {
            // Entries above exist, the one at this level does not.
            let entry = tables.entry(WINDOW, level);
            memory::write64(entry, 0);
            cpu::invlpg(WINDOW);
            for access in ALL {
                let expected = access.error();
                let address = WINDOW + 0x123;
                check_eq!(
                    access.kernel(address),
                    page_fault(expected, address),
                    "{access:?}, no entry at level {level}"
                );
                check_eq!(
                    access.user(address),
                    page_fault(expected | error::U, address),
                    "user {access:?}, no entry at level {level}"
                );
            }
            // All other bits of such an entry are ignored.
            memory::write64(entry, !pte::P);
            check_eq!(
                Access::Read.kernel(WINDOW),
                page_fault(0, WINDOW),
                "entry at level {level} with every bit but P"
            );
            memory::write64(entry, 0);
        }
        window(tables, RW);
        check_eq!(Access::Read.kernel(WINDOW), Ok(()), "present at last");
    });
}

pub fn read_only() {
    with_tables(|tables| {
        window(tables, pte::P);
        check_eq!(
            Access::Read.kernel(WINDOW),
            Ok(()),
            "read of a read-only page"
        );
        check_eq!(Access::Fetch.kernel(WINDOW), Ok(()), "fetch from it");
        check_eq!(
            Access::Write.kernel(WINDOW + 8),
            page_fault(error::P | error::W, WINDOW + 8),
            "write to it"
        );
        window(tables, pte::P | pte::U);
        check_eq!(
            Access::Write.user(WINDOW + 8),
            page_fault(error::P | error::W | error::U, WINDOW + 8),
            "user write to it"
        );
        check_eq!(
            Access::Write.kernel(WINDOW + 8),
            page_fault(error::P | error::W, WINDOW + 8),
            "write to a user's read-only page"
        );
    });
}

pub fn user_access() {
    with_tables(|tables| {
        window(tables, RW);
        for access in ALL {
            check_eq!(
                access.user(WINDOW),
                page_fault(error::P | error::U | access.error(), WINDOW),
                "user {access:?} of a supervisor page"
            );
            check_eq!(access.kernel(WINDOW), Ok(()), "{access:?} of it");
        }
        window(tables, RWU);
        for access in ALL {
            check_eq!(
                access.user(WINDOW),
                Ok(()),
                "user {access:?} of a user page"
            );
        }
    });
}

pub fn no_execute() {
    with_tables(|tables| {
        window(tables, RWU | pte::NX);
        check_eq!(
            Access::Read.kernel(WINDOW),
            Ok(()),
            "read of a no-execute page"
        );
        check_eq!(Access::Write.user(WINDOW), Ok(()), "user write to it");
        check_eq!(
            Access::Fetch.kernel(WINDOW),
            page_fault(error::P | error::I, WINDOW),
            "fetch from it"
        );
        check_eq!(
            Access::Fetch.user(WINDOW),
            page_fault(error::P | error::U | error::I, WINDOW),
            "user fetch from it"
        );
        // An instruction that begins on a good page and ends on a no-execute one.
        let good = memory::page();
        memory::write8(good + 0xfff, 0x90);
        tables.map(WINDOW - 0x1000, good, RWU, 1);
        memory::write8(good + 0xfff, 0xb8);
        let fault = attempt(|| insn!("call {}", in(reg) WINDOW - 1, out("rax") _));
        check_eq!(
            fault.map_err(|fault| (fault.vector, fault.error, fault.cr2, fault.rip)),
            Err((vector::PF, error::P | error::I, WINDOW, WINDOW - 1)),
            "instruction that runs into a no-execute page"
        );
    });
}

pub fn reserved_bits() {
    with_tables(|tables| {
        let page = window(tables, RWU);
        let bits = cpu::physical_bits();
        let beyond = 1u64 << bits;
        for level in 1..=4 {
            if bits >= 52 {
                break;
            }
            let entry = tables.entry(WINDOW, level);
            let normal = memory::read64(entry);
            memory::write64(entry, normal | beyond);
            cpu::invlpg(WINDOW);
            for access in ALL {
                check_eq!(
                    access.kernel(WINDOW + 4),
                    page_fault(error::P | error::RSVD | access.error(), WINDOW + 4),
                    "{access:?}, address beyond {bits} bits at level {level}"
                );
                check_eq!(
                    access.user(WINDOW + 4),
                    page_fault(
                        error::P | error::RSVD | error::U | access.error(),
                        WINDOW + 4
                    ),
                    "user {access:?}, the same"
                );
            }
            memory::write64(entry, normal);
            cpu::invlpg(WINDOW);
        }
        let top = tables.entry(WINDOW, 4);
        memory::write64(top, memory::read64(top) | pte::PS);
        cpu::invlpg(WINDOW);
        let expected = page_fault(error::P | error::RSVD, WINDOW);
        check_eq!(Access::Read.kernel(WINDOW), expected, "PS at the top level");
        memory::write64(top, memory::read64(top) & !pte::PS);
        // Low address bits of a large page are reserved.
        tables.map(WINDOW + (2 << 20), page & !0x1f_ffff | 1 << 13, RW, 2);
        check_eq!(
            Access::Read.kernel(WINDOW + (2 << 20)),
            page_fault(error::P | error::RSVD, WINDOW + (2 << 20)),
            "misaligned 2 MiB page"
        );
    });
}

pub fn read_modify_write() {
    with_tables(|tables| {
        window(tables, pte::P);
        let expected = page_fault(error::P | error::W, WINDOW);
        macro_rules! modify {
            ($name:literal, $($code:tt)*) => {
                check_eq!(
                    outcome(attempt(|| insn!($($code)*))),
                    expected,
                    "{} on a read-only page", $name
                )
            };
        }
        modify!("ADD", "add [{}], eax", in(reg) WINDOW);
        modify!("LOCK INC", "lock inc dword ptr [{}]", in(reg) WINDOW);
        modify!("XCHG", "xchg [{}], eax", in(reg) WINDOW, out("eax") _);
        modify!("BTS", "bts dword ptr [{}], 1", in(reg) WINDOW);
        // CMPXCHG writes in any case, also when the comparison fails.
        modify!("CMPXCHG", "lock cmpxchg [{}], ecx", in(reg) WINDOW, inout("eax") -1 => _,
            in("ecx") 0);
        modify!("CMPXCHG8B", "push rbx", "lock cmpxchg8b [rdi]", "pop rbx", in("rdi") WINDOW,
            inout("eax") -1 => _, inout("edx") 0 => _, in("ecx") 0);
        modify!("STOSB", "stosb", inout("rdi") WINDOW => _, in("al") 0u8);
        modify!("FXSAVE", "fxsave [{}]", in(reg) WINDOW);
        modify!("SETC", "setc [{}]", in(reg) WINDOW);
        check_eq!(
            outcome(attempt(|| insn!("test [{}], eax", in(reg) WINDOW))),
            Ok(()),
            "TEST only reads"
        );
        check_eq!(
            outcome(attempt(|| insn!("bt dword ptr [{}], 1", in(reg) WINDOW))),
            Ok(()),
            "BT only reads"
        );
    });
}

/// CR2 is the first byte that could not be accessed.
pub fn straddling() {
    with_tables(|tables| {
        let page = window(tables, RW);
        let second = WINDOW + 0x1000;
        for access in [Access::Read, Access::Write] {
            check_eq!(
                access.kernel(second - 3),
                page_fault(access.error(), second),
                "{access:?} into an absent second page"
            );
            check_eq!(
                access.kernel(WINDOW - 3),
                page_fault(access.error(), WINDOW - 3),
                "{access:?} from an absent first page"
            );
        }
        memory::write64(page + 0xff8, 0x1111_1111_1111_1111);
        let _ = Access::Write.kernel(second - 3);
        check_eq!(
            memory::read64(page + 0xff8),
            0x1111_1111_1111_1111,
            "a write that faults on its second page writes nothing"
        );
        if options::lenient() {
            return report::skip("read-only second page", "lenient emulator");
        }
        tables.map(second, memory::page(), pte::P, 1);
        check_eq!(
            Access::Write.kernel(second - 3),
            page_fault(error::P | error::W, second),
            "write into a read-only second page"
        );
        check_eq!(
            memory::read64(page + 0xff8),
            0x1111_1111_1111_1111,
            "and still nothing is written"
        );
    });
}

pub fn stack_and_strings() {
    with_tables(|tables| {
        let page = window(tables, RW);
        let fault = attempt(|| {
            insn!("mov {old}, rsp", "mov rsp, {new}", "push rax", "mov rsp, {old}",
                old = out(reg) _, new = in(reg) WINDOW);
        });
        check_eq!(
            fault.map_err(|fault| (fault.vector, fault.error, fault.cr2, fault.rsp)),
            Err((vector::PF, error::W, WINDOW - 8, WINDOW)),
            "PUSH onto an absent page leaves RSP alone"
        );
        let progress = memory::page();
        let fault = attempt(|| {
            // The registers are kept by the handler of the fault; tell them through memory.
            insn!("rep stosb", inout("rdi") WINDOW + 0xff0 => _, inout("rcx") 64u64 => _,
                in("al") 7u8);
        });
        check_eq!(
            outcome(fault.map(|_| ())),
            page_fault(error::W, WINDOW + 0x1000),
            "REP STOSB into an absent page"
        );
        check_eq!(
            memory::read8(page + 0xfff),
            7,
            "REP STOSB filled what was there"
        );
        string_progress(tables.root, progress);
    });
}

/// After the handler maps the page, the string instruction goes on where it was.
fn string_progress(root: u64, spare: u64) {
    use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
    static FAULTS: AtomicU64 = AtomicU64::new(0);
    static REGISTERS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    static PAGES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    PAGES[0].store(root, SeqCst);
    PAGES[1].store(spare, SeqCst);
    guest_kit::trap::set_handler(vector::PF, |frame| {
        FAULTS.fetch_add(1, SeqCst);
        REGISTERS[0].store(frame.rcx, SeqCst);
        REGISTERS[1].store(frame.rdi, SeqCst);
        let tables = memory::Tables {
            root: PAGES[0].load(SeqCst),
        };
        tables.map(WINDOW + 0x1000, PAGES[1].load(SeqCst), RW, 1);
    });
    let (rdi, rcx): (u64, u64);
    insn!("rep stosb", inout("rdi") WINDOW + 0xff0 => rdi, inout("rcx") 64u64 => rcx, in("al") 9u8);
    guest_kit::trap::clear_handler(vector::PF);
    check_eq!(
        FAULTS.load(SeqCst),
        1,
        "one fault, and a page that became present is seen at once"
    );
    check_eq!(
        (REGISTERS[0].load(SeqCst), REGISTERS[1].load(SeqCst)),
        (48, WINDOW + 0x1000),
        "RCX and RDI in the fault show the progress"
    );
    check_eq!(
        (rdi, rcx),
        (WINDOW + 0x1030, 0),
        "and the instruction finishes"
    );
    check_eq!(memory::read8(spare + 0x2f), 9, "with all bytes written");
}
