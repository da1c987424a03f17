//! Ports and connections (TLFS 11.3 to 11.7).

use tlfs::{HvPartitionId, HvPortId, HvPortInfo, HvPortType};

/// A port of a partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Port {
    pub(crate) info: HvPortInfo,
    /// Who may connect to it.
    pub(crate) connection_partition: HvPartitionId,
}

/// A connection of a partition to a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) port_partition: HvPartitionId,
    pub(crate) port_id: HvPortId,
    pub(crate) port_type: HvPortType,
}
