//! Emulated devices and the chipset: what a guest needs before its
//! enlightened drivers run, and what small test images expect of a PC.
//!
//! Every device is a state machine without threads. A guest access comes in
//! through [`Chipset`], which owns the devices; interrupts go out through an
//! [`InterruptSink`], everything that concerns the whole machine (power,
//! reset) as a [`ChipsetEvent`]. Devices with a sense of time report a
//! deadline and are told when it has passed.
//!
//! The ACPI tables that describe the chipset to the guest come from
//! [`acpi::build_tables`].

pub mod acpi;
mod chipset;
mod clock;
mod fw_cfg;
mod i8042;
mod interrupts;
mod ioapic;
mod output;
mod pic;
mod pit;
mod power;
mod rtc;
mod serial;
mod test_devices;

pub use chipset::{Chipset, ChipsetConfig, ChipsetEvent};
pub use clock::{Clock, ManualClock, SystemClock};
pub use fw_cfg::FwCfgConfig;
pub use interrupts::{DeliveryMode, InterruptRequest, InterruptSink, IrqLine};
pub use ioapic::{IOAPIC_GPA, IOAPIC_PINS};
pub use output::{OutputReader, OutputWriter, output_pipe};
pub use power::{
    PM_TIMER_PORT, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, SLEEP_TYPE_S5,
};
pub use serial::{COM1_PORT, COM2_PORT, SerialConfig, SerialNotify};
pub use test_devices::{
    HvTestControl, HvTestRequest, TEST_MMIO_GPA, TEST_MMIO_SIZE, TestDeviceConfig,
};
