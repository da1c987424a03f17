//! What can go wrong with a virtual disk.

use std::io;
use std::path::{Path, PathBuf};

/// The result of every operation of this crate.
pub type Result<T> = std::result::Result<T, DiskError>;

/// Why an operation on a virtual disk failed, in one sentence that names the structure and where
/// it lies in the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The host refused to read, write or flush the file.
    #[error("cannot {action} at file offset {offset:#x}: {source}")]
    Io {
        /// What was attempted, as a verb phrase.
        action: &'static str,
        /// Byte offset in the file.
        offset: u64,
        /// The host's reason.
        source: io::Error,
    },
    /// The host refused an operation on a path (open, create, rename).
    #[error("cannot {action} {}: {source}", path.display())]
    Path {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// A structure in the file breaks the rules of its format.
    #[error("{structure} at file offset {offset:#x} is corrupt: {reason}")]
    Corrupt {
        /// Name of the structure, as in the format's specification.
        structure: &'static str,
        /// Byte offset of the structure in the file.
        offset: u64,
        /// Which rule is broken.
        reason: String,
    },
    /// A structure is valid, but asks for something that this implementation does not know.
    #[error("{structure} at file offset {offset:#x} is not supported: {reason}")]
    Unsupported {
        /// Name of the structure, as in the format's specification.
        structure: &'static str,
        /// Byte offset of the structure in the file.
        offset: u64,
        /// What is not known.
        reason: String,
    },
    /// Another process (or another open handle of this one) holds the file.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The file concerned.
        path: PathBuf,
    },
    /// A request reaches past the end of the disk.
    #[error("a request of {len} bytes at {offset:#x} lies outside the disk of {size:#x} bytes")]
    OutOfRange {
        /// First byte of the request.
        offset: u64,
        /// Length of the request in bytes.
        len: u64,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// A request does not start or end on a logical sector.
    #[error("a request of {len} bytes at {offset:#x} is not aligned to {sector}-byte sectors")]
    Misaligned {
        /// First byte of the request.
        offset: u64,
        /// Length of the request in bytes.
        len: u64,
        /// Logical sector size in bytes.
        sector: u32,
    },
    /// A change was asked of a disk that is open for reading only.
    #[error("the disk is open for reading only")]
    ReadOnly,
    /// The parent of a differencing disk is missing or is not the one that it was made from.
    #[error("the parent disk cannot be used: {0}")]
    Parent(String),
    /// The caller's parameters make no sense for this disk.
    #[error("{0}")]
    Invalid(String),
    /// A progress callback asked to stop.
    #[error("the operation was cancelled")]
    Cancelled,
    /// Another error, with the file that it is about.
    #[error("{}: {source}", path.display())]
    InFile {
        /// The file concerned.
        path: PathBuf,
        /// What happened there.
        source: Box<DiskError>,
    },
}

impl DiskError {
    pub(crate) fn corrupt(structure: &'static str, offset: u64, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            structure,
            offset,
            reason: reason.into(),
        }
    }

    pub(crate) fn unsupported(
        structure: &'static str,
        offset: u64,
        reason: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            structure,
            offset,
            reason: reason.into(),
        }
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }

    /// Adds the file to an error that does not name one yet.
    pub(crate) fn in_file(self, path: &Path) -> Self {
        match self {
            Self::InFile { .. }
            | Self::Path { .. }
            | Self::Locked { .. }
            | Self::Cancelled
            | Self::Invalid(_) => self,
            other => Self::InFile {
                path: path.to_owned(),
                source: Box::new(other),
            },
        }
    }

    /// The error below any file names: what to match on.
    pub fn root(&self) -> &Self {
        match self {
            Self::InFile { source, .. } => source.root(),
            other => other,
        }
    }
}

/// Attaches what was attempted, and where, to a host error.
pub(crate) trait IoContext<T> {
    fn at(self, action: &'static str, offset: u64) -> Result<T>;
    fn on(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, offset: u64) -> Result<T> {
        self.map_err(|source| DiskError::Io {
            action,
            offset,
            source,
        })
    }

    fn on(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| DiskError::Path {
            action,
            path: path.to_owned(),
            source,
        })
    }
}
