//! Messages: delivery, the pending flag, queueing and its limits (TLFS 11.2 to 11.6).

use guest_kit::hyperv::{self, FAST, call, raw, status, status_of};
use guest_kit::{apic, check, check_eq, cpu, memory, println, smp, trap};

use crate::device::*;

const CONNECTION: u8 = 0x40;
const TYPE: u32 = 1;

pub fn delivery() {
    let Some(pages) = both("delivery") else {
        return;
    };
    start_accepting();
    for (processor, pages) in pages.iter().enumerate() {
        let (sint, connection) = (SINT[processor], CONNECTION + processor as u8);
        device(command::MESSAGE_CREATE, pages.vp, sint, connection);
        check_eq!(
            post(connection.into(), 0x77, 240, 1000),
            0,
            "message to {processor}"
        );
        check!(wait_received(processor, 1), "interrupts it");
        let slot = pages.slot(sint);
        check_eq!(
            (
                pages.message_type(sint),
                memory::read8(slot + 4),
                pages.pending(sint)
            ),
            (0x77, 240, false),
            "type, size and flags in the slot"
        );
        let whole = (0..30).all(|word| memory::read64(slot + 16 + word * 8) == 1000 + word);
        check!(whole, "payload of 240 bytes");
        let neighbours = memory::read32(slot - 256) | memory::read32(slot + 256);
        check_eq!(neighbours, 0, "the slots beside it stay empty");
        pages.clear_message(sint);
        check_eq!(
            post(connection.into(), TYPE, 0, 0),
            0,
            "message without payload"
        );
        check!(wait_received(processor, 2), "interrupts too");
        check_eq!(memory::read8(slot + 4), 0, "its size is 0");
        pages.clear_message(sint);
    }
    stop_accepting();
    check_eq!(
        smp::run_on(1, || post(CONNECTION.into(), TYPE, 8, 5)),
        Some(0),
        "from the other"
    );
    check!(wait_received(0, 3), "interrupts the first");
    pages[0].clear_message(SINT[0]);
    for (processor, pages) in pages.iter().enumerate() {
        device(
            command::MESSAGE_DESTROY,
            pages.vp,
            SINT[processor],
            CONNECTION + processor as u8,
        );
    }
    check!(
        post(CONNECTION.into(), TYPE, 8, 5) != 0,
        "a destroyed connection is refused"
    );
}

pub fn pending() {
    let Some([pages, _]) = both("pending") else {
        return;
    };
    let sint = SINT[0];
    device(command::MESSAGE_CREATE, pages.vp, sint, CONNECTION);
    check_eq!(post(CONNECTION.into(), TYPE, 8, 1), 0, "first message");
    check!(wait_received(0, 1), "is delivered");
    check_eq!(post(CONNECTION.into(), TYPE, 8, 2), 0, "second message");
    settle();
    check_eq!(received(0), 1, "waits for the slot");
    check!(pages.pending(sint), "and sets the pending flag");
    check_eq!(
        memory::read64(pages.slot(sint) + 16),
        1,
        "the first is still there"
    );
    cpu::wrmsr(hyperv::msr::EOM, 0);
    settle();
    check_eq!(received(0), 1, "EOM with the slot in use delivers nothing");
    pages.clear_message(sint);
    cpu::wrmsr(hyperv::msr::EOM, 0);
    check!(wait_received(0, 2), "EOM with a free slot delivers");
    check_eq!(
        memory::read64(pages.slot(sint) + 16),
        2,
        "the second message"
    );
    check!(!pages.pending(sint), "nothing more is pending");
    pages.clear_message(sint);
    cpu::wrmsr(hyperv::msr::EOM, 0);
    settle();
    check_eq!(received(0), 2, "EOM with an empty queue does nothing");
    device(command::MESSAGE_DESTROY, pages.vp, sint, CONNECTION);
}

pub fn queue() {
    let Some([pages, _]) = both("queue") else {
        return;
    };
    let sint = SINT[0];
    device(command::MESSAGE_CREATE, pages.vp, sint, CONNECTION);
    let mut accepted = 0u64;
    let mut refused = 0;
    while accepted < 64 {
        refused = post(CONNECTION.into(), TYPE, 8, 100 + accepted);
        if refused != 0 {
            break;
        }
        accepted += 1;
    }
    check_eq!(
        refused,
        status::INSUFFICIENT_BUFFERS,
        "a full queue refuses"
    );
    check!((2..=32).contains(&accepted), "after {accepted} messages");
    let mut order = 0;
    for expected in 0..accepted {
        wait_received(0, expected + 1);
        let value = memory::read64(pages.slot(sint) + 16);
        order += u32::from(value != 100 + expected);
        let more = expected + 1 < accepted;
        order += u32::from(pages.pending(sint) != more && expected != 0);
        pages.clear_message(sint);
        cpu::wrmsr(hyperv::msr::EOM, 0);
    }
    check_eq!(order, 0, "all arrive in order");
    settle();
    check_eq!(received(0), accepted, "each with one interrupt");
    check_eq!(
        post(CONNECTION.into(), TYPE, 8, 1),
        0,
        "then there is room again"
    );
    settle();
    pages.clear_message(sint);
    device(command::MESSAGE_DESTROY, pages.vp, sint, CONNECTION);
}

/// An EOI redelivers as EOM does.
pub fn end_of_interrupt() {
    let Some([pages, _]) = both("end_of_interrupt") else {
        return;
    };
    let sint = SINT[0];
    device(command::MESSAGE_CREATE, pages.vp, sint, CONNECTION);
    handlers_send_eoi(false);
    post(CONNECTION.into(), TYPE, 8, 1);
    post(CONNECTION.into(), TYPE, 8, 2);
    check!(wait_received(0, 1), "first message");
    pages.clear_message(sint);
    apic::eoi();
    check!(wait_received(0, 2), "EOI delivers the second");
    check_eq!(
        memory::read64(pages.slot(sint) + 16),
        2,
        "which is in the slot"
    );
    pages.clear_message(sint);
    apic::eoi();
    handlers_send_eoi(true);
    device(command::MESSAGE_DESTROY, pages.vp, sint, CONNECTION);
}

pub fn masked_and_polling() {
    let Some([pages, _]) = both("masked_and_polling") else {
        return;
    };
    let sint = SINT[0];
    device(command::MESSAGE_CREATE, pages.vp, sint, CONNECTION);
    mask(sint);
    check_eq!(
        post(CONNECTION.into(), TYPE, 8, 9),
        0,
        "message to a masked source"
    );
    settle();
    check_eq!(received(0), 0, "does not interrupt");
    check_eq!(
        memory::read64(pages.slot(sint) + 16),
        9,
        "but is in the slot"
    );
    pages.clear_message(sint);
    if cpu::cpuid(0x4000_0003, 0).edx >> 17 & 1 != 0 {
        unmask(sint, VECTOR[0], POLLING);
        check_eq!(
            post(CONNECTION.into(), TYPE, 8, 10),
            0,
            "message to a polled source"
        );
        settle();
        check_eq!(received(0), 0, "does not interrupt");
        check_eq!(
            memory::read64(pages.slot(sint) + 16),
            10,
            "but is in the slot"
        );
        pages.clear_message(sint);
    } else {
        println!("NOTE: no polling mode here");
    }
    unmask(sint, VECTOR[0], 0);
    device(command::MESSAGE_DESTROY, pages.vp, sint, CONNECTION);
}

pub fn errors() {
    let Some([pages, _]) = both("errors") else {
        return;
    };
    let sint = SINT[0];
    device(command::MESSAGE_CREATE, pages.vp, sint, CONNECTION);
    let invalid = status::INVALID_PARAMETER;
    check_eq!(
        post(CONNECTION.into(), 0, 8, 0),
        invalid,
        "message of type 0"
    );
    check_eq!(
        post(CONNECTION.into(), 0x8000_0010, 8, 0),
        invalid,
        "type of the hypervisor's own"
    );
    check_eq!(
        post(CONNECTION.into(), TYPE, 241, 0),
        invalid,
        "payload of 241 bytes"
    );
    check_eq!(
        post(CONNECTION.into(), TYPE, u32::MAX, 0),
        invalid,
        "payload of 4 GiB"
    );
    check_eq!(
        post(0x7f_ffff, TYPE, 8, 0),
        status::INVALID_CONNECTION_ID,
        "unknown connection"
    );
    check_eq!(
        status_of(raw(u64::from(call::POST_MESSAGE) | FAST, 1, 1)),
        status::INVALID_HYPERCALL_INPUT,
        "register input"
    );
    settle();
    check_eq!(pages.message_type(sint), 0, "none of these arrived");
    cpu::wrmsr(hyperv::msr::SCONTROL, 0);
    let disabled = post(CONNECTION.into(), TYPE, 8, 0);
    check!(disabled != 0, "controller disabled: {disabled:#x}");
    cpu::wrmsr(hyperv::msr::SCONTROL, 1);
    device(command::MESSAGE_DESTROY, pages.vp, sint, CONNECTION);
    trap::clear_handlers();
}
