//! The `partita` command line.

mod cli;
mod disk;
mod drives;
mod log;
mod quickstart;
mod run;
mod size;

use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::parse() {
        Ok(cli::Command::Run(arguments)) => run::main(&arguments),
        Ok(cli::Command::Quickstart(arguments)) => quickstart::main(&arguments),
        Ok(cli::Command::Disk(arguments)) => disk::main(&arguments),
        Err(code) => code,
    }
}
