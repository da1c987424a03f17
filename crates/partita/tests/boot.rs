//! Debian's kernels boot to user space, and find there what a Hyper-V guest
//! should find.
//!
//! The kernels come from the packages that `partita quickstart` fetches.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use serde_json::Value;
use support::packages::{self, CLOUD, GENERIC};

/// What a row of the proofs says was seen, if it says that it is right.
fn seen<'a>(outcome: &'a Value, name: &str) -> &'a str {
    let rows = outcome["rows"].as_array().expect("there are rows");
    let row = rows
        .iter()
        .find(|row| row["name"] == name)
        .unwrap_or_else(|| panic!("no row {name}: {outcome:#}"));
    assert_eq!(row["ok"], true, "{row:#}");
    row["seen"].as_str().expect("text was seen")
}

/// The number at the beginning of a text like "470 MiB".
fn number(text: &str) -> f64 {
    let first = text.split(' ').next().unwrap_or_default();
    first
        .parse()
        .unwrap_or_else(|_| panic!("no number: {text}"))
}

/// Boots the kernel of a package and checks every proof that the guest gave.
fn boots(kernel_package: &str, processors: u32) {
    let outcome = packages::check(kernel_package, processors);
    let package = outcome["kernel_package"].as_str().expect("a package");
    let release = package
        .strip_prefix("linux-image-")
        .and_then(|rest| rest.split(' ').next())
        .expect("the name of a package with a kernel");
    assert_eq!(release.contains("cloud"), kernel_package == CLOUD);

    assert_eq!(seen(&outcome, "kernel"), release);
    assert_eq!(seen(&outcome, "hypervisor"), "Microsoft Hyper-V");
    let clock = seen(&outcome, "clock source");
    let clocks = ["hyperv_clocksource_tsc_page", "tsc"];
    assert!(clocks.contains(&clock), "{clock}");
    let online = match processors {
        1 => "1 (online 0)".to_owned(),
        n => format!("{n} (online 0-{})", n - 1),
    };
    assert_eq!(seen(&outcome, "processors"), online);
    // 512 MiB less what the kernel keeps for itself.
    let memory = seen(&outcome, "memory");
    assert!((400.0..512.0).contains(&number(memory)), "{memory}");
    let time = seen(&outcome, "boot time");
    assert!(number(time) > 0.0, "{time}");
    assert_eq!(seen(&outcome, "kernel log"), "quiet");
    assert_eq!(seen(&outcome, "end"), "powered off");
    assert_eq!(outcome["ok"], true);
    assert_eq!(outcome["rows"].as_array().map(Vec::len), Some(8));
    println!("{release}, {processors} processors: user space after {time}");
}

#[test]
fn cloud_kernel_on_1_processor() {
    boots(CLOUD, 1);
}

#[test]
fn cloud_kernel_on_2_processors() {
    boots(CLOUD, 2);
}

#[test]
fn cloud_kernel_on_4_processors() {
    boots(CLOUD, 4);
}

#[test]
fn generic_kernel_on_1_processor() {
    boots(GENERIC, 1);
}

#[test]
fn generic_kernel_on_2_processors() {
    boots(GENERIC, 2);
}

#[test]
fn generic_kernel_on_4_processors() {
    boots(GENERIC, 4);
}
