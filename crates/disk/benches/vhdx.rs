//! The VHDX layer alone, against `qemu-img bench` on the same file.
//!
//! `cargo bench -p disk` prints a table of medians. Both sides go through the page cache, where the
//! whole file lies, so that what is measured is the layer and not the drive. They take turns, and
//! make the same requests in the same order: sequential, or with a step that spreads them over the
//! disk (all that `qemu-img bench` offers).
//!
//! Options: `--runs N` (5), `--size MIB` (1024), `--aio threads|io_uring` for QEMU (threads),
//! `--rows TEXT` for only the rows whose name contains the text, and `--each` for each run's figures.

#[path = "../../partita/tests/support/tools.rs"]
#[allow(dead_code, reason = "each user of the tools needs a part of them")]
mod tools;

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use disk::{CreateOptions, DiskKind, Format, OpenOptions, VirtualDisk, ops};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a row of the table measures.
#[derive(Clone, Copy)]
struct Row {
    name: &'static str,
    write: bool,
    /// Bytes of a request.
    size: u64,
    /// Bytes from one request to the next.
    step: u64,
    /// Requests in flight.
    depth: u64,
    count: u64,
    /// Whether the disk is empty at first, so that each block has to be allocated.
    empty: bool,
}

/// About 0.618 of 1 GiB, in an odd number of 4 KiB pages: no page comes twice, and neighbours in
/// time lie far apart.
const SPREAD: u64 = 162_031 * 4 * KIB;

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, write, step) in [
        ("4 KiB sequential reads", false, 4 * KIB),
        ("4 KiB random reads", false, SPREAD),
        ("4 KiB sequential writes", true, 4 * KIB),
        ("4 KiB random writes", true, SPREAD),
    ] {
        for depth in [1, 32] {
            rows.push(Row {
                name,
                write,
                size: 4 * KIB,
                step,
                depth,
                count: 60_000,
                empty: false,
            });
        }
    }
    for (name, write, empty) in [
        ("1 MiB sequential reads", false, false),
        ("1 MiB sequential writes", true, false),
        ("1 MiB sequential writes, allocating", true, true),
    ] {
        for depth in [1, 32] {
            rows.push(Row {
                name,
                write,
                size: MIB,
                step: MIB,
                depth,
                count: if empty { 1000 } else { 2000 },
                empty,
            });
        }
    }
    rows
}

struct Options {
    runs: usize,
    size: u64,
    aio: String,
    rows: String,
    each: bool,
}

impl Options {
    fn read() -> Result<Self, String> {
        let mut options = Self {
            runs: 5,
            size: 1024 * MIB,
            aio: "threads".to_owned(),
            rows: String::new(),
            each: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
            match word.as_str() {
                // Cargo's own.
                "--bench" => {}
                "--runs" => options.runs = number(value()?)?.clamp(1, 1000) as usize,
                "--size" => options.size = number(value()?)?.clamp(64, 1 << 20) * MIB,
                "--aio" => options.aio = value()?,
                "--rows" => options.rows = value()?,
                "--each" => options.each = true,
                _ => return Err(format!("{word} is not an option; see the top of this file")),
            }
        }
        Ok(options)
    }
}

fn main() {
    if !std::env::args().any(|word| word == "--bench") {
        // `cargo test --benches` only wants to know that it builds.
        return;
    }
    match Options::read() {
        Ok(options) => run(&options),
        Err(error) => {
            eprintln!("vhdx: {error}");
            std::process::exit(2);
        }
    }
}

fn run(options: &Options) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let full = folder.path().join("full.vhdx");
    create(&full, options.size);
    fill(&full);
    println!(
        "Medians of {} runs on a dynamic VHDX of {} MiB in the page cache; QEMU with aio={}.\n",
        options.runs,
        options.size / MIB,
        options.aio
    );
    println!("| Requests | depth | Partita, per second | QEMU, per second | ratio |");
    println!("|---|---|---|---|---|");
    for row in rows().iter().filter(|row| row.name.contains(&options.rows)) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..options.runs {
            ours.push(once(&full, options, row, &mut |file| partita(file, row)));
            theirs.push(once(&full, options, row, &mut |file| {
                qemu(file, row, &options.aio)
            }));
        }
        if options.each {
            eprintln!("Partita {ours:.0?}, QEMU {theirs:.0?}");
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!(
            "| {} | {} | {ours:.0} | {theirs:.0} | {:.2} |",
            row.name,
            row.depth,
            ours / theirs
        );
    }
}

/// Requests per second of one run, on the full disk or on a new one.
fn once(
    full: &Path,
    options: &Options,
    row: &Row,
    measure: &mut dyn FnMut(&Path) -> Duration,
) -> f64 {
    let new = full.with_file_name("new.vhdx");
    let file = if row.empty {
        let _ = std::fs::remove_file(&new);
        create(&new, options.size);
        &new
    } else {
        full
    };
    let took = measure(file);
    // What a run has left to be written must not slow the next one.
    let synced = std::fs::File::open(file).and_then(|f| f.sync_all());
    synced.expect("the disk can be flushed");
    row.count as f64 / took.as_secs_f64()
}

fn create(path: &Path, size: u64) {
    let options = CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, size);
    ops::create(path, &options).expect("a disk");
}

fn fill(path: &Path) {
    let disk = open(path, false);
    let bytes = vec![0x5a; MIB as usize];
    for at in (0..disk.virtual_size()).step_by(MIB as usize) {
        disk.write(at, &[IoSlice::new(&bytes)], false)
            .expect("write");
    }
    disk.close().expect("close");
}

fn open(path: &Path, read_only: bool) -> std::sync::Arc<dyn VirtualDisk> {
    let options = OpenOptions {
        read_only,
        ..OpenOptions::default()
    };
    ops::open(path, &options).expect("the disk opens")
}

/// The time that this crate takes. Its calls block, so requests that are in flight together are
/// served by a few threads, as QEMU serves them too; more than there are processors gain nothing.
fn partita(file: &Path, row: &Row) -> Duration {
    let disk = open(file, !row.write);
    let next = AtomicU64::new(0);
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 1..row.depth.min(processors) {
            scope.spawn(|| work(&*disk, row, &next));
        }
        work(&*disk, row, &next);
    });
    started.elapsed()
}

fn work(disk: &dyn VirtualDisk, row: &Row, next: &AtomicU64) {
    let mut buffer = vec![0xa5; row.size as usize];
    let size = disk.virtual_size();
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= row.count {
            return;
        }
        let offset = index * row.step % size;
        let done = if row.write {
            disk.write(offset, &[IoSlice::new(&buffer)], false)
        } else {
            disk.read(offset, &mut [IoSliceMut::new(&mut buffer)])
        };
        done.expect("the request succeeds");
    }
}

/// The time that QEMU says it took.
fn qemu(file: &Path, row: &Row, aio: &str) -> Duration {
    let mut command = tools::qemu_img();
    command.args(["bench", "-f", "vhdx", "-i", aio]);
    if row.write {
        command.arg("-w");
    }
    for (flag, value) in [
        ("-c", row.count),
        ("-d", row.depth),
        ("-s", row.size),
        ("-S", row.step),
    ] {
        command.arg(flag).arg(value.to_string());
    }
    let output = command.arg(file).output().expect("qemu-img starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let seconds = text
        .rsplit_once("completed in ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .and_then(|number| number.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or_else(|| panic!("qemu-img: {text}{errors}")))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
