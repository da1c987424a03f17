//! The Hyper-V test device, and processors that take its interrupts.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use guest_kit::cpu::{self, rdmsr, wrmsr};
use guest_kit::hyperv::{self, call, msr, raw, status_of};
use guest_kit::trap::{Frame, set_handler};
use guest_kit::{apic, memory, report, smp, time};

/// Commands of the device (bits 16 to 23 of the doubleword written to its port).
pub mod command {
    #![allow(missing_docs, reason = "the names say it")]
    pub const ROUTE_CREATE: u32 = 1;
    pub const ROUTE_DESTROY: u32 = 2;
    pub const ASSERT: u32 = 3;
    pub const MESSAGE_CREATE: u32 = 4;
    pub const MESSAGE_DESTROY: u32 = 5;
    pub const EVENT_CREATE: u32 = 6;
    pub const EVENT_DESTROY: u32 = 7;
}

/// Interrupt sources and vectors of the tests: one pair for each processor.
pub const SINT: [u8; 2] = [3, 4];
pub const VECTOR: [u8; 2] = [0xb3, 0xb4];

const MASKED: u64 = 1 << 16;
pub const AUTO_EOI: u64 = 1 << 17;
pub const POLLING: u64 = 1 << 18;

static RECEIVED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static SEND_EOI: AtomicBool = AtomicBool::new(true);
static STOP: AtomicBool = AtomicBool::new(false);

/// Sends a command to the test device.
pub fn device(command: u32, vp: u32, sint: u8, connection: u8) {
    cpu::outl(
        0x3000,
        u32::from(connection) << 24 | command << 16 | vp << 8 | u32::from(sint),
    );
}

/// One processor's message and event pages.
#[derive(Clone, Copy)]
pub struct Pages {
    pub messages: u64,
    pub events: u64,
    pub vp: u32,
}

impl Pages {
    /// The message slot of an interrupt source.
    pub fn slot(&self, sint: u8) -> u64 {
        self.messages + u64::from(sint) * 256
    }

    /// Is event flag `number` of an interrupt source set?
    pub fn flag(&self, sint: u8, number: u64) -> bool {
        let word = self.events + u64::from(sint) * 256 + number / 64 * 8;
        memory::read64(word) >> (number % 64) & 1 != 0
    }

    /// Clears all event flags of an interrupt source.
    pub fn clear_flags(&self, sint: u8) {
        for word in 0..32 {
            memory::write64(self.events + u64::from(sint) * 256 + word * 8, 0);
        }
    }

    /// The type of the message in a slot.
    pub fn message_type(&self, sint: u8) -> u32 {
        memory::read32(self.slot(sint))
    }

    /// Has the slot's message the pending flag?
    pub fn pending(&self, sint: u8) -> bool {
        memory::read8(self.slot(sint) + 5) & 1 != 0
    }

    /// Frees a slot.
    pub fn clear_message(&self, sint: u8) {
        memory::write32(self.slot(sint), 0);
    }
}

/// Enables the calling processor's pages and controller.
pub fn enable() -> Pages {
    let pages = Pages {
        messages: memory::page(),
        events: memory::page(),
        vp: hyperv::vp_index(),
    };
    apic::enable();
    wrmsr(msr::SIMP, pages.messages | 1);
    wrmsr(msr::SIEFP, pages.events | 1);
    wrmsr(msr::SCONTROL, rdmsr(msr::SCONTROL) | 1);
    pages
}

/// Programs an interrupt source of the calling processor.
pub fn unmask(sint: u8, vector: u8, flags: u64) {
    wrmsr(msr::SINT0 + u32::from(sint), u64::from(vector) | flags);
}

/// Masks an interrupt source of the calling processor.
pub fn mask(sint: u8) {
    let register = msr::SINT0 + u32::from(sint);
    wrmsr(register, rdmsr(register) | MASKED);
}

fn count(_: &mut Frame) {
    if let Some(counter) = RECEIVED.get(smp::index()) {
        counter.fetch_add(1, SeqCst);
    }
    if SEND_EOI.load(SeqCst) {
        apic::eoi();
    }
}

/// Whether handlers end their interrupt themselves (not with automatic EOI).
pub fn handlers_send_eoi(value: bool) {
    SEND_EOI.store(value, SeqCst);
}

/// How many of the tests' interrupts a processor took so far.
pub fn received(processor: usize) -> u64 {
    RECEIVED[processor].load(SeqCst)
}

/// Waits until a processor took `number` interrupts in all; this one takes its own meanwhile.
pub fn wait_received(processor: usize, number: u64) -> bool {
    cpu::sti();
    let done = time::wait_for(3000, || received(processor) >= number);
    cpu::cli();
    done
}

/// Gives interrupts that should not come some time to come.
pub fn settle() {
    cpu::sti();
    time::delay_us(20_000);
    cpu::cli();
}

/// Zeroes the counters and installs the handlers.
pub fn begin() {
    for counter in &RECEIVED {
        counter.store(0, SeqCst);
    }
    handlers_send_eoi(true);
    for vector in VECTOR {
        set_handler(vector, count);
    }
}

extern "C" fn accept(_: usize) {
    cpu::sti();
    while !STOP.load(SeqCst) {
        cpu::pause();
    }
    cpu::cli();
}

/// Lets processor 1 take interrupts until [`stop_accepting`].
pub fn start_accepting() {
    STOP.store(false, SeqCst);
    smp::start_on(1, accept, 0);
}

/// Ends [`start_accepting`].
pub fn stop_accepting() {
    STOP.store(true, SeqCst);
    smp::join(1, 5000);
}

/// Both processors with their controllers on and their source unmasked, or `None` (reported).
pub fn both(test: &str) -> Option<[Pages; 2]> {
    if !hyperv::required(test) {
        return None;
    }
    hyperv::enable_hypercalls();
    if smp::start() < 2 {
        report::skip(test, "one processor only");
        return None;
    }
    begin();
    let first = enable();
    unmask(SINT[0], VECTOR[0], 0);
    let second = smp::run_on(1, || {
        let pages = enable();
        unmask(SINT[1], VECTOR[1], 0);
        pages
    })?;
    Some([first, second])
}

/// Posts a message through a connection; the payload is `size` bytes that begin with `first`.
pub fn post(connection: u32, kind: u32, size: u32, first: u64) -> u16 {
    let mut input = [0u64; 32];
    input[0] = u64::from(connection);
    input[1] = u64::from(kind) | u64::from(size) << 32;
    for (index, word) in input[2..].iter_mut().enumerate() {
        *word = first + index as u64;
    }
    status_of(raw(u64::from(call::POST_MESSAGE), hyperv::place(&input), 0))
}

/// Signals flag `number` of a connection.
pub fn signal(connection: u32, number: u16) -> u16 {
    hyperv::fast(
        call::SIGNAL_EVENT,
        u64::from(connection) | u64::from(number) << 32,
        0,
    )
}
