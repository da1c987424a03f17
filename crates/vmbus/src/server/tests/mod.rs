//! The state machine, driven by hand.

mod channels;
mod contact;
mod gpadls;
mod limits;
mod reserved;

use super::*;
use crate::protocol::*;

/// A server and what it has done since it was last looked at.
struct Driver {
    server: Server,
    effects: Vec<Effect>,
}

const INTERFACE: Guid = Guid::from_u128(0x1000);

fn params(instance: u128) -> OfferParams {
    OfferParams::new(INTERFACE, Guid::from_u128(instance))
}

impl Driver {
    fn new() -> Self {
        Self::with_config(ServerConfig::new(4))
    }

    fn with_config(config: ServerConfig) -> Self {
        Self {
            server: Server::new(config),
            effects: Vec::new(),
        }
    }

    /// A guest of a version, connected, with the offers requested.
    fn connected(version: Version) -> Self {
        let mut driver = Self::new();
        driver.connect(version);
        driver
    }

    fn connect(&mut self, version: Version) {
        self.contact(MULTICLIENT_MESSAGE_CONNECTION_ID, &contact(version))
            .unwrap();
        self.post(&RequestOffers {}).unwrap();
        assert_eq!(
            self.server.version().map(|(version, _)| version),
            Some(version)
        );
        self.effects.clear();
    }

    fn contact(&mut self, connection_id: u32, contact: &InitiateContact) -> Result<(), Violation> {
        let message = ControlMessage::new(contact);
        let input = Input::Message {
            connection_id,
            bytes: message.as_bytes(),
        };
        self.server.handle(input, &mut self.effects)
    }

    fn post<T: Body>(&mut self, body: &T) -> Result<(), Violation> {
        self.post_with(body, &[])
    }

    fn post_with<T: Body>(&mut self, body: &T, data: &[u8]) -> Result<(), Violation> {
        let message = ControlMessage::with_data(body, data);
        let bytes = message.as_bytes();
        self.server.handle(
            Input::Message {
                connection_id: 1,
                bytes,
            },
            &mut self.effects,
        )
    }

    fn input(&mut self, input: Input<'_>) {
        self.server.handle(input, &mut self.effects).unwrap();
    }

    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// The messages among the effects, which must all be such.
    fn sent(&mut self) -> Vec<ControlMessage> {
        let message = |effect| match effect {
            Effect::Send {
                vp: 0,
                sint: VMBUS_SINT,
                message,
            } => message,
            other => panic!("{other:?}"),
        };
        self.take().into_iter().map(message).collect()
    }

    /// The one message that was sent.
    fn reply<T: Body>(&mut self) -> T {
        let sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent[0].body().unwrap_or_else(|| panic!("{sent:?}"))
    }

    fn offer(&mut self, instance: u128) -> OfferId {
        self.server
            .offer(params(instance), &mut self.effects)
            .unwrap()
    }

    /// Offers a channel to a guest that is connected; offer and channel id.
    fn offered(&mut self, instance: u128) -> (OfferId, u32) {
        let offer = self.offer(instance);
        (offer, self.reply::<OfferChannel>().channel_id)
    }

    fn gpadl(&mut self, channel_id: u32, gpadl_id: u32, pfns: &[u64]) {
        let list = ranges(pfns);
        let header = GpadlHeader {
            channel_id,
            gpadl_id,
            len: list.len() as u16,
            count: 1,
        };
        self.post_with(&header, &list).unwrap();
        let created = GpadlCreated {
            channel_id,
            gpadl_id,
            status: 0,
        };
        assert_eq!(self.reply::<GpadlCreated>(), created);
    }

    /// Asks to open; the sequence of the request to the device.
    fn open(&mut self, channel_id: u32, gpadl_id: u32) -> u64 {
        self.post(&open_message(channel_id, gpadl_id)).unwrap();
        match &self.take()[..] {
            [Effect::Open(request)] => request.sequence,
            other => panic!("{other:?}"),
        }
    }

    /// Opens to the end.
    fn opened(&mut self, offer: OfferId, channel_id: u32, gpadl_id: u32) {
        let sequence = self.open(channel_id, gpadl_id);
        self.input(Input::OpenDone {
            offer,
            sequence,
            opened: true,
        });
        let status = 0;
        let result = OpenChannelResult {
            channel_id,
            open_id: 70 + channel_id,
            status,
        };
        assert_eq!(self.reply::<OpenChannelResult>(), result);
    }

    /// The device's close requests among the effects, which are taken.
    fn closes(&mut self) -> Vec<(OfferId, u64)> {
        let close = |effect| match effect {
            Effect::Close { offer, sequence } => Some((offer, sequence)),
            _ => None,
        };
        self.take().into_iter().filter_map(close).collect()
    }

    fn close_done(&mut self, (offer, sequence): (OfferId, u64)) {
        self.input(Input::CloseDone { offer, sequence });
    }
}

/// A contact as a guest of the version makes it.
fn contact(version: Version) -> InitiateContact {
    let info = TargetInfo {
        sint: VMBUS_SINT,
        feature_flags: !0,
        ..TargetInfo::default()
    };
    InitiateContact {
        version_requested: version.0,
        target_message_vp: 0,
        interrupt_page_or_target_info: info.to_field(),
        parent_to_child_monitor_page_gpa: 0x1000,
        child_to_parent_monitor_page_gpa: 0x2000,
    }
}

fn open_message(channel_id: u32, gpadl_id: u32) -> OpenChannel {
    OpenChannel {
        channel_id,
        open_id: 70 + channel_id,
        ring_buffer_gpadl_id: gpadl_id,
        target_vp: 1,
        downstream_ring_buffer_page_offset: 2,
        user_data: [5; 120],
    }
}

fn ranges(pfns: &[u64]) -> Vec<u8> {
    let mut bytes = (pfns.len() as u32 * 4096).to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(pfns.iter().flat_map(|pfn| pfn.to_le_bytes()));
    bytes
}
