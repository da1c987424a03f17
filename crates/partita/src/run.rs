//! `partita run`: one VM in the foreground.

use std::path::Path;
use std::process::ExitCode;

use vmwp::{Console, Image, StopRequest, VmConfig, VmError, VmExit};

use crate::cli::{EXIT_CRASHED, EXIT_ERROR, EXIT_OK, RunArguments, report};
use crate::log;

/// Runs the VM and gives the exit status.
pub(crate) fn main(arguments: &RunArguments) -> ExitCode {
    if let Err(error) = log::start(arguments.log_level, arguments.log.as_deref()) {
        let file = arguments.log.as_deref().unwrap_or_else(|| Path::new(""));
        return report(&format_args!(
            "--log {} cannot be written: {error}; give a file in a folder that is there",
            file.display()
        ));
    }
    let config = VmConfig {
        kernel: Image::File(arguments.kernel.clone()),
        initrd: arguments.initrd.clone().map(Image::File),
        cmdline: arguments.cmdline.clone(),
        memory_bytes: arguments.machine.memory,
        processors: arguments.machine.processors,
        platform: arguments.machine.platform,
        processor_mode: arguments.machine.processor_mode,
        test_device: arguments.test_device,
        no_reboot: arguments.no_reboot,
        disks: arguments.drives(),
        control: arguments.control.clone(),
        console: Console::Stdio,
        stop: StopRequest::new(),
    };
    exit_code(vmwp::run(config))
}

/// The exit status for the way a VM ended; tells the person what is not obvious.
pub(crate) fn exit_code(result: Result<VmExit, VmError>) -> ExitCode {
    match result {
        Ok(VmExit::PoweredOff | VmExit::Reset | VmExit::EndedByUser) => ExitCode::from(EXIT_OK),
        Ok(VmExit::Crashed { report }) => {
            eprintln!("partita: the guest crashed: {}", report.trim_end());
            ExitCode::from(EXIT_CRASHED)
        }
        Ok(VmExit::DebugExit { code }) => ExitCode::from(debug_exit_status(code)),
        Err(VmError::Difference(text)) => {
            eprintln!("partita: {}", text.trim_end());
            ExitCode::from(EXIT_ERROR)
        }
        Err(error) => report(&error),
    }
}

/// The exit status that test images expect for what they wrote to the debug exit port.
fn debug_exit_status(code: u32) -> u8 {
    (code << 1 | 1) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_exit_status_is_as_test_images_expect() {
        assert_eq!([0, 1, 38, 127].map(debug_exit_status), [1, 3, 77, 255]);
        assert_eq!(debug_exit_status(u32::MAX), 255);
    }
}
