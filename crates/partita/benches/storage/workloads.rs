//! Which workloads there are, and how their executable is built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

/// A stream of requests of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) write: bool,
    /// Bytes of each request.
    pub(crate) bytes: u32,
    /// Requests on their way at once.
    pub(crate) depth: u32,
}

/// The executable that has them.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) file: PathBuf,
    pub(crate) list: Vec<Workload>,
}

/// Builds the executable, unless one is given, and asks it what it has.
pub(crate) fn build(given: Option<&Path>) -> Result<Program> {
    let file = match given {
        Some(file) => file.to_owned(),
        None => compile()?,
    };
    let output = Command::new(&file).arg("list").output();
    let output = output.with_context(|| format!("{} cannot be run", file.display()))?;
    let list = parse(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("{} gives no list of workloads", file.display()))?;
    Ok(Program { file, list })
}

fn compile() -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benchmarks/storage-programs");
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("storage-programs");
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
        bail!("the program in {} did not build", folder.display());
    }
    Ok(output.join(TARGET).join("release/storage-programs"))
}

/// Reads lines of name, whether it writes, bytes and depth.
fn parse(text: &str) -> Result<Vec<Workload>> {
    let lines = text.lines().map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [name, write, bytes, depth] = fields[..] else {
            bail!("{line:?} is not a workload");
        };
        let wrong = || format!("{line:?} is not a workload");
        Ok(Workload {
            name: name.to_owned(),
            write: write.parse().with_context(wrong)?,
            bytes: bytes.parse().with_context(wrong)?,
            depth: depth.parse().with_context(wrong)?,
        })
    });
    let workloads: Vec<Workload> = lines.collect::<Result<_>>()?;
    if workloads.is_empty() {
        bail!("the list is empty");
    }
    Ok(workloads)
}

/// A list of workloads for a person.
pub(crate) fn listing(workloads: &[Workload]) -> String {
    let line = |w: &Workload| {
        let (kind, size) = (if w.write { "writes" } else { "reads" }, size(w.bytes));
        format!("{:18} {kind} of {size}, {} at once\n", w.name, w.depth)
    };
    workloads.iter().map(line).collect()
}

/// Bytes as people say them.
pub(crate) fn size(bytes: u32) -> String {
    match bytes >> 20 {
        0 => format!("{} KiB", bytes >> 10),
        mib => format!("{mib} MiB"),
    }
}

#[cfg(test)]
#[allow(
    dead_code,
    unused_imports,
    reason = "tests need a harness: see unit.rs"
)]
pub(crate) mod tests {
    use super::*;

    /// A workload for tests.
    pub(crate) fn workload(name: &str, write: bool, bytes: u32, depth: u32) -> Workload {
        Workload {
            name: name.into(),
            write,
            bytes,
            depth,
        }
    }

    #[test]
    fn lists_are_read() {
        let list = parse("a\tfalse\t4096\t32\nb\ttrue\t1048576\t1\n").unwrap();
        let expected = [
            workload("a", false, 4096, 32),
            workload("b", true, 1 << 20, 1),
        ];
        assert_eq!(list, expected);
        let text = listing(&list);
        assert!(text.contains("reads of 4 KiB, 32 at once"), "{text}");
        assert!(text.contains("writes of 1 MiB, 1 at once"), "{text}");
        for wrong in ["", "a\tfalse\t4096", "a\t1\t4096\t1", "a\tfalse\tx\t1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
