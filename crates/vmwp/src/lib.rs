//! The worker process: one VM assembled from the parts below it.

mod components;
pub mod config;
pub mod console;
mod control;
pub mod cpio;
mod disks;
pub mod loader;
mod machine;
mod serial;
mod test_device;

pub use config::{Console, Image, Platform, StopRequest, VmConfig, VmError, VmExit};
pub use disks::{DiskConfig, DriveError, MAX_CONTROLLERS, MAX_LUNS};
pub use vid::ProcessorMode;

use std::sync::Arc;

use control::{ControlPoint, ControlSocket};
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
    let disks = Arc::new(config.open_disks()?);
    let point = ControlPoint::new(&config, disks.clone());
    let stopped = Arc::downgrade(&point);
    config.stop.on_request(move || {
        if let Some(point) = stopped.upgrade() {
            point.end(End::Exit(VmExit::EndedByUser));
        }
    });
    let serve = |path: &std::path::PathBuf| {
        ControlSocket::serve(path, point.clone()).map_err(|source| VmError::ControlPath {
            path: path.clone(),
            source,
        })
    };
    let _socket = config.control.as_ref().map(serve).transpose()?;
    loop {
        match machine::run_once(&config, &plan, &console, &disks, &point)? {
            End::Exit(exit) => return Ok(exit),
            End::Failed(what) => return Err(VmError::Vm(what)),
            End::Difference(report) => return Err(VmError::Difference(report)),
            End::Reset if config.no_reboot => return Ok(VmExit::Reset),
            End::Reset => point.count_reset(),
        }
    }
}
