//! System properties (0x7B).

open_enum! {
    /// HV_SYSTEM_PROPERTY.
    pub struct HvSystemProperty(u32) {
        /// Sleep states.
        SLEEP_STATE = 3,
        /// The scheduler.
        SCHEDULER_TYPE = 15,
        /// Processor features that can change.
        DYNAMIC_PROCESSOR_FEATURE = 21,
    }
}

/// The host's kernel schedules VPs.
pub const HV_SCHEDULER_TYPE_ROOT: u64 = 4;

wire! {
    /// HV_INPUT_GET_SYSTEM_PROPERTY.
    pub struct HvInputGetSystemProperty {
        /// The property.
        pub property_id: HvSystemProperty,
        /// Must be zero.
        pub reserved: u32,
        /// An argument, for some.
        pub argument: u64,
    }
}

wire! {
    /// HV_OUTPUT_GET_SYSTEM_PROPERTY.
    pub struct HvOutputGetSystemProperty {
        /// The value.
        pub value: u64,
    }
}
