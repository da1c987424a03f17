//! The guest's side of the bus, over the same wire types: for tests and
//! fuzzing of the host's side.

mod channel;
mod loopback;

pub use channel::ClientChannel;
pub use loopback::Loopback;

use crate::protocol::*;
use crate::ring::GuestPages;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the host may take for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest's means: hypercalls, its SynIC and its memory.
pub trait ClientTransport: Send + Sync {
    /// HvCallPostMessage; false for HV_STATUS_INSUFFICIENT_BUFFERS.
    fn post(&self, connection_id: u32, message: &[u8]) -> bool;

    /// Takes a message from the SINT, waiting for one.
    fn receive(&self, timeout: Duration) -> Option<Vec<u8>>;

    /// HvCallSignalEvent with flag 0.
    fn signal(&self, connection_id: u32);

    /// Waits for an event flag and clears it; false when the time is over.
    fn wait_event(&self, flag: u16, timeout: Duration) -> bool;

    /// The guest's own pages.
    fn pages(&self, pfns: &[u64]) -> Arc<dyn GuestPages>;
}

/// What goes wrong for a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The host does not answer.
    #[error("the host does not answer with {0:?}")]
    Silence(MessageType),
    /// No version is supported, or the last that was tried has failed.
    #[error("the host refuses the connection")]
    Refused,
    /// An NTSTATUS of the host.
    #[error("status {0:#x}")]
    Status(u32),
    /// The channel was rescinded while it was waited for.
    #[error("channel {0} was rescinded")]
    Rescinded(u32),
    /// A broken ring.
    #[error("{0}")]
    Ring(#[from] crate::ring::RingError),
}

/// A guest's VMBus driver.
pub struct Client {
    transport: Arc<dyn ClientTransport>,
    version: Version,
    connection_id: u32,
    /// Messages that came while another was waited for.
    pending: VecDeque<Vec<u8>>,
    next_gpadl: u32,
}

impl Client {
    /// A driver that is not connected yet.
    pub fn new(transport: Arc<dyn ClientTransport>) -> Self {
        Self {
            transport,
            version: Version(0),
            connection_id: MESSAGE_CONNECTION_ID,
            pending: VecDeque::new(),
            next_gpadl: 0xe1e10,
        }
    }

    /// The version agreed on.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Posts a message, again and again while the host is busy.
    pub fn post<T: Body>(&self, body: &T) {
        self.post_with(body, &[]);
    }

    fn post_with<T: Body>(&self, body: &T, data: &[u8]) {
        let message = ControlMessage::with_data(body, data);
        self.post_bytes(self.connection_id, message.as_bytes());
    }

    /// Posts any bytes by any connection.
    pub fn post_bytes(&self, connection_id: u32, bytes: &[u8]) {
        while !self.transport.post(connection_id, bytes) {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Waits for a message that `wanted` takes; others are kept.
    fn wait_for<T>(
        &mut self,
        kind: MessageType,
        mut wanted: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T, ClientError> {
        let found = self.pending.iter().enumerate().find_map(|(at, bytes)| {
            (parse_type(bytes) == Some(kind)).then(|| wanted(bytes).map(|value| (at, value)))?
        });
        if let Some((at, value)) = found {
            self.pending.remove(at);
            return Ok(value);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self
                .transport
                .receive(left)
                .ok_or(ClientError::Silence(kind))?;
            if parse_type(&message) == Some(kind)
                && let Some(value) = wanted(&message)
            {
                return Ok(value);
            }
            self.pending.push_back(message);
        }
    }

    /// Waits for a message of type `T`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Silence`].
    pub fn expect<T: Body>(&mut self) -> Result<T, ClientError> {
        self.wait_for(T::TYPE, |bytes| parse_body(bytes).map(|(body, _)| body))
    }

    /// Whether a message of type `T` is there already, or comes in time.
    pub fn poll<T: Body>(&mut self, timeout: Duration) -> Option<T> {
        while let Some(message) = self.transport.receive(timeout) {
            self.pending.push_back(message);
            if self
                .pending
                .back()
                .is_some_and(|bytes| parse_type(bytes) == Some(T::TYPE))
            {
                break;
            }
        }
        let at = self
            .pending
            .iter()
            .position(|bytes| parse_type(bytes) == Some(T::TYPE))?;
        parse_body(&self.pending.remove(at)?).map(|(body, _)| body)
    }

    /// Tries versions in order, as guests do.
    ///
    /// # Errors
    ///
    /// [`ClientError::Refused`] when the host takes none.
    pub fn connect(&mut self, versions: &[Version]) -> Result<Version, ClientError> {
        for &version in versions {
            self.pending.clear();
            let multiclient = version >= Version::WIN10_RS3_1;
            let info = TargetInfo {
                sint: VMBUS_SINT,
                feature_flags: FeatureFlags::all().bits(),
                ..TargetInfo::default()
            };
            let contact = InitiateContact {
                version_requested: version.0,
                target_message_vp: 0,
                interrupt_page_or_target_info: if multiclient { info.to_field() } else { 0x7000 },
                parent_to_child_monitor_page_gpa: 0x8000,
                child_to_parent_monitor_page_gpa: 0x9000,
            };
            self.connection_id = if multiclient {
                MULTICLIENT_MESSAGE_CONNECTION_ID
            } else {
                MESSAGE_CONNECTION_ID
            };
            self.post(&contact);
            let response: VersionResponse = self.expect()?;
            if response.version_supported != 0 {
                self.accept(version, &response)?;
                return Ok(version);
            }
        }
        Err(ClientError::Refused)
    }

    fn accept(&mut self, version: Version, response: &VersionResponse) -> Result<(), ClientError> {
        if response.connection_state != ConnectionState::SUCCESSFUL {
            return Err(ClientError::Refused);
        }
        self.version = version;
        if version >= Version::WIN10_RS3_1 {
            self.connection_id = response.selected_version_or_connection_id;
        }
        Ok(())
    }

    /// Asks for the offers.
    ///
    /// # Errors
    ///
    /// [`ClientError::Silence`].
    pub fn request_offers(&mut self) -> Result<Vec<OfferChannel>, ClientError> {
        self.post(&RequestOffers {});
        self.expect::<AllOffersDelivered>()?;
        let mut offers = Vec::new();
        self.pending.retain(|bytes| {
            let offer = (parse_type(bytes) == Some(MessageType::OFFER_CHANNEL))
                .then(|| parse_body::<OfferChannel>(bytes))
                .flatten();
            offers.extend(offer.map(|(offer, _)| offer));
            offer.is_none()
        });
        Ok(offers)
    }

    /// Makes a GPADL of whole pages.
    ///
    /// # Errors
    ///
    /// [`ClientError::Status`] when the host refuses.
    pub fn create_gpadl(&mut self, channel_id: u32, pfns: &[u64]) -> Result<u32, ClientError> {
        let gpadl_id = self.next_gpadl;
        self.next_gpadl += 1;
        let bytes = (pfns.len() as u64 * PAGE_SIZE) as u32;
        let mut list = [bytes.to_le_bytes(), [0; 4]].concat();
        list.extend(pfns.iter().flat_map(|pfn| pfn.to_le_bytes()));
        let header = GpadlHeader {
            channel_id,
            gpadl_id,
            len: list.len() as u16,
            count: 1,
        };
        let room = MAX_MESSAGE_SIZE - HEADER_SIZE - size_of::<GpadlHeader>();
        let (first, rest) = list.split_at(list.len().min(room / PFN_SIZE * PFN_SIZE));
        self.post_with(&header, first);
        let room = MAX_MESSAGE_SIZE - HEADER_SIZE - size_of::<GpadlBody>();
        for part in rest.chunks(room / PFN_SIZE * PFN_SIZE) {
            self.post_with(
                &GpadlBody {
                    message_number: 0,
                    gpadl_id,
                },
                part,
            );
        }
        let created: GpadlCreated =
            self.expect_if(|body: &GpadlCreated| body.gpadl_id == gpadl_id)?;
        if created.status == 0 {
            Ok(gpadl_id)
        } else {
            Err(ClientError::Status(created.status))
        }
    }

    fn expect_if<T: Body>(&mut self, is_it: impl Fn(&T) -> bool) -> Result<T, ClientError> {
        self.wait_for(T::TYPE, |bytes| {
            parse_body(bytes).map(|(body, _)| body).filter(&is_it)
        })
    }

    /// Takes a GPADL back.
    ///
    /// # Errors
    ///
    /// [`ClientError::Silence`] while the host has it mapped.
    pub fn teardown_gpadl(&mut self, channel_id: u32, gpadl_id: u32) -> Result<(), ClientError> {
        self.post(&GpadlTeardown {
            channel_id,
            gpadl_id,
        });
        self.expect_if(|body: &GpadlTorndown| body.gpadl_id == gpadl_id)
            .map(|_| ())
    }

    /// Opens a channel on fresh rings in the pages `pfns`, half of them for
    /// each direction.
    ///
    /// # Errors
    ///
    /// [`ClientError`] when the host refuses.
    pub fn open(
        &mut self,
        offer: &OfferChannel,
        pfns: &[u64],
    ) -> Result<ClientChannel, ClientError> {
        let gpadl_id = self.create_gpadl(offer.channel_id, pfns)?;
        let border = pfns.len() / 2;
        let transport = self.transport.clone();
        let channel = ClientChannel::new(transport, offer, gpadl_id, pfns, border)?;
        self.post(&OpenChannel {
            channel_id: offer.channel_id,
            open_id: offer.channel_id,
            ring_buffer_gpadl_id: gpadl_id,
            target_vp: 0,
            downstream_ring_buffer_page_offset: border as u32,
            user_data: [0; 120],
        });
        let result: OpenChannelResult =
            self.expect_if(|body: &OpenChannelResult| body.channel_id == offer.channel_id)?;
        if result.status == 0 {
            Ok(channel)
        } else {
            Err(ClientError::Status(result.status))
        }
    }

    /// Closes a channel and takes its rings back.
    ///
    /// # Errors
    ///
    /// [`ClientError::Silence`].
    pub fn close(&mut self, channel: ClientChannel) -> Result<(), ClientError> {
        let (channel_id, gpadl_id) = (channel.channel_id(), channel.gpadl_id());
        self.post(&CloseChannel { channel_id });
        self.teardown_gpadl(channel_id, gpadl_id)
    }

    /// Waits for a rescind, and gives the channel back.
    ///
    /// # Errors
    ///
    /// [`ClientError::Silence`].
    pub fn release_rescinded(&mut self) -> Result<u32, ClientError> {
        let RescindChannelOffer { channel_id } = self.expect()?;
        self.post(&RelIdReleased { channel_id });
        Ok(channel_id)
    }

    /// Disconnects.
    ///
    /// # Errors
    ///
    /// [`ClientError::Silence`].
    pub fn unload(&mut self) -> Result<(), ClientError> {
        self.post(&Unload {});
        self.expect::<UnloadComplete>().map(|_| ())
    }
}
