//! The bus at work: the control plane behind a lock, one service thread that
//! carries out its effects, and channels in the hands of their devices.

mod channel;
mod gpadl;
mod host;
mod link;
mod service;

pub use channel::{ChannelError, ChannelInfo, ChannelReader, ChannelWriter, OpenChannel};
pub use gpadl::Gpadl;
pub use host::{BusHost, PartitionHost, PortError, Posted};
pub use link::{Wake, Waker};

use crate::protocol::{
    Guid, MESSAGE_CONNECTION_ID, MULTICLIENT_MESSAGE_CONNECTION_ID, MessageType, Version,
    parse_type,
};
use crate::server::{
    Effect, Input, OfferError, OfferId, OfferParams, Server, ServerConfig, ServerUsage,
};
use link::Link;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;
use vid::RootNotification;

/// Messages of the guest that may wait for the service thread.
const MAX_INBOX: usize = 32;
/// The SynIC message type that guests post control messages with.
const VMBUS_MESSAGE_TYPE: u32 = 1;

/// A device behind a channel. All calls come from the bus's service thread,
/// one at a time, with no lock held. They should be quick: no other channel
/// is opened or closed meanwhile.
pub trait Vsp: Send {
    /// The channel's identity.
    fn offer(&self) -> OfferParams;

    /// The guest opens the channel. A device usually gives it to a thread of
    /// its own.
    ///
    /// # Errors
    ///
    /// Any: the guest is told that it failed.
    fn open(&mut self, channel: OpenChannel) -> Result<(), Box<dyn std::error::Error>>;

    /// The guest closes the channel. When this returns, the device has let go
    /// of the [`OpenChannel`] and every [`Gpadl`]. Reads and writes have been
    /// failing with [`ChannelError::Closed`] since before the call.
    fn close(&mut self);

    /// The guest takes a GPADL back: the device should give up its mapping
    /// soon. The guest waits for it.
    fn gpadl_teardown(&mut self, _gpadl_id: u32) {}
}

/// Takes sockets that the guest connects to.
pub trait SocketListener: Send + Sync {
    /// A guest wants a connection. The answer is
    /// [`BusHandle::tl_connect_done`], after a channel for it was offered.
    fn connect(&self, bus: &BusHandle, endpoint_id: Guid, service_id: Guid, silo_id: Guid);
}

/// How a bus behaves.
#[derive(Default)]
pub struct BusConfig {
    /// The highest version to agree to; `None` for all.
    pub max_version: Option<Version>,
    /// Who takes sockets; `None`: they are refused.
    pub sockets: Option<Arc<dyn SocketListener>>,
}

/// A bus could not start.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The guest could not be given its connections.
    #[error("the bus has no message port: {0}")]
    Port(#[from] PortError),
    /// The host has no thread left.
    #[error("the bus has no thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// The guest's message must wait: the hypercall should fail with
/// HV_STATUS_INSUFFICIENT_BUFFERS, and the guest tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

struct Slot {
    /// Away while the service thread calls it.
    vsp: Option<Box<dyn Vsp>>,
    link: Option<Arc<Link>>,
    connection_id: u32,
}

#[derive(Default)]
struct Mapping {
    users: usize,
    tearing_down: bool,
}

struct State {
    server: Server,
    effects: VecDeque<Effect>,
    inbox: VecDeque<(u32, Vec<u8>)>,
    slots: HashMap<OfferId, Slot>,
    mappings: HashMap<(OfferId, u32), Mapping>,
    stopping: bool,
}

impl State {
    /// A message waits that takes everything before it back.
    fn has_reset(&self) -> bool {
        self.inbox.iter().any(|(_, bytes)| {
            let kind = parse_type(bytes);
            matches!(
                kind,
                Some(MessageType::INITIATE_CONTACT | MessageType::UNLOAD)
            )
        })
    }
}

struct Shared {
    host: Arc<dyn BusHost>,
    sockets: Option<Arc<dyn SocketListener>>,
    state: Mutex<State>,
    /// There is work for the service thread.
    work: Condvar,
    /// A reset is done.
    progress: Condvar,
    /// Open channels by their connection, for the guest's signals.
    links: RwLock<HashMap<u32, Arc<Link>>>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an input to the server; the service thread does the rest.
    fn input(&self, input: Input<'_>) {
        let mut state = self.state();
        self.input_locked(&mut state, input);
    }

    fn input_locked(&self, state: &mut State, input: Input<'_>) {
        let mut effects = Vec::new();
        if let Err(violation) = state.server.handle(input, &mut effects) {
            tracing::debug!("guest: {violation}");
        }
        if !effects.is_empty() {
            state.effects.extend(effects);
            self.work.notify_one();
        }
    }

    fn notify(&self, notification: RootNotification) -> Result<(), Busy> {
        match notification {
            RootNotification::Event { port, .. } => {
                let links = self.links.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(link) = links.get(&port) {
                    link.ring();
                }
                Ok(())
            }
            RootNotification::Message {
                message_type: VMBUS_MESSAGE_TYPE,
                port,
                payload,
            } => {
                let mut state = self.state();
                if state.stopping {
                    return Ok(());
                }
                if state.inbox.len() >= MAX_INBOX {
                    return Err(Busy);
                }
                state.inbox.push_back((port, payload));
                self.work.notify_one();
                Ok(())
            }
            RootNotification::Message { .. } => Ok(()),
        }
    }
}

/// The bus of one partition.
pub struct Bus {
    shared: Arc<Shared>,
    service: Option<JoinHandle<()>>,
}

impl Bus {
    /// Starts the bus: the guest can connect from now on.
    ///
    /// # Errors
    ///
    /// [`BusError`] where the partition or the host has no room for it.
    pub fn start(host: Arc<dyn BusHost>, config: BusConfig) -> Result<Self, BusError> {
        let mut server = ServerConfig::new(host.processors());
        server.max_version = config.max_version.unwrap_or(server.max_version);
        server.sockets = config.sockets.is_some();
        let state = State {
            server: Server::new(server),
            effects: VecDeque::new(),
            inbox: VecDeque::new(),
            slots: HashMap::new(),
            mappings: HashMap::new(),
            stopping: false,
        };
        host.open_message_port(MESSAGE_CONNECTION_ID)?;
        let shared = Arc::new(Shared {
            host,
            sockets: config.sockets,
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            links: RwLock::default(),
        });
        let started = Self::start_service(&shared);
        if started.is_err() {
            shared.host.close_message_port(MESSAGE_CONNECTION_ID);
        }
        Ok(Self {
            service: Some(started?),
            shared,
        })
    }

    fn start_service(shared: &Arc<Shared>) -> Result<JoinHandle<()>, BusError> {
        shared
            .host
            .open_message_port(MULTICLIENT_MESSAGE_CONNECTION_ID)?;
        let service = service::Service::new(shared.clone());
        let thread = std::thread::Builder::new()
            .name("vmbus".into())
            .spawn(|| service.run());
        thread.map_err(|error| {
            shared
                .host
                .close_message_port(MULTICLIENT_MESSAGE_CONNECTION_ID);
            BusError::Thread(error)
        })
    }

    /// Takes a notification of one of the bus's ports, from any thread.
    ///
    /// # Errors
    ///
    /// [`Busy`] when too many messages wait; the notification is lost.
    pub fn notify(&self, notification: RootNotification) -> Result<(), Busy> {
        self.shared.notify(notification)
    }

    /// A handle for devices.
    pub fn handle(&self) -> BusHandle {
        BusHandle {
            shared: Arc::downgrade(&self.shared),
        }
    }

    /// Offers a device's channel.
    ///
    /// # Errors
    ///
    /// [`OfferError`] when there is one like it, or no room.
    pub fn offer(&self, vsp: Box<dyn Vsp>) -> Result<OfferId, OfferError> {
        offer(&self.shared, vsp)
    }

    /// Withdraws a channel, and its subchannels before it. The device is
    /// closed and dropped soon; the guest may keep the channel's id for
    /// longer.
    pub fn revoke(&self, offer: OfferId) {
        self.shared.input(Input::Revoke(offer));
    }

    /// The version that the guest has agreed to.
    pub fn version(&self) -> Option<Version> {
        self.shared
            .state()
            .server
            .version()
            .map(|(version, _)| version)
    }

    /// How much the bus keeps for its guest.
    pub fn usage(&self) -> ServerUsage {
        self.shared.state().server.usage()
    }

    /// Forgets the guest, for a reset of the virtual machine. When this
    /// returns, all channels are closed. Not to be called by a device from
    /// within [`Vsp`].
    pub fn reset(&self) {
        let mut state = self.shared.state();
        state.inbox.clear();
        self.shared.input_locked(&mut state, Input::Reset);
        while !state.server.is_disconnected() && !state.stopping {
            state = self
                .shared
                .progress
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Closes all channels and takes the guest's connections away.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        self.shared.state().stopping = true;
        self.shared.work.notify_all();
        self.shared.progress.notify_all();
        if let Some(service) = self.service.take() {
            // A device that panicked has said so already.
            let _ = service.join();
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn offer(shared: &Shared, vsp: Box<dyn Vsp>) -> Result<OfferId, OfferError> {
    let params = vsp.offer();
    let mut state = shared.state();
    let mut effects = Vec::new();
    let offer = state.server.offer(params, &mut effects)?;
    state.slots.insert(
        offer,
        Slot {
            vsp: Some(vsp),
            link: None,
            connection_id: 0,
        },
    );
    state.effects.extend(effects);
    shared.work.notify_one();
    Ok(offer)
}

/// The bus in the hands of a device. It does not keep the bus alive.
#[derive(Clone)]
pub struct BusHandle {
    shared: Weak<Shared>,
}

impl BusHandle {
    /// Takes a notification of one of the bus's ports, from any thread.
    ///
    /// # Errors
    ///
    /// [`Busy`] when too many messages wait; the notification is lost.
    pub fn notify(&self, notification: RootNotification) -> Result<(), Busy> {
        self.shared
            .upgrade()
            .map_or(Ok(()), |shared| shared.notify(notification))
    }

    /// Offers a further channel: a subchannel or a socket.
    ///
    /// # Errors
    ///
    /// [`OfferError`] when there is one like it, or no room, or no bus.
    pub fn offer(&self, vsp: Box<dyn Vsp>) -> Result<OfferId, OfferError> {
        offer(&*self.shared.upgrade().ok_or(OfferError::Full)?, vsp)
    }

    /// Withdraws a channel.
    pub fn revoke(&self, offer: OfferId) {
        if let Some(shared) = self.shared.upgrade() {
            shared.input(Input::Revoke(offer));
        }
    }

    /// Answers [`SocketListener::connect`]: 0, or an NTSTATUS.
    pub fn tl_connect_done(&self, endpoint_id: Guid, service_id: Guid, status: u32) {
        if let Some(shared) = self.shared.upgrade() {
            shared.input(Input::TlConnectDone {
                endpoint_id,
                service_id,
                status,
            });
            // Messages may have waited for this.
            shared.work.notify_one();
        }
    }
}
