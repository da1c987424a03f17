//! Options of the benchmark.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Parser;

use crate::catalogue::Program;
use crate::results::Side;
use crate::support::options::Common;

const EXAMPLES: &str = "\
Examples:
  cargo bench -p partita --bench processor
  cargo bench -p partita --bench processor -- --quick
  cargo bench -p partita --bench processor -- --group integer,floating --rounds 3
  cargo bench -p partita --bench processor -- --program crc32 --sides native,partita
  cargo bench -p partita --bench processor -- --write

Exit status: 0 if every program ran on every side and all results agree, 1 if not, 2 on wrong usage.";

/// Runs the same programs natively, in Partita and under QEMU's TCG, and compares their times.
#[derive(Debug, Parser)]
#[command(name = "processor", after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Time for each program in each round [default: 500, with --quick 100]
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    millis: Option<u32>,
    /// Only the programs of these groups, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    group: Vec<String>,
    /// Only these programs, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    program: Vec<String>,
    /// Where to run them: native, partita, qemu, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = parse_side,
          default_value = "native,partita,qemu")]
    pub(crate) sides: Vec<Side>,
    /// Use this executable of the programs in place of a newly built one
    #[arg(long, value_name = "FILE")]
    pub(crate) programs_file: Option<PathBuf>,
    /// Write the table into docs/performance.md
    #[arg(long)]
    pub(crate) write: bool,
}

impl Options {
    /// How long each program runs, in milliseconds.
    pub(crate) fn milliseconds(&self) -> u32 {
        self.millis
            .unwrap_or(if self.common.quick { 100 } else { 500 })
    }

    /// The programs that were asked for by group or name; all if none were.
    pub(crate) fn wanted(&self, all: &[Program]) -> Result<Vec<Program>> {
        if let Some(name) = self
            .group
            .iter()
            .find(|name| all.iter().all(|program| program.group != **name))
        {
            bail!("--group {name} is no group; --list shows them");
        }
        if let Some(name) = self
            .program
            .iter()
            .find(|name| all.iter().all(|program| program.name != **name))
        {
            bail!("--program {name} is no program; --list shows them");
        }
        let everything = self.group.is_empty() && self.program.is_empty();
        let wanted = |program: &&Program| {
            everything
                || self.group.contains(&program.group)
                || self.program.contains(&program.name)
        };
        Ok(all.iter().filter(wanted).cloned().collect())
    }
}

fn parse_side(text: &str) -> Result<Side, String> {
    let mut sides = Side::ALL.into_iter();
    sides
        .find(|side| side.name() == text)
        .ok_or_else(|| "it is not one of native, partita, qemu".to_owned())
}

/// The command that a person types for the arguments that the benchmark got.
pub(crate) fn command_line(arguments: impl Iterator<Item = String>) -> String {
    let mut command = "cargo bench -p partita --bench processor".to_owned();
    let mut separator = " --";
    for argument in arguments.filter(|argument| argument != "--bench") {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=+:".contains(c);
        let quoted = if !argument.is_empty() && argument.chars().all(plain) {
            argument
        } else {
            format!("'{}'", argument.replace('\'', r"'\''"))
        };
        command.push_str(&format!("{separator} {quoted}"));
        separator = "";
    }
    command
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
    use crate::catalogue::tests::program;
    use crate::support::options::one_line;

    fn options(arguments: &[&str]) -> Options {
        Options::try_parse_from([&["processor"], arguments].concat()).unwrap()
    }

    #[test]
    fn the_definition_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn defaults_depend_on_quick() {
        let long = options(&["--bench"]);
        assert_eq!((long.common.rounds(), long.milliseconds()), (5, 500));
        assert_eq!(long.sides, Side::ALL);
        let quick = options(&["--quick", "--millis", "20"]);
        assert_eq!((quick.common.rounds(), quick.milliseconds()), (1, 20));
    }

    #[test]
    fn groups_and_programs_add_up() {
        let all = [
            program("crc32", "integer", 1),
            program("sieve", "integer", 1),
            program("fork", "system", 1),
            program("copy", "bulk", 1),
        ];
        let names = |arguments: &[&str]| -> Vec<String> {
            let wanted = options(arguments).wanted(&all).unwrap();
            wanted.into_iter().map(|program| program.name).collect()
        };
        assert_eq!(names(&[]).len(), 4);
        assert_eq!(
            names(&["--group", "bulk", "--program", "crc32,fork"]),
            ["crc32", "fork", "copy"]
        );
        let error = options(&["--group", "bulky"]).wanted(&all).unwrap_err();
        assert!(error.to_string().contains("--group bulky"));
        assert!(options(&["--program", "x"]).wanted(&all).is_err());
    }

    #[test]
    fn sides_are_checked() {
        assert_eq!(
            options(&["--sides", "qemu,native"]).sides,
            [Side::Qemu, Side::Native]
        );
        assert!(Options::try_parse_from(["processor", "--sides", "kvm"]).is_err());
    }

    #[test]
    fn wrong_usage_is_told_in_one_line() {
        let error = Options::try_parse_from(["processor", "--rounds", "0"]).unwrap_err();
        assert_eq!(
            one_line(&error.to_string()),
            "invalid value '0' for '--rounds <N>': 0 is not in 1..=100; --help shows the options"
        );
    }

    #[test]
    fn the_command_can_be_typed() {
        let line = |arguments: &[&str]| command_line(arguments.iter().map(|&a| a.to_owned()));
        assert_eq!(
            line(&["--bench"]),
            "cargo bench -p partita --bench processor"
        );
        assert_eq!(
            line(&["--partita", "my file's", "--quick", "--bench"]),
            r"cargo bench -p partita --bench processor -- --partita 'my file'\''s' --quick"
        );
    }
}
