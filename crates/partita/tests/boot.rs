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

/// Checks a text like "35 reads, 59 writes; clean, holds 9.0 MiB".
fn disk_file_grew(text: &str) {
    let (requests, file) = text.split_once("; clean, holds ").expect(text);
    let (reads, writes) = requests.split_once(", ").expect(text);
    assert!(number(reads) > 0.0 && number(writes) > 0.0, "{text}");
    // The system and what was written for the proof, but not the 256 MiB of the disk.
    assert!((4.0..64.0).contains(&number(file)), "{text}");
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
    let bus = "version 5.3, 7 devices: hv_storvsc 1, hv_utils 6";
    assert_eq!(seen(&outcome, "vmbus"), bus);
    let disk = "/dev/sda by hv_storvsc, 2.0 MiB written and read back";
    assert_eq!(seen(&outcome, "root disk"), disk);
    disk_file_grew(seen(&outcome, "disk file"));
    assert_eq!(seen(&outcome, "heartbeat"), "ok");
    assert_eq!(seen(&outcome, "time sync"), "connected");
    assert_eq!(seen(&outcome, "kernel log"), "quiet");
    assert_eq!(seen(&outcome, "shutdown"), "accepted");
    assert_eq!(seen(&outcome, "end"), "powered off");
    assert_eq!(outcome["ok"], true);
    assert_eq!(outcome["rows"].as_array().map(Vec::len), Some(14));
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
