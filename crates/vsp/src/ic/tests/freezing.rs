//! Freeze and thaw with a guest.

use super::answer;
use super::guest::{Guest, PATIENCE, Running};
use crate::ic::*;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const V5: IcVersion = IcVersion::new(5, 0);
const LONG: Duration = Duration::from_secs(600);
const FREEZE: u8 = 5;
const THAW: u8 = 6;

fn frozen_guest() -> (Guest, Running, Vss, Receiver<u8>) {
    let (device, vss) = Vss::new();
    let mut guest = Guest::new(device);
    let (seen, operations) = channel();
    let running = guest.serve(V5, move |request| {
        seen.send(request[20]).unwrap();
        let mut bytes = answer(request, IcStatus::OK);
        bytes[28] = 5;
        Some(bytes)
    });
    (guest, running, vss, operations)
}

fn next(operations: &Receiver<u8>) -> u8 {
    operations.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn freeze_and_thaw() {
    let (mut guest, running, vss, operations) = frozen_guest();
    assert!(!vss.features(PATIENCE).unwrap().auto_recovery());
    assert_eq!(next(&operations), 2);
    let frozen = vss.freeze(PATIENCE, LONG).unwrap();
    assert_eq!(next(&operations), FREEZE);
    assert!(frozen.is_intact() && vss.is_frozen());
    assert!(matches!(vss.freeze(PATIENCE, LONG), Err(IcError::Busy)));
    assert_eq!(frozen.thaw(PATIENCE), Ok(true));
    assert_eq!(next(&operations), THAW);
    assert!(!vss.is_frozen());
    guest.close(running.stop());
    assert!(operations.try_recv().is_err());
    assert!(matches!(
        vss.freeze(PATIENCE, LONG),
        Err(IcError::NotConnected)
    ));
}

#[test]
fn a_requester_that_vanishes_leaves_no_frozen_guest() {
    let (mut guest, running, vss, operations) = frozen_guest();
    let requester = {
        let vss = vss.clone();
        std::thread::spawn(move || {
            let _frozen = vss.freeze(PATIENCE, LONG).unwrap();
            // Ends the thread without a word from the panic handler.
            std::panic::resume_unwind(Box::new("the requester dies"));
        })
    };
    assert!(requester.join().is_err());
    assert_eq!((next(&operations), next(&operations)), (FREEZE, THAW));
    guest.close(running.stop());
}

#[test]
fn a_freeze_is_not_held_longer_than_asked_for() {
    let (mut guest, running, vss, operations) = frozen_guest();
    let frozen = vss.freeze(PATIENCE, Duration::from_millis(50)).unwrap();
    assert_eq!((next(&operations), next(&operations)), (FREEZE, THAW));
    assert!(!frozen.is_intact());
    assert_eq!(frozen.thaw(PATIENCE), Ok(false));
    guest.close(running.stop());
    assert!(operations.try_recv().is_err());
}

#[test]
fn a_guest_that_comes_back_is_thawed() {
    let (mut guest, running, vss, _operations) = frozen_guest();
    let frozen = vss.freeze(PATIENCE, LONG).unwrap();
    guest.close(running.stop());
    assert!(!frozen.is_intact());
    let (seen, operations) = channel();
    let running = guest.serve(V5, move |request| {
        seen.send(request[20]).unwrap();
        Some(answer(request, IcStatus::OK))
    });
    assert_eq!(next(&operations), THAW);
    assert_eq!(frozen.thaw(PATIENCE), Ok(false));
    guest.close(running.stop());
}

#[test]
fn a_refused_freeze_is_an_error_and_thawed() {
    let (device, vss) = Vss::new();
    let mut guest = Guest::new(device);
    let (seen, operations) = channel();
    let running = guest.serve(V5, move |request| {
        seen.send(request[20]).unwrap();
        let failed = request[20] == FREEZE;
        Some(answer(
            request,
            if failed { IcStatus::FAIL } else { IcStatus::OK },
        ))
    });
    let refused = vss.freeze(PATIENCE, LONG).map(|_| ());
    assert_eq!(refused, Err(IcError::Guest(IcStatus::FAIL)));
    assert_eq!((next(&operations), next(&operations)), (FREEZE, THAW));
    guest.close(running.stop());
}
