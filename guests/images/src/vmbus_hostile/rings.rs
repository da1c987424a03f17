//! Rings with indices and packets that cannot be.

use guest_kit::{check_eq, memory, time};

use crate::channel::{control, packet};
use crate::rig::Rig;
use crate::storage::{Request, Storage, list, operation};
use crate::text::Bytes;

/// Gives the host time to look at what was done, and its answers a chance to come.
fn settle(target: &mut Storage) {
    target.channel.signal();
    time::delay_us(3000);
    let mut data = [0; 64];
    while target.channel.receive(&mut data).is_some() {}
}

/// Opens the target, lets `attack` break it, and checks that all goes on.
fn broken(rig: &mut Rig, what: &str, attack: impl FnOnce(&mut Storage)) {
    let Some(mut target) = rig.open_target() else {
        return;
    };
    attack(&mut target);
    target.channel.signal();
    time::delay_us(3000);
    rig.close(target, what);
    rig.recovers(what);
}

/// Indices outside the ring, not aligned, and moved back.
pub fn indices() {
    let Some(mut rig) = Rig::new("indices") else {
        return;
    };
    let size = rig.target_rings().size_to_host();
    let wrong = [
        ("an index at the end", control::IN, size),
        ("an index behind it", control::IN, size + 8),
        ("an index of 4", control::IN, 4),
        ("any index", control::IN, u32::MAX),
        ("an index above 2^31", control::IN, 1 << 31),
        ("an index before what was read", control::IN, 8),
    ];
    for (what, field, value) in wrong {
        broken(&mut rig, what, |target| {
            memory::write32(target.channel.rings.outgoing() + field, value);
        });
    }
    // The reader's index of the ring from the host: seen when the host needs room, or says that
    // there is something to read.
    for value in [rig.target_rings().size_from_host(), 4, u32::MAX] {
        broken(&mut rig, "a wrong index of the reader", |target| {
            memory::write32(target.channel.rings.incoming() + control::OUT, value);
            let request = Request::ready(0);
            for _ in 0..300 {
                target.submit(&request, &[]);
            }
        });
    }
    // The host's own indices are its own.
    for field in [control::IN, control::OUT] {
        broken(&mut rig, "the host's index overwritten", |target| {
            let rings = target.channel.rings;
            memory::write32(rings.incoming() + control::IN, u32::MAX);
            memory::write32(rings.outgoing() + control::OUT, 0xffff_fff1);
            memory::write32(rings.outgoing() + field, 0xffff_fff1);
            target.channel.signal();
        });
    }
}

/// Descriptors that cannot be.
pub fn packets() {
    let Some(mut rig) = Rig::new("packets") else {
        return;
    };
    // Type, offset and length in units of 8 bytes, flags, bytes that are shown to the host.
    let wrong: [(&str, u16, u16, u16, u16, u32); 13] = [
        ("a length of 0", packet::IN_BAND, 2, 0, 1, 64),
        ("a length of 8", packet::IN_BAND, 2, 1, 1, 64),
        (
            "a length beyond what is there",
            packet::IN_BAND,
            2,
            100,
            1,
            64,
        ),
        ("the longest length", packet::IN_BAND, 2, u16::MAX, 1, 64),
        ("less than a descriptor", packet::IN_BAND, 2, 2, 1, 8),
        ("a descriptor without footer", packet::IN_BAND, 2, 2, 1, 16),
        ("data within the descriptor", packet::IN_BAND, 0, 7, 1, 64),
        ("data behind the packet", packet::IN_BAND, 8, 7, 1, 64),
        (
            "the largest data offset",
            packet::IN_BAND,
            u16::MAX,
            7,
            1,
            64,
        ),
        ("type 0", 0, 2, 7, 1, 64),
        ("an unknown type", 0x8001, 2, 7, 1, 64),
        ("unknown flags", packet::IN_BAND, 2, 7, 0xfffe, 64),
        ("a rest of 8 bytes", packet::IN_BAND, 2, 6, 1, 64),
    ];
    for (what, kind, offset, length, flags, shown) in wrong {
        broken(&mut rig, what, |target| {
            let descriptor = Bytes::<16>::new()
                .u16(kind)
                .u16(offset)
                .u16(length)
                .u16(flags)
                .u64(1);
            let at = target.channel.index();
            target.channel.put(at, descriptor.get());
            target.channel.publish(at + shown);
        });
    }
    // These are packets, but not for storage: the channel goes on.
    let Some(mut target) = rig.open_target() else {
        return;
    };
    let packet = Bytes::<64>::new().u32(operation::EXECUTE).up_to(64);
    for kind in [7, packet::COMPLETION, packet::GPA_DIRECT, packet::IN_BAND] {
        for length in [0, 3, 8, 11, 12, 36, 48, 64] {
            let data = &packet.get()[..length];
            target.channel.send(kind, false, 1, &[], data);
            target.channel.send(kind, true, 2, &[], data);
        }
        settle(&mut target);
    }
    for operation in (0..32).chain([u32::MAX]) {
        let packet = Bytes::<64>::new().u32(operation).up_to(64);
        target
            .channel
            .send(packet::IN_BAND, true, 3, &[], packet.get());
        settle(&mut target);
    }
    check_eq!(
        target.verify(16, 8),
        Ok(()),
        "packets for nobody do no harm"
    );
    rig.close(target, "packets for nobody");
    rig.recovers("packets for nobody");
}

/// Odd values where any value may be: they are the guest's to choose.
pub fn control_words() {
    let Some(mut rig) = Rig::new("control_words") else {
        return;
    };
    let Some(mut target) = rig.open_target() else {
        return;
    };
    for value in [0, 1, 7, 64, 0x7000, u32::MAX] {
        for ring in [
            target.channel.rings.outgoing(),
            target.channel.rings.incoming(),
        ] {
            for field in [
                control::MASK,
                control::PENDING,
                16,
                20,
                control::FEATURES,
                4092,
            ] {
                memory::write32(ring + field, value);
                let request = Request::read(0, 8, 1);
                let list = list(512, 0, target.data() / 4096);
                let ended = target.request(&request, list.get());
                if ended.is_none_or(|ended| ended.srb != 1) {
                    guest_kit::report::fail(
                        format_args!("a read with {value:#x} at {field}"),
                        ended,
                        "success",
                    );
                }
            }
        }
    }
    check_eq!(target.verify(16, 8), Ok(()), "odd control words do no harm");
    rig.close(target, "odd control words");
    rig.recovers("odd control words");
}
