//! A disk: direct-access block device (SBC-3).

use super::attention::Attentions;
use super::cdb::{Blocks, Cdb, Command};
use super::inquiry::{self, Identity};
use super::reservation::Reservations;
use super::sense::Sense;
use super::{
    Direction, Fault, LogicalUnit, Outcome, Plan, Request, Transferred, medium_fault, mode,
    provisioning,
};
use crate::storage::medium::{COPY_SIZE, DataRange, HeapBuffer, Medium, MediumInfo};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A disk with its medium.
pub struct Disk {
    medium: Arc<dyn Medium>,
    identity: Identity,
    max_transfer: u32,
    info: RwLock<MediumInfo>,
    /// Writes may stay in caches until they are flushed.
    cache: AtomicBool,
    attentions: Attentions,
    reservations: Mutex<Reservations>,
}

impl Disk {
    /// A disk. `place` identifies it where the medium has no identity;
    /// transfers of more than `max_transfer` bytes are not announced.
    pub fn new(medium: Arc<dyn Medium>, place: Identity, max_transfer: u32) -> Self {
        let info = sane(medium.info());
        Self {
            identity: info.identity.map_or(place, Identity),
            info: RwLock::new(info),
            medium,
            max_transfer,
            cache: AtomicBool::new(true),
            attentions: Attentions::default(),
            reservations: Mutex::default(),
        }
    }

    /// The medium's size has changed: the guest is told.
    pub fn resized(&self) {
        let info = sane(self.medium.info());
        let before = std::mem::replace(&mut *self.info.write(), info.clone());
        if before.size != info.size {
            self.attentions.raise(Sense::CAPACITY_CHANGED);
        }
    }

    pub(super) fn medium(&self) -> &dyn Medium {
        &*self.medium
    }

    pub(super) fn info(&self) -> MediumInfo {
        self.info.read().clone()
    }

    /// Blocks, and bytes of each.
    fn capacity(&self) -> (u64, u32) {
        let info = self.info.read();
        (
            info.size / u64::from(info.logical_sector),
            info.logical_sector,
        )
    }

    /// Where blocks are: byte offset and length.
    pub(super) fn extent(&self, blocks: Blocks) -> Result<(u64, u64), Fault> {
        let (capacity, sector) = self.capacity();
        let end = blocks.lba.checked_add(blocks.count.into());
        if end.is_none_or(|end| end > capacity) {
            return Err(Sense::LBA_OUT_OF_RANGE.into());
        }
        // Both are within the medium's size in bytes.
        let sector = u64::from(sector);
        Ok((blocks.lba * sector, u64::from(blocks.count) * sector))
    }

    fn read(&self, request: &Request<'_>, blocks: Blocks, fua: bool) -> Outcome {
        let (offset, length) = self.extent(blocks)?;
        if length == 0 {
            return Ok(0);
        }
        let length = usize::try_from(length).map_err(|_| Fault::Malformed)?;
        let data = request.range(Direction::In, length)?;
        if fua && !self.info.read().read_only {
            // What is read must be on the medium by then.
            self.flush()?;
        }
        let done = self.medium.read(offset, data);
        done.map_err(|error| medium_fault(&error, Sense::READ_ERROR))?;
        Ok(length)
    }

    fn write(&self, request: &Request<'_>, blocks: Blocks, fua: bool) -> Outcome {
        if self.info.read().read_only {
            return Err(Sense::WRITE_PROTECTED.into());
        }
        let (offset, length) = self.extent(blocks)?;
        if length == 0 {
            return Ok(0);
        }
        let length = usize::try_from(length).map_err(|_| Fault::Malformed)?;
        let data = request.range(Direction::Out, length)?;
        let through = fua || !self.cache.load(Ordering::Relaxed);
        let done = self.medium.write(offset, data, through);
        done.map_err(|error| medium_fault(&error, Sense::WRITE_ERROR))?;
        Ok(length)
    }

    /// Makes a write durable that was not made so itself, with the cache off.
    pub(super) fn after_write(&self) -> Result<(), Fault> {
        if self.cache.load(Ordering::Relaxed) {
            Ok(())
        } else {
            self.flush().map(|_| ())
        }
    }

    fn flush(&self) -> Outcome {
        let done = self.medium.flush();
        done.map_err(|error| medium_fault(&error, Sense::WRITE_ERROR))?;
        Ok(0)
    }

    /// VERIFY: compares with the guest's data. Without data there is nothing
    /// to find out that reading would not tell.
    fn verify(&self, request: &Request<'_>, blocks: Blocks, compare: bool) -> Outcome {
        let (offset, length) = self.extent(blocks)?;
        if !compare || length == 0 {
            return Ok(0);
        }
        let length = usize::try_from(length).map_err(|_| Fault::Malformed)?;
        let data = request.range(Direction::Out, length)?;
        let mut done = 0;
        while done < length {
            let part = data.part(done, COPY_SIZE);
            self.compare(offset + done as u64, part)?;
            done += part.len();
        }
        Ok(length)
    }

    fn compare(&self, offset: u64, data: DataRange<'_>) -> Result<(), Fault> {
        let buffer = HeapBuffer::new(vec![0; data.len()]);
        let range = DataRange::new(&buffer, data.len()).ok_or(Fault::Malformed)?;
        let read = self.medium.read(offset, range);
        read.map_err(|error| medium_fault(&error, Sense::READ_ERROR))?;
        let mut theirs = vec![0; data.len()];
        data.read(0, &mut theirs)?;
        if buffer.into_inner() == theirs {
            Ok(())
        } else {
            Err(Sense::MISCOMPARE.into())
        }
    }

    fn read_capacity_10(&self, request: &Request<'_>) -> Outcome {
        let (blocks, sector) = self.capacity();
        // All ones send the guest to READ CAPACITY (16).
        let last = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
        let data = [last.to_be_bytes(), sector.to_be_bytes()].concat();
        request.reply(&data, 8)
    }

    fn read_capacity_16(&self, request: &Request<'_>, length: u32) -> Outcome {
        let (blocks, sector) = self.capacity();
        let info = self.info();
        let mut data = [0; 32];
        data[..8].copy_from_slice(&blocks.saturating_sub(1).to_be_bytes());
        data[8..12].copy_from_slice(&sector.to_be_bytes());
        data[13] = (info.physical_sector / sector).max(1).ilog2() as u8;
        if info.unmap {
            // LBPME, LBPRZ.
            data[14] = 0xc0;
        }
        request.reply(&data, length)
    }

    fn inquiry(&self, request: &Request<'_>, page: Option<u8>, length: u32) -> Outcome {
        let Some(page) = page else {
            return request.reply(&inquiry::disk(), length);
        };
        let data = inquiry::disk_page(page, &self.identity, &self.info(), self.max_transfer)?;
        request.reply(&data, length)
    }

    fn request_sense(&self, request: &Request<'_>, descriptor: bool, length: u32) -> Outcome {
        let sense = self.attentions.take().unwrap_or(Sense::NO_SENSE);
        if descriptor {
            request.reply(&sense.to_descriptor_bytes(), length)
        } else {
            request.reply(&sense.to_bytes(), length)
        }
    }

    fn mode(&self) -> mode::Device {
        mode::Device::Disk {
            read_only: self.info.read().read_only,
            cache: self.cache.load(Ordering::Relaxed),
            blocks: self.capacity(),
        }
    }

    fn mode_select(&self, request: &Request<'_>, long: bool, save: bool, length: u32) -> Outcome {
        let cache = mode::parse_select(&self.mode(), request, long, save, length)?;
        if let Some(cache) = cache
            && self.cache.swap(cache, Ordering::Relaxed)
            && !cache
        {
            // What is in the cache must not stay there.
            self.flush()?;
        }
        Ok(length as usize)
    }

    fn start_stop(&self, start: bool, load_eject: bool, power_condition: u8) -> Outcome {
        if load_eject {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        if start || power_condition != 0 {
            Ok(0)
        } else {
            self.flush()
        }
    }

    fn carry_out(&self, request: &Request<'_>, command: Command) -> Outcome {
        match command {
            Command::TestUnitReady | Command::PreventAllow { .. } => Ok(0),
            Command::Read { blocks, fua } => self.read(request, blocks, fua),
            Command::Write { blocks, fua } => self.write(request, blocks, fua),
            Command::Verify { blocks, compare } => self.verify(request, blocks, compare),
            Command::SynchronizeCache { blocks } => {
                self.extent(blocks)?;
                self.flush()
            }
            Command::Unmap { length } => {
                let done = provisioning::unmap(self, request, length)?;
                self.after_write()?;
                Ok(done)
            }
            Command::WriteSame {
                blocks,
                unmap: _,
                no_data,
            } => provisioning::write_same(self, request, blocks, no_data),
            Command::ReadCapacity10 => self.read_capacity_10(request),
            Command::ReadCapacity16 { length } => self.read_capacity_16(request, length),
            Command::Inquiry { page, length } => self.inquiry(request, page, length),
            Command::RequestSense { descriptor, length } => {
                self.request_sense(request, descriptor, length)
            }
            Command::ModeSense { .. } => mode::sense(&self.mode(), request, &command),
            Command::ModeSelect { long, save, length } => {
                self.mode_select(request, long, save, length)
            }
            Command::StartStop {
                start,
                load_eject,
                power_condition,
            } => self.start_stop(start, load_eject, power_condition),
            Command::PersistentReserveIn { action, length } => {
                let reservations = *self.reservations.lock();
                reservations.report(request, action, length)
            }
            Command::PersistentReserveOut {
                action,
                scope,
                kind,
                length,
            } => self
                .reservations
                .lock()
                .change(request, action, (scope, kind), length),
            _ => Err(Sense::INVALID_OPCODE.into()),
        }
    }
}

/// A medium's description, in which nothing is zero that is divided by.
fn sane(mut info: MediumInfo) -> MediumInfo {
    info.logical_sector = info.logical_sector.max(512);
    info.physical_sector = info.physical_sector.max(info.logical_sector);
    info
}

impl LogicalUnit for Disk {
    fn plan(&self, request: &Request<'_>) -> Option<Plan> {
        let command = Cdb::new(&request.cdb, request.cdb_length).ok()?;
        let (direction, blocks, fua) = match command.decode().ok()? {
            // A read that forces has a flush before it.
            Command::Read { blocks, fua: false } => (Direction::In, blocks, false),
            Command::Write { blocks, fua } => (Direction::Out, blocks, fua),
            _ => return None,
        };
        let write = direction == Direction::Out;
        if self.attentions.any() || write && self.info.read().read_only {
            return None;
        }
        let (offset, bytes) = self.extent(blocks).ok().filter(|&(_, bytes)| bytes > 0)?;
        let length = usize::try_from(bytes).ok()?;
        request.range(direction, length).ok()?;
        Some(Plan {
            range: self.medium.file_range(offset, bytes, write)?,
            length,
            direction,
            through: write && (fua || !self.cache.load(Ordering::Relaxed)),
        })
    }

    fn conclude(&self, transfer: Transferred) -> Outcome {
        let sense = match transfer.direction {
            Direction::Out => Sense::WRITE_ERROR,
            Direction::In | Direction::None => Sense::READ_ERROR,
        };
        if let Err(error) = transfer.result {
            return Err(medium_fault(&error.into(), sense));
        }
        if transfer.through {
            self.flush()?;
        }
        Ok(transfer.length)
    }

    fn execute(&self, request: &Request<'_>) -> Outcome {
        let command = Cdb::new(&request.cdb, request.cdb_length)?.decode()?;
        self.attentions.check(&command)?;
        self.carry_out(request, command)
    }

    fn reset(&self) {
        self.cache.store(true, Ordering::Relaxed);
        self.attentions.raise(Sense::RESET);
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
