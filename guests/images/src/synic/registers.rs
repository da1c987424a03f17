//! SynIC registers and the pages' overlay behaviour (TLFS 11.8).

use guest_kit::cpu::{rdmsr, wrmsr};
use guest_kit::hyperv::{self, msr};
use guest_kit::trap::{attempt, vector};
use guest_kit::{check_eq, check_fault, memory, smp};

const PATTERN: u64 = 0x0123_4567_89ab_cdef;

fn values() -> ([u64; 5], [u64; 16]) {
    let registers = [
        msr::SCONTROL,
        msr::SVERSION,
        msr::SIEFP,
        msr::SIMP,
        msr::EOM,
    ]
    .map(rdmsr);
    (
        registers,
        core::array::from_fn(|sint| rdmsr(msr::SINT0 + sint as u32)),
    )
}

pub fn reset_values() {
    if !hyperv::required("reset_values") {
        return;
    }
    let expected = ([0, 1, 0, 0, 0], [0x1_0000; 16]);
    check_eq!(values(), expected, "reset values of the first processor");
    if smp::start() > 1 {
        check_eq!(
            smp::run_on(1, values),
            Some(expected),
            "reset values of another processor"
        );
    }
}

pub fn faults() {
    if !hyperv::required("faults") {
        return;
    }
    let gp = vector::GP;
    check_fault!(
        attempt(|| wrmsr(msr::SVERSION, 1)),
        gp,
        0,
        "#GP: write to SVERSION"
    );
    for bad in [0u64, 1, 15] {
        check_fault!(
            attempt(|| wrmsr(msr::SINT0 + 5, bad)),
            gp,
            0,
            "#GP: unmasked source with vector {bad}"
        );
    }
    check_eq!(
        rdmsr(msr::SINT0 + 5),
        0x1_0000,
        "the refused value was not kept"
    );
    wrmsr(msr::SINT0 + 5, 0x10);
    check_eq!(
        rdmsr(msr::SINT0 + 5),
        0x10,
        "vector 16 is the first valid one"
    );
    wrmsr(msr::SINT0 + 5, 0x1_0000 | 0xff);
    check_eq!(rdmsr(msr::SINT0 + 5), 0x1_00ff, "masked with vector 255");
    wrmsr(msr::SINT0 + 5, 0x1_0000);
    check_fault!(
        attempt(|| rdmsr(msr::SINT0 + 16)),
        gp,
        0,
        "#GP: read beyond SINT15"
    );
    check_fault!(
        attempt(|| wrmsr(msr::SINT0 + 16, 0)),
        gp,
        0,
        "#GP: write beyond SINT15"
    );
    wrmsr(msr::EOM, 0);
    check_eq!(rdmsr(msr::EOM), 0, "EOM reads 0");
    wrmsr(msr::SCONTROL, 1);
    check_eq!(rdmsr(msr::SCONTROL) & 1, 1, "SCONTROL keeps its value");
    wrmsr(msr::SCONTROL, 0);
}

pub fn overlays() {
    if !hyperv::required("overlays") {
        return;
    }
    for (name, register) in [("SIMP", msr::SIMP), ("SIEFP", msr::SIEFP)] {
        let (page, other) = (memory::page(), memory::page());
        for offset in (0..0x1000).step_by(8) {
            memory::write64(page + offset, PATTERN);
            memory::write64(other + offset, PATTERN);
        }
        wrmsr(register, page | 1);
        check_eq!(rdmsr(register), page | 1, "{name} keeps its value");
        let zero = (0..0x1000)
            .step_by(8)
            .all(|offset| memory::read64(page + offset) == 0);
        check_eq!(zero, true, "{name}: the page is zero at first");
        memory::write64(page + 0xff8, 77);
        check_eq!(
            memory::read64(page + 0xff8),
            77,
            "{name}: the page is writable"
        );
        wrmsr(register, other | 1);
        check_eq!(
            memory::read64(page + 0xff8),
            PATTERN,
            "{name}: moving uncovers the RAM"
        );
        check_eq!(
            memory::read64(other + 0xff8),
            77,
            "{name}: the content moves along"
        );
        wrmsr(register, other);
        check_eq!(
            memory::read64(other + 0xff8),
            PATTERN,
            "{name}: disabling uncovers the RAM"
        );
        wrmsr(register, 0);
    }
}
