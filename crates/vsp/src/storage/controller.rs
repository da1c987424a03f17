//! A SCSI controller: its channels, and the worker's handle.

use super::channel::{self, Channel};
use super::medium::Medium;
use super::memory::GuestMemory;
use super::protocol::SCSI_INTERFACE;
use super::scsi::{Disk, DvdDrive, LunError, Target, Unit, place};
use super::session::{Limits, Session};
use super::statistics::{ControllerStatistics, Counters};
use super::uring::Io;
use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::thread::JoinHandle;
use vmbus::bus::{BusHandle, OpenChannel, Vsp};
use vmbus::protocol::Guid;
use vmbus::server::{OfferError, OfferId, OfferParams};
use zerocopy::IntoBytes;

/// Bytes of one request, unless it is configured otherwise. Linux splits what is longer.
pub const DEFAULT_MAX_TRANSFER: u32 = 1 << 20;
/// Threads that carry requests of one channel out, unless it is configured
/// otherwise.
pub const DEFAULT_THREADS: usize = 4;
/// Subchannels that a guest has not given back yet may stand in the way of
/// new ones; so many numbers are tried for each.
const TRIES_PER_SUBCHANNEL: u16 = 4;

/// How a controller is to be.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// Which controller it is; the same at each start of the virtual machine.
    pub instance_id: Guid,
    /// Position among the machine's controllers, from 0.
    pub index: u32,
    /// Channels that a guest can open beside the first: best one less than
    /// processors. 0 for none.
    pub subchannels: u16,
    /// Bytes of one request at most; a multiple of 4096.
    pub max_transfer: u32,
    /// Threads for each channel that carry requests out.
    pub threads_per_channel: usize,
    /// How files are read and written.
    pub io: Io,
}

impl ControllerConfig {
    /// A controller without subchannels.
    pub fn new(instance_id: Guid, index: u32) -> Self {
        Self {
            instance_id,
            index,
            subchannels: 0,
            max_transfer: DEFAULT_MAX_TRANSFER,
            threads_per_channel: DEFAULT_THREADS,
            io: Io::default(),
        }
    }
}

/// What all channels of a controller share.
pub(super) struct Controller {
    config: ControllerConfig,
    memory: Arc<dyn GuestMemory>,
    target: Target,
    session: Mutex<Session>,
    counters: Counters,
    /// The first channel, while it is open.
    primary: Mutex<Option<Arc<Channel>>>,
    subchannels: Mutex<Vec<OfferId>>,
}

impl Controller {
    pub(super) fn memory(&self) -> &dyn GuestMemory {
        &*self.memory
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock()
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(super) fn threads_per_channel(&self) -> usize {
        self.config.threads_per_channel
    }

    pub(super) fn io(&self) -> Io {
        self.config.io
    }

    fn limits(&self) -> Limits {
        let max_transfer = self.config.max_transfer.max(4096);
        Limits {
            subchannels: self.config.subchannels,
            max_transfer,
        }
    }

    fn params(&self) -> OfferParams {
        let mut params = OfferParams::new(SCSI_INTERFACE, self.config.instance_id);
        params.order = self.config.index;
        params
    }

    /// Offers subchannels until there are `count`.
    pub(super) fn offer_subchannels(self: &Arc<Self>, bus: &BusHandle, count: u16) {
        let mut offered = self.subchannels.lock();
        let last = self.config.subchannels.saturating_mul(TRIES_PER_SUBCHANNEL);
        for index in 1..=last {
            if offered.len() >= usize::from(count) {
                return;
            }
            match bus.offer(Box::new(StorageVsp::new(self.clone(), index))) {
                Ok(offer) => offered.push(offer),
                Err(OfferError::Duplicate) => {}
                Err(OfferError::Full) => {
                    tracing::warn!("the bus has no room for another storage channel");
                    return;
                }
            }
        }
    }

    fn notify(&self) {
        if !self.session().has_enumeration() {
            return;
        }
        let primary = self.primary.lock().clone();
        if let Some(primary) = primary {
            primary.enumerate();
        }
    }

    fn primary_closed(&self, bus: &BusHandle) {
        *self.session() = Session::new(self.limits());
        for offer in std::mem::take(&mut *self.subchannels.lock()) {
            bus.revoke(offer);
        }
    }
}

struct Running {
    thread: JoinHandle<()>,
    bus: BusHandle,
}

/// A channel of a controller, for the bus to offer.
pub struct StorageVsp {
    controller: Arc<Controller>,
    subchannel: u16,
    running: Option<Running>,
}

impl StorageVsp {
    fn new(controller: Arc<Controller>, subchannel: u16) -> Self {
        Self {
            controller,
            subchannel,
            running: None,
        }
    }

    fn name(&self) -> String {
        // Threads have short names.
        format!("scsi{}-{}", self.controller.config.index, self.subchannel)
    }
}

impl Vsp for StorageVsp {
    fn offer(&self) -> OfferParams {
        let params = self.controller.params();
        if self.subchannel == 0 {
            params
        } else {
            params.subchannel(self.subchannel)
        }
    }

    fn open(&mut self, channel: OpenChannel) -> Result<(), Box<dyn std::error::Error>> {
        self.close();
        let bus = channel.bus.clone();
        if self.subchannel == 0 {
            *self.controller.session() = Session::new(self.controller.limits());
        }
        let (channel, thread) = channel::start(&self.controller, channel, self.name())?;
        if self.subchannel == 0 {
            *self.controller.primary.lock() = Some(channel);
        }
        self.running = Some(Running { thread, bus });
        Ok(())
    }

    fn close(&mut self) {
        let Some(running) = self.running.take() else {
            return;
        };
        if self.subchannel == 0 {
            *self.controller.primary.lock() = None;
        }
        // A thread that has panicked has said so.
        let _ = running.thread.join();
        if self.subchannel == 0 {
            self.controller.primary_closed(&running.bus);
        }
    }
}

impl Drop for StorageVsp {
    fn drop(&mut self) {
        self.close();
    }
}

/// A unit to attach.
pub enum Attachment {
    /// A disk.
    Disk(Arc<dyn Medium>),
    /// An optical drive, with a medium or none.
    Dvd(Option<Arc<dyn Medium>>),
}

/// A SCSI controller, up to 64 logical units.
pub struct StorageController;

impl StorageController {
    /// A controller, to be offered to the guest whose memory is `memory`, and
    /// its handle.
    #[allow(clippy::new_ret_no_self, reason = "a controller is these two sides")]
    pub fn new(
        config: ControllerConfig,
        memory: Arc<dyn GuestMemory>,
    ) -> (StorageVsp, ControllerHandle) {
        let max_transfer = config.max_transfer.max(4096);
        let limits = Limits {
            subchannels: config.subchannels,
            max_transfer,
        };
        let controller = Arc::new(Controller {
            config,
            memory,
            target: Target::default(),
            session: Mutex::new(Session::new(limits)),
            counters: Counters::default(),
            primary: Mutex::default(),
            subchannels: Mutex::default(),
        });
        let vsp = StorageVsp::new(controller.clone(), 0);
        (vsp, ControllerHandle { controller })
    }
}

/// A controller in the hands of the worker. Units can come and go at any
/// time; a guest that runs is told.
#[derive(Clone)]
pub struct ControllerHandle {
    controller: Arc<Controller>,
}

impl ControllerHandle {
    /// Adds a unit.
    ///
    /// # Errors
    ///
    /// [`LunError::OutOfRange`], [`LunError::InUse`].
    pub fn attach(&self, lun: u8, attachment: Attachment) -> Result<(), LunError> {
        let mut controller = [0; 16];
        controller.copy_from_slice(self.controller.config.instance_id.as_bytes());
        let place = place(controller, lun);
        let unit = match attachment {
            Attachment::Disk(medium) => {
                let max_transfer = self.controller.limits().max_transfer;
                Unit::Disk(Arc::new(Disk::new(medium, place, max_transfer)))
            }
            Attachment::Dvd(medium) => Unit::Dvd(Arc::new(DvdDrive::new(medium, place))),
        };
        self.controller.target.attach(lun, unit)?;
        self.controller.notify();
        Ok(())
    }

    /// Removes a unit. When this returns, its medium is not used any more.
    ///
    /// # Errors
    ///
    /// [`LunError::OutOfRange`], [`LunError::Empty`].
    pub fn detach(&self, lun: u8) -> Result<(), LunError> {
        drop(self.controller.target.detach(lun)?);
        self.controller.notify();
        Ok(())
    }

    /// Puts a medium into an optical drive; what was there comes back.
    ///
    /// # Errors
    ///
    /// [`LunError::Empty`], [`LunError::WrongKind`], or [`LunError::Locked`]
    /// while the guest keeps the medium that is there.
    pub fn insert(
        &self,
        lun: u8,
        medium: Arc<dyn Medium>,
    ) -> Result<Option<Arc<dyn Medium>>, LunError> {
        self.drive(lun)?
            .insert(medium)
            .map_err(|_| LunError::Locked(lun))
    }

    /// Takes the medium out of an optical drive. Reads that have begun may
    /// still use it for a moment. Without `force` a guest that has locked the
    /// drive keeps it, and is asked to let it go.
    ///
    /// # Errors
    ///
    /// [`LunError::Empty`], [`LunError::WrongKind`], [`LunError::Locked`].
    pub fn eject(&self, lun: u8, force: bool) -> Result<Option<Arc<dyn Medium>>, LunError> {
        self.drive(lun)?
            .remove(force)
            .map_err(|_| LunError::Locked(lun))
    }

    fn drive(&self, lun: u8) -> Result<Arc<DvdDrive>, LunError> {
        match self.controller.target.unit(lun)? {
            Unit::Dvd(drive) => Ok(drive),
            Unit::Disk(_) => Err(LunError::WrongKind(lun)),
        }
    }

    /// A disk's medium has another size now: the guest is told.
    ///
    /// # Errors
    ///
    /// [`LunError::Empty`], [`LunError::WrongKind`].
    pub fn resized(&self, lun: u8) -> Result<(), LunError> {
        let Unit::Disk(disk) = self.controller.target.unit(lun)? else {
            return Err(LunError::WrongKind(lun));
        };
        disk.resized();
        self.controller.notify();
        Ok(())
    }

    /// The LUNs that are in use.
    pub fn luns(&self) -> Vec<u8> {
        self.controller.target.luns()
    }

    /// What the controller has done.
    pub fn statistics(&self) -> ControllerStatistics {
        self.controller.counters.snapshot(&self.luns())
    }
}
