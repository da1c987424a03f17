//! The calls: address-space flushes, interprocessor interrupts, VP index and registers.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use guest_kit::hyperv::{self, FAST, SELF, call, raw, reps_of, simple, status, status_of};
use guest_kit::memory::{self, Tables, pte};
use guest_kit::trap::{Frame, set_handler};
use guest_kit::{apic, check, check_eq, cpu, println, report, smp, time};

/// A page whose translation the tests change.
const WINDOW: u64 = 0x60_0000_0000;
const ALL_PROCESSORS: u64 = 1;
const ALL_SPACES: u64 = 2;
const IPI: u8 = 0x50;

static QUESTION: AtomicU64 = AtomicU64::new(0);
static ANSWER: AtomicU64 = AtomicU64::new(0);
static SEEN: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

fn ready(test: &str) -> bool {
    if !hyperv::required(test) {
        return false;
    }
    hyperv::enable_hypercalls();
    if smp::start() < 2 {
        report::skip(test, "one processor only");
        return false;
    }
    true
}

/// The other processor: keeps the window's translation warm and tells what it reads when asked.
extern "C" fn reader(_: usize) {
    while !STOP.load(SeqCst) {
        let question = QUESTION.load(SeqCst);
        let value = memory::read64(WINDOW);
        if question != ANSWER.load(SeqCst) {
            SEEN.store(value, SeqCst);
            ANSWER.store(question, SeqCst);
        }
    }
}

/// Remaps the window many times, flushing with `flush`, and asks the other processor each time.
fn watch(name: &str, flush: impl Fn() -> u16) {
    let tables = Tables::boot();
    let pages = [memory::page(), memory::page()];
    memory::write64(pages[0], 0xaaaa);
    memory::write64(pages[1], 0xbbbb);
    tables.map(WINDOW, pages[0], pte::P | pte::W, 1);
    cpu::invlpg(WINDOW);
    STOP.store(false, SeqCst);
    flush();
    smp::start_on(1, reader, 0);
    let (mut stale, mut refused, mut silent) = (0, 0, 0);
    for round in 1..=200usize {
        memory::read64(WINDOW);
        tables.map(WINDOW, pages[round & 1], pte::P | pte::W, 1);
        refused += u32::from(flush() != 0);
        QUESTION.fetch_add(1, SeqCst);
        let asked = QUESTION.load(SeqCst);
        if !time::wait_for(5000, || ANSWER.load(SeqCst) == asked) {
            silent += 1;
            break;
        }
        let expected = memory::read64(pages[round & 1]);
        stale += u32::from(SEEN.load(SeqCst) != expected);
        stale += u32::from(memory::read64(WINDOW) != expected);
    }
    STOP.store(true, SeqCst);
    smp::join(1, 5000);
    check_eq!(
        (refused, silent, stale),
        (0, 0, 0),
        "{name}: no stale translation in 200 rounds"
    );
}

/// A mask of the calling processor and processor 1.
fn both() -> u64 {
    let other = smp::run_on(1, hyperv::vp_index).unwrap_or(0);
    1 << hyperv::vp_index() | 1 << other
}

pub fn flush() {
    if !ready("flush") {
        return;
    }
    let (mask, cr3) = (both(), cpu::read_cr3());
    watch("flush space, all processors", || {
        simple(call::FLUSH_SPACE, &[0, ALL_PROCESSORS | ALL_SPACES, 0])
    });
    watch("flush space, mask and CR3", || {
        simple(call::FLUSH_SPACE, &[cr3, 0, mask])
    });
    watch("flush list", || {
        let input = hyperv::place(&[cr3, 0, mask, (WINDOW - 0x1000) | 2]);
        let result = raw(hyperv::rep_control(call::FLUSH_LIST, 0, 1), input, 0);
        if reps_of(result) == 1 {
            status_of(result)
        } else {
            u16::MAX
        }
    });
    watch("flush list, all processors", || {
        let input = hyperv::place(&[0, ALL_PROCESSORS | ALL_SPACES, 0, 0x1000, WINDOW]);
        status_of(raw(hyperv::rep_control(call::FLUSH_LIST, 0, 2), input, 0))
    });
    if cpu::cpuid(0x4000_0003, 0).edx >> 4 & 1 != 0 {
        watch("flush space, XMM fast", || {
            status_of(hyperv::xmm_fast(
                u64::from(call::FLUSH_SPACE),
                &[cr3, 0, mask],
            ))
        });
    }
}

pub fn flush_ex() {
    if !ready("flush_ex") {
        return;
    }
    let (mask, cr3) = (both(), cpu::read_cr3());
    watch("flush space Ex, sparse set", || {
        let input = hyperv::place(&[cr3, 0, 0, 1, mask]);
        status_of(raw(
            hyperv::variable_control(call::FLUSH_SPACE_EX, 1),
            input,
            0,
        ))
    });
    watch("flush space Ex, all", || {
        simple(call::FLUSH_SPACE_EX, &[0, ALL_SPACES, 1, 0])
    });
    watch("flush list Ex, sparse set", || {
        let input = hyperv::place(&[cr3, 0, 0, 1, mask, WINDOW]);
        let control = hyperv::variable_control(call::FLUSH_LIST_EX, 1) | 1 << 32;
        status_of(raw(control, input, 0))
    });
    // An empty set flushes nobody, and is no error.
    let empty = hyperv::place(&[cr3, 0, 0, 0]);
    check_eq!(
        status_of(raw(u64::from(call::FLUSH_SPACE_EX), empty, 0)),
        0,
        "empty sparse set"
    );
}

static RECEIVED: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn count(_: &mut Frame) {
    if let Some(counter) = RECEIVED.get(smp::index()) {
        counter.fetch_add(1, SeqCst);
    }
    apic::eoi();
}

extern "C" fn accept(_: usize) {
    cpu::sti();
    while !STOP.load(SeqCst) {
        cpu::pause();
    }
    cpu::cli();
}

/// Sends 100 interrupts and checks that each of the processors in `expected` got all of them.
fn interrupts(name: &str, expected: [u64; 2], send: impl Fn() -> u16) {
    STOP.store(false, SeqCst);
    smp::start_on(1, accept, 0);
    RECEIVED[0].store(0, SeqCst);
    RECEIVED[1].store(0, SeqCst);
    let mut refused = 0;
    for round in 1..=100u64 {
        refused += u32::from(send() != 0);
        cpu::sti();
        time::wait_for(5000, || {
            (0..2).all(|index| RECEIVED[index].load(SeqCst) >= expected[index] * round)
        });
        cpu::cli();
    }
    STOP.store(true, SeqCst);
    smp::join(1, 5000);
    check_eq!(refused, 0, "{name}: accepted");
    check_eq!(
        [RECEIVED[0].load(SeqCst), RECEIVED[1].load(SeqCst)],
        expected.map(|each| each * 100),
        "{name}: delivered"
    );
}

pub fn cluster_ipi() {
    if !ready("cluster_ipi") {
        return;
    }
    set_handler(IPI, count);
    let vector = u64::from(IPI);
    let other = both() & !(1 << hyperv::vp_index());
    let own = 1u64 << hyperv::vp_index();
    interrupts("IPI to another", [0, 1], || {
        hyperv::fast(call::SEND_IPI, vector, other)
    });
    interrupts("IPI to itself", [1, 0], || {
        hyperv::fast(call::SEND_IPI, vector, own)
    });
    interrupts("IPI to both, from memory", [1, 1], || {
        simple(call::SEND_IPI, &[vector, own | other])
    });
    interrupts("IPI Ex to another", [0, 1], || {
        let input = hyperv::place(&[vector, 0, 1, other]);
        status_of(raw(
            hyperv::variable_control(call::SEND_IPI_EX, 1),
            input,
            0,
        ))
    });
    if smp::start() == 2 {
        interrupts("IPI Ex to all", [1, 1], || {
            simple(call::SEND_IPI_EX, &[vector, 1, 0])
        });
    }
    if cpu::cpuid(0x4000_0003, 0).edx >> 4 & 1 != 0 {
        interrupts("IPI Ex, XMM fast", [1, 1], || {
            let control = hyperv::variable_control(call::SEND_IPI_EX, 1);
            status_of(hyperv::xmm_fast(control, &[vector, 0, 1, own | other]))
        });
    }
    for bad in [0u64, 2, 0xf, 0x100] {
        let refused = hyperv::fast(call::SEND_IPI, bad, own);
        check!(
            matches!(
                refused,
                status::INVALID_PARAMETER | status::INVALID_HYPERCALL_INPUT
            ),
            "IPI with vector {bad:#x}: {refused:#x}"
        );
    }
}

pub fn vp_index() {
    if !ready("vp_index") {
        return;
    }
    let output = memory::page();
    let indices = [
        hyperv::vp_index(),
        smp::run_on(1, hyperv::vp_index).unwrap_or(u32::MAX),
    ];
    check!(indices[0] != indices[1], "VP indices are different");
    let privileges = cpu::cpuid(0x4000_0003, 0).ebx;
    for (processor, index) in indices.into_iter().enumerate() {
        let input = hyperv::place(&[SELF, 0, u64::from(smp::apic_id(processor))]);
        let control = hyperv::rep_control(call::VP_INDEX_FROM_APIC_ID, 0, 1);
        let result = raw(control, input, output);
        if privileges & (1 << 17 | 1 << 21) == 0 && status_of(result) == status::ACCESS_DENIED {
            println!("NOTE: VP index from APIC id needs a privilege that this partition has not");
            continue;
        }
        check_eq!(
            (status_of(result), reps_of(result), memory::read32(output)),
            (0, 1, index),
            "VP index from the APIC id of processor {processor}"
        );
    }
    let input = hyperv::place(&[SELF, 0, 0xfffe]);
    let result = raw(
        hyperv::rep_control(call::VP_INDEX_FROM_APIC_ID, 0, 1),
        input,
        output,
    );
    check!(
        status_of(result) != 0,
        "an APIC id that nobody has: {:#x}",
        status_of(result)
    );
    check_eq!(reps_of(result), 0, "and nothing is completed");
}

/// HvRegisterVpIndex and HvX64RegisterGuestOsId's neighbour in the synthetic group.
const REGISTER_VP_INDEX: u64 = 0x0009_0003;

pub fn vp_registers() {
    if !ready("vp_registers") {
        return;
    }
    let output = memory::page();
    let allowed = cpu::cpuid(0x4000_0003, 0).ebx >> 17 & 1 != 0;
    let own = u64::from(hyperv::vp_index());
    let input = hyperv::place(&[SELF, own, REGISTER_VP_INDEX]);
    let result = raw(
        hyperv::rep_control(call::GET_VP_REGISTERS, 0, 1),
        input,
        output,
    );
    if allowed {
        check_eq!(
            (status_of(result), reps_of(result), memory::read64(output)),
            (0, 1, own),
            "reading the VP index register"
        );
    } else {
        check_eq!(
            status_of(result),
            status::ACCESS_DENIED,
            "registers without the privilege"
        );
    }
    let input = hyperv::place(&[0x1234_5678, own, REGISTER_VP_INDEX]);
    let other = status_of(raw(
        hyperv::rep_control(call::GET_VP_REGISTERS, 0, 1),
        input,
        output,
    ));
    check!(
        matches!(other, status::ACCESS_DENIED | status::INVALID_PARTITION_ID),
        "registers of another partition: {other:#x}"
    );
}

pub fn extended() {
    if !hyperv::required("extended") {
        return;
    }
    hyperv::enable_hypercalls();
    let output = memory::page();
    memory::write64(output, u64::MAX);
    let allowed = cpu::cpuid(0x4000_0003, 0).ebx >> 20 & 1 != 0;
    let query = status_of(raw(u64::from(call::EXT_QUERY_CAPABILITIES), 0, output));
    if allowed {
        check_eq!(query, 0, "extended capabilities");
        check!(memory::read64(output) != u64::MAX, "are written");
    } else {
        check!(
            matches!(
                query,
                status::ACCESS_DENIED | status::INVALID_HYPERCALL_CODE
            ),
            "extended calls without the privilege: {query:#x}"
        );
    }
    let unknown = status_of(raw(0x8fff | FAST, 0, 0));
    check!(
        matches!(
            unknown,
            status::ACCESS_DENIED | status::INVALID_HYPERCALL_CODE
        ),
        "unknown extended call: {unknown:#x}"
    );
}
