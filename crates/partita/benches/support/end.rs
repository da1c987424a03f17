//! How a benchmark ends.

use std::process::ExitCode;

use anyhow::Result;

/// Tells what is wrong, and gives the exit status. `result` has the problems of a run that came to
/// its end.
pub(crate) fn exit_code(benchmark: &str, result: Result<Vec<String>>) -> ExitCode {
    let problems = result.unwrap_or_else(|error| vec![format!("{error:#}")]);
    for problem in &problems {
        eprintln!("{benchmark} benchmark: {problem}");
    }
    if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
