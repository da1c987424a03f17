//! `quickstart --check`: the guest runs its proofs, the host looks on, reads and judges them.

mod judge;
mod log;
mod outside;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::Serialize;
use vmwp::{Console, StopRequest, VmConfig, VmError, VmExit};

use self::judge::{Evidence, Row};
use self::log::{Log, printable, section};
use self::outside::Outside;
use super::disk::Temporary;
use super::progress::{Progress, Step};

/// How many of the guest's last lines are shown if it does not answer.
const TAIL: usize = 15;
/// How long a VM may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);

/// What was asked for and must be seen in the guest.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    pub(super) kernel_package: String,
    pub(super) processors: u32,
    pub(super) memory_bytes: u64,
    pub(super) timeout: Duration,
}

/// All proofs of one boot.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Outcome {
    /// Whether all of them hold.
    pub(super) ok: bool,
    kernel_package: String,
    rows: Vec<Row>,
}

/// Boots the VM from `disk` and judges what it tells and what is seen of it.
///
/// # Errors
/// Partita's own error, or that the guest did not answer, with the end of its log.
pub(super) fn run(
    mut config: VmConfig,
    disk: &Temporary,
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
    config.control = Some(disk.socket());
    let start = Instant::now();
    let watch = Watch {
        stop: config.stop.clone(),
        deadline: start + expected.timeout,
        disk,
        log: &log,
    };
    let step = progress.step("Booting the VM and running the proofs in it");
    let (exit, outside) = watch.run(config, step)?;
    let text = log.text();
    let Some(inside) = section(&text) else {
        return Err(no_answer(&exit, expected.timeout, &text));
    };
    let boot = log.begun().map_or(Duration::ZERO, |begun| begun - start);
    let evidence = Evidence {
        inside: &inside,
        boot,
        outside: &outside,
        disk: &disk.examine(),
        exit: &exit,
    };
    let rows = evidence.judge(expected);
    Ok(Outcome {
        ok: rows.iter().all(|row| row.ok),
        kernel_package: expected.kernel_package.clone(),
        rows,
    })
}

/// Somebody who looks at a VM that runs, and ends it when its time is over.
struct Watch<'a> {
    stop: StopRequest,
    deadline: Instant,
    disk: &'a Temporary,
    log: &'a Log,
}

impl Watch<'_> {
    /// Runs the VM in a thread. How it ended is unknown if it did not end in time.
    fn run(&self, config: VmConfig, mut step: Step) -> anyhow::Result<(Option<VmExit>, Outside)> {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::Builder::new()
            .name("vm".into())
            .spawn(move || {
                // The receiver is gone if the VM did not end in time.
                let _ = sender.send(vmwp::run(config));
            })?;
        let mut outside = None;
        loop {
            match receiver.recv_timeout(Duration::from_millis(50)) {
                Ok(result) => {
                    let exit = finish(step, result)?;
                    return Ok((Some(exit), outside.unwrap_or_default()));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    anyhow::bail!("the VM's thread ended with a panic");
                }
                Err(RecvTimeoutError::Timeout) => step.update(&self.log.last_line()),
            }
            if outside.is_none() && self.log.ended() {
                outside = Some(outside::observe(&self.disk.socket()));
            }
            let refused = outside.as_ref().is_some_and(|o| o.shutdown.is_some());
            if refused || Instant::now() > self.deadline {
                step.done(if refused {
                    "did not shut down"
                } else {
                    "out of time"
                });
                let exit = self.end(&receiver);
                return Ok((exit, outside.unwrap_or_default()));
            }
        }
    }

    /// Ends the VM from outside; the disk's file is free then.
    fn end(&self, receiver: &Receiver<Result<VmExit, VmError>>) -> Option<VmExit> {
        self.stop.request();
        receiver.recv_timeout(GRACE).ok().and_then(Result::ok)
    }
}

fn finish(step: Step, result: Result<VmExit, VmError>) -> anyhow::Result<VmExit> {
    match result {
        Ok(exit) => {
            step.done("ended");
            Ok(exit)
        }
        Err(error) => {
            step.done("failed");
            Err(error.into())
        }
    }
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
        None | Some(VmExit::EndedByUser) => format!(
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
    use super::judge::tests::rows_of_end;
    use super::*;

    #[test]
    fn the_table_has_a_line_per_proof() {
        let rows = rows_of_end(None);
        let lines = rows.len() + 1;
        let outcome = Outcome {
            ok: false,
            kernel_package: "x".into(),
            rows,
        };
        let table = outcome.table();
        assert_eq!(table.lines().count(), lines);
        assert!(table.lines().last().unwrap().contains("FAILED"), "{table}");
        assert_eq!(outcome.failures(), "end");
    }
}
