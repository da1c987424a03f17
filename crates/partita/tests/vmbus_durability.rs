//! Nothing that a guest was told is durable is lost when the VM's process dies.
//!
//! A guest writes numbered records, flushes each, and tells the console. The process is killed at
//! random moments; whatever the console had told by then must be on the disk. `PARTITA_LONG=1`
//! does that fifty times instead of three.

#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod support;

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::disks::{Folder, MIB, done, json as disk_json, open, pattern};
use support::linux::{self, Linux};
use support::packages::CLOUD;
use support::tree::e2fs;

/// Records that are kept; older ones are deleted.
const KEPT: u32 = 150;
/// How long the writer writes at most, in milliseconds.
const WRITING: u64 = 3000;

/// Units of records, in bytes.
const UNIT: usize = 2048;
/// Records begin at one of so many places of the same bytes.
const PLACES: usize = 256;
/// Records have up to so many units.
const UNITS: usize = 61;

/// Writes records from `$1` on. Their sizes go up and down, so that blocks of the disk come into
/// use at different moments; deleted ones give theirs back.
const WRITER: &str = "\
#!/bin/sh
n=$1
while :; do
  dd if=/pattern of=/mnt/$n bs=UNIT skip=$(( n % PLACES )) count=$(( n * 7919 % UNITS + 1 )) \
    conv=fsync 2>/dev/null || { echo \"failed $n\"; exit 1; }
  echo \"durable $n\"
  [ $n -le KEPT ] || rm /mnt/$(( n - KEPT ))
  [ $(( n % 20 )) != 0 ] || fstrim /mnt
  n=$(( n + 1 ))
done
";

/// All that records are made of.
fn bytes() -> Vec<u8> {
    pattern(7, ((PLACES + UNITS) * UNIT) as u64)
}

fn record(bytes: &[u8], number: u32) -> &[u8] {
    let number = number as usize;
    &bytes[number % PLACES * UNIT..][..(number * 7919 % UNITS + 1) * UNIT]
}

/// Numbers from a seed, by the step of Knuth's MMIX generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Numbers that the console told as durable.
fn durable(console: &str) -> Vec<u32> {
    let told = console.split_inclusive('\n');
    told.filter_map(|line| {
        line.strip_prefix("durable ")?
            .strip_suffix('\n')?
            .parse()
            .ok()
    })
    .collect()
}

/// Checks a copy of the disk that a killed process left; the highest number on it.
fn examine(folder: &Folder, disk: &Path, durable: u32) -> u32 {
    let (copy, raw) = (folder.path("copy.vhdx"), folder.path("copy.img"));
    fs::copy(disk, &copy).expect("the disk can be copied");
    open(&copy).close().expect("the log is replayed");
    let checked = disk_json(&args!["check", &copy]);
    assert_eq!(checked["clean"], true, "{checked}");
    done(&args!["convert", &copy, &raw]);
    // What the file system's own journal holds is put in its place; nothing else may be wrong.
    e2fs("sbin/e2fsck", &args!["-p", &raw]);
    e2fs("sbin/e2fsck", &args!["-f", "-n", &raw]);
    let contents = folder.path("contents");
    fs::create_dir(&contents).expect("a folder");
    let request = format!("rdump / {}", contents.display());
    e2fs("sbin/debugfs", &args!["-R", &request, &raw]);
    let bytes = bytes();
    for number in durable.saturating_sub(KEPT - 1).max(1)..=durable {
        let found = fs::read(contents.join(number.to_string()));
        let found = found.unwrap_or_else(|error| panic!("record {number} of {durable}: {error}"));
        assert!(
            found == record(&bytes, number),
            "record {number} of {durable} is another"
        );
    }
    let names = fs::read_dir(&contents).expect("a folder").flatten();
    let numbers = names.filter_map(|name| name.file_name().to_str()?.parse().ok());
    let highest = numbers.max().unwrap_or(0);
    for path in [&copy, &raw] {
        fs::remove_file(path).expect("a copy can be removed");
    }
    fs::remove_dir_all(contents).expect("the contents can be removed");
    highest
}

#[test]
fn nothing_acknowledged_is_lost() {
    let long = std::env::var_os("PARTITA_LONG").is_some_and(|value| value == "1");
    let rounds = if long { 50 } else { 3 };
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("a time");
    let mut random = Random(now.as_nanos() as u64);
    eprintln!("seed {:#x}", random.0);
    let folder = Folder::new();
    let (raw, disk) = (folder.path("empty.img"), folder.path("disk.vhdx"));
    File::create(&raw)
        .and_then(|file| file.set_len(128 * MIB))
        .expect("a raw disk");
    e2fs("sbin/mke2fs", &args!["-q", "-F", "-t", "ext4", &raw]);
    done(&args!["convert", &raw, &disk, "--block-size", "1M"]);
    let mut tree = linux::tree(CLOUD);
    let words = [
        ("KEPT", KEPT as usize),
        ("UNITS", UNITS),
        ("UNIT", UNIT),
        ("PLACES", PLACES),
    ];
    let writer = words
        .iter()
        .fold(WRITER.to_owned(), |script, (word, value)| {
            script.replace(word, &value.to_string())
        });
    tree.file("bin/writer", 0o755, writer.into_bytes());
    tree.file("pattern", 0o644, bytes());
    let initrd = folder.path("initrd");
    tree.write_initrd(&initrd);

    let (mut highest, mut told) = (0, 0);
    for round in 0..rounds {
        let begun = Instant::now();
        let processors = if round % 2 == 0 { 1 } else { 2 };
        let options = linux::options(processors, &[("--disk", &disk)]);
        let mut guest = Linux::start_with(CLOUD, &initrd, &folder.path(""), &options);
        guest.load_storage();
        guest.sh("mount -t ext4 -o discard /dev/sda /mnt");
        guest.type_line(&format!("writer {}", highest + 1));
        if random.below(4) != 0 {
            guest.wait_for("durable ");
        }
        std::thread::sleep(Duration::from_millis(random.below(WRITING)));
        let console = guest.kill();
        assert!(!console.contains("failed "), "{console}");
        let acknowledged = durable(&console);
        let last = acknowledged.last().copied().unwrap_or(told);
        assert!(last >= told, "{last} after {told}");
        let found = examine(&folder, &disk, last);
        eprintln!(
            "round {round}: {} records told, up to {last}; {found} on the disk; {:?}",
            acknowledged.len(),
            begun.elapsed()
        );
        told = last;
        highest = found;
    }
    assert!(told > 0, "the writer was never in time");
}
