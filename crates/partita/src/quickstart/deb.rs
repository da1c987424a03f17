//! Reading of files out of Debian packages.
//!
//! A package is an `ar` archive with a compressed `tar` archive in it (deb(5)). It was checked
//! against the hash in signed lists before it gets here; sizes are bounded all the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Most that is taken out of a package, in bytes.
const MAX_TOTAL: u64 = 512 << 20;
/// Most memory for a decoder's dictionary or window, in bytes.
const MAX_WINDOW: u64 = 256 << 20;

/// Files by their path in a package, without a leading `./`.
pub(super) type Files = BTreeMap<String, Vec<u8>>;

/// The regular files in `package` whose path satisfies `wanted`.
pub(super) fn extract(package: &Path, wanted: impl Fn(&str) -> bool) -> Result<Files> {
    let file = BufReader::new(File::open(package)?);
    let mut archive = ar::Archive::new(file);
    while let Some(member) = archive.next_entry() {
        let member = member.context("the package is damaged")?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let Some(compression) = name.trim_end_matches('/').strip_prefix("data.tar") else {
            continue;
        };
        return match compression {
            "" => collect(member, wanted),
            ".gz" => collect(flate2::read::GzDecoder::new(member), wanted),
            ".xz" => collect(unxz(member), wanted),
            ".zst" => collect(unzstd(member)?, wanted),
            other => bail!("the package's contents are compressed in an unknown way ({other})"),
        };
    }
    bail!("the package has no contents")
}

/// A file of a package that may be compressed by itself, as its name tells.
pub(super) fn plain<'a>(path: &'a str, contents: &[u8]) -> Result<(&'a str, Vec<u8>)> {
    let (name, reader): (_, Box<dyn Read + '_>) = match path.rsplit_once('.') {
        Some((name, "xz")) => (name, Box::new(unxz(contents))),
        Some((name, "zst")) => (name, Box::new(unzstd(contents)?)),
        _ => return Ok((path, contents.to_owned())),
    };
    let mut bytes = Vec::new();
    read_bounded(reader, &mut bytes, MAX_TOTAL).with_context(|| format!("{path} is damaged"))?;
    Ok((name, bytes))
}

fn unxz<R: Read>(reader: R) -> impl Read {
    lzma_rust2::XzReader::new_mem_limit(reader, true, (MAX_WINDOW >> 10) as u32)
}

fn unzstd<R: Read>(reader: R) -> Result<impl Read> {
    ruzstd::decoding::StreamingDecoder::new_with_max_window_size(reader, MAX_WINDOW)
        .context("the package's contents cannot be unpacked")
}

fn collect(reader: impl Read, wanted: impl Fn(&str) -> bool) -> Result<Files> {
    let mut archive = tar::Archive::new(reader);
    let mut files = Files::new();
    let mut left = MAX_TOTAL;
    for entry in archive.entries()? {
        let entry = entry.context("the package's contents are damaged")?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let name = path.trim_start_matches("./");
        if !entry.header().entry_type().is_file() || !wanted(name) {
            continue;
        }
        let mut bytes = Vec::with_capacity(entry.size().min(left) as usize);
        read_bounded(entry, &mut bytes, left)
            .with_context(|| format!("{name} in the package cannot be read"))?;
        left -= bytes.len() as u64;
        files.insert(name.to_owned(), bytes);
    }
    Ok(files)
}

fn read_bounded(reader: impl Read, bytes: &mut Vec<u8>, limit: u64) -> Result<()> {
    reader.take(limit + 1).read_to_end(bytes)?;
    if bytes.len() as u64 > limit {
        bail!("it is too large");
    }
    Ok(())
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

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let options = lzma_rust2::XzOptions::with_preset(1);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        xz.write_all(bytes).unwrap();
        xz.finish().unwrap()
    }

    fn zst(bytes: &[u8]) -> Vec<u8> {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        ruzstd::encoding::compress_to_vec(bytes, level)
    }

    #[test]
    fn a_file_is_found_whatever_the_compression() {
        let tar = tarball();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), Default::default());
        gz.write_all(&tar).unwrap();
        for (name, data) in [
            ("data.tar", tar.clone()),
            ("data.tar.gz", gz.finish().unwrap()),
            ("data.tar.xz", xz(&tar)),
            ("data.tar.zst", zst(&tar)),
        ] {
            let package = package(name, &data);
            let found = extract(package.path(), |path| path.starts_with("boot/vmlinuz-")).unwrap();
            let found: Vec<_> = found.into_iter().collect();
            assert_eq!(
                found,
                [("boot/vmlinuz-6.1".into(), b"kernel".to_vec())],
                "{name}"
            );
        }
    }

    #[test]
    fn a_package_without_contents_is_an_error() {
        let package = package("data.tar", &tarball());
        assert_eq!(
            extract(package.path(), |path| path == "bin/busybox").unwrap(),
            Files::new()
        );
        let package = self::package("control.tar", b"");
        assert!(extract(package.path(), |_| true).is_err());
        let empty = tempfile::NamedTempFile::new().unwrap();
        assert!(extract(empty.path(), |_| true).is_err());
    }

    #[test]
    fn a_file_may_be_compressed_by_itself() {
        for (path, contents) in [
            ("lib/a.ko", b"module".to_vec()),
            ("lib/a.ko.xz", xz(b"module")),
            ("lib/a.ko.zst", zst(b"module")),
        ] {
            let (name, bytes) = plain(path, &contents).unwrap();
            assert_eq!((name, bytes.as_slice()), ("lib/a.ko", &b"module"[..]));
        }
        assert!(plain("lib/a.ko.xz", b"module").is_err());
    }
}
