//! The part of a document that the benchmark writes.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const BEGIN: &str = "<!-- processor benchmark: begin -->";
const END: &str = "<!-- processor benchmark: end -->";

/// Puts `text` between the marks in a file.
pub(crate) fn rewrite(path: &Path, text: &str) -> Result<()> {
    let before = fs::read_to_string(path)?;
    let after = replace(&before, text)
        .with_context(|| format!("it has no lines {BEGIN:?} and {END:?}, in this order"))?;
    fs::write(path, after)?;
    Ok(())
}

/// The document with `text` between the marks, if it has both.
fn replace(document: &str, text: &str) -> Option<String> {
    let (head, rest) = document.split_once(BEGIN)?;
    let (_, tail) = rest.split_once(END)?;
    Some(format!("{head}{BEGIN}\n{}\n{END}{tail}", text.trim_end()))
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
    fn only_what_is_between_the_marks_changes() {
        let document = format!("# Title\n{BEGIN}\nold\n{END}\nrest\n");
        let once = replace(&document, "new\n").unwrap();
        assert_eq!(once, format!("# Title\n{BEGIN}\nnew\n{END}\nrest\n"));
        assert_eq!(replace(&once, "new").unwrap(), once);
    }

    #[test]
    fn without_marks_nothing_is_written() {
        assert_eq!(replace("text", "new"), None);
        assert_eq!(replace(&format!("{END} {BEGIN}"), "new"), None);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "text").unwrap();
        assert!(rewrite(file.path(), "new").is_err());
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "text");
    }
}
