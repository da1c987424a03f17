//! The storage benchmark: direct I/O to the same raw file from the same guest kernel, in Partita
//! through hv_storvsc, and under QEMU's TCG through virtio-blk.
//!
//! `docs/performance.md` describes it; `cargo bench -p partita --bench storage -- --help` lists
//! the options.

mod console;
mod image;
mod initramfs;
mod machine;
mod modules;
mod options;
mod report;
mod results;
mod session;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod workloads;

use std::process::ExitCode;

use anyhow::Result;

use crate::options::Options;
use crate::report::Report;
use crate::session::Session;
use crate::support::{end, options::parse};

fn main() -> ExitCode {
    end::exit_code("storage", run(&parse("storage")))
}

/// Gives what is wrong with the results.
fn run(options: &Options) -> Result<Vec<String>> {
    let program = workloads::build(options.program_file.as_deref())?;
    let wanted = options.wanted(&program.list)?;
    if options.common.list {
        print!("{}", workloads::listing(&wanted));
        return Ok(Vec::new());
    }
    let session = Session::prepare(options, &program, &wanted)?;
    let results = session.run()?;
    let report = Report::new(session.circumstances(), results);
    if options.common.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    Ok(report.problems())
}
