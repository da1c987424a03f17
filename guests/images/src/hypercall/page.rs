//! GUEST_OS_ID, the hypercall register and the overlay page (TLFS 3.13).

use guest_kit::cpu::{rdmsr, wrmsr};
use guest_kit::hyperv::{self, FAST, OS_ID, call, msr};
use guest_kit::trap::{attempt, vector};
use guest_kit::{check, check_eq, check_fault, cpu, insn, memory, println, smp, user};

const PATTERN: u64 = 0x5a5a_1234_dead_beef;

pub fn establishing() {
    if !hyperv::required("establishing") {
        return;
    }
    check_eq!(rdmsr(msr::GUEST_OS_ID), 0, "GUEST_OS_ID starts at 0");
    check_eq!(rdmsr(msr::HYPERCALL), 0, "HYPERCALL starts at 0");
    let page = memory::page();
    let _ = attempt(|| wrmsr(msr::HYPERCALL, page | 1));
    check_eq!(rdmsr(msr::HYPERCALL) & 1, 0, "no page without an identity");
    wrmsr(msr::GUEST_OS_ID, OS_ID);
    check_eq!(
        rdmsr(msr::GUEST_OS_ID),
        OS_ID,
        "GUEST_OS_ID keeps its value"
    );
    let page = hyperv::enable_hypercalls();
    check_eq!(rdmsr(msr::HYPERCALL), page | 1, "HYPERCALL keeps its value");
    check_eq!(
        hyperv::fast(call::LONG_SPIN_WAIT, 0, 0),
        0,
        "a first call succeeds"
    );
    if smp::start() > 1 {
        check_eq!(
            smp::run_on(1, || (rdmsr(msr::GUEST_OS_ID), rdmsr(msr::HYPERCALL))),
            Some((OS_ID, page | 1)),
            "the registers are the partition's, not the processor's"
        );
        check_eq!(
            smp::run_on(1, || hyperv::fast(call::LONG_SPIN_WAIT, 0, 0)),
            Some(0),
            "a call from another processor"
        );
    }
}

fn content(page: u64) -> [u64; 4] {
    [0, 8, 0x800, 0xff8].map(|offset| memory::read64(page + offset))
}

pub fn overlay() {
    if !hyperv::required("overlay") {
        return;
    }
    let old = hyperv::enable_hypercalls();
    let (first, second) = (memory::page(), memory::page());
    for page in [first, second] {
        for offset in (0..0x1000).step_by(8) {
            memory::write64(page + offset, PATTERN);
        }
    }
    wrmsr(msr::HYPERCALL, first | 1);
    check!(memory::read64(first) != PATTERN, "the page covers RAM");
    let covered = content(first);
    check_fault!(
        attempt(|| memory::write64(first, 0)),
        vector::GP,
        0,
        "#GP: write to the hypercall page"
    );
    check_eq!(content(first), covered, "the write changed nothing");
    wrmsr(msr::HYPERCALL, second | 1);
    check_eq!(
        content(first),
        [PATTERN; 4],
        "moving the page uncovers the RAM"
    );
    check_eq!(
        content(second),
        covered,
        "and shows the same code at the new place"
    );
    wrmsr(msr::HYPERCALL, second);
    check_eq!(content(second), [PATTERN; 4], "disabling uncovers the RAM");
    check_eq!(rdmsr(msr::HYPERCALL) & 1, 0, "the enable bit reads 0");
    let outside = 1u64 << cpu::physical_bits().min(51);
    check_fault!(
        attempt(|| wrmsr(msr::HYPERCALL, outside | 1)),
        vector::GP,
        0,
        "#GP: page beyond the GPA space"
    );
    wrmsr(msr::HYPERCALL, old | 1);
    check_eq!(
        hyperv::fast(call::LONG_SPIN_WAIT, 0, 0),
        0,
        "calls work at the old place again"
    );
}

/// The hypercall instruction in the page's code, if it is one of the processors' own.
fn instruction(page: u64) -> Option<u32> {
    (0..64)
        .map(|offset| memory::read32(page + offset))
        .find_map(|word| match word & 0xff_ffff {
            0xc1_010f | 0xd9_010f => Some(word & 0xff_ffff),
            _ => None,
        })
}

pub fn illegal_environments() {
    if !hyperv::required("illegal_environments") {
        return;
    }
    let page = hyperv::enable_hypercalls();
    check_fault!(
        user::call(|| hyperv::raw(u64::from(call::LONG_SPIN_WAIT) | FAST, 0, 0)),
        vector::UD,
        0,
        "#UD: call from user mode"
    );
    match instruction(page) {
        None => println!("NOTE: the page uses no VMCALL or VMMCALL"),
        Some(code) => {
            let copy = memory::page();
            // The instruction and a return.
            memory::write32(copy, code | 0xc3 << 24);
            wrmsr(msr::HYPERCALL, page);
            check_fault!(
                attempt(|| insn!(
                    "call {copy}", copy = in(reg) copy,
                    inout("rcx") 0x10008u64 => _, inout("rdx") 0u64 => _, inout("r8") 0u64 => _,
                    out("rax") _,
                )),
                vector::UD,
                0,
                "#UD: call while the interface is disabled"
            );
            hyperv::enable_hypercalls();
        }
    }
}

pub fn identity_cleared() {
    if !hyperv::required("identity_cleared") {
        return;
    }
    let page = hyperv::enable_hypercalls();
    let code = memory::read64(page);
    wrmsr(msr::GUEST_OS_ID, 0);
    check_eq!(
        rdmsr(msr::HYPERCALL) & 1,
        0,
        "clearing GUEST_OS_ID disables the page"
    );
    check!(memory::read64(page) != code, "and uncovers the RAM");
    hyperv::enable_hypercalls();
    check_eq!(
        hyperv::fast(call::LONG_SPIN_WAIT, 0, 0),
        0,
        "enabling again works"
    );
}

/// Last, because nothing but a reset unlocks.
pub fn locked() {
    if !hyperv::required("locked") {
        return;
    }
    let page = hyperv::enable_hypercalls();
    if cpu::cpuid(0x4000_0003, 0).edx >> 18 & 1 == 0 {
        return println!("NOTE: no hypercall lock here");
    }
    wrmsr(msr::HYPERCALL, page | 3);
    check_eq!(rdmsr(msr::HYPERCALL), page | 3, "the locked bit reads back");
    // Whether a later write is ignored or faults is not written down; it must not take effect.
    let _ = attempt(|| wrmsr(msr::HYPERCALL, memory::page() | 1));
    check_eq!(
        rdmsr(msr::HYPERCALL),
        page | 3,
        "a locked register does not change"
    );
    let _ = attempt(|| wrmsr(msr::HYPERCALL, 0));
    check_eq!(
        rdmsr(msr::HYPERCALL),
        page | 3,
        "a locked register cannot be disabled"
    );
    check_eq!(
        hyperv::fast(call::LONG_SPIN_WAIT, 0, 0),
        0,
        "calls still work"
    );
}
