//! What guest and host agree on before the first request, step by step.

use super::protocol::{
    ChannelProperties, NtStatus, Packet, ProtocolVersion, VersionQuery, operation,
};

/// There can be subchannels.
const MULTI_CHANNEL: u32 = 1;

/// How far the guest has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Begin,
    Version,
    Properties,
    End,
    Ready,
}

/// What the host offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Subchannels at most.
    pub(super) subchannels: u16,
    /// Bytes of one request at most.
    pub(super) max_transfer: u32,
}

/// What is to be done after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// Nothing more.
    Plain,
    /// Properties are to be sent.
    Properties(ChannelProperties),
    /// So many subchannels are to be offered, after the completion.
    Subchannels(u16),
}

/// A guest's progress.
#[derive(Debug)]
pub(super) struct Session {
    step: Step,
    version: ProtocolVersion,
    limits: Limits,
}

impl Session {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            step: Step::Begin,
            version: ProtocolVersion(0),
            limits,
        }
    }

    /// The guest can send requests.
    pub(super) fn is_ready(&self) -> bool {
        self.step == Step::Ready
    }

    /// The guest knows ENUMERATE_BUS.
    pub(super) fn has_enumeration(&self) -> bool {
        self.is_ready() && self.version >= ProtocolVersion::WIN7
    }

    /// Takes a step. Those that are out of order, or fail, change nothing.
    pub(super) fn handle(&mut self, packet: &Packet) -> Result<Done, NtStatus> {
        match (packet.operation, self.step) {
            (operation::BEGIN_INITIALIZATION, Step::Begin) => self.advance(Step::Version),
            (operation::QUERY_PROTOCOL_VERSION, Step::Version) => self.negotiate(packet),
            (operation::QUERY_PROPERTIES, Step::Properties) => {
                self.step = Step::End;
                Ok(Done::Properties(self.properties()))
            }
            (operation::END_INITIALIZATION, Step::End) => self.advance(Step::Ready),
            (operation::CREATE_SUB_CHANNELS, Step::End | Step::Ready) => self.subchannels(packet),
            _ => Err(NtStatus::INVALID_DEVICE_STATE),
        }
    }

    fn advance(&mut self, step: Step) -> Result<Done, NtStatus> {
        self.step = step;
        Ok(Done::Plain)
    }

    fn negotiate(&mut self, packet: &Packet) -> Result<Done, NtStatus> {
        let query: VersionQuery = packet.payload_as().ok_or(NtStatus::INVALID_PARAMETER)?;
        let version = ProtocolVersion(query.version);
        if !ProtocolVersion::ALL.contains(&version) {
            return Err(NtStatus::REVISION_MISMATCH);
        }
        self.version = version;
        self.advance(Step::Properties)
    }

    fn has_subchannels(&self) -> bool {
        self.version >= ProtocolVersion::WIN8 && self.limits.subchannels > 0
    }

    fn properties(&self) -> ChannelProperties {
        let many = self.has_subchannels();
        ChannelProperties {
            max_channel_count: if many { self.limits.subchannels } else { 0 },
            flags: if many { MULTI_CHANNEL } else { 0 },
            max_transfer_bytes: self.limits.max_transfer,
            ..ChannelProperties::default()
        }
    }

    fn subchannels(&self, packet: &Packet) -> Result<Done, NtStatus> {
        if !self.has_subchannels() {
            return Err(NtStatus::INVALID_DEVICE_STATE);
        }
        let count: u16 = packet.payload_as().ok_or(NtStatus::INVALID_PARAMETER)?;
        if count > self.limits.subchannels {
            return Err(NtStatus::INVALID_PARAMETER);
        }
        Ok(Done::Subchannels(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use operation::*;

    fn session(subchannels: u16) -> Session {
        Session::new(Limits {
            subchannels,
            max_transfer: 1 << 18,
        })
    }

    fn version(version: u16) -> Packet {
        Packet::new(QUERY_PROTOCOL_VERSION).with_payload(&VersionQuery {
            version,
            revision: 0,
        })
    }

    fn step(session: &mut Session, operation: u32) -> Result<Done, NtStatus> {
        session.handle(&Packet::new(operation))
    }

    fn negotiated(subchannels: u16, wanted: u16) -> Session {
        let mut session = session(subchannels);
        step(&mut session, BEGIN_INITIALIZATION).unwrap();
        session.handle(&version(wanted)).unwrap();
        session
    }

    #[test]
    fn the_order_is_enforced() {
        let all = [
            BEGIN_INITIALIZATION,
            QUERY_PROTOCOL_VERSION,
            QUERY_PROPERTIES,
            END_INITIALIZATION,
            CREATE_SUB_CHANNELS,
            ENUMERATE_BUS,
        ];
        let mut session = session(3);
        for next in 0..4 {
            assert!(!session.is_ready());
            for (at, &operation) in all.iter().enumerate() {
                let ahead = operation == CREATE_SUB_CHANNELS && next == 3;
                if at != next && !ahead {
                    let refused = session.handle(&Packet::new(operation));
                    assert_eq!(refused, Err(NtStatus::INVALID_DEVICE_STATE), "{operation}");
                }
            }
            let packet = if next == 1 {
                version(0x0602)
            } else {
                Packet::new(all[next])
            };
            session.handle(&packet).unwrap();
        }
        assert!(session.is_ready() && session.has_enumeration());
    }

    #[test]
    fn versions() {
        let mut session = session(0);
        step(&mut session, BEGIN_INITIALIZATION).unwrap();
        for unknown in [0, 0x0100, 0x0500, 0x0601, 0x0700, 0xffff] {
            let refused = session.handle(&version(unknown));
            assert_eq!(refused, Err(NtStatus::REVISION_MISMATCH));
        }
        for known in [0x0200, 0x0402, 0x0501, 0x0600, 0x0602] {
            negotiated(0, known);
        }
    }

    #[test]
    fn subchannels_from_version_5_1() {
        let count = |count: u16| Packet::new(CREATE_SUB_CHANNELS).with_payload(&count);
        let mut new = negotiated(3, 0x0501);
        let Ok(Done::Properties(properties)) = step(&mut new, QUERY_PROPERTIES) else {
            panic!("no properties");
        };
        assert_eq!((properties.max_channel_count, properties.flags), (3, 1));
        assert_eq!(new.handle(&count(3)), Ok(Done::Subchannels(3)));
        assert_eq!(new.handle(&count(4)), Err(NtStatus::INVALID_PARAMETER));
        let mut old = negotiated(3, 0x0402);
        let Ok(Done::Properties(properties)) = step(&mut old, QUERY_PROPERTIES) else {
            panic!("no properties");
        };
        assert_eq!((properties.max_channel_count, properties.flags), (0, 0));
        assert_eq!(old.handle(&count(1)), Err(NtStatus::INVALID_DEVICE_STATE));
    }
}
