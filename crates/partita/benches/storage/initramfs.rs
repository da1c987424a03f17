//! The initial RAM disk of a guest: BusyBox, modules, the program, and a plan of what to run.

use vmwp::cpio::{Archive, CpioError};

/// What the first process prints last.
pub(crate) const END: &str = "@end";

/// What a guest needs.
pub(crate) struct Contents<'a> {
    pub(crate) busybox: &'a [u8],
    pub(crate) program: &'a [u8],
    /// Modules in the order in which they are to be loaded.
    pub(crate) modules: &'a [(&'static str, Vec<u8>)],
    /// The block device to measure.
    pub(crate) device: &'a str,
    /// The workloads to run, each for so many milliseconds.
    pub(crate) names: &'a [&'a str],
    pub(crate) milliseconds: u32,
}

impl Contents<'_> {
    /// The first process. Programs are started without the plan as their input.
    fn init(&self) -> String {
        let Self { device, .. } = self;
        let names: Vec<&str> = self.modules.iter().map(|(name, _)| *name).collect();
        format!(
            "#!/bin/busybox sh\n\
             echo\n\
             busybox=/bin/busybox\n\
             $busybox mount -t proc proc /proc\n\
             $busybox mount -t sysfs sysfs /sys\n\
             $busybox mount -t devtmpfs devtmpfs /dev\n\
             # The kernel's messages would tear the lines that the host reads.\n\
             $busybox dmesg -n 1\n\
             for module in {modules}; do\n\
             \x20 $busybox insmod /modules/$module.ko || echo @module $module\n\
             done\n\
             tries=0\n\
             while [ ! -b {device} ] && [ $tries -lt 300 ]; do\n\
             \x20 $busybox usleep 100000\n\
             \x20 tries=$((tries + 1))\n\
             done\n\
             while read -r name milliseconds; do\n\
             \x20 /bin/storage-programs run $name $milliseconds {device} </dev/null 2>&1 \
             || echo @fail $name\n\
             done </plan\n\
             echo {END}\n\
             $busybox poweroff -f\n",
            modules = names.join(" "),
        )
    }

    /// Builds the archive.
    pub(crate) fn build(&self) -> Result<Vec<u8>, CpioError> {
        let milliseconds = self.milliseconds;
        let lines = self.names.iter();
        let plan: String = lines
            .map(|name| format!("{name} {milliseconds}\n"))
            .collect();
        let mut archive = Archive::new();
        for folder in ["bin", "dev", "proc", "sys", "modules"] {
            archive.directory(folder, 0o755)?;
        }
        // The kernel opens this for init, before devtmpfs is there.
        archive.char_device("dev/console", 0o600, 5, 1)?;
        archive.file("bin/busybox", 0o755, self.busybox)?;
        archive.file("bin/storage-programs", 0o755, self.program)?;
        for (name, bytes) in self.modules {
            archive.file(&format!("modules/{name}.ko"), 0o644, bytes)?;
        }
        archive.file("plan", 0o644, plan.as_bytes())?;
        archive.file("init", 0o755, self.init().as_bytes())?;
        Ok(archive.finish())
    }
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
    fn the_archive_has_modules_and_plan() {
        let contents = Contents {
            busybox: b"ELF of BusyBox",
            program: b"ELF of the program",
            modules: &[
                ("scsi_mod", b"ELF of a module".to_vec()),
                ("sd_mod", Vec::new()),
            ],
            device: "/dev/sda",
            names: &["random-read-1", "sequential-write"],
            milliseconds: 300,
        };
        let text = String::from_utf8_lossy(&contents.build().unwrap()).into_owned();
        for part in [
            "ELF of BusyBox",
            "ELF of the program",
            "modules/scsi_mod.ko",
            "ELF of a module",
            "random-read-1 300\nsequential-write 300\n",
            "for module in scsi_mod sd_mod; do",
            "while [ ! -b /dev/sda ]",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert!(contents.init().starts_with("#!/bin/busybox sh\n"));
    }
}
