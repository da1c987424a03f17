//! `partita disk`: making, examining and changing virtual disk files.

mod arguments;
mod change;
mod create;
mod examine;
mod failure;
mod help;
mod output;
mod progress;
mod size;
mod stop;

use std::process::ExitCode;

pub(crate) use arguments::DiskArguments;
pub(crate) use help::DISK as EXAMPLES;

use arguments::DiskCommand;
use failure::Failure;
use stop::Stop;

use crate::cli::{EXIT_ERROR, EXIT_OK};

/// How a command ended that did its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Done; with `check`, nothing is wrong.
    Good,
    /// `check` found errors, and told them.
    Bad,
}

/// Runs a command and gives the exit status.
pub(crate) fn main(arguments: &DiskArguments) -> ExitCode {
    match run(&arguments.command) {
        Ok(Verdict::Good) => ExitCode::from(EXIT_OK),
        Ok(Verdict::Bad) => ExitCode::from(EXIT_ERROR),
        Err(failure) => failure.tell(),
    }
}

fn run(command: &DiskCommand) -> Result<Verdict, Failure> {
    // Examining writes nothing, so signals may end it as they are.
    let stop = || Stop::listen().map_err(|e| Failure::Other(format!("signals: {e}")));
    match command {
        DiskCommand::Info(arguments) => examine::info(arguments),
        DiskCommand::Check(arguments) => examine::check(arguments),
        DiskCommand::Create(arguments) => create::create(arguments, &stop()?),
        DiskCommand::Convert(arguments) => create::convert(arguments, &stop()?),
        DiskCommand::Resize(arguments) => change::resize(arguments, &stop()?),
        DiskCommand::Compact(arguments) => change::compact(arguments, &stop()?),
        DiskCommand::Merge(arguments) => change::merge(arguments, &stop()?),
        DiskCommand::Rebase(arguments) => change::rebase(arguments, &stop()?),
    }
}
