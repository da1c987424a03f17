//! A small framework for test guests: multiboot entry, long mode, exceptions with recovery,
//! further processors, serial output and a test runner.
//!
//! A guest owns its whole (virtual) machine, so reading a model-specific register or writing to
//! a physical address endangers nothing but the guest itself. The helpers for such things are
//! therefore safe functions; the reason is given here once.
#![no_std]

pub mod apic;
pub mod boot;
pub mod compat;
pub mod cpu;
pub mod hyperv;
pub mod legacy;
pub mod memory;
pub mod options;
pub mod report;
pub mod segments;
pub mod serial;
pub mod smp;
pub mod time;
pub mod trap;
pub mod user;

pub use report::{Test, run};

/// Runs privileged instructions; takes what `core::arch::asm!` takes.
///
/// The guest runs at privilege level 0 and owns the machine: each use says in its operands what
/// it changes, and a fault is caught by [`trap::attempt`] or reported.
#[macro_export]
macro_rules! insn {
    ($($body:tt)*) => {{
        // SAFETY: see the macro's description; operands and clobbers are declared at the use.
        #[allow(clippy::macro_metavars_in_unsafe, reason = "the operands are the assembly's")]
        #[allow(unused_unsafe, reason = "may be used inside another unsafe block")]
        unsafe { ::core::arch::asm!($($body)*) }
    }};
}

/// Defines the image's entry: `guest!("name", test_function, …);`
#[macro_export]
macro_rules! guest {
    ($name:literal, $($test:path),+ $(,)?) => {
        /// Runs every test of this image; called once by the boot code.
        #[unsafe(no_mangle)]
        extern "C" fn guest_main() -> ! {
            $crate::run($name, &[$($crate::Test {
                name: stringify!($test),
                run: $test,
            }),+])
        }
    };
}
