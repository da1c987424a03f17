//! INQUIRY data and vital product data pages (SPC-4 6.6 and 7.8, SBC-3 6.6).

use super::sense::Sense;
use crate::storage::medium::MediumInfo;

/// Guests know Hyper-V's devices by this vendor.
const VENDOR: &[u8; 8] = b"Msft    ";
const REVISION: &[u8; 4] = b"1.0 ";
/// Microsoft's IEEE company identifier, as in the names of Hyper-V's disks.
const COMPANY: [u8; 3] = [0x00, 0x22, 0x48];

/// Descriptors of one UNMAP command.
pub(super) const MAX_UNMAP_DESCRIPTORS: u32 = 256;
/// Bytes that one UNMAP command can give back.
pub(super) const MAX_UNMAP_BYTES: u64 = 4 << 30;
/// Bytes that one WRITE SAME command can write: it has no data, so without a
/// limit it could run for hours.
pub(super) const MAX_WRITE_SAME_BYTES: u64 = 32 << 20;

/// How a logical unit is told apart from others, at each start the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(pub [u8; 16]);

impl Identity {
    /// An identity for a unit that has none of its own: from where it is.
    pub fn of_place(controller: [u8; 16], lun: u8) -> Self {
        let mut bytes = controller;
        bytes[15] ^= lun;
        bytes[14] = bytes[14].rotate_left(1) ^ 0x5a;
        Self(bytes)
    }

    /// As the unit's serial number.
    fn serial(&self) -> [u8; 32] {
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = hex(byte >> 4);
            pair[1] = hex(byte & 0xf);
        }
        text
    }

    /// As a registered extended name (NAA 6): four bits of type, the company,
    /// and 100 bits of the identity.
    fn name(&self) -> [u8; 16] {
        let mut name = self.0;
        name[0] = 0x60 | COMPANY[0] >> 4;
        name[1] = COMPANY[0] << 4 | COMPANY[1] >> 4;
        name[2] = COMPANY[1] << 4 | COMPANY[2] >> 4;
        name[3] = COMPANY[2] << 4 | self.0[0] & 0xf;
        // The bytes that the company displaced still count.
        for (at, byte) in self.0[..4].iter().enumerate() {
            name[4 + at] ^= byte.rotate_left(3);
        }
        name
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        0..=9 => b'0' + digit,
        _ => b'A' + digit - 10,
    }
}

/// Standard INQUIRY data of a disk.
pub(super) fn disk() -> [u8; 36] {
    standard(0x00, false, b"Virtual Disk    ")
}

/// Standard INQUIRY data of an optical drive.
pub(super) fn dvd() -> [u8; 36] {
    standard(0x05, true, b"Virtual DVD-ROM ")
}

fn standard(device_type: u8, removable: bool, product: &[u8; 16]) -> [u8; 36] {
    let mut data = [0; 36];
    data[0] = device_type;
    data[1] = u8::from(removable) << 7;
    // SPC-3, with response data in the format that all have.
    data[2] = 5;
    data[3] = 2;
    data[4] = data.len() as u8 - 5;
    // Commands are queued.
    data[7] = 2;
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(product);
    data[32..].copy_from_slice(REVISION);
    data
}

/// Standard INQUIRY data where there is no logical unit: guests that force
/// INQUIRY to succeed must find this, or they would see phantom disks.
pub(super) fn absent() -> [u8; 36] {
    let mut data = [0; 36];
    // Qualifier 3, type 1f: not capable of having a unit here.
    data[0] = 0x7f;
    data[2] = 5;
    data[3] = 2;
    data[4] = data.len() as u8 - 5;
    data
}

/// The page of a disk.
pub(super) fn disk_page(
    page: u8,
    identity: &Identity,
    info: &MediumInfo,
    max_transfer: u32,
) -> Result<Vec<u8>, Sense> {
    let body = match page {
        0x00 => vec![0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2],
        0xb0 => block_limits(info, max_transfer),
        0xb1 => characteristics(),
        0xb2 => provisioning(info),
        _ => common(page, identity)?,
    };
    Ok(with_header(0x00, page, body))
}

/// The page of an optical drive.
pub(super) fn dvd_page(page: u8, identity: &Identity) -> Result<Vec<u8>, Sense> {
    let body = match page {
        0x00 => vec![0x00, 0x80, 0x83],
        _ => common(page, identity)?,
    };
    Ok(with_header(0x05, page, body))
}

fn with_header(device_type: u8, page: u8, body: Vec<u8>) -> Vec<u8> {
    let [high, low] = (body.len() as u16).to_be_bytes();
    let mut data = vec![device_type, page, high, low];
    data.extend(body);
    data
}

fn common(page: u8, identity: &Identity) -> Result<Vec<u8>, Sense> {
    match page {
        0x80 => Ok(identity.serial().to_vec()),
        0x83 => Ok(designators(identity)),
        _ => Err(Sense::INVALID_FIELD_IN_CDB),
    }
}

/// Device identification: a T10 name and an NAA name.
fn designators(identity: &Identity) -> Vec<u8> {
    // ASCII and binary; both name the logical unit.
    let mut data = vec![0x02, 0x01, 0, 8 + 32];
    data.extend(VENDOR);
    data.extend(identity.serial());
    data.extend([0x01, 0x03, 0, 16]);
    data.extend(identity.name());
    data
}

fn block_limits(info: &MediumInfo, max_transfer: u32) -> Vec<u8> {
    let sector = info.logical_sector.max(1);
    let mut data = vec![0; 60];
    // WSNZ: WRITE SAME of no block does not mean all of them.
    data[0] = 1;
    put16(
        &mut data,
        2,
        (info.physical_sector / sector).min(u16::MAX.into()) as u16,
    );
    put32(&mut data, 4, max_transfer / sector);
    put32(&mut data, 8, max_transfer / sector);
    if info.unmap {
        put32(&mut data, 16, blocks(MAX_UNMAP_BYTES, sector));
        put32(&mut data, 20, MAX_UNMAP_DESCRIPTORS);
        put32(&mut data, 24, (info.unmap_granularity / sector).max(1));
        // The alignment below is valid: it is zero.
        put32(&mut data, 28, 1 << 31);
    }
    let most = u64::from(blocks(MAX_WRITE_SAME_BYTES, sector));
    data[32..40].copy_from_slice(&most.to_be_bytes());
    data
}

fn blocks(bytes: u64, sector: u32) -> u32 {
    u32::try_from(bytes / u64::from(sector)).unwrap_or(u32::MAX)
}

fn put16(data: &mut [u8], at: usize, value: u16) {
    data[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn put32(data: &mut [u8], at: usize, value: u32) {
    data[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn characteristics() -> Vec<u8> {
    let mut data = vec![0; 60];
    // Nothing rotates.
    put16(&mut data, 0, 1);
    data
}

/// Logical block provisioning.
fn provisioning(info: &MediumInfo) -> Vec<u8> {
    if !info.unmap {
        return vec![0; 4];
    }
    // UNMAP, WRITE SAME (16) and (10) give space back, which reads as zeros;
    // provisioned thinly.
    vec![0, 0x80 | 0x40 | 0x20 | 0x04, 2, 0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> MediumInfo {
        MediumInfo {
            size: 1 << 30,
            logical_sector: 512,
            physical_sector: 4096,
            read_only: false,
            unmap: true,
            unmap_granularity: 2 << 20,
            identity: None,
        }
    }

    fn page(page: u8) -> Vec<u8> {
        disk_page(page, &Identity([0xab; 16]), &info(), 256 << 10).unwrap()
    }

    #[test]
    fn standard_data() {
        let data = disk();
        assert_eq!(
            (data[0], data[1], data[4], &data[8..16]),
            (0, 0, 31, &VENDOR[..])
        );
        let data = dvd();
        assert_eq!((data[0], data[1]), (5, 0x80));
        assert_eq!(absent()[0], 0x7f);
    }

    #[test]
    fn pages_of_a_disk() {
        for listed in page(0)[4..].iter().copied() {
            let data = page(listed);
            assert_eq!((data[0], data[1]), (0, listed));
            assert_eq!(
                data.len(),
                4 + usize::from(data[2]) * 256 + usize::from(data[3])
            );
        }
        let limits = page(0xb0);
        assert_eq!(limits.len(), 64);
        assert_eq!(limits[4..12], [1, 0, 0, 8, 0, 0, 2, 0]);
        assert_eq!(limits[20..32], [0, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0x10, 0]);
        assert_eq!(limits[36..44], [0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(page(0xb2)[4..], [0, 0xe4, 2, 0]);
        let bad = disk_page(0x89, &Identity([0; 16]), &info(), 0);
        assert_eq!(bad, Err(Sense::INVALID_FIELD_IN_CDB));
    }

    #[test]
    fn names_are_distinct() {
        let a = Identity::of_place([7; 16], 0);
        let b = Identity::of_place([7; 16], 1);
        assert_ne!(a.name(), b.name());
        assert_ne!(a.serial(), b.serial());
        assert_eq!(a.name()[..3], [0x60, 0x02, 0x24]);
        assert_eq!(a.name()[3] >> 4, 8);
        // A difference in the displaced bytes remains visible.
        let (mut c, mut d) = ([7; 16], [7; 16]);
        (c[1], d[1]) = (1, 2);
        assert_ne!(Identity(c).name(), Identity(d).name());
    }
}
