//! An optical drive with a DVD-ROM or none (MMC-6). Its media are images of
//! 2048-byte sectors.

use super::attention::Attentions;
use super::cdb::{Blocks, Cdb, Command};
use super::inquiry::{self, Identity};
use super::sense::Sense;
use super::{Direction, Fault, LogicalUnit, Outcome, Request, medium_fault, mode};
use crate::storage::medium::Medium;
use parking_lot::Mutex;
use std::sync::Arc;

/// Bytes of a sector.
const SECTOR: u32 = 2048;
/// Frames are counted 75 for a second, from two seconds before the first.
const FRAMES_PER_SECOND: u32 = 75;
const LEAD_IN: u32 = 150;
/// The number by which the lead-out goes.
const LEAD_OUT: u8 = 0xaa;
/// Profile of a DVD-ROM.
const DVD_ROM: u16 = 0x0010;
/// Class of GET EVENT STATUS NOTIFICATION, as a bit and as a number.
const MEDIA_CLASS: (u8, u8) = (1 << 4, 4);

/// The guest has locked the tray.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest has locked the drive")]
pub struct Locked;

/// What GET EVENT STATUS NOTIFICATION reports once.
#[derive(Clone, Copy, Default)]
enum Event {
    #[default]
    NoChange = 0,
    EjectRequest = 1,
    NewMedia = 2,
    Removal = 3,
}

#[derive(Default)]
struct Drive {
    medium: Option<Arc<dyn Medium>>,
    /// Sectors of the medium.
    sectors: u32,
    tray_open: bool,
    locked: bool,
    event: Event,
}

impl Drive {
    fn load(&mut self, medium: Arc<dyn Medium>) {
        self.sectors = u32::try_from(medium.info().size / u64::from(SECTOR)).unwrap_or(u32::MAX);
        self.medium = Some(medium);
        self.tray_open = false;
        self.event = Event::NewMedia;
    }

    fn unload(&mut self) -> Option<Arc<dyn Medium>> {
        self.sectors = 0;
        let medium = self.medium.take();
        if medium.is_some() {
            self.event = Event::Removal;
        }
        medium
    }

    fn not_ready(&self) -> Sense {
        if self.tray_open {
            Sense::NO_MEDIUM_TRAY_OPEN
        } else {
            Sense::NO_MEDIUM
        }
    }

    fn ready(&self) -> Result<&Arc<dyn Medium>, Fault> {
        self.medium.as_ref().ok_or(Fault::Check(self.not_ready()))
    }
}

/// An optical drive.
pub struct DvdDrive {
    identity: Identity,
    drive: Mutex<Drive>,
    attentions: Attentions,
}

impl DvdDrive {
    /// A drive with this medium in it.
    pub fn new(medium: Option<Arc<dyn Medium>>, identity: Identity) -> Self {
        let mut drive = Drive::default();
        if let Some(medium) = medium {
            drive.load(medium);
        }
        Self {
            identity,
            drive: Mutex::new(drive),
            attentions: Attentions::default(),
        }
    }

    /// Puts a medium in; what was there comes back.
    ///
    /// # Errors
    ///
    /// [`Locked`] while the guest keeps the one that is there.
    pub fn insert(&self, medium: Arc<dyn Medium>) -> Result<Option<Arc<dyn Medium>>, Locked> {
        let mut drive = self.drive.lock();
        if drive.locked && drive.medium.is_some() {
            return Err(Locked);
        }
        let before = drive.unload();
        drive.load(medium);
        self.attentions.raise(Sense::MEDIUM_CHANGED);
        Ok(before)
    }

    /// Takes the medium out. `force`: even when the guest has locked the
    /// drive; otherwise the guest is asked to let it go.
    ///
    /// # Errors
    ///
    /// [`Locked`].
    pub fn remove(&self, force: bool) -> Result<Option<Arc<dyn Medium>>, Locked> {
        let mut drive = self.drive.lock();
        if drive.locked && drive.medium.is_some() && !force {
            drive.event = Event::EjectRequest;
            return Err(Locked);
        }
        drive.locked = false;
        Ok(drive.unload())
    }

    fn read(&self, request: &Request<'_>, blocks: Blocks) -> Outcome {
        let (medium, sectors) = {
            let drive = self.drive.lock();
            (drive.ready()?.clone(), drive.sectors)
        };
        let end = blocks.lba.checked_add(blocks.count.into());
        if end.is_none_or(|end| end > sectors.into()) {
            return Err(Sense::LBA_OUT_OF_RANGE.into());
        }
        if blocks.count == 0 {
            return Ok(0);
        }
        let length = u64::from(blocks.count) * u64::from(SECTOR);
        let length = usize::try_from(length).map_err(|_| Fault::Malformed)?;
        let data = request.range(Direction::In, length)?;
        let done = medium.read(blocks.lba * u64::from(SECTOR), data);
        done.map_err(|error| medium_fault(&error, Sense::READ_ERROR))?;
        Ok(length)
    }

    fn read_capacity(&self, request: &Request<'_>) -> Outcome {
        let drive = self.drive.lock();
        drive.ready()?;
        let last = drive.sectors.saturating_sub(1);
        request.reply(&[last.to_be_bytes(), SECTOR.to_be_bytes()].concat(), 8)
    }

    fn inquiry(&self, request: &Request<'_>, page: Option<u8>, length: u32) -> Outcome {
        match page {
            None => request.reply(&inquiry::dvd(), length),
            Some(page) => request.reply(&inquiry::dvd_page(page, &self.identity)?, length),
        }
    }

    fn request_sense(&self, request: &Request<'_>, descriptor: bool, length: u32) -> Outcome {
        let sense = self.attentions.take().unwrap_or_else(|| {
            let drive = self.drive.lock();
            if drive.medium.is_some() {
                Sense::NO_SENSE
            } else {
                drive.not_ready()
            }
        });
        if descriptor {
            request.reply(&sense.to_descriptor_bytes(), length)
        } else {
            request.reply(&sense.to_bytes(), length)
        }
    }

    fn start_stop(&self, start: bool, load_eject: bool) -> Outcome {
        let mut drive = self.drive.lock();
        if !load_eject {
            return if start {
                drive.ready().map(|_| 0)
            } else {
                Ok(0)
            };
        }
        if start {
            drive.tray_open = false;
            return Ok(0);
        }
        if drive.locked {
            return Err(Sense::REMOVAL_PREVENTED.into());
        }
        drive.tray_open = true;
        let medium = drive.unload();
        drop(drive);
        if let Some(medium) = medium {
            medium.ejected();
        }
        Ok(0)
    }

    fn toc(&self, request: &Request<'_>, command: &Command) -> Outcome {
        let &Command::ReadToc {
            msf,
            format,
            track,
            length,
        } = command
        else {
            return Err(Sense::INVALID_OPCODE.into());
        };
        let drive = self.drive.lock();
        drive.ready()?;
        let lead_out = address(drive.sectors, msf);
        let first = address(0, msf);
        let entry = |number: u8, at: [u8; 4]| [[0, 0x14, number, 0], at].concat();
        let entries = match (format, track) {
            (0, 0..=1) => [entry(1, first), entry(LEAD_OUT, lead_out)].concat(),
            (0, LEAD_OUT) => entry(LEAD_OUT, lead_out),
            (1, _) => entry(1, first),
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        };
        let mut data = vec![0, 2 + entries.len() as u8, 1, 1];
        data.extend(entries);
        request.reply(&data, length)
    }

    fn configuration(
        &self,
        request: &Request<'_>,
        selection: u8,
        start: u16,
        length: u32,
    ) -> Outcome {
        let loaded = self.drive.lock().medium.is_some();
        let mut features = Vec::new();
        for (code, current, body) in features_of(loaded) {
            let wanted = match selection {
                0 => code >= start,
                1 => code >= start && current,
                2 => code == start,
                _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
            };
            if wanted {
                features.extend(code.to_be_bytes());
                let flags = version(code) << 2 | persistent(code) << 1 | u8::from(current);
                features.extend([flags, body.len() as u8]);
                features.extend(body);
            }
        }
        let mut data = (4 + features.len() as u32).to_be_bytes().to_vec();
        data.extend([0, 0]);
        data.extend(if loaded { DVD_ROM } else { 0 }.to_be_bytes());
        data.extend(features);
        request.reply(&data, length)
    }

    fn event_status(
        &self,
        request: &Request<'_>,
        polled: bool,
        classes: u8,
        length: u32,
    ) -> Outcome {
        if !polled {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        if classes & MEDIA_CLASS.0 == 0 {
            return request.reply(&[0, 2, 0x80, MEDIA_CLASS.0], length);
        }
        let mut drive = self.drive.lock();
        let state = u8::from(drive.medium.is_some()) << 1 | u8::from(drive.tray_open);
        // An event that is not transferred stays.
        let event = if length > 4 {
            std::mem::take(&mut drive.event)
        } else {
            drive.event
        };
        let data = [0, 6, MEDIA_CLASS.1, MEDIA_CLASS.0, event as u8, state, 0, 0];
        request.reply(&data, length)
    }

    fn disc_information(&self, request: &Request<'_>, kind: u8, length: u32) -> Outcome {
        self.drive.lock().ready()?;
        if kind != 0 {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        }
        let mut data = [0; 34];
        data[1] = data.len() as u8 - 2;
        // Complete, the last session too; one track in one session.
        data[2] = 0x0e;
        data[3..7].fill(1);
        data[7] = 0x20;
        // No lead-in or lead-out to be written.
        data[16..24].fill(0xff);
        request.reply(&data, length)
    }

    /// About the only track, which is all of the medium (MMC-6 6.26).
    fn track_information(
        &self,
        request: &Request<'_>,
        by: u8,
        number: u32,
        length: u32,
    ) -> Outcome {
        let drive = self.drive.lock();
        drive.ready()?;
        match by {
            0 if number < drive.sectors => {}
            0 => return Err(Sense::LBA_OUT_OF_RANGE.into()),
            1 | 2 if number == 1 => {}
            _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
        }
        let mut data = [0; 36];
        data[1] = data.len() as u8 - 2;
        // Track 1 of session 1, with data in mode 1.
        data[2..4].fill(1);
        (data[5], data[6]) = (0x04, 0x01);
        // The last recorded sector is told; there is nothing to be written.
        data[7] = 0x02;
        data[24..28].copy_from_slice(&drive.sectors.to_be_bytes());
        data[28..32].copy_from_slice(&drive.sectors.saturating_sub(1).to_be_bytes());
        request.reply(&data, length)
    }

    fn mode(&self) -> mode::Device {
        mode::Device::Dvd {
            locked: self.drive.lock().locked,
        }
    }

    fn carry_out(&self, request: &Request<'_>, command: Command) -> Outcome {
        match command {
            Command::TestUnitReady => self.drive.lock().ready().map(|_| 0),
            Command::Read { blocks, .. } => self.read(request, blocks),
            Command::ReadCapacity10 => self.read_capacity(request),
            Command::Inquiry { page, length } => self.inquiry(request, page, length),
            Command::RequestSense { descriptor, length } => {
                self.request_sense(request, descriptor, length)
            }
            Command::ModeSense { .. } => mode::sense(&self.mode(), request, &command),
            Command::ModeSelect { long, save, length } => {
                mode::parse_select(&self.mode(), request, long, save, length)?;
                Ok(length as usize)
            }
            Command::StartStop {
                start,
                load_eject,
                power_condition,
            } => {
                if power_condition == 0 {
                    self.start_stop(start, load_eject)
                } else {
                    Ok(0)
                }
            }
            Command::PreventAllow { prevent } => {
                self.drive.lock().locked = prevent & 1 != 0;
                Ok(0)
            }
            Command::SynchronizeCache { .. } => Ok(0),
            Command::Verify { compare: false, .. } => self.drive.lock().ready().map(|_| 0),
            Command::ReadToc { .. } => self.toc(request, &command),
            Command::GetConfiguration {
                request: selection,
                start,
                length,
            } => self.configuration(request, selection, start, length),
            Command::GetEventStatus {
                polled,
                classes,
                length,
            } => self.event_status(request, polled, classes, length),
            Command::ReadDiscInformation { kind, length } => {
                self.disc_information(request, kind, length)
            }
            Command::ReadTrackInformation { by, number, length } => {
                self.track_information(request, by, number, length)
            }
            Command::MechanismStatus { length } => {
                let door = u8::from(self.drive.lock().tray_open) << 4;
                request.reply(&[0, door, 0, 0, 0, 0, 0, 0], length)
            }
            Command::Write { .. } => Err(Sense::WRITE_PROTECTED.into()),
            _ => Err(Sense::INVALID_OPCODE.into()),
        }
    }
}

/// An address of a table of contents: a sector, or minute, second and frame.
fn address(sector: u32, msf: bool) -> [u8; 4] {
    if !msf {
        return sector.to_be_bytes();
    }
    let frames = sector.saturating_add(LEAD_IN);
    let (seconds, frame) = (frames / FRAMES_PER_SECOND, frames % FRAMES_PER_SECOND);
    // A DVD is longer than a CD's clock can tell.
    [
        0,
        (seconds / 60).min(255) as u8,
        (seconds % 60) as u8,
        frame as u8,
    ]
}

/// Features of the drive: code, whether it is current, and its data.
fn features_of(loaded: bool) -> [(u16, bool, Vec<u8>); 6] {
    let [high, low] = DVD_ROM.to_be_bytes();
    [
        // Profiles: DVD-ROM.
        (0x0000, true, vec![high, low, loaded.into(), 0]),
        // Core: a SCSI interface.
        (0x0001, true, vec![0, 0, 0, 1, 1, 0, 0, 0]),
        // Morphing: events are polled.
        (0x0002, true, vec![2, 0, 0, 0]),
        // Removable medium: a tray that ejects and can be locked.
        (0x0003, true, vec![0x29, 0, 0, 0]),
        // Random readable: 2048 bytes to a block, one block at a time.
        (0x0010, loaded, vec![0, 0, 8, 0, 0, 1, 0, 0]),
        // DVD read.
        (0x001f, loaded, vec![0, 0, 0, 0]),
    ]
}

/// The version of a feature in MMC-6.
fn version(feature: u16) -> u8 {
    match feature {
        0x0001 => 2,
        0x0002 => 1,
        _ => 0,
    }
}

/// Features that do not depend on the medium.
fn persistent(feature: u16) -> u8 {
    (feature <= 0x0003).into()
}

impl LogicalUnit for DvdDrive {
    fn execute(&self, request: &Request<'_>) -> Outcome {
        let command = Cdb::new(&request.cdb, request.cdb_length)?.decode()?;
        self.attentions.check(&command)?;
        self.carry_out(request, command)
    }

    fn reset(&self) {
        self.drive.lock().locked = false;
        self.attentions.raise(Sense::RESET);
    }
}

#[cfg(test)]
#[path = "dvd_tests.rs"]
mod tests;
