//! Messages that make no sense.

use guest_kit::{check, check_eq, hyperv::status};

use crate::bus::{Bus, CONNECTION, CONTACT, SINT, VERSION, kind, message, post_once};
use crate::rig::Rig;

/// Lengths of messages: none, parts of the header, the header, parts of bodies, all.
const LENGTHS: [usize; 9] = [0, 1, 7, 8, 9, 12, 24, 100, 240];

/// Sends a type in all lengths, filled with a byte.
fn send(bus: &mut Bus, kind: u32, fill: u8) {
    for length in LENGTHS {
        let mut bytes = [fill; 240];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bus.post(&bytes[..length]);
        bus.take();
    }
}

/// All types before there is a connection.
pub fn before_contact() {
    let mut bus = Bus::new();
    bus.drain();
    bus.post(message(kind::UNLOAD).get());
    check!(
        bus.expect(kind::UNLOAD_COMPLETE).is_some(),
        "unloads without a connection"
    );
    for kind in (0..40).chain([u32::MAX, 0x8000_0001]) {
        send(&mut bus, kind, 0);
        send(&mut bus, kind, 0xff);
    }
    bus.drain();
    check_eq!(
        post_once(2, message(kind::UNLOAD).get()),
        status::INVALID_CONNECTION_ID,
        "a connection for nothing"
    );
    if let Some(mut rig) = Rig::new("before_contact") {
        rig.recovers("messages before the contact");
    }
}

/// Versions that do not exist are refused; contacts with flaws fail.
pub fn versions() {
    let mut bus = Bus::new();
    let unknown = [
        0,
        12,
        13,
        1 << 16 | 1,
        2 << 16 | 3,
        3 << 16 | 1,
        5 << 16 | 4,
        7 << 16,
        !0,
    ];
    for version in unknown {
        bus.drain();
        bus.contact(version, 0, SINT as u8, 0);
        let answer = bus.expect(kind::VERSION_RESPONSE);
        let supported = answer.map(|answer| answer.word(0) & 0xff);
        check_eq!(supported, Some(0), "version {version:#x}");
    }
    for (vp, sint, monitor, what) in [
        (99, SINT as u8, 0, "a processor that is not there"),
        (u32::MAX, SINT as u8, 0, "any processor"),
        (0, 99, 0, "an interrupt source that is not there"),
        (0, SINT as u8, 0x1000, "one monitor page"),
    ] {
        bus.drain();
        bus.contact(VERSION, vp, sint, monitor);
        let answer = bus.expect(kind::VERSION_RESPONSE);
        let state = answer.map(|answer| answer.word(0) >> 8 & 0xff);
        check!(state.is_some_and(|state| state != 0), "{what} fails");
    }
    if let Some(mut rig) = Rig::new("versions") {
        rig.recovers("wrong versions");
    }
}

/// All types in all lengths while connected, by both connections.
pub fn kinds_and_lengths() {
    let Some(mut rig) = Rig::new("kinds_and_lengths") else {
        return;
    };
    for kind in (0..64).chain([0xffff, u32::MAX]) {
        // These would end the connection: they have tests of their own.
        if [kind::UNLOAD, kind::CONTACT].contains(&kind) {
            continue;
        }
        send(&mut rig.bus, kind, 0);
        send(&mut rig.bus, kind, 0xff);
    }
    // Too short to be a contact.
    for length in [8, 9, 39] {
        let bytes = message(kind::CONTACT).up_to(240);
        rig.bus.post_by(CONTACT, &bytes.get()[..length]);
        rig.bus.post_by(CONNECTION, &bytes.get()[..length]);
    }
    rig.bus.drain();
    rig.recovers("wrong messages");
    // Channel ids that are not the guest's.
    for channel in [0, 1000, 2047, 2048, 0xffff, u32::MAX] {
        for kind in [kind::CLOSE, kind::RELEASED, kind::MODIFY] {
            rig.bus.post(message(kind).u32(channel).u32(0).get());
        }
    }
    rig.bus.drain();
    rig.recovers("wrong channels");
}
