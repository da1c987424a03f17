//! The worker process: one VM assembled from the parts below it.

pub mod config;
pub mod console;
pub mod cpio;
pub mod loader;

pub use config::{Console, Image, Platform, StopRequest, VmConfig, VmError, VmExit};

/// Runs one VM until it ends.
///
/// # Errors
/// [`VmError`] if the configuration is not right or the VM cannot go on.
pub fn run(config: VmConfig) -> Result<VmExit, VmError> {
    config.check()?;
    let files = config.read_boot_files()?;
    let _plan = config.plan(&files)?;
    Err(VmError::Vm("the virtual machine is not assembled in this build".to_owned()))
}
