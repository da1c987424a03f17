//! The control plane of the bus as a pure state machine.
//!
//! [`Server::handle`] takes what the guest and the devices do, and appends
//! what is to be done to a list of effects. It does no I/O, so every path of
//! it can be driven by a test or a fuzzer. Everything that a guest can make
//! it keep is bounded.

mod channel;
mod connection;
mod contact;
mod gpadl;
mod open;
mod reserved;
mod sockets;
#[cfg(test)]
mod tests;

use crate::protocol::{
    Body, ControlMessage, FeatureFlags, GpaRange, Guid, MessageType, OfferFlags, Version,
    parse_body, parse_type,
};
use channel::Channels;
use connection::{Connection, Next};
use gpadl::InProgress;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Connect requests for sockets that may wait for the host at a time.
pub const MAX_TL_CONNECT_REQUESTS: usize = 16;

/// What the server must know about its partition.
#[derive(Clone, Copy, Debug)]
pub struct ServerConfig {
    /// Virtual processors: indexes below this exist.
    pub processors: u32,
    /// The highest version to agree to.
    pub max_version: Version,
    /// Whether somebody answers [`Effect::TlConnect`]. Otherwise sockets are
    /// refused at once.
    pub sockets: bool,
}

impl ServerConfig {
    /// All versions, no sockets.
    pub fn new(processors: u32) -> Self {
        Self {
            processors,
            max_version: Version::COPPER,
            sockets: false,
        }
    }
}

/// A channel as its device offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferParams {
    /// What kind of device.
    pub interface_id: Guid,
    /// Which of its kind; the same at each start of a VM.
    pub instance_id: Guid,
    /// 0, or which subchannel of the same instance.
    pub subchannel_index: u16,
    /// Flags.
    pub flags: OfferFlags,
    /// MiB of memory-mapped space that the device needs.
    pub mmio_megabytes: u16,
    /// MiB of memory-mapped space that the device can use.
    pub mmio_megabytes_optional: u16,
    /// The device's own; [`crate::protocol::UserDefined`] for pipes.
    pub user_defined: [u8; 120],
    /// Position among offers of the same kind.
    pub order: u32,
}

impl OfferParams {
    /// A channel with nothing but its identity.
    pub fn new(interface_id: Guid, instance_id: Guid) -> Self {
        Self {
            interface_id,
            instance_id,
            subchannel_index: 0,
            flags: OfferFlags::empty(),
            mmio_megabytes: 0,
            mmio_megabytes_optional: 0,
            user_defined: [0; 120],
            order: 0,
        }
    }

    /// A subchannel of the same device.
    pub fn subchannel(&self, index: u16) -> Self {
        Self {
            subchannel_index: index,
            ..self.clone()
        }
    }

    fn key(&self) -> (Guid, Guid, u16) {
        (self.interface_id, self.instance_id, self.subchannel_index)
    }
}

/// A channel, from its offer to its removal. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfferId(pub u64);

/// An offer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OfferError {
    /// There is one with the same interface, instance and subchannel.
    #[error("the channel is offered already")]
    Duplicate,
    /// All channel ids are in use.
    #[error("no channel is left")]
    Full,
}

/// What happens to the server.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The guest posted a message.
    Message {
        /// The connection it came by.
        connection_id: u32,
        /// Header and body.
        bytes: &'a [u8],
    },
    /// The virtual machine was reset: its guest is gone without a word.
    Reset,
    /// The device withdraws its channel.
    Revoke(OfferId),
    /// The device has opened the channel, or has not.
    OpenDone {
        /// The channel.
        offer: OfferId,
        /// From the request.
        sequence: u64,
        /// False: it refuses.
        opened: bool,
    },
    /// The device has closed the channel and touches its rings no more.
    CloseDone {
        /// The channel.
        offer: OfferId,
        /// From the request.
        sequence: u64,
    },
    /// No mapping of a GPADL is left.
    GpadlReleased {
        /// The channel.
        offer: OfferId,
        /// The GPADL.
        gpadl_id: u32,
    },
    /// The host's answer to a connect request. A connection that succeeds
    /// shows as an offer, so the guest hears of failures only.
    TlConnectDone {
        /// The guest's end.
        endpoint_id: Guid,
        /// The host's service.
        service_id: Guid,
        /// 0, or an NTSTATUS.
        status: u32,
    },
}

/// A channel is to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRequest {
    /// The channel.
    pub offer: OfferId,
    /// For [`Input::OpenDone`].
    pub sequence: u64,
    /// The channel's id, which is also its event flag.
    pub channel_id: u16,
    /// The connection that the guest signals.
    pub connection_id: u32,
    /// The virtual processor to signal; `None`: interrupts are off.
    pub target_vp: Option<u32>,
    /// The SINT to signal.
    pub sint: u8,
    /// Both rings, one range.
    pub ring: Arc<[GpaRange]>,
    /// The page where the host-to-guest ring begins, within the range.
    pub downstream_page: usize,
    /// The device's own.
    pub user_data: [u8; 120],
    /// Opened beyond the connection (a crash dump).
    pub reserved: bool,
}

/// What is to be done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Post a message.
    Send {
        /// The virtual processor.
        vp: u32,
        /// The SINT.
        sint: u8,
        /// The message.
        message: ControlMessage,
    },
    /// Forget messages that were not posted yet: their guest is gone.
    DiscardMessages,
    /// Open a channel: [`Input::OpenDone`] answers.
    Open(OpenRequest),
    /// Close a channel: [`Input::CloseDone`] answers.
    Close {
        /// The channel.
        offer: OfferId,
        /// For the answer.
        sequence: u64,
    },
    /// Signal another virtual processor from now on.
    SetTarget {
        /// The channel.
        offer: OfferId,
        /// The virtual processor.
        vp: u32,
    },
    /// Give up a GPADL: [`Input::GpadlReleased`] answers once it is unmapped.
    ReleaseGpadl {
        /// The channel.
        offer: OfferId,
        /// The GPADL.
        gpadl_id: u32,
    },
    /// A revoked channel is gone for good.
    Removed(OfferId),
    /// A guest connects to a socket: [`Input::TlConnectDone`] answers.
    TlConnect {
        /// The guest's end.
        endpoint_id: Guid,
        /// The host's service.
        service_id: Guid,
        /// The container, or zero.
        silo_id: Guid,
    },
}

/// The guest did what the protocol does not allow. It has been answered where
/// it waits for an answer, and otherwise been ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Too short for its type.
    #[error("a message of {0:?} is too short")]
    Short(MessageType),
    /// No such message from a guest, or not in the version agreed on.
    #[error("unexpected message {0:?}")]
    Unexpected(MessageType),
    /// Not connected, or paused.
    #[error("message {0:?} without a connection")]
    NotConnected(MessageType),
    /// RequestOffers came before.
    #[error("offers were requested twice")]
    OffersRequested,
    /// The guest does not have that channel.
    #[error("no channel {0}")]
    NoChannel(u32),
    /// The channel is not in a state for this.
    #[error("channel {0} is in the wrong state")]
    ChannelState(u32),
    /// A target that does not exist.
    #[error("no virtual processor or SINT for channel {0}")]
    Target(u32),
    /// The ring's GPADL or its division is of no use.
    #[error("channel {0} has no usable ring")]
    Ring(u32),
    /// A GPADL is malformed, or one too many.
    #[error("GPADL {0:#x} is refused")]
    Gpadl(u32),
    /// One monitor page without the other.
    #[error("one monitor page without the other")]
    MonitorPages,
}

/// Numbers about a server's state, for watching that they stay bounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerUsage {
    /// Channels, offered or waiting for their release.
    pub channels: usize,
    /// GPADLs, complete and not.
    pub gpadls: usize,
    /// Bytes of their page lists.
    pub gpadl_bytes: usize,
    /// Messages that wait for the guest to resume.
    pub held_messages: usize,
}

/// The bus's control plane.
#[derive(Debug)]
pub struct Server {
    config: ServerConfig,
    connection: Connection,
    channels: Channels,
    in_progress: HashMap<u32, InProgress>,
    gpadl_bytes: usize,
    held: Vec<ControlMessage>,
    connect_requests: VecDeque<(Guid, Guid)>,
    sequence: u64,
}

impl Server {
    /// A bus without channels and without a guest.
    pub fn new(config: ServerConfig) -> Self {
        Self {
            config,
            connection: Connection::Disconnected,
            channels: Channels::default(),
            in_progress: HashMap::new(),
            gpadl_bytes: 0,
            held: Vec::new(),
            connect_requests: VecDeque::new(),
            sequence: 0,
        }
    }

    /// Takes an input and appends what it leads to.
    ///
    /// # Errors
    ///
    /// [`Violation`], for the record: the effects are complete all the same.
    pub fn handle(&mut self, input: Input<'_>, effects: &mut Vec<Effect>) -> Result<(), Violation> {
        match input {
            Input::Message {
                connection_id,
                bytes,
            } => {
                return self.message(connection_id, bytes, effects);
            }
            Input::Reset => self.disconnect(Next::Nothing, effects),
            Input::Revoke(offer) => self.revoke(offer, effects),
            Input::OpenDone {
                offer,
                sequence,
                opened,
            } => {
                self.open_done(offer, sequence, opened, effects);
            }
            Input::CloseDone { offer, sequence } => self.close_done(offer, sequence, effects),
            Input::GpadlReleased { offer, gpadl_id } => {
                self.gpadl_released(offer, gpadl_id, effects);
            }
            Input::TlConnectDone {
                endpoint_id,
                service_id,
                status,
            } => {
                self.tl_connect_done(endpoint_id, service_id, status, effects);
            }
        }
        Ok(())
    }

    /// False while so much waits for the host that the guest's messages
    /// should wait too.
    pub fn wants_messages(&self) -> bool {
        self.connect_requests.len() < MAX_TL_CONNECT_REQUESTS
    }

    /// The version and features in force.
    pub fn version(&self) -> Option<(Version, FeatureFlags)> {
        self.connection
            .info()
            .map(|info| (info.version, info.features))
    }

    /// No guest is connected, and no channel is left from one that was.
    pub fn is_disconnected(&self) -> bool {
        matches!(self.connection, Connection::Disconnected)
            && self
                .channels
                .iter()
                .all(|(_, channel)| channel.state.is_closed())
    }

    /// How much the server keeps.
    pub fn usage(&self) -> ServerUsage {
        let complete: usize = self
            .channels
            .iter()
            .map(|(_, channel)| channel.gpadls.len())
            .sum();
        ServerUsage {
            channels: self.channels.len(),
            gpadls: complete + self.in_progress.len(),
            gpadl_bytes: self.gpadl_bytes,
            held_messages: self.held.len(),
        }
    }

    fn message(
        &mut self,
        connection_id: u32,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        let kind = parse_type(bytes).ok_or(Violation::Short(MessageType(0)))?;
        match kind {
            MessageType::INITIATE_CONTACT => {
                return self.initiate_contact(connection_id, bytes, effects);
            }
            MessageType::UNLOAD => {
                self.unload(effects);
                return Ok(());
            }
            // A crashed guest closes these with no connection any more.
            MessageType::CLOSE_RESERVED_CHANNEL => {
                return self.close_reserved_channel(&body(bytes)?, effects);
            }
            _ => {}
        }
        let info = self
            .connection
            .info()
            .ok_or(Violation::NotConnected(kind))?;
        let allowed = kind
            .minimum_version()
            .is_some_and(|minimum| minimum <= info.version)
            && info.has_feature_for(kind);
        if !allowed {
            return Err(Violation::Unexpected(kind));
        }
        if info.paused && kind != MessageType::RESUME {
            return Err(Violation::NotConnected(kind));
        }
        self.connected_message(kind, bytes, effects)
    }

    fn connected_message(
        &mut self,
        kind: MessageType,
        bytes: &[u8],
        effects: &mut Vec<Effect>,
    ) -> Result<(), Violation> {
        match kind {
            MessageType::REQUEST_OFFERS => self.request_offers(effects),
            MessageType::OPEN_CHANNEL => self.open_channel(&body(bytes)?, effects),
            MessageType::CLOSE_CHANNEL => self.close_channel(&body(bytes)?, effects),
            MessageType::MODIFY_CHANNEL => self.modify_channel(&body(bytes)?, effects),
            MessageType::REL_ID_RELEASED => self.rel_id_released(&body(bytes)?, effects),
            MessageType::GPADL_HEADER => {
                let (header, data) = parse_body(bytes).ok_or(Violation::Short(kind))?;
                self.gpadl_header(&header, data, effects)
            }
            MessageType::GPADL_BODY => {
                let (header, data) = parse_body(bytes).ok_or(Violation::Short(kind))?;
                self.gpadl_body(&header, data, effects)
            }
            MessageType::GPADL_TEARDOWN => self.gpadl_teardown(&body(bytes)?, effects),
            MessageType::OPEN_RESERVED_CHANNEL => {
                self.open_reserved_channel(&body(bytes)?, effects)
            }
            MessageType::TL_CONNECT_REQUEST => self.tl_connect_request(bytes, effects),
            MessageType::MODIFY_CONNECTION => self.modify_connection(&body(bytes)?, effects),
            MessageType::PAUSE => self.pause(effects),
            MessageType::RESUME => self.resume(effects),
            other => Err(Violation::Unexpected(other)),
        }
    }

    /// Sends to where the guest wants its messages, or holds while it is
    /// paused. Without a connection nobody is there to hear it.
    fn send<T: Body>(&mut self, body: &T, effects: &mut Vec<Effect>) {
        let message = ControlMessage::new(body);
        match self.connection.info() {
            Some(info) if info.paused => self.held.push(message),
            Some(info) => effects.push(Effect::Send {
                vp: info.vp,
                sint: info.sint,
                message,
            }),
            None => {}
        }
    }

    fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

/// A message's body.
fn body<T: Body>(bytes: &[u8]) -> Result<T, Violation> {
    parse_body(bytes)
        .map(|(body, _)| body)
        .ok_or(Violation::Short(T::TYPE))
}
