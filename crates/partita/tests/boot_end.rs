//! The ways in which a guest's run ends, and what `partita` tells of each.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use std::ffi::OsString;
use std::path::PathBuf;

use support::packages::{self, CLOUD, GENERIC};
use support::vm::{Ended, Vm};
use support::{initramfs, kernel};

const OK: i32 = 0;
const CRASHED: i32 = 3;
/// The first line of Linux on its console.
const BANNER: &str = "Linux version ";

const GUEST_OS_ID: u32 = 0x4000_0000;
const CRASH_P0: u32 = 0x4000_0100;
const CRASH_CTL: u32 = 0x4000_0105;
/// CRASH_CTL: report now.
const NOTIFY: u64 = 1 << 63;
/// CRASH_CTL: P3 and P4 are address and length of a message.
const MESSAGE: u64 = 1 << 62;

/// A folder with boot files of the test's own.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// Starts Linux with an initial RAM disk that runs `script`.
    fn linux(&self, package: &str, script: &str, options: &[&str]) -> Vm {
        let initrd = self.0.path().join("initrd");
        initramfs::write(&initrd, script);
        self.run(
            packages::kernel(package),
            &["--initrd".into(), initrd.into()],
            options,
        )
    }

    /// Runs a kernel of so many bytes of code to its end.
    fn tiny(&self, code: &[u8]) -> Ended {
        let path = self.0.path().join("tiny");
        kernel::write(&path, code);
        self.run(path, &[], &["--memory", "32M"]).ended()
    }

    fn run(&self, kernel: PathBuf, initrd: &[OsString], options: &[&str]) -> Vm {
        let mut arguments: Vec<OsString> = vec!["run".into(), "--kernel".into(), kernel.into()];
        arguments.extend_from_slice(initrd);
        arguments.extend(options.iter().map(OsString::from));
        Vm::start(arguments)
    }
}

#[test]
fn power_off() {
    let files = Files::new();
    let vm = files.linux(CLOUD, "echo going\npoweroff -f\n", &["--processors", "2"]);
    let ended = vm.ended().expect_code(OK);
    assert!(ended.console.contains("going\n"), "{}", ended.console);
    assert_eq!(ended.messages, "");
}

#[test]
fn a_reboot_starts_the_guest_again() {
    let script = "echo ready\nread -r word\n\
                  if [ \"$word\" = again ]; then reboot -f; fi\npoweroff -f\n";
    let files = Files::new();
    let mut vm = files.linux(CLOUD, script, &["--processors", "2"]);
    vm.wait_for("ready\r\n", 1);
    vm.send("again\n");
    vm.wait_for("ready\r\n", 2);
    vm.send("off\n");
    let ended = vm.ended().expect_code(OK);
    assert_eq!(ended.console.matches(BANNER).count(), 2);
    assert_eq!(ended.messages, "");
}

#[test]
fn no_reboot_ends_at_the_reset() {
    let options = ["--no-reboot"];
    let ended = Files::new().linux(CLOUD, "reboot -f\n", &options).ended();
    let ended = ended.expect_code(OK);
    assert_eq!(ended.console.matches(BANNER).count(), 1);
}

fn panics(package: &str) {
    let script = "echo c >/proc/sysrq-trigger\n";
    let ended = Files::new().linux(package, script, &[]).ended();
    let ended = ended.expect_code(CRASHED);
    for part in [
        "partita: the guest crashed: it reported a crash on processor 0",
        "Kernel panic - not syncing: sysrq triggered crash",
        "sysrq_handle_crash",
    ] {
        assert!(ended.messages.contains(part), "{part}: {}", ended.messages);
    }
}

#[test]
fn a_panic_of_the_cloud_kernel_is_told() {
    panics(CLOUD);
}

#[test]
fn a_panic_of_the_generic_kernel_is_told() {
    panics(GENERIC);
}

#[test]
fn a_triple_fault_is_a_crash() {
    let ended = Files::new().tiny(kernel::TRIPLE_FAULT);
    let ended = ended.expect_code(CRASHED);
    let expected = format!(
        "partita: the guest crashed: triple fault on processor 0 at RIP {:#018x}",
        kernel::address(0)
    );
    assert!(ended.messages.starts_with(&expected), "{}", ended.messages);
    assert_eq!(ended.messages.lines().count(), 1);
}

#[test]
fn crash_parameters_are_told() {
    let mut values = vec![(GUEST_OS_ID, 0x8100_0000_0000_0000)];
    values.extend((0..5).map(|i| (CRASH_P0 + i, 0xdead_0000_0000_0010 + u64::from(i))));
    values.push((CRASH_CTL, NOTIFY));
    let ended = Files::new().tiny(&kernel::write_msrs(&values));
    let ended = ended.expect_code(CRASHED);
    assert_eq!(
        ended.messages,
        "partita: the guest crashed: it reported a crash on processor 0: 0xdead000000000010 \
         0xdead000000000011 0xdead000000000012 0xdead000000000013 0xdead000000000014\n"
    );
}

#[test]
fn a_crash_message_is_told_without_its_control_characters() {
    let message = b"disk on fire\n\x1b[31mrun";
    let code = |address| {
        kernel::write_msrs(&[
            (GUEST_OS_ID, 0x8100_0000_0000_0000),
            (CRASH_P0, 1),
            (CRASH_P0 + 3, address),
            (CRASH_P0 + 4, message.len() as u64),
            (CRASH_CTL, NOTIFY | MESSAGE),
        ])
    };
    // The message lies behind the code, whose size does not depend on it.
    let mut image = code(kernel::address(code(0).len()));
    image.extend_from_slice(message);
    let ended = Files::new().tiny(&image).expect_code(CRASHED);
    let (first, rest) = ended.messages.split_once('\n').expect("several lines");
    assert!(
        first.contains("it reported a crash on processor 0: 0x1 "),
        "{first}"
    );
    assert_eq!(rest, "disk on fire\n[31mrun\n");
}

#[test]
fn a_message_that_is_not_in_memory_is_left_out() {
    let values = [
        (GUEST_OS_ID, 0x8100_0000_0000_0000),
        (CRASH_P0 + 3, 0xffff_ffff_ffff_f800),
        (CRASH_P0 + 4, u64::MAX),
        (CRASH_CTL, NOTIFY | MESSAGE),
    ];
    let ended = Files::new().tiny(&kernel::write_msrs(&values));
    let ended = ended.expect_code(CRASHED);
    assert!(
        ended
            .messages
            .contains("0xfffffffffffff800 0xffffffffffffffff"),
        "{}",
        ended.messages
    );
}
