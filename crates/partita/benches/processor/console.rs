//! What programs print, read as it comes.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::results::{Outcome, Reading};

/// What the first process prints first.
pub(crate) const FIRST_PROCESS: &str = "@first-process";
/// What the first process prints last.
pub(crate) const END: &str = "@end";
/// What the kernel prints first.
const KERNEL: &str = "Linux version ";

/// Collects what was printed.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    /// When the kernel printed its first line.
    kernel: Option<Instant>,
    first_process: Option<Instant>,
    running: Option<(String, Instant)>,
    outcomes: BTreeMap<String, Outcome>,
    mitigations: BTreeMap<String, String>,
    ended: bool,
    last_line: String,
}

impl Transcript {
    /// Takes one line, which came at `time`.
    pub(crate) fn line(&mut self, line: &str, time: Instant) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        self.last_line = line.chars().filter(|c| !c.is_control()).take(200).collect();
        if self.kernel.is_none() && line.contains(KERNEL) {
            self.kernel = Some(time);
        }
        // A line of the kernel's may stand before it on the same line.
        let Some(words) = line.find('@').map(|at| &line[at..]) else {
            return;
        };
        let words: Vec<&str> = words.split_whitespace().collect();
        match words[..] {
            [FIRST_PROCESS] => self.first_process = Some(time),
            [END] => self.ended = true,
            ["@start", name] => self.running = Some((name.to_owned(), time)),
            ["@done", name, ns, checksum, seconds] => self.done(name, ns, checksum, seconds, time),
            ["@skip", name, ref reason @ ..] => {
                let reason = Outcome::Skipped(reason.join(" "));
                self.outcomes.insert(name.to_owned(), reason);
            }
            ["@mitigation", flaw, ref state @ ..] => {
                self.mitigations.insert(flaw.to_owned(), state.join(" "));
            }
            ["@fail", name] => {
                let reason = Outcome::Failed("the program failed".to_owned());
                self.outcomes.insert(name.to_owned(), reason);
            }
            _ => {}
        }
    }

    fn done(&mut self, name: &str, ns: &str, checksum: &str, seconds: &str, time: Instant) {
        let (Ok(ns), Ok(seconds)) = (ns.parse::<f64>(), seconds.parse::<f64>()) else {
            return;
        };
        let started = self.running.take().filter(|(running, _)| running == name);
        let clocks = started.map(|(_, start)| (seconds, time.duration_since(start).as_secs_f64()));
        let checksum = Some(checksum.to_owned());
        let reading = Reading {
            ns,
            checksum,
            clocks,
        };
        self.outcomes
            .insert(name.to_owned(), Outcome::Done(reading));
    }

    /// From the kernel's first line to the first process, in nanoseconds.
    pub(crate) fn boot(&self) -> Option<f64> {
        let time = self.first_process?.checked_duration_since(self.kernel?)?;
        Some(time.as_nanos() as f64)
    }

    /// What became of a program.
    pub(crate) fn outcome(&self, program: &str) -> Option<&Outcome> {
        self.outcomes.get(program)
    }

    /// What the guest's kernel does against flaws of the processor, by name of the flaw.
    pub(crate) fn mitigations(&self) -> &BTreeMap<String, String> {
        &self.mitigations
    }

    /// Whether the first process came to its end.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// The last line that was not empty.
    pub(crate) fn last_line(&self) -> &str {
        &self.last_line
    }
}

#[cfg(test)]
#[allow(
    dead_code,
    unused_imports,
    reason = "tests need a harness: see unit.rs"
)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_boot_and_two_programs_are_read() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut transcript = Transcript::default();
        assert_eq!(transcript.boot(), None);
        for (ms, line) in [
            (0, "SeaBIOS (version 1.16.2)"),
            (500, "[    0.000000] Linux version 6.1.0-56-cloud-amd64\r"),
            (2500, "@first-process\r"),
            (
                2600,
                "@mitigation spectre_v2 Mitigation: Retpolines; STIBP: disabled",
            ),
            (3000, "@start crc32\r"),
            (4000, "[    2.1] random: crng@done crc32 34.5 00ff 0.5\r"),
            (4100, "@start matrix-avx"),
            (4200, "@skip matrix-avx the processor has no AVX2"),
            (4300, "@start fork"),
            (4400, "@fail fork"),
            (4500, ""),
        ] {
            transcript.line(line, at(ms));
        }
        assert_eq!(transcript.boot(), Some(2e9));
        let expected = Reading {
            ns: 34.5,
            checksum: Some("00ff".into()),
            clocks: Some((0.5, 1.0)),
        };
        assert_eq!(transcript.outcome("crc32"), Some(&Outcome::Done(expected)));
        assert_eq!(
            transcript.mitigations()["spectre_v2"],
            "Mitigation: Retpolines; STIBP: disabled"
        );
        let skipped = Outcome::Skipped("the processor has no AVX2".into());
        assert_eq!(transcript.outcome("matrix-avx"), Some(&skipped));
        assert!(matches!(
            transcript.outcome("fork"),
            Some(Outcome::Failed(_))
        ));
        assert_eq!(transcript.outcome("sieve"), None);
        assert_eq!(transcript.last_line(), "@fail fork");
        assert!(!transcript.ended());
        transcript.line("@end", at(5000));
        assert!(transcript.ended());
    }

    #[test]
    fn nonsense_is_passed_over() {
        let mut transcript = Transcript::default();
        for line in [
            "@done",
            "@done x y z w",
            "@",
            "@start",
            "root@partita \u{1b}[0m",
        ] {
            transcript.line(line, Instant::now());
        }
        assert_eq!(transcript.outcome("x"), None);
        assert_eq!(transcript.last_line(), "root@partita [0m");
    }
}
