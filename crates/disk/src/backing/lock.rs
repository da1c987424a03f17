//! Locks that keep two processes from changing one disk file.
//!
//! Open-file-description locks belong to the open file and not to the process, so a second open
//! in the same process is refused too. A writer locks every byte. A reader shares byte 0 with
//! other readers, and also speaks QEMU's convention (byte 101: "I write", byte 201: "nobody else
//! may write"), so that neither side reads a disk while the other changes it.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

const QEMU_WRITES: i64 = 101;
const QEMU_FORBIDS_WRITES: i64 = 201;

/// Takes the lock for reading or writing without waiting.
///
/// # Errors
/// `WouldBlock` when someone else holds a lock that conflicts; otherwise the host's error.
pub(super) fn lock(file: &File, write: bool) -> io::Result<()> {
    let taken = if write {
        lock_writer(file)
    } else {
        lock_reader(file)
    };
    match taken {
        Ok(()) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(io::ErrorKind::WouldBlock.into()),
        // Some network file systems know no byte-range locks; their whole-file lock must do.
        Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP) => lock_whole_file(file, write),
        Err(other) => Err(other.into()),
    }
}

/// Gives the lock back. Closing the file would do so too, but only once a process that this one is
/// just starting has closed its copy.
pub(super) fn unlock(file: &File) {
    use rustix::fs::{FlockOperation, flock};
    // Nothing can be done about a failure; the close that follows is the second try.
    let _ = set(file, libc::F_UNLCK, 0, 0);
    let _ = flock(file, FlockOperation::NonBlockingUnlock);
}

fn lock_writer(file: &File) -> nix::Result<()> {
    set(file, libc::F_WRLCK, 0, 0)
}

fn lock_reader(file: &File) -> nix::Result<()> {
    set(file, libc::F_RDLCK, 0, 1)?;
    set(file, libc::F_RDLCK, QEMU_FORBIDS_WRITES, 1)?;
    if held_by_other(file, QEMU_WRITES)? {
        Err(Errno::EAGAIN)
    } else {
        Ok(())
    }
}

fn range(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn set(file: &File, kind: libc::c_int, start: i64, len: i64) -> nix::Result<()> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, len))).map(|_| ())
}

fn held_by_other(file: &File, byte: i64) -> nix::Result<bool> {
    let mut probe = range(libc::F_WRLCK, byte, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK)
}

fn lock_whole_file(file: &File, write: bool) -> io::Result<()> {
    use rustix::fs::{FlockOperation, flock};
    let operation = if write {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    Ok(flock(file, operation)?)
}
