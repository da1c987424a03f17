//! What every attack begins and ends with: a fresh connection, a witness, and checks that it and
//! the target still work.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use guest_kit::{check, check_eq, hyperv, memory, report};

use crate::bus::{Bus, kind};
use crate::channel::{Channel, Rings, packet};
use crate::storage::Storage;

/// The controller that is attacked, and the other.
pub const TARGET: u32 = 0;
const WITNESS: u32 = 1;
/// Sectors that are read for a check.
const COUNT: u16 = 8;
/// Sectors of the disks, at least.
const SECTORS: u32 = 4096;

/// Pages of the image's own, the same in every test: the kit never frees any.
struct Kept(AtomicU64);

impl Kept {
    fn pages(&self, count: u64) -> u64 {
        if self.0.load(Ordering::Relaxed) == 0 {
            self.0.store(memory::pages(count), Ordering::Relaxed);
        }
        self.0.load(Ordering::Relaxed)
    }
}

static WITNESS_RINGS: Kept = Kept(AtomicU64::new(0));
static TARGET_RINGS: Kept = Kept(AtomicU64::new(0));
static DATA: Kept = Kept(AtomicU64::new(0));

/// Rings with 7 pages of data each way.
fn rings(kept: &Kept) -> Rings {
    Rings {
        start: kept.pages(16),
        pages: 16,
        border: 8,
    }
}

/// A connection with a witness.
pub struct Rig {
    /// The bus.
    pub bus: Bus,
    witness: Storage,
}

impl Rig {
    /// Connects anew and opens the witness's channel; `None` is reported.
    pub fn new(test: &str) -> Option<Self> {
        if !hyperv::required(test) {
            return None;
        }
        let mut bus = Bus::new();
        let connected = bus.connect();
        check!(connected, "{test}: connects");
        if !connected {
            return None;
        }
        if Storage::offer(&bus, WITNESS).is_none() || Storage::offer(&bus, TARGET).is_none() {
            report::skip(test, "no two storage controllers");
            return None;
        }
        let witness = Storage::open(&mut bus, WITNESS, rings(&WITNESS_RINGS), DATA.pages(32));
        check!(witness.is_some(), "{test}: the witness opens");
        Some(Self {
            bus,
            witness: witness?,
        })
    }

    /// The number of the target's channel.
    pub fn target_channel(&self) -> u32 {
        Storage::offer(&self.bus, TARGET).map_or(0, |offer| offer.channel)
    }

    /// The target's usual rings.
    pub fn target_rings(&self) -> Rings {
        rings(&TARGET_RINGS)
    }

    /// Opens the target's channel.
    pub fn open_target(&mut self) -> Option<Storage> {
        let rings = self.target_rings();
        let target = Storage::open(&mut self.bus, TARGET, rings, DATA.pages(32) + 0x1_0000);
        if target.is_none() {
            report::fail("the target opens", false, true);
        }
        target
    }

    /// The witness goes on: its channel, open since before the attack, still reads.
    pub fn witness(&mut self, after: &str) {
        static TURN: AtomicU32 = AtomicU32::new(0);
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        let sector = turn * 977 % (SECTORS - u32::from(COUNT));
        check_eq!(
            self.witness.verify(sector, COUNT),
            Ok(()),
            "witness after {after}"
        );
    }

    /// The target works when it is opened anew, and so does the witness.
    pub fn recovers(&mut self, after: &str) {
        self.witness(after);
        let target = self.open_target();
        if let Some(mut target) = target {
            check_eq!(target.verify(64, COUNT), Ok(()), "target after {after}");
            self.close(target, after);
        }
    }

    /// Closes the target; the host lets its pages go.
    pub fn close(&mut self, target: Storage, after: &str) {
        if !target.channel.close(&mut self.bus) {
            report::fail(format_args!("target closes after {after}"), false, true);
        }
    }
}

/// First word of the heartbeat's interface.
const HEARTBEAT: u32 = 0x5716_4f39;

/// A component asks for its versions when it is opened, after all that was done to the bus.
pub fn heartbeat_lives() {
    let Some(mut rig) = Rig::new("heartbeat_lives") else {
        return;
    };
    let offer = rig.bus.offer(|offer| offer.interface == HEARTBEAT);
    let Some(offer) = offer else {
        report::fail("a heartbeat is offered", false, true);
        return;
    };
    let rings = rig.target_rings();
    for turn in 0..3 {
        let Some(mut channel) = Channel::open(&mut rig.bus, offer, rings) else {
            report::fail("the heartbeat opens", false, true);
            return;
        };
        let mut data = [0; 64];
        let asked = channel.wait(&mut data).map(|(kind, _)| kind);
        check_eq!(asked, Some(packet::IN_BAND), "it asks, turn {turn}");
        // A pipe's header, then the component's, whose message type 0 is a negotiation.
        check_eq!((data[0], data[12]), (1, 0), "for versions, turn {turn}");
        check!(channel.close(&mut rig.bus), "and closes, turn {turn}");
    }
}

/// Both disks are as they were, from their first sector to their last, and nothing but the
/// answers that were asked for is left.
pub fn disks_are_whole() {
    let Some(mut rig) = Rig::new("disks_are_whole") else {
        return;
    };
    let Some(mut target) = rig.open_target() else {
        return;
    };
    let (mut bad, mut bad_witness) = (0, 0);
    for sector in (0..SECTORS).step_by(usize::from(COUNT) * 2) {
        bad += u32::from(target.verify(sector, COUNT * 2).is_err());
        bad_witness += u32::from(rig.witness.verify(sector, COUNT * 2).is_err());
    }
    check_eq!(bad, 0, "the target's data");
    check_eq!(bad_witness, 0, "the witness's data");
    rig.close(target, "all");
    let rest = rig.bus.expect_if(100, |message| {
        ![kind::OFFER, kind::RESCIND].contains(&message.kind())
    });
    check!(rest.is_none(), "no message that nobody asked for");
}
