//! Which workloads there are, and how their executable is built.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::support::program;

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
    let (file, lines) = program::build("storage-programs", given)?;
    let list: Result<Vec<Workload>> = lines.iter().map(|fields| parse(fields)).collect();
    let list = list.with_context(|| format!("{} lists no workloads", file.display()))?;
    Ok(Program { file, list })
}

/// Reads name, whether it writes, bytes and depth.
fn parse(fields: &[String]) -> Result<Workload> {
    let [name, write, bytes, depth] = fields else {
        bail!("{fields:?} is not a workload");
    };
    let wrong = || format!("{fields:?} is not a workload");
    Ok(Workload {
        name: name.clone(),
        write: write.parse().with_context(wrong)?,
        bytes: bytes.parse().with_context(wrong)?,
        depth: depth.parse().with_context(wrong)?,
    })
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
    use crate::support::program::fields;

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
        let parse = |text| -> Result<Vec<Workload>> {
            let lines = fields(text);
            lines.iter().map(|fields| parse(fields)).collect()
        };
        let list = parse("a\tfalse\t4096\t32\nb\ttrue\t1048576\t1\n").unwrap();
        let expected = [
            workload("a", false, 4096, 32),
            workload("b", true, 1 << 20, 1),
        ];
        assert_eq!(list, expected);
        let text = listing(&list);
        assert!(text.contains("reads of 4 KiB, 32 at once"), "{text}");
        assert!(text.contains("writes of 1 MiB, 1 at once"), "{text}");
        for wrong in ["a\tfalse\t4096", "a\t1\t4096\t1", "a\tfalse\tx\t1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
