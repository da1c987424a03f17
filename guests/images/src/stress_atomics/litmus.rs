//! Litmus tests of the memory model (Intel SDM 3A 9.2): outcomes that are forbidden.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use guest_kit::{check, check_eq, cpu, insn, memory, smp, time};

use crate::{Line, end, together};

static ROUND: [Line<AtomicU64>; 2] = [const { Line(AtomicU64::new(0)) }; 2];
static LAST_ROUND: Line<AtomicU64> = Line(AtomicU64::new(0));

/// How many independent pairs of cells one round goes through.
const PAIRS: u64 = 256;

/// Meets the other processor at the same round; false when the other has gone.
fn meet(index: usize, round: u64) -> bool {
    ROUND[index].0.store(round, SeqCst);
    time::wait_for(20_000, || ROUND[1 - index].0.load(SeqCst) >= round)
}

/// Store buffering: each stores to its own cell and then reads the other's. With a fence (or a
/// locked instruction) between, at least one of them must see the other's store.
pub fn store_buffering() {
    if smp::start() < 2 {
        return guest_kit::report::skip("store buffering", "one processor only");
    }
    let cells = [memory::pages(4), memory::pages(4)];
    let seen = [memory::page(), memory::page()];
    for (name, fence) in [("MFENCE", 0), ("a locked instruction", 1), ("XCHG", 2)] {
        let forbidden = AtomicU64::new(0);
        let rounds = AtomicU64::new(0);
        ROUND.iter().for_each(|line| line.0.store(0, SeqCst));
        LAST_ROUND.0.store(u64::MAX, SeqCst);
        let end = cpu::rdtsc() + (end() - cpu::rdtsc()) / 3;
        together(|index| {
            if index > 1 {
                return;
            }
            for round in 1.. {
                // The first decides for both when it is over, before they meet.
                if index == 0 && cpu::rdtsc() > end {
                    LAST_ROUND.0.store(round, SeqCst);
                }
                if !meet(index, round * 2) {
                    break;
                }
                for pair in 0..PAIRS {
                    let (own, other) = (cells[index] + pair * 64, cells[1 - index] + pair * 64);
                    let value = store_and_read(fence, own, other, round);
                    memory::write64(seen[index] + pair * 8, value);
                }
                if !meet(index, round * 2 + 1) {
                    break;
                }
                if index == 0 {
                    let blind = (0..PAIRS).filter(|pair| {
                        seen.iter()
                            .all(|page| memory::read64(page + pair * 8) != round)
                    });
                    forbidden.fetch_add(blind.count() as u64, Relaxed);
                    rounds.store(round, Relaxed);
                }
                if LAST_ROUND.0.load(SeqCst) == round {
                    break;
                }
            }
            // Release the other, should it still wait.
            ROUND[index].0.store(u64::MAX, SeqCst);
        });
        let pairs = rounds.load(SeqCst) * PAIRS;
        check!(pairs > 0, "store buffering with {name}: {pairs} pairs");
        check_eq!(
            forbidden.load(SeqCst),
            0,
            "store buffering with {name}: never both blind"
        );
    }
}

fn store_and_read(fence: u32, own: u64, other: u64, value: u64) -> u64 {
    let seen: u64;
    match fence {
        0 => insn!("mov [{o}], {v}", "mfence", "mov {s}, [{x}]",
            o = in(reg) own, v = in(reg) value, x = in(reg) other, s = out(reg) seen),
        1 => insn!("mov [{o}], {v}", "lock or dword ptr [rsp], 0", "mov {s}, [{x}]",
            o = in(reg) own, v = in(reg) value, x = in(reg) other, s = out(reg) seen),
        _ => insn!("mov {s}, {v}", "xchg [{o}], {s}", "mov {s}, [{x}]",
            o = in(reg) own, v = in(reg) value, x = in(reg) other, s = out(reg) seen),
    }
    seen
}

/// Message passing: who sees the flag sees the data, without any fence.
pub fn message_passing() {
    if smp::start() < 2 {
        return guest_kit::report::skip("message passing", "one processor only");
    }
    let cells = memory::pages(2);
    let (data, flag) = (cells, cells + 0x1000);
    let stale = AtomicU64::new(0);
    let passed = AtomicU64::new(0);
    let end = end();
    together(|index| match index {
        0 => {
            let mut number = 0u64;
            while cpu::rdtsc() < end {
                for _ in 0..100 {
                    number += 1;
                    insn!("mov [{d}], {n}", "mov [{f}], {n}",
                        d = in(reg) data, f = in(reg) flag, n = in(reg) number);
                }
            }
            passed.store(number, SeqCst);
        }
        1 => {
            while cpu::rdtsc() < end {
                for _ in 0..100 {
                    let (seen, value): (u64, u64);
                    insn!("mov {s}, [{f}]", "mov {v}, [{d}]",
                        d = in(reg) data, f = in(reg) flag, s = out(reg) seen, v = out(reg) value);
                    if value < seen {
                        stale.fetch_add(1, Relaxed);
                    }
                }
            }
        }
        _ => {}
    });
    let passed = passed.load(SeqCst);
    check!(passed > 0, "message passing: {passed} messages");
    check_eq!(
        stale.load(SeqCst),
        0,
        "message passing: no flag without its data"
    );
}

/// Coherence: a cell that only grows is never seen to shrink, and 8-byte accesses never tear.
pub fn coherence() {
    let cell = memory::page();
    let backwards = AtomicU64::new(0);
    let torn = AtomicU64::new(0);
    let end = end();
    together(|index| {
        let mut last = 0;
        let mut number = 0u64;
        while cpu::rdtsc() < end {
            for _ in 0..100 {
                if index == 0 {
                    number += 1;
                    memory::write64(cell, number << 32 | number);
                } else {
                    let seen = memory::read64(cell);
                    if seen >> 32 != seen & 0xffff_ffff {
                        torn.fetch_add(1, Relaxed);
                    }
                    if seen < last {
                        backwards.fetch_add(1, Relaxed);
                    }
                    last = seen;
                }
            }
        }
    });
    check_eq!(torn.load(SeqCst), 0, "aligned 8-byte accesses never tear");
    check_eq!(backwards.load(SeqCst), 0, "a growing cell never shrinks");
}
