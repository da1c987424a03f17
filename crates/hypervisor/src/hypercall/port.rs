//! Ports and connections (TLFS 11.3 to 11.7).

use tlfs::*;

use super::{Context, HvResult, parse, require};
use crate::synic::{Connection, Port};

/// Ports, and connections, of a partition at most.
const MAX_OBJECTS: usize = 65536;

/// HvCallCreatePort.
pub(super) fn create(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputCreatePort = parse(input)?;
    require(input.port_vtl == 0 && input.min_connection_vtl == 0)?;
    create_port(
        context,
        input.port_partition_id,
        input.port_id,
        input.connection_partition_id,
        input.port_info,
    )
}

/// HvCreatePort of TLFS 2.0a.
pub(super) fn create_deprecated(
    context: &mut Context<'_>,
    input: &[u8],
    _output: &mut [u8],
) -> HvResult {
    let input: HvInputCreatePortDeprecated = parse(input)?;
    create_port(
        context,
        input.port_partition_id,
        input.port_id,
        input.connection_partition_id,
        input.port_info,
    )
}

fn create_port(
    context: &Context<'_>,
    port_partition: HvPartitionId,
    port_id: HvPortId,
    connection_partition: HvPartitionId,
    info: HvPortInfo,
) -> HvResult {
    let partition = context.child_or_self(port_partition)?;
    require(port_id & !HV_PORT_ID_MASK == 0)?;
    // 0 leaves open who connects.
    let connection_partition = match connection_partition {
        HV_PARTITION_ID_INVALID => HV_PARTITION_ID_INVALID,
        id => context.child_or_self(id)?.id,
    };
    check_info(&info)?;
    let mut ports = partition.ports.lock();
    if ports.contains_key(&port_id) {
        return Err(HvStatus::INVALID_PORT_ID);
    }
    if ports.len() >= MAX_OBJECTS {
        return Err(HvStatus::NO_RESOURCES);
    }
    ports.insert(
        port_id,
        Port {
            info,
            connection_partition,
        },
    );
    Ok(())
}

fn check_info(info: &HvPortInfo) -> HvResult {
    require(info.target_sint < HV_SYNIC_SINT_COUNT as u32)?;
    let flags_end = u32::from(info.base_flag_number) + u32::from(info.flag_count);
    match info.port_type {
        HvPortType::MESSAGE => {
            require(info.base_flag_number == 0 && info.flag_count == 0 && info.reserved == 0)
        }
        HvPortType::EVENT => {
            require(info.flag_count != 0 && flags_end <= HV_EVENT_FLAGS_COUNT && info.reserved == 0)
        }
        // Monitored notifications and doorbells are not offered.
        _ => Err(HvStatus::INVALID_PARAMETER),
    }
}

/// HvCallDeletePort. Messages that wait are dropped; connections stay, and
/// answer INVALID_PORT_ID.
pub(super) fn delete(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputPortReference = parse(input)?;
    let partition = context.child_or_self(input.partition_id)?;
    require(input.reserved == 0)?;
    partition
        .ports
        .lock()
        .remove(&input.id)
        .ok_or(HvStatus::INVALID_PORT_ID)?;
    for vp in partition.all_vps() {
        vp.state.lock().synic.drop_messages(input.id.into());
    }
    Ok(())
}

/// HvCallConnectPort.
pub(super) fn connect(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputConnectPort = parse(input)?;
    require(input.connection_vtl == 0)?;
    connect_port(
        context,
        (input.connection_partition_id, input.connection_id),
        (input.port_partition_id, input.port_id),
        input.connection_info.port_type,
    )
}

/// HvConnectPort of TLFS 2.0a.
pub(super) fn connect_deprecated(
    context: &mut Context<'_>,
    input: &[u8],
    _output: &mut [u8],
) -> HvResult {
    let input: HvInputConnectPortDeprecated = parse(input)?;
    connect_port(
        context,
        (input.connection_partition_id, input.connection_id),
        (input.port_partition_id, input.port_id),
        input.connection_info.port_type,
    )
}

fn connect_port(
    context: &Context<'_>,
    (partition_id, connection_id): (HvPartitionId, HvConnectionId),
    (port_partition, port_id): (HvPartitionId, HvPortId),
    port_type: HvPortType,
) -> HvResult {
    let partition = context.child_or_self(partition_id)?;
    let port_partition = context.child_or_self(port_partition)?;
    require(connection_id & !HV_PORT_ID_MASK == 0)?;
    let port = port_partition.ports.lock().get(&port_id).copied();
    let port = port.ok_or(HvStatus::INVALID_PORT_ID)?;
    require(port.info.port_type == port_type)?;
    if ![HV_PARTITION_ID_INVALID, partition.id].contains(&port.connection_partition) {
        return Err(HvStatus::ACCESS_DENIED);
    }
    let mut connections = partition.connections.lock();
    if connections.contains_key(&connection_id) {
        return Err(HvStatus::INVALID_CONNECTION_ID);
    }
    if connections.len() >= MAX_OBJECTS {
        return Err(HvStatus::NO_RESOURCES);
    }
    let connection = Connection {
        port_partition: port_partition.id,
        port_id,
        port_type,
    };
    connections.insert(connection_id, connection);
    Ok(())
}

/// HvCallDisconnectPort.
pub(super) fn disconnect(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputPortReference = parse(input)?;
    let partition = context.child_or_self(input.partition_id)?;
    require(input.reserved == 0)?;
    let removed = partition.connections.lock().remove(&input.id);
    removed.map(|_| ()).ok_or(HvStatus::INVALID_CONNECTION_ID)
}
