//! The initial RAM disk of the quickstart guest: BusyBox and two scripts.

use vmwp::cpio::{Archive, CpioError};

const INIT: &str = include_str!("init.sh");
const CHECK: &str = include_str!("check.sh");
const PROFILE: &str = "PS1='\\u@\\h:\\w\\$ '\n";

/// Builds the archive around a statically linked BusyBox.
///
/// # Errors
/// If BusyBox is too large for the format.
pub(super) fn build(busybox: &[u8]) -> Result<Vec<u8>, CpioError> {
    let mut archive = Archive::new();
    for name in [
        "bin",
        "dev",
        "etc",
        "etc/partita",
        "proc",
        "sys",
        "tmp",
        "run",
        "var",
    ] {
        archive.directory(name, 0o755)?;
    }
    archive.directory("root", 0o700)?;
    // The kernel opens this for init, before devtmpfs is there.
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.symlink("sbin", "bin")?;
    archive.file("bin/busybox", 0o755, busybox)?;
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.file("etc/group", 0o644, b"root:x:0:\n")?;
    archive.file("etc/profile", 0o644, PROFILE.as_bytes())?;
    archive.file("etc/partita/check.sh", 0o644, CHECK.as_bytes())?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    Ok(archive.finish())
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
        let archive = build(b"ELF of busybox").unwrap();
        let text = String::from_utf8_lossy(&archive);
        for part in [
            "#!/bin/busybox sh",
            "ELF of busybox",
            "@@partita-check-begin@@",
            "dev/console",
        ] {
            assert!(text.contains(part), "{part}");
        }
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
