//! The VM's disks and optical drives: which file lies where.
//!
//! Files are opened once and stay open over resets of the VM; the SCSI
//! controllers are made anew at each boot and get what is here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disk::ops::OpenOptions;
use disk::{DiskError, VirtualDisk};
use vid::Partition;
use vmbus::bus::Bus;
use vmbus::protocol::Guid;
use vmbus::server::OfferError;
use vsp::storage::medium::{DataRange, Medium, MediumError, MediumInfo};
use vsp::storage::{
    Attachment, ControllerConfig, ControllerHandle, ControllerStatistics, DiskMedium, LunError,
    StorageController,
};

/// SCSI controllers that a VM can have, as in Hyper-V.
pub const MAX_CONTROLLERS: u32 = 4;
/// Logical units of one controller.
pub const MAX_LUNS: u8 = 64;
/// The first controller's instance; the others count up from it.
const CONTROLLER_INSTANCE: u128 = 0x6b3e_91c4_5f0d_4c1a_9a55_7061_7274_0000;
/// Sector size of optical media, in bytes.
const OPTICAL_SECTOR: u32 = 2048;

/// A disk or an optical drive of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The file or block device; `None` for an optical drive without a medium.
    pub path: Option<PathBuf>,
    /// The guest may only read it.
    pub read_only: bool,
    /// An optical drive, its file an ISO image.
    pub optical: bool,
    /// SCSI controller, below [`MAX_CONTROLLERS`].
    pub controller: u32,
    /// Logical unit, below [`MAX_LUNS`]; `None` for the first that is free.
    pub lun: Option<u8>,
}

impl DiskConfig {
    /// A disk for reading and writing, at the first free place of the first
    /// controller.
    #[must_use]
    pub fn disk(path: PathBuf) -> Self {
        Self {
            path: Some(path),
            read_only: false,
            optical: false,
            controller: 0,
            lun: None,
        }
    }

    /// An optical drive at the first free place of the first controller.
    #[must_use]
    pub fn dvd(path: Option<PathBuf>) -> Self {
        Self {
            path,
            read_only: true,
            optical: true,
            controller: 0,
            lun: None,
        }
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn VirtualDisk>, DiskError> {
        let options = OpenOptions {
            read_only: self.read_only || self.optical,
            format: self.optical.then_some(disk::Format::Raw),
            raw_sector_size: self.optical.then_some(OPTICAL_SECTOR),
        };
        disk::ops::open(path, &options)
    }
}

/// Where a drive is: controller and logical unit.
pub(crate) type Location = (u32, u8);

/// Why something cannot be done with a drive.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// There is no drive.
    #[error("no drive is at controller {0}, LUN {1}")]
    NoDrive(u32, u8),
    /// The place does not exist.
    #[error("there is no place at controller {0}, LUN {1}")]
    NoPlace(u32, u8),
    /// The place is taken.
    #[error("controller {0}, LUN {1} is in use")]
    InUse(u32, u8),
    /// All places are taken.
    #[error("all places of controller {0} are in use")]
    Full(u32),
    /// The guest holds the medium.
    #[error("the guest has locked the drive")]
    Locked,
    /// It is not a drive of that kind.
    #[error("the drive at controller {0}, LUN {1} is {2}")]
    WrongKind(u32, u8, &'static str),
    /// The file cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The request lacks something.
    #[error("{0}")]
    Argument(&'static str),
}

/// An image in an optical drive, which remembers that the guest has ejected it.
struct Optical {
    path: PathBuf,
    medium: DiskMedium,
    ejected: AtomicBool,
}

impl Medium for Optical {
    fn info(&self) -> MediumInfo {
        self.medium.info()
    }

    fn read(&self, offset: u64, data: DataRange<'_>) -> Result<(), MediumError> {
        self.medium.read(offset, data)
    }

    fn write(&self, _: u64, _: DataRange<'_>, _: bool) -> Result<(), MediumError> {
        Err(MediumError::ReadOnly)
    }

    fn flush(&self) -> Result<(), MediumError> {
        Ok(())
    }

    fn unmap(&self, _: u64, _: u64) -> Result<(), MediumError> {
        Err(MediumError::ReadOnly)
    }

    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), MediumError> {
        Err(MediumError::ReadOnly)
    }

    fn ejected(&self) {
        self.ejected.store(true, Ordering::Relaxed);
    }
}

enum Drive {
    Disk {
        path: PathBuf,
        read_only: bool,
        medium: Arc<DiskMedium>,
    },
    Dvd(Option<Arc<Optical>>),
}

impl Drive {
    fn open(config: &DiskConfig) -> Result<Self, DriveError> {
        match &config.path {
            None if config.optical => Ok(Self::Dvd(None)),
            None => Err(DriveError::Argument("a disk needs a file")),
            Some(path) if config.optical => Ok(Self::Dvd(Some(optical(config, path)?))),
            Some(path) => {
                let disk = config.open(path)?;
                let medium = if config.read_only {
                    DiskMedium::read_only(disk)
                } else {
                    DiskMedium::new(disk)
                };
                Ok(Self::Disk {
                    path: path.clone(),
                    read_only: config.read_only,
                    medium: Arc::new(medium),
                })
            }
        }
    }

    /// What the guest sees of it; an ejected medium is let go of.
    fn attachment(&mut self) -> Attachment {
        match self {
            Self::Disk { medium, .. } => Attachment::Disk(medium.clone()),
            Self::Dvd(medium) => {
                if medium.as_ref().is_some_and(|medium| medium.is_ejected()) {
                    *medium = None;
                }
                Attachment::Dvd(medium.clone().map(|medium| medium as Arc<dyn Medium>))
            }
        }
    }
}

impl Optical {
    fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }
}

fn optical(config: &DiskConfig, path: &Path) -> Result<Arc<Optical>, DriveError> {
    Ok(Arc::new(Optical {
        path: path.to_owned(),
        medium: DiskMedium::read_only(config.open(path)?),
        ejected: AtomicBool::new(false),
    }))
}

/// A drive, for whoever asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DriveStatus {
    pub(crate) location: Location,
    pub(crate) optical: bool,
    pub(crate) path: Option<PathBuf>,
    pub(crate) read_only: bool,
    /// Bytes, if there is a medium.
    pub(crate) size: Option<u64>,
    pub(crate) format: Option<disk::Format>,
}

#[derive(Default)]
struct Inner {
    drives: BTreeMap<Location, Drive>,
    /// The controllers of the machine that runs now.
    controllers: BTreeMap<u32, ControllerHandle>,
}

/// All drives of a VM.
#[derive(Default)]
pub(crate) struct Disks {
    inner: Mutex<Inner>,
    /// Controllers that the guest finds at each boot.
    offered: Vec<u32>,
}

impl Disks {
    /// Opens the drives of a configuration.
    ///
    /// # Errors
    ///
    /// The first that cannot be had, and why.
    pub(crate) fn open(configs: &[DiskConfig]) -> Result<Self, (usize, DriveError)> {
        let mut inner = Inner::default();
        // Those with a place of their own first: the others go around them.
        let placed = configs.iter().enumerate().filter(|c| c.1.lun.is_some());
        let floating = configs.iter().enumerate().filter(|c| c.1.lun.is_none());
        for (index, config) in placed.chain(floating) {
            let opened = inner
                .place(config)
                .and_then(|location| Ok((location, Drive::open(config)?)));
            let (location, drive) = opened.map_err(|error| (index, error))?;
            inner.drives.insert(location, drive);
        }
        let mut offered: Vec<u32> = configs.iter().map(|config| config.controller).collect();
        // Disks can be added to a VM that has none, as in Hyper-V.
        offered.push(0);
        offered.sort_unstable();
        offered.dedup();
        Ok(Self {
            inner: Mutex::new(inner),
            offered,
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers the controllers, with their drives, to a guest that is about to
    /// start.
    ///
    /// # Errors
    ///
    /// [`OfferError`]: the bus has no room.
    pub(crate) fn connect(
        &self,
        bus: &Bus,
        partition: &Arc<Partition>,
        processors: u32,
    ) -> Result<(), OfferError> {
        let mut inner = self.inner();
        for &index in &self.offered {
            let instance = Guid::from_u128(CONTROLLER_INSTANCE + u128::from(index));
            let mut config = ControllerConfig::new(instance, index);
            config.subchannels = processors.saturating_sub(1) as u16;
            let (vsp, handle) = StorageController::new(config, partition.clone());
            for (&(_, lun), drive) in inner.drives.range_mut((index, 0)..=(index, u8::MAX)) {
                let attached = handle.attach(lun, drive.attachment());
                debug_assert_eq!(attached, Ok(()), "places were checked");
            }
            bus.offer(Box::new(vsp))?;
            inner.controllers.insert(index, handle);
        }
        Ok(())
    }

    /// The guest is gone. What it wrote is made durable.
    pub(crate) fn disconnect(&self) {
        let mut inner = self.inner();
        inner.controllers.clear();
        for drive in inner.drives.values() {
            if let Drive::Disk { medium, path, .. } = drive
                && let Err(error) = medium.flush()
                && !matches!(error, MediumError::ReadOnly)
            {
                tracing::error!(path = %path.display(), %error, "the disk was not flushed");
            }
        }
    }

    /// Adds a drive, also while the guest runs.
    pub(crate) fn add(&self, config: &DiskConfig) -> Result<Location, DriveError> {
        let mut inner = self.inner();
        if !self.offered.contains(&config.controller) {
            let lun = config.lun.unwrap_or(0);
            return Err(DriveError::NoPlace(config.controller, lun));
        }
        let location = inner.place(config)?;
        let mut drive = Drive::open(config)?;
        if let Some(controller) = inner.controllers.get(&location.0) {
            controller
                .attach(location.1, drive.attachment())
                .map_err(|error| lun_error(error, location))?;
        }
        inner.drives.insert(location, drive);
        Ok(location)
    }

    /// Takes a drive out, also while the guest runs.
    pub(crate) fn remove(&self, location: Location) -> Result<(), DriveError> {
        let mut inner = self.inner();
        let drive = inner.take(location)?;
        if let Some(controller) = inner.controllers.get(&location.0) {
            controller
                .detach(location.1)
                .map_err(|error| lun_error(error, location))?;
        }
        if let Drive::Disk { medium, .. } = drive {
            medium.disk().close()?;
        }
        Ok(())
    }

    /// Takes the medium out of an optical drive. Without `force` a guest that
    /// has locked the drive keeps it.
    pub(crate) fn eject(&self, location: Location, force: bool) -> Result<(), DriveError> {
        let mut inner = self.inner();
        inner.dvd(location)?;
        if let Some(controller) = inner.controllers.get(&location.0) {
            controller
                .eject(location.1, force)
                .map_err(|error| lun_error(error, location))?;
        }
        *inner.dvd(location)? = None;
        Ok(())
    }

    /// Puts an image into an optical drive, in place of what is there.
    pub(crate) fn insert(&self, location: Location, path: PathBuf) -> Result<(), DriveError> {
        let mut inner = self.inner();
        inner.dvd(location)?;
        let config = DiskConfig::dvd(Some(path.clone()));
        let medium = optical(&config, &path)?;
        if let Some(controller) = inner.controllers.get(&location.0) {
            controller
                .insert(location.1, medium.clone())
                .map_err(|error| lun_error(error, location))?;
        }
        *inner.dvd(location)? = Some(medium);
        Ok(())
    }

    /// Changes a disk's size, also while the guest runs; it is told.
    pub(crate) fn resize(&self, location: Location, size: u64) -> Result<(), DriveError> {
        let inner = self.inner();
        match inner.drives.get(&location) {
            None => return Err(DriveError::NoDrive(location.0, location.1)),
            Some(Drive::Dvd(_)) => {
                let kind = "an optical drive";
                return Err(DriveError::WrongKind(location.0, location.1, kind));
            }
            Some(Drive::Disk { medium, .. }) => medium.disk().resize(size)?,
        }
        if let Some(controller) = inner.controllers.get(&location.0) {
            controller
                .resized(location.1)
                .map_err(|error| lun_error(error, location))?;
        }
        Ok(())
    }

    /// All drives, by place.
    pub(crate) fn list(&self) -> Vec<DriveStatus> {
        let inner = self.inner();
        let status = |(&location, drive): (&Location, &Drive)| match drive {
            Drive::Disk {
                path,
                read_only,
                medium,
            } => DriveStatus {
                location,
                optical: false,
                path: Some(path.clone()),
                read_only: *read_only,
                size: Some(medium.disk().virtual_size()),
                format: Some(medium.disk().info().format),
            },
            Drive::Dvd(medium) => {
                let medium = medium.as_ref().filter(|medium| !medium.is_ejected());
                DriveStatus {
                    location,
                    optical: true,
                    path: medium.map(|medium| medium.path.clone()),
                    read_only: true,
                    size: medium.map(|medium| medium.medium.info().size),
                    format: medium.map(|_| disk::Format::Raw),
                }
            }
        };
        inner.drives.iter().map(status).collect()
    }

    /// What each controller has done since the last boot.
    pub(crate) fn statistics(&self) -> Vec<(u32, ControllerStatistics)> {
        let inner = self.inner();
        let controllers = inner.controllers.iter();
        controllers
            .map(|(&index, handle)| (index, handle.statistics()))
            .collect()
    }
}

impl Inner {
    /// The place that a drive asks for, or the first that is free.
    fn place(&self, config: &DiskConfig) -> Result<Location, DriveError> {
        let controller = config.controller;
        match config.lun {
            _ if controller >= MAX_CONTROLLERS => {
                Err(DriveError::NoPlace(controller, config.lun.unwrap_or(0)))
            }
            Some(lun) if lun >= MAX_LUNS => Err(DriveError::NoPlace(controller, lun)),
            Some(lun) if self.drives.contains_key(&(controller, lun)) => {
                Err(DriveError::InUse(controller, lun))
            }
            Some(lun) => Ok((controller, lun)),
            None => (0..MAX_LUNS)
                .map(|lun| (controller, lun))
                .find(|location| !self.drives.contains_key(location))
                .ok_or(DriveError::Full(controller)),
        }
    }

    fn take(&mut self, location: Location) -> Result<Drive, DriveError> {
        let drive = self.drives.remove(&location);
        drive.ok_or(DriveError::NoDrive(location.0, location.1))
    }

    fn dvd(&mut self, location: Location) -> Result<&mut Option<Arc<Optical>>, DriveError> {
        match self.drives.get_mut(&location) {
            Some(Drive::Dvd(medium)) => Ok(medium),
            Some(Drive::Disk { .. }) => {
                Err(DriveError::WrongKind(location.0, location.1, "a disk"))
            }
            None => Err(DriveError::NoDrive(location.0, location.1)),
        }
    }
}

fn lun_error(error: LunError, location: Location) -> DriveError {
    match error {
        LunError::Locked(_) => DriveError::Locked,
        LunError::InUse(_) => DriveError::InUse(location.0, location.1),
        LunError::OutOfRange(_) => DriveError::NoPlace(location.0, location.1),
        LunError::Empty(_) => DriveError::NoDrive(location.0, location.1),
        LunError::WrongKind(_) => DriveError::WrongKind(location.0, location.1, "of another kind"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        path
    }

    #[test]
    fn drives_find_their_places_and_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut fixed = DiskConfig::disk(raw(folder.path(), "a.img"));
        fixed.lun = Some(0);
        let first = DiskConfig::disk(raw(folder.path(), "b.img"));
        let disks = Disks::open(&[first, fixed, DiskConfig::dvd(None)]).unwrap();
        let places =
            |disks: &Disks| -> Vec<_> { disks.list().iter().map(|d| d.location).collect() };
        assert_eq!(places(&disks), [(0, 0), (0, 1), (0, 2)]);
        assert!(disks.list()[0].path.as_ref().unwrap().ends_with("a.img"));
        let iso = raw(folder.path(), "c.iso");
        disks.insert((0, 2), iso).unwrap();
        assert_eq!(disks.list()[2].size, Some(1 << 20));
        disks.eject((0, 2), false).unwrap();
        assert_eq!(disks.list()[2].path, None);
        disks.resize((0, 1), 2 << 20).unwrap();
        assert_eq!(disks.list()[1].size, Some(2 << 20));
        disks.remove((0, 1)).unwrap();
        assert!(matches!(
            disks.remove((0, 1)),
            Err(DriveError::NoDrive(0, 1))
        ));
        // The file is free again.
        let again = DiskConfig::disk(folder.path().join("b.img"));
        assert_eq!(disks.add(&again).unwrap(), (0, 1));
        assert!(matches!(disks.add(&again), Err(DriveError::Disk(_))));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = raw(folder.path(), "a.img");
        let with = |change: fn(&mut DiskConfig)| {
            let mut config = DiskConfig::disk(path.clone());
            change(&mut config);
            Disks::open(&[config]).map(|_| ()).unwrap_err().1
        };
        assert!(matches!(
            with(|c| c.controller = 4),
            DriveError::NoPlace(4, 0)
        ));
        assert!(matches!(
            with(|c| c.lun = Some(64)),
            DriveError::NoPlace(0, 64)
        ));
        assert!(matches!(with(|c| c.path = None), DriveError::Argument(_)));
        let mut one = DiskConfig::disk(path.clone());
        one.lun = Some(3);
        let two = one.clone();
        let error = Disks::open(&[one, two]).map(|_| ()).unwrap_err();
        assert!(matches!(error, (1, DriveError::InUse(0, 3))), "{error:?}");
        let disks = Disks::open(&[]).unwrap();
        let mut far = DiskConfig::disk(path);
        far.controller = 2;
        assert!(matches!(disks.add(&far), Err(DriveError::NoPlace(2, 0))));
        assert!(matches!(
            disks.eject((0, 0), true),
            Err(DriveError::NoDrive(0, 0))
        ));
        assert!(matches!(
            disks.resize((0, 0), 1),
            Err(DriveError::NoDrive(0, 0))
        ));
    }
}
