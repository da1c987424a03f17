//! Heartbeat, shutdown and time synchronization with a guest.

use super::guest::{Guest, PATIENCE, receive, say, send};
use super::{agree, answer};
use crate::ic::*;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant, SystemTime};

const V3: IcVersion = IcVersion::new(3, 0);
const V32: IcVersion = IcVersion::new(3, 2);
const V4: IcVersion = IcVersion::new(4, 0);

fn eventually(mut what: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < PATIENCE, "it does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn heartbeat_of_a_guest_that_opens_closes_and_opens() {
    let (device, heartbeat) = Heartbeat::new();
    let mut guest = Guest::new(device);
    assert_eq!(heartbeat.status().state, HeartbeatState::NotConnected);
    for round in 1..3 {
        let running = guest.serve(V3, |request| {
            let mut bytes = answer(request, IcStatus::OK);
            bytes[20] += 1;
            bytes[28] = 1;
            Some(bytes)
        });
        eventually(|| heartbeat.status().state == HeartbeatState::Ok);
        let status = heartbeat.status();
        assert_eq!(status.applications, ApplicationState::Healthy);
        assert_eq!(
            (status.sequence, status.answered, status.missed),
            (1, round, 0)
        );
        assert!(status.since_answer.unwrap() < PATIENCE);
        guest.close(running.stop());
        assert_eq!(heartbeat.status().state, HeartbeatState::NotConnected);
    }
}

#[test]
fn shutdown_reaches_the_guest_and_its_answer_the_host() {
    let (device, shutdown) = Shutdown::new();
    let mut guest = Guest::new(device);
    let off = ShutdownKind::PowerOff;
    assert_eq!(
        shutdown.request(off, false, PATIENCE),
        Err(IcError::NotConnected)
    );
    let (seen, requests) = channel();
    let running = guest.serve(V32, move |request| {
        seen.send((request.len(), request[28])).unwrap();
        let forced = request[28] & 1 != 0;
        Some(answer(
            request,
            if forced {
                IcStatus::OK
            } else {
                IcStatus::MACHINE_LOCKED
            },
        ))
    });
    let locked = Err(IcError::Guest(IcStatus::MACHINE_LOCKED));
    assert_eq!(shutdown.request(off, false, PATIENCE), locked);
    assert_eq!(
        shutdown.request(ShutdownKind::Reboot, true, PATIENCE),
        Ok(())
    );
    assert_eq!(requests.recv().unwrap(), (2080, 0));
    assert_eq!(requests.recv().unwrap(), (2080, 3));
    guest.close(running.stop());
    assert_eq!(
        shutdown.request(off, false, PATIENCE),
        Err(IcError::NotConnected)
    );
}

#[test]
fn a_guest_that_never_answers_costs_the_time_and_no_more() {
    let (device, shutdown) = Shutdown::new();
    let mut guest = Guest::new(device);
    let short = Duration::from_millis(50);
    let silent = guest.open();
    let result = shutdown.request(ShutdownKind::PowerOff, false, short);
    assert_eq!(result, Err(IcError::NotReady));
    guest.close(silent);
    let running = guest.serve(V3, |_| None);
    eventually(|| shutdown.request(ShutdownKind::PowerOff, false, short) == Err(IcError::Timeout));
    // A channel that closes ends what is under way.
    let waiting = {
        let shutdown = shutdown.clone();
        std::thread::spawn(move || shutdown.request(ShutdownKind::PowerOff, false, PATIENCE))
    };
    std::thread::sleep(short);
    guest.close(running.stop());
    assert!(matches!(
        waiting.join().unwrap(),
        Err(IcError::Closed | IcError::NotConnected)
    ));
}

#[test]
fn a_flood_is_not_listened_to() {
    let (device, shutdown) = Shutdown::new();
    let mut guest = Guest::new(device);
    let mut flooding = guest.open();
    (0..400).for_each(|_| {
        let packet = vmbus::ring::PacketOut::in_band(1, &[&[0x55; 64]]);
        // Room comes as long as the host listens, and then none.
        let _ = flooding.try_send(&packet).unwrap();
        std::thread::sleep(Duration::from_micros(50));
    });
    let request = || shutdown.request(ShutdownKind::PowerOff, false, Duration::from_millis(50));
    eventually(|| matches!(request(), Err(IcError::Protocol(_))));
    guest.close(flooding);
    let running = guest.serve(V3, say(IcStatus::OK));
    eventually(|| request() == Ok(()));
    guest.close(running.stop());
}

#[test]
fn a_broken_ring_ends_the_channel_only() {
    let (device, shutdown) = Shutdown::new();
    let mut guest = Guest::new(device);
    let mut broken = guest.open();
    // Neither is a packet of a pipe.
    send(&mut broken, &[]);
    let (_, outgoing) = broken.rings();
    let packet = vmbus::ring::PacketOut::completion(5, &[]);
    let _ = outgoing.write(&packet).unwrap();
    broken.signal();
    let request = || shutdown.request(ShutdownKind::PowerOff, false, Duration::from_millis(50));
    assert_eq!(request(), Err(IcError::NotReady));
    guest.corrupt(&broken);
    eventually(|| matches!(request(), Err(IcError::Protocol(_))));
    guest.close(broken);
    let running = guest.serve(V3, say(IcStatus::OK));
    assert_eq!(
        shutdown.request(ShutdownKind::PowerOff, false, PATIENCE),
        Ok(())
    );
    guest.close(running.stop());
}

struct Fixed;

impl GuestClock for Fixed {
    fn now(&self) -> (SystemTime, u64) {
        (SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), 77)
    }
}

const AT_FIXED: u64 = 116_444_736_000_000_000 + 10_000_000_000_000;

fn time_of(request: &[u8]) -> (u64, u64, u8) {
    let number = |at| u64::from_le_bytes(request[at..at + 8].try_into().unwrap());
    (number(20), number(28), request[36])
}

#[test]
fn time_is_set_at_first_and_on_demand() {
    let (device, time) = TimeSync::new(Box::new(Fixed));
    let mut guest = Guest::new(device);
    let (seen, requests) = channel();
    let running = guest.serve(V4, move |request| {
        seen.send(time_of(request)).unwrap();
        Some(answer(request, IcStatus::OK))
    });
    let next = || requests.recv_timeout(PATIENCE).unwrap();
    assert_eq!(next(), (AT_FIXED, 77, 1));
    let (wall, _) = Fixed.now();
    assert_eq!(
        time.set(Some(wall + Duration::from_secs(3600)), PATIENCE),
        Ok(())
    );
    assert_eq!(next(), (AT_FIXED + 36_000_000_000, 77, 1));
    // The next sample keeps the difference.
    assert_eq!(next(), (AT_FIXED + 36_000_000_000, 77, 2));
    assert_eq!(time.set(None, PATIENCE), Ok(()));
    assert_eq!(next(), (AT_FIXED, 77, 1));
    guest.close(running.stop());
}

#[test]
fn old_guests_get_the_old_form() {
    let (device, _time) = TimeSync::new(Box::new(|| 5));
    let mut guest = Guest::new(device);
    let mut channel = guest.open();
    let request = receive(&mut channel).remove(0);
    send(
        &mut channel,
        &agree(&request, IcVersion::new(1, 0), IcVersion::new(1, 0)),
    );
    let message = receive(&mut channel).remove(0);
    assert_eq!((message.len(), message[44]), (52, 1));
    assert_eq!(message[..4], [1, 0, 0, 0]);
    guest.close(channel);
}
