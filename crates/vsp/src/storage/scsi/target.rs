//! A controller's units. As with Hyper-V, they are the logical units of one
//! target: path 0, target 0.

use super::cdb::op;
use super::inquiry::{self, Identity};
use super::sense::Sense;
use super::{Disk, DvdDrive, LogicalUnit, Outcome, Request};
use parking_lot::RwLock;
use std::sync::Arc;

/// Logical units of a controller.
pub const MAX_LUNS: u8 = 64;

/// Bytes of an address in what REPORT LUNS lists.
const LUN_SIZE: usize = 8;

/// A change of a controller's units is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LunError {
    /// LUNs are below [`MAX_LUNS`].
    #[error("there is no LUN {0}")]
    OutOfRange(u8),
    /// A unit is there already.
    #[error("LUN {0} is in use")]
    InUse(u8),
    /// No unit is there.
    #[error("LUN {0} is empty")]
    Empty(u8),
    /// The unit there is of another kind.
    #[error("LUN {0} is no drive for this")]
    WrongKind(u8),
    /// The guest has locked the drive.
    #[error("the guest has locked LUN {0}")]
    Locked(u8),
}

/// A logical unit of either kind.
#[derive(Clone)]
pub enum Unit {
    /// A disk.
    Disk(Arc<Disk>),
    /// An optical drive.
    Dvd(Arc<DvdDrive>),
}

impl Unit {
    fn logical_unit(&self) -> &dyn LogicalUnit {
        match self {
            Self::Disk(disk) => &**disk,
            Self::Dvd(drive) => &**drive,
        }
    }
}

/// What a command has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A unit has answered, or the target for one.
    Done(Outcome),
    /// There is no such unit.
    NoUnit,
}

/// The place of a unit. Commands hold it for reading as long as they run, so
/// that who takes the unit away waits for them.
type Slot = RwLock<Option<Unit>>;

/// The target with its units.
pub struct Target {
    slots: Vec<Slot>,
}

impl Default for Target {
    fn default() -> Self {
        Self {
            slots: (0..MAX_LUNS).map(|_| Slot::default()).collect(),
        }
    }
}

impl Target {
    fn slot(&self, lun: u8) -> Result<&Slot, LunError> {
        self.slots
            .get(usize::from(lun))
            .ok_or(LunError::OutOfRange(lun))
    }

    /// Adds a unit.
    ///
    /// # Errors
    ///
    /// [`LunError::OutOfRange`], [`LunError::InUse`].
    pub fn attach(&self, lun: u8, unit: Unit) -> Result<(), LunError> {
        let mut slot = self.slot(lun)?.write();
        if slot.is_some() {
            return Err(LunError::InUse(lun));
        }
        *slot = Some(unit);
        Ok(())
    }

    /// Takes a unit away, after the commands that it is working on.
    ///
    /// # Errors
    ///
    /// [`LunError::OutOfRange`], [`LunError::Empty`].
    pub fn detach(&self, lun: u8) -> Result<Unit, LunError> {
        self.slot(lun)?.write().take().ok_or(LunError::Empty(lun))
    }

    /// A unit.
    ///
    /// # Errors
    ///
    /// [`LunError::OutOfRange`], [`LunError::Empty`].
    pub fn unit(&self, lun: u8) -> Result<Unit, LunError> {
        self.slot(lun)?.read().clone().ok_or(LunError::Empty(lun))
    }

    /// The LUNs of the units that are there.
    pub fn luns(&self) -> Vec<u8> {
        (0..MAX_LUNS)
            .filter(|&lun| self.unit(lun).is_ok())
            .collect()
    }

    /// Resets a unit, if it is there.
    pub fn reset(&self, lun: u8) {
        if let Ok(unit) = self.unit(lun) {
            unit.logical_unit().reset();
        }
    }

    /// Resets all units.
    pub fn reset_all(&self) {
        for lun in self.luns() {
            self.reset(lun);
        }
    }

    /// Carries a command out. `here`: it is for this target; another one has
    /// no units.
    pub fn execute(&self, here: bool, lun: u8, request: &Request<'_>) -> Answer {
        if request.cdb[0] == op::REPORT_LUNS {
            return Answer::Done(self.report_luns(here, request));
        }
        let slot = if here { self.slot(lun).ok() } else { None };
        let unit = slot.map(|slot| slot.read());
        if let Some(unit) = unit.as_ref().and_then(|unit| unit.as_ref()) {
            return Answer::Done(unit.logical_unit().execute(request));
        }
        if request.cdb[0] == op::INQUIRY {
            return Answer::Done(absent(request));
        }
        Answer::NoUnit
    }

    fn report_luns(&self, here: bool, request: &Request<'_>) -> Outcome {
        let command = super::cdb::Cdb::new(&request.cdb, request.cdb_length)?.decode()?;
        let super::cdb::Command::ReportLuns { select, length } = command else {
            return Err(Sense::INVALID_OPCODE.into());
        };
        // 1 asks for well-known units only, of which there are none.
        let luns = match select {
            0 | 2 if here => self.luns(),
            0..=2 => Vec::new(),
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        };
        let mut data = vec![0; LUN_SIZE * (luns.len() + 1)];
        data[..4].copy_from_slice(&((luns.len() * LUN_SIZE) as u32).to_be_bytes());
        for (entry, lun) in data[LUN_SIZE..].chunks_exact_mut(LUN_SIZE).zip(luns) {
            entry[1] = lun;
        }
        request.reply(&data, length)
    }
}

/// INQUIRY where nothing is.
fn absent(request: &Request<'_>) -> Outcome {
    // A page cannot be asked for, but guests take any INQUIRY for a success
    // and look at the first byte.
    let length = u32::from(request.cdb[3]) << 8 | u32::from(request.cdb[4]);
    request.reply(&inquiry::absent(), length)
}

/// The identity of a unit that has none, on the controller `controller`.
pub(crate) fn place(controller: [u8; 16], lun: u8) -> Identity {
    Identity::of_place(controller, lun)
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
