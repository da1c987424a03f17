//! Integration components that are answered with nonsense.

use guest_kit::{check, memory, report, time};

use crate::bus::Offer;
use crate::channel::{Channel, control, packet};
use crate::rig::Rig;
use crate::storage::INTERFACE;
use crate::text::Bytes;

/// A message of a pipe: with a header that says so many bytes.
fn pipe(kind: u32, length: u32, message: &[u8]) -> Bytes<256> {
    Bytes::new().u32(kind).u32(length).put(message)
}

/// An answer to the host's first request, a negotiation, with these numbers of versions.
fn agreement(framework: u16, message: u16, versions: &[u16]) -> Bytes<256> {
    let size = 8 + 2 * versions.len();
    let header = Bytes::<64>::new().u64(0).u16(0).u16(size as u16).u32(0);
    // Transaction 1, an answer.
    let header = header.put(&[1, 5, 0, 0]).u16(framework).u16(message).u32(0);
    let body = versions
        .iter()
        .fold(header, |body, version| body.u16(*version));
    pipe(1, body.get().len() as u32, body.get())
}

/// Opens the component, waits for what it asks, and lets `attack` answer.
fn answered(rig: &mut Rig, offer: Offer, what: &str, attack: impl FnOnce(&mut Channel)) {
    let rings = rig.target_rings();
    let Some(mut channel) = Channel::open(&mut rig.bus, offer, rings) else {
        report::fail(format_args!("a component opens for {what}"), false, true);
        return;
    };
    let mut data = [0; 64];
    if channel.wait(&mut data).is_none() {
        report::fail(format_args!("it asks before {what}"), false, true);
    }
    attack(&mut channel);
    channel.signal();
    time::delay_us(2000);
    while channel.receive(&mut data).is_some() {}
    if !channel.close(&mut rig.bus) {
        report::fail(format_args!("a component closes after {what}"), false, true);
    }
}

/// Sends a packet, waiting a while for room.
fn send(channel: &mut Channel, kind: u16, data: &[u8]) {
    time::wait_for(200, || channel.send(kind, false, u64::MAX, &[], data));
}

fn attack(rig: &mut Rig, offer: Offer) {
    answered(rig, offer, "packets that are no messages", |channel| {
        for kind in [packet::IN_BAND, packet::GPA_DIRECT, packet::COMPLETION, 7] {
            for length in [0, 4, 8, 64] {
                send(channel, kind, &[0xff; 64][..length]);
            }
        }
        for (kind, length) in [
            (0, 8),
            (1, u32::MAX),
            (1, 1000),
            (2, 8),
            (3, 0),
            (1, 0),
            (1, 19),
        ] {
            send(channel, packet::IN_BAND, pipe(kind, length, &[0; 8]).get());
        }
    });
    answered(rig, offer, "a flood that nobody asked for", |channel| {
        for _ in 0..600 {
            send(channel, packet::IN_BAND, agreement(1, 1, &[]).get());
        }
    });
    for (framework, message, versions) in [
        (0, 0, &[][..]),
        (1, 1, &[3, 0]),
        (1, 1, &[9, 9, 9, 9]),
        (u16::MAX, u16::MAX, &[3, 0, 3, 0]),
        (1, 1, &[3, 0, 3, 0]),
    ] {
        answered(rig, offer, "a wrong agreement", |channel| {
            for _ in 0..3 {
                let answer = agreement(framework, message, versions);
                send(channel, packet::IN_BAND, answer.get());
            }
            // Whatever it asks next gets its own words back, and something else.
            let mut request = [0; 64];
            time::delay_us(2000);
            while channel.receive(&mut request).is_some() {
                request[8 + 17] = 5;
                send(channel, packet::IN_BAND, &request);
                request[8 + 10] = 0xff;
                send(channel, packet::IN_BAND, &request);
            }
        });
    }
    for value in [4, u32::MAX] {
        answered(rig, offer, "a broken ring", |channel| {
            memory::write32(channel.rings.outgoing() + control::IN, value);
            memory::write32(channel.rings.incoming() + control::OUT, value);
        });
    }
}

/// All of them, one after the other.
pub fn nonsense() {
    let Some(mut rig) = Rig::new("nonsense") else {
        return;
    };
    let mut seen = 0;
    for offer in rig.bus.offers {
        if offer.channel == 0 || offer.interface == INTERFACE {
            continue;
        }
        attack(&mut rig, offer);
        rig.witness("nonsense to a component");
        seen += 1;
    }
    check!(seen >= 6, "{seen} components were attacked");
    rig.recovers("nonsense to the components");
}
