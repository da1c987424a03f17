//! Processes whose output is read line by line, with a limit to their silence.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// A process, ended when dropped.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Refused only if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command and hands over each line that it prints with the time at which it came.
///
/// # Errors
/// If it cannot be started, prints nothing for `silence`, or ends with a status other than 0;
/// the last line that it complained with is in the text.
pub(crate) fn run(
    command: &mut Command,
    silence: Duration,
    mut line: impl FnMut(&str, Instant),
) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command
        .spawn()
        .with_context(|| format!("{name} cannot be started"))?;
    let mut running = Running(child);
    let (Some(output), Some(errors)) = (running.0.stdout.take(), running.0.stderr.take()) else {
        bail!("{name} has no output");
    };
    let lines = reader(output);
    let complaints = reader(errors);
    loop {
        match lines.recv_timeout(silence) {
            Ok((text, time)) => line(&text, time),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                bail!("{name} printed nothing for {} s", silence.as_secs());
            }
        }
    }
    let status = running.0.wait()?;
    if status.success() {
        return Ok(());
    }
    let last = complaints.iter().map(|(text, _)| text).last();
    bail!("{name}: {status}: {}", last.unwrap_or_default().trim())
}

/// Reads lines in a thread of its own, so that each gets its time.
fn reader(stream: impl std::io::Read + Send + 'static) -> Receiver<(String, Instant)> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        loop {
            let mut bytes = Vec::new();
            let read = std::io::Read::take(&mut stream, MAX_LINE).read_until(b'\n', &mut bytes);
            let time = Instant::now();
            if !matches!(read, Ok(1..)) {
                return;
            }
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if sender.send((text, time)).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
#[allow(
    dead_code,
    unused_imports,
    reason = "tests need a harness: see unit.rs"
)]
mod tests {
    use super::*;

    fn shell(script: &str, silence: Duration) -> (Result<()>, Vec<String>) {
        let mut lines = Vec::new();
        let result = run(
            Command::new("sh").args(["-c", script]),
            silence,
            |line, _| {
                lines.push(line.trim().to_owned());
            },
        );
        (result, lines)
    }

    #[test]
    fn lines_come_one_by_one() {
        let (result, lines) = shell("echo a; echo b", Duration::from_secs(60));
        result.unwrap();
        assert_eq!(lines, ["a", "b"]);
    }

    #[test]
    fn a_failure_tells_its_reason() {
        let (result, _) = shell("echo why >&2; exit 3", Duration::from_secs(60));
        let text = result.unwrap_err().to_string();
        assert!(text.contains("exit status: 3: why"), "{text}");
    }

    #[test]
    fn silence_has_a_limit() {
        let start = Instant::now();
        let (result, lines) = shell("echo a; exec sleep 60", Duration::from_millis(200));
        assert!(result.unwrap_err().to_string().contains("printed nothing"));
        assert_eq!(lines, ["a"]);
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}
