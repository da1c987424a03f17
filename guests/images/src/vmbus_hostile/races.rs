//! Races between the guest's processors, and with what the host takes away.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_kit::{check, check_eq, cpu, memory, println, report, smp, time};

use crate::bus::{Offer, kind, message, signal};
use crate::channel::{Rings, create_gpadl, next_gpadl, open_message, teardown};
use crate::rig::Rig;
use crate::storage::{INTERFACE, Request, list, operation};

static STOP: AtomicBool = AtomicBool::new(false);
static RINGS: AtomicU64 = AtomicU64::new(0);

/// Writes into control pages and packets until it is told to stop.
extern "C" fn scribble(_: usize) {
    let start = RINGS.load(Ordering::Relaxed);
    let mut state = 1_u64;
    while !STOP.load(Ordering::Relaxed) {
        // Knuth's MMIX generator: any other would do.
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        let value = (state >> 33) as u32;
        match state >> 60 {
            0 => memory::write32(start, (value % 0x7000) & !7),
            1 => memory::write32(start + 8 * 4096 + 4, (value % 0x7000) & !7),
            2 => memory::write32(start + 8, value & 1),
            3 => memory::write32(start + 12, value),
            _ => memory::write32(
                start + 4096 + u64::from(value % 0x1c00) * 4,
                value & 0x0003_000f,
            ),
        }
    }
}

/// One processor sends requests, another writes into their rings.
pub fn ring() {
    let Some(mut rig) = Rig::new("ring") else {
        return;
    };
    if smp::start() < 2 {
        report::skip("ring", "one processor only");
        return;
    }
    let end = time::deadline(4000);
    let mut turns = 0;
    while cpu::rdtsc() < end {
        let Some(mut target) = rig.open_target() else {
            return;
        };
        let request = Request::read(0, 0, 8);
        let list = list(request.length, 0, target.data() >> 12);
        RINGS.store(target.channel.rings.start, Ordering::Relaxed);
        STOP.store(false, Ordering::Relaxed);
        smp::start_on(1, scribble, 0);
        for _ in 0..400 {
            target.submit(&request, list.get());
            target.channel.signal();
        }
        STOP.store(true, Ordering::Relaxed);
        smp::join(1, 5000);
        rig.close(target, "a scribbled ring");
        turns += 1;
    }
    check!(turns > 0, "{turns} channels were scribbled on");
    rig.recovers("scribbled rings");
}

/// Subchannels come and go with the first channel: they are rescinded while they are opened.
pub fn subchannel() {
    let Some(mut rig) = Rig::new("subchannel") else {
        return;
    };
    let rings = Rings::new(4, 4);
    let mut seen = 0;
    for turn in 0..20 {
        let Some(mut target) = rig.open_target() else {
            return;
        };
        let wanted = target.step(operation::SUBCHANNELS, 1);
        check_eq!(wanted, Some(0), "subchannels, turn {turn}");
        let sub = |offer: &Offer| offer.interface == INTERFACE && offer.subchannel != 0;
        let offered = rig
            .bus
            .expect_if(2000, |message| message.kind() == kind::OFFER);
        let Some(channel) = offered.map(|message| message.word(44)) else {
            check!(false, "a subchannel is offered, turn {turn}");
            return;
        };
        seen += u32::from(rig.bus.offer(sub).is_some());
        let gpadl = next_gpadl();
        rings.reset();
        if turn % 3 != 0 {
            create_gpadl(&mut rig.bus, channel, gpadl, rings.start, rings.pages);
        }
        if turn % 3 == 1 {
            rig.bus
                .post(open_message(channel, gpadl, 0, rings.border).get());
        }
        // The first channel closes: the host takes the other back, at any moment of this.
        let (first, ring) = (target.channel.offer.channel, target.channel.gpadl());
        rig.bus.post(message(kind::CLOSE).u32(first).get());
        rig.bus
            .post(open_message(channel, gpadl, 0, rings.border).get());
        signal(0x2000 | channel);
        rig.bus
            .post(message(kind::GPADL_TEARDOWN).u32(channel).u32(gpadl).get());
        rig.bus.post(message(kind::CLOSE).u32(channel).get());
        let gone = rig.bus.rescinded == Some(channel)
            || rig
                .bus
                .expect(kind::RESCIND)
                .is_some_and(|gone| gone.word(0) == channel);
        check!(gone, "it is rescinded, turn {turn}");
        if turn % 2 == 0 {
            rig.bus
                .post(open_message(channel, gpadl, 0, rings.border).get());
        }
        for _ in 0..2 {
            rig.bus.post(message(kind::RELEASED).u32(channel).get());
        }
        check!(teardown(&mut rig.bus, first, ring), "the first closes");
        rig.bus.rescinded = None;
        if turn % 5 == 0 {
            rig.witness("a rescinded subchannel");
        }
    }
    check!(seen > 0, "subchannels are known as such");
    rig.recovers("rescinded subchannels");
}

/// The host adds and removes a drive while the guest reads from it.
pub fn drive() {
    let Some(mut rig) = Rig::new("drive") else {
        return;
    };
    let milliseconds = guest_kit::options::number("race", 3000);
    println!("RACE: begin");
    let end = time::deadline(milliseconds);
    let (mut answered, mut succeeded) = (0_u32, 0_u32);
    while cpu::rdtsc() < end {
        let Some(mut target) = rig.open_target() else {
            return;
        };
        let request = Request::read(1, 0, 64);
        let list = list(request.length, 0, target.data() >> 12);
        for turn in 0..200 {
            target.submit(&request, list.get());
            if turn % 50 == 0 {
                target.submit(&Request::read(0, 0, 8), list.get());
            }
            let mut data = [0; 64];
            while target.channel.receive(&mut data).is_some() {
                answered += 1;
                succeeded += u32::from(data[14] == 1);
            }
        }
        rig.close(target, "a drive that comes and goes");
    }
    println!("RACE: end, {answered} answers, {succeeded} good");
    check!(answered > 0, "requests were answered");
    rig.recovers("a drive that comes and goes");
}
