//! Synthetic timers in message and direct mode (TLFS 12.5).

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_kit::cpu::{self, rdmsr, wrmsr};
use guest_kit::hyperv::{self, msr};
use guest_kit::trap::{Frame, set_handler};
use guest_kit::{apic, check, check_eq, memory, println, smp, time};

use crate::reference::now;

const ENABLE: u64 = 1;
const PERIODIC: u64 = 1 << 1;
const LAZY: u64 = 1 << 2;
const AUTO_ENABLE: u64 = 1 << 3;
const DIRECT: u64 = 1 << 12;
const SINT: u64 = 2;
const VECTOR: u8 = 0xc2;
const DIRECT_VECTOR: u8 = 0xc3;
const TIMER_EXPIRED: u32 = 0x8000_0010;
const MILLISECOND: u64 = 10_000;

static FIRED: AtomicU64 = AtomicU64::new(0);
static DIRECT_FIRED: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicU64 = AtomicU64::new(0);
static EXPIRATION: AtomicU64 = AtomicU64::new(0);
static DELIVERY: AtomicU64 = AtomicU64::new(0);
/// Which timers' messages came, and whether any was malformed (bit 63).
static TIMERS: AtomicU64 = AtomicU64::new(0);
static MESSAGES: [AtomicU64; smp::MAX] = [const { AtomicU64::new(0) }; smp::MAX];

fn on_message(_: &mut Frame) {
    let slot = MESSAGES[smp::index()].load(SeqCst) + SINT * 256;
    LAST.store(now(), SeqCst);
    let kind = memory::read32(slot);
    if kind == TIMER_EXPIRED && memory::read8(slot + 4) >= 24 {
        TIMERS.fetch_or(1 << (memory::read32(slot + 16) & 31), SeqCst);
        EXPIRATION.store(memory::read64(slot + 24), SeqCst);
        DELIVERY.store(memory::read64(slot + 32), SeqCst);
    } else {
        TIMERS.fetch_or(1 << 63, SeqCst);
    }
    let more = memory::read8(slot + 5) & 1 != 0;
    memory::write32(slot, 0);
    if more {
        wrmsr(msr::EOM, 0);
    }
    FIRED.fetch_add(1, SeqCst);
    apic::eoi();
}

fn on_direct(_: &mut Frame) {
    LAST.store(now(), SeqCst);
    DIRECT_FIRED.fetch_add(1, SeqCst);
    apic::eoi();
}

fn config(timer: u32) -> u32 {
    msr::STIMER0_CONFIG + timer * 2
}

fn count(timer: u32) -> u32 {
    msr::STIMER0_COUNT + timer * 2
}

fn begin(test: &str) -> bool {
    if !hyperv::required(test) {
        return false;
    }
    for counter in [
        &FIRED,
        &DIRECT_FIRED,
        &LAST,
        &EXPIRATION,
        &DELIVERY,
        &TIMERS,
    ] {
        counter.store(0, SeqCst);
    }
    set_handler(VECTOR, on_message);
    set_handler(DIRECT_VECTOR, on_direct);
    set_up();
    true
}

/// Message page and interrupt source of the calling processor.
fn set_up() {
    apic::enable();
    let own = &MESSAGES[smp::index()];
    if own.load(SeqCst) == 0 {
        own.store(memory::page(), SeqCst);
    }
    wrmsr(msr::SIMP, own.load(SeqCst) | 1);
    wrmsr(msr::SCONTROL, 1);
    wrmsr(msr::SINT0 + SINT as u32, u64::from(VECTOR));
}

fn stop_all() {
    for timer in 0..4 {
        wrmsr(config(timer), 0);
        wrmsr(count(timer), 0);
    }
}

/// Takes interrupts until the counter reaches `number`.
fn wait(counter: &AtomicU64, number: u64, milliseconds: u64) -> bool {
    cpu::sti();
    let done = time::wait_for(milliseconds, || counter.load(SeqCst) >= number);
    cpu::cli();
    done
}

fn settle(milliseconds: u64) {
    wait(&FIRED, u64::MAX, milliseconds);
}

pub fn reset_values() {
    if !hyperv::required("reset_values") {
        return;
    }
    let values: [u64; 8] = core::array::from_fn(|index| rdmsr(msr::STIMER0_CONFIG + index as u32));
    check_eq!(values, [0; 8], "timer registers start at 0");
}

pub fn one_shot() {
    if !begin("one_shot") {
        return;
    }
    for timer in 0..4 {
        FIRED.store(0, SeqCst);
        TIMERS.store(0, SeqCst);
        let due = now() + 20 * MILLISECOND;
        wrmsr(count(timer), due);
        check_eq!(
            rdmsr(count(timer)),
            due,
            "timer {timer}: count keeps its value"
        );
        wrmsr(config(timer), SINT << 16 | ENABLE);
        check!(wait(&FIRED, 1, 5000), "timer {timer}: expires");
        check!(LAST.load(SeqCst) >= due, "timer {timer}: not early");
        check_eq!(
            TIMERS.load(SeqCst),
            1 << timer,
            "timer {timer}: message names it"
        );
        check_eq!(
            EXPIRATION.load(SeqCst),
            due,
            "timer {timer}: expiration time in the message"
        );
        check!(
            (due..=LAST.load(SeqCst)).contains(&DELIVERY.load(SeqCst)),
            "timer {timer}: delivery time in the message"
        );
        check_eq!(
            rdmsr(config(timer)) & ENABLE,
            0,
            "timer {timer}: disabled afterwards"
        );
        settle(50);
        check_eq!(FIRED.load(SeqCst), 1, "timer {timer}: once");
    }
    stop_all();
}

pub fn in_the_past() {
    if !begin("in_the_past") {
        return;
    }
    wrmsr(count(0), 1);
    wrmsr(config(0), SINT << 16 | ENABLE);
    check!(wait(&FIRED, 1, 5000), "a time in the past expires at once");
    wrmsr(config(0), SINT << 16 | AUTO_ENABLE);
    wrmsr(count(0), 2);
    check!(wait(&FIRED, 2, 5000), "also with automatic enable");
    stop_all();
}

pub fn periodic() {
    if !begin("periodic") {
        return;
    }
    for (name, flags) in [("periodic", PERIODIC), ("lazy periodic", PERIODIC | LAZY)] {
        FIRED.store(0, SeqCst);
        let start = now();
        wrmsr(count(1), 10 * MILLISECOND);
        wrmsr(config(1), SINT << 16 | flags | ENABLE);
        check!(wait(&FIRED, 10, 10_000), "{name}: ten expirations");
        let elapsed = now() - start;
        check!(
            elapsed >= 99 * MILLISECOND,
            "{name}: not faster than its period: {elapsed}"
        );
        check_eq!(rdmsr(config(1)) & ENABLE, ENABLE, "{name}: stays enabled");
        wrmsr(config(1), 0);
        settle(30);
        let stopped = FIRED.load(SeqCst);
        settle(60);
        check_eq!(FIRED.load(SeqCst), stopped, "{name}: stops when disabled");
    }
    check_eq!(TIMERS.load(SeqCst), 2, "all messages name the timer");
    stop_all();
}

pub fn auto_enable() {
    if !begin("auto_enable") {
        return;
    }
    wrmsr(config(2), SINT << 16 | AUTO_ENABLE);
    check_eq!(
        rdmsr(config(2)) & ENABLE,
        0,
        "automatic enable does not enable by itself"
    );
    let due = now() + 10 * MILLISECOND;
    wrmsr(count(2), due);
    check!(wait(&FIRED, 1, 5000), "writing the count starts it");
    check!(LAST.load(SeqCst) >= due, "not early");
    wrmsr(count(2), now() + 3_600_000 * MILLISECOND);
    check_eq!(
        rdmsr(config(2)) & ENABLE,
        ENABLE,
        "and shows as enabled meanwhile"
    );
    wrmsr(count(2), 0);
    check_eq!(rdmsr(config(2)) & ENABLE, 0, "count 0 disables");
    stop_all();
}

pub fn disabling() {
    if !begin("disabling") {
        return;
    }
    wrmsr(config(3), 0);
    wrmsr(count(3), now() + 20 * MILLISECOND);
    wrmsr(config(3), SINT << 16 | ENABLE);
    wrmsr(count(3), 0);
    settle(60);
    check_eq!(FIRED.load(SeqCst), 0, "count 0 stops a running timer");
    wrmsr(count(3), now() + 20 * MILLISECOND);
    wrmsr(config(3), SINT << 16 | ENABLE);
    wrmsr(config(3), SINT << 16);
    settle(60);
    check_eq!(
        FIRED.load(SeqCst),
        0,
        "clearing enable stops a running timer"
    );
    wrmsr(count(3), now() + 20 * MILLISECOND);
    wrmsr(config(3), ENABLE);
    check_eq!(
        rdmsr(config(3)) & ENABLE,
        0,
        "interrupt source 0 cannot be enabled"
    );
    settle(60);
    check_eq!(FIRED.load(SeqCst), 0, "and does not fire");
    stop_all();
}

pub fn direct_mode() {
    if !begin("direct_mode") {
        return;
    }
    if cpu::cpuid(0x4000_0003, 0).edx >> 19 & 1 == 0 {
        return println!("NOTE: no direct mode here");
    }
    let direct = DIRECT | u64::from(DIRECT_VECTOR) << 4;
    let due = now() + 10 * MILLISECOND;
    wrmsr(config(0), direct | AUTO_ENABLE);
    wrmsr(count(0), due);
    check!(wait(&DIRECT_FIRED, 1, 5000), "direct mode interrupts");
    check!(LAST.load(SeqCst) >= due, "not early");
    for round in 2..=50u64 {
        wrmsr(count(0), now() + MILLISECOND / 5);
        if !wait(&DIRECT_FIRED, round, 5000) {
            break;
        }
    }
    check_eq!(
        DIRECT_FIRED.load(SeqCst),
        50,
        "again and again by writing the count"
    );
    check_eq!(FIRED.load(SeqCst), 0, "without messages");
    wrmsr(config(0), 0);
    DIRECT_FIRED.store(0, SeqCst);
    wrmsr(count(0), 5 * MILLISECOND);
    wrmsr(config(0), direct | PERIODIC | ENABLE);
    check!(wait(&DIRECT_FIRED, 5, 5000), "periodic direct mode");
    stop_all();
}

pub fn all_at_once() {
    if !begin("all_at_once") {
        return;
    }
    let due = now() + 10 * MILLISECOND;
    for timer in 0..4 {
        wrmsr(count(timer), due + u64::from(timer));
        wrmsr(config(timer), SINT << 16 | ENABLE);
    }
    check!(wait(&FIRED, 4, 5000), "four timers through one slot");
    check_eq!(TIMERS.load(SeqCst), 0xf, "each once");
    stop_all();
}

pub fn on_another_processor() {
    if !begin("on_another_processor") || smp::start() < 2 {
        return;
    }
    let outcome = smp::run_on(1, || {
        set_up();
        let due = now() + 10 * MILLISECOND;
        wrmsr(count(0), due);
        wrmsr(config(0), SINT << 16 | ENABLE);
        let came = wait(&FIRED, 1, 5000);
        stop_all();
        (came, LAST.load(SeqCst) >= due)
    });
    check_eq!(outcome, Some((true, true)), "another processor's timer");
    check_eq!(rdmsr(config(0)) & ENABLE, 0, "is not this one's");
}
