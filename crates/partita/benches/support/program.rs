//! The programs that guests run, in `benchmarks`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Builds the executable of a folder of `benchmarks`, unless one is given, and asks it what it
/// has: the file, and the fields of each line of its list.
pub(crate) fn build(name: &str, given: Option<&Path>) -> Result<(PathBuf, Vec<Vec<String>>)> {
    let file = match given {
        Some(file) => file.to_owned(),
        None => compile(name)?,
    };
    let output = Command::new(&file).arg("list").output();
    let output = output.with_context(|| format!("{} cannot be run", file.display()))?;
    let list = fields(&String::from_utf8_lossy(&output.stdout));
    if list.is_empty() {
        bail!("{} lists nothing", file.display());
    }
    Ok((file, list))
}

/// The fields of each line.
pub(crate) fn fields(text: &str) -> Vec<Vec<String>> {
    let line = |line: &str| line.split('\t').map(str::to_owned).collect();
    text.lines().map(line).collect()
}

fn compile(name: &str) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../benchmarks")
        .join(name);
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--locked", "--target-dir"])
        .arg(&output)
        // The folder's own configuration has the flags of a static executable. Flags for the code
        // under test are not meant for the program.
        .current_dir(&folder)
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .status()
        .context("cargo cannot be run")?;
    if !status.success() {
        bail!("{} did not build", folder.display());
    }
    Ok(output.join(TARGET).join("release").join(name))
}
