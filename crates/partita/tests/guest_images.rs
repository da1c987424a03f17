//! The test guests, each run to its end in a partition of its own.
//!
//! An image passes when Partita exits with the status that the guest's debug exit of 0 gives, the
//! guest counted passes, no failure, and nothing that it had to skip: Partita offers everything
//! that the images test. `PARTITA_LONG=1` makes the stresses last a minute each.

#[path = "support/guests.rs"]
mod guests;

use std::time::Duration;

use guests::{Outcome, run};

/// The status of a guest that wrote 0 to the debug-exit port.
const PASSED: i32 = 1;
const LIMIT: Duration = Duration::from_secs(180);

fn assert_passed(image: &str, outcome: &Outcome) {
    let summary = outcome.summary();
    let good = outcome.status.and_then(|status| status.code()) == Some(PASSED)
        && summary
            .as_ref()
            .is_some_and(|counts| counts.passed > 0 && counts.failed == 0 && counts.skipped == 0);
    let telling: Vec<&str> = outcome
        .log
        .lines()
        .filter(|line| line.starts_with("FAIL") || line.starts_with("SKIP"))
        .collect();
    assert!(
        good,
        "{image}: status {:?}, {summary:?}\n{}\n--- whole log ---\n{}",
        outcome.status,
        telling.join("\n"),
        outcome.log
    );
}

fn passes(image: &str, processors: u32) {
    assert_passed(image, &run(image, "", processors, LIMIT));
}

/// Runs a stress for 5 seconds, or a minute when `PARTITA_LONG` is set.
fn endures(image: &str, processors: u32) {
    let long = std::env::var_os("PARTITA_LONG").is_some_and(|value| value == "1");
    let seconds = if long { 60 } else { 5 };
    let limit = LIMIT + Duration::from_secs(3 * seconds);
    assert_passed(
        image,
        &run(image, &format!("seconds={seconds}"), processors, limit),
    );
}

#[test]
fn hypercalls() {
    passes("hypercall", 2);
}

#[test]
fn synthetic_interrupt_controller() {
    passes("synic", 2);
}

#[test]
fn timers_and_reference_time() {
    passes("timers", 2);
}

#[test]
fn local_and_io_apic() {
    passes("apic", 2);
}

#[test]
fn local_apic_of_four_processors() {
    passes("apic", 4);
}

#[test]
fn paging() {
    passes("paging", 1);
}

#[test]
fn exceptions_and_privilege_levels() {
    passes("faults", 1);
}

#[test]
fn privileges() {
    passes("privileges", 2);
}

#[test]
fn floating_point_state() {
    passes("fpu", 1);
}

#[test]
fn atomics_stress() {
    endures("stress-atomics", 2);
}

#[test]
fn self_modifying_code_stress() {
    endures("stress-smc", 2);
}

#[test]
fn instruction_rate() {
    let outcome = run("speed", "milliseconds=300", 1, LIMIT);
    assert_passed("speed", &outcome);
    let rates = outcome
        .log
        .lines()
        .filter(|line| line.starts_with("SPEED: "));
    rates.for_each(|line| println!("{line}"));
}
