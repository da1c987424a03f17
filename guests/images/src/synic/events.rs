//! Interrupt sources and event flags.

use guest_kit::hyperv::{self, FAST, call, raw, simple, status, status_of};
use guest_kit::{apic, check, check_eq, cpu, smp};

use crate::device::*;

/// The route's assertion reaches the right processor, and nobody when masked.
pub fn interrupt_source() {
    let Some(pages) = both("interrupt_source") else {
        return;
    };
    start_accepting();
    for (processor, pages) in pages.iter().enumerate() {
        device(command::ROUTE_CREATE, pages.vp, SINT[processor], 0);
        device(command::ASSERT, pages.vp, SINT[processor], 0);
        check!(
            wait_received(processor, 1),
            "source {processor} interrupts its processor"
        );
        settle();
        check_eq!(received(processor), 1, "source {processor} interrupts once");
    }
    stop_accepting();
    mask(SINT[0]);
    device(command::ASSERT, pages[0].vp, SINT[0], 0);
    settle();
    check_eq!(received(0), 1, "a masked source does not interrupt");
    unmask(SINT[0], VECTOR[0], 0);
    settle();
    check_eq!(received(0), 1, "and its interrupt is lost");
    for (processor, pages) in pages.iter().enumerate() {
        device(command::ROUTE_DESTROY, pages.vp, SINT[processor], 0);
    }
}

pub fn auto_eoi() {
    let Some(pages) = both("auto_eoi") else {
        return;
    };
    let (vp, sint, vector) = (pages[0].vp, SINT[0], VECTOR[0]);
    device(command::ROUTE_CREATE, vp, sint, 0);
    handlers_send_eoi(false);
    unmask(sint, vector, AUTO_EOI);
    for round in 1..=3 {
        device(command::ASSERT, vp, sint, 0);
        check!(wait_received(0, round), "automatic EOI: interrupt {round}");
        check!(
            !apic::bit(apic::register::ISR, vector),
            "automatic EOI: nothing in service"
        );
    }
    unmask(sint, vector, 0);
    device(command::ASSERT, vp, sint, 0);
    wait_received(0, 4);
    check!(
        apic::bit(apic::register::ISR, vector),
        "without it the vector stays in service"
    );
    device(command::ASSERT, vp, sint, 0);
    settle();
    check_eq!(received(0), 4, "and blocks the next one");
    apic::eoi();
    check!(wait_received(0, 5), "until the EOI");
    apic::eoi();
    device(command::ROUTE_DESTROY, vp, sint, 0);
}

pub fn flags() {
    let Some(pages) = both("flags") else { return };
    start_accepting();
    for (processor, pages) in pages.iter().enumerate() {
        let sint = SINT[processor];
        let connection = 0x20 + processor as u8;
        let number = u64::from(connection);
        device(command::EVENT_CREATE, pages.vp, sint, connection);
        check_eq!(
            signal(connection.into(), 0),
            0,
            "event to processor {processor}"
        );
        check!(wait_received(processor, 1), "interrupts it");
        check!(pages.flag(sint, number), "flag number {number} is set");
        let others = (0..2048)
            .filter(|&bit| bit != number && pages.flag(sint, bit))
            .count();
        check_eq!(others, 0, "no other flag is set");
        check_eq!(
            signal(connection.into(), 0),
            0,
            "event with the flag still set"
        );
        settle();
        check_eq!(received(processor), 1, "does not interrupt again");
        pages.clear_flags(sint);
        check_eq!(
            simple(call::SIGNAL_EVENT, &[u64::from(connection)]),
            0,
            "event with its input in memory"
        );
        check!(
            wait_received(processor, 2),
            "interrupts once the flag was cleared"
        );
        pages.clear_flags(sint);
    }
    stop_accepting();
    // A processor signals itself and the other way round.
    let from_other = smp::run_on(1, || signal(0x20, 0));
    check_eq!(from_other, Some(0), "event from the other processor");
    check!(wait_received(0, 3), "interrupts the first");
    for (processor, pages) in pages.iter().enumerate() {
        pages.clear_flags(SINT[processor]);
        device(
            command::EVENT_DESTROY,
            pages.vp,
            SINT[processor],
            0x20 + processor as u8,
        );
    }
    check!(signal(0x20, 0) != 0, "a destroyed connection is refused");
}

pub fn errors() {
    let Some(pages) = both("errors") else { return };
    check_eq!(
        signal(0x7f_ffff, 0),
        status::INVALID_CONNECTION_ID,
        "unknown connection"
    );
    device(command::EVENT_CREATE, pages[0].vp, SINT[0], 0x30);
    let beyond = signal(0x30, 2047);
    check!(beyond != 0, "flag number beyond the port's: {beyond:#x}");
    let reserved = status_of(raw(u64::from(call::SIGNAL_EVENT) | FAST, 0x30 | 1 << 48, 0));
    check!(
        reserved == 0
            || matches!(
                reserved,
                status::INVALID_PARAMETER | status::INVALID_HYPERCALL_INPUT
            ),
        "reserved bits in the input: {reserved:#x}"
    );
    pages[0].clear_flags(SINT[0]);
    cpu::wrmsr(hyperv::msr::SCONTROL, 0);
    let disabled = signal(0x30, 0);
    check!(disabled != 0, "controller disabled: {disabled:#x}");
    check!(!pages[0].flag(SINT[0], 0x30), "and no flag is set");
    cpu::wrmsr(hyperv::msr::SCONTROL, 1);
    pages[0].clear_flags(SINT[0]);
    check_eq!(signal(0x30, 0), 0, "enabled again");
    device(command::EVENT_DESTROY, pages[0].vp, SINT[0], 0x30);
    settle();
}
