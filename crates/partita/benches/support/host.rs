//! The machine that a benchmark runs on.

use std::fs;

/// The processor as the kernel names it, and how many there are.
pub(crate) fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.split(':').next().map(str::trim) == Some(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or("?", |(_, value)| value.trim()).to_owned()
    };
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{} (family {}, model {}), {count} processors",
        field("model name"),
        field("cpu family"),
        field("model")
    )
}
