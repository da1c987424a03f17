//! Progress lines on standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Shows what is being done, with the time it takes.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    live: bool,
}

/// One step under way.
#[derive(Debug)]
pub(super) struct Step {
    what: String,
    start: Instant,
    origin: Instant,
    live: bool,
    shown: Instant,
}

/// How often a live line is written anew.
const REFRESH: Duration = Duration::from_millis(200);

impl Progress {
    /// Starts the clock.
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            live: std::io::stderr().is_terminal(),
        }
    }

    /// Begins a step and says so.
    pub(super) fn step(&self, what: impl Into<String>) -> Step {
        let now = Instant::now();
        let step = Step {
            what: what.into(),
            start: now,
            origin: self.start,
            live: self.live,
            shown: now,
        };
        if self.live {
            step.write(" ...", "");
        }
        step
    }

    /// Says something that takes no time.
    pub(super) fn note(&self, text: &str) {
        self.step(text).line("");
    }
}

impl Step {
    /// Tells how far the step is; shown only on a terminal, and not too often.
    pub(super) fn update(&mut self, detail: &str) {
        if self.live && self.shown.elapsed() >= REFRESH {
            self.shown = Instant::now();
            let seconds = self.start.elapsed().as_secs_f64();
            self.write(&format!(" ... {detail} ({seconds:.0} s)"), "");
        }
    }

    /// Ends the step with its result.
    pub(super) fn done(self, result: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        let took = if seconds >= 0.1 {
            format!(" ({seconds:.1} s)")
        } else {
            String::new()
        };
        let separator = if result.is_empty() { "" } else { ": " };
        self.line(&format!("{separator}{result}{took}"));
    }

    fn line(&self, rest: &str) {
        self.write(rest, "\n");
    }

    fn write(&self, rest: &str, end: &str) {
        let at = self.start.duration_since(self.origin).as_secs_f64();
        let clear = if self.live { "\r\x1b[K" } else { "" };
        let mut stderr = std::io::stderr().lock();
        // Progress is a courtesy: without a terminal to write to, the work still goes on.
        let _ = write!(stderr, "{clear}[{at:6.1} s] {}{rest}{end}", self.what);
        let _ = stderr.flush();
    }
}
