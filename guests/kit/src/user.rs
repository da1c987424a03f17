//! Code at privilege level 3.

use core::mem::MaybeUninit;

use crate::segments::selector;
use crate::trap::{Fault, attempt, vector};
use crate::{insn, memory};

unsafe extern "C" {
    static kit_user_return: u8;
}

const STACK: u64 = 0x4000;

/// Starts user code with the given code selector, stack pointer and flags; `argument` is in RDI.
/// Ends with the fault (or the return gate) that brought the processor back.
pub fn enter(code: u16, entry: u64, stack: u64, rflags: u64, argument: u64) -> Fault {
    let ended = attempt(|| {
        insn!(
            "push {ss}",
            "push {stack}",
            "push {flags}",
            "push {cs}",
            "push {entry}",
            "iretq",
            ss = in(reg) u64::from(selector::USER_DATA),
            stack = in(reg) stack,
            flags = in(reg) rflags,
            cs = in(reg) u64::from(code),
            entry = in(reg) entry,
            in("rdi") argument,
        );
    });
    match ended {
        Err(fault) => fault,
        Ok(()) => unreachable!("IRET to user mode fell through"),
    }
}

/// A new stack with the return gate's address on top.
pub fn stack() -> u64 {
    let top = memory::pages(STACK / 0x1000) + STACK - 8;
    memory::write64(top, (&raw const kit_user_return) as u64);
    top
}

/// Runs a function of compiled code in 64-bit user mode and returns its result.
pub fn call<F: FnOnce() -> u64>(code: F) -> Result<u64, Fault> {
    extern "C" fn run<F: FnOnce() -> u64>(data: *mut MaybeUninit<F>) -> u64 {
        // SAFETY: `data` is the initialised closure below, read once.
        let code = unsafe { (*data).assume_init_read() };
        code()
    }
    let mut data = MaybeUninit::new(code);
    let entry = run::<F> as extern "C" fn(*mut MaybeUninit<F>) -> u64;
    let ended = enter(
        selector::USER_CODE64,
        entry as usize as u64,
        user_stack(),
        2,
        &raw mut data as u64,
    );
    if ended.vector == vector::USER_RETURN {
        Ok(ended.rax)
    } else {
        Err(ended)
    }
}

fn user_stack() -> u64 {
    use core::sync::atomic::{AtomicU64, Ordering};
    static SHARED: AtomicU64 = AtomicU64::new(0);
    // One stack is enough: only the boot processor runs user code.
    let mut top = SHARED.load(Ordering::Relaxed);
    if top == 0 {
        top = stack();
        SHARED.store(top, Ordering::Relaxed);
    }
    memory::write64(top, (&raw const kit_user_return) as u64);
    top
}
