//! More of everything than the host wants.

use guest_kit::hyperv::status;
use guest_kit::{check, cpu, memory, report, time};

use crate::bus::{VERSION, kind, message, post_once, signal};
use crate::channel::{Channel, Rings, packet};
use crate::rig::{Rig, TARGET};
use crate::storage::{Request, Storage, list};
use crate::text::Bytes;

/// Signals without end, to channels that are open and others.
pub fn signals() {
    let Some(mut rig) = Rig::new("signals") else {
        return;
    };
    let Some(target) = rig.open_target() else {
        return;
    };
    for _ in 0..20_000 {
        target.channel.signal();
    }
    rig.witness("signals to an open channel");
    let connections = rig.bus.offers.map(|offer| offer.connection);
    for _ in 0..200 {
        for connection in connections {
            signal(connection);
        }
        for connection in [0, 1, 2, 4, 0x2fff, 0xff_ffff, u32::MAX] {
            signal(connection);
        }
    }
    rig.witness("signals to closed channels");
    rig.close(target, "signals");
    rig.recovers("signals");
}

/// Messages whose answers nobody reads: the host must stop taking them, and go on with what
/// needs no messages.
pub fn messages() {
    let Some(mut rig) = Rig::new("messages") else {
        return;
    };
    let channel = rig.target_channel();
    let modify = message(kind::MODIFY).u32(channel).u32(0);
    let mut refused = 0;
    let mut posted = 0;
    let end = time::deadline(10_000);
    // A closed channel does not move, and says so each time.
    while refused < 100 && posted < 20_000 && cpu::rdtsc() < end {
        match post_once(1, modify.get()) {
            0 => posted += 1,
            status::INSUFFICIENT_BUFFERS => refused += 1,
            other => report::fail("posting", other, 0),
        }
    }
    check!(
        refused == 100,
        "after {posted} messages the host wants no more"
    );
    rig.witness("messages that are not read");
    let mut answers = 0;
    while rig.bus.expect_if(200, |_| true).is_some() {
        answers += 1;
    }
    check!(
        answers == posted,
        "all {posted} are answered once they are read: {answers}"
    );
    rig.recovers("a flood of messages");
    // Contacts without a look at the answers.
    for _ in 0..300 {
        let contact = message(kind::CONTACT)
            .u32(VERSION)
            .u32(0)
            .u64(2)
            .u64(0)
            .u64(0);
        post_once(4, contact.get());
        post_once(1, message(kind::REQUEST_OFFERS).get());
        post_once(1, message(kind::UNLOAD).get());
    }
    if let Some(mut rig) = Rig::new("messages, over") {
        rig.recovers("a flood of contacts");
    }
}

/// Requests whose answers nobody takes.
pub fn requests() {
    let Some(mut rig) = Rig::new("requests") else {
        return;
    };
    let Some(mut target) = rig.open_target() else {
        return;
    };
    let request = Request::read(0, 0, 128);
    let list = list(request.length, 0, target.data() >> 12);
    let end = time::deadline(2000);
    let mut sent = 0;
    while cpu::rdtsc() < end {
        sent += u32::from(target.submit(&request, list.get()).is_some());
    }
    check!(sent > 100, "{sent} requests are taken");
    rig.witness("requests that are not taken back");
    rig.close(target, "requests that are not taken back");
    rig.recovers("a flood of requests");
}

/// Bytes of the longest packet, without its footer. Four of them fill the rings below, so that what
/// was written into those once stays right.
const LENGTH: u32 = u16::MAX as u32 * 8;

/// Lists of as many pages as a packet can hold, again and again: what the host remembers of them
/// must not grow with their number.
pub fn page_lists() {
    let Some(mut rig) = Rig::new("page_lists") else {
        return;
    };
    let rings = Rings::new((LENGTH + 8) * 4 / 4096, 1);
    // The first are answered at once, but nobody reads that; the others take their time.
    let mut flush = Request::ready(0);
    (flush.cdb[0], flush.data_in) = (0x35, 1);
    for (what, request, reads) in [
        ("long lists that are not answered", Request::ready(0), false),
        ("long lists of slow requests", flush, true),
    ] {
        let data = rig.target_rings().start;
        let Some(target) = Storage::open(&mut rig.bus, TARGET, rings, data) else {
            report::fail("the target opens", false, true);
            return;
        };
        let mut channel = target.channel;
        let sent = crowd(&mut channel, &request, reads);
        check!(sent > 0, "{sent} packets with {what} are taken");
        rig.witness(what);
        check!(channel.close(&mut rig.bus), "the target closes");
        rig.recovers(what);
    }
}

/// Sends as many of the longest packets as the host takes in some seconds; how many. Behind more
/// short requests than there is room for answers, unless `reads`.
fn crowd(channel: &mut Channel, request: &Request, reads: bool) -> u32 {
    let mut data = [0; 64];
    for id in 0..if reads { 20 } else { 100 } {
        let packet = request.packet();
        channel.send(packet::IN_BAND, true, id, &[], packet.get());
    }
    time::wait_for(100, || channel.room() + 8 == channel.rings.size_to_host());
    let mut at = channel.index();
    for _ in 0..4 {
        fill(channel, at, request);
        at += LENGTH + 8;
    }
    let end = time::deadline(4000);
    let mut sent = 0;
    while sent < 3000 && cpu::rdtsc() < end {
        if channel.room() >= LENGTH + 8 {
            let next = channel.index() + LENGTH + 8;
            channel.publish(next);
            sent += 1;
        }
        channel.signal();
        while reads && channel.receive(&mut data).is_some() {}
    }
    sent
}

/// Writes a packet that lists one page over and over.
fn fill(channel: &Channel, at: u32, request: &Request) {
    let page = channel.rings.start >> 12;
    let pages = (LENGTH - 32 - 64) / 8;
    let descriptor = Bytes::<64>::new()
        .u16(packet::GPA_DIRECT)
        .u16(((LENGTH - 64) / 8) as u16)
        .u16((LENGTH / 8) as u16)
        .u16(1)
        .u64(1)
        .u32(0)
        .u32(1)
        .u32(pages * 4096)
        .u32(0);
    channel.put(at, descriptor.get());
    let base = channel.rings.outgoing() + 4096;
    let size = channel.rings.size_to_host();
    for index in 0..pages {
        let place = (at + 32 + 8 * index) % size;
        memory::write64(base + u64::from(place), page);
    }
    channel.put(at + LENGTH - 64, request.packet().get());
    channel.put(at + LENGTH, &[0; 8]);
}
