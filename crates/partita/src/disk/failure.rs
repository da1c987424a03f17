//! Why a command did not do its work, told in one line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use disk::{DiskError, Format};

use super::output::printable;
use super::stop::{Signal, Stop};
use crate::cli::{EXIT_USAGE, report};

/// Why a command did not do its work.
#[derive(Debug)]
pub(super) enum Failure {
    /// The arguments make no sense; the text names the argument.
    Usage(String),
    /// An operation on a disk failed.
    Disk {
        /// The disk that the command is about.
        file: PathBuf,
        /// What happened.
        source: DiskError,
    },
    /// A signal asked to stop; the text tells what is left.
    Stopped(Signal, String),
    /// Anything else.
    Other(String),
}

impl Failure {
    /// For errors of an operation on `file`.
    pub(super) fn of(file: &Path) -> impl FnOnce(DiskError) -> Self {
        move |source| Self::Disk {
            file: file.to_owned(),
            source,
        }
    }

    /// Turns the error of an operation that was asked to stop into [`Failure::Stopped`], with what
    /// is left to say.
    pub(super) fn unless_stopped(self, stop: &Stop, left: impl FnOnce() -> String) -> Self {
        match (&self, stop.signal()) {
            (
                Self::Disk {
                    source: DiskError::Cancelled,
                    ..
                },
                Some(signal),
            ) => Self::Stopped(signal, left()),
            _ => self,
        }
    }

    /// Tells the person, and gives the exit status.
    pub(super) fn tell(self) -> ExitCode {
        match self {
            Self::Usage(text) => {
                report(&format!("{} (see 'partita disk --help')", printable(&text)));
                ExitCode::from(EXIT_USAGE)
            }
            Self::Disk { file, source } => report(&printable(&describe(&file, &source))),
            Self::Stopped(signal, left) => {
                report(&format!(
                    "stopped by {}; {}",
                    signal.name(),
                    printable(&left)
                ));
                ExitCode::from(signal.exit_status())
            }
            Self::Other(text) => report(&printable(&text)),
        }
    }
}

/// The error as a sentence that names the file.
fn describe(file: &Path, error: &DiskError) -> String {
    let text = without_numbers(&error.to_string());
    let file = file.display().to_string();
    if text.contains(&file) {
        text
    } else {
        format!("{file}: {text}")
    }
}

/// Drops the host's error numbers, which stand behind its words for them.
fn without_numbers(text: &str) -> String {
    match text.rsplit_once(" (os error ") {
        Some((words, number)) if number.trim_end_matches(')').parse::<u32>().is_ok() => {
            words.to_owned()
        }
        _ => text.to_owned(),
    }
}

/// The format of a file: the one given, or what its name tells.
pub(super) fn format_of(
    file: &Path,
    given: Option<Format>,
    option: &str,
) -> Result<Format, Failure> {
    given
        .map_or_else(|| Format::of_path(file), Ok)
        .map_err(|_| {
            let file = file.display();
            Failure::Usage(format!(
                "the name {file} does not tell the disk's format; add {option} vhdx, vhd or raw"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file_once_and_no_numbers() {
        let file = Path::new("a.vhd");
        let plain = DiskError::Invalid("the disk has no parent".into());
        assert_eq!(describe(file, &plain), "a.vhd: the disk has no parent");
        let path = DiskError::Path {
            action: "open",
            path: file.to_owned(),
            source: std::io::Error::from_raw_os_error(2),
        };
        assert_eq!(
            describe(file, &path),
            "cannot open a.vhd: No such file or directory"
        );
    }
}
