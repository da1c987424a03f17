//! Connections that begin and end in the middle of everything.

use guest_kit::{check, check_eq};

use crate::bus::{SINT, VERSION, kind, message};
use crate::channel::{gpadl_header, gpadl_status, next_gpadl, open_message};
use crate::rig::Rig;
use crate::storage::{Request, Storage, list};

/// Sends reads and does not wait for them.
fn busy(target: &mut Storage) {
    let request = Request::read(0, 0, 128);
    let list = list(request.length, 0, target.data() >> 12);
    for _ in 0..30 {
        target.submit(&request, list.get());
    }
}

/// A contact while channels are open, requests under way and GPADLs incomplete.
pub fn in_the_middle() {
    for turn in 0..10 {
        let Some(mut rig) = Rig::new("in_the_middle") else {
            return;
        };
        let Some(mut target) = rig.open_target() else {
            return;
        };
        busy(&mut target);
        let channel = rig.target_channel();
        let header = gpadl_header(channel, next_gpadl(), u16::MAX, 1)
            .u32(4096)
            .u32(0);
        rig.bus.post(header.get());
        let version = [2 << 16 | 4, 4 << 16, 5 << 16 | 3, 6 << 16, 0xffff][turn % 5];
        rig.bus.contact(version, 0, SINT as u8, 0);
        let answer = rig.bus.expect(kind::VERSION_RESPONSE);
        check!(answer.is_some(), "the contact is answered, turn {turn}");
        // The channels are gone with the connection.
        rig.bus.post(message(kind::CLOSE).u32(channel).get());
        rig.bus
            .post(message(kind::GPADL_TEARDOWN).u32(channel).u32(1).get());
        target.channel.signal();
        rig.bus.drain();
    }
    if let Some(mut rig) = Rig::new("in_the_middle, over") {
        rig.recovers("contacts in the middle");
    }
}

/// Contact after contact, with openings between them, and no look at what the host says.
pub fn many() {
    let Some(mut rig) = Rig::new("many") else {
        return;
    };
    let rings = rig.target_rings();
    let channel = rig.target_channel();
    for turn in 0..100 {
        let gpadl = next_gpadl();
        rings.reset();
        rig.bus.contact(VERSION, turn % 2, SINT as u8, 0);
        rig.bus.post(message(kind::REQUEST_OFFERS).get());
        let list = gpadl_header(channel, gpadl, 8 + 8 * 16, 1)
            .u32(16 * 4096)
            .u32(0);
        let first = rings.start >> 12;
        let list = (0..16).fold(list, |list, page| list.u64(first + page));
        rig.bus.post(list.get());
        let open = open_message(channel, gpadl, 0, rings.border);
        rig.bus.post(open.get());
    }
    // Answers to those that named the other processor went there: nobody reads them.
    if let Some(mut rig) = Rig::new("many, over") {
        rig.recovers("a hundred contacts");
    }
}

/// Unload while requests are under way, and messages behind it.
pub fn unload() {
    for turn in 0..5 {
        let Some(mut rig) = Rig::new("unload") else {
            return;
        };
        let Some(mut target) = rig.open_target() else {
            return;
        };
        busy(&mut target);
        let channel = rig.target_channel();
        for _ in 0..=turn {
            rig.bus.post(message(kind::UNLOAD).get());
        }
        let done = rig.bus.expect(kind::UNLOAD_COMPLETE);
        check!(done.is_some(), "unloads, turn {turn}");
        rig.bus.drain();
        let made = create_late(&mut rig, channel);
        check_eq!(made, None, "then there is no channel");
        busy(&mut target);
        rig.bus.drain();
    }
    if let Some(mut rig) = Rig::new("unload, over") {
        rig.recovers("unloads");
    }
}

/// A GPADL without a connection is not even answered.
fn create_late(rig: &mut Rig, channel: u32) -> Option<u32> {
    let rings = rig.target_rings();
    let gpadl = next_gpadl();
    let header = gpadl_header(channel, gpadl, 16, 1);
    let header = header.u32(4096).u32(0).u64(rings.start >> 12);
    rig.bus.post(header.get());
    gpadl_status(&mut rig.bus, gpadl, 200)
}
