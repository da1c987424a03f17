//! Initial RAM disks with BusyBox and a script of the test's own.

use std::fs;
use std::path::Path;

use vmwp::cpio::Archive;

use super::packages;

/// Mounts what the scripts need; BusyBox's commands are in the path.
const PREPARE: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
dmesg -n 1
";

/// Writes an initial RAM disk whose first process runs the lines of `script`.
pub(crate) fn write(path: &Path, script: &str) {
    let busybox = fs::read(packages::busybox()).expect("BusyBox can be read");
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        archive.directory(folder, 0o755).unwrap();
    }
    archive.char_device("dev/console", 0o600, 5, 1).unwrap();
    archive.file("bin/busybox", 0o755, &busybox).unwrap();
    let init = format!("{PREPARE}{script}");
    archive.file("init", 0o755, init.as_bytes()).unwrap();
    fs::write(path, archive.finish()).expect("the RAM disk can be written");
}
