//! Power and reset: the sleep and reset registers that the ACPI tables name,
//! the ACPI timer, and the two reset ports of PC chipsets.

use std::time::Duration;

use crate::ChipsetEvent;

/// ACPI sleep control register (ACPI 6.5, 4.8.3.7), one byte of I/O space.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register, one byte of I/O space.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI timer, four bytes of I/O space, 3.579545 MHz.
pub const PM_TIMER_PORT: u16 = 0x608;
/// Reset control register, named as the ACPI reset register.
pub const RESET_PORT: u16 = 0xCF9;
/// What to write to [`RESET_PORT`] for a reset.
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP of the soft-off state, as `\_S5` names it.
pub const SLEEP_TYPE_S5: u8 = 5;
/// System control port A: fast A20 and reset.
pub(crate) const CONTROL_A_PORT: u16 = 0x92;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_WAKE_STATUS: u8 = 1 << 7;
const RESET_CPU: u8 = 1 << 2;
const CONTROL_A_RESET: u8 = 1;
const CONTROL_A_A20: u8 = 2;
const PM_TIMER_FREQUENCY: u128 = 3_579_545;

#[derive(Debug)]
pub(crate) struct Power {
    sleep_control: u8,
    reset_control: u8,
    control_a: u8,
}

impl Power {
    pub(crate) fn new() -> Self {
        Self {
            sleep_control: 0,
            reset_control: 0,
            control_a: CONTROL_A_A20,
        }
    }

    /// Reads one of this module's byte registers.
    pub(crate) fn read(&self, port: u16) -> Option<u8> {
        match port {
            SLEEP_CONTROL_PORT => Some(self.sleep_control),
            SLEEP_STATUS_PORT => Some(0),
            RESET_PORT => Some(self.reset_control),
            CONTROL_A_PORT => Some(self.control_a),
            _ => None,
        }
    }

    /// Writes one of this module's byte registers.
    pub(crate) fn write(&mut self, port: u16, value: u8) -> Option<ChipsetEvent> {
        match port {
            SLEEP_CONTROL_PORT => {
                // The enable bit reads as zero.
                self.sleep_control = value & !(SLEEP_ENABLE | SLEEP_WAKE_STATUS);
                let off = value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_S5;
                off.then_some(ChipsetEvent::PowerOff)
            }
            RESET_PORT => {
                let rising = value & !self.reset_control & RESET_CPU != 0;
                self.reset_control = value & !RESET_CPU;
                rising.then_some(ChipsetEvent::Reset)
            }
            CONTROL_A_PORT => {
                self.control_a = value & CONTROL_A_A20;
                (value & CONTROL_A_RESET != 0).then_some(ChipsetEvent::Reset)
            }
            _ => None,
        }
    }
}

/// The 32-bit ACPI timer at a moment.
pub(crate) fn pm_timer(now: Duration) -> u32 {
    (now.as_nanos() * PM_TIMER_FREQUENCY / 1_000_000_000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_powers_off() {
        let mut power = Power::new();
        assert_eq!(power.write(SLEEP_CONTROL_PORT, 5 << 2), None, "not enabled");
        assert_eq!(
            power.write(SLEEP_CONTROL_PORT, 3 << 2 | 1 << 5),
            None,
            "S3 does not exist"
        );
        assert_eq!(power.read(SLEEP_CONTROL_PORT), Some(3 << 2));
        let off = SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE;
        assert_eq!(
            power.write(SLEEP_CONTROL_PORT, off),
            Some(ChipsetEvent::PowerOff)
        );
        assert_eq!(power.read(SLEEP_STATUS_PORT), Some(0));
    }

    #[test]
    fn reset_ports() {
        let mut power = Power::new();
        assert_eq!(power.write(RESET_PORT, 2), None);
        assert_eq!(power.read(RESET_PORT), Some(2));
        assert_eq!(
            power.write(RESET_PORT, RESET_VALUE),
            Some(ChipsetEvent::Reset)
        );
        assert_eq!(power.read(CONTROL_A_PORT), Some(2));
        assert_eq!(power.write(CONTROL_A_PORT, 0), None);
        assert_eq!(power.read(CONTROL_A_PORT), Some(0));
        assert_eq!(power.write(CONTROL_A_PORT, 1), Some(ChipsetEvent::Reset));
    }

    #[test]
    fn timer_rate_and_wrap() {
        assert_eq!(pm_timer(Duration::from_secs(1)), 3_579_545);
        assert_eq!(
            pm_timer(Duration::from_secs(1200)),
            (3_579_545u64 * 1200) as u32
        );
    }
}
