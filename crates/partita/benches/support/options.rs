//! Options that all benchmarks have.

use std::path::PathBuf;

use clap::{Args, Parser};

/// Options of a benchmark.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Rounds; each runs every side once [default: 5, with --quick 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// One short round
    #[arg(long)]
    pub(crate) quick: bool,
    /// Passed on to 'partita run'
    #[arg(long, value_name = "MODE")]
    pub(crate) processor_mode: Option<String>,
    /// Run this executable of Partita in place of the one just built
    #[arg(long, value_name = "FILE")]
    pub(crate) partita: Option<PathBuf>,
    /// Use QEMU from Debian's packages in the cache folder even if one is installed
    #[arg(long)]
    pub(crate) fetch_qemu: bool,
    /// Print the results, every round of them, as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Only list what there is
    #[arg(long)]
    pub(crate) list: bool,
    /// What Cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

impl Common {
    /// How many rounds to run.
    pub(crate) fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }
}

/// Reads the command line. Prints help, or in one line what is wrong, and ends the process then.
pub(crate) fn parse<T: Parser>(benchmark: &str) -> T {
    T::try_parse().unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        eprintln!("{benchmark} benchmark: {}", one_line(&error.to_string()));
        std::process::exit(2)
    })
}

/// Clap explains over several lines; what matters comes before the usage.
pub(crate) fn one_line(rendered: &str) -> String {
    let ends = |line: &str| line.starts_with("Usage:") || line.starts_with("For more information");
    let lines: Vec<&str> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !ends(line))
        .filter(|line| !line.is_empty())
        .collect();
    let text = lines.join(" ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    format!("{text}; --help shows the options")
}
