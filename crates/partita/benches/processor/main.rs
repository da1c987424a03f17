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
mod options;
mod report;
mod results;
mod session;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::options::{Options, command_line};
use crate::report::Report;
use crate::session::Session;
use crate::support::{end, options::parse};

fn main() -> ExitCode {
    end::exit_code("processor", run(&parse("processor")))
}

/// Gives what is wrong with the results.
fn run(options: &Options) -> Result<Vec<String>> {
    let programs = catalogue::build(options.programs_file.as_deref())?;
    let wanted = options.wanted(&programs.list)?;
    if options.common.list {
        print!("{}", catalogue::listing(&wanted));
        return Ok(Vec::new());
    }
    let session = Session::prepare(options, &programs, &wanted)?;
    let results = session.run()?;
    let command = command_line(std::env::args().skip(1));
    let report = Report::new(session.circumstances(), command, results);
    if options.common.json {
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
    Ok(report.problems())
}
