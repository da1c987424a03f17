//! The monitor page: notifications that the host polls for. This host offers
//! no monitored channel; the layout is here for completeness of the wire.

/// Trigger groups of a page.
pub const MONITOR_GROUPS: usize = 4;
/// Notifications of a group.
pub const MONITOR_GROUP_IDS: usize = 32;

wire! {
    /// One group of 32 notifications.
    pub struct MonitorTriggerGroup {
        /// Bits set by the sender.
        pub pending: u32,
        /// Bits set by the poller.
        pub armed: u32,
    }
}

wire! {
    /// What a notification signals.
    pub struct MonitorParameter {
        /// The connection.
        pub connection_id: u32,
        /// The flag.
        pub flag_number: u16,
        /// Zero.
        pub reserved: u16,
    }
}

wire! {
    /// HV_MONITOR_PAGE: 4096 bytes.
    pub struct MonitorPage {
        /// Bits 0 to 3 enable the groups.
        pub trigger_state: u32,
        /// Zero.
        pub reserved1: u32,
        /// The groups.
        pub trigger_group: [MonitorTriggerGroup; MONITOR_GROUPS],
        /// Zero.
        pub reserved2: [u64; 3],
        /// When each is polled next.
        pub next_check_time: [[u32; MONITOR_GROUP_IDS]; MONITOR_GROUPS],
        /// Latencies, 100 ns units.
        pub latency: [[u16; MONITOR_GROUP_IDS]; MONITOR_GROUPS],
        /// Zero.
        pub reserved3: [u8; 256],
        /// What each signals.
        pub parameter: [[MonitorParameter; MONITOR_GROUP_IDS]; MONITOR_GROUPS],
        /// Zero.
        pub reserved4: [[u8; 32]; 62],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn layout() {
        assert_eq!(size_of::<MonitorPage>(), 4096);
        assert_eq!(offset_of!(MonitorPage, trigger_group), 8);
        assert_eq!(offset_of!(MonitorPage, next_check_time), 64);
        assert_eq!(offset_of!(MonitorPage, latency), 576);
        assert_eq!(offset_of!(MonitorPage, parameter), 1088);
    }
}
