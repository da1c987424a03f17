//! Channels: GPADLs, rings and packets, right and wrong.

use guest_kit::{memory, time};

use crate::bus::{self, Bus, Offer, PATIENCE, kind, message};
use crate::text::Bytes;

const PAGE: u64 = 4096;

/// Offsets in a ring's control page.
pub mod control {
    #![allow(missing_docs, reason = "the names are the protocol's")]
    pub const IN: u64 = 0;
    pub const OUT: u64 = 4;
    pub const MASK: u64 = 8;
    pub const PENDING: u64 = 12;
    pub const FEATURES: u64 = 64;
}

/// Types of packets.
pub mod packet {
    #![allow(missing_docs, reason = "the names are the protocol's")]
    pub const IN_BAND: u16 = 6;
    pub const GPA_DIRECT: u16 = 9;
    pub const COMPLETION: u16 = 11;
}

/// Numbers for GPADLs, never used twice.
pub fn next_gpadl() -> u32 {
    use core::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0x1000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A GPADL's header with what fits of its list.
pub fn gpadl_header(channel: u32, gpadl: u32, length: u16, count: u16) -> Bytes<240> {
    message(kind::GPADL_HEADER)
        .u32(channel)
        .u32(gpadl)
        .u16(length)
        .u16(count)
}

/// Waits for the answer to a GPADL: its status.
pub fn gpadl_status(bus: &mut Bus, gpadl: u32, milliseconds: u64) -> Option<u32> {
    let answer = bus.expect_if(milliseconds, |message| {
        message.kind() == kind::GPADL_CREATED && message.word(1) == gpadl
    });
    answer.map(|answer| answer.word(2))
}

/// Makes a GPADL of consecutive pages; its status.
pub fn create_gpadl(
    bus: &mut Bus,
    channel: u32,
    gpadl: u32,
    start: u64,
    pages: u32,
) -> Option<u32> {
    let length = (8 + 8 * pages) as u16;
    let mut header = gpadl_header(channel, gpadl, length, 1)
        .u32(pages * PAGE as u32)
        .u32(0);
    let mut next = 0;
    while next < pages && header.get().len() + 8 <= 240 {
        header = header.u64(start / PAGE + u64::from(next));
        next += 1;
    }
    bus.post(header.get());
    while next < pages {
        let mut body = message(kind::GPADL_BODY).u32(0).u32(gpadl);
        while next < pages && body.get().len() + 8 <= 240 {
            body = body.u64(start / PAGE + u64::from(next));
            next += 1;
        }
        bus.post(body.get());
    }
    gpadl_status(bus, gpadl, PATIENCE)
}

/// OpenChannel.
pub fn open_message(channel: u32, gpadl: u32, vp: u32, border: u32) -> Bytes<240> {
    message(kind::OPEN)
        .u32(channel)
        .u32(channel)
        .u32(gpadl)
        .u32(vp)
        .u32(border)
        .up_to(8 + 20 + 120)
}

/// Waits for the answer to OpenChannel: its status.
pub fn open_status(bus: &mut Bus, channel: u32) -> Option<u32> {
    let answer = bus.expect_if(PATIENCE, |message| {
        message.kind() == kind::OPEN_RESULT && message.word(0) == channel
    });
    answer.map(|answer| answer.word(2))
}

/// Takes a GPADL back; whether the host lets it go.
pub fn teardown(bus: &mut Bus, channel: u32, gpadl: u32) -> bool {
    bus.post(message(kind::GPADL_TEARDOWN).u32(channel).u32(gpadl).get());
    bus.expect_if(PATIENCE, |message| {
        message.kind() == kind::GPADL_TORNDOWN && message.word(0) == gpadl
    })
    .is_some()
}

/// Pages for a channel's rings: both with their control page.
#[derive(Clone, Copy)]
pub struct Rings {
    /// Address of the first page.
    pub start: u64,
    /// Pages of both.
    pub pages: u32,
    /// Pages of the ring to the host.
    pub border: u32,
}

impl Rings {
    /// New pages for rings with so many pages of data to and from the host.
    pub fn new(to_host: u32, from_host: u32) -> Self {
        let pages = to_host + from_host + 2;
        Self {
            start: memory::pages(u64::from(pages)),
            pages,
            border: to_host + 1,
        }
    }

    /// Empties both.
    pub fn reset(&self) {
        for control in [self.outgoing(), self.incoming()] {
            for field in [control::IN, control::OUT, control::MASK, control::PENDING] {
                memory::write32(control + field, 0);
            }
            memory::write32(control + control::FEATURES, 1);
        }
    }

    /// Control page of the ring to the host.
    pub fn outgoing(&self) -> u64 {
        self.start
    }

    /// Control page of the ring from the host.
    pub fn incoming(&self) -> u64 {
        self.start + u64::from(self.border) * PAGE
    }

    /// Bytes of data in the ring to the host.
    pub fn size_to_host(&self) -> u32 {
        (self.border - 1) * PAGE as u32
    }

    /// Bytes of data in the ring from the host.
    pub fn size_from_host(&self) -> u32 {
        (self.pages - self.border - 1) * PAGE as u32
    }
}

/// An open channel.
pub struct Channel {
    /// What was offered.
    pub offer: Offer,
    /// Its rings.
    pub rings: Rings,
    gpadl: u32,
    /// Where the next packet goes.
    write: u32,
    /// Where the next packet of the host is.
    read: u32,
}

impl Channel {
    /// Opens a channel on these pages.
    pub fn open(bus: &mut Bus, offer: Offer, rings: Rings) -> Option<Self> {
        rings.reset();
        let gpadl = next_gpadl();
        if create_gpadl(bus, offer.channel, gpadl, rings.start, rings.pages)? != 0 {
            return None;
        }
        let open = open_message(offer.channel, gpadl, 0, rings.border);
        bus.post(open.get());
        (open_status(bus, offer.channel)? == 0).then_some(Self {
            offer,
            rings,
            gpadl,
            write: 0,
            read: 0,
        })
    }

    /// The GPADL of its rings.
    pub fn gpadl(&self) -> u32 {
        self.gpadl
    }

    /// Closes the channel; whether the host lets its pages go.
    pub fn close(self, bus: &mut Bus) -> bool {
        bus.post(message(kind::CLOSE).u32(self.offer.channel).get());
        teardown(bus, self.offer.channel, self.gpadl)
    }

    /// Signals the host.
    pub fn signal(&self) -> u16 {
        bus::signal(self.offer.connection)
    }

    /// Writes bytes at an index of the ring to the host.
    pub fn put(&self, index: u32, bytes: &[u8]) {
        let data = self.rings.outgoing() + PAGE;
        let size = self.rings.size_to_host();
        for (offset, part) in bytes.chunks(8).enumerate() {
            let at = (index + 8 * offset as u32) % size;
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            memory::write64(data + u64::from(at), u64::from_le_bytes(word));
        }
    }

    /// Shows the host what lies up to an index.
    pub fn publish(&mut self, index: u32) {
        self.write = index % self.rings.size_to_host();
        memory::write32(self.rings.outgoing() + control::IN, self.write);
    }

    /// Where the next packet goes.
    pub fn index(&self) -> u32 {
        self.write
    }

    /// Bytes that fit into the ring to the host now.
    pub fn room(&self) -> u32 {
        let size = self.rings.size_to_host();
        let out = memory::read32(self.rings.outgoing() + control::OUT);
        let used = (size + self.write - out % size) % size;
        size - 8 - used
    }

    /// Sends a packet with right lengths, `header` before its data; false where there is no room.
    pub fn send(&mut self, kind: u16, wanted: bool, id: u64, header: &[u8], data: &[u8]) -> bool {
        let offset = 16 + header.len().next_multiple_of(8);
        let length = offset + data.len().next_multiple_of(8);
        if self.room() < length as u32 + 8 {
            return false;
        }
        let descriptor = Bytes::<16>::new()
            .u16(kind)
            .u16((offset / 8) as u16)
            .u16((length / 8) as u16)
            .u16(wanted.into())
            .u64(id);
        let at = self.write;
        self.put(at, descriptor.get());
        self.put(at + 16, header);
        self.put(at + offset as u32, data);
        let footer = u64::from(at) << 32;
        self.put(at + length as u32, &footer.to_le_bytes());
        self.publish(at + length as u32 + 8);
        self.signal();
        true
    }

    /// Takes a packet of the host: its type, transaction and the data that fits.
    pub fn receive(&mut self, data: &mut [u8]) -> Option<(u16, u64)> {
        let control = self.rings.incoming();
        let size = self.rings.size_from_host();
        if memory::read32(control + control::IN) == self.read {
            return None;
        }
        let word = |index: u32| memory::read64(control + PAGE + u64::from(index % size));
        let descriptor = word(self.read);
        let (kind, offset) = (descriptor as u16, 8 * (descriptor >> 16 & 0xffff) as u32);
        let length = 8 * (descriptor >> 32 & 0xffff) as u32;
        let transaction = word(self.read + 8);
        let there = length.saturating_sub(offset) as usize;
        for (index, part) in data.chunks_mut(8).take(there / 8).enumerate() {
            let bytes = word(self.read + offset + 8 * index as u32).to_le_bytes();
            part.copy_from_slice(&bytes[..part.len()]);
        }
        self.read = (self.read + length + 8) % size;
        memory::write32(control + control::OUT, self.read);
        let pending = memory::read32(control + control::PENDING);
        if pending != 0 {
            self.signal();
        }
        Some((kind, transaction))
    }

    /// Waits for a packet of the host.
    pub fn wait(&mut self, data: &mut [u8]) -> Option<(u16, u64)> {
        let mut found = None;
        time::wait_for(PATIENCE, || {
            found = self.receive(data);
            found.is_some()
        });
        found
    }
}
