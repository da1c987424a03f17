//! A storage driver as small as it can be.

use guest_kit::memory;

use crate::bus::{Bus, Offer};
use crate::channel::{Channel, Rings, packet};
use crate::text::{Bytes, u32_at};

/// First word of the interface's GUID.
pub const INTERFACE: u32 = 0xba61_63d9;
/// Bytes of a packet.
pub const PACKET: usize = 64;
const SECTOR: u32 = 512;

/// Operations.
pub mod operation {
    #![allow(missing_docs, reason = "the names are the protocol's")]
    pub const EXECUTE: u32 = 3;
    pub const BEGIN: u32 = 7;
    pub const END: u32 = 8;
    pub const VERSION: u32 = 9;
    pub const PROPERTIES: u32 = 10;
    pub const SUBCHANNELS: u32 = 13;
}

/// What each sector of a controller's disk begins with.
pub fn mark(controller: u32, sector: u32) -> u64 {
    u64::from(sector) | u64::from(controller + 1) << 32
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// NTSTATUS of the packet.
    pub status: u32,
    /// Status of the request.
    pub srb: u8,
    /// Bytes moved.
    pub moved: u32,
}

/// A request: which unit, its command, direction (0 out, 1 in, 2 none) and length.
#[derive(Clone, Copy)]
pub struct Request {
    /// The unit.
    pub lun: u8,
    /// The command.
    pub cdb: [u8; 16],
    /// The direction.
    pub data_in: u8,
    /// The length that the request says.
    pub length: u32,
}

impl Request {
    /// READ (10).
    pub fn read(lun: u8, sector: u32, count: u16) -> Self {
        let mut cdb = [0; 16];
        cdb[0] = 0x28;
        cdb[2..6].copy_from_slice(&sector.to_be_bytes());
        cdb[7..9].copy_from_slice(&count.to_be_bytes());
        let length = u32::from(count) * SECTOR;
        Self {
            lun,
            cdb,
            data_in: 1,
            length,
        }
    }

    /// TEST UNIT READY.
    pub fn ready(lun: u8) -> Self {
        Self {
            lun,
            cdb: [0; 16],
            data_in: 2,
            length: 0,
        }
    }

    /// The packet.
    pub fn packet(&self) -> Bytes<PACKET> {
        Bytes::new()
            .u32(operation::EXECUTE)
            .u32(1)
            .u32(0)
            .u16(0x34)
            .u16(0)
            .put(&[0, 0, 0, self.lun, 16, 20, self.data_in, 0])
            .u32(self.length)
            .put(&self.cdb)
            .up_to(PACKET)
    }
}

/// A list of one range of consecutive pages.
pub fn list(count: u32, offset: u32, first_page: u64) -> Bytes<1024> {
    let mut list = Bytes::new().u32(0).u32(1).u32(count).u32(offset);
    let pages = (u64::from(count) + u64::from(offset)).div_ceil(4096);
    for page in 0..pages.min(120) {
        list = list.u64(first_page + page);
    }
    list
}

/// A controller's open channel.
pub struct Storage {
    /// The channel.
    pub channel: Channel,
    controller: u32,
    data: u64,
    next: u64,
}

impl Storage {
    /// The offer of a controller.
    pub fn offer(bus: &Bus, controller: u32) -> Option<Offer> {
        // Controllers' instances count up from the first.
        let storage = |offer: &Offer| offer.interface == INTERFACE && offer.subchannel == 0;
        let last = |offer: &Offer| offer.instance >> 24;
        let first = bus.offers.iter().filter(|offer| storage(offer)).map(last);
        let first = first.min()?;
        bus.offer(|offer| storage(offer) && last(offer) == first + controller)
    }

    /// Opens the channel of a controller and negotiates.
    pub fn open(bus: &mut Bus, controller: u32, rings: Rings, data: u64) -> Option<Self> {
        let offer = Self::offer(bus, controller)?;
        let channel = Channel::open(bus, offer, rings)?;
        let mut storage = Self {
            channel,
            controller,
            data,
            next: 1,
        };
        let steps = [
            (operation::BEGIN, 0),
            (operation::VERSION, 0x0602),
            (operation::PROPERTIES, 0),
            (operation::END, 0),
        ];
        for (operation, argument) in steps {
            if storage.step(operation, argument)? != 0 {
                return None;
            }
        }
        Some(storage)
    }

    /// A step of the negotiation: its status.
    pub fn step(&mut self, operation: u32, argument: u16) -> Option<u32> {
        let packet = Bytes::<PACKET>::new()
            .u32(operation)
            .u32(1)
            .u32(0)
            .u16(argument)
            .up_to(PACKET);
        let id = self.id();
        self.channel
            .send(packet::IN_BAND, true, id, &[], packet.get());
        Some(self.completion(id)?.status)
    }

    /// A new transaction.
    pub fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Waits for the completion of a transaction; drops others.
    pub fn completion(&mut self, id: u64) -> Option<Ended> {
        loop {
            let mut data = [0; PACKET];
            let (kind, transaction) = self.channel.wait(&mut data)?;
            if (kind, transaction) == (packet::COMPLETION, id) {
                return Some(Ended {
                    status: u32_at(&data, 8),
                    srb: data[14],
                    moved: u32_at(&data, 24),
                });
            }
        }
    }

    /// Sends a request with a list of pages, or none where it is empty.
    pub fn submit(&mut self, request: &Request, list: &[u8]) -> Option<u64> {
        let id = self.id();
        let kind = if list.is_empty() {
            packet::IN_BAND
        } else {
            packet::GPA_DIRECT
        };
        let packet = request.packet();
        self.channel
            .send(kind, true, id, list, packet.get())
            .then_some(id)
    }

    /// Sends a request and waits for its end.
    pub fn request(&mut self, request: &Request, list: &[u8]) -> Option<Ended> {
        let id = self.submit(request, list)?;
        self.completion(id)
    }

    /// Where the data of this channel's requests is.
    pub fn data(&self) -> u64 {
        self.data
    }

    /// Reads sectors of the disk at LUN 0 and compares them; `Err` says what was wrong.
    pub fn verify(&mut self, sector: u32, count: u16) -> Result<(), &'static str> {
        let request = Request::read(0, sector, count);
        let list = list(request.length, 0, self.data / 4096);
        let mut ended = None;
        // After a reset the unit says so once or twice, before it reads.
        for _ in 0..4 {
            memory::write64(self.data, u64::MAX);
            ended = Some(self.request(&request, list.get()).ok_or("no answer")?);
            if ended.is_some_and(|ended| ended.srb == 1) {
                break;
            }
        }
        if ended.is_none_or(|ended| ended.srb != 1 || ended.moved != request.length) {
            return Err("it fails");
        }
        for index in 0..u32::from(count) {
            let found = memory::read64(self.data + u64::from(index * SECTOR));
            if found != mark(self.controller, sector + index) {
                return Err("wrong data");
            }
        }
        Ok(())
    }
}
