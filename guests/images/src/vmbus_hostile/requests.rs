//! Requests whose lists of pages and lengths make no sense.

use guest_kit::{boot, check, check_eq, cpu::rdmsr, hyperv::msr};

use crate::channel::packet;
use crate::rig::Rig;
use crate::storage::{Ended, Request, Storage, list};
use crate::text::Bytes;

/// Sends a read of a sector with a list; it must not succeed.
fn refused(target: &mut Storage, what: &str, request: &Request, list: &[u8]) {
    let ended = target.request(request, list);
    check!(
        ended.is_some_and(|ended| !good(&ended)),
        "{what} is refused: {ended:x?}"
    );
}

fn good(ended: &Ended) -> bool {
    ended.status == 0 && ended.srb == 1
}

/// Pages that are not RAM.
pub fn pages() {
    let Some(mut rig) = Rig::new("pages") else {
        return;
    };
    let Some(mut target) = rig.open_target() else {
        return;
    };
    check_eq!(target.verify(0, 8), Ok(()), "before");
    let top = boot::memory_top() >> 12;
    for (what, page) in [
        ("a page behind RAM", top + 0x100),
        ("the local APIC", 0xfee00),
        ("the highest page", (1 << 40) - 1),
        ("no page", 1 << 40),
        ("no page at all", u64::MAX),
    ] {
        refused(
            &mut target,
            what,
            &Request::read(0, 8, 1),
            list(512, 0, page).get(),
        );
        // Half in RAM, half outside.
        let first = target.data() >> 12;
        let both = Bytes::<64>::new()
            .u32(0)
            .u32(1)
            .u32(8192)
            .u32(0)
            .u64(first)
            .u64(page);
        refused(&mut target, what, &Request::read(0, 8, 16), both.get());
    }
    check_eq!(
        target.verify(16, 8),
        Ok(()),
        "afterwards, on the same channel"
    );
    rig.close(target, "pages outside RAM");
    rig.recovers("pages outside RAM");
}

/// Lists and lengths that do not go together.
pub fn lengths() {
    let Some(mut rig) = Rig::new("lengths") else {
        return;
    };
    let Some(mut target) = rig.open_target() else {
        return;
    };
    check_eq!(target.verify(0, 8), Ok(()), "before");
    let page = target.data() >> 12;
    let read = Request::read(0, 8, 8);
    let header = |count: u32| Bytes::<64>::new().u32(0).u32(count);
    let lists = [
        ("no range", header(0).u32(4096).u32(0).u64(page)),
        (
            "two ranges of which one is there",
            header(2).u32(4096).u32(0).u64(page),
        ),
        (
            "4 billion ranges",
            header(u32::MAX).u32(4096).u32(0).u64(page),
        ),
        ("a range of 4 GiB", header(1).u32(u32::MAX).u32(0).u64(page)),
        ("a range without bytes", header(1).u32(0).u32(0).u64(page)),
        (
            "an offset beyond its page",
            header(1).u32(4096).u32(4096).u64(page),
        ),
        ("any offset", header(1).u32(4096).u32(u32::MAX).u64(page)),
        ("a list cut short", header(1).u32(8192).u32(0).u64(page)),
        ("no list", Bytes::new().u64(0)),
        ("less than is read", header(1).u32(2048).u32(0).u64(page)),
    ];
    for (what, list) in lists {
        refused(&mut target, what, &read, list.get());
    }
    let whole = list(4096, 0, page);
    for (what, length, data_in) in [
        ("a length beyond the list", 8192, 1),
        ("any length", u32::MAX, 1),
        ("less than the command", 512, 1),
        ("the wrong direction", 4096, 0),
        ("no direction", 4096, 2),
    ] {
        let request = Request {
            length,
            data_in,
            ..read
        };
        refused(&mut target, what, &request, whole.get());
    }
    refused(&mut target, "no list of pages", &read, &[]);
    for lun in [1, 2, 63, 64, 255] {
        refused(
            &mut target,
            "no unit",
            &Request { lun, ..read },
            whole.get(),
        );
    }
    // Every command of one byte, on all kinds of data.
    for opcode in 0..=255 {
        // What writes would change the disk.
        if [
            0x04, 0x0a, 0x2a, 0x2e, 0x41, 0x42, 0x8a, 0x8e, 0x93, 0xaa, 0xae,
        ]
        .contains(&opcode)
        {
            continue;
        }
        for fill in [0, 0xff] {
            for data_in in [0, 1, 2, 255] {
                let mut cdb = [fill; 16];
                cdb[0] = opcode;
                // MODE SELECT and PERSISTENT RESERVE OUT would leave something behind.
                if [0x15, 0x55, 0x5f].contains(&opcode) {
                    cdb[1..].fill(0);
                }
                let request = Request {
                    cdb,
                    data_in,
                    ..read
                };
                if target.request(&request, whole.get()).is_none() {
                    check!(false, "command {opcode:#x} is answered");
                }
            }
        }
    }
    check_eq!(
        target.verify(16, 8),
        Ok(()),
        "afterwards, on the same channel"
    );
    rig.close(target, "wrong lengths");
    rig.recovers("wrong lengths");
}

/// Data over the rings themselves, and over pages that the hypervisor has put over RAM.
pub fn own_rings() {
    let Some(mut rig) = Rig::new("own_rings") else {
        return;
    };
    let overlays = [msr::SIMP, msr::SIEFP, msr::HYPERCALL].map(|register| rdmsr(register) >> 12);
    for page in overlays {
        let Some(mut target) = rig.open_target() else {
            return;
        };
        let ended = target.request(&Request::read(0, 8, 8), list(4096, 0, page).get());
        check!(ended.is_some(), "a read over an overlay is answered");
        rig.close(target, "a read over an overlay");
        rig.recovers("a read over an overlay");
    }
    let rings = rig.target_rings();
    for start in [rings.outgoing(), rings.incoming()] {
        for _ in 0..3 {
            let Some(mut target) = rig.open_target() else {
                return;
            };
            let request = Request::read(0, 8, 32);
            let list = list(request.length, 0, start >> 12);
            for id in 0..40 {
                let sent = request.packet();
                target
                    .channel
                    .send(packet::GPA_DIRECT, true, id, list.get(), sent.get());
            }
            guest_kit::time::delay_us(3000);
            rig.close(target, "a read over its own rings");
            rig.recovers("a read over its own rings");
        }
    }
}
