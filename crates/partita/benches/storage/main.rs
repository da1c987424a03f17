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
#[allow(dead_code, reason = "the other benchmark has more kernels")]
#[path = "../processor/packages.rs"]
mod packages;
#[path = "../processor/process.rs"]
mod process;
#[path = "../processor/qemu.rs"]
mod qemu;
mod report;
mod results;
mod session;
#[allow(dead_code, reason = "the other benchmark has means of its groups")]
#[path = "../processor/stats.rs"]
mod stats;
mod workloads;

use std::process::ExitCode;

use anyhow::Result;

use crate::options::Options;
use crate::report::Report;
use crate::session::Session;

fn main() -> ExitCode {
    let options = options::parse();
    match run(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("storage benchmark: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    let program = workloads::build(options.program_file.as_deref())?;
    let wanted = options.wanted(&program.list)?;
    if options.list {
        print!("{}", workloads::listing(&wanted));
        return Ok(ExitCode::SUCCESS);
    }
    let session = Session::prepare(options, &program, &wanted)?;
    let results = session.run()?;
    let report = Report::new(session.circumstances(), results);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.text());
    }
    let problems = report.problems();
    for problem in &problems {
        eprintln!("storage benchmark: {problem}");
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
