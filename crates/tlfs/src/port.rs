//! Ports and connections (TLFS 11.3 to 11.7).

use crate::{HvPartitionId, HvProximityDomainInfo};

open_enum! {
    /// HV_PORT_TYPE.
    pub struct HvPortType(u32) {
        /// Messages.
        MESSAGE = 1,
        /// Event flags.
        EVENT = 2,
        /// Monitored notifications.
        MONITOR = 3,
        /// Doorbells.
        DOORBELL = 4,
    }
}

wire! {
    /// HV_PORT_INFO. For a monitor port the first 8 bytes behind the padding
    /// are the monitor page's address instead.
    pub struct HvPortInfo {
        /// The type.
        pub port_type: HvPortType,
        /// Padding.
        pub padding: u32,
        /// The SINT that a port's traffic arrives at, 0 to 15.
        pub target_sint: u32,
        /// The VP that it arrives at, or HV_ANY_VP.
        pub target_vp: u32,
        /// Event ports: the first flag.
        pub base_flag_number: u16,
        /// Event ports: how many flags.
        pub flag_count: u16,
        /// Must be zero.
        pub reserved: u32,
    }
}

impl HvPortInfo {
    /// A message port.
    pub fn message(target_sint: u32, target_vp: u32) -> Self {
        Self {
            port_type: HvPortType::MESSAGE,
            target_sint,
            target_vp,
            ..Self::default()
        }
    }

    /// An event port for `flag_count` flags from `base_flag_number` on.
    pub fn event(target_sint: u32, target_vp: u32, base: u16, flag_count: u16) -> Self {
        Self {
            port_type: HvPortType::EVENT,
            target_sint,
            target_vp,
            base_flag_number: base,
            flag_count,
            ..Self::default()
        }
    }
}

wire! {
    /// HV_CONNECTION_INFO of TLFS 2.0a.
    pub struct HvConnectionInfoDeprecated {
        /// The type, that of the port.
        pub port_type: HvPortType,
        /// Padding.
        pub padding: u32,
        /// Monitor connections: the page's address.
        pub parameter: u64,
    }
}

wire! {
    /// HV_CONNECTION_INFO.
    pub struct HvConnectionInfo {
        /// The type, that of the port.
        pub port_type: HvPortType,
        /// Padding.
        pub padding: u32,
        /// Monitor connections: the page; doorbells: GPA, value, flags.
        pub parameters: [u64; 3],
    }
}

wire! {
    /// HV_INPUT_CREATE_PORT (0x95).
    pub struct HvInputCreatePort {
        /// The port's partition.
        pub port_partition_id: HvPartitionId,
        /// The port.
        pub port_id: u32,
        /// VTL: 0.
        pub port_vtl: u8,
        /// VTL: 0.
        pub min_connection_vtl: u8,
        /// Padding.
        pub padding: u16,
        /// The partition that may connect.
        pub connection_partition_id: HvPartitionId,
        /// What kind of port.
        pub port_info: HvPortInfo,
        /// NUMA hint.
        pub proximity_domain_info: HvProximityDomainInfo,
    }
}

wire! {
    /// HvCreatePort of TLFS 2.0a (0x57).
    pub struct HvInputCreatePortDeprecated {
        /// The port's partition.
        pub port_partition_id: HvPartitionId,
        /// The port.
        pub port_id: u32,
        /// Padding.
        pub padding: u32,
        /// The partition that may connect.
        pub connection_partition_id: HvPartitionId,
        /// What kind of port.
        pub port_info: HvPortInfo,
    }
}

wire! {
    /// HV_INPUT_DELETE_PORT (0x58) and HV_INPUT_DISCONNECT_PORT (0x5B).
    pub struct HvInputPortReference {
        /// The partition of the port or connection.
        pub partition_id: HvPartitionId,
        /// The port or connection.
        pub id: u32,
        /// Must be zero.
        pub reserved: u32,
    }
}

wire! {
    /// HV_INPUT_CONNECT_PORT (0x96).
    pub struct HvInputConnectPort {
        /// The connection's partition.
        pub connection_partition_id: HvPartitionId,
        /// The connection.
        pub connection_id: u32,
        /// VTL: 0.
        pub connection_vtl: u8,
        /// Padding.
        pub padding: [u8; 3],
        /// The port's partition.
        pub port_partition_id: HvPartitionId,
        /// The port.
        pub port_id: u32,
        /// Padding.
        pub reserved: u32,
        /// What kind of connection.
        pub connection_info: HvConnectionInfo,
        /// NUMA hint.
        pub proximity_domain_info: HvProximityDomainInfo,
    }
}

wire! {
    /// HvConnectPort of TLFS 2.0a (0x59).
    pub struct HvInputConnectPortDeprecated {
        /// The connection's partition.
        pub connection_partition_id: HvPartitionId,
        /// The connection.
        pub connection_id: u32,
        /// Padding.
        pub padding: u32,
        /// The port's partition.
        pub port_partition_id: HvPartitionId,
        /// The port.
        pub port_id: u32,
        /// Padding.
        pub reserved: u32,
        /// What kind of connection.
        pub connection_info: HvConnectionInfoDeprecated,
    }
}
