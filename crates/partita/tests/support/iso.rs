//! A small ISO 9660 image (ECMA-119), as on a CD.

/// Bytes of a logical sector.
const SECTOR: usize = 2048;
/// Where the first volume descriptor lies.
const DESCRIPTORS: usize = 16;
const PATH_TABLE: usize = 18;
const ROOT: usize = 19;
const FIRST_FILE: usize = 20;

/// An image with a volume name and these files in its root folder. Names are
/// upper-case letters, digits and one full stop.
pub(crate) fn image(volume: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut image = vec![0; FIRST_FILE * SECTOR];
    let mut folder = [
        record(b"\0", ROOT, SECTOR, true),
        record(b"\x01", ROOT, SECTOR, true),
    ]
    .concat();
    for (name, data) in files {
        let at = image.len() / SECTOR;
        folder.extend(record(
            format!("{name};1").as_bytes(),
            at,
            data.len(),
            false,
        ));
        image.extend_from_slice(data);
        image.resize(image.len().next_multiple_of(SECTOR), 0);
    }
    // The last sector of a CD cannot always be read: real images have a rest behind the files.
    image.resize(image.len().max(64 * SECTOR), 0);
    assert!(folder.len() <= SECTOR, "too many files for one sector");
    image[ROOT * SECTOR..][..folder.len()].copy_from_slice(&folder);
    // The path table's only entry: the root folder, its own parent.
    let path = [1, 0, ROOT as u8, 0, 0, 0, 1, 0, 0, 0];
    image[PATH_TABLE * SECTOR..][..path.len()].copy_from_slice(&path);
    let sectors = image.len() / SECTOR;
    let primary = primary_descriptor(volume, sectors);
    image[DESCRIPTORS * SECTOR..][..SECTOR].copy_from_slice(&primary);
    let terminator = &mut image[(DESCRIPTORS + 1) * SECTOR..][..7];
    terminator.copy_from_slice(b"\xffCD001\x01");
    image
}

/// ECMA-119 8.4.
fn primary_descriptor(volume: &str, sectors: usize) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    bytes[..7].copy_from_slice(b"\x01CD001\x01");
    bytes[8..72].fill(b' ');
    bytes[40..40 + volume.len()].copy_from_slice(volume.as_bytes());
    bytes[80..88].copy_from_slice(&both32(sectors));
    for at in [120, 124] {
        bytes[at..at + 4].copy_from_slice(&both16(1));
    }
    bytes[128..132].copy_from_slice(&both16(SECTOR));
    bytes[132..140].copy_from_slice(&both32(10));
    bytes[140..144].copy_from_slice(&(PATH_TABLE as u32).to_le_bytes());
    bytes[156..190].copy_from_slice(&record(b"\0", ROOT, SECTOR, true));
    bytes[190..813].fill(b' ');
    // File structure version.
    bytes[881] = 1;
    bytes
}

/// ECMA-119 9.1.
fn record(name: &[u8], at: usize, size: usize, folder: bool) -> Vec<u8> {
    let mut bytes = vec![0; 33];
    bytes[2..10].copy_from_slice(&both32(at));
    bytes[10..18].copy_from_slice(&both32(size));
    // 2026-01-01 00:00:00 UTC.
    bytes[18..25].copy_from_slice(&[126, 1, 1, 0, 0, 0, 0]);
    bytes[25] = u8::from(folder) << 1;
    bytes[28..32].copy_from_slice(&both16(1));
    bytes[32] = name.len() as u8;
    bytes.extend_from_slice(name);
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    bytes[0] = bytes.len() as u8;
    bytes
}

fn both16(value: usize) -> [u8; 4] {
    let value = value as u16;
    let [a, b] = value.to_le_bytes();
    let [c, d] = value.to_be_bytes();
    [a, b, c, d]
}

fn both32(value: usize) -> [u8; 8] {
    let value = value as u32;
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}
