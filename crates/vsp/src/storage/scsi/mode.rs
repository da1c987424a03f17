//! Mode parameters (SPC-4 7.5, SBC-3 6.5, MMC-6 annex E).

use super::cdb::Command;
use super::sense::Sense;
use super::{Fault, Outcome, Request};

/// Caching.
const CACHING: u8 = 0x08;
/// Control.
const CONTROL: u8 = 0x0a;
/// Informational exceptions control.
const EXCEPTIONS: u8 = 0x1c;
/// Read error recovery of optical drives.
const RECOVERY: u8 = 0x01;
/// Capabilities and mechanical status of optical drives.
const CAPABILITIES: u8 = 0x2a;
/// All pages.
const ALL: u8 = 0x3f;

/// Writes may stay in the cache, in the caching page's third byte.
const WCE: u8 = 1 << 2;

/// What differs between devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// A disk.
    Disk {
        /// Writes are refused.
        read_only: bool,
        /// The write cache is on.
        cache: bool,
        /// Blocks and their size, for the block descriptor.
        blocks: (u64, u32),
    },
    /// An optical drive.
    Dvd {
        /// The tray is locked.
        locked: bool,
    },
}

impl Device {
    fn pages(&self) -> &'static [u8] {
        match self {
            Self::Disk { .. } => &[CACHING, CONTROL, EXCEPTIONS],
            Self::Dvd { .. } => &[RECOVERY, EXCEPTIONS, CAPABILITIES],
        }
    }

    /// A page with its present values.
    fn page(&self, page: u8) -> Vec<u8> {
        let mut data = vec![page, page_length(page)];
        data.resize(2 + usize::from(page_length(page)), 0);
        match (page, self) {
            (CACHING, Self::Disk { cache, .. }) => data[2] = if *cache { WCE } else { 0 },
            // Commands may be reordered without limits.
            (CONTROL, _) => data[3] = 0x10,
            // Nothing is ever reported.
            (EXCEPTIONS, _) => data[2] = 0x08,
            (RECOVERY, _) => data[3] = 5,
            (CAPABILITIES, Self::Dvd { locked }) => {
                // Reads CD-R, CD-RW, DVD-ROM, DVD-R; multisession, mode 2.
                data[2] = 0x3b;
                data[4] = 0x70;
                // A tray that ejects and can be locked.
                data[6] = 0x29 | u8::from(*locked) << 1;
                // 1385 kB/s for each of 32 times the speed of a DVD.
                data[8..10].copy_from_slice(&44_320_u16.to_be_bytes());
                data[14..16].copy_from_slice(&44_320_u16.to_be_bytes());
            }
            _ => {}
        }
        data
    }

    /// A page in which the bits that can be changed are set.
    fn changeable(&self, page: u8) -> Vec<u8> {
        let mut data = vec![page, page_length(page)];
        data.resize(2 + usize::from(page_length(page)), 0);
        if page == CACHING {
            data[2] = WCE;
        }
        data
    }

    /// A page as after power on.
    fn default(&self, page: u8) -> Vec<u8> {
        match *self {
            Self::Disk {
                read_only, blocks, ..
            } => Self::Disk {
                read_only,
                blocks,
                cache: true,
            }
            .page(page),
            Self::Dvd { .. } => Self::Dvd { locked: false }.page(page),
        }
    }

    /// The device-specific byte of the header.
    fn specific(&self) -> u8 {
        match self {
            // DPO and FUA are understood.
            Self::Disk { read_only, .. } => u8::from(*read_only) << 7 | 0x10,
            Self::Dvd { .. } => 0,
        }
    }

    fn descriptor(&self) -> Option<[u8; 8]> {
        let Self::Disk {
            blocks: (count, size),
            ..
        } = self
        else {
            return None;
        };
        let count = u32::try_from(*count).unwrap_or(u32::MAX);
        let mut data = [0; 8];
        data[..4].copy_from_slice(&count.to_be_bytes());
        data[5..].copy_from_slice(&size.to_be_bytes()[1..]);
        Some(data)
    }
}

fn page_length(page: u8) -> u8 {
    match page {
        CACHING => 0x12,
        CAPABILITIES => 0x14,
        _ => 0x0a,
    }
}

/// MODE SENSE (6) and (10).
pub(super) fn sense(device: &Device, request: &Request<'_>, command: &Command) -> Outcome {
    let &Command::ModeSense {
        long,
        no_descriptor,
        control,
        page,
        subpage,
        length,
    } = command
    else {
        return Err(Sense::INVALID_OPCODE.into());
    };
    let pages = select(device, control, page, subpage)?;
    let descriptor = device.descriptor().filter(|_| !no_descriptor);
    let descriptor = descriptor.as_ref().map_or(&[][..], |bytes| &bytes[..]);
    let rest = descriptor.len() + pages.len();
    let mut data = if long {
        let [high, low] = (6 + rest as u16).to_be_bytes();
        vec![
            high,
            low,
            0,
            device.specific(),
            0,
            0,
            0,
            descriptor.len() as u8,
        ]
    } else {
        vec![3 + rest as u8, 0, device.specific(), descriptor.len() as u8]
    };
    data.extend(descriptor);
    data.extend(pages);
    request.reply(&data, length)
}

fn select(device: &Device, control: u8, page: u8, subpage: u8) -> Result<Vec<u8>, Fault> {
    let known = device.pages();
    let all = page == ALL && (subpage == 0 || subpage == 0xff);
    let wanted = if all {
        known
    } else {
        std::slice::from_ref(&page)
    };
    if !all && (subpage != 0 || !known.contains(&page)) {
        return Err(Sense::INVALID_FIELD_IN_CDB.into());
    }
    let mut data = Vec::new();
    for &page in wanted {
        data.extend(match control {
            0 => device.page(page),
            1 => device.changeable(page),
            2 => device.default(page),
            _ => return Err(Sense::SAVING_NOT_SUPPORTED.into()),
        });
    }
    Ok(data)
}

/// MODE SELECT (6) and (10): what the write cache is to be, if that is said.
pub(super) fn parse_select(
    device: &Device,
    request: &Request<'_>,
    long: bool,
    save: bool,
    length: u32,
) -> Result<Option<bool>, Fault> {
    if save {
        return Err(Sense::INVALID_FIELD_IN_CDB.into());
    }
    let data = request.parameters(length)?;
    if data.is_empty() {
        return Ok(None);
    }
    let (header, descriptor) = if long {
        let at = data.get(6..8).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        (8, usize::from(at[0]) << 8 | usize::from(at[1]))
    } else {
        (
            4,
            usize::from(*data.get(3).ok_or(Sense::PARAMETER_LIST_LENGTH)?),
        )
    };
    // The block descriptor cannot change anything, so it is not looked at.
    if descriptor != 0 && descriptor != 8 {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
    }
    let mut pages = data
        .get(header + descriptor..)
        .ok_or(Sense::PARAMETER_LIST_LENGTH)?;
    let mut cache = None;
    while !pages.is_empty() {
        let size = 2 + usize::from(*pages.get(1).ok_or(Sense::PARAMETER_LIST_LENGTH)?);
        let page = pages.get(..size).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        cache = check_page(device, page)?.or(cache);
        pages = &pages[size..];
    }
    Ok(cache)
}

/// Checks that a page changes nothing but what can be changed.
fn check_page(device: &Device, page: &[u8]) -> Result<Option<bool>, Fault> {
    let invalid = Err(Sense::INVALID_FIELD_IN_PARAMETERS.into());
    // Bit 7 is only defined for MODE SENSE, bit 6 means a subpage.
    let code = page[0] & 0x7f;
    if !device.pages().contains(&code) {
        return invalid;
    }
    let (present, mask) = (device.page(code), device.changeable(code));
    if page.len() != present.len() {
        return invalid;
    }
    let same = (2..page.len()).all(|at| (page[at] ^ present[at]) & !mask[at] == 0);
    if !same {
        return invalid;
    }
    Ok((code == CACHING).then(|| page[2] & WCE != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Device = Device::Disk {
        read_only: true,
        cache: true,
        blocks: (1 << 33, 512),
    };

    #[test]
    fn every_page_has_its_length() {
        for device in [DISK, Device::Dvd { locked: true }] {
            let all = select(&device, 0, ALL, 0).unwrap();
            let (mut at, mut seen) = (0, Vec::new());
            while at < all.len() {
                seen.push(all[at]);
                at += 2 + usize::from(all[at + 1]);
            }
            assert_eq!(seen, device.pages());
            assert_eq!(select(&device, 2, ALL, 0xff).unwrap().len(), all.len());
            let saved = select(&device, 3, ALL, 0);
            assert_eq!(saved, Err(Sense::SAVING_NOT_SUPPORTED.into()));
            assert!(select(&device, 0, 0x19, 0).is_err());
        }
        assert_eq!(
            DISK.descriptor(),
            Some([0xff, 0xff, 0xff, 0xff, 0, 0, 2, 0])
        );
        assert_eq!(DISK.specific(), 0x90);
    }

    #[test]
    fn only_the_cache_can_be_changed() {
        let mut page = DISK.page(CACHING);
        page[2] &= !WCE;
        assert_eq!(check_page(&DISK, &page), Ok(Some(false)));
        page[3] = 1;
        assert!(check_page(&DISK, &page).is_err());
        assert!(check_page(&DISK, &page[..10]).is_err());
        assert_eq!(check_page(&DISK, &DISK.page(CONTROL)), Ok(None));
    }
}
