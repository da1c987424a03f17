//! Mutual exclusion made of ordinary instructions.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use guest_kit::{check, check_eq, cpu, insn, memory};

use crate::{end, together};

/// A ticket lock around plain (unlocked) updates of several words.
pub fn ticket() {
    let lock = memory::page();
    let data = memory::page();
    let rounds = AtomicU64::new(0);
    let bad = AtomicU64::new(0);
    let end = end();
    together(|_| {
        let mut own = 0;
        while cpu::rdtsc() < end {
            for _ in 0..20 {
                insn!(
                    "mov {t:e}, 1",
                    "lock xadd [{l}], {t:e}",
                    "2:", "cmp [{l} + 64], {t:e}", "je 3f", "pause", "jmp 2b", "3:",
                    l = in(reg) lock, t = out(reg) _,
                );
                let value = memory::read64(data);
                if memory::read64(data + 0x200) != value {
                    bad.fetch_add(1, SeqCst);
                }
                memory::write64(data, value + 1);
                memory::write64(data + 0x200, value + 1);
                // A plain store releases the lock: x86 keeps the order of stores.
                insn!("inc dword ptr [{l} + 64]", l = in(reg) lock);
                own += 1;
            }
        }
        rounds.fetch_add(own, SeqCst);
    });
    let rounds = rounds.load(SeqCst);
    check!(rounds > 0, "{rounds} turns with the ticket lock");
    check_eq!(bad.load(SeqCst), 0, "nobody sees half an update");
    check_eq!(memory::read64(data), rounds, "no update is lost");
}

/// Peterson's algorithm on the first two processors: loads, stores and MFENCE alone.
pub fn peterson() {
    let shared = memory::page();
    // Flags of the two at 0 and 64, the turn at 128, the guarded counter at 192.
    let rounds = AtomicU64::new(0);
    let end = end();
    let count = together(|index| {
        if index > 1 {
            return;
        }
        let (me, other) = (index as u64, 1 - index as u64);
        let mut own = 0;
        while cpu::rdtsc() < end {
            for _ in 0..20 {
                memory::write64(shared + me * 64, 1);
                memory::write64(shared + 128, other);
                insn!("mfence");
                while memory::read64(shared + other * 64) == 1
                    && memory::read64(shared + 128) == other
                {
                    cpu::pause();
                }
                memory::write64(shared + 192, memory::read64(shared + 192) + 1);
                memory::write64(shared + me * 64, 0);
                own += 1;
            }
        }
        rounds.fetch_add(own, SeqCst);
    });
    let rounds = rounds.load(SeqCst);
    check!(
        rounds > 0,
        "{rounds} turns with Peterson's algorithm on {count} processors"
    );
    check_eq!(memory::read64(shared + 192), rounds, "no update is lost");
}
