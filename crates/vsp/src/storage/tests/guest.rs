//! A guest's storage driver, over a bus without a virtual machine.

use crate::storage::protocol::{
    Packet, ProtocolVersion, SCSI_INTERFACE, ScsiRequest, VersionQuery, operation,
};
use crate::storage::{ControllerConfig, ControllerHandle, Io, StorageController};
use std::collections::VecDeque;
use std::sync::Arc;
use vid::{Partition, PartitionConfig, RamRange};
use vmbus::bus::{Bus, BusConfig};
use vmbus::client::{Client, ClientChannel, Loopback};
use vmbus::protocol::{GpaDirectHeader, Guid, OfferChannel, PacketType, Version};
use vmbus::ring::{Batch, PacketOut};
use zerocopy::{FromZeros, IntoBytes};

/// Pages of both rings of a channel.
const RING_PAGES: u64 = 16;
/// Where the rings of the first channel are.
const FIRST_RING: u64 = 16;
/// Where data is.
pub(super) const DATA_PAGE: u64 = 256;

/// What the host has sent.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) transaction_id: u64,
    pub(super) completion: bool,
    pub(super) size: usize,
    pub(super) packet: Packet,
}

/// A channel in the guest's hands.
pub(super) struct Channel {
    pub(super) ring: ClientChannel,
    received: VecDeque<Received>,
    next_id: u64,
}

/// A guest with one controller. Its rings and its data are in different
/// memories: system calls can work on the latter.
pub(super) struct Guest {
    pub(super) partition: Arc<Partition>,
    pub(super) bus: Bus,
    pub(super) client: Client,
    pub(super) loopback: Arc<Loopback>,
    pub(super) handle: ControllerHandle,
    pub(super) offers: Vec<OfferChannel>,
}

impl Guest {
    /// A guest that has its offers.
    pub(super) fn new(subchannels: u16, io: Io) -> Self {
        let ram = vec![RamRange {
            gpa: 0,
            size: 512 * 4096,
        }];
        let partition = Partition::new(&PartitionConfig {
            processors: 1,
            ram,
            processor_mode: vid::ProcessorMode::default(),
        });
        let partition = partition.unwrap().0;
        let loopback = Loopback::new(2, 512);
        let bus = Bus::start(loopback.clone(), BusConfig::default()).unwrap();
        loopback.attach(&bus);
        let mut config = ControllerConfig::new(Guid::from_u128(0x51), 0);
        config.subchannels = subchannels;
        config.io = io;
        let (vsp, handle) = StorageController::new(config, partition.clone());
        bus.offer(Box::new(vsp)).unwrap();
        let mut client = Client::new(loopback.clone());
        client.connect(&[Version::WIN10_RS5]).unwrap();
        let offers = client.request_offers().unwrap();
        assert_eq!(offers.len(), 1);
        assert_eq!(offers[0].interface_id, SCSI_INTERFACE);
        Self {
            partition,
            bus,
            client,
            loopback,
            handle,
            offers,
        }
    }

    /// Opens a channel on rings of its own; the first is number 0.
    pub(super) fn open(&mut self, offer: &OfferChannel, number: u64) -> Channel {
        let first = FIRST_RING + number * RING_PAGES;
        let pfns: Vec<u64> = (first..first + RING_PAGES).collect();
        let ring = self.client.open(offer, &pfns).unwrap();
        Channel {
            ring,
            received: VecDeque::new(),
            next_id: 1,
        }
    }

    /// Opens the first channel and negotiates.
    pub(super) fn ready(&mut self) -> Channel {
        let offer = self.offers[0];
        let mut channel = self.open(&offer, 0);
        channel.negotiate(ProtocolVersion::THRESHOLD);
        channel
    }

    pub(super) fn write_memory(&self, page: u64, offset: usize, data: &[u8]) {
        let address = page * 4096 + offset as u64;
        self.partition.write_guest(address, data).unwrap();
    }

    pub(super) fn read_memory(&self, page: u64, offset: usize, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        let address = page * 4096 + offset as u64;
        self.partition.read_guest(address, &mut data).unwrap();
        data
    }
}

/// The data of a request: bytes in consecutive pages, if any, and 0 for a
/// write or 1 for a read.
#[derive(Clone, Copy)]
pub(super) struct Data {
    pub(super) page: u64,
    pub(super) offset: u32,
    pub(super) length: u32,
    pub(super) data_in: u8,
}

pub(super) const NO_DATA: Data = Data {
    page: 0,
    offset: 0,
    length: 0,
    data_in: 2,
};

pub(super) fn data_in(length: u32) -> Data {
    Data {
        page: DATA_PAGE,
        offset: 0,
        length,
        data_in: 1,
    }
}

pub(super) fn data_out(length: u32) -> Data {
    Data {
        page: DATA_PAGE,
        offset: 0,
        length,
        data_in: 0,
    }
}

/// The list of pages of a GPA-direct packet.
pub(super) fn page_list(data: Data) -> Vec<u8> {
    let header = GpaDirectHeader {
        reserved: 0,
        range_count: 1,
    };
    let mut list = header.as_bytes().to_vec();
    list.extend(data.length.to_le_bytes());
    list.extend(data.offset.to_le_bytes());
    let pages = u64::from(data.offset + data.length).div_ceil(4096);
    list.extend((data.page..data.page + pages).flat_map(|pfn| pfn.to_le_bytes()));
    list
}

pub(super) fn scsi_request(lun: u8, cdb: &[u8], data: Data) -> ScsiRequest {
    let mut request = ScsiRequest {
        length: 0x34,
        lun,
        cdb_length: cdb.len() as u8,
        sense_length: 20,
        data_in: data.data_in,
        data_transfer_length: data.length,
        timeout: 60,
        ..ScsiRequest::new_zeroed()
    };
    request.payload[..cdb.len()].copy_from_slice(cdb);
    request
}

impl Channel {
    /// Sends bytes as they are, wanting a completion; its transaction.
    pub(super) fn send_raw(&mut self, bytes: &[u8], header: Option<&[u8]>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let data = [bytes];
        let mut packet = PacketOut::in_band(id, &data).with_completion_requested();
        if let Some(header) = header {
            packet = PacketOut {
                packet_type: PacketType::GPA_DIRECT,
                header,
                ..packet
            };
        }
        self.ring.send(&packet).unwrap();
        id
    }

    pub(super) fn next(&mut self) -> Received {
        while self.received.is_empty() {
            let mut batch = Batch::new();
            self.ring.read(&mut batch).unwrap();
            for packet in batch.packets() {
                self.received.push_back(Received {
                    transaction_id: packet.transaction_id,
                    completion: packet.packet_type == PacketType::COMPLETION,
                    size: packet.data.len(),
                    packet: Packet::parse(packet.data).unwrap(),
                });
            }
        }
        self.received.pop_front().unwrap()
    }

    /// The completion of a transaction; what else comes stays.
    pub(super) fn completion(&mut self, id: u64) -> Received {
        let mut others = Vec::new();
        loop {
            let received = self.next();
            if received.completion && received.transaction_id == id {
                self.received.extend(others);
                return received;
            }
            others.push(received);
        }
    }

    /// Sends a packet, and returns the status and packet of its completion.
    pub(super) fn exchange(&mut self, packet: &Packet) -> (u32, Packet) {
        let id = self.send_raw(packet.as_bytes(), None);
        let received = self.completion(id);
        assert_eq!(received.packet.operation, operation::COMPLETE_IO);
        assert_eq!(received.size, 64);
        (received.packet.status, received.packet)
    }

    pub(super) fn step(&mut self, operation: u32) -> u32 {
        self.exchange(&Packet::new(operation)).0
    }

    pub(super) fn version(&mut self, version: ProtocolVersion) -> u32 {
        let query = VersionQuery {
            version: version.0,
            revision: 0,
        };
        let packet = Packet::new(operation::QUERY_PROTOCOL_VERSION).with_payload(&query);
        self.exchange(&packet).0
    }

    pub(super) fn negotiate(&mut self, version: ProtocolVersion) {
        assert_eq!(self.step(operation::BEGIN_INITIALIZATION), 0);
        assert_eq!(self.version(version), 0);
        assert_eq!(self.step(operation::QUERY_PROPERTIES), 0);
        assert_eq!(self.step(operation::END_INITIALIZATION), 0);
    }

    /// Sends a SCSI request without waiting.
    pub(super) fn submit(&mut self, request: &ScsiRequest, data: Data) -> u64 {
        let packet = Packet::new(operation::EXECUTE_SRB).with_payload(request);
        let list = (data.length > 0).then(|| page_list(data));
        self.send_raw(packet.as_bytes(), list.as_deref())
    }

    pub(super) fn result(&mut self, id: u64) -> ScsiRequest {
        let received = self.completion(id);
        assert_eq!(received.packet.status, 0);
        received.packet.payload_as().unwrap()
    }

    /// Sends a SCSI command and waits for its result.
    pub(super) fn command(&mut self, lun: u8, cdb: &[u8], data: Data) -> ScsiRequest {
        let id = self.submit(&scsi_request(lun, cdb, data), data);
        self.result(id)
    }
}

/// Makes a test of each function for each way to reach files.
macro_rules! each_way {
    ($($name:ident),+ $(,)?) => {
        mod threads {
            $(#[test] fn $name() { super::$name($crate::storage::Io::Threads); })+
        }
        mod uring {
            // As far as the host permits it.
            $(#[test] fn $name() { super::$name($crate::storage::Io::Auto); })+
        }
    };
}

pub(super) use each_way;
