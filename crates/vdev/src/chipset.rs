//! The chipset: owns the devices and gives each guest access to the one that
//! claims the address.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::fw_cfg::{self, FwCfg};
use crate::i8042::{self, I8042};
use crate::interrupts::{InterruptSink, Interrupts, IrqLine};
use crate::ioapic::{IOAPIC_GPA, IOAPIC_PINS};
use crate::pit::{self, Pit};
use crate::power::{self, Power};
use crate::rtc::{self, Now, Rtc};
use crate::serial::{COM1_IRQ, COM1_PORT, COM2_IRQ, COM2_PORT, SerialConfig, SerialPort};
use crate::test_devices::{self as test, HvTestRequest, Scratch, TestDeviceConfig};
use crate::{pic, test_devices};

const IOAPIC_SIZE: u64 = 0x1000;
const TIMER_IRQ: u8 = 0;
const RTC_IRQ: u8 = 8;
/// System control port B.
const CONTROL_B_PORT: u16 = 0x61;
/// The ports that PC software writes to pass time.
const DELAY_PORTS: [u16; 2] = [0x80, 0xED];

/// Something that concerns the machine as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChipsetEvent {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// A test image ended. Its convention: the process exits with
    /// `code << 1 | 1`.
    DebugExit {
        /// What the image wrote.
        code: u32,
    },
    /// A SynIC test asks the host for something.
    HvTestDevice(HvTestRequest),
    /// A device was programmed: ask for [`Chipset::next_deadline`] again.
    DeadlineChanged,
}

/// What the chipset consists of.
#[derive(Default)]
pub struct ChipsetConfig {
    /// COM1 at [`COM1_PORT`].
    pub com1: Option<SerialConfig>,
    /// COM2 at [`COM2_PORT`].
    pub com2: Option<SerialConfig>,
    /// An 8259 pair and an 8254 timer. Without them port 0x61 reads 0.
    pub legacy_pic_pit: bool,
    /// The devices that test images drive.
    pub test_devices: Option<TestDeviceConfig>,
}

struct TestDevices {
    scratch: Mutex<Scratch>,
    fw_cfg: Mutex<FwCfg>,
    config: TestDeviceConfig,
}

impl TestDevices {
    fn new(config: TestDeviceConfig) -> Self {
        let fw_cfg = Mutex::new(FwCfg::new(config.fw_cfg));
        Self {
            scratch: Mutex::new(Scratch::new()),
            fw_cfg,
            config,
        }
    }
}

/// The chipset of one virtual machine. Every device has its own lock, so it
/// can be shared by the threads of all virtual processors as it is.
pub struct Chipset {
    clock: Arc<dyn Clock>,
    interrupts: Arc<Interrupts>,
    com1: Option<SerialPort>,
    com2: Option<SerialPort>,
    rtc: Mutex<Rtc>,
    rtc_line: IrqLine,
    rtc_asserted: AtomicBool,
    pit: Option<Mutex<Pit>>,
    pit_line: IrqLine,
    power: Mutex<Power>,
    i8042: Mutex<I8042>,
    test: Option<TestDevices>,
    unclaimed_reads: AtomicU64,
    unclaimed_writes: AtomicU64,
}

impl Chipset {
    /// Assembles a chipset in its power-on state.
    pub fn new(config: ChipsetConfig, sink: Arc<dyn InterruptSink>, clock: Arc<dyn Clock>) -> Self {
        let interrupts = Arc::new(Interrupts::new(sink, config.legacy_pic_pit));
        let serial = |config: Option<SerialConfig>, irq| {
            config.map(|config| SerialPort::new(config, IrqLine::new(&interrupts, irq)))
        };
        Self {
            com1: serial(config.com1, COM1_IRQ),
            com2: serial(config.com2, COM2_IRQ),
            rtc: Mutex::new(Rtc::new()),
            rtc_line: IrqLine::new(&interrupts, RTC_IRQ),
            rtc_asserted: AtomicBool::new(false),
            pit: config.legacy_pic_pit.then(|| Mutex::new(Pit::new())),
            pit_line: IrqLine::new(&interrupts, TIMER_IRQ),
            power: Mutex::new(Power::new()),
            i8042: Mutex::new(I8042::new()),
            test: config.test_devices.map(TestDevices::new),
            unclaimed_reads: AtomicU64::new(0),
            unclaimed_writes: AtomicU64::new(0),
            interrupts,
            clock,
        }
    }

    /// Reads `size` (1, 2 or 4) bytes from I/O space. Nobody's port reads
    /// all ones.
    pub fn io_read(&self, port: u16, size: u8) -> u32 {
        let mask = size_mask(size);
        if let Some(value) = self.read_wide(port) {
            return value & mask;
        }
        let mut value = 0;
        let mut claimed = false;
        for index in 0..size.min(4) {
            let byte = byte_port(port, size, index.into()).and_then(|port| self.read_byte(port));
            claimed |= byte.is_some();
            value |= u32::from(byte.unwrap_or(0xFF)) << (8 * index);
        }
        if !claimed {
            self.unclaimed_reads.fetch_add(1, Ordering::Relaxed);
        }
        value
    }

    /// Writes `size` (1, 2 or 4) bytes to I/O space. Writes to nobody's port
    /// are dropped.
    #[must_use]
    pub fn io_write(&self, port: u16, size: u8, value: u32) -> Option<ChipsetEvent> {
        if let Some(outcome) = self.write_wide(port, size, value & size_mask(size)) {
            return outcome;
        }
        let mut event = None;
        let mut claimed = false;
        for (index, byte) in (0u16..4).zip(value.to_le_bytes()).take(size.into()) {
            let port = byte_port(port, size, index);
            if let Some(outcome) = port.and_then(|port| self.write_byte(port, byte)) {
                claimed = true;
                event = event.or(outcome);
            }
        }
        if !claimed && !DELAY_PORTS.contains(&port) {
            self.unclaimed_writes.fetch_add(1, Ordering::Relaxed);
        }
        event
    }

    /// Reads `size` (1 to 8) bytes of guest-physical memory that has no
    /// memory behind it. Nobody's address reads all ones.
    pub fn mmio_read(&self, gpa: u64, size: u8) -> u64 {
        let mask = u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)));
        if let Some(offset) = offset_in(gpa, IOAPIC_GPA, IOAPIC_SIZE) {
            return u64::from(self.interrupts.read_ioapic(offset)) & mask;
        }
        match (
            &self.test,
            offset_in(gpa, test::TEST_MMIO_GPA, test::TEST_MMIO_SIZE),
        ) {
            (Some(test), Some(offset)) => lock(&test.scratch).read_memory(offset, size),
            _ => {
                self.unclaimed_reads.fetch_add(1, Ordering::Relaxed);
                mask
            }
        }
    }

    /// Writes `size` (1 to 8) bytes of guest-physical memory that has no
    /// memory behind it. Writes to nobody's address are dropped.
    pub fn mmio_write(&self, gpa: u64, size: u8, value: u64) {
        if let Some(offset) = offset_in(gpa, IOAPIC_GPA, IOAPIC_SIZE) {
            self.interrupts.write_ioapic(offset, value as u32);
            return;
        }
        match (
            &self.test,
            offset_in(gpa, test::TEST_MMIO_GPA, test::TEST_MMIO_SIZE),
        ) {
            (Some(test), Some(offset)) => {
                lock(&test.scratch).write_memory(offset, size.min(8), value);
            }
            _ => drop(self.unclaimed_writes.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// A local APIC ended the level-triggered interrupt `vector`.
    pub fn eoi(&self, vector: u8) {
        self.interrupts.eoi(vector);
    }

    /// Whether the 8259 pair asks the bootstrap processor for an interrupt.
    pub fn extint_asserted(&self) -> bool {
        self.interrupts.extint_asserted()
    }

    /// The interrupt-acknowledge cycle: the vector of the 8259 pair's
    /// interrupt, which is now in service. `None` without an 8259 pair.
    pub fn acknowledge_extint(&self) -> Option<u8> {
        self.interrupts.acknowledge_extint()
    }

    /// A handle on interrupt line `line`, for a device outside the chipset;
    /// `None` from [`IOAPIC_PINS`] up.
    pub fn irq_line(&self, line: u8) -> Option<IrqLine> {
        (line < IOAPIC_PINS).then(|| IrqLine::new(&self.interrupts, line))
    }

    /// Queues host input for a serial port (0 is COM1, 1 is COM2) and
    /// returns how many of the bytes were taken.
    pub fn serial_input(&self, index: usize, bytes: &[u8]) -> usize {
        self.serial(index).map_or(0, |port| port.enqueue(bytes))
    }

    /// How many bytes [`Chipset::serial_input`] takes now.
    pub fn serial_room(&self, index: usize) -> usize {
        self.serial(index).map_or(0, SerialPort::room)
    }

    /// Bytes that a serial port's output refused.
    pub fn serial_lost(&self, index: usize) -> u64 {
        self.serial(index).map_or(0, SerialPort::lost)
    }

    /// Reads and writes that no device claimed.
    pub fn unclaimed(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.unclaimed_reads), count(&self.unclaimed_writes))
    }

    /// When [`Chipset::expire`] should next be called, in the clock's
    /// monotonic time.
    pub fn next_deadline(&self) -> Option<Duration> {
        let pit = self.pit.as_ref().and_then(|pit| lock(pit).next_deadline());
        let rtc = lock(&self.rtc).next_deadline(self.now());
        match (pit, rtc) {
            (Some(pit), Some(rtc)) => Some(pit.min(rtc)),
            (pit, rtc) => pit.or(rtc),
        }
    }

    /// Raises the interrupts that are due. Harmless at any time.
    pub fn expire(&self) {
        let now = self.now();
        if let Some(pit) = &self.pit {
            let due = lock(pit).expire(now.monotonic);
            if due {
                self.pit_line.pulse();
            }
        }
        self.with_rtc(|rtc| rtc.advance(now));
    }

    /// Puts every device into its state after a machine reset. The wall
    /// clock is read anew, and serial input that waits stays.
    pub fn reset(&self) {
        *lock(&self.power) = Power::new();
        *lock(&self.i8042) = I8042::new();
        self.with_rtc(|rtc| *rtc = Rtc::new());
        if let Some(pit) = &self.pit {
            *lock(pit) = Pit::new();
        }
        if let Some(test) = &self.test {
            *lock(&test.scratch) = Scratch::new();
            *lock(&test.fw_cfg) = FwCfg::new(test.config.fw_cfg);
        }
        for port in [&self.com1, &self.com2].into_iter().flatten() {
            port.reset();
        }
        self.interrupts.reset();
    }

    fn serial(&self, index: usize) -> Option<&SerialPort> {
        match index {
            0 => self.com1.as_ref(),
            1 => self.com2.as_ref(),
            _ => None,
        }
    }

    fn now(&self) -> Now {
        Now {
            monotonic: self.clock.monotonic(),
            wall: self.clock.wall(),
        }
    }

    /// Acts on the clock chip and passes its interrupt on if that changed.
    fn with_rtc<R>(&self, act: impl FnOnce(&mut Rtc) -> R) -> R {
        let mut rtc = lock(&self.rtc);
        let result = act(&mut rtc);
        let asserted = rtc.irq();
        if self.rtc_asserted.swap(asserted, Ordering::Relaxed) != asserted {
            self.rtc_line.set(asserted);
        }
        result
    }

    /// Registers that are read as a whole, whatever the size.
    fn read_wide(&self, port: u16) -> Option<u32> {
        const TIMER_LAST: u16 = power::PM_TIMER_PORT + 3;
        if let power::PM_TIMER_PORT..=TIMER_LAST = port {
            let timer = power::pm_timer(self.clock.monotonic());
            return Some(timer >> (8 * (port - power::PM_TIMER_PORT)));
        }
        let test = self.test.as_ref()?;
        match port {
            test::SCRATCH_PORT..=test::SCRATCH_LAST => Some(lock(&test.scratch).read_port(port)),
            test::FLUSH_PORT..=test::FLUSH_LAST => Some(0),
            _ => None,
        }
    }

    /// Registers that are written as a whole, whatever the size. `None` if
    /// there is none at the port.
    fn write_wide(&self, port: u16, size: u8, value: u32) -> Option<Option<ChipsetEvent>> {
        let test = self.test.as_ref()?;
        match port {
            test::SCRATCH_PORT..=test::SCRATCH_LAST => {
                lock(&test.scratch).write_port(port, size, value);
                Some(None)
            }
            // Software translation needs no help to see changed page tables.
            test::FLUSH_PORT..=test::FLUSH_LAST => Some(None),
            test::EXIT_PORT => Some(Some(ChipsetEvent::DebugExit { code: value })),
            test::LINE_PORT..=test::LINE_LAST => {
                // At most pin 23, by the range.
                self.interrupts
                    .set_line((port - test::LINE_PORT) as u8, value != 0);
                Some(None)
            }
            test::HV_PORT => {
                Some(test_devices::HvTestRequest::decode(value).map(ChipsetEvent::HvTestDevice))
            }
            fw_cfg::SELECTOR_PORT if size >= 2 => {
                lock(&test.fw_cfg).select(value as u16);
                Some(None)
            }
            _ => None,
        }
    }

    fn read_byte(&self, port: u16) -> Option<u8> {
        match port {
            0x3F8..=0x3FF => Some(self.com1.as_ref()?.read((port - COM1_PORT) as u8)),
            0x2F8..=0x2FF => Some(self.com2.as_ref()?.read((port - COM2_PORT) as u8)),
            rtc::DATA_PORT => {
                let now = self.now();
                Some(self.with_rtc(|rtc| rtc.read_data(now)))
            }
            i8042::DATA_PORT => Some(lock(&self.i8042).read_data()),
            i8042::COMMAND_PORT => Some(lock(&self.i8042).read_status()),
            CONTROL_B_PORT => Some(self.read_control_b()),
            pit::CHANNEL0..=pit::CHANNEL2 => {
                let pit = self.pit.as_ref()?;
                Some(lock(pit).read(port, self.clock.monotonic()))
            }
            pic::MASTER_COMMAND
            | pic::MASTER_DATA
            | pic::SLAVE_COMMAND
            | pic::SLAVE_DATA
            | pic::MASTER_ELCR
            | pic::SLAVE_ELCR => self.interrupts.read_pic(port),
            fw_cfg::DATA_PORT => Some(lock(&self.test.as_ref()?.fw_cfg).read()),
            _ => lock(&self.power).read(port),
        }
    }

    /// Writes one byte; `None` if no device claims the port.
    fn write_byte(&self, port: u16, value: u8) -> Option<Option<ChipsetEvent>> {
        match port {
            0x3F8..=0x3FF => self.com1.as_ref()?.write((port - COM1_PORT) as u8, value),
            0x2F8..=0x2FF => self.com2.as_ref()?.write((port - COM2_PORT) as u8, value),
            rtc::INDEX_PORT => lock(&self.rtc).write_index(value),
            rtc::DATA_PORT => {
                let now = self.now();
                let changed = self.with_rtc(|rtc| rtc.write_data(value, now));
                return Some(changed.then_some(ChipsetEvent::DeadlineChanged));
            }
            i8042::DATA_PORT => return Some(lock(&self.i8042).write_data(value)),
            i8042::COMMAND_PORT => return Some(lock(&self.i8042).write_command(value)),
            CONTROL_B_PORT => {
                lock(self.pit.as_ref()?).write_control(value, self.clock.monotonic());
            }
            pit::CHANNEL0..=pit::COMMAND => {
                lock(self.pit.as_ref()?).write(port, value, self.clock.monotonic());
                return Some(Some(ChipsetEvent::DeadlineChanged));
            }
            pic::MASTER_COMMAND
            | pic::MASTER_DATA
            | pic::SLAVE_COMMAND
            | pic::SLAVE_DATA
            | pic::MASTER_ELCR
            | pic::SLAVE_ELCR => {
                return self.interrupts.write_pic(port, value).then_some(None);
            }
            power::SLEEP_CONTROL_PORT
            | power::SLEEP_STATUS_PORT
            | power::RESET_PORT
            | power::CONTROL_A_PORT => return Some(lock(&self.power).write(port, value)),
            _ => return None,
        }
        Some(None)
    }

    fn read_control_b(&self) -> u8 {
        self.pit
            .as_ref()
            .map_or(0, |pit| lock(pit).read_control(self.clock.monotonic()))
    }
}

/// The bits that an access of `size` bytes reaches.
pub(crate) fn size_mask(size: u8) -> u32 {
    u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)))
}

/// The port of byte `index` of an access. The reset register lies within the
/// 32-bit PCI address port and answers single bytes only.
fn byte_port(port: u16, size: u8, index: u16) -> Option<u16> {
    let port = port.wrapping_add(index);
    (port != power::RESET_PORT || size == 1).then_some(port)
}

fn offset_in(gpa: u64, base: u64, size: u64) -> Option<u64> {
    gpa.checked_sub(base).filter(|&offset| offset < size)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A device is left consistent even by a panic under its lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
