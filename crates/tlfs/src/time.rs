//! Time: the reference TSC page and synthetic timers (TLFS chapter 12).

/// Reference time units in a second: 100 ns each.
pub const HV_REFERENCE_TIME_HZ: u64 = 10_000_000;

wire! {
    /// HV_REFERENCE_TSC_PAGE: reference time = ((TSC * scale) >> 64) + offset
    /// while the sequence is not 0.
    pub struct HvReferenceTscPage {
        /// Changes with every update; 0 means "read the MSR".
        pub tsc_sequence: u32,
        /// Reserved.
        pub reserved1: u32,
        /// 64.64 fixed point factor.
        pub tsc_scale: u64,
        /// Signed offset, 100 ns.
        pub tsc_offset: i64,
    }
}

/// HV_X64_MSR_STIMER_CONFIG_CONTENTS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvStimerConfig(pub u64);

impl HvStimerConfig {
    /// Bit 0.
    pub const ENABLE: u64 = 1 << 0;
    /// Bit 1.
    pub const PERIODIC: u64 = 1 << 1;
    /// Bit 2.
    pub const LAZY: u64 = 1 << 2;
    /// Bit 3.
    pub const AUTO_ENABLE: u64 = 1 << 3;
    /// Bit 12.
    pub const DIRECT: u64 = 1 << 12;
    /// Bits 13 to 15 and 20 to 63.
    pub const RESERVED: u64 = 0xFFFF_FFFF_FFF0_E000;

    /// A message-mode configuration for `sint` with flag bits.
    pub const fn message(sint: u8, flags: u64) -> Self {
        Self((sint as u64 & 15) << 16 | flags)
    }

    /// A direct-mode configuration for `vector` with flag bits.
    pub const fn direct(vector: u8, flags: u64) -> Self {
        Self((vector as u64) << 4 | Self::DIRECT | flags)
    }

    /// Whether the timer runs.
    pub const fn enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    /// Whether the count is a period rather than a time.
    pub const fn periodic(self) -> bool {
        self.0 & Self::PERIODIC != 0
    }

    /// Whether writing a count other than 0 enables the timer.
    pub const fn auto_enable(self) -> bool {
        self.0 & Self::AUTO_ENABLE != 0
    }

    /// Whether it raises a vector rather than sending a message.
    pub const fn is_direct(self) -> bool {
        self.0 & Self::DIRECT != 0
    }

    /// The vector of direct mode.
    pub const fn vector(self) -> u8 {
        (self.0 >> 4) as u8
    }

    /// The source of message mode; 0 is none.
    pub const fn sint(self) -> u8 {
        (self.0 >> 16 & 15) as u8
    }

    /// With the enable bit as given.
    pub const fn with_enable(self, enable: bool) -> Self {
        Self(self.0 & !Self::ENABLE | enable as u64)
    }
}
