//! The disk of both guests.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Unit that begins with its own number, in bytes; the guest's program relies on it.
const PAGE: usize = 4096;

/// Writes a raw image of `size` bytes, all of them in the file, and on the disk when this returns.
pub(crate) fn create(path: &Path, size: u64) -> io::Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    for page in 0..size / PAGE as u64 {
        let mut bytes = [0x5a; PAGE];
        bytes[..8].copy_from_slice(&page.to_le_bytes());
        file.write_all(&bytes)?;
    }
    file.into_inner()?.sync_all()
}

#[cfg(test)]
#[allow(
    dead_code,
    unused_imports,
    reason = "tests need a harness: see unit.rs"
)]
mod tests {
    use super::*;

    #[test]
    fn pages_begin_with_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        create(&path, 3 * PAGE as u64).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3 * PAGE);
        assert_eq!(bytes[2 * PAGE..][..9], [2, 0, 0, 0, 0, 0, 0, 0, 0x5a]);
    }
}
