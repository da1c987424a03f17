//! Ports, connections, messages and events.

use tlfs::{
    HV_MESSAGE_PAYLOAD_SIZE, HvCallCode, HvConnectionId, HvConnectionInfo, HvHypercallControl,
    HvInputConnectPort, HvInputCreatePort, HvInputPortReference, HvInputPostMessage,
    HvInputPostMessageDirect, HvInputSignalEvent, HvInputSignalEventDirect, HvMessage,
    HvOutputSignalEventDirect, HvPartitionId, HvPortId, HvPortInfo, HvPortType, HvStatus,
    HvVpIndex,
};
use zerocopy::IntoBytes;

use crate::{HvError, HvResult, Transport, WinHv};

impl<T: Transport> WinHv<T> {
    /// HvCallCreatePort: a port of `port_partition` to which
    /// `connection_partition` may connect (0: anyone).
    pub fn create_port(
        &self,
        port_partition: HvPartitionId,
        port_id: HvPortId,
        connection_partition: HvPartitionId,
        port_info: HvPortInfo,
    ) -> HvResult {
        let input = HvInputCreatePort {
            port_partition_id: port_partition,
            port_id,
            connection_partition_id: connection_partition,
            port_info,
            ..Default::default()
        };
        self.call(HvCallCode::CREATE_PORT, &input)
    }

    /// HvCallDeletePort.
    pub fn delete_port(&self, partition_id: HvPartitionId, port_id: HvPortId) -> HvResult {
        let input = HvInputPortReference {
            partition_id,
            id: port_id,
            reserved: 0,
        };
        self.call(HvCallCode::DELETE_PORT, &input)
    }

    /// HvCallConnectPort.
    pub fn connect_port(
        &self,
        connection_partition: HvPartitionId,
        connection_id: HvConnectionId,
        port_partition: HvPartitionId,
        port_id: HvPortId,
        port_type: HvPortType,
    ) -> HvResult {
        let input = HvInputConnectPort {
            connection_partition_id: connection_partition,
            connection_id,
            port_partition_id: port_partition,
            port_id,
            connection_info: HvConnectionInfo {
                port_type,
                ..Default::default()
            },
            ..Default::default()
        };
        self.call(HvCallCode::CONNECT_PORT, &input)
    }

    /// HvCallDisconnectPort.
    pub fn disconnect_port(
        &self,
        partition_id: HvPartitionId,
        connection_id: HvConnectionId,
    ) -> HvResult {
        let input = HvInputPortReference {
            partition_id,
            id: connection_id,
            reserved: 0,
        };
        self.call(HvCallCode::DISCONNECT_PORT, &input)
    }

    /// HvCallPostMessage: at most 240 bytes, a type with bit 31 clear.
    pub fn post_message(
        &self,
        connection_id: HvConnectionId,
        message_type: u32,
        payload: &[u8],
    ) -> HvResult {
        let call = HvCallCode::POST_MESSAGE;
        if payload.len() > HV_MESSAGE_PAYLOAD_SIZE {
            return Err(HvError {
                call,
                status: HvStatus::INVALID_PARAMETER,
                completed: 0,
            });
        }
        let mut input = HvInputPostMessage {
            connection_id,
            message_type,
            payload_size: payload.len() as u32,
            ..Default::default()
        };
        input.payload[..payload.len()].copy_from_slice(payload);
        self.call(call, &input)
    }

    /// HvCallSignalEvent, as a fast call.
    pub fn signal_event(&self, connection_id: HvConnectionId, flag_number: u16) -> HvResult {
        let input = HvInputSignalEvent {
            connection_id,
            flag_number,
            reserved: 0,
        };
        let mut registers = [0; tlfs::HV_FAST_INPUT_SIZE];
        registers[..size_of_val(&input)].copy_from_slice(input.as_bytes());
        let control = HvHypercallControl::simple(HvCallCode::SIGNAL_EVENT).with_fast();
        self.raw(control, &registers, &mut []).map(|_| ())
    }

    /// HvCallPostMessageDirect: a message for a SINT without a port. Fails
    /// with INSUFFICIENT_BUFFERS when too many wait.
    pub fn post_message_direct(
        &self,
        partition_id: HvPartitionId,
        vp_index: HvVpIndex,
        sint_index: u8,
        message: &HvMessage,
    ) -> HvResult {
        let input = HvInputPostMessageDirect {
            partition_id,
            vp_index,
            vtl: 0,
            sint_index,
            padding: [0; 2],
            message: *message,
        };
        self.call(HvCallCode::POST_MESSAGE_DIRECT, &input)
    }

    /// HvCallSignalEventDirect: whether the flag was clear before.
    pub fn signal_event_direct(
        &self,
        target_partition: HvPartitionId,
        target_vp: HvVpIndex,
        target_sint: u8,
        flag_number: u16,
    ) -> HvResult<bool> {
        let input = HvInputSignalEventDirect {
            target_partition,
            target_vp,
            target_vtl: 0,
            target_sint,
            flag_number,
        };
        let output: HvOutputSignalEventDirect =
            self.call_out(HvCallCode::SIGNAL_EVENT_DIRECT, &input)?;
        Ok(output.newly_signaled != 0)
    }
}
