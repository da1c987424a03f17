//! The initial RAM disk of the quickstart guest: BusyBox, a few scripts and the kernel's modules.
//!
//! It puts the same on the guest's disk, where the guest goes on.

use vmwp::cpio::{Archive, CpioError};

use super::packages::hash;

/// Tells the modules of one kernel from those of another.
pub(super) const MODULES: &str = "etc/partita/modules";
/// Tells one version of everything else from another.
const SYSTEM: &str = "etc/partita/system";

const FOLDERS: [&str; 7] = ["bin", "dev", "etc", "etc/partita", "new", "proc", "sys"];
const PROFILE: &str = "PS1='\\u@\\h:\\w\\$ '\n";
/// Scripts and settings, with their permissions.
const FILES: [(&str, u32, &str); 9] = [
    ("init", 0o755, include_str!("guest/init.sh")),
    ("etc/inittab", 0o644, include_str!("guest/inittab")),
    ("etc/partita/start", 0o755, include_str!("guest/start.sh")),
    (
        "etc/partita/session",
        0o755,
        include_str!("guest/session.sh"),
    ),
    ("etc/partita/check", 0o755, include_str!("guest/check.sh")),
    ("etc/partita/stop", 0o755, include_str!("guest/stop.sh")),
    ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
    ("etc/profile", 0o644, PROFILE),
];

/// Builds the archive around a statically linked BusyBox; `modules` is an archive too.
///
/// # Errors
/// If BusyBox is too large for the format.
pub(super) fn build(busybox: &[u8], modules: &[u8]) -> Result<Vec<u8>, CpioError> {
    let mut archive = Archive::new();
    for name in FOLDERS {
        archive.directory(name, 0o755)?;
    }
    // The kernel opens this for init, before devtmpfs is there.
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.symlink("sbin", "bin")?;
    archive.file("bin/busybox", 0o755, busybox)?;
    for (name, permissions, text) in FILES {
        archive.file(name, permissions, text.as_bytes())?;
    }
    archive.file(SYSTEM, 0o644, identity(busybox).as_bytes())?;
    // The kernel takes archives one after the other.
    let mut bytes = archive.finish();
    bytes.extend_from_slice(modules);
    Ok(bytes)
}

/// One line that differs for different contents.
fn identity(busybox: &[u8]) -> String {
    let names = FILES
        .iter()
        .map(|(name, _, text)| format!("{name} {}\n{text}", text.len()));
    let text = names.collect::<String>() + &hash(busybox);
    hash(text.as_bytes()) + "\n"
}

/// The kernel command line for a shell; `terminal` is its kind and size (rows, columns), if known.
pub(super) fn shell_cmdline(terminal: Option<(String, u16, u16)>) -> String {
    let mut line = "console=ttyS0 earlyprintk=ttyS0,115200".to_owned();
    if let Some((kind, rows, columns)) = terminal {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
        if !kind.is_empty() && kind.len() <= 32 && kind.chars().all(plain) {
            // The kernel hands words that it does not know to init as its environment.
            line.push_str(&format!(" TERM={kind}"));
        }
        if rows > 0 && columns > 0 {
            line.push_str(&format!(" partita.rows={rows} partita.columns={columns}"));
        }
    }
    line
}

/// The kernel command line for the proofs. A panic too early to be reported through the crash
/// MSRs ends the VM by a reset.
pub(super) fn check_cmdline() -> String {
    "console=ttyS0 earlyprintk=ttyS0,115200 panic=-1 partita.check".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_init_and_busybox() {
        let archive = build(b"ELF of busybox", b"070701modules").unwrap();
        assert_eq!(archive.len() % 4, 1, "the second archive is aligned");
        let text = String::from_utf8_lossy(&archive);
        for part in [
            "#!/bin/busybox sh",
            "ELF of busybox",
            "@@partita-check-begin@@",
            "dev/console",
            "ttyS0::once:",
            "TRAILER!!!",
            "070701modules",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert_ne!(identity(b"ELF of busybox"), identity(b"ELF of busybux"));
    }

    #[test]
    fn the_terminal_cannot_smuggle_words_into_the_command_line() {
        let line = shell_cmdline(Some(("xterm init=/bin/evil".into(), 24, 80)));
        assert_eq!(
            line,
            "console=ttyS0 earlyprintk=ttyS0,115200 partita.rows=24 partita.columns=80"
        );
        let line = shell_cmdline(Some(("xterm-256color".into(), 0, 0)));
        assert_eq!(
            line,
            "console=ttyS0 earlyprintk=ttyS0,115200 TERM=xterm-256color"
        );
    }
}
