//! Results on standard output, for people or as JSON.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use disk::{DiskInfo, DiskKind, Format};
use serde::Serialize;

use super::failure::Failure;
use super::size::Bytes;

/// A disk with its file, as JSON has it.
#[derive(Debug, Serialize)]
pub(super) struct NamedDisk<'a> {
    /// The file, as it was given or found.
    pub(super) file: String,
    /// Bytes that the file takes on the host.
    pub(super) allocated_size: u64,
    /// What is known of the disk.
    #[serde(flatten)]
    pub(super) info: &'a DiskInfo,
}

impl<'a> NamedDisk<'a> {
    /// A disk and the space that it takes.
    pub(super) fn new(file: &Path, info: &'a DiskInfo) -> Self {
        Self {
            file: file.display().to_string(),
            // The unit is 512 bytes on every file system (stat(2)).
            allocated_size: file.metadata().map_or(0, |m| m.blocks() * 512),
            info,
        }
    }

    /// Lines that describe the disk.
    pub(super) fn text(&self) -> String {
        let info = self.info;
        let mut lines = vec![
            ("File", printable(&self.file)),
            (
                "Format",
                format!("{}, {}", format_name(info.format), kind_name(info.kind)),
            ),
            (
                "Virtual size",
                format!("{} ({} bytes)", Bytes(info.virtual_size), info.virtual_size),
            ),
            (
                "File size",
                format!(
                    "{}, of which {} are allocated",
                    Bytes(info.file_size),
                    Bytes(self.allocated_size)
                ),
            ),
        ];
        if info.block_size != 0 {
            lines.push(("Block size", Bytes(info.block_size.into()).to_string()));
        }
        lines.push((
            "Sectors",
            format!(
                "{} bytes logical, {} bytes physical",
                info.logical_sector_size, info.physical_sector_size
            ),
        ));
        lines.extend(info.identity.map(|id| ("Disk identity", id.to_string())));
        lines.extend(info.data_identity.map(|id| ("Contents", id.to_string())));
        if let Some(parent) = &info.parent {
            lines.push(("Parent contents", parent.linkage.to_string()));
            let paths = [
                ("Parent, relative", &parent.relative_path),
                ("Parent, absolute", &parent.absolute_path),
            ];
            for (name, path) in paths {
                lines.extend(path.iter().map(|path| (name, printable(path))));
            }
            if let Some(path) = &parent.resolved {
                lines.push(("Parent found at", printable(&path.display().to_string())));
            }
        }
        lines
            .iter()
            .map(|(name, value)| format!("{:17} {value}\n", format!("{name}:")))
            .collect()
    }
}

/// A format's name for people.
pub(super) fn format_name(format: Format) -> &'static str {
    match format {
        Format::Vhdx => "VHDX",
        Format::Vhd => "VHD",
        Format::Raw => "raw",
    }
}

/// A type's name, as the command line has it.
pub(super) fn kind_name(kind: DiskKind) -> &'static str {
    match kind {
        DiskKind::Fixed => "fixed",
        DiskKind::Dynamic => "dynamic",
        DiskKind::Differencing => "differencing",
    }
}

/// Text that may come from a file, without what would command a terminal.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Prints a result: JSON if it was asked for, else the text, which ends with a line break.
pub(super) fn print(
    json: bool,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let text = if json {
        let pretty = serde_json::to_string_pretty(value)
            .map_err(|e| Failure::Other(format!("the result cannot be printed as JSON: {e}")))?;
        pretty + "\n"
    } else {
        text()
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::Other(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_files_cannot_command_a_terminal() {
        assert_eq!(printable("dad\u{1b}[2J.vhdx\n"), "dad\\u{1b}[2J.vhdx\\n");
        assert_eq!(printable("größe.vhdx"), "größe.vhdx");
    }
}
