//! How far an operation is, on standard error.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use disk::Progress;

use super::size::Bytes;
use super::stop::Stop;

/// What takes less than this is done before anyone asks.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Silent,
    /// One line that is written anew.
    Live,
    /// A new line each time.
    Lines,
}

impl Mode {
    /// When the first line comes: whoever asked for lines gets one at once.
    fn patience(self) -> Duration {
        match self {
            Self::Lines => Duration::ZERO,
            Self::Silent | Self::Live => PATIENCE,
        }
    }

    fn interval(self) -> Duration {
        match self {
            Self::Live => Duration::from_millis(200),
            Self::Silent | Self::Lines => Duration::from_secs(1),
        }
    }
}

/// Tells how far one operation is, and passes on that it shall stop.
#[derive(Debug)]
pub(super) struct Meter {
    what: &'static str,
    mode: Mode,
    start: Instant,
    next: Instant,
    shown: bool,
    stop: Stop,
}

impl Meter {
    /// Starts the clock. `forced` tells progress also where standard error is no terminal.
    pub(super) fn new(what: &'static str, forced: bool, stop: &Stop) -> Self {
        let mode = match (std::io::stderr().is_terminal(), forced) {
            (true, _) => Mode::Live,
            (false, true) => Mode::Lines,
            (false, false) => Mode::Silent,
        };
        let start = Instant::now();
        Self {
            what,
            mode,
            start,
            next: start + mode.patience(),
            shown: false,
            stop: stop.clone(),
        }
    }

    /// To be called as the operation goes on.
    pub(super) fn update(&mut self, progress: Progress) -> ControlFlow<()> {
        if self.stop.signal().is_some() {
            return ControlFlow::Break(());
        }
        if self.mode != Mode::Silent {
            let now = Instant::now();
            if now >= self.next {
                self.next = now + self.mode.interval();
                self.shown = true;
                self.write(&line(self.what, progress, now - self.start));
            }
        }
        ControlFlow::Continue(())
    }

    fn write(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        // Progress is a courtesy: without anyone to read it, the work still goes on.
        let _ = match self.mode {
            Mode::Live => write!(stderr, "\r\x1b[K{text}"),
            Mode::Silent | Mode::Lines => writeln!(stderr, "{text}"),
        };
        let _ = stderr.flush();
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.shown && self.mode == Mode::Live {
            self.write("");
        }
    }
}

fn line(what: &str, progress: Progress, elapsed: Duration) -> String {
    let Progress { done, total } = progress;
    let share = done.min(total) as f64 / total.max(1) as f64;
    let percent = (share * 100.0) as u32;
    let mut text = format!("{what}: {percent} % of {}", Bytes(total));
    if share > 0.01 {
        let left = elapsed.as_secs_f64() * (1.0 - share) / share;
        text.push_str(&format!(", {left:.0} s left"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_how_far_and_how_long() {
        let progress = |done| Progress {
            done,
            total: 4 << 30,
        };
        let second = Duration::from_secs(3);
        assert_eq!(
            line("Copying", progress(0), second),
            "Copying: 0 % of 4 GiB"
        );
        assert_eq!(
            line("Copying", progress(1 << 30), second),
            "Copying: 25 % of 4 GiB, 9 s left"
        );
        let nothing = Progress { done: 0, total: 0 };
        assert_eq!(line("Copying", nothing, second), "Copying: 0 % of 0 bytes");
    }
}
