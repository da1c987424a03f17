//! What a VM is made of, and how its run can end.

use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vid::ProcessorMode;

use crate::disks::{DiskConfig, Disks, DriveError};
use crate::loader::{self, BootConfig, Input, LoadError, LoadPlan, layout};

/// Fewest virtual processors of a VM.
pub const MIN_PROCESSORS: u32 = 1;
/// Most virtual processors of a VM.
pub const MAX_PROCESSORS: u32 = 16;
/// Largest kernel file that is read, in bytes. A kernel with its debug information may well be
/// larger than the VM's memory.
const MAX_KERNEL_FILE: u64 = 2 << 30;

/// A file that the guest is given.
#[derive(Clone)]
pub enum Image {
    /// A file of the host.
    File(PathBuf),
    /// Bytes made by the caller, with a name for messages.
    Memory(String, Arc<Vec<u8>>),
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())
    }
}

impl Image {
    /// The file's path, or the name of the bytes.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Memory(name, _) => name.clone(),
        }
    }

    /// Reads the file, but not more than `limit` bytes and one.
    fn read(&self, flag: &'static str, limit: u64) -> Result<Arc<Vec<u8>>, VmError> {
        let path = match self {
            Self::Memory(_, bytes) => return Ok(Arc::clone(bytes)),
            Self::File(path) => path,
        };
        let failed = |source| VmError::Read {
            flag,
            file: path.clone(),
            source,
        };
        let file = std::fs::File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(std::io::ErrorKind::IsADirectory.into()));
        }
        let mut bytes = Vec::with_capacity(metadata.len().min(limit) as usize + 1);
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        Ok(Arc::new(bytes))
    }
}

/// Which processor runs the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Platform {
    /// The fastest that works on this machine.
    #[default]
    Auto,
    /// The software processor.
    Software,
}

/// Where the serial console of the VM goes.
#[derive(Default)]
pub enum Console {
    /// Standard input and output, in raw mode if it is a terminal.
    #[default]
    Stdio,
    /// The caller's own ends.
    Captured {
        /// Bytes for the guest. When the sender is dropped, there is no more input.
        input: Receiver<Vec<u8>>,
        /// Takes the guest's output, as it comes.
        output: Box<dyn Write + Send>,
    },
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdio => "Stdio",
            Self::Captured { .. } => "Captured",
        })
    }
}

/// A VM to be run.
#[derive(Debug)]
pub struct VmConfig {
    /// The kernel file.
    pub kernel: Image,
    /// The initial RAM disk, or the module of a multiboot image.
    pub initrd: Option<Image>,
    /// The kernel's command line; a Linux kernel gets
    /// [`DEFAULT_LINUX_CMDLINE`](loader::DEFAULT_LINUX_CMDLINE) if there is none.
    pub cmdline: Option<String>,
    /// RAM in bytes, from [`layout::MIN_MEMORY`] to [`layout::MAX_MEMORY`].
    pub memory_bytes: u64,
    /// Virtual processors, from [`MIN_PROCESSORS`] to [`MAX_PROCESSORS`].
    pub processors: u32,
    /// What runs the guest's instructions.
    pub platform: Platform,
    /// How the software processor runs code.
    pub processor_mode: ProcessorMode,
    /// Whether to add the devices that test images want.
    pub test_device: bool,
    /// Whether a reset by the guest ends the run.
    pub no_reboot: bool,
    /// Disks and optical drives.
    pub disks: Vec<DiskConfig>,
    /// Path at which a control socket is to be made.
    pub control: Option<PathBuf>,
    /// The serial console.
    pub console: Console,
    /// Lets the caller end the run from another thread.
    pub stop: StopRequest,
}

/// The contents of a VM's boot files, in memory.
#[derive(Clone, Debug)]
pub struct BootFiles {
    kernel: Arc<Vec<u8>>,
    initrd: Option<Arc<Vec<u8>>>,
}

impl VmConfig {
    /// Checks everything that can be checked without reading the boot files.
    ///
    /// # Errors
    /// [`VmError::Invalid`] for a value out of range, [`VmError::ControlInUse`] if the control
    /// socket cannot be made at its path.
    pub fn check(&self) -> Result<(), VmError> {
        if !(layout::MIN_MEMORY..=layout::MAX_MEMORY).contains(&self.memory_bytes) {
            return Err(VmError::Invalid(
                "the memory size must be between 16 MiB and 1 TiB",
            ));
        }
        if !(MIN_PROCESSORS..=MAX_PROCESSORS).contains(&self.processors) {
            return Err(VmError::Invalid(
                "the number of processors must be between 1 and 16",
            ));
        }
        if self.processor_mode == ProcessorMode::Check && self.processors > 1 {
            return Err(VmError::Invalid(
                "--processor-mode check compares one processor; give --processors 1",
            ));
        }
        self.control.as_deref().map_or(Ok(()), check_control_path)
    }

    /// Opens the disks.
    ///
    /// # Errors
    /// [`VmError::Drive`] names the first that cannot be used.
    pub(crate) fn open_disks(&self) -> Result<Disks, VmError> {
        Disks::open(&self.disks).map_err(|(index, source)| VmError::Drive {
            flag: match self.disks.get(index) {
                Some(DiskConfig { optical: true, .. }) => "--dvd",
                _ => "--disk",
            },
            source,
        })
    }

    /// Reads the boot files.
    ///
    /// # Errors
    /// [`VmError::Read`] if one cannot be read, [`VmError::Load`] if one is far too large.
    pub fn read_boot_files(&self) -> Result<BootFiles, VmError> {
        let kernel = self.kernel.read("--kernel", MAX_KERNEL_FILE)?;
        if kernel.len() as u64 > MAX_KERNEL_FILE {
            return Err(VmError::Load {
                file: format!("--kernel {}", self.kernel.name()),
                source: LoadError::NotAKernel {
                    looks_like: "it has more than 2 GiB",
                },
            });
        }
        let initrd = self
            .initrd
            .as_ref()
            .map(|image| image.read("--initrd", self.memory_bytes))
            .transpose()?;
        Ok(BootFiles { kernel, initrd })
    }

    /// Makes the plan for booting from `files`.
    ///
    /// # Errors
    /// [`VmError::Load`] names the file or the flag that is at fault.
    pub fn plan<'a>(&'a self, files: &'a BootFiles) -> Result<LoadPlan<'a>, VmError> {
        let kernel_name = match &self.kernel {
            Image::File(path) => path.file_name().and_then(|name| name.to_str()),
            Image::Memory(name, _) => Some(name.as_str()),
        };
        let boot = BootConfig {
            kernel: &files.kernel,
            kernel_name: kernel_name.unwrap_or("kernel"),
            initrd: files.initrd.as_ref().map(|bytes| bytes.as_slice()),
            cmdline: self.cmdline.as_deref(),
            memory_bytes: self.memory_bytes,
            processors: self.processors,
            test_device: self.test_device,
        };
        loader::load(&boot).map_err(|source| {
            let file = match (source.input(), &self.initrd) {
                (Input::Initrd, Some(initrd)) => format!("--initrd {}", initrd.name()),
                (Input::Cmdline, _) => "--cmdline".to_owned(),
                _ => format!("--kernel {}", self.kernel.name()),
            };
            VmError::Load { file, source }
        })
    }
}

/// Refuses a path at which a socket is being served or something else lies. A socket that nobody
/// serves any more is left over from a process that was killed, and may be replaced.
fn check_control_path(path: &Path) -> Result<(), VmError> {
    use std::os::unix::fs::FileTypeExt;
    let in_use = |reason| {
        Err(VmError::ControlInUse {
            path: path.to_owned(),
            reason,
        })
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(VmError::ControlPath {
                path: path.to_owned(),
                source: error,
            });
        }
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return in_use("something that is no socket is there");
        }
        Ok(_) => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return in_use("another process is serving it");
            }
        }
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    match std::fs::metadata(parent.unwrap_or(Path::new("."))) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(VmError::ControlPath {
            path: path.to_owned(),
            source: std::io::ErrorKind::NotADirectory.into(),
        }),
        Err(source) => Err(VmError::ControlPath {
            path: path.to_owned(),
            source,
        }),
    }
}

/// How the run of a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmExit {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest reset itself, and the configuration says not to restart it.
    Reset,
    /// The guest crashed: a triple fault, or a report through the crash MSRs.
    Crashed {
        /// What is known about it, for a person to read.
        report: String,
    },
    /// The guest wrote to the debug-exit port of the test device.
    DebugExit {
        /// The value written.
        code: u32,
    },
    /// Somebody asked for the end: at the console, or through [`VmConfig::stop`].
    EndedByUser,
}

/// Why a VM cannot run or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A value of the configuration is out of range.
    #[error("{0}")]
    Invalid(&'static str),
    /// A boot file cannot be read.
    #[error(
        "{flag} {} cannot be read: {}; give a file that exists and that you may read",
        file.display(),
        brief(source)
    )]
    Read {
        /// The flag that named it.
        flag: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A boot file or the command line is not right.
    #[error("{file} {source}")]
    Load {
        /// The flag and the file.
        file: String,
        /// What is wrong with it.
        source: LoadError,
    },
    /// A disk or an optical drive cannot be had.
    #[error("{flag}: {source}")]
    Drive {
        /// The flag that asked for it.
        flag: &'static str,
        /// Why.
        source: DriveError,
    },
    /// The control socket's path is occupied.
    #[error("--control {} is in use ({reason}); give a path that does not exist yet", path.display())]
    ControlInUse {
        /// The path.
        path: PathBuf,
        /// What is there.
        reason: &'static str,
    },
    /// The control socket cannot be made.
    #[error(
        "--control {} cannot be made: {}; give a path in a directory that you may write to",
        path.display(),
        brief(source)
    )]
    ControlPath {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A part of the VM failed.
    #[error("{0}")]
    Vm(String),
    /// A checked processor has found a difference between translator and
    /// interpreter: the report, of many lines.
    #[error("{0}")]
    Difference(String),
}

/// An operating system error without its number, which says nothing to most people.
fn brief(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error")
        .next()
        .unwrap_or(&text)
        .to_lowercase()
}

/// A request to end a run, shared between the one who asks and the VM.
#[derive(Clone, Default)]
pub struct StopRequest {
    inner: Arc<StopInner>,
}

type Callback = Box<dyn Fn() + Send>;

#[derive(Default)]
struct StopInner {
    state: Mutex<StopState>,
    changed: Condvar,
}

#[derive(Default)]
struct StopState {
    requested: bool,
    callbacks: Vec<Callback>,
}

impl fmt::Debug for StopRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StopRequest")
            .field(&self.is_requested())
            .finish()
    }
}

impl StopRequest {
    /// A new one, not requested.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for the end. Asking twice is the same as asking once.
    pub fn request(&self) {
        let mut state = self.lock();
        if !state.requested {
            state.requested = true;
            for callback in state.callbacks.drain(..) {
                callback();
            }
            self.inner.changed.notify_all();
        }
    }

    /// Whether somebody asked.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.lock().requested
    }

    /// Calls `callback` once when somebody asks, at once if somebody did. It runs in the asking
    /// thread and must not use this object.
    pub fn on_request(&self, callback: impl Fn() + Send + 'static) {
        let mut state = self.lock();
        if state.requested {
            callback();
        } else {
            state.callbacks.push(Box::new(callback));
        }
    }

    /// Waits until somebody asks or the time is over; tells whether somebody asked.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        while !state.requested {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.inner.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StopState> {
        self.inner
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_request_reaches_waiters_and_callbacks() {
        let stop = StopRequest::new();
        assert!(!stop.wait_timeout(Duration::from_millis(1)));
        let (sender, receiver) = std::sync::mpsc::channel();
        let late = sender.clone();
        stop.on_request(move || sender.send(1).unwrap());
        let waiter = stop.clone();
        let thread = std::thread::spawn(move || waiter.wait_timeout(Duration::from_secs(10)));
        stop.request();
        stop.request();
        assert!(thread.join().unwrap());
        stop.on_request(move || late.send(2).unwrap());
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_served_control_socket_is_in_use_and_a_dead_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        check_control_path(&path).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = check_control_path(&path).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(listener);
        check_control_path(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(matches!(
            check_control_path(&path),
            Err(VmError::ControlInUse { .. })
        ));
        let nowhere = directory.path().join("no/such/dir");
        assert!(matches!(
            check_control_path(&nowhere),
            Err(VmError::ControlPath { .. })
        ));
    }
}
