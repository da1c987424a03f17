//! How much of the host other processes used while something was measured.

use std::fs;

/// Times since the host's start, in the kernel's ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Of all processors together.
    total: u64,
    /// Of these, neither idle nor waiting for a disk. What a hypervisor gave to others counts.
    busy: u64,
    /// Used by this process and by its children that ended.
    own: u64,
}

impl Load {
    /// The times now; `None` if the kernel does not tell.
    pub(crate) fn now() -> Option<Self> {
        let system = fs::read_to_string("/proc/stat").ok()?;
        let process = fs::read_to_string("/proc/self/stat").ok()?;
        Self::parse(&system, &process)
    }

    fn parse(system: &str, process: &str) -> Option<Self> {
        // user, nice, system, idle, iowait, irq, softirq, steal; guest times are in user already.
        let line = system.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times: Option<Vec<u64>> = line
            .split_whitespace()
            .take(8)
            .map(|time| time.parse().ok())
            .collect();
        let times = times?;
        let total = times.iter().sum();
        let idle: u64 = times.get(3..5)?.iter().sum();
        // The name, in parentheses, may have blanks in it. Behind it, field 3 comes first; utime,
        // stime, cutime and cstime are fields 14 to 17.
        let fields: Vec<&str> = process.rsplit_once(')')?.1.split_whitespace().collect();
        let own = fields.get(11..15)?.iter().map(|time| time.parse::<u64>());
        let own = own.sum::<Result<u64, _>>().ok()?;
        Some(Self {
            total,
            busy: total - idle,
            own,
        })
    }

    /// The part of the host that others used since `before`, from 0 to 1.
    pub(crate) fn of_others_since(self, before: Self) -> Option<f64> {
        let total = self.total.checked_sub(before.total)?;
        let busy = self.busy.saturating_sub(before.busy);
        let own = self.own.saturating_sub(before.own);
        (total > 0).then(|| busy.saturating_sub(own) as f64 / total as f64)
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

    const PROCESS: &str = "42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 5\n";

    #[test]
    fn others_are_what_is_left() {
        let before = Load::parse("cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 2\n", PROCESS).unwrap();
        let expected = Load {
            total: 1000,
            busy: 150,
            own: 100,
        };
        assert_eq!(before, expected);
        let after = Load {
            total: 1200,
            busy: 290,
            own: 200,
        };
        assert_eq!(after.of_others_since(before), Some(0.2));
        assert_eq!(before.of_others_since(before), None);
        assert_eq!(before.of_others_since(after), None);
    }

    #[test]
    fn this_host_tells() {
        assert!(Load::now().is_some());
        assert_eq!(Load::parse("", PROCESS), None);
        assert_eq!(Load::parse("cpu 1 2", PROCESS), None);
        assert_eq!(Load::parse("cpu 1 2 3 4 5 6 7 8", "no such process"), None);
    }
}
