//! The partition's reference time (TLFS 12.1 to 12.4).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use guest_kit::cpu::{self, rdmsr, wrmsr};
use guest_kit::hyperv::{self, msr};
use guest_kit::trap::{attempt, vector};
use guest_kit::{check, check_eq, check_fault, memory, println, smp, time};

static PAGE: AtomicU64 = AtomicU64::new(0);

fn enable_page() -> u64 {
    if PAGE.load(SeqCst) == 0 {
        PAGE.store(memory::page(), SeqCst);
    }
    let page = PAGE.load(SeqCst);
    wrmsr(msr::REFERENCE_TSC, page | 1);
    page
}

/// The reference time of the counter register, in 100 ns.
pub fn now() -> u64 {
    rdmsr(msr::TIME_REF_COUNT)
}

/// The reference time of the page; `None` while its sequence number is 0.
fn page_time(page: u64) -> Option<u64> {
    loop {
        let sequence = memory::read32(page);
        if sequence == 0 {
            return None;
        }
        let tsc = cpu::rdtsc();
        let (scale, offset) = (memory::read64(page + 8), memory::read64(page + 16));
        if memory::read32(page) == sequence {
            let scaled = ((u128::from(tsc) * u128::from(scale)) >> 64) as u64;
            return Some(scaled.wrapping_add(offset));
        }
    }
}

pub fn frequencies() {
    if !hyperv::required("frequencies") {
        return;
    }
    let (tsc, apic) = (rdmsr(msr::TSC_FREQUENCY), rdmsr(msr::APIC_FREQUENCY));
    println!("NOTE: TSC {tsc} Hz, APIC {apic} Hz");
    check!(tsc > 1_000_000, "TSC frequency is sensible");
    check!(apic > 100_000, "APIC frequency is sensible");
    check_fault!(
        attempt(|| wrmsr(msr::TSC_FREQUENCY, 1)),
        vector::GP,
        0,
        "#GP: TSC_FREQUENCY"
    );
    check_fault!(
        attempt(|| wrmsr(msr::APIC_FREQUENCY, 1)),
        vector::GP,
        0,
        "#GP: APIC_FREQUENCY"
    );
    let (reference, counter) = (now(), cpu::rdtsc());
    time::delay_us(200_000);
    let (reference, counter) = (now() - reference, cpu::rdtsc() - counter);
    let measured = counter as u128 * 10_000_000 / u128::from(reference.max(1));
    let difference = measured.abs_diff(u128::from(tsc));
    check!(
        difference < u128::from(tsc) / 100,
        "TSC against the reference counter: {measured} Hz"
    );
}

pub fn counter() {
    if !hyperv::required("counter") {
        return;
    }
    let mut backwards = 0;
    let mut last = now();
    for _ in 0..20_000 {
        let next = now();
        backwards += u32::from(next < last);
        last = next;
    }
    check_eq!(backwards, 0, "the counter never goes back");
    check_fault!(
        attempt(|| wrmsr(msr::TIME_REF_COUNT, 0)),
        vector::GP,
        0,
        "#GP: write to it"
    );
    // Counting began with the partition: minutes ago at most.
    check!(now() < 3_600 * 10_000_000, "it started at 0");
}

pub fn tsc_page() {
    if !hyperv::required("tsc_page") {
        return;
    }
    check_eq!(rdmsr(msr::REFERENCE_TSC), 0, "REFERENCE_TSC starts at 0");
    let page = memory::page();
    memory::write64(page + 0xff8, 0x1234);
    PAGE.store(page, SeqCst);
    enable_page();
    check_eq!(
        rdmsr(msr::REFERENCE_TSC),
        page | 1,
        "REFERENCE_TSC keeps its value"
    );
    check_eq!(memory::read64(page + 0xff8), 0, "the page covers RAM");
    let Some(first) = page_time(page) else {
        return println!("NOTE: sequence 0, the page is not in use here");
    };
    check!(first > 0, "the page tells a time");
    // The page's time lies between two readings of the counter (to 10 µs).
    let mut worst = 0u64;
    for _ in 0..5000 {
        let before = now();
        let between = page_time(page).unwrap_or(0);
        let after = now();
        worst = worst
            .max(before.saturating_sub(between))
            .max(between.saturating_sub(after));
    }
    check!(
        worst <= 100,
        "page and counter agree: worst {worst} x 100 ns"
    );
    let mut backwards = 0;
    let mut last = 0;
    for _ in 0..20_000 {
        let next = page_time(page).unwrap_or(0);
        backwards += u32::from(next < last);
        last = next;
    }
    check_eq!(backwards, 0, "the page's time never goes back");
    wrmsr(msr::REFERENCE_TSC, page);
    check_eq!(
        memory::read64(page + 0xff8),
        0x1234,
        "disabling uncovers the RAM"
    );
    enable_page();
}

static TURN: AtomicUsize = AtomicUsize::new(0);
static LATEST: AtomicU64 = AtomicU64::new(0);
static BACKWARDS: AtomicU64 = AtomicU64::new(0);

/// The processors read in turn: each reading must not be older than the one before.
fn in_turn(name: &str, read: fn() -> u64) {
    const ROUNDS: usize = 2000;
    let count = smp::start();
    TURN.store(0, SeqCst);
    LATEST.store(0, SeqCst);
    BACKWARDS.store(0, SeqCst);
    let ended = smp::run_everywhere(
        &|index| {
            for round in 0..ROUNDS {
                if !time::wait_for(5000, || TURN.load(SeqCst) == round * count + index) {
                    return;
                }
                let value = read();
                if value < LATEST.load(SeqCst) {
                    BACKWARDS.fetch_add(1, SeqCst);
                }
                LATEST.store(value, SeqCst);
                TURN.fetch_add(1, SeqCst);
            }
        },
        30_000,
    );
    check!(
        ended && TURN.load(SeqCst) == ROUNDS * count,
        "{name}: all processors took their turns"
    );
    check_eq!(
        BACKWARDS.load(SeqCst),
        0,
        "{name}: never goes back across processors"
    );
}

pub fn across_processors() {
    if !hyperv::required("across_processors") {
        return;
    }
    enable_page();
    in_turn("counter", now);
    in_turn("page", || page_time(PAGE.load(SeqCst)).unwrap_or_else(now));
    in_turn("TSC", cpu::rdtsc);
}

pub fn invariant_control() {
    if !hyperv::required("invariant_control") {
        return;
    }
    if cpu::cpuid(0x4000_0003, 0).eax >> 15 & 1 == 0 {
        check_fault!(
            attempt(|| rdmsr(msr::TSC_INVARIANT_CONTROL)),
            vector::GP,
            0,
            "#GP: invariant control without the privilege"
        );
        return;
    }
    wrmsr(msr::TSC_INVARIANT_CONTROL, 1);
    check_eq!(
        rdmsr(msr::TSC_INVARIANT_CONTROL) & 1,
        1,
        "invariant control keeps its value"
    );
    check_eq!(
        cpu::cpuid(0x8000_0007, 0).edx >> 8 & 1,
        1,
        "CPUID then says the TSC is invariant"
    );
}
