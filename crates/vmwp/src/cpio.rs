//! Writing of "newc" cpio archives, the format of initial RAM disks.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst. Every entry is a header of
//! 110 ASCII characters, the name and the data, each padded to 4 bytes.

const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const TRAILER: &str = "TRAILER!!!";

/// An archive under construction. All entries belong to root and have no modification time, so
/// that the same input always gives the same bytes.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

/// Why an entry cannot be archived.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// Sizes are 32 bits wide in this format.
    #[error("the file {0} is too large for a cpio archive, which takes up to 4 GiB")]
    TooLarge(String),
    /// The name cannot be stored.
    #[error("the name {0:?} is empty, absolute, reserved or contains a zero byte")]
    BadName(String),
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    data: &'a [u8],
    device: (u32, u32),
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory; its parent must have been added before.
    ///
    /// # Errors
    /// [`CpioError::BadName`]
    pub fn directory(&mut self, name: &str, permissions: u32) -> Result<(), CpioError> {
        let mode = S_IFDIR | permissions;
        self.append(&Entry {
            name,
            mode,
            links: 2,
            data: &[],
            device: (0, 0),
        })
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// [`CpioError`]
    pub fn file(&mut self, name: &str, permissions: u32, data: &[u8]) -> Result<(), CpioError> {
        let mode = S_IFREG | permissions;
        self.append(&Entry {
            name,
            mode,
            links: 1,
            data,
            device: (0, 0),
        })
    }

    /// Adds a symbolic link to `target`.
    ///
    /// # Errors
    /// [`CpioError::BadName`]
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<(), CpioError> {
        let mode = S_IFLNK | 0o777;
        self.append(&Entry {
            name,
            mode,
            links: 1,
            data: target.as_bytes(),
            device: (0, 0),
        })
    }

    /// Adds a character device node.
    ///
    /// # Errors
    /// [`CpioError::BadName`]
    pub fn char_device(
        &mut self,
        name: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), CpioError> {
        let mode = S_IFCHR | permissions;
        self.append(&Entry {
            name,
            mode,
            links: 1,
            data: &[],
            device: (major, minor),
        })
    }

    /// Ends the archive and gives its bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.write(
            &Entry {
                name: TRAILER,
                mode: 0,
                links: 1,
                data: &[],
                device: (0, 0),
            },
            0,
        );
        self.bytes
    }

    fn append(&mut self, entry: &Entry<'_>) -> Result<(), CpioError> {
        let name = entry.name;
        if name.is_empty() || name.starts_with('/') || name.contains('\0') || name == TRAILER {
            return Err(CpioError::BadName(name.to_owned()));
        }
        let size =
            u32::try_from(entry.data.len()).map_err(|_| CpioError::TooLarge(name.to_owned()))?;
        self.inode += 1;
        self.write(entry, size);
        Ok(())
    }

    fn write(&mut self, entry: &Entry<'_>, size: u32) {
        let fields = [
            self.inode,
            entry.mode,
            0, // owner
            0, // group
            entry.links,
            0, // modification time
            size,
            0, // device of the file itself
            0,
            entry.device.0,
            entry.device.1,
            entry.name.len() as u32 + 1,
            0, // checksum, unused in this variant
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(entry.name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Read {
        name: String,
        mode: u32,
        data: Vec<u8>,
        device: (u32, u32),
    }

    /// A reader after the format's description, independent of the writer.
    fn read(bytes: &[u8]) -> Vec<Read> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |i: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + 8 * i..at + 14 + 8 * i]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name_end = at + 110 + name_size;
            assert_eq!(bytes[name_end - 1], 0);
            let name = String::from_utf8(bytes[at + 110..name_end - 1].to_vec()).unwrap();
            let data = name_end.next_multiple_of(4);
            let next = (data + size).next_multiple_of(4);
            if name == TRAILER {
                assert_eq!(next, bytes.len());
                return entries;
            }
            entries.push(Read {
                name,
                mode: field(1),
                data: bytes[data..data + size].to_vec(),
                device: (field(9), field(10)),
            });
            at = next;
        }
    }

    #[test]
    fn every_kind_of_entry_reads_back() {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755).unwrap();
        archive.char_device("dev/console", 0o600, 5, 1).unwrap();
        archive.file("init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.symlink("sbin", "bin").unwrap();
        let entries = read(&archive.finish());
        let modes: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.mode)).collect();
        assert_eq!(
            modes,
            [
                ("dev", 0o040_755),
                ("dev/console", 0o020_600),
                ("init", 0o100_755),
                ("sbin", 0o120_777)
            ]
        );
        assert_eq!(entries[1].device, (5, 1));
        assert_eq!(entries[2].data, b"#!/bin/sh\n");
        assert_eq!(entries[3].data, b"bin");
    }

    #[test]
    fn names_that_would_break_the_archive_are_refused() {
        let mut archive = Archive::new();
        for name in ["", "/etc", "a\0b", TRAILER] {
            assert_eq!(
                archive.file(name, 0, b""),
                Err(CpioError::BadName(name.to_owned()))
            );
        }
    }
}
