//! Serial ports: 16550A registers over a byte sink, and host input that
//! waits for a guest that receives and for room in the receive FIFO.
//!
//! A driver reads and drops what it finds in the FIFO while it probes a port.
//! Input that was there before the guest (a script on standard input, say)
//! would lose its beginning, so it is held back until the guest enables the
//! receive interrupt or polls the line status.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::interrupts::IrqLine;

/// First of the eight I/O ports of COM1 (interrupt line 4).
pub const COM1_PORT: u16 = 0x3F8;
/// First of the eight I/O ports of COM2 (interrupt line 3).
pub const COM2_PORT: u16 = 0x2F8;
pub(crate) const COM1_IRQ: u8 = 4;
pub(crate) const COM2_IRQ: u8 = 3;

/// Host input that waits for the guest, in bytes.
const INPUT_QUEUE: usize = 0x1_0000;

const REG_DATA: u8 = 0;
const REG_INTERRUPT_ENABLE: u8 = 1;
const REG_INTERRUPT_ID: u8 = 2;
const REG_LINE_CONTROL: u8 = 3;
const REG_MODEM_CONTROL: u8 = 4;
const REG_LINE_STATUS: u8 = 5;
const RECEIVE_ENABLED: u8 = 1;
const ENABLE_ALL: u8 = 0xF;
const ID_NONE: u8 = 1;
/// Received data available, FIFOs enabled.
const ID_RECEIVED: u8 = 0xC4;
const STATUS_DATA_READY: u8 = 1;
const DIVISOR_LATCH: u8 = 0x80;
const MODEM_DEFAULT: u8 = 8;
const LINE_8N1: u8 = 3;

/// Called when all queued input has gone into the guest; more is welcome. It
/// may run on a thread of a virtual processor and should only wake whoever
/// has the input.
pub type SerialNotify = Box<dyn Fn() + Send + Sync>;

/// A serial port's host side.
pub struct SerialConfig {
    /// Takes what the guest sends, byte by byte. It should not block for
    /// long; see [`output_pipe`](crate::output_pipe).
    pub output: Box<dyn Write + Send>,
    /// Told when the guest drained the input.
    pub drained: Option<SerialNotify>,
}

struct Line(IrqLine);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

/// So many reads of the line status, one after the other, are what polling
/// for input looks like. Drivers that probe or send read it once or twice;
/// Linux throws away what it receives while it probes.
const POLLING: u8 = 8;

struct State {
    uart: Serial<Line, NoEvents, Box<dyn Write + Send>>,
    input: VecDeque<u8>,
    /// The guest has not yet taken everything since the last notification.
    draining: bool,
    /// Reads of the line status with no other access in between, up to
    /// [`POLLING`].
    status_reads: u8,
}

/// One serial port.
pub(crate) struct SerialPort {
    state: Mutex<State>,
    drained: Option<SerialNotify>,
    lost: AtomicU64,
}

impl SerialPort {
    pub(crate) fn new(config: SerialConfig, line: IrqLine) -> Self {
        let uart = Serial::new(Line(line), config.output);
        let state = State {
            uart,
            input: VecDeque::new(),
            draining: false,
            status_reads: 0,
        };
        Self {
            state: Mutex::new(state),
            drained: config.drained,
            lost: AtomicU64::new(0),
        }
    }

    /// Reads register 0 to 7.
    pub(crate) fn read(&self, register: u8) -> u8 {
        let mut state = self.lock();
        state.status_reads = if register == REG_LINE_STATUS {
            (state.status_reads + 1).min(POLLING)
        } else {
            0
        };
        let due = if state.status_reads == POLLING {
            state.refill()
        } else {
            false
        };
        let value = state.read(register);
        let due = due || register == REG_DATA && state.receiving() && state.refill();
        drop(state);
        self.notify(due);
        value
    }

    /// Writes register 0 to 7.
    pub(crate) fn write(&self, register: u8, value: u8) {
        let mut state = self.lock();
        state.status_reads = 0;
        if state.uart.write(register, value).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        // A probe sets all enable bits for a moment, to see which are there.
        let probe = register == REG_INTERRUPT_ENABLE && value & ENABLE_ALL == ENABLE_ALL;
        if register == REG_DATA || probe {
            return;
        }
        // Input waits while the guest does not receive, and while the port
        // loops back to itself.
        let due = state.receiving() && state.refill();
        drop(state);
        self.notify(due);
    }

    /// Queues host input and returns how many of the bytes were taken. The
    /// rest has to be offered again once the guest drained some.
    pub(crate) fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let count = bytes.len().min(INPUT_QUEUE - state.input.len());
        state.input.extend(&bytes[..count]);
        state.draining |= count > 0;
        let due = state.receiving() && state.refill();
        drop(state);
        self.notify(due);
        count
    }

    /// How many bytes [`SerialPort::enqueue`] takes now.
    pub(crate) fn room(&self) -> usize {
        INPUT_QUEUE - self.lock().input.len()
    }

    /// Bytes that the output refused.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Registers as after power-on; queued input stays.
    pub(crate) fn reset(&self) {
        for (register, value) in [
            (REG_LINE_CONTROL, 0),
            (REG_INTERRUPT_ENABLE, 0),
            (REG_LINE_CONTROL, LINE_8N1),
            (REG_MODEM_CONTROL, MODEM_DEFAULT),
        ] {
            self.write(register, value);
        }
    }

    fn notify(&self, due: bool) {
        if let Some(drained) = self.drained.as_ref().filter(|_| due) {
            drained();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read(&mut self, register: u8) -> u8 {
        let value = self.uart.read(register);
        // The identification follows the receive FIFO until it is empty, not
        // only until the first byte of it was read.
        if register == REG_INTERRUPT_ID && value & ID_NONE != 0 && self.receive_pending() {
            return ID_RECEIVED;
        }
        value
    }

    fn receive_pending(&mut self) -> bool {
        self.uart.read(REG_LINE_STATUS) & STATUS_DATA_READY != 0 && self.receiving()
    }

    /// The receive interrupt is enabled.
    fn receiving(&mut self) -> bool {
        // With the divisor latch open the enable register is out of sight.
        let visible = self.uart.read(REG_LINE_CONTROL) & DIVISOR_LATCH == 0;
        visible && self.uart.read(REG_INTERRUPT_ENABLE) & RECEIVE_ENABLED != 0
    }

    /// Moves queued input into an empty FIFO; whether everything is in and
    /// the host should be told.
    fn refill(&mut self) -> bool {
        let empty = self.uart.read(REG_LINE_STATUS) & STATUS_DATA_READY == 0;
        if self.input.is_empty() {
            return empty && std::mem::take(&mut self.draining);
        }
        if empty {
            let (chunk, _) = self.input.as_slices();
            // In loopback nothing is taken; nothing else can fail here.
            let count = self.uart.enqueue_raw_bytes(chunk).unwrap_or(0);
            self.input.drain(..count);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::interrupts::Interrupts;
    use crate::interrupts::test_sink::Recorder;
    use crate::output::{OutputReader, output_pipe};

    struct Fixture {
        port: SerialPort,
        sink: Arc<Recorder>,
        output: OutputReader,
        drained: Arc<AtomicUsize>,
    }

    fn fixture() -> Fixture {
        let sink = Arc::new(Recorder::default());
        let interrupts = Arc::new(Interrupts::new(sink.clone(), false));
        interrupts.write_ioapic(0, 0x18);
        interrupts.write_ioapic(0x10, 0x34);
        let (writer, output) = output_pipe(1024);
        let drained = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&drained);
        let notify: SerialNotify = Box::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let config = SerialConfig {
            output: Box::new(writer),
            drained: Some(notify),
        };
        let port = SerialPort::new(config, IrqLine::new(&interrupts, COM1_IRQ));
        Fixture {
            port,
            sink,
            output,
            drained,
        }
    }

    /// What a driver's interrupt handler does: reads while data is ready, at
    /// most 256 bytes.
    fn handle(port: &SerialPort, read: &mut Vec<u8>) {
        if port.read(REG_INTERRUPT_ID) & ID_NONE != 0 {
            return;
        }
        for _ in 0..256 {
            if port.read(REG_LINE_STATUS) & STATUS_DATA_READY == 0 {
                break;
            }
            read.push(port.read(REG_DATA));
        }
    }

    #[test]
    fn output_reaches_the_sink() {
        let Fixture { port, output, .. } = fixture();
        assert_eq!(port.read(REG_LINE_STATUS), 0x60);
        for byte in *b"boot\n" {
            port.write(REG_DATA, byte);
        }
        let mut read = vec![];
        output.try_read_into(&mut read);
        assert_eq!(read, b"boot\n");
        drop(output);
        port.write(REG_DATA, b'x');
        assert_eq!(port.lost(), 1);
    }

    #[test]
    fn divisor_latch_and_scratch() {
        let Fixture { port, output, .. } = fixture();
        port.write(REG_LINE_CONTROL, 0x83);
        port.write(REG_DATA, 1);
        assert_eq!(port.read(REG_DATA), 1);
        port.write(REG_LINE_CONTROL, 3);
        port.write(7, 0x5A);
        assert_eq!(port.read(7), 0x5A);
        assert!(!output.try_read_into(&mut vec![]));
    }

    #[test]
    fn transmit_interrupt() {
        let Fixture { port, sink, .. } = fixture();
        port.write(REG_INTERRUPT_ENABLE, 2);
        assert_eq!(sink.take_vectors(), [0x34]);
        assert_eq!(port.read(REG_INTERRUPT_ID), 0xC2);
        assert_eq!(port.read(REG_INTERRUPT_ID), 0xC1);
        port.write(REG_DATA, b'a');
        assert_eq!(sink.take_vectors(), [0x34]);
    }

    #[test]
    fn pasted_input_arrives_whole() {
        let Fixture {
            port,
            sink,
            drained,
            ..
        } = fixture();
        port.write(REG_INTERRUPT_ENABLE, 1);
        let pasted: Vec<u8> = (0..3000u32).map(|byte| byte as u8).collect();
        assert_eq!(port.enqueue(&pasted[..10]), 10);
        assert_eq!(port.enqueue(&pasted[10..]), 2990);
        let mut read = vec![];
        while !sink.take().is_empty() {
            handle(&port, &mut read);
        }
        assert_eq!(read, pasted);
        assert_eq!(drained.load(Ordering::Relaxed), 1);
        assert_eq!(port.room(), INPUT_QUEUE);
    }

    #[test]
    fn input_is_bounded_and_nothing_is_dropped() {
        let Fixture { port, .. } = fixture();
        port.write(REG_INTERRUPT_ENABLE, RECEIVE_ENABLED);
        let pasted = vec![b'x'; 2 * INPUT_QUEUE];
        let taken = port.enqueue(&pasted);
        assert_eq!(taken, INPUT_QUEUE);
        assert_eq!(port.room(), 64, "one FIFO has moved on");
        assert_eq!(port.enqueue(&pasted), 64);
        assert_eq!(port.enqueue(&pasted), 0);
        for _ in 0..INPUT_QUEUE + 64 {
            assert_eq!(port.read(REG_DATA), b'x');
        }
        assert_eq!(port.read(REG_LINE_STATUS) & STATUS_DATA_READY, 0);
    }

    #[test]
    fn input_waits_out_loopback() {
        let Fixture { port, .. } = fixture();
        port.write(REG_INTERRUPT_ENABLE, RECEIVE_ENABLED);
        port.write(REG_MODEM_CONTROL, 0x10);
        assert_eq!(port.enqueue(b"hi"), 2);
        assert_eq!(port.read(REG_LINE_STATUS) & STATUS_DATA_READY, 0);
        port.write(REG_MODEM_CONTROL, MODEM_DEFAULT);
        assert_eq!([port.read(REG_DATA), port.read(REG_DATA)], *b"hi");
        port.enqueue(b"!");
        port.write(REG_LINE_CONTROL, 0x80);
        port.reset();
        assert_eq!(
            (port.read(REG_INTERRUPT_ENABLE), port.read(REG_DATA)),
            (0, b'!')
        );
    }

    #[test]
    fn a_probing_driver_takes_no_input() {
        let Fixture { port, sink, .. } = fixture();
        assert_eq!(port.enqueue(b"typed ahead"), 11);
        for _ in 0..3 {
            for register in [
                REG_LINE_STATUS,
                REG_DATA,
                REG_INTERRUPT_ID,
                6,
                REG_LINE_STATUS,
            ] {
                port.read(register);
            }
            port.write(REG_INTERRUPT_ENABLE, ENABLE_ALL);
            port.write(REG_INTERRUPT_ENABLE, 0);
        }
        port.write(REG_INTERRUPT_ENABLE, RECEIVE_ENABLED);
        assert!(!sink.take().is_empty());
        let mut read = vec![];
        handle(&port, &mut read);
        assert_eq!(read, b"typed ahead");
    }

    #[test]
    fn a_polling_guest_gets_input() {
        let Fixture { port, .. } = fixture();
        let pasted = vec![b'p'; 200];
        port.enqueue(&pasted);
        let mut read = vec![];
        for _ in 0..1000 {
            if port.read(REG_LINE_STATUS) & STATUS_DATA_READY != 0 {
                read.push(port.read(REG_DATA));
            }
        }
        assert_eq!(read, pasted);
    }
}
