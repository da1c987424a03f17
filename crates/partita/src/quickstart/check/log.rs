//! The guest's console output during a check.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub(super) const BEGIN: &str = "@@partita-check-begin@@";
pub(super) const END: &str = "@@partita-check-end@@";
/// Most of the guest's output that is kept, in bytes.
const MAX_LOG: usize = 4 << 20;

/// What the guest has written so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    inner: Arc<Mutex<LogInner>>,
}

#[derive(Debug, Default)]
struct LogInner {
    text: Vec<u8>,
    begun: Option<Instant>,
    ended: bool,
}

impl Log {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.inner().text).into_owned()
    }

    /// When the guest began to tell its proofs.
    pub(super) fn begun(&self) -> Option<Instant> {
        self.inner().begun
    }

    /// Whether the guest has told all its proofs.
    pub(super) fn ended(&self) -> bool {
        self.inner().ended
    }

    pub(super) fn last_line(&self) -> String {
        let inner = self.inner();
        let tail = &inner.text[inner.text.len().saturating_sub(400)..];
        let text = String::from_utf8_lossy(tail);
        let line = text
            .lines()
            .map(str::trim)
            .rfind(|line| !line.is_empty())
            .unwrap_or("");
        printable(line).chars().take(60).collect()
    }

    fn inner(&self) -> MutexGuard<'_, LogInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogInner {
    /// Whether a mark is in what was added behind `before`.
    fn shows(&self, mark: &str, before: usize) -> bool {
        let from = before.saturating_sub(mark.len());
        let mut windows = self.text[from..].windows(mark.len());
        windows.any(|window| window == mark.as_bytes())
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.inner();
        let before = inner.text.len();
        if before < MAX_LOG {
            inner.text.extend_from_slice(bytes);
            if inner.begun.is_none() && inner.shows(BEGIN, before) {
                inner.begun = Some(Instant::now());
            }
            inner.ended |= inner.shows(END, before);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines between the marks, if both are there.
pub(super) fn section(text: &str) -> Option<Vec<(&str, &str)>> {
    let from = text.find(BEGIN)? + BEGIN.len();
    let to = from + text[from..].find(END)?;
    Some(
        text[from..to]
            .lines()
            .filter_map(|line| line.trim().split_once('='))
            .collect(),
    )
}

/// What may go to a person's terminal of what the guest wrote.
pub(super) fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_answer_is_none() {
        assert!(section("boot\n@@partita-check-begin@@\nup=1\n").is_none());
        assert!(section("@@partita-check-end@@ @@partita-check-begin@@").is_none());
    }

    #[test]
    fn the_marks_are_seen_even_in_pieces() {
        let mut log = Log::default();
        log.write_all(b"boot\r\n@@partita-check").unwrap();
        assert!(log.begun().is_none());
        log.write_all(b"-begin@@\r\n").unwrap();
        assert!(log.begun().is_some() && !log.ended());
        assert_eq!(log.last_line(), "@@partita-check-begin@@");
        log.write_all(b"up=1\r\n@@partita-check-end@").unwrap();
        assert!(!log.ended());
        log.write_all(b"@").unwrap();
        assert!(log.ended());
    }

    #[test]
    fn control_characters_of_the_guest_stay_out() {
        assert_eq!(printable("a\x1b[2Jb\x07"), "a[2Jb");
    }
}
