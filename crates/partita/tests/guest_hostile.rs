//! A guest that means harm to the channel bus and its storage.
//!
//! The guest itself checks after each attack that its other channels go on, and at its end that
//! its disks are whole. Meanwhile this looks at the worker from outside: its memory stays bounded,
//! and its control socket answers.

#[path = "support/guests.rs"]
#[allow(dead_code, reason = "each file of tests uses a part of it")]
mod guests;
#[path = "support/turn.rs"]
mod turn;

use std::ffi::OsString;
use std::fs;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use disk::{CreateOptions, DiskKind, Format, OpenOptions, ops};
use turn::Turn;

/// The status of a guest that wrote 0 to the debug-exit port.
const PASSED: i32 = 1;
const LIMIT: Duration = Duration::from_secs(600);
/// How long the control socket may take, on a machine that is busy with a flood.
const ANSWER: Duration = Duration::from_secs(10);
/// What the worker's own memory may grow by, in KiB. The guest has 256 MiB; its attacks would
/// come to half a gigabyte and more.
const GROWTH: u64 = 64 << 10;
const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;
const DISK_SIZE: u64 = 4 * MIB;

/// What a disk of the guest holds: in each sector its number and the controller's.
fn contents(controller: u64) -> Vec<u8> {
    let mut bytes = vec![0; DISK_SIZE as usize];
    for (number, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        let mark = number as u64 | (controller + 1) << 32;
        sector[..8].copy_from_slice(&mark.to_le_bytes());
    }
    bytes
}

fn create(path: &Path, format: Format, bytes: &[u8]) {
    let kind = if format == Format::Raw {
        DiskKind::Fixed
    } else {
        DiskKind::Dynamic
    };
    let options = CreateOptions::new(format, kind, bytes.len() as u64);
    ops::create(path, &options).expect("a new disk");
    let disk = ops::open(path, &OpenOptions::default()).expect("the new disk");
    disk.write(0, &[IoSlice::new(bytes)], true)
        .expect("its contents");
    disk.close().expect("a disk can be closed");
}

fn read(path: &Path) -> Vec<u8> {
    let options = OpenOptions {
        read_only: true,
        ..OpenOptions::default()
    };
    let disk = ops::open(path, &options).expect("a disk that was used");
    let mut bytes = vec![0; disk.virtual_size() as usize];
    disk.read(0, &mut [IoSliceMut::new(&mut bytes)])
        .expect("a disk can be read");
    bytes
}

/// A line of `/proc/PID/status`, in KiB; `None` once the process has ended.
fn memory(process: u32, line: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let value = status.lines().find_map(|text| text.strip_prefix(line))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

/// What was seen of the worker.
struct Watch {
    socket: PathBuf,
    drive: PathBuf,
    /// Memory of its own when the guest began.
    base: Option<u64>,
    largest: u64,
    answers: u32,
    slowest: Duration,
    added: u32,
    removed: u32,
}

impl Watch {
    /// The status of the answer to a request; `None` once the worker is gone.
    fn request(&mut self, request: &str, body: &str) -> Option<u16> {
        let begin = Instant::now();
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        let limit = Some(ANSWER);
        stream
            .set_read_timeout(limit)
            .expect("a socket has a timeout");
        let length = body.len();
        let text = format!(
            "{request} HTTP/1.1\r\nHost: vm\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(text.as_bytes()).ok()?;
        let mut answer = String::new();
        if let Err(error) = stream.read_to_string(&mut answer) {
            let late = begin.elapsed() >= ANSWER;
            assert!(!late, "{request} is not answered: {error}");
            return None;
        }
        self.slowest = self.slowest.max(begin.elapsed());
        let status = answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        self.answers += 1;
        Some(status)
    }

    fn look(&mut self, process: u32, log: &Path) {
        let text = fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        // Before its first test the guest has done nothing yet.
        if !text.contains("TEST:") {
            return;
        }
        let Some(own) = memory(process, "RssAnon:") else {
            return;
        };
        let base = *self.base.get_or_insert(own);
        self.largest = self.largest.max(own.saturating_sub(base));
        assert!(
            self.largest < GROWTH,
            "the worker's memory has grown by {} KiB:\n{text}",
            self.largest
        );
        let status = self.request("GET /v1/vm", "");
        assert!(
            matches!(status, None | Some(200)),
            "the worker says {status:?}"
        );
        if text.contains("RACE: begin") && !text.contains("RACE: end") {
            self.change_drive();
        }
    }

    /// Adds the third drive and takes it away, some times.
    fn change_drive(&mut self) {
        let addition = format!(
            r#"{{"path": {:?}, "read_only": true, "controller": 0, "lun": 1}}"#,
            self.drive
        );
        for _ in 0..4 {
            let status = self.request("POST /v1/vm/disks", &addition);
            self.added += u32::from(status == Some(200));
            let status = self.request("DELETE /v1/vm/disks/0/1", "");
            self.removed += u32::from(status == Some(200));
        }
    }
}

#[test]
fn a_hostile_guest_harms_only_itself() {
    let _turn = Turn::wait();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for disks");
    let path = |name: &str| folder.path().join(name);
    let (target, witness, drive) = (path("target.vhdx"), path("witness.img"), path("drive.img"));
    create(&target, Format::Vhdx, &contents(0));
    create(&witness, Format::Raw, &contents(1));
    create(&drive, Format::Raw, &contents(2));
    let mut watch = Watch {
        socket: path("control"),
        drive: drive.clone(),
        base: None,
        largest: 0,
        answers: 0,
        slowest: Duration::ZERO,
        added: 0,
        removed: 0,
    };
    let place = |path: &Path, place: &str| {
        let mut text = path.as_os_str().to_owned();
        text.push(place);
        text
    };
    let arguments: [OsString; 6] = [
        "--disk".into(),
        place(&target, ",controller=0,lun=0"),
        "--disk".into(),
        place(&witness, ",controller=1,lun=0"),
        "--control".into(),
        watch.socket.clone().into(),
    ];
    let outcome = guests::watch("vmbus-hostile", "", 2, LIMIT, &arguments, |process, log| {
        watch.look(process, log);
    });
    let log = &outcome.log;
    let status = outcome.status.and_then(|status| status.code());
    let failures: Vec<&str> = log
        .lines()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    assert_eq!(status, Some(PASSED), "{failures:#?}\n{log}");
    let summary = outcome.summary().expect("a summary");
    assert!(
        summary.passed > 300 && (summary.failed, summary.skipped) == (0, 0),
        "{summary:?}\n{log}"
    );
    assert!(!log.contains("panicked"), "{log}");
    assert!(watch.base.is_some() && watch.answers > 50);
    assert!(
        watch.added > 3 && watch.removed == watch.added,
        "the drive was not changed"
    );
    println!(
        "{} checks in the guest; own memory grew by {} KiB at most; {} answers, the slowest after \
         {:?}; a drive added and removed {} times",
        summary.passed, watch.largest, watch.answers, watch.slowest, watch.added
    );
    for (controller, path) in [(0, &target), (1, &witness), (2, &drive)] {
        assert_eq!(read(path), contents(controller), "{path:?} has changed");
        let report = ops::check(path, None).expect("a disk can be checked");
        assert!(report.is_clean(), "{path:?}: {report:?}");
    }
}
