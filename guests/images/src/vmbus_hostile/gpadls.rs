//! Lists of pages that make no sense, and too many of them.

use guest_kit::{boot, check, check_eq, memory, report, time};

use crate::bus::{Bus, kind, message};
use crate::channel::{create_gpadl, gpadl_header, gpadl_status, next_gpadl, teardown};
use crate::rig::Rig;

/// Milliseconds that a flood may last.
const LIMIT: u64 = 20_000;

/// Posts a header with one range, and says how the host took it.
fn one_range(
    bus: &mut Bus,
    channel: u32,
    (length, count): (u16, u16),
    (bytes, offset): (u32, u32),
    pages: &[u64],
) -> Option<u32> {
    let gpadl = next_gpadl();
    let mut header = gpadl_header(channel, gpadl, length, count)
        .u32(bytes)
        .u32(offset);
    for page in pages {
        header = header.u64(*page);
    }
    bus.post(header.get());
    gpadl_status(bus, gpadl, 2000)
}

/// What is wrong, the channel, length and number of ranges, bytes and offset of the first, pages.
type Malformed = (&'static str, u32, (u16, u16), (u32, u32), &'static [u64]);

/// Lists that say what cannot be.
pub fn malformed() {
    let Some(mut rig) = Rig::new("malformed") else {
        return;
    };
    let channel = rig.target_channel();
    let bus = &mut rig.bus;
    let refused: [Malformed; 12] = [
        ("no range", channel, (16, 0), (4096, 0), &[1]),
        (
            "more ranges than there are",
            channel,
            (16, 2),
            (4096, 0),
            &[1],
        ),
        ("65535 ranges", channel, (16, u16::MAX), (4096, 0), &[1]),
        ("no bytes", channel, (16, 1), (0, 0), &[1]),
        ("4 GiB in one page", channel, (16, 1), (u32::MAX, 0), &[1]),
        (
            "an offset beyond the page",
            channel,
            (16, 1),
            (4096, 4096),
            &[1, 2],
        ),
        ("any offset", channel, (16, 1), (4096, u32::MAX), &[1, 2]),
        ("no page number", channel, (16, 1), (4096, 0), &[1 << 52]),
        (
            "no page number at all",
            channel,
            (16, 1),
            (4096, 0),
            &[u64::MAX],
        ),
        ("an empty list", channel, (0, 1), (4096, 0), &[1]),
        ("a list cut short", channel, (12, 1), (4096, 0), &[1]),
        ("an unknown channel", 1999, (16, 1), (4096, 0), &[1]),
    ];
    for (what, channel, list, range, pages) in refused {
        let status = one_range(bus, channel, list, range, pages);
        check!(
            status.is_some_and(|status| status != 0),
            "{what} is refused"
        );
    }
    let page = memory::page();
    let gpadl = next_gpadl();
    check_eq!(
        create_gpadl(bus, channel, gpadl, page, 1),
        Some(0),
        "a good one"
    );
    let again = create_gpadl(bus, channel, gpadl, page, 1);
    check!(
        again.is_some_and(|status| status != 0),
        "the same again is refused"
    );
    check!(teardown(bus, channel, gpadl), "it is taken back");
    for (channel, gpadl) in [(channel, gpadl), (channel, !0), (1999, gpadl), (0, 0)] {
        bus.post(message(kind::GPADL_TEARDOWN).u32(channel).u32(gpadl).get());
    }
    bus.drain();
    // Beyond RAM: whoever maps it finds out.
    let beyond = boot::memory_top() / 4096 + 0x1000;
    one_range(bus, channel, (16, 1), (4096, 0), &[beyond]);
    rig.recovers("malformed GPADLs");
}

/// Headers without end, and bodies out of order.
pub fn incomplete() {
    let Some(mut rig) = Rig::new("incomplete") else {
        return;
    };
    let channel = rig.target_channel();
    for gpadl in [0, next_gpadl(), u32::MAX] {
        let body = message(kind::GPADL_BODY).u32(7).u32(gpadl).up_to(240);
        rig.bus.post(body.get());
    }
    let mut refused = false;
    let first = next_gpadl();
    for _ in 0..200 {
        let gpadl = next_gpadl();
        // All but the first bytes are still to come.
        let header = gpadl_header(channel, gpadl, u16::MAX, 1).u32(4096).u32(0);
        rig.bus.post(header.get());
        let answer = rig.bus.take();
        refused |= answer.is_some_and(|answer| answer.kind() == kind::GPADL_CREATED);
    }
    refused |= rig
        .bus
        .expect_if(500, |answer| answer.kind() == kind::GPADL_CREATED)
        .is_some();
    check!(refused, "not any number may be incomplete");
    rig.witness("incomplete GPADLs");
    // Bodies for all of them in turn, the lists' contents nonsense.
    for round in 0..3 {
        for gpadl in first..first + 100 {
            let body = message(kind::GPADL_BODY).u32(round).u32(gpadl).up_to(240);
            rig.bus.post(body.get());
        }
    }
    // What is incomplete can be taken back.
    for gpadl in first..first + 202 {
        let teardown = message(kind::GPADL_TEARDOWN).u32(channel).u32(gpadl);
        rig.bus.post(teardown.get());
        rig.bus.take();
    }
    rig.bus.drain();
    rig.recovers("incomplete GPADLs");
}

/// As many GPADLs as the host takes.
pub fn endless() {
    let Some(mut rig) = Rig::new("endless") else {
        return;
    };
    let (channel, page) = (rig.target_channel(), memory::page());
    let end = time::deadline(LIMIT);
    let (mut made, mut refused) = (0, None);
    while refused.is_none() && guest_kit::cpu::rdtsc() < end {
        match create_gpadl(&mut rig.bus, channel, next_gpadl(), page, 1) {
            Some(0) => made += 1,
            other => refused = Some(other),
        }
        if made % 4096 == 1 {
            rig.witness("many GPADLs");
        }
    }
    match refused {
        Some(status) => check!(status.is_some(), "after {made} the host refuses"),
        None => report::pass(format_args!("{made} in {LIMIT} ms, none refused")),
    }
    rig.witness("endless GPADLs");
    let Some(mut rig) = Rig::new("endless, over") else {
        return;
    };
    rig.recovers("endless GPADLs");
}
