//! Builds the test guests of `guests/` and runs them in `partita run`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The folder with all images, built on the first call.
fn images() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guests/Cargo.toml");
        let status = Command::new(env!("CARGO"))
            .args(["run", "--quiet", "--package", "mkimage", "--manifest-path"])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(output.join("tool"))
            .arg("--")
            .arg(&output)
            // Flags for the code under test are not meant for the guests.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .status()
            .expect("cargo builds the test guests");
        assert!(status.success(), "the test guests did not build");
        output
    })
}

/// What became of a guest.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Partita's exit status; `None` when the guest was stopped after its time.
    pub(crate) status: Option<ExitStatus>,
    /// The guest's serial output, and Partita's own messages.
    pub(crate) log: String,
}

/// The counts of a guest's summary line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Checks that held.
    pub(crate) passed: u32,
    /// Checks that did not.
    pub(crate) failed: u32,
    /// Tests that found nothing to test.
    pub(crate) skipped: u32,
}

impl Outcome {
    /// The counts of the summary line, if the guest came that far.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let line = self
            .log
            .lines()
            .find_map(|line| line.strip_prefix("SUMMARY: "))?;
        let mut numbers = line
            .split(|character: char| !character.is_ascii_digit())
            .filter_map(|number| number.parse().ok());
        Some(Summary {
            passed: numbers.next()?,
            failed: numbers.next()?,
            skipped: numbers.next()?,
        })
    }
}

/// Runs an image with a command line on so many processors, for at most `limit`.
pub(crate) fn run(image: &str, cmdline: &str, processors: u32, limit: Duration) -> Outcome {
    watch(image, cmdline, processors, limit, &[], |_, _| {})
}

/// The same with more arguments for `partita run`, and with `each` called every few milliseconds
/// while it runs, with its process id and the file of its log.
pub(crate) fn watch(
    image: &str,
    cmdline: &str,
    processors: u32,
    limit: Duration,
    arguments: &[OsString],
    mut each: impl FnMut(u32, &Path),
) -> Outcome {
    let kernel = images().join(image);
    let log = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("{image}-{processors}-{}.log", std::process::id()));
    let output = File::create(&log).expect("a log file in the target folder");
    let errors = output.try_clone().expect("a second handle of the log file");
    let mut child = Command::new(env!("CARGO_BIN_EXE_partita"))
        .args([
            OsStr::new("run"),
            OsStr::new("--kernel"),
            kernel.as_os_str(),
        ])
        .args(["--test-device", "--no-reboot", "--memory", "256M"])
        .args(["--processors", &processors.to_string()])
        .args(["--cmdline", cmdline])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .expect("partita starts");
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().expect("partita can be waited for") {
            break Some(status);
        }
        if Instant::now() > end {
            // A guest that hangs is a result to report, with what it printed so far.
            child.kill().expect("partita can be stopped");
            child.wait().expect("partita can be waited for");
            break None;
        }
        each(child.id(), &log);
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = std::fs::read(&log).expect("the log can be read");
    Outcome {
        status,
        log: String::from_utf8_lossy(&text).replace('\r', ""),
    }
}
