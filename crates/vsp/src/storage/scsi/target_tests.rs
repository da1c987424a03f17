//! Which unit answers, and what does where none is.

use super::super::test_medium::{TestMedium, with_request};
use super::super::{Direction, Fault};
use super::*;
use crate::storage::medium::HeapBuffer;

fn unit() -> Unit {
    let medium = TestMedium::new(8, 512);
    Unit::Disk(Arc::new(Disk::new(medium, Identity([0; 16]), 1 << 18)))
}

fn ask(target: &Target, here: bool, lun: u8, cdb: &[u8]) -> (Answer, Vec<u8>) {
    let buffer = HeapBuffer::new(vec![0; 600]);
    let answer = with_request(cdb, Direction::In, &buffer, |request| {
        target.execute(here, lun, request)
    });
    (answer, buffer.into_inner())
}

const INQUIRY: [u8; 6] = [op::INQUIRY, 0, 0, 0, 36, 0];
const PAGE_83: [u8; 6] = [op::INQUIRY, 1, 0x83, 0, 255, 0];
const READY: [u8; 6] = [0; 6];
const LUNS: [u8; 12] = [op::REPORT_LUNS, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0];

#[test]
fn absent_units_leave_no_phantoms() {
    let target = Target::default();
    target.attach(3, unit()).unwrap();
    for (here, lun) in [(true, 0), (true, 63), (true, 200), (false, 3)] {
        for command in [INQUIRY, PAGE_83] {
            let (answer, data) = ask(&target, here, lun, &command);
            assert_eq!((answer, data[0]), (Answer::Done(Ok(36)), 0x7f));
        }
        assert_eq!(ask(&target, here, lun, &READY).0, Answer::NoUnit);
    }
    assert_eq!(ask(&target, true, 3, &READY).0, Answer::Done(Ok(0)));
    assert_eq!(ask(&target, true, 3, &INQUIRY).1[0], 0);
}

#[test]
fn luns_are_listed_wherever_they_are_asked_for() {
    let target = Target::default();
    assert_eq!(ask(&target, true, 0, &LUNS).0, Answer::Done(Ok(8)));
    target.attach(0, unit()).unwrap();
    target.attach(9, unit()).unwrap();
    let (answer, data) = ask(&target, true, 5, &LUNS);
    assert_eq!(answer, Answer::Done(Ok(24)));
    assert_eq!(data[..8], [0, 0, 0, 16, 0, 0, 0, 0]);
    assert_eq!((data[9], data[17]), (0, 9));
    assert_eq!(ask(&target, false, 0, &LUNS).0, Answer::Done(Ok(8)));
    let mut wrong = LUNS;
    wrong[2] = 0x10;
    let refused = Answer::Done(Err(Fault::Check(Sense::INVALID_FIELD_IN_CDB)));
    assert_eq!(ask(&target, true, 0, &wrong).0, refused);
}

#[test]
fn units_come_and_go() {
    let target = Target::default();
    assert_eq!(target.attach(64, unit()), Err(LunError::OutOfRange(64)));
    target.attach(63, unit()).unwrap();
    assert_eq!(target.attach(63, unit()), Err(LunError::InUse(63)));
    assert_eq!(target.luns(), [63]);
    assert!(target.detach(63).is_ok());
    assert!(matches!(target.detach(63), Err(LunError::Empty(63))));
    assert_eq!(ask(&target, true, 63, &READY).0, Answer::NoUnit);
    target.attach(1, unit()).unwrap();
    target.reset_all();
    let told = Answer::Done(Err(Fault::Check(Sense::RESET)));
    assert_eq!(ask(&target, true, 1, &READY).0, told);
}
