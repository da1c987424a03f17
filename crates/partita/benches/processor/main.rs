//! The processor benchmark: the same programs in the same guest kernel, natively on the host, in
//! Partita, and under QEMU's TCG.
//!
//! `docs/performance.md` describes it; `cargo bench -p partita --bench processor -- --help` lists
//! the options.

mod catalogue;
mod console;
mod document;
mod initramfs;
mod load;
mod machine;
mod options;
mod packages;
mod process;
mod qemu;
mod report;
mod results;
mod session;
mod stats;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::options::{Options, command_line};
use crate::report::Report;
use crate::session::Session;

fn main() -> ExitCode {
    let options = options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("processor benchmark: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    let programs = catalogue::build(options.programs_file.as_deref())?;
    let wanted = options.wanted(&programs.list)?;
    if options.list {
        print!("{}", catalogue::listing(&wanted));
        return Ok(ExitCode::SUCCESS);
    }
    let session = Session::prepare(options, &programs, &wanted)?;
    let results = session.run()?;
    let command = command_line(std::env::args().skip(1));
    let report = Report::new(session.circumstances(), command, results);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    if options.write {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/performance.md");
        document::rewrite(&path, &report.document())
            .with_context(|| format!("{} cannot be brought up to date", path.display()))?;
        let path = path.canonicalize().unwrap_or(path);
        eprintln!("Wrote the table to {}", path.display());
    }
    let problems = report.problems();
    for problem in &problems {
        eprintln!("processor benchmark: {problem}");
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
