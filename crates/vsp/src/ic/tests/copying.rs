//! File copy with a guest.

use super::answer;
use super::guest::{Guest, PATIENCE, Running};
use crate::ic::*;
use std::collections::HashMap;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const V11: IcVersion = IcVersion::new(1, 1);
const GO_ON: fn(u64) -> ControlFlow<()> = |_| ControlFlow::Continue(());

/// What a guest's daemon has on its disk.
#[derive(Default)]
struct Disk {
    files: HashMap<String, Vec<u8>>,
    open: Option<(String, Vec<u8>)>,
    cancelled: usize,
    room: usize,
}

fn text(bytes: &[u8]) -> String {
    let units = bytes
        .chunks(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    String::from_utf16(&units.take_while(|&unit| unit != 0).collect::<Vec<_>>()).unwrap()
}

fn number(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

impl Disk {
    fn work(&mut self, body: &[u8]) -> IcStatus {
        match number(body, 0) {
            0 => {
                let name = text(&body[556..1076]) + &text(&body[36..556]);
                if self.files.contains_key(&name) && number(body, 1076) & 1 == 0 {
                    return IcStatus::ALREADY_EXISTS;
                }
                self.open = Some((name, Vec::new()));
            }
            1 => {
                let Some((_, data)) = &mut self.open else {
                    return IcStatus::FAIL;
                };
                assert_eq!(number(body, 40), data.len());
                data.extend(&body[52..52 + number(body, 48)]);
                if data.len() > self.room {
                    return IcStatus::DISK_FULL;
                }
            }
            2 => self.files.extend(self.open.take()),
            _ => {
                self.cancelled += 1;
                self.open = None;
            }
        }
        IcStatus::OK
    }
}

fn start() -> (Guest, Running, FileCopy, Arc<Mutex<Disk>>) {
    let (device, copy) = FileCopy::new();
    let mut guest = Guest::new(device);
    let disk = Arc::new(Mutex::new(Disk {
        room: 1 << 20,
        ..Disk::default()
    }));
    let shared = disk.clone();
    let running = guest.serve(V11, move |request| {
        let status = shared.lock().unwrap().work(&request[20..]);
        Some(answer(request, status))
    });
    (guest, running, copy, disk)
}

fn cancelled(disk: &Mutex<Disk>) -> bool {
    let begin = Instant::now();
    while disk.lock().unwrap().cancelled == 0 && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(2));
    }
    let disk = disk.lock().unwrap();
    disk.cancelled == 1 && disk.open.is_none()
}

#[test]
fn files_arrive_whole() {
    let (mut guest, running, copy, disk) = start();
    for size in [0, 1, 6143, 6144, 6145, 100_000] {
        let data: Vec<u8> = (0..size)
            .map(|at: usize| (at * 7 + at / 256) as u8)
            .collect();
        let path = format!("/tmp/größe/{size}");
        let mut seen = Vec::new();
        let mut progress = |done| {
            seen.push(done);
            ControlFlow::Continue(())
        };
        let (mut source, flags) = (Cursor::new(&data), CopyFlags::default());
        copy.copy(
            &mut source,
            size as u64,
            &path,
            flags,
            PATIENCE,
            &mut progress,
        )
        .unwrap();
        assert_eq!(disk.lock().unwrap().files[&path], data);
        assert_eq!(seen.len(), size.div_ceil(6144));
        assert!(size == 0 || seen.last() == Some(&(size as u64)));
    }
    guest.close(running.stop());
    assert_eq!(disk.lock().unwrap().cancelled, 0);
}

#[test]
fn a_file_is_replaced_only_if_it_may() {
    let (mut guest, running, copy, disk) = start();
    let replace = CopyFlags {
        overwrite: true,
        ..CopyFlags::default()
    };
    let put = |byte, flags| {
        copy.copy(
            &mut &[byte][..],
            1,
            "/f",
            flags,
            PATIENCE,
            &mut GO_ON.clone(),
        )
    };
    put(1, CopyFlags::default()).unwrap();
    let error = put(2, CopyFlags::default()).unwrap_err();
    assert!(matches!(
        error,
        CopyError::Guest(IcError::Guest(IcStatus::ALREADY_EXISTS))
    ));
    assert_eq!(disk.lock().unwrap().files["/f"], [1]);
    put(3, replace).unwrap();
    assert_eq!(disk.lock().unwrap().files["/f"], [3]);
    guest.close(running.stop());
}

#[test]
fn a_copy_that_fails_is_cancelled() {
    type Spoil = fn(&FileCopy, &Mutex<Disk>) -> CopyError;
    let data = [7; 20_000];
    let cases: [(Spoil, &str); 3] = [
        (
            |copy, _| {
                let (flags, mut short) = (CopyFlags::default(), &[7; 9000][..]);
                copy.copy(
                    &mut short,
                    20_000,
                    "/f",
                    flags,
                    PATIENCE,
                    &mut GO_ON.clone(),
                )
                .unwrap_err()
            },
            "cannot read the file to be copied",
        ),
        (
            |copy, _| {
                let flags = CopyFlags::default();
                let stop = &mut |_| ControlFlow::Break(());
                copy.copy(&mut &[7; 9000][..], 9000, "/f", flags, PATIENCE, stop)
                    .unwrap_err()
            },
            "the copy was stopped",
        ),
        (
            |copy, disk| {
                disk.lock().unwrap().room = 7000;
                let (flags, mut data) = (CopyFlags::default(), &[7; 9000][..]);
                copy.copy(&mut data, 9000, "/f", flags, PATIENCE, &mut GO_ON.clone())
                    .unwrap_err()
            },
            "the disk is full",
        ),
    ];
    for (spoil, words) in cases {
        let (mut guest, running, copy, disk) = start();
        let error = spoil(&copy, &disk).to_string();
        assert!(error.contains(words), "{error}");
        assert!(cancelled(&disk));
        let mut disk = disk.lock().unwrap();
        (disk.room, disk.cancelled) = (1 << 20, 0);
        drop(disk);
        let flags = CopyFlags::default();
        copy.copy(
            &mut &data[..],
            20_000,
            "/f",
            flags,
            PATIENCE,
            &mut GO_ON.clone(),
        )
        .unwrap();
        guest.close(running.stop());
    }
}
