//! A host file or block device as the backing of a disk.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, preadv, pwritev};

use super::{Backing, lock};
use crate::error::{DiskError, IoContext, Result};
use crate::iov;

/// Most buffers that the kernel takes in one call (`IOV_MAX`).
const MAX_BUFFERS: usize = 1024;

/// A host file or block device, locked for as long as it is open.
#[derive(Debug)]
pub struct FileBacking {
    file: File,
    read_only: bool,
    block_device: bool,
}

impl FileBacking {
    /// Opens an existing file or block device and locks it: readers share it, a writer has it
    /// alone.
    ///
    /// # Errors
    /// [`DiskError::Locked`] when another open file holds it, [`DiskError::Path`] when the host
    /// refuses, [`DiskError::Invalid`] when it is neither a file nor a block device.
    pub fn open(path: &Path, read_only: bool) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only);
        // A FIFO would otherwise hang the open until someone writes to it.
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NONBLOCK);
        Self::locked(options.open(path).on("open", path)?, path, read_only)
    }

    /// Creates a file that must not exist yet, open for writing and locked.
    ///
    /// # Errors
    /// [`DiskError::Path`] when the host refuses, for example because the file exists.
    pub fn create_new(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path);
        Self::locked(file.on("create", path)?, path, false)
    }

    /// Takes over a file that is open for reading and writing, and locks it; `path` is for
    /// messages.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub(crate) fn adopt(file: File, path: &Path) -> Result<Self> {
        Self::locked(file, path, false)
    }

    fn locked(file: File, path: &Path, read_only: bool) -> Result<Self> {
        let kind = file.metadata().on("examine", path)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let path = path.display();
            return Err(DiskError::invalid(format!(
                "{path} is not a file or block device"
            )));
        }
        match lock::lock(&file, !read_only) {
            Ok(()) => Ok(Self {
                file,
                read_only,
                block_device: kind.is_block_device(),
            }),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(DiskError::Locked {
                path: path.to_owned(),
            }),
            Err(e) => Err(e).on("lock", path),
        }
    }

    /// Whether this is a block device, whose length is fixed.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    fn fallocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        loop {
            return match fallocate(&self.file, flags, offset, len) {
                Ok(()) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
                Err(e) => Err(e.into()),
            };
        }
    }

    /// Zeros by plain writes, for hosts that cannot do better.
    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        let zeros = [0u8; super::ZERO_CHUNK];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeros.len() as u64);
            self.write_at(offset + done, &[IoSlice::new(&zeros[..n as usize])])?;
            done += n;
        }
        Ok(())
    }
}

impl Drop for FileBacking {
    fn drop(&mut self) {
        lock::unlock(&self.file);
    }
}

impl Backing for FileBacking {
    fn read_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let total = iov::len_mut(bufs);
        let mut done = 0;
        while done < total {
            let result = if done == 0 && bufs.len() <= MAX_BUFFERS {
                preadv(&self.file, bufs, offset)
            } else {
                let mut rest = iov::part_mut(bufs, done, total - done);
                let count = rest.len().min(MAX_BUFFERS);
                preadv(&self.file, &mut rest[..count], offset + done)
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n as u64,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let total = iov::len(bufs);
        let mut done = 0;
        while done < total {
            let result = if done == 0 {
                pwritev(&self.file, &bufs[..bufs.len().min(MAX_BUFFERS)], offset)
            } else {
                let rest = iov::part(bufs, done, total - done);
                pwritev(
                    &self.file,
                    &rest[..rest.len().min(MAX_BUFFERS)],
                    offset + done,
                )
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n as u64,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        if self.block_device {
            return Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?);
        }
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if len == 0 || self.fallocate(flags, offset, len)? {
            return Ok(());
        }
        self.write_zeroes(offset, len)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if len != 0 {
            // Where the host cannot, nothing is better than writing zeros.
            self.fallocate(flags, offset, len)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        if len == 0 || self.fallocate(flags, offset, len)? {
            return Ok(());
        }
        self.write_zero_bytes(offset, len)
    }

    fn reserve(&self, offset: u64, len: u64) -> io::Result<()> {
        if len != 0 {
            self.fallocate(FallocateFlags::empty(), offset, len)?;
        }
        Ok(())
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("disk");
        std::fs::write(&path, [7u8; 8192]).expect("write");
        path
    }

    #[test]
    fn a_writer_excludes_everyone_and_readers_share() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = file(dir.path());
        let writer = FileBacking::open(&path, false).expect("writer");
        for read_only in [false, true] {
            let second = FileBacking::open(&path, read_only).expect_err("refused");
            assert!(matches!(second, DiskError::Locked { .. }), "{second}");
        }
        drop(writer);
        let _one = FileBacking::open(&path, true).expect("reader");
        let _two = FileBacking::open(&path, true).expect("second reader");
        assert!(matches!(
            FileBacking::open(&path, false),
            Err(DiskError::Locked { .. })
        ));
    }

    #[test]
    fn a_closed_file_is_free_even_while_a_copy_of_its_descriptor_is_open() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = file(dir.path());
        let writer = FileBacking::open(&path, false).expect("writer");
        // As a child process has it between fork and exec.
        let _copy = writer.file.try_clone().expect("copy");
        drop(writer);
        FileBacking::open(&path, false).expect("a second writer");
    }

    #[test]
    fn many_buffers_and_holes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = FileBacking::open(&file(dir.path()), false).expect("open");
        let data: Vec<u8> = (0..6000u32).map(|i| i as u8).collect();
        let gather: Vec<IoSlice<'_>> = data.chunks(2).map(IoSlice::new).collect();
        file.write_at(100, &gather).expect("write");
        let mut back = vec![0u8; 6000];
        let mut scatter: Vec<IoSliceMut<'_>> = back.chunks_mut(3).map(IoSliceMut::new).collect();
        file.read_at(100, &mut scatter).expect("read");
        assert_eq!(back, data);
        file.punch_hole(4096, 1000).expect("punch");
        let mut hole = [1u8; 1000];
        file.read_at(4096, &mut [IoSliceMut::new(&mut hole)])
            .expect("read");
        assert!(iov::is_zero(&hole));
        assert_eq!(file.len().expect("length"), 8192);
        let past = file.read_at(8000, &mut [IoSliceMut::new(&mut hole)]);
        assert_eq!(
            past.expect_err("past the end").kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
