//! SCSI logical units: commands in, data and sense data out.
//!
//! Nothing here knows how requests arrive. A [`Request`] brings a command
//! descriptor block and the buffer for its data; a [`LogicalUnit`] turns it
//! into calls of a [`Medium`](super::medium::Medium).

mod attention;
mod cdb;
mod disk;
mod dvd;
mod inquiry;
mod mode;
mod provisioning;
mod reservation;
mod sense;
mod target;
#[cfg(test)]
pub(super) mod test_medium;

pub use cdb::{CDB_SIZE, op};
pub use disk::Disk;
pub use dvd::{DvdDrive, Locked};
pub use inquiry::Identity;
pub use sense::{SENSE_SIZE, Sense};
pub(super) use target::place;
pub use target::{Answer, InUse, LunError, MAX_LUNS, Target, Unit};

use super::medium::{BufferError, DataBuffer, DataRange, FileRange, MediumError};

/// Parameter lists are not longer than this; it is more than any that is
/// defined for these devices.
const MAX_PARAMETERS: usize = 8 << 10;

/// Where a request's data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest to the device.
    Out,
    /// From the device to the guest.
    In,
    /// Nowhere.
    None,
}

/// A command with its data.
pub struct Request<'a> {
    /// The command descriptor block.
    pub cdb: [u8; CDB_SIZE],
    /// How many bytes of it the guest has filled.
    pub cdb_length: u8,
    /// What the guest says about the data.
    pub direction: Direction,
    /// The data, as long as the guest says.
    pub data: Option<DataRange<'a>>,
}

impl<'a> Request<'a> {
    /// A request with the first `length` bytes of `buffer`; `None` when the
    /// buffer is shorter.
    pub fn new(
        cdb: [u8; CDB_SIZE],
        cdb_length: u8,
        direction: Direction,
        buffer: Option<&'a dyn DataBuffer>,
        length: usize,
    ) -> Option<Self> {
        let data = match (direction, buffer) {
            (Direction::None, _) => None,
            (_, Some(buffer)) => Some(DataRange::new(buffer, length)?),
            (_, None) if length > 0 => return None,
            (_, None) => None,
        };
        Some(Self {
            cdb,
            cdb_length,
            direction,
            data,
        })
    }

    /// Sends the device's bytes, cut at the allocation length and at the
    /// buffer's end.
    fn reply(&self, bytes: &[u8], allocation: u32) -> Outcome {
        let room = self.data.map_or(0, |data| data.len());
        let length = bytes.len().min(allocation as usize).min(room);
        if length == 0 {
            return Ok(0);
        }
        self.range(Direction::In, length)?
            .write(0, &bytes[..length])?;
        Ok(length)
    }

    /// The guest's bytes for the device: a parameter list.
    fn parameters(&self, length: u32) -> Result<Vec<u8>, Fault> {
        let length = length as usize;
        if length == 0 {
            return Ok(Vec::new());
        }
        if length > MAX_PARAMETERS {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let mut bytes = vec![0; length];
        self.range(Direction::Out, length)?.read(0, &mut bytes)?;
        Ok(bytes)
    }

    /// The buffer for exactly `length` bytes of data.
    fn range(&self, direction: Direction, length: usize) -> Result<DataRange<'a>, Fault> {
        let data = self
            .data
            .filter(|data| data.len() >= length && self.direction == direction);
        Ok(data.ok_or(Fault::Malformed)?.part(0, length))
    }
}

/// Why a command did not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// CHECK CONDITION with this sense data.
    Check(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
    /// The buffer does not go with the command.
    Malformed,
}

impl From<Sense> for Fault {
    fn from(sense: Sense) -> Self {
        Self::Check(sense)
    }
}

impl From<BufferError> for Fault {
    fn from(_: BufferError) -> Self {
        Self::Malformed
    }
}

/// Turns what a medium says into what a guest understands; `otherwise` for
/// what is not said more precisely.
fn medium_fault(error: &MediumError, otherwise: Sense) -> Fault {
    match error {
        MediumError::ReadOnly => Sense::WRITE_PROTECTED.into(),
        MediumError::Full(_) => Sense::SPACE_ALLOCATION_FAILED.into(),
        MediumError::OutOfRange => Sense::LBA_OUT_OF_RANGE.into(),
        MediumError::Buffer(_) => Fault::Malformed,
        MediumError::Io(_) => {
            tracing::warn!("a virtual disk fails: {error}");
            otherwise.into()
        }
    }
}

/// Bytes of data moved, or why not.
pub type Outcome = Result<usize, Fault>;

/// A read or write of which nothing is left but to move the data.
pub struct Plan {
    /// Where the data is, or goes.
    pub range: Box<dyn FileRange>,
    /// Bytes, at the beginning of the request's data.
    pub length: usize,
    /// [`Direction::In`] or [`Direction::Out`].
    pub direction: Direction,
    /// A flush has to follow.
    pub through: bool,
}

/// What became of a [`Plan`].
pub struct Transferred {
    /// Bytes that were to be moved.
    pub length: usize,
    /// As in the plan.
    pub direction: Direction,
    /// As in the plan.
    pub through: bool,
    /// All bytes were moved, or why not.
    pub result: std::io::Result<()>,
}

/// A device that takes commands, any number at once.
pub trait LogicalUnit: Send + Sync {
    /// What [`LogicalUnit::execute`] would do, if that is a plain transfer.
    /// Whoever moves the data in its place has the outcome from
    /// [`LogicalUnit::conclude`].
    fn plan(&self, request: &Request<'_>) -> Option<Plan> {
        let _ = request;
        None
    }

    /// The outcome of a plan, from what became of its transfer. With
    /// `through`, flushes after a success, which may take its time.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    fn conclude(&self, transfer: Transferred) -> Outcome {
        let _ = transfer;
        Err(Fault::Malformed)
    }

    /// Carries a command out.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    fn execute(&self, request: &Request<'_>) -> Outcome;

    /// Returns to the state after power on, and tells the guest so.
    fn reset(&self);
}
