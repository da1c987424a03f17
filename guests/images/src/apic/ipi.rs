//! Interprocessor interrupts in the mode that the APIC is in.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use guest_kit::apic::{self, icr, register};
use guest_kit::trap::{Frame, set_handler, vector};
use guest_kit::{check, check_eq, cpu, insn, report, smp, time};

const VECTOR: u8 = 0x91;
static RECEIVED: [AtomicU64; smp::MAX] = [const { AtomicU64::new(0) }; smp::MAX];
static STOP: AtomicBool = AtomicBool::new(false);

fn count(_: &mut Frame) {
    RECEIVED[smp::index()].fetch_add(1, SeqCst);
    apic::eoi();
}

extern "C" fn accept(_: usize) {
    cpu::sti();
    while !STOP.load(SeqCst) {
        cpu::pause();
    }
    cpu::cli();
}

/// Lets all other processors take interrupts while `code` runs.
fn with_receivers(code: impl FnOnce(usize)) {
    let count = smp::start();
    STOP.store(false, SeqCst);
    for other in 1..count {
        smp::start_on(other, accept, 0);
    }
    code(count);
    STOP.store(true, SeqCst);
    for other in 1..count {
        smp::join(other, 5000);
    }
}

/// Sends one interrupt and checks who got it.
fn send(name: &str, destination: u32, command: u32, expected: impl Fn(usize) -> bool) {
    let count = smp::start();
    RECEIVED.iter().for_each(|counter| counter.store(0, SeqCst));
    apic::send(destination, command | icr::ASSERT | u32::from(VECTOR));
    cpu::sti();
    time::wait_for(3000, || {
        (0..count).all(|index| RECEIVED[index].load(SeqCst) == u64::from(expected(index)))
    });
    time::delay_us(2000);
    cpu::cli();
    let wrong = (0..count)
        .filter(|index| RECEIVED[*index].load(SeqCst) != u64::from(expected(*index)))
        .count();
    check_eq!(wrong, 0, "{name}: exactly the addressed processors");
}

/// The interrupts that both modes have; also used in x2APIC mode.
pub fn fixed() {
    set_handler(VECTOR, count);
    with_receivers(|count| {
        for target in 0..count {
            let id = smp::apic_id(target);
            send("fixed, physical", id, icr::FIXED, |index| index == target);
            send("lowest priority, physical", id, icr::LOWEST, |index| {
                index == target
            });
        }
        send("self", 0, icr::SELF, |index| index == 0);
        send("all", 0, icr::ALL, |_| true);
        send("all others", 0, icr::OTHERS, |index| index != 0);
        let broadcast = if apic::x2apic() { u32::MAX } else { 0xff };
        send("physical broadcast", broadcast, icr::FIXED, |_| true);
        let nobody = if apic::x2apic() { 0xfffe } else { 0xfe };
        send("nobody's id", nobody, icr::FIXED, |_| false);
    });
}

pub fn logical() {
    set_handler(VECTOR, count);
    let processors = smp::start();
    if processors > 8 {
        return report::skip("logical destinations", "more processors than bits");
    }
    // Flat model: a bit for each.
    let program = |model: u32, id: fn(u32) -> u32| {
        smp::run_everywhere(
            &|index| {
                apic::write(register::DFR, model);
                apic::write(register::LDR, id(index as u32) << 24);
            },
            5000,
        );
    };
    program(u32::MAX, |index| 1 << index);
    with_receivers(|count| {
        for target in 0..count {
            send("logical, flat", 1 << target, icr::LOGICAL, |index| {
                index == target
            });
        }
        send("logical, flat, two", 3, icr::LOGICAL, |index| index < 2);
        send("logical, flat, all", 0xff, icr::LOGICAL, |_| true);
    });
    // Cluster model: clusters of two.
    program(0x0fff_ffff, |index| ((index / 2) << 4) | 1 << (index % 2));
    with_receivers(|count| {
        for target in 0..count {
            let address = (((target / 2) << 4) | 1 << (target % 2)) as u32;
            send("logical, cluster", address, icr::LOGICAL, |index| {
                index == target
            });
        }
        send("logical, whole cluster", 0x0f, icr::LOGICAL, |index| {
            index < 2
        });
        send("logical, absent cluster", 0xe1, icr::LOGICAL, |_| false);
    });
    program(u32::MAX, |index| 1 << index);
}

fn count_nmi(_: &mut Frame) {
    RECEIVED[smp::index()].fetch_add(1, SeqCst);
}

pub fn non_maskable() {
    set_handler(vector::NMI, count_nmi);
    RECEIVED.iter().for_each(|counter| counter.store(0, SeqCst));
    let own = smp::apic_id(0).max(apic::id());
    apic::send(own, icr::NMI | icr::ASSERT);
    time::wait_for(1000, || RECEIVED[0].load(SeqCst) == 1);
    check_eq!(
        RECEIVED[0].load(SeqCst),
        1,
        "NMI arrives with interrupts disabled"
    );
    if smp::start() > 1 {
        apic::send(0, icr::OTHERS | icr::NMI | icr::ASSERT);
        let all = time::wait_for(3000, || {
            (1..smp::start()).all(|index| RECEIVED[index].load(SeqCst) == 1)
        });
        check!(all, "NMI to all others");
        check_eq!(RECEIVED[0].load(SeqCst), 1, "and not to the sender");
    }
}

static DEPTH: AtomicU64 = AtomicU64::new(0);
static NESTED: AtomicU64 = AtomicU64::new(0);

/// The handler sends itself another: it must wait until IRET.
fn nesting(_: &mut Frame) {
    if DEPTH.fetch_add(1, SeqCst) > 0 {
        NESTED.fetch_add(1, SeqCst);
    }
    if RECEIVED[0].fetch_add(1, SeqCst) == 0 {
        apic::send(apic::id(), icr::NMI | icr::ASSERT);
        apic::send(apic::id(), icr::NMI | icr::ASSERT);
        time::delay_us(1000);
    }
    DEPTH.fetch_sub(1, SeqCst);
}

pub fn non_maskable_blocking() {
    RECEIVED[0].store(0, SeqCst);
    set_handler(vector::NMI, nesting);
    apic::send(apic::id(), icr::NMI | icr::ASSERT);
    time::wait_for(1000, || RECEIVED[0].load(SeqCst) >= 2);
    time::delay_us(2000);
    check_eq!(NESTED.load(SeqCst), 0, "NMIs are blocked until IRET");
    check_eq!(
        RECEIVED[0].load(SeqCst),
        2,
        "and two that come meanwhile are one"
    );
}

extern "C" fn halt(_: usize) {
    while !STOP.load(SeqCst) {
        insn!("sti", "hlt", "cli");
    }
}

pub fn wakes_halt() {
    if smp::start() < 2 {
        return report::skip("halt", "one processor only");
    }
    set_handler(VECTOR, count);
    set_handler(vector::NMI, count_nmi);
    RECEIVED[1].store(0, SeqCst);
    STOP.store(false, SeqCst);
    smp::start_on(1, halt, 0);
    let target = smp::apic_id(1);
    let mut lost = 0;
    for round in 1..=50u64 {
        time::delay_us(1000);
        let kind = if round % 2 == 0 {
            icr::NMI
        } else {
            icr::FIXED | u32::from(VECTOR)
        };
        apic::send(target, kind | icr::ASSERT);
        lost += u32::from(!time::wait_for(3000, || RECEIVED[1].load(SeqCst) == round));
        if lost > 0 {
            break;
        }
    }
    check_eq!(
        lost,
        0,
        "interrupts and NMIs wake a halted processor, 50 times"
    );
    STOP.store(true, SeqCst);
    apic::send(target, icr::ASSERT | u32::from(VECTOR));
    check!(smp::join(1, 5000), "the halted processor ends");
}

/// Resets a processor with INIT and starts it again.
pub fn init_and_startup() {
    let count = smp::start();
    if count < 2 {
        return report::skip("INIT and STARTUP", "one processor only");
    }
    // The last one, because the trampoline numbers processors in order.
    let victim = count - 1;
    smp::run_on(victim, || {
        cpu::write_dr0(0x1234);
        cpu::write_cr8(3);
    });
    smp::forget(victim);
    let target = smp::apic_id(victim);
    apic::send(target, icr::INIT | icr::ASSERT | icr::LEVEL);
    apic::send(target, icr::INIT | icr::LEVEL);
    time::delay_us(10_000);
    check!(!smp::ready(victim), "after INIT the processor waits");
    apic::send(target, icr::STARTUP | icr::ASSERT | 8);
    check!(
        time::wait_for(5000, || smp::ready(victim)),
        "STARTUP starts it again"
    );
    apic::send(target, icr::STARTUP | icr::ASSERT | 8);
    time::delay_us(1000);
    let state = smp::run_on(victim, || (cpu::read_dr0(), cpu::read_cr8(), apic::id()));
    check_eq!(
        state,
        Some((0, 0, target)),
        "INIT cleared its state and kept its APIC id"
    );
    let base = smp::run_on(victim, || cpu::rdmsr(cpu::msr::APIC_BASE) & apic::BASE_BSP);
    check_eq!(base, Some(0), "it is not the bootstrap processor");
    check!(
        cpu::rdmsr(cpu::msr::APIC_BASE) & apic::BASE_BSP != 0,
        "this one is"
    );
}
