//! The control plane: messages through the synthetic interrupt controller.

use guest_kit::cpu::{rdmsr, wrmsr};
use guest_kit::hyperv::{self, call, msr, raw, status, status_of};
use guest_kit::{memory, time};

use crate::text::{Bytes, u32_at};

/// The interrupt source of the bus.
pub const SINT: u64 = 2;
/// Any free vector: interrupts stay off, the source is polled.
const VECTOR: u64 = 0x60;
/// The connection for the first message of a guest from version 5.0 on.
pub const CONTACT: u32 = 4;
/// The connection for all others.
pub const CONNECTION: u32 = 1;
/// How long the host may take for an answer, in milliseconds.
pub const PATIENCE: u64 = 20_000;

/// Types of messages.
pub mod kind {
    #![allow(missing_docs, reason = "the names are the protocol's")]
    pub const OFFER: u32 = 1;
    pub const RESCIND: u32 = 2;
    pub const REQUEST_OFFERS: u32 = 3;
    pub const ALL_OFFERS: u32 = 4;
    pub const OPEN: u32 = 5;
    pub const OPEN_RESULT: u32 = 6;
    pub const CLOSE: u32 = 7;
    pub const GPADL_HEADER: u32 = 8;
    pub const GPADL_BODY: u32 = 9;
    pub const GPADL_CREATED: u32 = 10;
    pub const GPADL_TEARDOWN: u32 = 11;
    pub const GPADL_TORNDOWN: u32 = 12;
    pub const RELEASED: u32 = 13;
    pub const CONTACT: u32 = 14;
    pub const VERSION_RESPONSE: u32 = 15;
    pub const UNLOAD: u32 = 16;
    pub const UNLOAD_COMPLETE: u32 = 17;
    pub const OPEN_RESERVED: u32 = 18;
    pub const CLOSE_RESERVED: u32 = 19;
    pub const CLOSE_RESERVED_RESPONSE: u32 = 20;
    pub const MODIFY: u32 = 22;
    pub const MODIFY_RESPONSE: u32 = 24;
}

/// Version 5.3.
pub const VERSION: u32 = 5 << 16 | 3;

/// A message of the host, with its header.
#[derive(Clone, Copy)]
pub struct Message {
    bytes: [u8; 240],
    length: usize,
}

impl Message {
    /// Header and body.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Its type.
    pub fn kind(&self) -> u32 {
        u32_at(self.bytes(), 0)
    }

    /// A word of the body.
    pub fn word(&self, index: usize) -> u32 {
        u32_at(self.bytes(), 8 + 4 * index)
    }
}

/// A channel that is offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// First word of its interface's GUID.
    pub interface: u32,
    /// Last word of its instance's.
    pub instance: u32,
    /// 0, or which subchannel.
    pub subchannel: u32,
    /// Its number.
    pub channel: u32,
    /// The connection for signals.
    pub connection: u32,
}

impl Offer {
    fn of(message: &Message) -> Self {
        let bytes = message.bytes();
        Self {
            interface: u32_at(bytes, 8),
            instance: u32_at(bytes, 36),
            subchannel: u32_at(bytes, 180) & 0xffff,
            channel: u32_at(bytes, 184),
            connection: u32_at(bytes, 192),
        }
    }
}

/// A body with its header.
pub fn message(kind: u32) -> Bytes<240> {
    Bytes::new().u32(kind).u32(0)
}

/// Posts a message once; the status.
pub fn post_once(connection: u32, bytes: &[u8]) -> u16 {
    let mut input = [0u64; 32];
    input[0] = u64::from(connection);
    input[1] = 1 | (bytes.len() as u64) << 32;
    for (word, part) in input[2..].iter_mut().zip(bytes.chunks(8)) {
        let mut whole = [0; 8];
        whole[..part.len()].copy_from_slice(part);
        *word = u64::from_le_bytes(whole);
    }
    status_of(raw(u64::from(call::POST_MESSAGE), hyperv::place(&input), 0))
}

/// Signals a channel; the status.
pub fn signal(connection: u32) -> u16 {
    hyperv::fast(call::SIGNAL_EVENT, u64::from(connection), 0)
}

/// The guest's side of the bus.
pub struct Bus {
    slot: u64,
    /// Offers of this connection.
    pub offers: [Offer; 24],
    count: usize,
    /// The channel that was rescinded last.
    pub rescinded: Option<u32>,
}

impl Bus {
    /// Turns the controller on; not connected.
    pub fn new() -> Self {
        hyperv::enable_hypercalls();
        if rdmsr(msr::SIMP) & 1 == 0 {
            wrmsr(msr::SIMP, memory::page() | 1);
            wrmsr(msr::SIEFP, memory::page() | 1);
        }
        wrmsr(msr::SCONTROL, 1);
        wrmsr(msr::SINT0 + SINT as u32, VECTOR);
        let slot = (rdmsr(msr::SIMP) & !0xfff) + SINT * 256;
        Self {
            slot,
            offers: [Offer::default(); 24],
            count: 0,
            rescinded: None,
        }
    }

    /// Takes a message that is there.
    pub fn take(&mut self) -> Option<Message> {
        if memory::read32(self.slot) == 0 {
            return None;
        }
        let mut message = Message {
            bytes: [0; 240],
            length: usize::from(memory::read8(self.slot + 4)).min(240),
        };
        for (index, part) in message.bytes.chunks_mut(8).enumerate() {
            let word = memory::read64(self.slot + 16 + 8 * index as u64);
            part.copy_from_slice(&word.to_le_bytes());
        }
        let pending = memory::read8(self.slot + 5) & 1 != 0;
        memory::write32(self.slot, 0);
        if pending || memory::read8(self.slot + 5) & 1 != 0 {
            wrmsr(msr::EOM, 0);
        }
        match message.kind() {
            kind::OFFER if self.count < self.offers.len() => {
                self.offers[self.count] = Offer::of(&message);
                self.count += 1;
            }
            kind::RESCIND => self.rescinded = Some(message.word(0)),
            _ => {}
        }
        Some(message)
    }

    /// Waits for a message; others are dropped, but offers and rescinds are remembered.
    pub fn expect_if(
        &mut self,
        milliseconds: u64,
        wanted: impl Fn(&Message) -> bool,
    ) -> Option<Message> {
        let mut found = None;
        time::wait_for(milliseconds, || {
            found = self.take().filter(&wanted);
            found.is_some()
        });
        found
    }

    /// Waits for a message of a type.
    pub fn expect(&mut self, kind: u32) -> Option<Message> {
        self.expect_if(PATIENCE, |message| message.kind() == kind)
    }

    /// Takes and drops what is there, until nothing comes for a while.
    pub fn drain(&mut self) {
        while self.expect_if(30, |_| true).is_some() {}
    }

    /// Posts a message as often as it takes, with its answers read meanwhile.
    pub fn post_by(&mut self, connection: u32, bytes: &[u8]) -> u16 {
        let mut status = 0;
        time::wait_for(PATIENCE, || {
            status = post_once(connection, bytes);
            if status == status::INSUFFICIENT_BUFFERS {
                self.take();
            }
            status != status::INSUFFICIENT_BUFFERS
        });
        status
    }

    /// The same by the usual connection.
    pub fn post(&mut self, bytes: &[u8]) -> u16 {
        self.post_by(CONNECTION, bytes)
    }

    /// InitiateContact; not its answer.
    pub fn contact(&mut self, version: u32, vp: u32, sint: u8, monitor: u64) {
        let message = message(kind::CONTACT)
            .u32(version)
            .u32(vp)
            .u64(u64::from(sint))
            .u64(monitor)
            .u64(0);
        self.post_by(CONTACT, message.get());
        self.count = 0;
        self.offers = [Offer::default(); 24];
        self.rescinded = None;
    }

    /// Connects anew and asks for the offers; whether the host agrees.
    pub fn connect(&mut self) -> bool {
        // Answers to what came before must not be taken for answers to this.
        self.drain();
        self.contact(VERSION, 0, SINT as u8, 0);
        let answer = self.expect(kind::VERSION_RESPONSE);
        // Supported, and successful.
        if answer.is_none_or(|answer| answer.word(0) & 0xffff != 1) {
            return false;
        }
        self.post(message(kind::REQUEST_OFFERS).get());
        self.expect(kind::ALL_OFFERS).is_some()
    }

    /// An offer of this connection.
    pub fn offer(&self, wanted: impl Fn(&Offer) -> bool) -> Option<Offer> {
        self.offers[..self.count].iter().copied().find(wanted)
    }
}
