//! Further processors: starting them and giving them work.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::apic::{self, icr};
use crate::{boot, cpu, memory, time};

/// The most processors that the kit can use.
pub const MAX: usize = 64;

/// Where the real-mode entry code is put.
const TRAMPOLINE: u64 = 0x8000;

unsafe extern "C" {
    static kit_trampoline: u8;
    static kit_trampoline_end: u8;
}

struct Slot {
    ready: AtomicBool,
    apic_id: AtomicU32,
    code: AtomicUsize,
    data: AtomicUsize,
    busy: AtomicBool,
}

static SLOTS: [Slot; MAX] = [const {
    Slot {
        ready: AtomicBool::new(false),
        apic_id: AtomicU32::new(0),
        code: AtomicUsize::new(0),
        data: AtomicUsize::new(0),
        busy: AtomicBool::new(false),
    }
}; MAX];

/// Starts all other processors once; returns how many processors (with this one) run.
pub fn start() -> usize {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    if STARTED.load(Ordering::Relaxed) != 0 {
        return STARTED.load(Ordering::Relaxed);
    }
    apic::enable();
    SLOTS[0].apic_id.store(apic::id(), Ordering::Relaxed);
    let wanted = boot::processors();
    if wanted > 1 {
        install_trampoline();
        apic::send(0, icr::OTHERS | icr::INIT | icr::ASSERT);
        time::delay_us(10_000);
        apic::send(
            0,
            icr::OTHERS | icr::STARTUP | icr::ASSERT | (TRAMPOLINE >> 12) as u32,
        );
        if !time::wait_for(200, || running() == wanted) {
            apic::send(
                0,
                icr::OTHERS | icr::STARTUP | icr::ASSERT | (TRAMPOLINE >> 12) as u32,
            );
        }
        time::wait_for(10_000, || running() == wanted);
    }
    let count = running();
    STARTED.store(count, Ordering::Relaxed);
    if count != wanted {
        crate::report::fail("processors start", count, wanted);
    }
    count
}

fn running() -> usize {
    1 + SLOTS
        .iter()
        .filter(|slot| slot.ready.load(Ordering::SeqCst))
        .count()
}

/// Copies the real-mode entry code below 1 MiB.
pub fn install_trampoline() {
    let start = (&raw const kit_trampoline) as u64;
    let end = (&raw const kit_trampoline_end) as u64;
    memory::copy_to(TRAMPOLINE, memory::bytes(start, end - start));
}

/// What a further processor does: wait for work and do it.
pub fn processor_loop(index: usize) -> ! {
    let slot = &SLOTS[index];
    apic::enable();
    slot.apic_id.store(apic::id(), Ordering::SeqCst);
    slot.busy.store(false, Ordering::SeqCst);
    slot.ready.store(true, Ordering::SeqCst);
    loop {
        while !slot.busy.load(Ordering::Acquire) {
            cpu::pause();
        }
        let data = slot.data.load(Ordering::Relaxed);
        // SAFETY: `start_on` stored a function and its argument before it set `busy`.
        let code: extern "C" fn(usize) =
            unsafe { core::mem::transmute(slot.code.load(Ordering::Relaxed)) };
        code(data);
        slot.busy.store(false, Ordering::Release);
    }
}

/// The APIC id of a processor.
pub fn apic_id(index: usize) -> u32 {
    SLOTS[index].apic_id.load(Ordering::SeqCst)
}

/// The index of the calling processor.
pub fn index() -> usize {
    // SAFETY: the processor's own data, set up before any caller runs.
    unsafe { (*crate::segments::current()).index }
}

/// Starts plain code on another processor without waiting for it.
pub fn start_on(index: usize, code: extern "C" fn(usize), data: usize) {
    let slot = &SLOTS[index];
    slot.code.store(code as usize, Ordering::Relaxed);
    slot.data.store(data, Ordering::Relaxed);
    slot.busy.store(true, Ordering::Release);
}

/// Has the work given to a processor ended?
pub fn idle(index: usize) -> bool {
    !SLOTS[index].busy.load(Ordering::Acquire)
}

/// Waits for another processor's work to end; false when it takes more than `milliseconds`.
pub fn join(index: usize, milliseconds: u64) -> bool {
    time::wait_for(milliseconds, || idle(index))
}

/// Forgets the state of a processor that a test reset by INIT; call before its next STARTUP.
pub fn forget(index: usize) {
    SLOTS[index].ready.store(false, Ordering::SeqCst);
    SLOTS[index].busy.store(false, Ordering::SeqCst);
    KIT_TICKET.store(index as u32);
}

struct Ticket;
static KIT_TICKET: Ticket = Ticket;
impl Ticket {
    fn store(&self, value: u32) {
        unsafe extern "C" {
            static kit_processor_ticket: u8;
        }
        memory::write32((&raw const kit_processor_ticket) as u64, value);
    }
}

/// Is the processor back after [`forget`]?
pub fn ready(index: usize) -> bool {
    SLOTS[index].ready.load(Ordering::SeqCst)
}

/// Runs `code` on another processor and waits for its result; `None` when it hangs or faults.
pub fn run_on<R, F: FnOnce() -> R>(index: usize, code: F) -> Option<R> {
    struct Call<R, F> {
        code: MaybeUninit<F>,
        result: Option<R>,
    }
    extern "C" fn enter<R, F: FnOnce() -> R>(data: usize) {
        // SAFETY: the `Call` below outlives this: its owner waits, or never returns to it.
        let call = unsafe { &mut *(data as *mut Call<R, F>) };
        // SAFETY: initialised, and read once.
        let code = unsafe { call.code.assume_init_read() };
        match crate::trap::attempt(code) {
            Ok(result) => call.result = Some(result),
            Err(fault) => crate::println!("processor {}: {fault:x?}", self::index()),
        }
    }
    let mut call = Call {
        code: MaybeUninit::new(code),
        result: None,
    };
    start_on(index, enter::<R, F>, &raw mut call as usize);
    if !join(index, 30_000) {
        crate::report::fail("work on another processor ends", false, true);
        crate::report::finish();
    }
    call.result
}

/// Runs `code` on all processors at once (also on this one) and waits for all.
pub fn run_everywhere<F: Fn(usize) + Sync>(code: &F, milliseconds: u64) -> bool {
    extern "C" fn enter<F: Fn(usize) + Sync>(data: usize) {
        // SAFETY: a reference to the closure, which outlives the call.
        let code = unsafe { &*(data as *const F) };
        if let Err(fault) = crate::trap::attempt(|| code(index())) {
            crate::report::fail("no fault on a processor", fault, ());
        }
    }
    let count = start();
    for other in 1..count {
        start_on(other, enter::<F>, core::ptr::from_ref(code) as usize);
    }
    enter::<F>(core::ptr::from_ref(code) as usize);
    (1..count).all(|other| join(other, milliseconds))
}
