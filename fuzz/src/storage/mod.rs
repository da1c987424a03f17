//! `storage` and `storage_file`: packets of a guest to a storage controller,
//! over a bus of its own without a virtual machine.
//!
//! LUN 0 is a disk, LUN 1 an optical drive, LUN 2 comes and goes. An input is
//! a list of steps, each a byte (modulo [`step::COUNT`]) followed by its own.
//! Every request that wants a completion gets one, unless the guest broke its
//! ring, and whatever the guest did, it can open the channel anew and read.
//!
//! With `storage` everything is on the heap and copied. With `storage_file`,
//! whose inputs begin with the format, LUN 0 is in a file, and the host's
//! kernel moves data between it and the guest's pages: by io_uring, where it
//! permits that. No byte changes beyond the pages that requests name.

mod place;

use crate::Input;
use crate::medium::HeapMedium;
use crate::memory;
use place::{Heap, InFile, Place};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmbus::bus::{Bus, BusConfig};
use vmbus::client::{Client, ClientChannel, ClientTransport, Loopback};
use vmbus::protocol::{GpaDirectHeader, Guid, OfferChannel, PAGE_SIZE, PacketType, Version};
use vmbus::ring::{Batch, GuestPages, PacketOut};
use vsp::storage::protocol::{Packet, ProtocolVersion, ScsiRequest, VersionQuery, operation};
use vsp::storage::{Attachment, ControllerConfig, ControllerHandle, StorageController};
use zerocopy::{FromZeros, IntoBytes};

/// The steps.
pub mod step {
    /// A packet: type (modulo 4), whether a completion is wanted, length (up
    /// to 80) and bytes, length (times 4) and bytes of the list of ranges.
    pub const PACKET: u8 = 0;
    /// A SCSI request: LUN, direction, page and offset (2) and length (2) of
    /// its data, flaws (bit 0 a list cut short, bit 1 pages that do not exist,
    /// bit 2 two ranges), 16 bytes of the command descriptor block.
    pub const REQUEST: u8 = 1;
    /// The steps of the negotiation, as far as a number (modulo 5) says, with
    /// a version (modulo 8).
    pub const NEGOTIATE: u8 = 2;
    /// The guest's data: page, length, bytes.
    pub const STORE: u8 = 3;
    /// The host adds, removes, resizes, ejects or inserts.
    pub const HOST: u8 = 4;
    /// The guest writes into its rings: which page, offset (2), value (4).
    pub const SCRIBBLE: u8 = 5;
    /// The channel is closed and opened again.
    pub const REOPEN: u8 = 6;
    /// How many there are.
    pub const COUNT: u8 = 7;
}

/// Pages of the guest: rings, then data.
const PAGES: u64 = 96;
const RINGS: std::ops::Range<u64> = 16..32;
const DATA: u64 = 64;
/// Times that an input may open the channel; each costs threads.
const MAX_OPENINGS: u32 = 4;
/// Packets and openings at most: the rest of an input is not looked at.
const MAX_STEPS: usize = 512;
/// Pages of data that requests name: the rest is never written, unless a
/// packet names other ones ([`step::PACKET`]).
const NAMED: std::ops::Range<u64> = DATA..DATA + 25;
/// What the host may take. It is all much quicker, unless it hangs; but the
/// target may run at the lowest priority.
const PATIENCE: Duration = Duration::from_secs(60);
const ALLOWED: usize = 24 << 20;

struct Guest {
    client: Client,
    loopback: Arc<Loopback>,
    offer: OfferChannel,
    channel: ClientChannel,
    handle: ControllerHandle,
    place: Box<dyn Place>,
    /// A packet may have named any page.
    anywhere: bool,
    /// Transactions that are to be completed.
    open: BTreeSet<u64>,
    last_id: u64,
    /// The guest wrote to its rings: nothing is expected of them.
    broken: bool,
    openings: u32,
    bus: Bus,
}

impl Guest {
    fn new(make: impl FnOnce(&Arc<Loopback>) -> Box<dyn Place>) -> Self {
        let loopback = Loopback::new(2, PAGES as usize);
        let bus = Bus::start(loopback.clone(), BusConfig::default()).expect("a bus");
        loopback.attach(&bus);
        let mut config = ControllerConfig::new(Guid::from_u128(0x51), 0);
        config.subchannels = 1;
        config.threads_per_channel = 2;
        let place = make(&loopback);
        let (vsp, handle) = StorageController::new(config, place.memory());
        bus.offer(Box::new(vsp)).expect("room on the bus");
        let dvd = HeapMedium::new(64 << 10, 2048, true, false);
        let attached = [
            handle.attach(0, Attachment::Disk(place.medium())),
            handle.attach(1, Attachment::Dvd(Some(dvd))),
        ];
        assert_eq!(attached, [Ok(()), Ok(())]);
        let mut client = Client::new(loopback.clone());
        client.connect(&[Version::COPPER]).expect("a connection");
        let offer = client.request_offers().expect("offers")[0];
        let channel = open(&mut client, &offer);
        Self {
            client,
            loopback,
            offer,
            channel,
            handle,
            place,
            anywhere: false,
            open: BTreeSet::new(),
            last_id: 0,
            broken: false,
            openings: 1,
            bus,
        }
    }

    /// Takes what the host has sent. Each completion is one that was asked
    /// for.
    fn drain(&mut self) -> Option<Packet> {
        let mut batch = Batch::new();
        let mut last = None;
        while self.channel.try_read(&mut batch).is_ok() && !batch.is_empty() {
            for packet in batch.packets() {
                let parsed = Packet::parse(packet.data);
                if packet.packet_type == PacketType::COMPLETION && !self.broken {
                    assert!(self.open.remove(&packet.transaction_id), "completed twice");
                    last = parsed;
                }
            }
        }
        last
    }

    fn send(&mut self, packet: &PacketOut<'_>) {
        let end = Instant::now() + PATIENCE;
        if packet.completion_requested {
            self.open.insert(packet.transaction_id);
        }
        while let Ok(false) = self.channel.try_send(packet) {
            assert!(
                self.broken || Instant::now() < end,
                "the host makes no room"
            );
            self.drain();
            if self.broken {
                break;
            }
            std::thread::yield_now();
        }
    }

    /// Waits until all that is to be completed is; the last completion.
    fn settle(&mut self) -> Option<Packet> {
        let end = Instant::now() + PATIENCE;
        let mut last = self.drain();
        while !self.open.is_empty() && !self.broken {
            assert!(Instant::now() < end, "{:?} not completed", self.open);
            let flag = self.channel.channel_id() as u16;
            self.loopback.wait_event(flag, Duration::from_millis(1));
            last = self.drain().or(last);
        }
        last
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn in_band(&mut self, packet: &Packet) {
        let id = self.next_id();
        let data = [packet.as_bytes()];
        self.send(&PacketOut::in_band(id, &data).with_completion_requested());
    }

    fn raw(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let wanted = input.u8() & 1 != 0;
        let length = usize::from(input.u8() % 81);
        let data = input.bytes(length);
        let length = usize::from(input.u8()) * 4;
        let header = input.bytes(length);
        let types = [
            PacketType::IN_BAND,
            PacketType::GPA_DIRECT,
            PacketType::TRANSFER_PAGES,
            PacketType::COMPLETION,
        ];
        let packet_type = types[usize::from(kind % 4)];
        self.anywhere |= packet_type == PacketType::GPA_DIRECT;
        let packet = PacketOut {
            packet_type,
            // A completion of the guest is not answered.
            completion_requested: wanted && packet_type != PacketType::COMPLETION,
            transaction_id: self.next_id(),
            header,
            data: &[data],
        };
        self.send(&packet);
    }

    fn request(&mut self, input: &mut Input<'_>) {
        let (lun, direction) = (input.u8(), input.u8());
        let (page, offset) = (u64::from(input.u8()), input.u16());
        let (length, flaws) = (u32::from(input.u16()), input.u8());
        let cdb = input.bytes(16);
        let mut request = ScsiRequest {
            length: 0x34,
            lun,
            path_id: direction >> 6,
            target_id: direction >> 4 & 3,
            cdb_length: 16,
            data_in: direction & 3,
            data_transfer_length: length,
            ..ScsiRequest::new_zeroed()
        };
        request.payload[..cdb.len()].copy_from_slice(cdb);
        let first = if flaws & 2 != 0 {
            page << 32
        } else {
            DATA + page % 8
        };
        let list = ranges(first, u32::from(offset % 4096), length, flaws);
        let packet = Packet::new(operation::EXECUTE_SRB).with_payload(&request);
        let id = self.next_id();
        let data = [packet.as_bytes()];
        let packet = PacketOut::in_band(id, &data).with_completion_requested();
        if length == 0 {
            self.send(&packet);
        } else {
            self.send(&PacketOut {
                packet_type: PacketType::GPA_DIRECT,
                header: &list,
                ..packet
            });
        }
    }

    fn negotiate(&mut self, steps: u8, version: u8) {
        let versions = ProtocolVersion::ALL;
        let version = versions.get(usize::from(version % 8));
        let query = VersionQuery {
            version: version.map_or(0x0700, |version| version.0),
            revision: 0,
        };
        let packets = [
            Packet::new(operation::BEGIN_INITIALIZATION),
            Packet::new(operation::QUERY_PROTOCOL_VERSION).with_payload(&query),
            Packet::new(operation::QUERY_PROPERTIES),
            Packet::new(operation::END_INITIALIZATION),
        ];
        for packet in &packets[..usize::from(steps % 5)] {
            self.in_band(packet);
        }
    }

    fn host(&mut self, choice: u8) {
        // Each may be refused: what is there or not is the input's matter.
        match choice % 6 {
            0 => drop(
                self.handle
                    .attach(2, Attachment::Disk(self.place.another())),
            ),
            1 => drop(self.handle.detach(2)),
            2 => {
                self.place.change(choice);
                let _ = self.handle.resized(0);
            }
            3 => drop(self.handle.eject(1, choice > 127)),
            4 => drop(self.handle.insert(1, self.place.another())),
            _ => drop(self.handle.attach(2, Attachment::Dvd(None))),
        }
    }

    fn scribble(&mut self, input: &mut Input<'_>) {
        let page = RINGS.start + u64::from(input.u8() % 16);
        let offset = u64::from(input.u16() % 1024) * 4;
        let address = page * PAGE_SIZE + offset;
        let stored = self
            .loopback
            .memory()
            .store_u32(address as usize, input.u32());
        assert!(stored.is_ok());
        self.broken = true;
        self.channel.signal();
    }

    fn reopen(&mut self) {
        if !self.broken {
            self.settle();
        }
        let (channel_id, gpadl_id) = (self.channel.channel_id(), self.channel.gpadl_id());
        self.client
            .post(&vmbus::protocol::CloseChannel { channel_id });
        let closed = self.client.teardown_gpadl(channel_id, gpadl_id);
        assert_eq!(closed, Ok(()));
        self.channel = open(&mut self.client, &self.offer);
        self.open.clear();
        self.broken = false;
        self.openings += 1;
    }

    /// A guest that starts over finds the disk as it is.
    fn check(&mut self) {
        self.reopen();
        self.negotiate(4, 4);
        self.place.restore();
        let resized = self.handle.resized(0);
        assert_eq!(resized, Ok(()));
        for _ in 0..8 {
            // Unit attentions are in the way of the first.
            let read = [
                &[0, 1, DATA as u8][..],
                &[0, 0, 0, 2, 0],
                &[0x28, 0, 0, 0, 0, 3, 0, 0, 1],
            ];
            self.request(&mut Input::new(&read.concat()));
            let answer = self.settle().expect("an answer");
            let result: ScsiRequest = answer.payload_as().expect("a result");
            if result.srb_status == 1 {
                assert_eq!(result.data_transfer_length, 512);
                let (mut data, mut expected) = ([0; 512], [0; 512]);
                self.place.load(DATA * PAGE_SIZE, &mut data);
                self.place.contents(3 * 512, &mut expected);
                assert_eq!(data, expected);
                return;
            }
            // A persistent reservation is another's, and stays.
            if result.scsi_status == 0x18 {
                return;
            }
        }
        panic!("the disk cannot be read");
    }

    /// Ends the controller, and looks at what is left.
    fn end(self) {
        let Self {
            bus,
            place,
            handle,
            anywhere,
            ..
        } = self;
        drop((handle, bus));
        let others = (0..PAGES).filter(|page| !NAMED.contains(page) && !RINGS.contains(page));
        for page in others.filter(|_| !anywhere) {
            let mut bytes = [0; PAGE_SIZE as usize];
            place.load(page * PAGE_SIZE, &mut bytes);
            assert!(bytes == [0; PAGE_SIZE as usize], "page {page} is written");
        }
        place.end();
    }
}

fn open(client: &mut Client, offer: &OfferChannel) -> ClientChannel {
    let pfns: Vec<u64> = RINGS.collect();
    client.open(offer, &pfns).expect("the channel opens")
}

/// A list of ranges for `length` bytes at `offset` of page `first`.
fn ranges(first: u64, offset: u32, length: u32, flaws: u8) -> Vec<u8> {
    let split = if flaws & 4 != 0 { length / 2 } else { 0 };
    let parts = [(offset, length - split), (0, split)];
    let parts = parts.into_iter().filter(|&(_, length)| length > 0);
    let mut list = Vec::new();
    let mut count = 0;
    for (offset, length) in parts {
        list.extend(length.to_le_bytes());
        list.extend(offset.to_le_bytes());
        let pages = u64::from(offset + length).div_ceil(PAGE_SIZE);
        list.extend((first..first + pages).flat_map(|pfn| pfn.to_le_bytes()));
        count += 1;
    }
    if flaws & 1 != 0 {
        list.truncate(list.len().saturating_sub(8));
    }
    let header = GpaDirectHeader {
        reserved: 0,
        range_count: count,
    };
    [header.as_bytes(), &list].concat()
}

fn run_limited(mut input: Input<'_>, mut guest: Guest) {
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let kind = input.u8() % step::COUNT;
        match kind {
            step::PACKET if !guest.broken => guest.raw(&mut input),
            step::REQUEST if !guest.broken => guest.request(&mut input),
            step::NEGOTIATE if !guest.broken => {
                let (steps, version) = (input.u8(), input.u8());
                guest.negotiate(steps, version);
            }
            step::STORE => {
                let at = (DATA + u64::from(input.u8() % 8)) * PAGE_SIZE;
                let length = usize::from(input.u8());
                guest.place.store(at, input.bytes(length));
            }
            step::HOST => guest.host(input.u8()),
            step::SCRIBBLE => guest.scribble(&mut input),
            step::REOPEN if guest.openings < MAX_OPENINGS => guest.reopen(),
            _ => {}
        }
    }
    guest.check();
    guest.end();
}

/// Target `storage`.
pub fn run(data: &[u8]) {
    memory::limited(ALLOWED, || {
        let guest = Guest::new(|loopback| Box::new(Heap::new(loopback)));
        run_limited(Input::new(data), guest);
    });
}

/// Target `storage_file`.
pub fn run_file(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    memory::limited(ALLOWED, || {
        let guest = Guest::new(|_| Box::new(InFile::new(PAGES, kind)));
        run_limited(input, guest);
    });
}
