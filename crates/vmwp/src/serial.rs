//! The serial console between the host's ends and the guest's UART.
//!
//! The host's ends live as long as the run; the UART is a new one after every
//! reset of the guest. Output goes through a pipe to a thread that writes it,
//! so that a slow terminal does not stop a processor; input waits in a queue
//! until the UART takes it.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vdev::{Chipset, OutputWriter, SerialConfig, output_pipe};

use crate::config::{Console, StopRequest};
use crate::console;

/// Output that waits for the terminal, in bytes.
const OUTPUT_CAPACITY: usize = 256 << 10;
/// Input that waits for the guest, in bytes; the sender waits beyond it.
const INPUT_CAPACITY: usize = 1 << 20;

#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    chipset: Option<Arc<Chipset>>,
    closed: bool,
}

struct Shared {
    input: Mutex<Input>,
    changed: Condvar,
    output: Mutex<Option<OutputWriter>>,
}

impl Shared {
    fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues input; waits while the queue is full.
    fn push(&self, bytes: &[u8]) {
        let mut input = self.input();
        while input.bytes.len() + bytes.len() > INPUT_CAPACITY && !input.closed {
            input = self
                .changed
                .wait(input)
                .unwrap_or_else(PoisonError::into_inner);
        }
        input.bytes.extend(bytes);
        self.changed.notify_all();
    }

    /// Moves input to the UART as it takes it.
    fn pump(&self) {
        let mut input = self.input();
        while !input.closed {
            if let Some(chipset) = input.chipset.clone().filter(|_| !input.bytes.is_empty()) {
                let taken = chipset.serial_input(0, input.bytes.make_contiguous());
                input.bytes.drain(..taken);
                if taken > 0 {
                    self.changed.notify_all();
                    continue;
                }
            }
            input = self
                .changed
                .wait(input)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The host's ends of the serial console.
pub(crate) struct SerialConsole {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    _terminal: Option<console::RawTerminal>,
}

/// Where a UART writes: the pipe that outlives it.
struct Sink(Arc<Shared>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut *self.0.output.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(writer) => writer.write(bytes),
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl SerialConsole {
    /// Opens the console and starts its threads. `stop` is requested when the
    /// person ends the VM.
    pub(crate) fn open(console: Console, stop: &StopRequest) -> std::io::Result<Self> {
        let (writer, reader) = output_pipe(OUTPUT_CAPACITY);
        let shared = Arc::new(Shared {
            input: Mutex::default(),
            changed: Condvar::new(),
            output: Mutex::new(Some(writer)),
        });
        let mut terminal = None;
        let feed = shared.clone();
        let output: Box<dyn Write + Send> = match console {
            Console::Stdio => {
                terminal = console::RawTerminal::enter()?;
                let stop = stop.clone();
                console::read_stdin(move |bytes| feed.push(bytes), move || stop.request())?;
                Box::new(std::io::stdout())
            }
            Console::Captured { input, output } => {
                std::thread::Builder::new()
                    .name("console-input".into())
                    .spawn(move || {
                        while let Ok(bytes) = input.recv() {
                            feed.push(&bytes);
                        }
                    })?;
                output
            }
        };
        let mut threads = Vec::new();
        let copy = move || copy_output(&reader, output);
        threads.push(
            std::thread::Builder::new()
                .name("console-output".into())
                .spawn(copy)?,
        );
        let pump = shared.clone();
        let pump = std::thread::Builder::new()
            .name("console-pump".into())
            .spawn(move || pump.pump());
        threads.push(pump?);
        Ok(Self {
            shared,
            threads,
            _terminal: terminal,
        })
    }

    /// The host side of a new UART.
    pub(crate) fn port(&self) -> SerialConfig {
        let drained = self.shared.clone();
        SerialConfig {
            output: Box::new(Sink(self.shared.clone())),
            drained: Some(Box::new(move || drained.changed.notify_all())),
        }
    }

    /// Input goes to this chipset's first serial port from now on.
    pub(crate) fn connect(&self, chipset: Option<Arc<Chipset>>) {
        self.shared.input().chipset = chipset;
        self.shared.changed.notify_all();
    }
}

impl Drop for SerialConsole {
    fn drop(&mut self) {
        {
            let mut input = self.shared.input();
            input.closed = true;
            input.chipset = None;
        }
        self.shared.changed.notify_all();
        // The writer's end lets the output thread finish what there is.
        self.shared
            .output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn copy_output(reader: &vdev::OutputReader, mut output: Box<dyn Write + Send>) {
    let mut buffer = Vec::new();
    while reader.read_into(&mut buffer) {
        // A terminal that is gone does not stop the VM.
        let _ = output.write_all(&buffer).and_then(|()| output.flush());
        buffer.clear();
    }
}
