//! Where the VM's events go: lines on standard error or in a file.
//!
//! A guest causes many of them, as often as it likes. So each place in the program that tells of
//! something may do so ten times at once, then once a minute; and a line has a longest length.
//! What is left out is counted, and told with the next line.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Lines of one place that come at once.
const BURST: u32 = 10;
/// One more is permitted after this time.
const INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of a line at most.
const LONGEST: usize = 500;

/// The levels that can be asked for, as they are written.
pub(crate) const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

/// Reads a level.
pub(crate) fn parse_level(text: &str) -> Result<LevelFilter, String> {
    let found = LEVELS.iter().find(|(name, _)| *name == text);
    found.map(|&(_, level)| level).ok_or_else(|| {
        "it is no known level; give off, error, warn, info, debug or trace".to_owned()
    })
}

/// Has events of `level` and above written to the end of a file, or to standard error, from now
/// on. The first call counts.
///
/// # Errors
///
/// The file cannot be written.
pub(crate) fn start(level: LevelFilter, file: Option<&Path>) -> io::Result<()> {
    let log = match file {
        Some(path) => {
            let file = File::options().append(true).create(true).open(path)?;
            Log::new(level, Target::File(file))
        }
        None => Log::new(level, Target::StandardError),
    };
    // Refused only where there is one already.
    let _ = tracing::subscriber::set_global_default(log);
    Ok(())
}

enum Target {
    StandardError,
    File(File),
    #[cfg(test)]
    Memory(std::sync::Arc<Mutex<String>>),
}

impl Target {
    /// A line that nobody can be given is lost.
    fn write(&mut self, line: &str) {
        match self {
            Self::StandardError => drop(io::stderr().write_all(line.as_bytes())),
            Self::File(file) => drop(file.write_all(line.as_bytes())),
            #[cfg(test)]
            Self::Memory(text) => text
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_str(line),
        }
    }
}

/// How much a place may tell.
struct Allowance {
    left: u32,
    since: Instant,
    left_out: u64,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
            left_out: 0,
        }
    }

    /// Whether the place may tell something now; then how much it could not before.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let earned = now.saturating_duration_since(self.since).as_secs() / INTERVAL.as_secs();
        if earned > 0 {
            self.left = BURST.min(self.left.saturating_add(earned as u32));
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out += 1;
                None
            }
        }
    }
}

struct Output {
    target: Target,
    allowances: HashMap<Identifier, Allowance>,
}

struct Log {
    level: LevelFilter,
    begin: Instant,
    output: Mutex<Output>,
}

impl Log {
    fn new(level: LevelFilter, target: Target) -> Self {
        Self {
            level,
            begin: Instant::now(),
            output: Mutex::new(Output {
                target,
                allowances: HashMap::new(),
            }),
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        let now = Instant::now();
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let allowance = output
            .allowances
            .entry(metadata.callsite())
            .or_insert_with(|| Allowance::new(now));
        let Some(left_out) = allowance.take(now) else {
            return;
        };
        let mut line = Line::new(now - self.begin, metadata);
        event.record(&mut line);
        output.target.write(&line.finish(left_out));
    }

    // There are no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// One line: time since the start, level, crate, message, fields.
struct Line {
    head: String,
    message: String,
    fields: String,
}

impl Line {
    fn new(time: Duration, metadata: &Metadata<'_>) -> Self {
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let from = metadata.target().split("::").next().unwrap_or_default();
        Self {
            head: format!("partita: {:.3} {level}: {from}: ", time.as_secs_f64()),
            message: String::new(),
            fields: String::new(),
        }
    }

    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        // Writing to a text does not fail.
        let _ = match field.name() {
            "message" => self.message.write_fmt(value),
            name => write!(self.fields, " {name}={value}"),
        };
    }

    /// The line, with what could break it or a terminal taken out.
    fn finish(self, left_out: u64) -> String {
        let mut text = self.head + &self.message + &self.fields;
        if text.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|&at| text.is_char_boundary(at));
            text.truncate(end.unwrap_or(0));
            text.push('…');
        }
        if left_out > 0 {
            let _ = write!(text, " (and {left_out} like it before, left out)");
        }
        let mut line: String = text
            .chars()
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect();
        line.push('\n');
        line
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn lines(level: LevelFilter, events: impl FnOnce()) -> Vec<String> {
        let text = Arc::new(Mutex::new(String::new()));
        let log = Log::new(level, Target::Memory(text.clone()));
        tracing::subscriber::with_default(log, events);
        let text = text.lock().unwrap();
        // Without the time.
        let part = |line: &str| line.splitn(3, ' ').nth(2).unwrap().to_owned();
        text.lines().map(part).collect()
    }

    #[test]
    fn lines_have_level_origin_message_and_fields() {
        let told = lines(LevelFilter::WARN, || {
            tracing::info!("not asked for");
            tracing::warn!(disk = "a.vhdx", count = 3, "a disk fails: {}", 7);
        });
        assert_eq!(
            told,
            ["warning: partita: a disk fails: 7 disk=a.vhdx count=3"]
        );
    }

    #[test]
    fn nothing_that_a_guest_says_breaks_a_line() {
        let told = lines(LevelFilter::TRACE, || {
            tracing::error!("a\u{1b}[2Jb\nc\r{}", "é".repeat(1000));
        });
        assert_eq!(told.len(), 1);
        assert!(told[0].starts_with("error: partita: a\u{fffd}[2Jb\u{fffd}c\u{fffd}éé"));
        assert!(told[0].ends_with('…') && told[0].len() < LONGEST + 10);
    }

    #[test]
    fn a_flood_is_left_out_but_nothing_else() {
        let told = lines(LevelFilter::DEBUG, || {
            for count in 0..1000 {
                tracing::debug!("flood {count}");
            }
            tracing::debug!("other");
        });
        assert_eq!(told.len(), BURST as usize + 1);
        assert_eq!(told[10], "debug: partita: other");
    }

    #[test]
    fn time_earns_lines() {
        let now = Instant::now();
        let mut allowance = Allowance::new(now);
        assert!((0..BURST).all(|_| allowance.take(now) == Some(0)));
        assert_eq!(allowance.take(now), None);
        assert_eq!(allowance.take(now + INTERVAL / 2), None);
        assert_eq!(allowance.take(now + INTERVAL), Some(2));
        assert_eq!(allowance.take(now + INTERVAL), None);
        let later = now + INTERVAL * 1000;
        assert_eq!(allowance.take(later), Some(1));
        assert!((1..BURST).all(|_| allowance.take(later) == Some(0)));
        assert_eq!(allowance.take(later), None);
    }

    #[test]
    fn levels_are_read() {
        assert_eq!(parse_level("debug"), Ok(LevelFilter::DEBUG));
        assert!(parse_level("loud").is_err());
    }
}
