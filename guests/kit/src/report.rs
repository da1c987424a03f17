//! Counting and printing of results, and the end of the guest.

use core::fmt::Debug;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::{cpu, options, println, trap};

static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// A named test of an image.
pub struct Test {
    /// What the command line and the log call it.
    pub name: &'static str,
    /// Its code; it reports through the `check` macros.
    pub run: fn(),
}

/// Runs the selected tests, prints the summary and ends the guest.
pub fn run(image: &str, tests: &[Test]) -> ! {
    println!("GUEST: {image}, {} processors", crate::boot::processors());
    for test in tests.iter().filter(|test| options::selected(test.name)) {
        println!("TEST: {}", test.name);
        if let Err(fault) = trap::attempt(test.run) {
            fail(
                test.name,
                format_args!("{fault:x?}"),
                format_args!("no exception"),
            );
        }
        trap::clear_handlers();
    }
    finish()
}

/// Prints the summary and ends the guest: 0 passed, 1 failed, 38 (status 77) all skipped.
pub fn finish() -> ! {
    let [passed, failed, skipped] =
        [&PASSED, &FAILED, &SKIPPED].map(|count| count.load(Ordering::Relaxed));
    println!("SUMMARY: {passed} passed, {failed} failed, {skipped} skipped");
    exit(match (passed, failed, skipped) {
        (0, 0, 1..) => 38,
        (0, ..) | (_, 1.., _) => 1,
        _ => 0,
    })
}

/// Ends the guest through the debug-exit port.
pub fn exit(code: u32) -> ! {
    cpu::outl(0xf4, code);
    loop {
        crate::insn!("cli", "hlt");
    }
}

/// Records a success.
pub fn pass(name: impl core::fmt::Display) {
    PASSED.fetch_add(1, Ordering::Relaxed);
    println!("PASS: {name}");
}

/// Records a failure.
pub fn fail(name: impl core::fmt::Display, got: impl Debug, expected: impl Debug) {
    FAILED.fetch_add(1, Ordering::Relaxed);
    println!("FAIL: {name}: got {got:x?} expected {expected:x?}");
}

/// Records that something could not be tested here.
pub fn skip(name: impl core::fmt::Display, reason: &str) {
    SKIPPED.fetch_add(1, Ordering::Relaxed);
    println!("SKIP: {name}: {reason}");
}

/// Records whether `got` is `expected`.
pub fn equal<T: PartialEq + Debug>(name: impl core::fmt::Display, got: T, expected: T) {
    if got == expected {
        pass(name)
    } else {
        fail(name, got, expected)
    }
}

/// Checks a condition: `check!(condition, "name {}", …)`.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($name:tt)+) => {
        if $condition {
            $crate::report::pass(::core::format_args!($($name)+))
        } else {
            $crate::report::fail(
                ::core::format_args!($($name)+),
                false,
                ::core::format_args!("{}", stringify!($condition)),
            )
        }
    };
}

/// Checks that two values are equal: `check_eq!(got, expected, "name {}", …)`.
#[macro_export]
macro_rules! check_eq {
    ($got:expr, $expected:expr, $($name:tt)+) => {
        $crate::report::equal(::core::format_args!($($name)+), $got, $expected)
    };
}

/// Checks that an attempt ended with a fault: `check_fault!(attempt, vector, error, "name")`.
#[macro_export]
macro_rules! check_fault {
    ($attempt:expr, $vector:expr, $error:expr, $($name:tt)+) => {
        $crate::report::equal(
            ::core::format_args!($($name)+),
            $attempt.map(|_| ()).map_err(|fault| (u64::from(fault.vector), fault.error)),
            Err(($vector as u64, $error as u64)),
        )
    };
}

/// Checks that an attempt did not fault.
#[macro_export]
macro_rules! check_ok {
    ($attempt:expr, $($name:tt)+) => {
        $crate::report::equal(
            ::core::format_args!($($name)+),
            $attempt.map(|_| ()).map_err(|fault| (fault.vector, fault.error, fault.rip)),
            Ok(()),
        )
    };
}
