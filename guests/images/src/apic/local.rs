//! Priorities, service and local vectors of one processor's APIC (Intel SDM 3A 11.8).

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

use guest_kit::apic::{self, bit, icr, register};
use guest_kit::trap::{Frame, set_handler};
use guest_kit::{check, check_eq, cpu, insn, time};

static ORDER: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Notes the vector; the test itself sends the EOI.
pub fn note(frame: &mut Frame) {
    let place = COUNT.fetch_add(1, SeqCst);
    if let Some(slot) = ORDER.get(place) {
        slot.store(frame.vector, SeqCst);
    }
}

fn note_and_end(frame: &mut Frame) {
    note(frame);
    apic::eoi();
}

fn begin(vectors: &[u8], handler: fn(&mut Frame)) {
    apic::enable();
    COUNT.store(0, SeqCst);
    for vector in vectors {
        set_handler(*vector, handler);
    }
}

fn taken() -> usize {
    COUNT.load(SeqCst)
}

/// Raises a vector on this processor.
pub fn raise(vector: u8) {
    apic::send(0, icr::SELF | icr::ASSERT | u32::from(vector));
}

pub fn priorities() {
    begin(&[0x41, 0x52, 0x63, 0x64], note_and_end);
    for vector in [0x52, 0x41, 0x64, 0x63] {
        raise(vector);
    }
    check!(
        bit(register::IRR, 0x52) && bit(register::IRR, 0x64),
        "requests wait in the IRR"
    );
    check_eq!(taken(), 0, "nothing is taken with interrupts disabled");
    cpu::sti();
    time::wait_for(1000, || taken() == 4);
    cpu::cli();
    let order = [0, 1, 2, 3].map(|index: usize| ORDER[index].load(SeqCst));
    check_eq!(
        order,
        [0x64, 0x63, 0x52, 0x41],
        "the highest vector goes first"
    );
    check!(!bit(register::IRR, 0x52), "the IRR is empty again");
    // Two requests of one vector are one.
    begin(&[0x41], note_and_end);
    raise(0x41);
    raise(0x41);
    cpu::interrupt_window();
    cpu::interrupt_window();
    check_eq!(taken(), 1, "a request that is already pending adds nothing");
}

pub fn task_priority_and_cr8() {
    begin(&[0x45, 0x55], note_and_end);
    apic::write(register::TPR, 0x50);
    check_eq!(cpu::read_cr8(), 5, "CR8 is the TPR's upper half");
    check_eq!(
        apic::read(register::PPR),
        0x50,
        "PPR is the TPR with nothing in service"
    );
    raise(0x45);
    raise(0x55);
    cpu::interrupt_window();
    check_eq!(taken(), 0, "TPR 0x50 holds back 0x45 and 0x55");
    cpu::write_cr8(4);
    check_eq!(
        apic::read(register::TPR),
        0x40,
        "writing CR8 writes the TPR"
    );
    cpu::interrupt_window();
    check_eq!(
        (taken(), ORDER[0].load(SeqCst)),
        (1, 0x55),
        "priority 4 lets 0x55 pass"
    );
    cpu::write_cr8(0);
    cpu::interrupt_window();
    check_eq!(
        (taken(), ORDER[1].load(SeqCst)),
        (2, 0x45),
        "priority 0 lets all pass"
    );
    apic::write(register::TPR, 0xff);
    check_eq!(cpu::read_cr8(), 15, "highest priority");
    apic::write(register::TPR, 0x2f);
    check_eq!(
        apic::read(register::TPR),
        0x2f,
        "the TPR keeps its sub-class"
    );
    check_eq!(cpu::read_cr8(), 2, "CR8 does not show it");
    apic::write(register::TPR, 0);
}

pub fn in_service() {
    begin(&[0x61, 0x62, 0x71], note);
    raise(0x61);
    cpu::interrupt_window();
    check!(bit(register::ISR, 0x61), "a taken interrupt is in service");
    check!(!bit(register::IRR, 0x61), "and no longer requested");
    check_eq!(apic::read(register::PPR), 0x60, "PPR is its class");
    raise(0x62);
    cpu::interrupt_window();
    check_eq!(taken(), 1, "the same class waits");
    raise(0x71);
    cpu::interrupt_window();
    check_eq!(taken(), 2, "a higher class does not");
    check!(
        bit(register::ISR, 0x71) && bit(register::ISR, 0x61),
        "both are in service"
    );
    check_eq!(apic::read(register::PPR), 0x70, "PPR is the higher");
    apic::eoi();
    check!(
        !bit(register::ISR, 0x71) && bit(register::ISR, 0x61),
        "EOI ends the highest"
    );
    cpu::interrupt_window();
    check_eq!(taken(), 2, "0x62 still waits");
    apic::eoi();
    cpu::interrupt_window();
    check_eq!(taken(), 3, "until 0x61 ends");
    apic::eoi();
    check_eq!(apic::read(register::PPR), 0, "nothing in service");
    apic::eoi();
    check_eq!(apic::read(register::PPR), 0, "an EOI too many does nothing");
    check!(
        !bit(register::TMR, 0x61),
        "TMR is clear for edge-triggered interrupts"
    );
}

pub fn local_vectors() {
    apic::enable();
    const MASKED: u32 = 1 << 16;
    let entries = [
        ("timer", register::LVT_TIMER),
        ("LINT0", register::LVT_LINT0),
        ("LINT1", register::LVT_LINT1),
        ("error", register::LVT_ERROR),
    ];
    for (name, entry) in entries {
        let before = apic::read(entry);
        apic::write(entry, MASKED | 0x77);
        check_eq!(
            apic::read(entry) & (MASKED | 0xff),
            MASKED | 0x77,
            "LVT {name} keeps its value"
        );
        apic::write(entry, before | MASKED);
    }
    apic::write(register::LVT_ERROR, 0x78);
    apic::write(register::SVR, apic::SPURIOUS);
    check_eq!(
        apic::read(register::LVT_ERROR) & MASKED,
        MASKED,
        "disabling by software masks the local vectors"
    );
    apic::write(register::LVT_ERROR, 0x78);
    check_eq!(
        apic::read(register::LVT_ERROR) & MASKED,
        MASKED,
        "and keeps them masked"
    );
    begin(&[0x79], note_and_end);
    apic::write(register::LVT_ERROR, MASKED | 0x78);
    let highest = apic::read(register::VERSION) >> 16 & 0xff;
    check!(
        (3..=6).contains(&highest),
        "version register: highest local vector {highest}"
    );
}

pub fn errors() {
    begin(&[0x7a], note_and_end);
    apic::write(register::LVT_ERROR, 0x7a);
    apic::write(register::ESR, 0);
    raise(5);
    time::delay_us(1000);
    apic::write(register::ESR, 0);
    // "Send illegal vector" or "received illegal vector".
    check!(
        apic::read(register::ESR) & 0x60 != 0,
        "an illegal vector is an error"
    );
    cpu::interrupt_window();
    check!(taken() >= 1, "which raises the error vector");
    check!(!bit(register::IRR, 5), "and no interrupt");
    apic::write(register::ESR, 0);
    apic::write(register::ESR, 0);
    check_eq!(apic::read(register::ESR), 0, "writing ESR clears it");
    apic::write(register::LVT_ERROR, 1 << 16);
}

/// STI and MOV SS hold interrupts back for one instruction.
pub fn interrupt_shadow() {
    use guest_kit::memory;
    static RIP: AtomicU64 = AtomicU64::new(0);
    fn keep_rip(frame: &mut Frame) {
        RIP.store(frame.rip, SeqCst);
        apic::eoi();
    }
    begin(&[0x7b], keep_rip);
    raise(0x7b);
    let (behind, delayed): (u64, u64);
    insn!("lea {b}, [rip + 2f]", "sti", "nop", "2:", "nop", "cli", b = out(reg) behind);
    check_eq!(
        RIP.load(SeqCst),
        behind,
        "the interrupt comes behind the instruction after STI"
    );
    RIP.store(0, SeqCst);
    raise(0x7b);
    insn!("sti", "cli");
    check_eq!(RIP.load(SeqCst), 0, "STI CLI lets nothing pass");
    insn!(
        "mov {t:e}, ss", "lea {b}, [rip + 2f]",
        "sti", "mov ss, {t:e}", "nop", "2:", "nop", "cli",
        b = out(reg) delayed, t = out(reg) _,
    );
    // A processor may or may not let MOV SS extend the shadow of STI.
    check!(
        [delayed, delayed - 1].contains(&RIP.load(SeqCst)),
        "MOV SS behind STI only delays"
    );
    // A locked request while interrupts stay disabled is not lost.
    raise(0x7b);
    memory::read64(0x1000);
    RIP.store(0, SeqCst);
    cpu::interrupt_window();
    check!(
        RIP.load(SeqCst) != 0,
        "a request survives until interrupts are enabled"
    );
}
