//! `quickstart --check`: the guest runs its proofs, the host reads and judges them.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use vmwp::{Console, StopRequest, VmConfig, VmError, VmExit};

use super::progress::Progress;
use crate::size;

const BEGIN: &str = "@@partita-check-begin@@";
const END: &str = "@@partita-check-end@@";
/// Most of the guest's output that is kept, in bytes.
const MAX_LOG: usize = 4 << 20;
/// How many of the guest's last lines are shown if it does not answer.
const TAIL: usize = 15;

/// What was asked for and must be seen in the guest.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) kernel_package: String,
    pub(super) processors: u32,
    pub(super) memory_bytes: u64,
    pub(super) timeout: Duration,
}

/// One proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    name: &'static str,
    seen: String,
    expected: String,
    ok: bool,
}

/// All proofs of one boot.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    /// Whether all of them hold.
    pub(super) ok: bool,
    kernel_package: String,
    rows: Vec<Row>,
}

/// The guest's console output.
#[derive(Debug, Clone, Default)]
struct Log {
    inner: Arc<Mutex<LogInner>>,
}

#[derive(Debug, Default)]
struct LogInner {
    text: Vec<u8>,
    /// When the guest began to tell its proofs.
    begun: Option<Instant>,
}

impl Log {
    fn text(&self) -> String {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&inner.text).into_owned()
    }

    fn begun(&self) -> Option<Instant> {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .begun
    }

    fn last_line(&self) -> String {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = &inner.text[inner.text.len().saturating_sub(400)..];
        let text = String::from_utf8_lossy(tail);
        let line = text
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty())
            .unwrap_or("");
        printable(line).chars().take(60).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.text.len() < MAX_LOG {
            let before = inner.text.len().saturating_sub(BEGIN.len());
            inner.text.extend_from_slice(bytes);
            if inner.begun.is_none()
                && inner.text[before..]
                    .windows(BEGIN.len())
                    .any(|w| w == BEGIN.as_bytes())
            {
                inner.begun = Some(Instant::now());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What may go to a person's terminal of what the guest wrote.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Boots the VM and judges what it tells.
///
/// # Errors
/// Partita's own error, or that the guest did not answer, with the end of its log.
pub(super) fn run(
    mut config: VmConfig,
    expected: &Expected,
    progress: &Progress,
) -> anyhow::Result<Outcome> {
    let log = Log::default();
    // Dropping the sender means: no input.
    let (_, input) = std::sync::mpsc::channel();
    config.console = Console::Captured {
        input,
        output: Box::new(log.clone()),
    };
    let stop = config.stop.clone();
    let start = Instant::now();
    let exit = run_bounded(config, &stop, expected.timeout, progress, &log)?;
    let text = log.text();
    let Some(values) = section(&text) else {
        return Err(no_answer(&exit, expected.timeout, &text));
    };
    let boot = log
        .begun()
        .map_or(Duration::ZERO, |begun| begun.duration_since(start));
    let rows = judge(&values, expected, boot, &exit);
    Ok(Outcome {
        ok: rows.iter().all(|row| row.ok),
        kernel_package: expected.kernel_package.clone(),
        rows,
    })
}

/// Runs the VM in a thread and asks it to end when its time is over.
fn run_bounded(
    config: VmConfig,
    stop: &StopRequest,
    timeout: Duration,
    progress: &Progress,
    log: &Log,
) -> anyhow::Result<Option<VmExit>> {
    /// How long a VM may take to end after it was asked to.
    const GRACE: Duration = Duration::from_secs(10);
    let mut step = progress.step("Booting the VM and running the proofs in it");
    let start = Instant::now();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("vm".into())
        .spawn(move || {
            // The receiver is gone if the VM did not end in time.
            let _ = sender.send(vmwp::run(config));
        })?;
    loop {
        match receiver.recv_timeout(Duration::from_millis(100)) {
            Ok(result) => return finish(step, result),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                anyhow::bail!("the VM's thread ended with a panic");
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => step.update(&log.last_line()),
        }
        if start.elapsed() > timeout {
            step.done("out of time");
            stop.request();
            let _ = receiver.recv_timeout(GRACE);
            return Ok(None);
        }
    }
}

fn finish(
    step: super::progress::Step,
    result: Result<VmExit, VmError>,
) -> anyhow::Result<Option<VmExit>> {
    match result {
        Ok(exit) => {
            step.done("ended");
            Ok(Some(exit))
        }
        Err(error) => {
            step.done("failed");
            Err(error.into())
        }
    }
}

/// The lines between the marks, if both are there.
fn section(text: &str) -> Option<Vec<(&str, &str)>> {
    let from = text.find(BEGIN)? + BEGIN.len();
    let to = from + text[from..].find(END)?;
    Some(
        text[from..to]
            .lines()
            .filter_map(|line| line.trim().split_once('='))
            .collect(),
    )
}

fn no_answer(exit: &Option<VmExit>, timeout: Duration, text: &str) -> anyhow::Error {
    let lines: Vec<String> = text
        .lines()
        .map(printable)
        .filter(|line| !line.trim().is_empty())
        .collect();
    let tail = &lines[lines.len().saturating_sub(TAIL)..];
    eprintln!("The end of the guest's console:");
    for line in tail {
        eprintln!("  {line}");
    }
    let what = match exit {
        None => format!(
            "the guest did not finish its proofs in {} s",
            timeout.as_secs()
        ),
        Some(VmExit::Crashed { report }) => format!("the guest crashed: {}", report.trim()),
        Some(VmExit::PoweredOff) => "the guest powered off without an answer".to_owned(),
        Some(VmExit::Reset) => "the guest reset itself without an answer".to_owned(),
        Some(other) => format!("the guest ended without an answer ({other:?})"),
    };
    anyhow::anyhow!("{what}; the end of its console is shown above")
}

fn judge(
    values: &[(&str, &str)],
    expected: &Expected,
    boot: Duration,
    exit: &Option<VmExit>,
) -> Vec<Row> {
    let value = |key: &str| {
        values
            .iter()
            .find(|(name, _)| *name == key)
            .map_or("", |(_, value)| *value)
    };
    let row = |name, seen: String, expected: String, ok| Row {
        name,
        seen: printable(&seen),
        expected,
        ok,
    };
    let kernel = value("kernel");
    let clock = value("clock");
    let clocks = [
        "hyperv_clocksource_tsc_page",
        "hyperv_clocksource_msr",
        "tsc",
    ];
    let processors = value("processors");
    let memory = value("memory_kib").parse::<u64>().unwrap_or(0) << 10;
    let problems: Vec<&str> = values
        .iter()
        .filter(|(name, _)| *name == "problem")
        .map(|(_, line)| *line)
        .collect();
    let quiet = problems.is_empty() && value("tainted") == "0";
    let log = match problems.first() {
        Some(first) => format!("{} lines, first: {first}", problems.len()),
        None if quiet => "quiet".to_owned(),
        None => format!("kernel tainted ({})", value("tainted")),
    };
    let in_guest: f64 = value("up").parse().unwrap_or(0.0);
    let powered_off = *exit == Some(VmExit::PoweredOff);
    let ended = if powered_off {
        "powered off".to_owned()
    } else {
        format!("{exit:?}")
    };
    let hyperv = "Microsoft Hyper-V";
    let least = memory_expected(expected.memory_bytes);
    vec![
        row(
            "kernel",
            kernel.to_owned(),
            format!("that of {}", expected.kernel_package),
            kernel_matches(kernel, &expected.kernel_package),
        ),
        row(
            "hypervisor",
            value("hypervisor").into(),
            hyperv.into(),
            value("hypervisor") == hyperv,
        ),
        row(
            "clock source",
            clock.into(),
            "Hyper-V's or TSC".into(),
            clocks.contains(&clock),
        ),
        row(
            "processors",
            format!("{processors} (online {})", value("online")),
            expected.processors.to_string(),
            processors.parse() == Ok(expected.processors),
        ),
        row(
            "memory",
            size::display(memory),
            format!(
                "{} to {}",
                size::display(least),
                size::display(expected.memory_bytes)
            ),
            (least..=expected.memory_bytes).contains(&memory),
        ),
        row(
            "boot time",
            format!(
                "{:.1} s ({in_guest:.1} s by the guest's clock)",
                boot.as_secs_f64()
            ),
            format!("within {} s", expected.timeout.as_secs()),
            in_guest > 0.0 && boot <= expected.timeout,
        ),
        row("kernel log", log, "no warning, oops or stall".into(), quiet),
        row("end", ended, "powered off".into(), powered_off),
    ]
}

/// The least that a guest of this size must see: the kernel keeps its own image and page
/// descriptors (1/64 of the memory) out of what it counts.
fn memory_expected(memory: u64) -> u64 {
    /// Image, initial data and reserved areas of a distribution's kernel.
    const KERNEL: u64 = 96 << 20;
    (memory - memory / 32).saturating_sub(KERNEL)
}

/// Whether a release like `6.1.0-56-cloud-amd64` is that of a package "name version".
fn kernel_matches(release: &str, package: &str) -> bool {
    let name = package.split(' ').next().unwrap_or_default();
    let named = name.strip_prefix("linux-image-").unwrap_or_default();
    let named = named.strip_prefix("unsigned-").unwrap_or(named);
    !release.is_empty() && named.trim_end_matches("-unsigned") == release
}

impl Outcome {
    /// The table for people.
    pub(super) fn table(&self) -> String {
        let width = |column: fn(&Row) -> &str, title: &str| {
            let widest = self
                .rows
                .iter()
                .map(|row| column(row).chars().count())
                .max();
            widest.unwrap_or(0).max(title.len())
        };
        let names = width(|row| row.name, "proof");
        let seen = width(|row| &row.seen, "seen");
        let mut out = format!("{:names$}  {:seen$}        expected\n", "proof", "seen");
        for row in &self.rows {
            let verdict = if row.ok { "ok" } else { "FAILED" };
            let (name, saw, expected) = (row.name, &row.seen, &row.expected);
            out.push_str(&format!(
                "{name:names$}  {saw:seen$}  {verdict:6}  {expected}\n"
            ));
        }
        out
    }

    /// What failed, for a one-line message.
    pub(super) fn failures(&self) -> String {
        let failed: Vec<_> = self
            .rows
            .iter()
            .filter(|row| !row.ok)
            .map(|row| row.name)
            .collect();
        failed.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[    0.1] Linux version 6.1\r\n\r\n@@partita-check-begin@@\r\nup=2.50\r\n\
        kernel=6.1.0-56-cloud-amd64\r\nhypervisor=Microsoft Hyper-V\r\nclock=tsc\r\n\
        processors=2\r\nonline=0-1\r\nmemory_kib=480000\r\ntainted=0\r\n\
        @@partita-check-end@@\r\n";

    fn expected() -> Expected {
        Expected {
            kernel_package: "linux-image-6.1.0-56-cloud-amd64 6.1.192-2".into(),
            processors: 2,
            memory_bytes: 512 << 20,
            timeout: Duration::from_secs(60),
        }
    }

    fn failed(console: &str, exit: Option<VmExit>) -> Vec<&'static str> {
        let values = section(console).unwrap();
        let rows = judge(&values, &expected(), Duration::from_secs(3), &exit);
        rows.iter()
            .filter(|row| !row.ok)
            .map(|row| row.name)
            .collect()
    }

    #[test]
    fn a_good_guest_passes() {
        assert_eq!(
            failed(CONSOLE, Some(VmExit::PoweredOff)),
            Vec::<&str>::new()
        );
    }

    #[test]
    fn each_proof_can_fail_alone() {
        let off = || Some(VmExit::PoweredOff);
        for (from, to, name) in [
            ("kernel=6.1.0-56-cloud-amd64", "kernel=5.10", "kernel"),
            ("=Microsoft Hyper-V", "=KVM", "hypervisor"),
            ("clock=tsc", "clock=jiffies", "clock source"),
            ("processors=2", "processors=1", "processors"),
            ("memory_kib=480000", "memory_kib=100000", "memory"),
            ("up=2.50", "up=", "boot time"),
            ("tainted=0", "tainted=512", "kernel log"),
            (
                "tainted=0",
                "tainted=0\r\nproblem=[ 1.0] WARNING: CPU: 0",
                "kernel log",
            ),
        ] {
            assert_eq!(failed(&CONSOLE.replace(from, to), off()), [name], "{to}");
        }
        assert_eq!(failed(CONSOLE, None), ["end"]);
        assert_eq!(failed(CONSOLE, Some(VmExit::Reset)), ["end"]);
    }

    #[test]
    fn half_an_answer_is_none() {
        assert!(section("boot\n@@partita-check-begin@@\nup=1\n").is_none());
        assert!(section("@@partita-check-end@@ @@partita-check-begin@@").is_none());
    }

    #[test]
    fn the_log_notes_when_the_answer_begins_even_in_pieces() {
        let mut log = Log::default();
        log.write_all(b"boot\r\n@@partita-check").unwrap();
        assert!(log.begun().is_none());
        log.write_all(b"-begin@@\r\n").unwrap();
        assert!(log.begun().is_some());
        assert_eq!(log.last_line(), "@@partita-check-begin@@");
    }

    #[test]
    fn the_table_has_a_line_per_proof() {
        let values = section(CONSOLE).unwrap();
        let rows = judge(&values, &expected(), Duration::from_secs(3), &None);
        let outcome = Outcome {
            ok: false,
            kernel_package: "x".into(),
            rows,
        };
        let table = outcome.table();
        assert_eq!(table.lines().count(), 9);
        assert!(table.lines().last().unwrap().contains("FAILED"), "{table}");
        assert_eq!(outcome.failures(), "end");
    }

    #[test]
    fn control_characters_of_the_guest_stay_out() {
        assert_eq!(printable("a\x1b[2Jb\x07"), "a[2Jb");
    }
}
