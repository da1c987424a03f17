//! Reading of single files out of Debian packages.
//!
//! A package is an `ar` archive with a compressed `tar` archive in it (deb(5)). It was checked
//! against the hash in signed lists before it gets here; sizes are bounded all the same.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Largest file that is taken out of a package, in bytes.
const MAX_FILE: u64 = 512 << 20;
/// Most memory for a decoder's dictionary or window, in bytes.
const MAX_WINDOW: u64 = 256 << 20;

/// The contents of the first regular file in `package` whose path (without a leading `./`)
/// satisfies `wanted`.
pub(super) fn extract(package: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<u8>> {
    let file = BufReader::new(File::open(package)?);
    let mut archive = ar::Archive::new(file);
    while let Some(member) = archive.next_entry() {
        let member = member.context("the package is damaged")?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let Some(compression) = name.trim_end_matches('/').strip_prefix("data.tar") else {
            continue;
        };
        return match compression {
            "" => find(member, wanted),
            ".gz" => find(flate2::read::GzDecoder::new(member), wanted),
            ".xz" => {
                let limit = (MAX_WINDOW >> 10) as u32;
                find(
                    lzma_rust2::XzReader::new_mem_limit(member, true, limit),
                    wanted,
                )
            }
            ".zst" => {
                use ruzstd::decoding::StreamingDecoder;
                let decoder = StreamingDecoder::new_with_max_window_size(member, MAX_WINDOW)
                    .context("the package's contents cannot be unpacked")?;
                find(decoder, wanted)
            }
            other => bail!("the package's contents are compressed in an unknown way ({other})"),
        };
    }
    bail!("the package has no contents")
}

fn find(reader: impl Read, wanted: impl Fn(&str) -> bool) -> Result<Vec<u8>> {
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let entry = entry.context("the package's contents are damaged")?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let is_file = entry.header().entry_type().is_file();
        if !is_file || !wanted(path.trim_start_matches("./")) {
            continue;
        }
        let mut bytes = Vec::with_capacity(entry.size().min(MAX_FILE) as usize);
        entry.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            bail!("{path} in the package is too large");
        }
        return Ok(bytes);
    }
    bail!("the package does not contain the file that was expected in it")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn tarball() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, data) in [
            ("./usr/share/doc/x", "no"),
            ("./boot/vmlinuz-6.1", "kernel"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            builder
                .append_data(&mut header, path, data.as_bytes())
                .unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn package(member: &str, contents: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut builder = ar::Builder::new(file.reopen().unwrap());
        for (name, data) in [("debian-binary", b"2.0\n".as_slice()), (member, contents)] {
            let header = ar::Header::new(name.as_bytes().to_vec(), data.len() as u64);
            builder.append(&header, data).unwrap();
        }
        file
    }

    #[test]
    fn a_file_is_found_whatever_the_compression() {
        let tar = tarball();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        gz.write_all(&tar).unwrap();
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        xz.write_all(&tar).unwrap();
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let zst = ruzstd::encoding::compress_to_vec(tar.as_slice(), level);
        for (name, data) in [
            ("data.tar", tar.clone()),
            ("data.tar.gz", gz.finish().unwrap()),
            ("data.tar.xz", xz.finish().unwrap()),
            ("data.tar.zst", zst),
        ] {
            let package = package(name, &data);
            let found = extract(package.path(), |path| path.starts_with("boot/vmlinuz-"));
            assert_eq!(found.unwrap(), b"kernel", "{name}");
        }
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let package = package("data.tar", &tarball());
        assert!(extract(package.path(), |path| path == "bin/busybox").is_err());
        let package = self::package("control.tar", b"");
        assert!(extract(package.path(), |_| true).is_err());
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(extract(empty.path(), |_| true).is_err());
    }
}
