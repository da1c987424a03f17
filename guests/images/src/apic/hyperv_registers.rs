//! Hyper-V's registers for EOI, ICR and TPR (TLFS 10.2).

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_kit::apic::{self, bit, icr, register};
use guest_kit::cpu::{self, rdmsr, wrmsr};
use guest_kit::hyperv::{self, msr};
use guest_kit::trap::{Frame, attempt, set_handler, vector};
use guest_kit::{check, check_eq, check_fault, smp, time};

use crate::local::raise;

const VECTOR: u8 = 0x96;
static RECEIVED: AtomicU64 = AtomicU64::new(0);

fn count(_: &mut Frame) {
    RECEIVED.fetch_add(1, SeqCst);
}

fn begin(test: &str) -> bool {
    if !hyperv::required(test) {
        return false;
    }
    if cpu::cpuid(0x4000_0003, 0).eax >> 4 & 1 == 0 {
        check_fault!(
            attempt(|| rdmsr(msr::TPR)),
            vector::GP,
            0,
            "#GP: {test} without privilege"
        );
        return false;
    }
    apic::enable();
    RECEIVED.store(0, SeqCst);
    set_handler(VECTOR, count);
    true
}

pub fn end_of_interrupt() {
    if !begin("end_of_interrupt") {
        return;
    }
    raise(VECTOR);
    cpu::interrupt_window();
    check!(bit(register::ISR, VECTOR), "in service");
    wrmsr(msr::EOI, 0);
    check!(!bit(register::ISR, VECTOR), "the EOI register ends it");
    check_fault!(
        attempt(|| rdmsr(msr::EOI)),
        vector::GP,
        0,
        "#GP: the EOI register is write-only"
    );
}

pub fn command() {
    if !begin("command") {
        return;
    }
    let own = u64::from(apic::id());
    wrmsr(
        msr::ICR,
        own << 56 | u64::from(icr::ASSERT) | u64::from(VECTOR),
    );
    cpu::interrupt_window();
    check_eq!(
        RECEIVED.load(SeqCst),
        1,
        "the ICR register sends to its own processor"
    );
    wrmsr(msr::EOI, 0);
    if smp::start() > 1 {
        let target = u64::from(smp::apic_id(1));
        wrmsr(
            msr::ICR,
            target << 56 | u64::from(icr::ASSERT) | u64::from(VECTOR),
        );
        let came = smp::run_on(1, || {
            cpu::sti();
            let came = time::wait_for(3000, || RECEIVED.load(SeqCst) == 2);
            cpu::cli();
            wrmsr(msr::EOI, 0);
            came
        });
        check_eq!(came, Some(true), "and to another");
    }
}

pub fn task_priority() {
    if !begin("task_priority") {
        return;
    }
    wrmsr(msr::TPR, 0xa0);
    check_eq!(rdmsr(msr::TPR), 0xa0, "the TPR register keeps its value");
    check_eq!(apic::read(register::TPR), 0xa0, "it is the APIC's");
    check_eq!(cpu::read_cr8(), 10, "and CR8");
    raise(VECTOR);
    cpu::interrupt_window();
    check_eq!(RECEIVED.load(SeqCst), 0, "it holds interrupts back");
    cpu::write_cr8(2);
    check_eq!(rdmsr(msr::TPR), 0x20, "CR8 writes it");
    wrmsr(msr::TPR, 0);
    cpu::interrupt_window();
    check_eq!(RECEIVED.load(SeqCst), 1, "and lets them pass");
    apic::eoi();
}
