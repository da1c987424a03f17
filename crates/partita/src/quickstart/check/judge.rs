//! What must hold of a guest, and whether it does.

use std::time::Duration;

use serde::Serialize;
use vmwp::VmExit;

use super::Expected;
use super::log::printable;
use super::outside::Outside;
use crate::size;

/// One proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) seen: String,
    pub(super) expected: String,
    pub(super) ok: bool,
}

/// All that was seen of one boot.
#[derive(Debug, Clone)]
pub(super) struct Evidence<'a> {
    /// What the guest told, by name.
    pub(super) inside: &'a [(&'a str, &'a str)],
    /// Time from the start to the guest's first word of it.
    pub(super) boot: Duration,
    pub(super) outside: &'a Outside,
    /// Bytes that the disk's file has blocks for after the end, or what is wrong with it.
    pub(super) disk: &'a Result<u64, String>,
    pub(super) exit: &'a Option<VmExit>,
}

const HYPERV: &str = "Microsoft Hyper-V";
const CLOCKS: [&str; 3] = [
    "hyperv_clocksource_tsc_page",
    "hyperv_clocksource_msr",
    "tsc",
];
/// The disk's controller.
const CONTROLLER: &str = "hv_storvsc";
/// What drives integration components.
const COMPONENT: &str = "hv_utils";
/// Devices on the bus: a controller and six components. One component has no driver in the newer
/// kernels, but a program that uses it directly.
const DEVICES: usize = 7;
const COMPONENTS: usize = 5;

impl Evidence<'_> {
    /// A proof for each thing that must hold.
    pub(super) fn judge(&self, expected: &Expected) -> Vec<Row> {
        vec![
            self.kernel(expected),
            self.hypervisor(),
            self.clock(),
            self.processors(expected),
            self.memory(expected),
            self.boot_time(expected),
            self.vmbus(),
            self.root_disk(),
            self.disk_file(),
            self.heartbeat(),
            self.time(),
            self.kernel_log(),
            self.shutdown(),
            self.end(),
        ]
    }

    /// What the guest told under a name.
    fn value(&self, key: &str) -> &str {
        self.values(key).next().unwrap_or("")
    }

    fn values(&self, key: &str) -> impl Iterator<Item = &str> {
        let found = self.inside.iter().filter(move |(name, _)| *name == key);
        found.map(|(_, value)| *value)
    }

    fn number(&self, key: &str) -> u64 {
        self.value(key).parse().unwrap_or(0)
    }

    fn kernel(&self, expected: &Expected) -> Row {
        let kernel = self.value("kernel");
        let package = &expected.kernel_package;
        let ok = kernel_matches(kernel, package);
        row("kernel", kernel, format!("that of {package}"), ok)
    }

    fn hypervisor(&self) -> Row {
        let hypervisor = self.value("hypervisor");
        row("hypervisor", hypervisor, HYPERV, hypervisor == HYPERV)
    }

    fn clock(&self) -> Row {
        let clock = self.value("clock");
        let ok = CLOCKS.contains(&clock);
        row("clock source", clock, "Hyper-V's or TSC", ok)
    }

    fn processors(&self, expected: &Expected) -> Row {
        let count = self.value("processors");
        let seen = format!("{count} (online {})", self.value("online"));
        let ok = count.parse() == Ok(expected.processors);
        row("processors", seen, expected.processors.to_string(), ok)
    }

    fn memory(&self, expected: &Expected) -> Row {
        let memory = self.number("memory_kib").saturating_mul(1 << 10);
        let least = memory_expected(expected.memory_bytes);
        let range = least..=expected.memory_bytes;
        let wanted = format!(
            "{} to {}",
            size::display(least),
            size::display(expected.memory_bytes)
        );
        row(
            "memory",
            size::display(memory),
            wanted,
            range.contains(&memory),
        )
    }

    fn boot_time(&self, expected: &Expected) -> Row {
        let in_guest: f64 = self.value("up").parse().unwrap_or(0.0);
        let host = self.boot.as_secs_f64();
        let seen = format!("{host:.1} s ({in_guest:.1} s by the guest's clock)");
        let wanted = format!("within {} s", expected.timeout.as_secs());
        let ok = in_guest > 0.0 && self.boot <= expected.timeout;
        row("boot time", seen, wanted, ok)
    }

    fn vmbus(&self) -> Row {
        let version = self.value("vmbus");
        let devices = self.values("device").count();
        let driven = |driver: &str| self.values("device").filter(|d| *d == driver).count();
        let seen = format!(
            "version {version}, {devices} devices: {CONTROLLER} {}, {COMPONENT} {}",
            driven(CONTROLLER),
            driven(COMPONENT)
        );
        let ok = !version.is_empty()
            && devices == DEVICES
            && driven(CONTROLLER) == 1
            && driven(COMPONENT) >= COMPONENTS;
        row("vmbus", seen, "a controller and 6 components", ok)
    }

    fn root_disk(&self) -> Row {
        let (root, driver) = (self.value("root"), self.value("root_driver"));
        let (written, read) = (self.value("proof_written"), self.value("proof_read"));
        let bytes = self.number("proof_bytes");
        let same = written.len() == 64 && written == read && bytes > 0;
        let proof = match same {
            true => format!("{} written and read back", size::display(bytes)),
            false => "what was written is not read back".to_owned(),
        };
        let ok = same && root == "/dev/sda" && driver == CONTROLLER;
        let seen = format!("{root} by {driver}, {proof}");
        row("root disk", seen, format!("/dev/sda by {CONTROLLER}"), ok)
    }

    /// The disk as the host sees it, during the run and after the end.
    fn disk_file(&self) -> Row {
        let counts = &self.outside.disk;
        let proof = self.number("proof_bytes").max(1);
        let done = format!("{} reads, {} writes", counts.reads, counts.writes);
        let moved = counts.bytes_read >= proof && counts.bytes_written >= proof;
        let right = moved && counts.flushes > 0 && counts.errors == 0;
        let (seen, ok) = match self.disk {
            Ok(size) => {
                let seen = format!("{done}; clean, holds {}", size::display(*size));
                (seen, right && *size >= proof)
            }
            Err(error) => (format!("{done}; {error}"), false),
        };
        row("disk file", seen, "clean, holds what was written", ok)
    }

    fn heartbeat(&self) -> Row {
        let state = &self.outside.heartbeat;
        row("heartbeat", state.as_str(), "ok", state == "ok")
    }

    fn time(&self) -> Row {
        let connected = self.outside.time;
        let seen = if connected {
            "connected"
        } else {
            "not connected"
        };
        row("time sync", seen, "connected", connected)
    }

    fn kernel_log(&self) -> Row {
        let problems: Vec<&str> = self.values("problem").collect();
        let tainted = self.value("tainted");
        let quiet = problems.is_empty() && tainted == "0";
        let seen = match problems.first() {
            Some(first) => format!("{} lines, first: {first}", problems.len()),
            None if quiet => "quiet".to_owned(),
            None => format!("kernel tainted ({tainted})"),
        };
        row("kernel log", seen, "no warning, oops or stall", quiet)
    }

    fn shutdown(&self) -> Row {
        let seen = match &self.outside.shutdown {
            None => "accepted",
            Some(error) => error,
        };
        let ok = self.outside.shutdown.is_none();
        row("shutdown", seen, "accepted", ok)
    }

    fn end(&self) -> Row {
        let powered_off = *self.exit == Some(VmExit::PoweredOff);
        let seen = match powered_off {
            true => "powered off".to_owned(),
            false => format!("{:?}", self.exit),
        };
        row("end", seen, "powered off", powered_off)
    }
}

fn row(name: &'static str, seen: impl AsRef<str>, expected: impl Into<String>, ok: bool) -> Row {
    Row {
        name,
        seen: printable(seen.as_ref()),
        expected: expected.into(),
        ok,
    }
}

/// The least that a guest of this size must see: the kernel keeps its own image and page
/// descriptors (1/64 of the memory) out of what it counts.
fn memory_expected(memory: u64) -> u64 {
    /// Image, initial data and reserved areas of a distribution's kernel.
    const KERNEL: u64 = 96 << 20;
    (memory - memory / 32).saturating_sub(KERNEL)
}

/// Whether a release like `6.1.0-56-cloud-amd64` is that of a package "name version".
fn kernel_matches(release: &str, package: &str) -> bool {
    let name = package.split(' ').next().unwrap_or_default();
    let named = name.strip_prefix("linux-image-").unwrap_or_default();
    let named = named.strip_prefix("unsigned-").unwrap_or(named);
    !release.is_empty() && named.trim_end_matches("-unsigned") == release
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::log::section;
    use super::super::outside::DiskCounts;
    use super::*;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const MIB: u64 = 1 << 20;

    /// A guest in which everything is as it should be.
    fn console() -> String {
        let components = "device=hv_utils\r\n".repeat(6);
        format!(
            "[    0.1] Linux version 6.1\r\n\r\n@@partita-check-begin@@\r\nup=2.50\r\n\
             kernel=6.1.0-56-cloud-amd64\r\nhypervisor=Microsoft Hyper-V\r\nclock=tsc\r\n\
             processors=2\r\nonline=0-1\r\nmemory_kib=480000\r\nvmbus=5.3\r\n{components}\
             device=hv_storvsc\r\nroot=/dev/sda\r\nroot_driver=hv_storvsc\r\n\
             proof_bytes=2097152\r\nproof_written={DIGEST}\r\nproof_read={DIGEST}\r\n\
             tainted=0\r\n@@partita-check-end@@\r\n"
        )
    }

    fn expected() -> Expected {
        Expected {
            kernel_package: "linux-image-6.1.0-56-cloud-amd64 6.1.192-2".into(),
            processors: 2,
            memory_bytes: 512 << 20,
            timeout: Duration::from_secs(60),
        }
    }

    fn outside() -> Outside {
        Outside {
            heartbeat: "ok".into(),
            time: true,
            disk: DiskCounts {
                reads: 100,
                writes: 200,
                bytes_read: 3 * MIB,
                bytes_written: 9 * MIB,
                flushes: 2,
                errors: 0,
            },
            shutdown: None,
        }
    }

    pub(in super::super) fn rows(
        console: &str,
        outside: &Outside,
        disk: Result<u64, String>,
        exit: Option<VmExit>,
    ) -> Vec<Row> {
        let inside = section(console).unwrap();
        let evidence = Evidence {
            inside: &inside,
            boot: Duration::from_secs(3),
            outside,
            disk: &disk,
            exit: &exit,
        };
        evidence.judge(&expected())
    }

    /// The rows of a good guest whose VM ended like this.
    pub(in super::super) fn rows_of_end(exit: Option<VmExit>) -> Vec<Row> {
        rows(&console(), &outside(), Ok(9 * MIB), exit)
    }

    fn failed(rows: &[Row]) -> Vec<&'static str> {
        let failed = rows.iter().filter(|row| !row.ok);
        failed.map(|row| row.name).collect()
    }

    #[test]
    fn a_good_guest_passes() {
        let rows = rows_of_end(Some(VmExit::PoweredOff));
        assert_eq!(failed(&rows), Vec::<&str>::new());
        let seen = |name| &rows.iter().find(|row| row.name == name).unwrap().seen;
        assert_eq!(
            seen("vmbus"),
            "version 5.3, 7 devices: hv_storvsc 1, hv_utils 6"
        );
        assert_eq!(
            seen("root disk"),
            "/dev/sda by hv_storvsc, 2.0 MiB written and read back"
        );
        assert_eq!(
            seen("disk file"),
            "100 reads, 200 writes; clean, holds 9.0 MiB"
        );
    }

    #[test]
    fn each_proof_from_inside_can_fail_alone() {
        let other = DIGEST.replace('0', "1");
        let (read, lost) = (format!("read={DIGEST}"), format!("read={other}"));
        for (from, to, name) in [
            ("kernel=6.1.0-56-cloud-amd64", "kernel=5.10", "kernel"),
            ("=Microsoft Hyper-V", "=KVM", "hypervisor"),
            ("clock=tsc", "clock=jiffies", "clock source"),
            ("processors=2", "processors=1", "processors"),
            ("memory_kib=480000", "memory_kib=100000", "memory"),
            ("up=2.50", "up=", "boot time"),
            ("vmbus=5.3", "vmbus=", "vmbus"),
            ("device=hv_storvsc\r\n", "", "vmbus"),
            ("device=hv_utils", "device=", "vmbus"),
            ("root=/dev/sda", "root=rootfs", "root disk"),
            ("root_driver=hv_storvsc", "root_driver=", "root disk"),
            (&read, &lost, "root disk"),
            (&read, "read=", "root disk"),
            ("tainted=0", "tainted=512", "kernel log"),
            (
                "tainted=0",
                "tainted=0\r\nproblem=[ 1.0] WARNING: CPU: 0",
                "kernel log",
            ),
        ] {
            let console = console().replace(from, to);
            let rows = rows(&console, &outside(), Ok(9 * MIB), Some(VmExit::PoweredOff));
            assert_eq!(failed(&rows), [name], "{to}");
        }
        assert_eq!(failed(&rows_of_end(None)), ["end"]);
        assert_eq!(failed(&rows_of_end(Some(VmExit::Reset))), ["end"]);
    }

    #[test]
    fn each_proof_from_outside_can_fail_alone() {
        type Change = fn(&mut Outside);
        let changes: [(Change, &str); 8] = [
            (|o| o.heartbeat = "lost".into(), "heartbeat"),
            (|o| o.time = false, "time sync"),
            (|o| o.shutdown = Some("no answer".into()), "shutdown"),
            (|o| o.disk = DiskCounts::default(), "disk file"),
            (|o| o.disk.bytes_read = MIB, "disk file"),
            (|o| o.disk.bytes_written = MIB, "disk file"),
            (|o| o.disk.flushes = 0, "disk file"),
            (|o| o.disk.errors = 1, "disk file"),
        ];
        let off = || Some(VmExit::PoweredOff);
        for (change, name) in changes {
            let mut outside = outside();
            change(&mut outside);
            let rows = rows(&console(), &outside, Ok(9 * MIB), off());
            assert_eq!(failed(&rows), [name]);
        }
        for disk in [Ok(MIB), Err("the header is corrupt".to_owned())] {
            let rows = rows(&console(), &outside(), disk, off());
            assert_eq!(failed(&rows), ["disk file"]);
        }
    }
}
