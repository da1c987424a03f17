//! The initial RAM disk of both guests: BusyBox, the programs, and a plan of what to run.

use vmwp::cpio::{Archive, CpioError};

use crate::console::{END, FIRST_PROCESS};

/// Where BusyBox lies in the guest.
const BUSYBOX: &str = "/bin/busybox";

/// The first process. Programs are started without the plan as their input.
fn init() -> String {
    format!(
        "#!/bin/busybox sh\n\
         echo\n\
         echo {FIRST_PROCESS}\n\
         busybox=/bin/busybox\n\
         $busybox mount -t proc proc /proc\n\
         $busybox mount -t sysfs sysfs /sys\n\
         $busybox mount -t devtmpfs devtmpfs /dev\n\
         $busybox mount -t tmpfs tmpfs /tmp\n\
         # The kernel's messages would tear the lines that the host reads.\n\
         $busybox dmesg -n 1\n\
         for file in /sys/devices/system/cpu/vulnerabilities/*; do\n\
         \x20 read -r state <$file && echo @mitigation ${{file##*/}} $state\n\
         done\n\
         while read -r name milliseconds; do\n\
         \x20 /bin/programs run $name $milliseconds $busybox /tmp </dev/null || echo @fail $name\n\
         done </plan\n\
         echo {END}\n\
         $busybox poweroff -f\n"
    )
}

/// Builds the archive; `names` are the programs to run, each for so many milliseconds.
pub(crate) fn build(
    busybox: &[u8],
    programs: &[u8],
    names: &[&str],
    milliseconds: u32,
) -> Result<Vec<u8>, CpioError> {
    let plan: String = names
        .iter()
        .map(|name| format!("{name} {milliseconds}\n"))
        .collect();
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.directory(folder, 0o755)?;
    }
    // The kernel opens this for init, before devtmpfs is there.
    archive.char_device("dev/console", 0o600, 5, 1)?;
    archive.file(BUSYBOX.trim_start_matches('/'), 0o755, busybox)?;
    archive.file("bin/programs", 0o755, programs)?;
    archive.file("plan", 0o644, plan.as_bytes())?;
    archive.file("init", 0o755, init().as_bytes())?;
    Ok(archive.finish())
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
    fn the_archive_has_the_plan() {
        let archive = build(
            b"ELF of BusyBox",
            b"ELF of programs",
            &["crc32", "fork"],
            300,
        );
        let text = String::from_utf8_lossy(&archive.unwrap()).into_owned();
        for part in [
            "ELF of BusyBox",
            "ELF of programs",
            "crc32 300\nfork 300\n",
            "@first-process",
        ] {
            assert!(text.contains(part), "{part}");
        }
    }

    #[test]
    fn the_script_begins_with_its_interpreter() {
        let script = init();
        assert!(script.starts_with("#!/bin/busybox sh\n"));
        assert!(script.contains("\n  /bin/programs run $name"));
    }
}
