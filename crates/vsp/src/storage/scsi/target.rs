//! A controller's units. As with Hyper-V, they are the logical units of one
//! target: path 0, target 0.

use super::cdb::op;
use super::inquiry::{self, Identity};
use super::sense::Sense;
use super::{Disk, DvdDrive, LogicalUnit, Outcome, Plan, Request, Transferred};
use parking_lot::{Condvar, Mutex, RwLock};
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

/// Counts the commands that a unit is working on, so that who takes it away
/// can wait for them.
#[derive(Default)]
struct Commands {
    running: Mutex<usize>,
    none: Condvar,
}

/// One of the commands that are counted.
struct Counted(Arc<Commands>);

impl Counted {
    fn new(commands: &Arc<Commands>) -> Self {
        *commands.running.lock() += 1;
        Self(commands.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut running = self.0.running.lock();
        *running -= 1;
        if *running == 0 {
            self.0.none.notify_all();
        }
    }
}

/// A unit that a command is working with. Who takes the unit away waits until
/// this is dropped.
pub struct InUse {
    // In this order: who waits for the count has the unit alone then.
    unit: Unit,
    _counted: Counted,
}

impl InUse {
    /// [`LogicalUnit::conclude`].
    ///
    /// # Errors
    ///
    /// [`Fault`](super::Fault).
    pub fn conclude(&self, transfer: Transferred) -> Outcome {
        self.unit.logical_unit().conclude(transfer)
    }
}

#[derive(Clone)]
struct Attached {
    unit: Unit,
    commands: Arc<Commands>,
}

/// The place of a unit.
type Slot = RwLock<Option<Attached>>;

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
        let commands = Arc::default();
        *slot = Some(Attached { unit, commands });
        Ok(())
    }

    /// Takes a unit away: it gets no more commands, and those that it is
    /// working on are waited for.
    ///
    /// # Errors
    ///
    /// [`LunError::OutOfRange`], [`LunError::Empty`].
    pub fn detach(&self, lun: u8) -> Result<Unit, LunError> {
        let taken = self.slot(lun)?.write().take();
        let Attached { unit, commands } = taken.ok_or(LunError::Empty(lun))?;
        let mut running = commands.running.lock();
        while *running > 0 {
            commands.none.wait(&mut running);
        }
        Ok(unit)
    }

    /// A unit for a command, which is counted from now on.
    fn enter(&self, here: bool, lun: u8) -> Option<InUse> {
        let slot = self.slot(lun).ok().filter(|_| here)?.read();
        let attached = slot.as_ref()?;
        Some(InUse {
            unit: attached.unit.clone(),
            _counted: Counted::new(&attached.commands),
        })
    }

    /// A unit.
    ///
    /// # Errors
    ///
    /// [`LunError::OutOfRange`], [`LunError::Empty`].
    pub fn unit(&self, lun: u8) -> Result<Unit, LunError> {
        let slot = self.slot(lun)?.read();
        let attached = slot.as_ref().ok_or(LunError::Empty(lun))?;
        Ok(attached.unit.clone())
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

    /// The plan of a command that is a plain transfer, and the unit, to be
    /// kept until the transfer is over.
    pub fn plan(&self, here: bool, lun: u8, request: &Request<'_>) -> Option<(Plan, InUse)> {
        let unit = self.enter(here, lun)?;
        let plan = unit.unit.logical_unit().plan(request)?;
        Some((plan, unit))
    }

    /// Carries a command out. `here`: it is for this target; another one has
    /// no units.
    pub fn execute(&self, here: bool, lun: u8, request: &Request<'_>) -> Answer {
        if request.cdb[0] == op::REPORT_LUNS {
            return Answer::Done(self.report_luns(here, request));
        }
        if let Some(unit) = self.enter(here, lun) {
            return Answer::Done(unit.unit.logical_unit().execute(request));
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
