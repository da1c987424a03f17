//! An optical drive, command by command.

use super::super::op;
use super::super::test_medium::{TestMedium, check, data_in, no_data};
use super::*;
use std::sync::atomic::Ordering;

const READY: [u8; 6] = [0; 6];
const EJECT: [u8; 6] = [op::START_STOP_UNIT, 0, 0, 0, 2, 0];
const LOCK: [u8; 6] = [op::PREVENT_ALLOW, 0, 0, 0, 1, 0];
const UNLOCK: [u8; 6] = [op::PREVENT_ALLOW, 0, 0, 0, 0, 0];
const EVENT: [u8; 10] = [op::GET_EVENT_STATUS, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];

fn loaded() -> (DvdDrive, Arc<TestMedium>) {
    let medium = TestMedium::read_only(400, 512);
    (
        DvdDrive::new(Some(medium.clone()), Identity([1; 16])),
        medium,
    )
}

fn empty() -> DvdDrive {
    DvdDrive::new(None, Identity([1; 16]))
}

#[test]
fn reads_sectors_of_2048_bytes() {
    let (drive, medium) = loaded();
    let expected = medium.data.lock()[99 * 2048..].to_vec();
    let read = [op::READ_10, 0, 0, 0, 0, 99, 0, 0, 1, 0];
    assert_eq!(data_in(&drive, &read, 2048).unwrap(), expected);
    let read = [op::READ_12, 0, 0, 0, 0, 99, 0, 0, 0, 1, 0, 0];
    assert_eq!(data_in(&drive, &read, 4096).unwrap(), expected);
    let beyond = [op::READ_10, 0, 0, 0, 0, 99, 0, 0, 2, 0];
    assert_eq!(
        data_in(&drive, &beyond, 4096),
        check(Sense::LBA_OUT_OF_RANGE)
    );
    let capacity = data_in(
        &drive,
        &[op::READ_CAPACITY_10, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        8,
    );
    assert_eq!(capacity.unwrap(), [0, 0, 0, 99, 0, 0, 8, 0]);
    let inquiry = data_in(&drive, &[op::INQUIRY, 0, 0, 0, 36, 0], 36).unwrap();
    assert_eq!((inquiry[0], inquiry[1]), (5, 0x80));
}

#[test]
fn an_empty_drive_is_not_ready() {
    let drive = empty();
    let none = check(Sense::NO_MEDIUM);
    assert_eq!(no_data(&drive, &READY), none);
    let read = [op::READ_10, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(data_in(&drive, &read, 2048), check(Sense::NO_MEDIUM));
    let toc = [op::READ_TOC, 0, 0, 0, 0, 0, 0, 0, 20, 0];
    assert_eq!(data_in(&drive, &toc, 20), check(Sense::NO_MEDIUM));
    let sense = data_in(&drive, &[op::REQUEST_SENSE, 0, 0, 0, 18, 0], 18).unwrap();
    assert_eq!((sense[2], sense[12]), (2, 0x3a));
    assert_eq!(
        data_in(&drive, &EVENT, 8).unwrap(),
        [0, 6, 4, 0x10, 0, 0, 0, 0]
    );
    let configuration = [op::GET_CONFIGURATION, 0, 0, 0, 0, 0, 0, 0, 8, 0];
    assert_eq!(data_in(&drive, &configuration, 8).unwrap()[6..], [0, 0]);
}

#[test]
fn insertion_is_told_twice() {
    let drive = empty();
    assert!(drive.insert(TestMedium::new(4, 2048)).unwrap().is_none());
    // By an event that does not fail anything, and by a failing command.
    assert_eq!(data_in(&drive, &EVENT, 8).unwrap()[4..6], [2, 2]);
    assert_eq!(data_in(&drive, &EVENT, 8).unwrap()[4..6], [0, 2]);
    assert_eq!(no_data(&drive, &READY), check(Sense::MEDIUM_CHANGED));
    assert_eq!(no_data(&drive, &READY), Ok(0));
}

#[test]
fn the_guest_ejects() {
    let (drive, medium) = loaded();
    data_in(&drive, &EVENT, 8).unwrap();
    assert_eq!(no_data(&drive, &LOCK), Ok(0));
    assert_eq!(no_data(&drive, &EJECT), check(Sense::REMOVAL_PREVENTED));
    assert_eq!(no_data(&drive, &UNLOCK), Ok(0));
    assert_eq!(no_data(&drive, &EJECT), Ok(0));
    assert_eq!(medium.ejections.load(Ordering::Relaxed), 1);
    assert_eq!(no_data(&drive, &READY), check(Sense::NO_MEDIUM_TRAY_OPEN));
    assert_eq!(data_in(&drive, &EVENT, 8).unwrap()[4..6], [3, 1]);
    let mechanism = [op::MECHANISM_STATUS, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
    assert_eq!(data_in(&drive, &mechanism, 8).unwrap()[1], 0x10);
    assert_eq!(
        no_data(&drive, &[op::START_STOP_UNIT, 0, 0, 0, 3, 0]),
        Ok(0)
    );
    assert_eq!(no_data(&drive, &READY), check(Sense::NO_MEDIUM));
}

#[test]
fn the_host_asks_before_it_ejects() {
    let (drive, _) = loaded();
    no_data(&drive, &LOCK).unwrap();
    assert!(matches!(drive.remove(false), Err(Locked)));
    assert!(matches!(
        drive.insert(TestMedium::new(4, 2048)),
        Err(Locked)
    ));
    assert_eq!(data_in(&drive, &EVENT, 8).unwrap()[4..6], [1, 2]);
    assert!(drive.remove(true).unwrap().is_some());
    assert_eq!(no_data(&drive, &READY), check(Sense::NO_MEDIUM));
    assert!(drive.remove(false).unwrap().is_none());
}

#[test]
fn tables_of_contents() {
    let (drive, _) = loaded();
    let toc = [op::READ_TOC, 0, 0, 0, 0, 0, 0, 0, 64, 0];
    let data = data_in(&drive, &toc, 64).unwrap();
    assert_eq!(data[..12], [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]);
    assert_eq!(data[12..], [0, 0x14, 0xaa, 0, 0, 0, 0, 100]);
    let times = [op::READ_TOC, 2, 0, 0, 0, 0, 0xaa, 0, 64, 0];
    // 100 + 150 frames: three seconds and 25 frames.
    assert_eq!(data_in(&drive, &times, 64).unwrap()[8..], [0, 0, 3, 25]);
    let sessions = [op::READ_TOC, 0, 1, 0, 0, 0, 0, 0, 64, 0];
    assert_eq!(data_in(&drive, &sessions, 64).unwrap().len(), 12);
    let full = [op::READ_TOC, 0, 2, 0, 0, 0, 0, 0, 64, 0];
    assert_eq!(
        data_in(&drive, &full, 64),
        check(Sense::INVALID_FIELD_IN_CDB)
    );
}

#[test]
fn features_and_capabilities() {
    let (drive, _) = loaded();
    let all = [op::GET_CONFIGURATION, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let data = data_in(&drive, &all, 256).unwrap();
    assert_eq!(data.len(), 4 + usize::from(data[3]));
    assert_eq!(data[6..8], [0, 0x10]);
    let (mut at, mut codes) = (8, Vec::new());
    while at < data.len() {
        codes.push(data[at + 1]);
        at += 4 + usize::from(data[at + 3]);
    }
    assert_eq!(codes, [0, 1, 2, 3, 0x10, 0x1f]);
    let one = [op::GET_CONFIGURATION, 2, 0, 0x1f, 0, 0, 0, 1, 0, 0];
    assert_eq!(data_in(&drive, &one, 256).unwrap().len(), 16);
    let page = [op::MODE_SENSE_10, 0, 0x2a, 0, 0, 0, 0, 0, 64, 0];
    let data = data_in(&drive, &page, 64).unwrap();
    assert_eq!((data.len(), data[7], data[8], data[9]), (30, 0, 0x2a, 0x14));
    let disc = [op::READ_DISC_INFORMATION, 0, 0, 0, 0, 0, 0, 0, 64, 0];
    assert_eq!(data_in(&drive, &disc, 64).unwrap().len(), 34);
    let asynchronous = [op::GET_EVENT_STATUS, 0, 0, 0, 0x10, 0, 0, 0, 8, 0];
    assert_eq!(
        data_in(&drive, &asynchronous, 8),
        check(Sense::INVALID_FIELD_IN_CDB)
    );
}

#[test]
fn the_only_track() {
    let (drive, _) = loaded();
    let ask = |by, number| [op::READ_TRACK_INFORMATION, by, 0, 0, 0, number, 0, 0, 64, 0];
    for (by, number) in [(0, 0), (0, 99), (1, 1), (2, 1)] {
        let data = data_in(&drive, &ask(by, number), 64).unwrap();
        assert_eq!((data.len(), data[1], data[2], data[3]), (36, 34, 1, 1));
        // It begins at sector 0 and has 100.
        assert_eq!(data[8..12], [0; 4]);
        assert_eq!(data[24..32], [0, 0, 0, 100, 0, 0, 0, 99]);
    }
    for (by, number) in [(1, 0), (1, 2), (2, 2), (3, 1)] {
        let refused = check(Sense::INVALID_FIELD_IN_CDB);
        assert_eq!(data_in(&drive, &ask(by, number), 64), refused);
    }
    let beyond = data_in(&drive, &ask(0, 100), 64);
    assert_eq!(beyond, check(Sense::LBA_OUT_OF_RANGE));
    assert!(data_in(&empty(), &ask(1, 1), 64).is_err());
}

#[test]
fn no_command_panics() {
    let (drive, _) = loaded();
    for opcode in 0..=255_u8 {
        for fill in [0, 1, 0x10, 0x7f, 0xff] {
            let mut bytes = [fill; 16];
            bytes[0] = opcode;
            // Any answer will do.
            let _ = data_in(&drive, &bytes, 100);
        }
    }
}
