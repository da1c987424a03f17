//! Values of virtual processor registers (TLFS 7.8).

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// HV_REGISTER_VALUE: 128 bits, read as the register's own type.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct HvRegisterValue(pub u128);

impl HvRegisterValue {
    /// The low 64 bits.
    pub const fn as_u64(self) -> u64 {
        self.0 as u64
    }

    /// As a segment register.
    pub fn as_segment(self) -> HvX64SegmentRegister {
        zerocopy::transmute!(self.0)
    }

    /// As a table register.
    pub fn as_table(self) -> HvX64TableRegister {
        zerocopy::transmute!(self.0)
    }
}

impl From<u64> for HvRegisterValue {
    fn from(value: u64) -> Self {
        Self(value.into())
    }
}

impl From<u128> for HvRegisterValue {
    fn from(value: u128) -> Self {
        Self(value)
    }
}

impl From<HvX64SegmentRegister> for HvRegisterValue {
    fn from(value: HvX64SegmentRegister) -> Self {
        Self(zerocopy::transmute!(value))
    }
}

impl From<HvX64TableRegister> for HvRegisterValue {
    fn from(value: HvX64TableRegister) -> Self {
        Self(zerocopy::transmute!(value))
    }
}

wire! {
    /// HV_X64_SEGMENT_REGISTER.
    pub struct HvX64SegmentRegister {
        /// Base address.
        pub base: u64,
        /// Limit in bytes, granularity applied.
        pub limit: u32,
        /// Selector.
        pub selector: u16,
        /// Bits 0 to 3 type, 4 non-system, 5 and 6 DPL, 7 present, 12
        /// available, 13 long, 14 default, 15 granularity.
        pub attributes: u16,
    }
}

wire! {
    /// HV_X64_TABLE_REGISTER.
    pub struct HvX64TableRegister {
        /// Padding.
        pub pad: [u16; 3],
        /// Limit in bytes.
        pub limit: u16,
        /// Base address.
        pub base: u64,
    }
}

wire! {
    /// HV_REGISTER_ASSOC: a name and its value, an element of
    /// HvCallSetVpRegisters.
    pub struct HvRegisterAssoc {
        /// The register.
        pub name: crate::HvRegisterName,
        /// Padding.
        pub pad: [u32; 3],
        /// Its value.
        pub value: [u64; 2],
    }
}

impl HvRegisterAssoc {
    /// A pair of name and value.
    pub fn new(name: crate::HvRegisterName, value: HvRegisterValue) -> Self {
        Self {
            name,
            value: [value.0 as u64, (value.0 >> 64) as u64],
            ..Self::new_zeroed()
        }
    }

    /// The value.
    pub fn value(&self) -> HvRegisterValue {
        HvRegisterValue(u128::from(self.value[0]) | u128::from(self.value[1]) << 64)
    }
}

/// HV_X64_PENDING_INTERRUPTION_REGISTER (register 0x10002).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvPendingInterruption(pub u64);

impl HvPendingInterruption {
    /// Type of an external interrupt.
    pub const INTERRUPT: u8 = 0;
    /// Type of an NMI.
    pub const NMI: u8 = 2;
    /// Type of an exception.
    pub const EXCEPTION: u8 = 3;

    /// A pending event.
    pub const fn new(kind: u8, vector: u8, error_code: Option<u32>) -> Self {
        let (valid, code) = match error_code {
            Some(code) => (1, code),
            None => (0, 0),
        };
        Self(1 | (kind as u64 & 7) << 1 | valid << 4 | (vector as u64) << 16 | (code as u64) << 32)
    }

    /// Whether an event is pending.
    pub const fn pending(self) -> bool {
        self.0 & 1 != 0
    }

    /// Its type.
    pub const fn kind(self) -> u8 {
        (self.0 >> 1 & 7) as u8
    }

    /// Its vector, 16 bits in the layout.
    pub const fn vector(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The error code to be pushed, if any.
    pub const fn error_code(self) -> Option<u32> {
        if self.0 & 1 << 4 != 0 {
            Some((self.0 >> 32) as u32)
        } else {
            None
        }
    }
}

/// HV_X64_PENDING_EXCEPTION_EVENT (register 0x10004), low 64 bits: bit 0
/// pending, bits 1 to 3 type (0 exception), bit 8 deliver error code, bits 16
/// to 31 vector, bits 32 to 63 error code; the high half is the parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvPendingExceptionEvent(pub u128);

impl HvPendingExceptionEvent {
    /// A pending exception.
    pub const fn new(vector: u8, error_code: Option<u32>) -> Self {
        let (valid, code) = match error_code {
            Some(code) => (1, code),
            None => (0, 0),
        };
        Self(1 | valid << 8 | (vector as u128) << 16 | (code as u128) << 32)
    }

    /// Whether an event is pending.
    pub const fn pending(self) -> bool {
        self.0 & 1 != 0
    }

    /// The type of event; 0 is an exception.
    pub const fn event_type(self) -> u8 {
        (self.0 >> 1 & 7) as u8
    }

    /// The vector.
    pub const fn vector(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The error code to be pushed, if any.
    pub const fn error_code(self) -> Option<u32> {
        if self.0 & 1 << 8 != 0 {
            Some((self.0 >> 32) as u32)
        } else {
            None
        }
    }
}

bitflags::bitflags! {
    /// HV_INTERNAL_ACTIVITY_REGISTER (register 0x4).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HvInternalActivity: u64 {
        /// Waits for a start-up IPI.
        const STARTUP_SUSPEND = 1 << 0;
        /// Halted by HLT.
        const HALT_SUSPEND = 1 << 1;
        /// Idle by HV_X64_MSR_GUEST_IDLE.
        const IDLE_SUSPEND = 1 << 2;
    }
}
