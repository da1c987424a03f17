//! What the guest's program prints, read as it comes.

use std::collections::BTreeMap;

use crate::initramfs::END;
use crate::results::{Outcome, Reading};

/// Collects what was printed.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    outcomes: BTreeMap<String, Outcome>,
    complaint: Option<String>,
    ended: bool,
    last_line: String,
}

impl Transcript {
    /// Takes one line.
    pub(crate) fn line(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        self.last_line = line.chars().filter(|c| !c.is_control()).take(200).collect();
        if line.starts_with("storage-programs: ") {
            self.complaint = Some(self.last_line.clone());
        }
        // A line of the kernel's may stand before it on the same line.
        let Some(words) = line.find('@').map(|at| &line[at..]) else {
            return;
        };
        let words: Vec<&str> = words.split_whitespace().collect();
        match words[..] {
            [END] => self.ended = true,
            ["@done", name, requests, bytes, seconds] => self.done(name, requests, bytes, seconds),
            ["@fail", name] => {
                let reason = self.complaint.take();
                let reason = reason.unwrap_or_else(|| "the program failed".to_owned());
                self.outcomes
                    .insert(name.to_owned(), Outcome::Failed(reason));
            }
            _ => {}
        }
    }

    fn done(&mut self, name: &str, requests: &str, bytes: &str, seconds: &str) {
        let (Ok(requests), Ok(bytes), Ok(seconds)) = (
            requests.parse::<f64>(),
            bytes.parse::<f64>(),
            seconds.parse::<f64>(),
        ) else {
            return;
        };
        if seconds > 0.0 {
            let reading = Reading {
                requests: requests / seconds,
                megabytes: bytes / seconds / 1e6,
            };
            self.outcomes
                .insert(name.to_owned(), Outcome::Done(reading));
        }
    }

    /// What became of a workload.
    pub(crate) fn outcome(&self, workload: &str) -> Option<&Outcome> {
        self.outcomes.get(workload)
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
    use super::*;

    #[test]
    fn results_and_failures_are_read() {
        let mut transcript = Transcript::default();
        for line in [
            "[    0.000000] Linux version 6.1.0-56-cloud-amd64\r",
            "@start a",
            "[    2.1] random: crng@done a 1000 4096000 0.5\r",
            "@start b",
            "storage-programs: /dev/sda: page 7 has other contents",
            "@fail b",
            "@fail c",
            "@done d x y z",
            "",
        ] {
            transcript.line(line);
        }
        let expected = Reading {
            requests: 2000.0,
            megabytes: 8.192,
        };
        assert_eq!(transcript.outcome("a"), Some(&Outcome::Done(expected)));
        let reason = "storage-programs: /dev/sda: page 7 has other contents";
        let failed = |reason: &str| Outcome::Failed(reason.to_owned());
        assert_eq!(transcript.outcome("b"), Some(&failed(reason)));
        assert_eq!(transcript.outcome("c"), Some(&failed("the program failed")));
        assert_eq!(transcript.outcome("d"), None);
        assert_eq!(transcript.last_line(), "@done d x y z");
        assert!(!transcript.ended());
        transcript.line("@end");
        assert!(transcript.ended());
    }
}
