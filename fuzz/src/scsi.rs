//! `scsi`: commands of a guest to a disk and to an optical drive.
//!
//! The first byte chooses the unit and its medium. Then come steps, each a
//! byte: see [`step`]. A command's data and room lie behind it.

use crate::Input;
use crate::medium::HeapMedium;
use crate::memory;
use std::sync::Arc;
use vsp::storage::medium::HeapBuffer;
use vsp::storage::scsi::{
    Direction, Disk, DvdDrive, Fault, Identity, LogicalUnit, Request, SENSE_SIZE,
};

/// The first byte of an input.
pub mod unit {
    /// An optical drive and not a disk.
    pub const DVD: u8 = 1;
    /// Without medium, or read-only.
    pub const LESS: u8 = 2;
    /// Sectors of 4096 bytes and not of 512.
    pub const LARGE_SECTORS: u8 = 4;
    /// The medium fails now and then.
    pub const FAILING: u8 = 8;
}

/// Steps: the low three bits of a byte. The others are the step's own.
pub mod step {
    /// Up to here: a command. Bits 0 to 1 direction (0 out, 1 in, else none),
    /// bit 3 a short descriptor block; then 16 bytes of it, the room (2), and
    /// for commands to the device as many bytes of data.
    pub const LAST_COMMAND: u8 = 4;
    /// The unit is reset.
    pub const RESET: u8 = 5;
    /// The medium is resized, or the drive's is taken out.
    pub const CHANGE: u8 = 6;
    /// The drive's medium is put in.
    pub const INSERT: u8 = 7;
}

/// Bytes of a medium; what a command allocates is less than a few of these.
const SIZE: u64 = 1 << 20;
const ALLOWED: usize = 4 << 20;
/// What is in a buffer where the device has written nothing.
const UNTOUCHED: u8 = 0xa5;

enum Unit {
    Disk(Disk),
    Dvd(DvdDrive),
}

impl Unit {
    fn new(choice: u8, medium: &Arc<HeapMedium>) -> Self {
        let place = Identity([7; 16]);
        if choice & unit::DVD == 0 {
            return Self::Disk(Disk::new(medium.clone(), place, 256 << 10));
        }
        let inside = (choice & unit::LESS == 0).then(|| medium.clone() as _);
        Self::Dvd(DvdDrive::new(inside, place))
    }

    fn logical_unit(&self) -> &dyn LogicalUnit {
        match self {
            Self::Disk(disk) => disk,
            Self::Dvd(drive) => drive,
        }
    }
}

/// A command: nothing may be written beyond what is said to have moved, and
/// nothing at all where the guest said that it sends.
fn command(unit: &dyn LogicalUnit, kind: u8, input: &mut Input<'_>) {
    let direction = match kind & 3 {
        0 => Direction::Out,
        1 => Direction::In,
        _ => Direction::None,
    };
    let mut cdb = [0; 16];
    let given = input.bytes(16);
    cdb[..given.len()].copy_from_slice(given);
    let cdb_length = if kind & 8 == 0 { 16 } else { cdb[15] % 32 };
    let room = usize::from(input.u16()) << (kind >> 6);
    let mut bytes = match direction {
        Direction::Out => input.bytes(room).to_vec(),
        _ => Vec::new(),
    };
    bytes.resize(room, UNTOUCHED);
    let sent = bytes.clone();
    let buffer = HeapBuffer::new(bytes);
    let request = Request::new(cdb, cdb_length, direction, Some(&buffer), room)
        .expect("the buffer is as long as it is");
    let outcome = unit.execute(&request);
    let after = buffer.into_inner();
    let kept = match (direction, outcome) {
        (Direction::In, Ok(moved)) => moved,
        // What a read has written before it failed does not matter.
        (Direction::In, Err(_)) => after.len(),
        _ => 0,
    };
    assert!(kept <= room, "{kept} bytes moved of {room}");
    assert_eq!(after[kept..], sent[kept..], "{cdb:x?}");
    match outcome {
        Ok(moved) => assert!(moved <= room, "{cdb:x?} moved {moved} of {room}"),
        Err(Fault::Check(sense)) => assert_eq!(sense.to_bytes().len(), SENSE_SIZE),
        Err(Fault::Conflict | Fault::Malformed) => {}
    }
}

fn run_limited(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.u8();
    let sector = match choice & (unit::DVD | unit::LARGE_SECTORS) {
        0 => 512,
        unit::LARGE_SECTORS => 4096,
        _ => 2048,
    };
    let read_only = choice & (unit::LESS | unit::DVD) != 0;
    let medium = HeapMedium::new(SIZE, sector, read_only, choice & unit::FAILING != 0);
    let unit = Unit::new(choice, &medium);
    while !input.is_empty() {
        let kind = input.u8();
        match (kind & 7, &unit) {
            (..=step::LAST_COMMAND, _) => command(unit.logical_unit(), kind, &mut input),
            (step::RESET, _) => unit.logical_unit().reset(),
            (step::CHANGE, Unit::Disk(disk)) => {
                medium.resize(SIZE * u64::from(kind >> 6).min(2));
                disk.resized();
            }
            (step::CHANGE, Unit::Dvd(drive)) => {
                // Refused while the guest has locked it.
                let _ = drive.remove(kind & 8 != 0);
            }
            (_, Unit::Dvd(drive)) => {
                let _ = drive.insert(medium.clone());
            }
            (_, Unit::Disk(_)) => {}
        }
    }
}

/// The target.
pub fn run(data: &[u8]) {
    memory::limited(ALLOWED, || run_limited(data));
}
