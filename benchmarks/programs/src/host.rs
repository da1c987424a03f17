//! Which processors threads run on.

use std::io;
use std::mem;

/// Processors that this thread may run on.
pub(crate) fn allowed() -> io::Result<Vec<usize>> {
    // SAFETY: a set of processors is plain bits; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is writable and of the size given; 0 is the calling thread.
    let status = unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    let limit = 8 * mem::size_of_val(&set);
    // SAFETY: every number is within the set.
    Ok((0..limit)
        .filter(|number| unsafe { libc::CPU_ISSET(*number, &set) })
        .collect())
}

/// Keeps this thread on one processor.
pub(crate) fn stay_on(processor: usize) -> io::Result<()> {
    // SAFETY: as above.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: callers pass a number out of a set of this size.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: `set` is readable and of the size given.
    let status = unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &set) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Keeps this thread on the processor that it happens to run on.
pub(crate) fn stay_on_this_processor() -> io::Result<()> {
    // SAFETY: no arguments.
    let processor = unsafe { libc::sched_getcpu() };
    let processor = usize::try_from(processor).map_err(|_| io::Error::last_os_error())?;
    stay_on(processor)
}

/// Two processors for two threads.
pub(crate) fn two() -> io::Result<[usize; 2]> {
    match allowed()?[..] {
        [first, second, ..] => Ok([first, second]),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "only one processor",
        )),
    }
}
