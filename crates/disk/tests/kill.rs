//! A process that writes to a disk is killed at random times: every record that it acknowledged is
//! there afterwards, and the disk is clean.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{MIB, pattern, read};
use disk::{CreateOptions, DiskKind, Format, OpenOptions, ops};

const ROUNDS: u64 = 50;
const RECORD: usize = 4096;

/// Where record `i` lies: far apart, so that nearly each one allocates a block.
fn place(i: u64) -> u64 {
    i * 7919 % 1024 * MIB + i / 1024 * RECORD as u64
}

/// The writer: runs only as the child that the test below starts.
#[test]
fn writer() {
    let (Ok(path), Ok(first)) = (std::env::var("WRITER_DISK"), std::env::var("WRITER_FIRST"))
    else {
        return;
    };
    let disk = ops::open(Path::new(&path), &OpenOptions::default()).expect("open");
    for i in first.parse().expect("a number").. {
        let bytes = pattern(i, RECORD);
        disk.write(place(i), &[std::io::IoSlice::new(&bytes)], i % 3 == 0)
            .expect("write");
        if i % 3 != 0 {
            disk.flush().expect("flush");
        }
        writeln!(std::io::stderr(), "done {i}").expect("the test reads on");
    }
}

/// Starts the writer, kills it after a while, and gives the next record that is not acknowledged.
fn run_and_kill(path: &Path, first: u64, wait: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "writer", "--nocapture"])
        .env("WRITER_DISK", path)
        .env("WRITER_FIRST", first.to_string())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("start the writer");
    let lines = BufReader::new(child.stderr.take().expect("its errors"));
    let reader = std::thread::spawn(move || {
        let done = lines.lines().map_while(|line| line.ok());
        done.filter_map(|line| line.strip_prefix("done ")?.parse::<u64>().ok())
            .last()
    });
    std::thread::sleep(wait);
    child.kill().expect("kill");
    child.wait().expect("wait");
    reader
        .join()
        .expect("reader")
        .map_or(first, |last| last + 1)
}

#[test]
fn nothing_acknowledged_is_lost_when_the_writer_is_killed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("disk.vhdx");
    let options = CreateOptions {
        block_size: Some(1 << 20),
        ..CreateOptions::new(Format::Vhdx, DiskKind::Dynamic, 1 << 30)
    };
    ops::create(&path, &options).expect("create");
    let mut random = fastrand::Rng::with_seed(50);
    let mut next = 0;
    for round in 0..ROUNDS {
        next = run_and_kill(&path, next, Duration::from_millis(random.u64(5..60)));
        let report = ops::check(&path, None).expect("check");
        assert!(report.is_clean(), "round {round}: {report:?}");
        let disk = ops::open(&path, &OpenOptions::default()).expect("open");
        for i in 0..next {
            assert!(
                read(&*disk, place(i), RECORD) == pattern(i, RECORD),
                "round {round}: {i}"
            );
        }
    }
    assert!(next > ROUNDS, "the writer did too little: {next}");
}
