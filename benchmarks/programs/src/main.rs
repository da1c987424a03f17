//! Small deterministic programs that time themselves, for the processor benchmark.
//!
//! `programs list` prints what there is, one program per line: name, group, processors, and what
//! one operation is, separated by tabs. `programs run NAME MILLISECONDS BUSYBOX FOLDER` runs one
//! and prints two lines that the benchmark reads:
//!
//! ```text
//! @start NAME
//! @done NAME ns-per-operation checksum seconds
//! ```
//!
//! `checksum` comes from a fixed amount of work, so that it is the same wherever the program
//! runs. `seconds` is the time between the two lines by the program's own clock. A program that
//! this processor cannot run says `@skip NAME reason` in place of the second line.

mod catalogue;
mod data;
mod floating;
mod host;
mod integer;
mod measure;
mod memory;
mod pair;
mod shell;
mod system;
mod vector;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::catalogue::{PROGRAMS, Program, Setting};

const USAGE: &str = "usage: programs list | programs run NAME MILLISECONDS BUSYBOX FOLDER";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        // What the program `exec` starts over and over.
        ["exit"] => Ok(()),
        ["list"] => {
            list();
            Ok(())
        }
        ["run", name, milliseconds, busybox, folder] => run(name, milliseconds, busybox, folder),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("programs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    for program in PROGRAMS {
        let Program {
            name,
            group,
            processors,
            operation,
            ..
        } = program;
        println!("{name}\t{group}\t{processors}\t{operation}");
    }
}

fn run(name: &str, milliseconds: &str, busybox: &str, folder: &str) -> Result<(), String> {
    let program = PROGRAMS
        .iter()
        .find(|program| program.name == name)
        .ok_or_else(|| format!("{name} is not a program; see 'programs list'"))?;
    let milliseconds: u32 = milliseconds
        .parse()
        .map_err(|_| format!("{milliseconds} is not a number of milliseconds"))?;
    let setting = Setting {
        busybox: PathBuf::from(busybox),
        folder: PathBuf::from(folder),
    };
    if program.processors == 1 {
        host::stay_on_this_processor().map_err(|error| format!("{name}: {error}"))?;
    }
    println!("@start {name}");
    let start = Instant::now();
    let budget = Duration::from_millis(u64::from(milliseconds));
    match measure::measure(program, &setting, budget) {
        Ok(result) => {
            let seconds = start.elapsed().as_secs_f64();
            let (ns, checksum) = (result.ns_per_operation, result.checksum);
            println!("@done {name} {ns:.4} {checksum:016x} {seconds:.4}");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            println!("@skip {name} {error}");
            Ok(())
        }
        Err(error) => Err(format!("{name}: {error}")),
    }
}
