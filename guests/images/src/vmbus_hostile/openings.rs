//! Channels that are opened and closed wrongly.

use guest_kit::{boot, check, check_eq};

use crate::bus::{kind, message};
use crate::channel::{
    Channel, create_gpadl, gpadl_header, gpadl_status, next_gpadl, open_message, open_status,
    teardown,
};
use crate::rig::Rig;

/// Rings that are none.
pub fn refused() {
    let Some(mut rig) = Rig::new("refused") else {
        return;
    };
    let (channel, rings) = (rig.target_channel(), rig.target_rings());
    rings.reset();
    let gpadl = next_gpadl();
    let made = create_gpadl(&mut rig.bus, channel, gpadl, rings.start, rings.pages);
    check_eq!(made, Some(0), "a GPADL");
    // Two ranges of a page each, and one that begins within its page.
    let two = next_gpadl();
    let list = gpadl_header(channel, two, 32, 2)
        .u32(4096)
        .u32(0)
        .u64(rings.start >> 12);
    let list = list.u32(4096).u32(0).u64((rings.start >> 12) + 1);
    rig.bus.post(list.get());
    check_eq!(gpadl_status(&mut rig.bus, two, 2000), Some(0), "two ranges");
    let within = next_gpadl();
    let mut list = gpadl_header(channel, within, 48, 1).u32(4 * 4096).u32(8);
    for page in 0..5 {
        list = list.u64((rings.start >> 12) + page);
    }
    rig.bus.post(list.get());
    check_eq!(
        gpadl_status(&mut rig.bus, within, 2000),
        Some(0),
        "not at a border"
    );
    let outside = next_gpadl();
    let beyond = boot::memory_top() + (64 << 20);
    let made = create_gpadl(&mut rig.bus, channel, outside, beyond, 8);
    check!(made.is_some(), "pages beyond RAM get an answer");
    let wrong = [
        ("no such channel", 1999, gpadl, 0, 8),
        ("no such GPADL", channel, 0xdead, 0, 8),
        ("no such processor", channel, gpadl, 99, 8),
        ("no page to the host", channel, gpadl, 0, 0),
        ("no data to the host", channel, gpadl, 0, 1),
        ("no data from the host", channel, gpadl, 0, rings.pages - 1),
        ("no page from the host", channel, gpadl, 0, rings.pages),
        ("a border outside", channel, gpadl, 0, rings.pages + 1),
        ("any border", channel, gpadl, 0, u32::MAX),
        ("two ranges", channel, two, 0, 1),
        ("an offset", channel, within, 0, 2),
        ("beyond RAM", channel, outside, 0, 4),
    ];
    for (what, channel, gpadl, vp, border) in wrong {
        rig.bus.post(open_message(channel, gpadl, vp, border).get());
        let status = open_status(&mut rig.bus, channel);
        check!(
            status.is_some_and(|status| status != 0),
            "{what} does not open"
        );
    }
    for (field, value) in [(0, rings.size_to_host()), (0, 4), (4, u32::MAX), (4, 1)] {
        rings.reset();
        guest_kit::memory::write32(rings.outgoing() + field, value);
        rig.bus
            .post(open_message(channel, gpadl, 0, rings.border).get());
        let status = open_status(&mut rig.bus, channel);
        check!(
            status.is_some_and(|status| status != 0),
            "nor with {value:#x} at {field} of a ring"
        );
    }
    for gpadl in [gpadl, two, within] {
        check!(
            teardown(&mut rig.bus, channel, gpadl),
            "the pages come back"
        );
    }
    rig.recovers("refused openings");
}

/// Opening, closing and taking back twice, and in the wrong order.
pub fn twice() {
    let Some(mut rig) = Rig::new("twice") else {
        return;
    };
    let Some(mut target) = rig.open_target() else {
        return;
    };
    let (channel, gpadl) = (rig.target_channel(), target.channel.gpadl());
    let border = rig.target_rings().border;
    for _ in 0..3 {
        rig.bus.post(open_message(channel, gpadl, 0, border).get());
        let status = open_status(&mut rig.bus, channel);
        check!(
            status.is_some_and(|status| status != 0),
            "an open channel does not open"
        );
    }
    check_eq!(target.verify(8, 8), Ok(()), "it still works");
    // Its ring is in use: the pages stay the host's until it is closed.
    let back = message(kind::GPADL_TEARDOWN).u32(channel).u32(gpadl);
    rig.bus.post(back.get());
    rig.bus.post(back.get());
    let early = rig
        .bus
        .expect_if(200, |answer| answer.kind() == kind::GPADL_TORNDOWN);
    check!(early.is_none(), "a ring in use is not given back");
    rig.witness("a teardown of a ring in use");
    for _ in 0..3 {
        rig.bus.post(message(kind::CLOSE).u32(channel).get());
    }
    let late = rig
        .bus
        .expect_if(20_000, |answer| answer.kind() == kind::GPADL_TORNDOWN);
    check!(
        late.is_some_and(|answer| answer.word(0) == gpadl),
        "it is when closed"
    );
    rig.bus.post(back.get());
    rig.bus
        .post(message(kind::MODIFY).u32(channel).u32(0).get());
    let moved = rig
        .bus
        .expect(kind::MODIFY_RESPONSE)
        .map(|answer| answer.word(1) != 0);
    check_eq!(moved, Some(true), "a closed channel does not move");
    rig.bus.drain();
    rig.recovers("doing it twice");
    // Open and close without waiting for anything.
    let rings = rig.target_rings();
    for _ in 0..50 {
        let gpadl = next_gpadl();
        rings.reset();
        create_gpadl(&mut rig.bus, channel, gpadl, rings.start, rings.pages);
        for _ in 0..3 {
            rig.bus
                .post(open_message(channel, gpadl, 0, rings.border).get());
            rig.bus.post(message(kind::CLOSE).u32(channel).get());
        }
        rig.bus
            .post(message(kind::GPADL_TEARDOWN).u32(channel).u32(gpadl).get());
    }
    rig.bus.drain();
    rig.recovers("hasty openings");
}

/// Channels beyond the connection.
pub fn reserved() {
    let Some(mut rig) = Rig::new("reserved") else {
        return;
    };
    let (channel, rings) = (rig.target_channel(), rig.target_rings());
    let open = |channel: u32, vp: u32, sint: u32, gpadl: u32, border: u32| {
        message(kind::OPEN_RESERVED)
            .u32(channel)
            .u32(vp)
            .u32(sint)
            .u32(gpadl)
            .u32(border)
    };
    let close = |channel: u32, vp: u32, sint: u32| {
        message(kind::CLOSE_RESERVED).u32(channel).u32(vp).u32(sint)
    };
    let gpadl = next_gpadl();
    rings.reset();
    create_gpadl(&mut rig.bus, channel, gpadl, rings.start, rings.pages);
    for (channel, vp, sint, gpadl) in [
        (channel, 99, 2, gpadl),
        (channel, 0, 99, gpadl),
        (channel, 0, 2, 1),
        (1999, 0, 2, gpadl),
    ] {
        rig.bus
            .post(open(channel, vp, sint, gpadl, rings.border).get());
        rig.bus.post(close(channel, vp, sint).get());
    }
    rig.bus.drain();
    rig.witness("reserved channels that are none");
    for _ in 0..2 {
        rig.bus.post(open(channel, 0, 2, gpadl, rings.border).get());
    }
    // No GPADL while it is open.
    let another = create_gpadl(&mut rig.bus, channel, next_gpadl(), rings.start, 1);
    check!(
        another.is_some_and(|status| status != 0),
        "a reserved channel takes no GPADL"
    );
    // It outlives the connection.
    rig.bus.post(message(kind::UNLOAD).get());
    check!(rig.bus.expect(kind::UNLOAD_COMPLETE).is_some(), "unloads");
    rig.bus.post(close(channel, 0, 2).get());
    rig.bus.post(close(channel, 0, 2).get());
    check!(
        rig.bus.expect(kind::CLOSE_RESERVED_RESPONSE).is_some(),
        "and closes without one"
    );
    let Some(mut rig) = Rig::new("reserved, over") else {
        return;
    };
    rig.recovers("a reserved channel");
    // A contact closes what is still open.
    let offer = crate::storage::Storage::offer(&rig.bus, crate::rig::TARGET);
    let opened = offer.and_then(|offer| Channel::open(&mut rig.bus, offer, rings));
    check!(opened.is_some(), "opens, to be left behind");
}
