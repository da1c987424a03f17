//! Requests on their way: the kernel's asynchronous I/O (io_submit), which is the same in all
//! kernels.

use std::io;
use std::os::fd::RawFd;

use crate::device::Buffer;

/// The kernel's `struct iocb`, on machines with the lower byte first.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Control {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    event_flags: u32,
    event_descriptor: u32,
}

/// The kernel's `struct io_event`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Event {
    data: u64,
    control: u64,
    result: i64,
    result2: i64,
}

const READ: u16 = 0;
const WRITE: u16 = 1;

fn check(result: libc::c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A queue with a buffer for each request at once.
pub(crate) struct Requests {
    context: libc::c_ulong,
    descriptor: RawFd,
    write: bool,
    buffers: Vec<Buffer>,
    controls: Vec<Control>,
    events: Vec<Event>,
    on_their_way: usize,
}

impl Requests {
    /// A queue for requests of the length of `buffers`.
    pub(crate) fn new(descriptor: RawFd, write: bool, buffers: Vec<Buffer>) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        let depth = buffers.len();
        // SAFETY: the kernel writes to `context`, which is there.
        check(unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) })?;
        Ok(Self {
            context,
            descriptor,
            write,
            controls: vec![Control::default(); depth],
            events: vec![Event::default(); depth],
            buffers,
            on_their_way: 0,
        })
    }

    /// A buffer, while its request is not on its way.
    pub(crate) fn buffer(&mut self, slot: usize) -> &mut Buffer {
        &mut self.buffers[slot]
    }

    /// Sends the requests of some slots with one system call; each comes with its offset.
    pub(crate) fn send(&mut self, slots: &[(usize, u64)]) -> io::Result<()> {
        let mut pointers = Vec::with_capacity(slots.len());
        for &(slot, offset) in slots {
            let control = &mut self.controls[slot];
            *control = Control {
                data: slot as u64,
                opcode: if self.write { WRITE } else { READ },
                descriptor: self.descriptor as u32,
                buffer: self.buffers[slot].address(),
                bytes: self.buffers[slot].len() as u64,
                offset: offset as i64,
                ..Control::default()
            };
            pointers.push(std::ptr::from_mut(control));
        }
        let mut sent = 0;
        while sent < pointers.len() {
            let rest = &pointers[sent..];
            // SAFETY: the controls and the buffers stay where they are: both are dropped only
            // after the kernel is done with them (see `drop`).
            let result = unsafe {
                libc::syscall(libc::SYS_io_submit, self.context, rest.len(), rest.as_ptr())
            };
            sent += check(result)?;
        }
        self.on_their_way += sent;
        Ok(())
    }

    /// Waits for at least one request; the slots of all that are done.
    pub(crate) fn receive(&mut self, done: &mut Vec<usize>) -> io::Result<()> {
        done.clear();
        // SAFETY: the kernel writes at most as many events as there is room for.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                1,
                self.events.len(),
                self.events.as_mut_ptr(),
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        let count = check(result)?;
        self.on_their_way -= count;
        for event in &self.events[..count] {
            let slot = event.data as usize;
            match usize::try_from(event.result) {
                Ok(bytes) if bytes == self.buffers[slot].len() => done.push(slot),
                Ok(bytes) => return Err(io::Error::other(format!("only {bytes} bytes"))),
                Err(_) => return Err(io::Error::from_raw_os_error(-event.result as i32)),
            }
        }
        Ok(())
    }

    /// Requests that are on their way.
    pub(crate) fn len(&self) -> usize {
        self.on_their_way
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // SAFETY: the context is this queue's; the kernel waits for what is on its way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
