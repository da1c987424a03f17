//! The worker process: one VM assembled from the parts below it.

pub mod config;
pub mod console;
pub mod cpio;
pub mod loader;
mod machine;
mod serial;
mod test_device;

pub use config::{Console, Image, Platform, StopRequest, VmConfig, VmError, VmExit};

use machine::End;
use serial::SerialConsole;

/// Runs one VM until it ends; a reset by the guest boots it anew.
///
/// # Errors
/// [`VmError`] if the configuration is not right or the VM cannot go on.
pub fn run(mut config: VmConfig) -> Result<VmExit, VmError> {
    config.check()?;
    let files = config.read_boot_files()?;
    let ends = std::mem::take(&mut config.console);
    let plan = config.plan(&files)?;
    let console = SerialConsole::open(ends, &config.stop)
        .map_err(|error| VmError::Vm(format!("the console cannot be opened: {error}")))?;
    loop {
        match machine::run_once(&config, &plan, &console)? {
            End::Exit(exit) => return Ok(exit),
            End::Failed(what) => return Err(VmError::Vm(what)),
            End::Reset if config.no_reboot => return Ok(VmExit::Reset),
            End::Reset => {}
        }
    }
}
