//! Options on the command line: `key=value` settings and names of tests to run.

use crate::boot::command_line;

/// The words of the command line behind the image's name.
fn words() -> impl Iterator<Item = &'static str> {
    command_line().split_ascii_whitespace().skip(1)
}

/// The number after `key=`, or `default`.
pub fn number(key: &str, default: u64) -> u64 {
    words()
        .filter_map(|word| word.split_once('='))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(default)
}

/// Was the test asked for? Without any name on the command line every test is.
pub fn selected(test: &str) -> bool {
    let mut names = words().filter(|word| !word.contains('=')).peekable();
    names.peek().is_none() || names.any(|name| name == test)
}

/// Is this an emulator that leaves out checks (`lenient=1`), on which some tests would only
/// destroy the guest? QEMU's TCG is one.
pub fn lenient() -> bool {
    number("lenient", 0) != 0
}
