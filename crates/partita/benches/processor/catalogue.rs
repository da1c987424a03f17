//! Which programs there are, and how their executable is built.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::support::program;

/// The group of the rows that measure the start of a kernel, which are no programs of their own.
pub(crate) const BOOT: &str = "boot";
/// The start of Debian's kernel for VMs.
pub(crate) const BOOT_CLOUD: &str = "boot-cloud";
/// The start of Debian's kernel for all machines.
pub(crate) const BOOT_GENERIC: &str = "boot-generic";

/// One program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) group: String,
    /// How many processors it needs.
    pub(crate) processors: u32,
    /// What one operation is.
    pub(crate) operation: String,
}

/// The executable with all programs.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) file: PathBuf,
    /// What is in it, and the boots.
    pub(crate) list: Vec<Program>,
}

/// Builds the executable, unless one is given, and asks it what it has.
pub(crate) fn build(given: Option<&Path>) -> Result<Programs> {
    let (file, lines) = program::build("programs", given)?;
    let list: Result<Vec<Program>> = lines.iter().map(|fields| parse(fields)).collect();
    let mut list = list.with_context(|| format!("{} lists no programs", file.display()))?;
    list.extend(boots());
    Ok(Programs { file, list })
}

fn boots() -> [Program; 2] {
    [(BOOT_CLOUD, "cloud"), (BOOT_GENERIC, "generic")].map(|(name, kernel)| Program {
        name: name.to_owned(),
        group: BOOT.to_owned(),
        processors: 1,
        operation: format!("kernel start to first process, Debian's {kernel} kernel"),
    })
}

/// Reads name, group, processors and operation.
fn parse(fields: &[String]) -> Result<Program> {
    let [name, group, processors, operation] = fields else {
        bail!("{fields:?} is not a program");
    };
    let processors = processors
        .parse()
        .with_context(|| format!("{fields:?} has no number of processors"))?;
    Ok(Program {
        name: name.clone(),
        group: group.clone(),
        processors,
        operation: operation.clone(),
    })
}

/// A list of programs for a person.
pub(crate) fn listing(programs: &[Program]) -> String {
    let line = |p: &Program| format!("{:15} {:15} {}\n", p.group, p.name, p.operation);
    programs.iter().map(line).collect()
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

    /// A program for tests.
    pub(crate) fn program(name: &str, group: &str, processors: u32) -> Program {
        Program {
            name: name.into(),
            group: group.into(),
            processors,
            operation: format!("{name} once"),
        }
    }

    #[test]
    fn lists_are_read() {
        let parse = |text| -> Result<Vec<Program>> {
            let lines = fields(text);
            lines.iter().map(|fields| parse(fields)).collect()
        };
        let list = parse("crc32\tinteger\t1\tcrc32 once\nfutex\tpair\t2\tfutex once\n").unwrap();
        let expected = [program("crc32", "integer", 1), program("futex", "pair", 2)];
        assert_eq!(list, expected);
        assert!(parse("crc32 integer").is_err());
        assert!(parse("crc32\tinteger\tone\tx").is_err());
    }

    #[test]
    fn listings_have_a_line_for_each() {
        let text = listing(&boots());
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("boot-generic"));
    }
}
