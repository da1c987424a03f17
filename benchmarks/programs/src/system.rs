//! What the kernel does for programs: calls, faults, processes.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::catalogue::{Setting, Work};

const PAGE: usize = 4096;

/// The result of a call that tells of failure by -1.
fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A system call that does next to nothing.
pub(crate) fn null_syscall(_: &Setting) -> io::Result<Work> {
    Ok(Box::new(|operations| {
        let mut done = 0;
        for _ in 0..operations {
            // SAFETY: no arguments. Not the library's function, which might remember the answer.
            let parent = unsafe { libc::syscall(libc::SYS_getppid) };
            done += u64::from(parent >= 0);
        }
        Ok(done)
    }))
}

/// Anonymous memory, given back when dropped.
#[derive(Debug)]
struct Mapping {
    address: *mut u8,
    length: usize,
}

impl Mapping {
    fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = address.cast();
        Ok(Self { address, length })
    }

    /// Asks for pages of the smallest size; a kernel that knows no others refuses, and may.
    fn small_pages(&self) {
        // SAFETY: the range is this mapping.
        unsafe { libc::madvise(self.address.cast(), self.length, libc::MADV_NOHUGEPAGE) };
    }

    /// Writes to a page and reads it back.
    fn touch(&self, page: usize) -> u64 {
        let offset = page * PAGE;
        assert!(offset < self.length);
        // SAFETY: the address lies within the mapping, and nothing else refers to it.
        unsafe {
            let place = self.address.add(offset);
            place.write_volatile(page as u8);
            u64::from(place.read_volatile())
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, which nobody uses any more.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

/// The first touch of pages, 1024 at a time.
pub(crate) fn page_faults(_: &Setting) -> io::Result<Work> {
    Ok(Box::new(|operations| {
        let mut left = operations as usize;
        let mut sum = 0;
        while left > 0 {
            let pages = left.min(1024);
            let mapping = Mapping::new(1024 * PAGE)?;
            mapping.small_pages();
            sum += (0..pages).map(|page| mapping.touch(page)).sum::<u64>();
            left -= pages;
        }
        Ok(sum)
    }))
}

/// Making and removing of a mapping.
pub(crate) fn mmap(_: &Setting) -> io::Result<Work> {
    Ok(Box::new(|operations| {
        for _ in 0..operations {
            drop(Mapping::new(64 << 10)?);
        }
        Ok(operations)
    }))
}

/// The two ends of a pipe: to read from, to write to.
fn new_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors.
    checked(unsafe { libc::pipe(ends.as_mut_ptr()) })?;
    // SAFETY: both are new and belong to nobody else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Reads one byte; `None` at the end.
fn read_byte(pipe: &OwnedFd) -> Option<u8> {
    let mut byte = 0u8;
    // SAFETY: there is room for one byte.
    let count = unsafe { libc::read(pipe.as_raw_fd(), (&raw mut byte).cast(), 1) };
    (count == 1).then_some(byte)
}

fn write_byte(pipe: &OwnedFd, byte: u8) -> bool {
    // SAFETY: there is one byte to read.
    let count = unsafe { libc::write(pipe.as_raw_fd(), (&raw const byte).cast(), 1) };
    count == 1
}

/// A process that answers each byte with the next.
#[derive(Debug)]
struct Echo {
    /// Taken when dropped, which ends the process.
    to: Option<OwnedFd>,
    from: OwnedFd,
    process: libc::pid_t,
}

impl Echo {
    fn start() -> io::Result<Self> {
        let (their_in, to) = new_pipe()?;
        let (from, their_out) = new_pipe()?;
        // SAFETY: the child uses only read, write and _exit, which are safe after a fork.
        let process = checked(unsafe { libc::fork() })?;
        if process == 0 {
            drop((to, from));
            while let Some(byte) = read_byte(&their_in) {
                if !write_byte(&their_out, byte.wrapping_add(1)) {
                    break;
                }
            }
            exit_now();
        }
        Ok(Self {
            to: Some(to),
            from,
            process,
        })
    }

    fn ask(&self, byte: u8) -> Option<u8> {
        let sent = self.to.as_ref().is_some_and(|to| write_byte(to, byte));
        if sent { read_byte(&self.from) } else { None }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.to = None;
        // Nobody is left to be told of a failure.
        let _ = wait_for(self.process);
    }
}

/// Ends a child at once.
fn exit_now() -> ! {
    // SAFETY: ends the process without running anything of the parent's that was copied.
    unsafe { libc::_exit(0) }
}

/// Waits for a child and gives its status.
fn wait_for(process: libc::pid_t) -> io::Result<libc::c_int> {
    let mut status = 0;
    // SAFETY: `status` is writable.
    checked(unsafe { libc::waitpid(process, &mut status, 0) })?;
    Ok(status)
}

/// Two processes that wait for each other.
pub(crate) fn pipe(_: &Setting) -> io::Result<Work> {
    let echo = Echo::start()?;
    Ok(Box::new(move |operations| {
        let mut sum = 0;
        for operation in 0..operations {
            let answer = echo.ask(operation as u8);
            sum += u64::from(answer.ok_or(io::ErrorKind::BrokenPipe)?);
        }
        Ok(sum)
    }))
}

static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// A signal, its handler, and the return from it.
pub(crate) fn signals(_: &Setting) -> io::Result<Work> {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    // SAFETY: the handler only adds to an atomic number.
    let before = unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    if before == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(Box::new(|operations| {
        let before = SIGNALS.load(Ordering::Relaxed);
        // SAFETY: no arguments.
        let (process, thread) = unsafe { (libc::getpid(), libc::gettid()) };
        for _ in 0..operations {
            // To this thread: the handler has run when the call returns.
            // SAFETY: the signal has a handler.
            let status = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
            if status != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(SIGNALS.load(Ordering::Relaxed) - before)
    }))
}

/// Processes that only end.
pub(crate) fn fork(_: &Setting) -> io::Result<Work> {
    Ok(Box::new(|operations| {
        let mut sum = 0;
        for _ in 0..operations {
            // SAFETY: the child does nothing but end.
            let process = checked(unsafe { libc::fork() })?;
            if process == 0 {
                exit_now();
            }
            sum += u64::from(wait_for(process)? == 0);
        }
        Ok(sum)
    }))
}

/// Processes that run this program anew, which then ends.
pub(crate) fn exec(_: &Setting) -> io::Result<Work> {
    let program = CString::new(std::env::current_exe()?.as_os_str().as_bytes())?;
    Ok(Box::new(move |operations| {
        let arguments = [program.as_ptr(), c"exit".as_ptr(), ptr::null()];
        let environment = [ptr::null()];
        let mut sum = 0;
        for _ in 0..operations {
            // SAFETY: the child only calls execve and _exit.
            let process = checked(unsafe { libc::fork() })?;
            if process == 0 {
                // SAFETY: both lists end with a null pointer; the texts live in the parent's copy.
                unsafe {
                    libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                    libc::_exit(1);
                }
            }
            if wait_for(process)? != 0 {
                return Err(io::Error::other("a process that was started failed"));
            }
            sum += 1;
        }
        Ok(sum)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_answers_with_the_next_byte() {
        let echo = Echo::start().unwrap();
        assert_eq!(echo.ask(4), Some(5));
        assert_eq!(echo.ask(255), Some(0));
    }

    #[test]
    fn pages_hold_what_was_written() {
        let mapping = Mapping::new(3 * PAGE).unwrap();
        assert_eq!((0..3).map(|page| mapping.touch(page)).sum::<u64>(), 3);
    }
}
