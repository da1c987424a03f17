//! The synthetic interrupt controller's registers and pages (TLFS 11.8).

/// Synthetic interrupt sources of a VP.
pub const HV_SYNIC_SINT_COUNT: usize = 16;
/// Synthetic timers of a VP.
pub const HV_SYNIC_STIMER_COUNT: usize = 4;
/// Event flags of a source.
pub const HV_EVENT_FLAGS_COUNT: u32 = 2048;
/// Bytes of a source's event flags.
pub const HV_EVENT_FLAGS_SIZE: u64 = 256;
/// Lowest vector that a source may have.
pub const HV_SYNIC_FIRST_VALID_VECTOR: u8 = 16;
/// SVERSION.
pub const HV_SYNIC_VERSION: u64 = 1;
/// SCONTROL bit 0.
pub const HV_SYNIC_CONTROL_ENABLE: u64 = 1;
/// Message buffers of a port.
pub const HV_PORT_MESSAGE_BUFFERS: usize = 16;

/// HV_SYNIC_SINT: a synthetic interrupt source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvSynicSint(pub u64);

impl HvSynicSint {
    /// Bit 16.
    pub const MASKED: u64 = 1 << 16;
    /// Bit 17.
    pub const AUTO_EOI: u64 = 1 << 17;
    /// Bit 18.
    pub const POLLING: u64 = 1 << 18;
    /// The value after reset: masked.
    pub const RESET: Self = Self(Self::MASKED);

    /// The vector.
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// Whether it raises nothing and takes nothing.
    pub const fn masked(self) -> bool {
        self.0 & Self::MASKED != 0
    }

    /// Whether its vector ends by itself when delivered.
    pub const fn auto_eoi(self) -> bool {
        self.0 & Self::AUTO_EOI != 0
    }

    /// Whether it takes messages and events without an interrupt.
    pub const fn polling(self) -> bool {
        self.0 & Self::POLLING != 0
    }
}
