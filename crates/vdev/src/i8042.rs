//! A keyboard controller without keyboard or mouse: it resets the machine
//! and answers probes at once. Generation 2 machines have their keyboard on
//! the VMBus.

use crate::ChipsetEvent;

pub(crate) const DATA_PORT: u16 = 0x60;
pub(crate) const COMMAND_PORT: u16 = 0x64;

const STATUS_OUTPUT_FULL: u8 = 1;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_UNLOCKED: u8 = 1 << 4;
const STATUS_TIMEOUT: u8 = 1 << 6;
const CONFIG_SYSTEM: u8 = 1 << 2;
/// Both device clocks disabled.
const CONFIG_DISABLED: u8 = 0x30;
const CONFIG_KEPT: u8 = 0x77;
const OUTPUT_NOT_RESET: u8 = 1;
const OUTPUT_A20: u8 = 2;
/// What a controller reports when no device answers.
const NO_DEVICE: u8 = 0xFE;
const SELF_TEST_PASSED: u8 = 0x55;
const PORT_TEST_CLOCK_STUCK: u8 = 1;

/// What the next byte at the data port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    DeviceByte,
    Config,
    OutputPort,
    Discard,
}

#[derive(Debug)]
pub(crate) struct I8042 {
    config: u8,
    output: Option<u8>,
    timeout: bool,
    expect: Expect,
}

impl I8042 {
    pub(crate) fn new() -> Self {
        Self {
            config: CONFIG_SYSTEM | CONFIG_DISABLED,
            output: None,
            timeout: false,
            expect: Expect::DeviceByte,
        }
    }

    pub(crate) fn read_status(&self) -> u8 {
        let mut status = STATUS_SYSTEM | STATUS_UNLOCKED;
        if self.output.is_some() {
            status |= STATUS_OUTPUT_FULL;
        }
        if self.timeout {
            status |= STATUS_TIMEOUT;
        }
        status
    }

    pub(crate) fn read_data(&mut self) -> u8 {
        self.timeout = false;
        self.output.take().unwrap_or(0)
    }

    pub(crate) fn write_command(&mut self, command: u8) -> Option<ChipsetEvent> {
        self.expect = Expect::DeviceByte;
        match command {
            0x20 => self.answer(self.config),
            0x60 => self.expect = Expect::Config,
            0xA9 | 0xAB => self.answer(PORT_TEST_CLOCK_STUCK),
            0xAA => self.answer(SELF_TEST_PASSED),
            0xC0 => self.answer(0),
            0xD0 => self.answer(OUTPUT_NOT_RESET | OUTPUT_A20),
            0xD1 => self.expect = Expect::OutputPort,
            0xD2..=0xD4 => self.expect = Expect::Discard,
            // Pulse the output lines whose bit is clear; line 0 is reset.
            0xF0..=0xFF if command & OUTPUT_NOT_RESET == 0 => return Some(ChipsetEvent::Reset),
            _ => {}
        }
        None
    }

    pub(crate) fn write_data(&mut self, value: u8) -> Option<ChipsetEvent> {
        match std::mem::replace(&mut self.expect, Expect::DeviceByte) {
            Expect::Config => self.config = value & CONFIG_KEPT,
            Expect::OutputPort if value & OUTPUT_NOT_RESET == 0 => {
                return Some(ChipsetEvent::Reset);
            }
            Expect::OutputPort => {}
            Expect::DeviceByte | Expect::Discard => {
                self.answer(NO_DEVICE);
                self.timeout = true;
            }
        }
        None
    }

    fn answer(&mut self, value: u8) {
        self.output = Some(value);
        self.timeout = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_busy_and_resets() {
        let mut controller = I8042::new();
        assert_eq!(controller.read_status() & 3, 0);
        assert_eq!(controller.write_command(0xFF), None);
        assert_eq!(controller.write_command(0xFE), Some(ChipsetEvent::Reset));
        controller.write_command(0xD1);
        assert_eq!(controller.write_data(3), None);
        controller.write_command(0xD1);
        assert_eq!(controller.write_data(2), Some(ChipsetEvent::Reset));
    }

    #[test]
    fn configuration_byte_reads_back() {
        let mut controller = I8042::new();
        controller.write_command(0x60);
        controller.write_data(0x47);
        controller.write_command(0x20);
        assert_eq!(controller.read_status() & 1, 1);
        assert_eq!(controller.read_data(), 0x47);
        assert_eq!(controller.read_status() & 1, 0);
    }

    #[test]
    fn probes_for_devices_end_at_once() {
        let mut controller = I8042::new();
        controller.write_command(0xAA);
        assert_eq!(controller.read_data(), SELF_TEST_PASSED);
        controller.write_data(0xFF);
        assert_eq!(controller.read_status() & 0x41, 0x41);
        assert_eq!(controller.read_data(), NO_DEVICE);
        controller.write_command(0xD4);
        controller.write_data(0xF2);
        assert_eq!(controller.read_data(), NO_DEVICE);
        controller.write_command(0xA9);
        assert_eq!(controller.read_data(), PORT_TEST_CLOCK_STUCK);
    }
}
