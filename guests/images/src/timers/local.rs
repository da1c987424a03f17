//! The local APIC's timer (Intel SDM 3A 11.5.4).

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_kit::apic::{self, register};
use guest_kit::cpu::{self, msr, rdmsr, wrmsr};
use guest_kit::trap::{Frame, set_handler};
use guest_kit::{check, check_eq, hyperv, report, time};

const VECTOR: u8 = 0xd1;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
const DEADLINE: u32 = 2 << 17;
const DIVIDE_BY_1: u32 = 0b1011;
const DIVIDE_BY_16: u32 = 0b0011;

static FIRED: AtomicU64 = AtomicU64::new(0);

fn on_timer(_: &mut Frame) {
    FIRED.fetch_add(1, SeqCst);
    apic::eoi();
}

/// The timer's input frequency, from Hyper-V's register or measured.
fn frequency() -> u64 {
    if hyperv::present() {
        return rdmsr(hyperv::msr::APIC_FREQUENCY);
    }
    apic::write(register::LVT_TIMER, MASKED | u32::from(VECTOR));
    apic::write(register::TIMER_DIVIDE, DIVIDE_BY_1);
    apic::write(register::TIMER_INITIAL, u32::MAX);
    time::delay_us(10_000);
    let counted = u32::MAX - apic::read(register::TIMER_CURRENT);
    apic::write(register::TIMER_INITIAL, 0);
    u64::from(counted) * 100
}

fn begin() -> u32 {
    set_handler(VECTOR, on_timer);
    apic::enable();
    let milliseconds = (frequency() / 1000) as u32;
    apic::write(register::TIMER_INITIAL, 0);
    apic::write(register::TIMER_DIVIDE, DIVIDE_BY_1);
    FIRED.store(0, SeqCst);
    milliseconds
}

fn wait(number: u64, milliseconds: u64) -> bool {
    cpu::sti();
    let done = time::wait_for(milliseconds, || FIRED.load(SeqCst) >= number);
    cpu::cli();
    done
}

pub fn one_shot() {
    let ms = begin();
    apic::write(register::LVT_TIMER, u32::from(VECTOR));
    let start = cpu::rdtsc();
    apic::write(register::TIMER_INITIAL, 20 * ms);
    let running = apic::read(register::TIMER_CURRENT);
    check!(
        running > 0 && running <= 20 * ms,
        "the current count runs down"
    );
    check!(wait(1, 5000), "one-shot timer expires");
    let elapsed = (cpu::rdtsc() - start) / (time::tsc_hz() / 1_000_000);
    // Where the frequency was measured the emulator's clocks differ by some percent.
    check!(elapsed >= 18_000, "not early: {elapsed} us");
    check_eq!(
        apic::read(register::TIMER_CURRENT),
        0,
        "the count stays at 0"
    );
    wait(2, 50);
    check_eq!(FIRED.load(SeqCst), 1, "once");
}

pub fn masked() {
    let ms = begin();
    apic::write(register::LVT_TIMER, MASKED | u32::from(VECTOR));
    apic::write(register::TIMER_INITIAL, 5 * ms);
    wait(1, 30);
    check_eq!(FIRED.load(SeqCst), 0, "a masked timer does not interrupt");
    apic::write(register::LVT_TIMER, u32::from(VECTOR));
    apic::write(register::TIMER_INITIAL, 20 * ms);
    apic::write(register::TIMER_INITIAL, 0);
    wait(1, 50);
    check_eq!(FIRED.load(SeqCst), 0, "initial count 0 stops it");
}

pub fn periodic() {
    let ms = begin();
    apic::write(register::LVT_TIMER, PERIODIC | u32::from(VECTOR));
    let start = cpu::rdtsc();
    apic::write(register::TIMER_INITIAL, 5 * ms);
    check!(wait(10, 10_000), "periodic timer expires ten times");
    let elapsed = (cpu::rdtsc() - start) / (time::tsc_hz() / 1_000_000);
    check!(
        elapsed >= 40_000,
        "not faster than its period: {elapsed} us"
    );
    apic::write(register::LVT_TIMER, MASKED | PERIODIC | u32::from(VECTOR));
    wait(u64::MAX, 20);
    let stopped = FIRED.load(SeqCst);
    wait(u64::MAX, 30);
    check_eq!(FIRED.load(SeqCst), stopped, "masking stops the interrupts");
    apic::write(register::TIMER_INITIAL, 0);
}

pub fn divider() {
    let ms = begin();
    apic::write(register::LVT_TIMER, MASKED | u32::from(VECTOR));
    apic::write(register::TIMER_DIVIDE, DIVIDE_BY_16);
    check_eq!(
        apic::read(register::TIMER_DIVIDE),
        DIVIDE_BY_16,
        "the divider keeps its value"
    );
    apic::write(register::TIMER_INITIAL, u32::MAX);
    time::delay_us(20_000);
    let counted = u64::from(u32::MAX - apic::read(register::TIMER_CURRENT));
    let expected = u64::from(ms) * 20 / 16;
    check!(
        counted > expected / 2 && counted < expected * 50,
        "divide by 16 counts {counted}, about {expected}"
    );
    apic::write(register::TIMER_INITIAL, 0);
    apic::write(register::TIMER_DIVIDE, DIVIDE_BY_1);
}

pub fn tsc_deadline() {
    begin();
    if !cpu::feature_1c(24) {
        return report::skip("TSC deadline", "not in CPUID");
    }
    apic::write(register::LVT_TIMER, DEADLINE | u32::from(VECTOR));
    let due = cpu::rdtsc() + time::tsc_hz() / 50;
    wrmsr(msr::TSC_DEADLINE, due);
    check_eq!(
        rdmsr(msr::TSC_DEADLINE),
        due,
        "the deadline reads back while armed"
    );
    check!(wait(1, 5000), "deadline expires");
    check!(cpu::rdtsc() >= due, "not early");
    check_eq!(
        rdmsr(msr::TSC_DEADLINE),
        0,
        "the register reads 0 afterwards"
    );
    wrmsr(msr::TSC_DEADLINE, 1);
    check!(wait(2, 5000), "a deadline in the past expires at once");
    wrmsr(msr::TSC_DEADLINE, cpu::rdtsc() + time::tsc_hz() / 50);
    wrmsr(msr::TSC_DEADLINE, 0);
    wait(3, 60);
    check_eq!(FIRED.load(SeqCst), 2, "0 disarms");
    apic::write(register::TIMER_INITIAL, 1000);
    check_eq!(
        apic::read(register::TIMER_CURRENT),
        0,
        "the count registers are idle"
    );
    wrmsr(msr::TSC_DEADLINE, cpu::rdtsc() + time::tsc_hz() / 50);
    apic::write(register::LVT_TIMER, u32::from(VECTOR));
    wait(3, 60);
    check_eq!(FIRED.load(SeqCst), 2, "changing the mode disarms");
    wrmsr(msr::TSC_DEADLINE, cpu::rdtsc() + 1000);
    check_eq!(
        rdmsr(msr::TSC_DEADLINE),
        0,
        "outside the mode writes are ignored"
    );
}

pub fn wakes_halt() {
    let ms = begin();
    apic::write(register::LVT_TIMER, u32::from(VECTOR));
    for round in 1..=5u64 {
        apic::write(register::TIMER_INITIAL, 2 * ms);
        cpu::sti_hlt_cli();
        check_eq!(
            FIRED.load(SeqCst),
            round,
            "the timer wakes a halted processor"
        );
    }
}
