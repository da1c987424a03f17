//! The packages that `partita quickstart` fetches, and their files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::turn::Turn;

/// The package of Debian's kernel for VMs.
pub(crate) const CLOUD: &str = "linux-image-cloud-amd64";
/// The package of Debian's kernel for all machines.
pub(crate) const GENERIC: &str = "linux-image-amd64";
/// How long a guest may take for its proofs, in seconds. A machine that does
/// other work at the same time makes it slow, not wrong.
const TIMEOUT: &str = "240";

/// The user's cache folder, so that tests fetch only what `quickstart` has not
/// fetched before; a folder of the tests where the user has none.
pub(crate) fn cache() -> PathBuf {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"))
        .join("partita")
}

/// A cache folder of a test's own with all that was fetched, so that its disk is the test's too.
pub(crate) fn own_cache() -> tempfile::TempDir {
    // Fetched now if never before.
    kernel(CLOUD);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    for entry in fs::read_dir(cache()).expect("the cache folder").flatten() {
        if entry.path().is_dir() {
            symlink(entry.path(), folder.path().join(entry.file_name())).expect("a link");
        }
    }
    folder
}

/// Runs `quickstart --check --json` and gives what it printed. It must have
/// exited with 0.
pub(crate) fn check(kernel_package: &str, processors: u32) -> Value {
    let _turn = Turn::wait();
    let output = Command::new(env!("CARGO_BIN_EXE_partita"))
        .args(["quickstart", "--check", "--json", "--timeout", TIMEOUT])
        .args(["--kernel-package", kernel_package])
        .args(["--processors", &processors.to_string()])
        .arg("--cache")
        .arg(cache())
        .stdin(Stdio::null())
        .output()
        .expect("partita starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{errors}\n{printed}");
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// The kernel of a package, from the cache folder.
pub(crate) fn kernel(package: &str) -> PathBuf {
    file(package, "vmlinuz")
}

/// BusyBox, from the cache folder.
pub(crate) fn busybox() -> PathBuf {
    file("busybox-static", "busybox")
}

/// The newest cached file of a package. What is not there yet, `quickstart`
/// fetches.
fn file(package: &str, name: &str) -> PathBuf {
    newest(package, name).unwrap_or_else(|| {
        let kernel = if package == GENERIC { GENERIC } else { CLOUD };
        check(kernel, 1);
        newest(package, name).unwrap_or_else(|| panic!("quickstart left no {name} of {package}"))
    })
}

fn newest(package: &str, name: &str) -> Option<PathBuf> {
    let folders = fs::read_dir(cache()).ok()?.flatten();
    let usable = folders.filter_map(|folder| {
        let manifest = fs::read(folder.path().join("manifest.json")).ok()?;
        let manifest: Value = serde_json::from_slice(&manifest).ok()?;
        let file = folder.path().join(name);
        let time = folder.metadata().ok()?.modified().ok()?;
        (manifest["asked"] == package && file.is_file()).then_some((time, file))
    });
    usable.max().map(|(_, file)| file)
}
