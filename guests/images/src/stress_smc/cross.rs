//! One processor changes code that another executes (Intel SDM 3A 9.1.3).

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use guest_kit::trap::{Frame, set_handler, vector};
use guest_kit::{apic, check, cpu, memory, report, smp, time};

use crate::patched::put_constant;
use crate::{repeat, result, run, serialise};

static CODE: AtomicU64 = AtomicU64::new(0);
static WANTED: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);
static DONE: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn execute_on_demand(_: usize) {
    while !STOP.load(SeqCst) {
        let wanted = WANTED.load(SeqCst);
        if wanted != DONE.load(SeqCst) {
            serialise();
            SEEN.store(run(CODE.load(SeqCst)), SeqCst);
            DONE.store(wanted, SeqCst);
        }
        cpu::pause();
    }
}

/// The documented way: change, tell, serialise, execute.
pub fn synchronised() {
    if smp::start() < 2 {
        return report::skip("cross-modifying code", "one processor only");
    }
    let code = memory::page() + 0x200;
    put_constant(code, 0);
    CODE.store(code, SeqCst);
    STOP.store(false, SeqCst);
    smp::start_on(1, execute_on_demand, 0);
    let mut lost = false;
    result(
        "change for another processor",
        repeat(|round| {
            if lost {
                return true;
            }
            memory::write32(code + 1, round.wrapping_mul(77));
            WANTED.store(round, SeqCst);
            lost = !time::wait_for(10_000, || DONE.load(SeqCst) == round);
            !lost && SEEN.load(SeqCst) == round.wrapping_mul(77)
        }),
    );
    STOP.store(true, SeqCst);
    check!(smp::join(1, 10_000), "the other processor ends");
}

const SYNC: u8 = 0x51;
static SYNCED: AtomicU32 = AtomicU32::new(0);
static TRAPPED: AtomicU32 = AtomicU32::new(0);
static BAD: AtomicU32 = AtomicU32::new(0);
static ROUNDS: AtomicU32 = AtomicU32::new(0);
const OLD: u32 = 0x1234_5678;
const NEW: u32 = 0xfedc_ba98;
const SKIPPED: u32 = 0x0bad_f00d;

/// The interrupt itself serialises (IRET does); it tells that it was here.
fn on_sync(_: &mut Frame) {
    SYNCED.fetch_add(1, SeqCst);
    apic::eoi();
}

/// The breakpoint stands for the instruction being changed: do something else instead.
fn on_breakpoint(frame: &mut Frame) {
    TRAPPED.fetch_add(1, SeqCst);
    frame.rax = u64::from(SKIPPED);
    // Behind the five-byte instruction, of which INT3 was the first byte.
    frame.rip += 4;
}

extern "C" fn execute_always(_: usize) {
    cpu::sti();
    while !STOP.load(SeqCst) {
        if !matches!(run(CODE.load(SeqCst)), OLD | NEW | SKIPPED) {
            BAD.fetch_add(1, SeqCst);
        }
        ROUNDS.fetch_add(1, SeqCst);
    }
    cpu::cli();
}

/// Makes the other processor serialise.
fn synchronise() -> bool {
    let before = SYNCED.load(SeqCst);
    apic::send(smp::apic_id(1), apic::icr::ASSERT | u32::from(SYNC));
    time::wait_for(10_000, || SYNCED.load(SeqCst) != before)
}

/// Code under execution is changed by way of INT3, as operating systems do.
pub fn breakpoint_protocol() {
    if smp::start() < 2 {
        return report::skip("INT3 protocol", "one processor only");
    }
    set_handler(vector::BP, on_breakpoint);
    set_handler(SYNC, on_sync);
    let code = memory::page() + 0x7e;
    put_constant(code, OLD);
    CODE.store(code, SeqCst);
    STOP.store(false, SeqCst);
    smp::start_on(1, execute_always, 0);
    let mut lost = false;
    result(
        "INT3 protocol",
        repeat(|round| {
            if lost {
                return true;
            }
            memory::write8(code, 0xcc);
            lost |= !synchronise();
            memory::write32(code + 1, if round & 1 == 0 { OLD } else { NEW });
            lost |= !synchronise();
            memory::write8(code, 0xb8);
            lost |= !synchronise();
            !lost
        }),
    );
    STOP.store(true, SeqCst);
    check!(smp::join(1, 10_000), "the other processor ends");
    check!(
        BAD.load(SeqCst) == 0,
        "it never executed a mixture ({} runs)",
        ROUNDS.load(SeqCst)
    );
    guest_kit::println!("NOTE: {} breakpoints were hit", TRAPPED.load(SeqCst));
}
