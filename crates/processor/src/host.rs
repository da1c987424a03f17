//! The host's own instructions: memory accesses that other threads may race
//! with, and the thread barrier. The arithmetic is in [`crate::native`].
//!
//! Guest memory is shared with other processors' threads and with devices, so
//! Rust's references and plain loads must not touch it. Each access here is
//! one machine instruction in assembly, which gives the guest the ordering of
//! the host: the same that an x86 guest expects.
//!
//! The functions are safe to call within this crate under one rule, which
//! [`crate::space::GuestSpace`]'s contract backs: every pointer comes from a
//! [`crate::HostPage`] and the access stays within that page.

use std::arch::asm;

macro_rules! access {
    ($load:ident, $store:ident, $type:ty, $class:ident, $mov_load:literal, $mov_store:literal) => {
        /// One load instruction from guest memory.
        #[inline(always)]
        pub(crate) fn $load(at: *const u8) -> $type {
            let value: $type;
            // SAFETY: `at` lies in a guest page that stays mapped (module rule).
            unsafe {
                asm!($mov_load, out($class) value, in(reg) at, options(nostack, preserves_flags, readonly));
            }
            value
        }

        /// One store instruction to guest memory.
        #[inline(always)]
        pub(crate) fn $store(at: *mut u8, value: $type) {
            // SAFETY: `at` lies in a writable guest page that stays mapped (module rule).
            unsafe {
                asm!($mov_store, in(reg) at, in($class) value, options(nostack, preserves_flags));
            }
        }
    };
}
access!(
    load8,
    store8,
    u8,
    reg_byte,
    "mov {0}, [{1}]",
    "mov [{0}], {1}"
);
access!(
    load16,
    store16,
    u16,
    reg,
    "mov {0:x}, [{1}]",
    "mov [{0}], {1:x}"
);
access!(
    load32,
    store32,
    u32,
    reg,
    "mov {0:e}, [{1}]",
    "mov [{0}], {1:e}"
);
access!(
    load64,
    store64,
    u64,
    reg,
    "mov {0}, [{1}]",
    "mov [{0}], {1}"
);

/// Loads a page-table entry of 4 or 8 bytes.
pub(crate) fn load_entry(at: *const u8, size: usize) -> u64 {
    if size == 4 {
        u64::from(load32(at))
    } else {
        load64(at)
    }
}

/// Sets bits in a page-table entry of 4 or 8 bytes, atomically.
pub(crate) fn or_entry(at: *mut u8, bits: u64, size: usize) {
    if size == 4 {
        // SAFETY: `at` lies in a writable guest page (module rule).
        unsafe {
            asm!("lock or dword ptr [{0}], {1:e}", in(reg) at, in(reg) bits as u32, options(nostack))
        }
    } else {
        // SAFETY: as above.
        unsafe { asm!("lock or qword ptr [{0}], {1}", in(reg) at, in(reg) bits, options(nostack)) }
    }
}

/// Copies from guest memory.
pub(crate) fn copy_from(from: *const u8, to: &mut [u8]) {
    // SAFETY: `from` is valid for `to.len()` bytes (module rule); `rep movsb`
    // is opaque to the compiler, so racing writers are not undefined.
    unsafe {
        asm!("rep movsb", inout("rcx") to.len() => _, inout("rdi") to.as_mut_ptr() => _,
            inout("rsi") from => _, options(nostack, preserves_flags));
    }
}

/// Copies to guest memory. Operands up to 8 bytes are one store.
pub(crate) fn copy_to(to: *mut u8, from: &[u8]) {
    match *from {
        [a] => store8(to, a),
        [a, b] => store16(to, u16::from_le_bytes([a, b])),
        [a, b, c, d] => store32(to, u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => store64(to, u64::from_le_bytes([a, b, c, d, e, f, g, h])),
        // SAFETY: as in `copy_from`, with `to` writable.
        _ => unsafe {
            asm!("rep movsb", inout("rcx") from.len() => _, inout("rdi") to => _,
                inout("rsi") from.as_ptr() => _, options(nostack, preserves_flags));
        },
    }
}

/// A full memory fence.
#[inline]
pub(crate) fn fence() {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}

/// The host's time-stamp counter.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC is available to user code on every Linux host.
    unsafe { core::arch::x86_64::_rdtsc() }
}

const MEMBARRIER_PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

/// Announces to the kernel that [`barrier_all_threads`] will be used.
pub(crate) fn register_barrier() {
    membarrier(MEMBARRIER_REGISTER_PRIVATE_EXPEDITED);
}

/// Makes every running thread of this process pass a full memory barrier.
pub(crate) fn barrier_all_threads() {
    fence();
    membarrier(MEMBARRIER_PRIVATE_EXPEDITED);
}

fn membarrier(command: libc::c_int) {
    // SAFETY: membarrier touches no memory of ours. A kernel without it
    // (before 4.14) answers an error, and the fence above must do.
    unsafe {
        libc::syscall(libc::SYS_membarrier, command, 0, 0);
    }
}

/// Copies `bytes` upwards in elements of `size`, as REP MOVS does: where the
/// ranges overlap, what has been written is read again.
pub(crate) fn move_forward(from: *const u8, to: *mut u8, bytes: usize, size: usize) {
    // SAFETY: both ranges lie each within one guest page (module rule).
    unsafe {
        match size {
            1 => asm!("rep movsb", inout("rcx") bytes => _, inout("rdi") to => _,
                inout("rsi") from => _, options(nostack, preserves_flags)),
            2 => asm!("rep movsw", inout("rcx") bytes / 2 => _, inout("rdi") to => _,
                inout("rsi") from => _, options(nostack, preserves_flags)),
            4 => asm!("rep movsd", inout("rcx") bytes / 4 => _, inout("rdi") to => _,
                inout("rsi") from => _, options(nostack, preserves_flags)),
            _ => asm!("rep movsq", inout("rcx") bytes / 8 => _, inout("rdi") to => _,
                inout("rsi") from => _, options(nostack, preserves_flags)),
        }
    }
}

/// Stores `value` `count` times in elements of `size`, as REP STOS does.
pub(crate) fn fill(to: *mut u8, value: u64, count: usize, size: usize) {
    // SAFETY: the range lies within one writable guest page (module rule).
    unsafe {
        match size {
            1 => asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _,
                in("al") value as u8, options(nostack, preserves_flags)),
            2 => asm!("rep stosw", inout("rcx") count => _, inout("rdi") to => _,
                in("ax") value as u16, options(nostack, preserves_flags)),
            4 => asm!("rep stosd", inout("rcx") count => _, inout("rdi") to => _,
                in("eax") value as u32, options(nostack, preserves_flags)),
            _ => asm!("rep stosq", inout("rcx") count => _, inout("rdi") to => _,
                in("rax") value, options(nostack, preserves_flags)),
        }
    }
}

/// Copies from memory that guests may write meanwhile.
///
/// # Safety
///
/// `from` must be readable for `to.len()` bytes.
pub unsafe fn copy_from_shared(from: *const u8, to: &mut [u8]) {
    copy_from(from, to);
}

/// Copies to memory that guests may access meanwhile.
///
/// # Safety
///
/// `to` must be writable for `from.len()` bytes.
pub unsafe fn copy_to_shared(to: *mut u8, from: &[u8]) {
    copy_to(to, from);
}
