//! The I/O APIC, whose ISA lines the test port (0x2000 + line) drives.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_kit::apic::{self, bit, register};
use guest_kit::trap::{Frame, set_handler};
use guest_kit::{check, check_eq, cpu, hyperv, memory, options, report, smp, time};

const SELECT: u64 = 0xfec0_0000;
const DATA: u64 = 0xfec0_0010;
const VECTOR: u8 = 0xa5;
const LINE: u8 = 5;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;

static RECEIVED: AtomicU64 = AtomicU64::new(0);
static PROCESSOR: AtomicU64 = AtomicU64::new(0);
/// The handler lowers the line from this interrupt on. It must be the handler: as long as the line
/// is high, the interrupted code may never get a turn.
static LOWER_AT: AtomicU64 = AtomicU64::new(0);

fn read(index: u32) -> u32 {
    memory::write32(SELECT, index);
    memory::read32(DATA)
}

fn write(index: u32, value: u32) {
    memory::write32(SELECT, index);
    memory::write32(DATA, value);
}

fn entry(line: u8) -> u64 {
    let index = 0x10 + u32::from(line) * 2;
    u64::from(read(index + 1)) << 32 | u64::from(read(index))
}

fn set_entry(line: u8, value: u64) {
    let index = 0x10 + u32::from(line) * 2;
    write(index, read(index) | 1 << 16);
    write(index + 1, (value >> 32) as u32);
    write(index, value as u32);
}

fn set_line(line: u8, level: bool) {
    cpu::outb(0x2000 + u16::from(line), u8::from(level));
}

fn handler(_: &mut Frame) {
    let number = RECEIVED.fetch_add(1, SeqCst) + 1;
    PROCESSOR.store(smp::index() as u64, SeqCst);
    if number >= LOWER_AT.load(SeqCst) {
        set_line(LINE, false);
    }
    apic::eoi();
}

fn received() -> u64 {
    cpu::sti();
    time::delay_us(3000);
    cpu::cli();
    RECEIVED.load(SeqCst)
}

/// The test port exists on the test device only.
fn begin(test: &str) -> bool {
    if !hyperv::present() && options::number("testdev", 0) == 0 {
        report::skip(test, "no test device");
        return false;
    }
    apic::enable();
    RECEIVED.store(0, SeqCst);
    LOWER_AT.store(0, SeqCst);
    set_line(LINE, false);
    set_handler(VECTOR, handler);
    true
}

fn destination(processor: usize) -> u64 {
    u64::from(smp::apic_id(processor)) << 56
}

pub fn registers() {
    let version = read(1);
    let lines = (version >> 16 & 0xff) + 1;
    check!(
        (16..=240).contains(&lines),
        "version {:#x}, {lines} lines",
        version & 0xff
    );
    for line in [0, LINE, 15, 23] {
        set_entry(line, MASKED | LEVEL | 0x77 | 0x0a << 56);
        check_eq!(
            entry(line),
            MASKED | LEVEL | 0x77 | 0x0a << 56,
            "entry {line} keeps its value"
        );
        set_entry(line, MASKED);
        check_eq!(entry(line), MASKED, "and its next");
    }
    let before = entry(LINE);
    write(
        0x10 + u32::from(LINE) * 2,
        MASKED as u32 | 3 << 12 | REMOTE_IRR as u32,
    );
    check_eq!(
        entry(LINE) & (1 << 12 | REMOTE_IRR),
        0,
        "status bits are read-only"
    );
    set_entry(LINE, before);
}

pub fn edge() {
    if !begin("edge") {
        return;
    }
    LOWER_AT.store(u64::MAX, SeqCst);
    set_entry(LINE, u64::from(VECTOR) | destination(0));
    set_line(LINE, true);
    check_eq!(received(), 1, "a rising edge interrupts");
    set_line(LINE, true);
    check_eq!(received(), 1, "a line that stays high does not again");
    set_line(LINE, false);
    check_eq!(received(), 1, "nor a falling edge");
    set_line(LINE, true);
    check_eq!(received(), 2, "the next rising edge does");
    check!(!bit(register::TMR, VECTOR), "TMR says edge");
    set_line(LINE, false);
    set_entry(LINE, MASKED | u64::from(VECTOR) | destination(0));
    set_line(LINE, true);
    check_eq!(received(), 2, "a masked entry does not interrupt");
    set_line(LINE, false);
    set_entry(LINE, MASKED);
}

pub fn level() {
    if !begin("level") {
        return;
    }
    set_entry(LINE, LEVEL | u64::from(VECTOR) | destination(0));
    set_line(LINE, true);
    check_eq!(
        received(),
        1,
        "a high level interrupts, and not again once lowered"
    );
    check_eq!(entry(LINE) & REMOTE_IRR, 0, "EOI clears the remote IRR");
    // Without interrupts the request waits, and the remote IRR shows it.
    set_line(LINE, true);
    check!(
        bit(register::IRR, VECTOR) && bit(register::TMR, VECTOR),
        "IRR and TMR of the vector"
    );
    check_eq!(
        entry(LINE) & REMOTE_IRR,
        REMOTE_IRR,
        "remote IRR until the EOI"
    );
    check_eq!(received(), 2, "taken");
    // A line that stays high interrupts again after the EOI.
    LOWER_AT.store(8, SeqCst);
    set_line(LINE, true);
    let count = received();
    check_eq!(
        count,
        8,
        "a line that stays high interrupts after each EOI, until it is lowered"
    );
    set_entry(LINE, MASKED | LEVEL | u64::from(VECTOR) | destination(0));
    set_line(LINE, true);
    check_eq!(received(), count, "masked");
    set_entry(LINE, LEVEL | u64::from(VECTOR) | destination(0));
    check_eq!(received(), count + 1, "unmasking a high line interrupts");
    set_entry(LINE, MASKED);
}

pub fn to_another_processor() {
    if !begin("to_another_processor") || smp::start() < 2 {
        return;
    }
    set_entry(LINE, u64::from(VECTOR) | destination(1));
    let came = smp::run_on(1, || {
        set_line(LINE, true);
        received()
    });
    check_eq!(came, Some(1), "physical destination");
    check_eq!(PROCESSOR.load(SeqCst), 1, "on the addressed processor");
    set_line(LINE, false);
    set_entry(LINE, MASKED);
}
