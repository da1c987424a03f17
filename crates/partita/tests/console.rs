//! The serial console: what is piped in, and a person's terminal.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};
use support::kernel;
use support::packages::{self, CLOUD};
use support::terminal::Terminal;
use support::vm::{Ended, LIMIT, Vm};
use tempfile::TempDir;

/// Begins what the quickstart guest says once its shell is near.
const WELCOME: &str = "Welcome to Linux";
const CTRL_A: &str = "\x01";
const CTRL_C: &str = "\x03";

fn quickstart(cache: &TempDir) -> Vec<OsString> {
    let arguments = ["quickstart", "--kernel-package", CLOUD, "--cache"];
    let mut arguments: Vec<_> = arguments.map(OsString::from).into();
    arguments.push(cache.path().into());
    arguments
}

#[test]
fn a_script_on_standard_input_is_run_from_its_first_byte() {
    let cache = packages::own_cache();
    let mut vm = Vm::start(quickstart(&cache));
    vm.send("echo first-$((6 * 7))\necho second-$((6 * 8))\npoweroff\n");
    vm.end_input();
    let ended = vm.ended();
    for answer in ["first-42\n", "second-48\n"] {
        assert!(
            ended.console.contains(answer),
            "{answer}: {}",
            ended.console
        );
    }
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn a_long_paste_arrives_whole() {
    let mut pasted = String::new();
    for line in 0..400 {
        let noise = line * 7919 % 1_000_003;
        writeln!(pasted, "line {line} of a long paste, with {noise:07} in it").unwrap();
    }
    assert!(pasted.len() > 16 << 10);
    let digest: String = Sha256::digest(&pasted)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();

    let cache = packages::own_cache();
    let mut vm = Vm::start(quickstart(&cache));
    vm.wait_for(WELCOME, 1);
    vm.send(&format!("cat >/tmp/paste <<'END'\n{pasted}END\n"));
    vm.send("sha256sum /tmp/paste; wc -c /tmp/paste\npoweroff\n");
    let ended = vm.ended();
    let size = format!("{} /tmp/paste", pasted.len());
    assert!(ended.console.contains(&size), "{}", ended.console);
    assert!(ended.console.contains(&digest), "{}", ended.console);
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn reboot_and_power_off_typed_at_the_shell() {
    let cache = packages::own_cache();
    let mut vm = Vm::start(quickstart(&cache));
    vm.wait_for(WELCOME, 1);
    vm.send("reboot\n");
    vm.wait_for(WELCOME, 2);
    vm.send("poweroff\n");
    let ended = vm.ended();
    assert_eq!(ended.console.matches("Linux version ").count(), 2);
    assert_eq!(ended.status.code(), Some(0));
}

/// Runs commands at the shell of a quickstart that must end well.
fn session(arguments: Vec<OsString>, commands: &str) -> Ended {
    let mut vm = Vm::start(arguments);
    vm.wait_for(WELCOME, 1);
    vm.send(&format!("{commands}\npoweroff\n"));
    vm.ended().expect_code(0)
}

#[test]
fn what_is_stored_on_the_disk_stays_until_a_fresh_one_is_wanted() {
    let cache = packages::own_cache();
    let first = session(quickstart(&cache), "echo kept-$((6 * 7)) >note");
    assert!(first.messages.contains("quickstart.vhdx, new"), "{first:?}");

    let mut vm = Vm::start(quickstart(&cache));
    vm.wait_for(WELCOME, 1);
    let other = Command::new(env!("CARGO_BIN_EXE_partita"))
        .args(quickstart(&cache))
        .output()
        .expect("partita starts");
    let refusal = String::from_utf8_lossy(&other.stderr);
    assert_eq!(other.status.code(), Some(1), "{refusal}");
    assert!(refusal.contains("quickstart.vhdx is in use"), "{refusal}");
    vm.send("cat note; grep ' / ' /proc/mounts\npoweroff\n");
    let second = vm.ended().expect_code(0);
    assert!(second.messages.contains("as it was left"), "{second:?}");
    for answer in ["kept-42\n", "/dev/sda / ext4 rw"] {
        assert!(second.console.contains(answer), "{}", second.console);
    }
    assert!(!second.console.contains("not let go"), "{}", second.console);

    let mut arguments = quickstart(&cache);
    arguments.push("--fresh".into());
    let third = session(arguments, "cat note");
    assert!(third.console.contains("No such file"), "{}", third.console);
    assert!(!third.console.contains("kept-42"), "{}", third.console);
}

#[test]
fn a_disk_that_was_not_let_go_in_order_is_told() {
    let cache = packages::own_cache();
    let vm = Vm::start(quickstart(&cache));
    vm.wait_for(WELCOME, 1);
    drop(vm);
    let ended = session(quickstart(&cache), "echo still-$((1 + 1))");
    assert!(ended.console.contains("not let go in order"), "{ended:?}");
    assert!(ended.console.contains("still-2\n"), "{ended:?}");
}

#[test]
fn a_session_at_a_terminal() {
    let cache = packages::own_cache();
    let terminal = Terminal::new();
    let before = terminal.settings();
    let vm = Vm::start_at(&terminal, quickstart(&cache));
    vm.wait_for(WELCOME, 1);
    assert!(terminal.is_raw());
    terminal.press("stty size; echo kind=$TERM\r");
    vm.wait_for("30 100\r", 1);
    vm.wait_for("kind=xterm\r", 1);
    // Ctrl-C is for the program in the guest, not for Partita.
    // The shell of its own has the terminal before it says anything, so Ctrl-C finds it.
    terminal.press("sh -c 'echo sleeping-$((1 + 1)); exec sleep 1000'\r");
    vm.wait_for("sleeping-2", 1);
    terminal.press(CTRL_C);
    terminal.press("echo awake-$((1 + 1))\r");
    vm.wait_for("awake-2", 1);
    terminal.press(&format!("{CTRL_A}h"));
    terminal.press(&format!("{CTRL_A}x"));
    let ended = vm.ended().expect_code(0);
    assert!(
        ended.messages.contains("Ctrl-A x: end the VM"),
        "{}",
        ended.messages
    );
    assert_eq!(terminal.settings(), before);
}

/// A VM at a terminal that runs a kernel of a few instructions.
fn tiny_at(terminal: &Terminal, folder: &TempDir, code: &[u8]) -> Vm {
    let path = folder.path().join("kernel");
    kernel::write(&path, code);
    let arguments: [OsString; 3] = ["run".into(), "--kernel".into(), path.into()];
    Vm::start_at(terminal, arguments)
}

/// Starts a VM that waits for ever, does `act` to it once the terminal is
/// raw, and checks that the terminal is as before when it has ended.
fn restored_after(act: impl FnOnce(&Terminal, &Vm)) -> Ended {
    let (terminal, folder) = (Terminal::new(), tempfile::tempdir().unwrap());
    let before = terminal.settings();
    let vm = tiny_at(&terminal, &folder, kernel::HALT);
    let end = Instant::now() + LIMIT;
    while !terminal.is_raw() {
        assert!(Instant::now() < end, "the terminal does not become raw");
        std::thread::sleep(Duration::from_millis(5));
    }
    act(&terminal, &vm);
    let ended = vm.ended();
    assert_eq!(terminal.settings(), before);
    ended
}

#[test]
fn the_end_key_works_while_the_guest_does_nothing() {
    let ended = restored_after(|terminal, _| terminal.press(&format!("typed{CTRL_A}x")));
    assert_eq!(ended.status.code(), Some(0));
}

#[test]
fn signals_restore_the_terminal() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let ended = restored_after(|_, vm| {
            let id = Pid::from_raw(vm.id() as i32).expect("a process id");
            kill_process(id, signal).expect("the process is there");
        });
        assert_eq!(ended.status.signal(), Some(signal.as_raw()), "{ended:?}");
    }
}

#[test]
fn a_crash_of_the_guest_restores_the_terminal() {
    let (terminal, folder) = (Terminal::new(), tempfile::tempdir().unwrap());
    let before = terminal.settings();
    let vm = tiny_at(&terminal, &folder, kernel::TRIPLE_FAULT);
    let ended = vm.ended().expect_code(3);
    assert!(
        ended.messages.contains("triple fault"),
        "{}",
        ended.messages
    );
    assert_eq!(terminal.settings(), before);
}
