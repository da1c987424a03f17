//! Messages and events between partitions (TLFS 11.9).

use alloc::boxed::Box;
use alloc::sync::Arc;

use tlfs::*;

use super::{Context, HvResult, parse, put, require};
use crate::RootNotification;
use crate::partition::{Partition, ROOT_PARTITION_ID};
use crate::synic::{Port, Synic, SynicBus};
use crate::vp::run::split;
use crate::vp::{Requests, Vp};

/// The port behind a connection of the caller's.
fn find_port(
    context: &Context<'_>,
    connection_id: HvConnectionId,
    port_type: HvPortType,
) -> HvResult<(Arc<Partition>, HvPortId, Port)> {
    let connection = context
        .caller
        .connections
        .lock()
        .get(&connection_id)
        .copied();
    let connection = connection
        .filter(|connection| connection.port_type == port_type)
        .ok_or(HvStatus::INVALID_CONNECTION_ID)?;
    let partition = context
        .hypervisor
        .partition(connection.port_partition)
        .ok_or(HvStatus::INVALID_PORT_ID)?;
    let port = partition.ports.lock().get(&connection.port_id).copied();
    let port = port.filter(|port| port.info.port_type == port_type);
    Ok((
        partition,
        connection.port_id,
        port.ok_or(HvStatus::INVALID_PORT_ID)?,
    ))
}

/// The virtual processor that a port's traffic arrives at. For HV_ANY_VP it
/// is the first.
fn target_vp(partition: &Partition, target: HvVpIndex) -> HvResult<Arc<Vp>> {
    let vp = match target {
        HV_ANY_VP => partition.all_vps().into_iter().next(),
        index => partition.vp(index),
    };
    vp.ok_or(HvStatus::INVALID_VP_INDEX)
}

/// Works on a virtual processor's SynIC, and has it look for interrupts.
fn with_synic<R>(
    context: &Context<'_>,
    partition: &Partition,
    vp: &Vp,
    work: impl FnOnce(&mut Synic, &mut SynicBus<'_>) -> R,
) -> R {
    let platform = context.platform();
    let now = partition.clock.now(platform);
    let result = {
        let mut state = vp.state.lock();
        let (synic, mut bus) = split(&mut state, platform, now);
        work(synic, &mut bus)
    };
    vp.request(platform, Requests::EVENT);
    result
}

/// Hands to the root what is its.
fn notify_root(context: &Context<'_>, notification: RootNotification) -> HvResult {
    if context.platform().root_port_notify(notification) {
        Ok(())
    } else {
        Err(HvStatus::INSUFFICIENT_BUFFERS)
    }
}

/// HvCallPostMessage.
pub(super) fn post(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputPostMessage = parse(input)?;
    require(input.payload_size as usize <= HV_MESSAGE_PAYLOAD_SIZE)?;
    // Types with bit 31 are the hypervisor's, 0 marks a free slot.
    require(input.message_type != 0 && input.message_type & HV_MESSAGE_TYPE_HYPERVISOR == 0)?;
    let (partition, port_id, port) = find_port(context, input.connection_id, HvPortType::MESSAGE)?;
    let payload = &input.payload[..input.payload_size as usize];
    if partition.id == ROOT_PARTITION_ID {
        return notify_root(
            context,
            RootNotification::Message {
                port: port_id,
                message_type: input.message_type,
                payload: payload.to_vec(),
            },
        );
    }
    let vp = target_vp(&partition, port.info.target_vp)?;
    let message_type = HvMessageType(input.message_type);
    let message = Box::new(HvMessage::new(message_type, port_id.into(), payload));
    with_synic(context, &partition, &vp, |synic, bus| {
        synic.post(port.info.target_sint as usize, message, bus)
    })
}

/// HvCallSignalEvent.
pub(super) fn signal(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputSignalEvent = parse(input)?;
    require(input.reserved == 0)?;
    let (partition, port_id, port) = find_port(context, input.connection_id, HvPortType::EVENT)?;
    require(input.flag_number < port.info.flag_count)?;
    // The sum fits: checked when the port was created.
    let flag = port.info.base_flag_number + input.flag_number;
    if partition.id == ROOT_PARTITION_ID {
        let port = port_id;
        return notify_root(context, RootNotification::Event { port, flag });
    }
    let vp = target_vp(&partition, port.info.target_vp)?;
    with_synic(context, &partition, &vp, |synic, bus| {
        synic
            .signal(port.info.target_sint as usize, flag, bus)
            .map(|_| ())
    })
}

/// HvCallSignalEventDirect.
pub(super) fn signal_direct(
    context: &mut Context<'_>,
    input: &[u8],
    output: &mut [u8],
) -> HvResult {
    let input: HvInputSignalEventDirect = parse(input)?;
    require(input.target_vtl == 0)?;
    let partition = context.child(input.target_partition)?;
    let vp = target_vp(&partition, input.target_vp)?;
    let newly = with_synic(context, &partition, &vp, |synic, bus| {
        synic.signal(input.target_sint.into(), input.flag_number, bus)
    })?;
    put(
        output,
        &HvOutputSignalEventDirect {
            newly_signaled: newly.into(),
            reserved: [0; 7],
        },
    )
}

/// HvCallPostMessageDirect. The parent may send any type but 0.
pub(super) fn post_direct(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputPostMessageDirect = parse(input)?;
    let header = &input.message.header;
    require(input.vtl == 0 && header.message_type != HvMessageType::NONE)?;
    require(usize::from(header.payload_size) <= HV_MESSAGE_PAYLOAD_SIZE)?;
    let partition = context.child(input.partition_id)?;
    let vp = target_vp(&partition, input.vp_index)?;
    let message = Box::new(HvMessage::new(
        header.message_type,
        header.sender,
        input.message.payload(),
    ));
    with_synic(context, &partition, &vp, |synic, bus| {
        synic.post(input.sint_index.into(), message, bus)
    })
}
