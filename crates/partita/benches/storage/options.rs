//! Options of the benchmark.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use crate::results::Side;
use crate::support::options::Common;
use crate::workloads::Workload;

const EXAMPLES: &str = "\
Examples:
  cargo bench -p partita --bench storage
  cargo bench -p partita --bench storage -- --quick
  cargo bench -p partita --bench storage -- --workload random-read-1,random-read-32 --rounds 3
  cargo bench -p partita --bench storage -- --sides partita

Exit status: 0 if every workload ran on every side and read what it should, 1 if not, 2 on wrong
usage.";

/// Measures the same disk in the same guest kernel, in Partita and under QEMU's TCG.
#[derive(Debug, Parser)]
#[command(name = "storage", after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Time for each workload in each round [default: 2000, with --quick 300]
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    millis: Option<u32>,
    /// Only these workloads, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    workload: Vec<String>,
    /// Where to run them: partita, qemu, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = parse_side,
          default_value = "partita,qemu")]
    pub(crate) sides: Vec<Side>,
    /// Size of the disk in MiB
    #[arg(long, value_name = "MIB", default_value = "256",
          value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) disk: u64,
    /// Use this executable of the guest's program in place of a newly built one
    #[arg(long, value_name = "FILE")]
    pub(crate) program_file: Option<PathBuf>,
}

impl Options {
    /// How long each workload runs, in milliseconds.
    pub(crate) fn milliseconds(&self) -> u32 {
        self.millis
            .unwrap_or(if self.common.quick { 300 } else { 2000 })
    }

    /// The workloads that were asked for by name; all if none were.
    pub(crate) fn wanted(&self, all: &[Workload]) -> Result<Vec<Workload>> {
        let known = |name: &String| all.iter().any(|workload| workload.name == *name);
        if let Some(name) = self.workload.iter().find(|name| !known(name)) {
            bail!("--workload {name} is no workload; --list shows them");
        }
        let everything = self.workload.is_empty();
        let wanted = |w: &&Workload| everything || self.workload.contains(&w.name);
        Ok(all.iter().filter(wanted).cloned().collect())
    }
}

fn parse_side(text: &str) -> Result<Side, String> {
    let mut sides = Side::ALL.into_iter();
    sides
        .find(|side| side.name() == text)
        .ok_or_else(|| "it is not one of partita, qemu".to_owned())
}

#[cfg(test)]
#[allow(
    dead_code,
    unused_imports,
    reason = "tests need a harness: see unit.rs"
)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::workloads::tests::workload;

    fn options(arguments: &[&str]) -> Options {
        Options::try_parse_from([&["storage"], arguments].concat()).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn defaults_depend_on_quick() {
        let long = options(&["--bench"]);
        assert_eq!((long.common.rounds(), long.milliseconds()), (5, 2000));
        assert_eq!((long.sides, long.disk), (Side::ALL.to_vec(), 256));
        let quick = options(&["--quick", "--millis", "20"]);
        assert_eq!((quick.common.rounds(), quick.milliseconds()), (1, 20));
    }

    #[test]
    fn names_are_checked() {
        let all = [workload("a", false, 4096, 1), workload("b", true, 4096, 1)];
        let wanted = |arguments: &[&str]| options(arguments).wanted(&all);
        assert_eq!(wanted(&[]).unwrap().len(), 2);
        assert_eq!(wanted(&["--workload", "b"]).unwrap(), all[1..]);
        let error = wanted(&["--workload", "a,c"]).unwrap_err().to_string();
        assert!(error.contains("--workload c"), "{error}");
        assert!(Options::try_parse_from(["storage", "--sides", "kvm"]).is_err());
        assert_eq!(options(&["--sides", "qemu"]).sides, [Side::Qemu]);
    }
}
