//! Connect requests for sockets (hv_sock).

use super::{Effect, MAX_TL_CONNECT_REQUESTS, Server, Violation};
use crate::protocol::{
    Guid, MessageType, TlConnectRequest, TlConnectRequest2, TlConnectResult, Version, ntstatus,
    parse_body,
};

impl Server {
    pub(super) fn tl_connect_request(
        &mut self,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let kind = MessageType::TL_CONNECT_REQUEST;
        let version = self
            .version()
            .map(|(version, _)| version)
            .ok_or(Violation::NotConnected(kind))?;
        let (request, silo_id) = match parse_body::<TlConnectRequest2>(bytes) {
            Some((request, _)) if version >= Version::WIN10_RS5 => (request.base, request.silo_id),
            _ => (super::body::<TlConnectRequest>(bytes)?, Guid::ZERO),
        };
        let TlConnectRequest {
            endpoint_id,
            service_id,
        } = request;
        if !self.config.sockets || self.connect_requests.len() >= MAX_TL_CONNECT_REQUESTS {
            self.refuse(
                endpoint_id,
                service_id,
                ntstatus::CONNECTION_REFUSED,
                effects,
            );
            return Ok(());
        }
        self.connect_requests.push_back((endpoint_id, service_id));
        effects.push(Effect::TlConnect {
            endpoint_id,
            service_id,
            silo_id,
        });
        Ok(())
    }

    /// Guests from 4.1 on are told; older ones run into their timeout.
    fn refuse(
        &mut self,
        endpoint_id: Guid,
        service_id: Guid,
        status: u32,
        effects: &mut Vec<Effect>,
    ) {
        if self
            .version()
            .is_some_and(|(version, _)| version >= Version::WIN10_RS3)
        {
            self.send(
                &TlConnectResult {
                    endpoint_id,
                    service_id,
                    status,
                },
                effects,
            );
        }
    }

    pub(super) fn tl_connect_done(
        &mut self,
        endpoint_id: Guid,
        service_id: Guid,
        status: u32,
        effects: &mut Vec<Effect>,
    ) {
        let waits = |request: &(Guid, Guid)| *request == (endpoint_id, service_id);
        // The guest that asked may be gone.
        let Some(at) = self.connect_requests.iter().position(waits) else {
            return;
        };
        self.connect_requests.remove(at);
        if status != ntstatus::SUCCESS {
            self.refuse(endpoint_id, service_id, status, effects);
        }
    }
}
