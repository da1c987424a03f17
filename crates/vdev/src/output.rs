//! A bounded byte pipe between a device and the host thread that carries its
//! output away, so that a guest's write costs a copy and not a system call.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a guest may be held up by a reader that does not read.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Default)]
struct State {
    bytes: VecDeque<u8>,
    writer_gone: bool,
    reader_gone: bool,
    /// Waking someone is a system call, so it is done only for who waits.
    writer_waits: bool,
    reader_waits: bool,
    /// The writer's patience ran out, and nothing was read since.
    stalled: bool,
}

struct Shared {
    capacity: usize,
    state: Mutex<State>,
    filled: Condvar,
    drained: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pipe that holds up to `capacity` bytes (at least one).
pub fn output_pipe(capacity: usize) -> (OutputWriter, OutputReader) {
    let shared = Arc::new(Shared {
        capacity: capacity.max(1),
        state: Mutex::default(),
        filled: Condvar::new(),
        drained: Condvar::new(),
    });
    (
        OutputWriter {
            shared: Arc::clone(&shared),
        },
        OutputReader { shared },
    )
}

/// The device's end. A write to a full pipe waits for the reader, up to half
/// a second; after that writes fail with `TimedOut` at once until something
/// is read. Once the reader is gone they fail with `BrokenPipe`. Flushing
/// does nothing.
pub struct OutputWriter {
    shared: Arc<Shared>,
}

impl OutputWriter {
    /// Waits until the pipe has room or waiting is over.
    fn wait_for_room(&self) -> MutexGuard<'_, State> {
        let full = |state: &mut State| {
            let full = state.bytes.len() >= self.shared.capacity;
            state.writer_waits = full && !state.reader_gone && !state.stalled;
            state.writer_waits
        };
        let state = self.shared.lock();
        let waited = self
            .shared
            .drained
            .wait_timeout_while(state, PATIENCE, full);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state.writer_waits = false;
        state.stalled |= timeout.timed_out();
        state
    }
}

impl Write for OutputWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut state = self.wait_for_room();
        if state.reader_gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = buffer
            .len()
            .min(self.shared.capacity.saturating_sub(state.bytes.len()));
        if count == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        state.bytes.extend(&buffer[..count]);
        let wake = std::mem::take(&mut state.reader_waits);
        drop(state);
        if wake {
            self.shared.filled.notify_one();
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for OutputWriter {
    fn drop(&mut self) {
        self.shared.lock().writer_gone = true;
        self.shared.filled.notify_all();
    }
}

/// The host's end.
pub struct OutputReader {
    shared: Arc<Shared>,
}

impl OutputReader {
    /// Waits for output and appends all there is to `buffer`. False once the
    /// writer is gone and everything was read.
    pub fn read_into(&self, buffer: &mut Vec<u8>) -> bool {
        let mut state = self.shared.lock();
        while state.bytes.is_empty() && !state.writer_gone {
            state.reader_waits = true;
            state = self
                .shared
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        take(&self.shared, state, buffer)
    }

    /// Like [`OutputReader::read_into`] without waiting: false if there was
    /// nothing.
    pub fn try_read_into(&self, buffer: &mut Vec<u8>) -> bool {
        take(&self.shared, self.shared.lock(), buffer)
    }
}

fn take(shared: &Shared, mut state: MutexGuard<'_, State>, buffer: &mut Vec<u8>) -> bool {
    let any = !state.bytes.is_empty();
    buffer.extend(state.bytes.drain(..));
    state.stalled = false;
    let wake = std::mem::take(&mut state.writer_waits);
    drop(state);
    if wake {
        shared.drained.notify_one();
    }
    any
}

impl Drop for OutputReader {
    fn drop(&mut self) {
        self.shared.lock().reader_gone = true;
        self.shared.drained.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_the_end_is_seen() {
        let (mut writer, reader) = output_pipe(16);
        let mut read = vec![];
        assert!(!reader.try_read_into(&mut read));
        writer.write_all(b"hello").unwrap();
        writer.write_all(b" there").unwrap();
        assert!(reader.read_into(&mut read));
        drop(writer);
        assert!(!reader.read_into(&mut read));
        assert_eq!(read, b"hello there");
    }

    #[test]
    fn a_full_pipe_waits_for_its_reader() {
        let (mut writer, reader) = output_pipe(4);
        let sent: Vec<u8> = (0..100).collect();
        let expected = sent.clone();
        let thread = std::thread::spawn(move || writer.write_all(&sent));
        let mut read = vec![];
        while reader.read_into(&mut read) {
            assert!(read.len() <= 100);
        }
        assert_eq!(read, expected);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_lost_reader_frees_the_writer() {
        let (mut writer, reader) = output_pipe(1);
        writer.write_all(b"x").unwrap();
        let thread = std::thread::spawn(move || writer.write_all(b"y"));
        drop(reader);
        let error = thread.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_reader_that_sleeps_holds_nobody_up_for_long() {
        let (mut writer, reader) = output_pipe(2);
        writer.write_all(b"ab").unwrap();
        for _ in 0..1000 {
            let error = writer.write(b"c").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        let mut read = vec![];
        assert!(reader.try_read_into(&mut read));
        assert_eq!(writer.write(b"de").unwrap(), 2);
        assert!(reader.try_read_into(&mut read));
        assert_eq!(read, b"abde");
    }
}
