//! An idle guest leaves the host alone.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use std::fs;
use std::time::{Duration, Instant};

use support::packages::{self, CLOUD};
use support::vm::Vm;
use support::{initramfs, packages::GENERIC};

/// The most that an idle guest may use of one core of the host.
const MOST: f64 = 0.03;
/// How long a kernel goes on with what it puts off at its start.
const SETTLE: Duration = Duration::from_secs(4);
/// How long the guest is watched.
const WATCH: Duration = Duration::from_secs(8);

/// Time that a process has had of the host's processors, in all its threads:
/// fields 14 (user) and 15 (system) of proc_pid_stat(5).
fn processor_time(id: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).expect("the process runs");
    // The name in field 2 may hold anything, but ends at the last parenthesis.
    let (_, fields) = text.rsplit_once(") ").expect("a name in parentheses");
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number of ticks"))
        .sum();
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// The part of one core that a process uses while it is watched.
fn load(id: u32) -> f64 {
    let (start, before) = (Instant::now(), processor_time(id));
    std::thread::sleep(WATCH);
    let used = processor_time(id) - before;
    used.as_secs_f64() / start.elapsed().as_secs_f64()
}

fn is_idle(kernel_package: &str, processors: u32) {
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    initramfs::write(&initrd, "echo asleep-$(nproc)\nsleep 600\npoweroff -f\n");
    let kernel = packages::kernel(kernel_package);
    let processors = processors.to_string();
    let vm = Vm::start([
        "run".as_ref(),
        "--kernel".as_ref(),
        kernel.as_os_str(),
        "--initrd".as_ref(),
        initrd.as_os_str(),
        "--processors".as_ref(),
        processors.as_ref(),
    ]);
    vm.wait_for(&format!("asleep-{processors}"), 1);
    costs_little(&vm, &format!("{kernel_package}, {processors} processors"));
}

/// Watches a guest that has nothing to do any more.
fn costs_little(vm: &Vm, what: &str) {
    std::thread::sleep(SETTLE);
    let first = load(vm.id());
    // The host's own noise counts too: a slow wake-up costs a guest more.
    let least = if first < MOST {
        first
    } else {
        load(vm.id()).min(first)
    };
    println!("{what}: {:.2} %", least * 100.0);
    assert!(
        least < MOST,
        "{what}: an idle guest used {:.1} % of a core",
        least * 100.0
    );
}

#[test]
fn an_idle_guest_with_1_processor_costs_next_to_nothing() {
    is_idle(CLOUD, 1);
}

#[test]
fn an_idle_guest_with_4_processors_costs_next_to_nothing() {
    is_idle(CLOUD, 4);
}

#[test]
fn an_idle_generic_kernel_costs_next_to_nothing() {
    is_idle(GENERIC, 2);
}

#[test]
fn an_idle_shell_with_a_disk_and_components_costs_next_to_nothing() {
    let cache = packages::own_cache();
    let vm = Vm::start([
        "quickstart".as_ref(),
        "--kernel-package".as_ref(),
        CLOUD.as_ref(),
        "--cache".as_ref(),
        cache.path().as_os_str(),
    ]);
    vm.wait_for("Welcome to Linux", 1);
    costs_little(&vm, "a shell with a disk and components");
}
