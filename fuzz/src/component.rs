//! `ic_*`: what a guest answers to the integration components, over a bus of
//! its own without a virtual machine.
//!
//! An input begins with the number of calls that the host makes (modulo 8) and
//! a byte for each; then come steps, each a byte, of which every message of
//! the host takes one: see [`step`]. When nothing is left, messages are
//! answered as they should be.
//!
//! Whatever the guest answered, calls end, and it can open the channel anew
//! and is asked for its versions again.

use crate::{Input, memory};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use vmbus::bus::{Bus, BusConfig, Vsp};
use vmbus::client::{Client, ClientChannel, ClientTransport, Loopback};
use vmbus::protocol::{CloseChannel, OfferChannel, PAGE_SIZE, PacketType, Version};
use vmbus::ring::{Batch, GuestPages, PacketOut, pipe_data, pipe_header};
use vsp::ic::wire::{FLAG_RESPONSE, FLAG_TRANSACTION, IcStatus, IcVersion, TYPE_NEGOTIATE};
use vsp::ic::{
    AddressOrigin, CopyFlags, FileCopy, Heartbeat, HeartbeatState, IpAddress, IpInfo, Kvp, KvpPool,
    KvpValue, Shutdown, ShutdownKind, TimeSync, Vss,
};
use zerocopy::IntoBytes;

/// The components.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Component {
    Heartbeat,
    Shutdown,
    TimeSync,
    Kvp,
    Vss,
    FileCopy,
}

impl Component {
    /// All, with the names of their targets.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Heartbeat, "ic_heartbeat"),
        (Self::Shutdown, "ic_shutdown"),
        (Self::TimeSync, "ic_time_sync"),
        (Self::Kvp, "ic_kvp"),
        (Self::Vss, "ic_vss"),
        (Self::FileCopy, "ic_file_copy"),
    ];
}

/// What a message of the host is answered with: the low three bits of a byte.
pub mod step {
    /// The message itself as an answer; the byte's high bits count changes,
    /// each an offset (2) and a byte. A negotiation is agreed on with the
    /// version offered whose number (modulo how many there are) a byte says.
    pub const ECHO: u8 = 0;
    /// An answer with a status (4) and a body: length (2), bytes.
    pub const BODY: u8 = 1;
    /// Any message: length (2), bytes; then the host waits on.
    pub const MESSAGE: u8 = 2;
    /// Any packet: its type (modulo 4), length (2), bytes; then the host waits
    /// on.
    pub const PACKET: u8 = 3;
    /// The channel is closed and opened again.
    pub const REOPEN: u8 = 4;
    /// The ring's page (modulo 10) is written at an offset (2) with a value
    /// (4), and the channel opened again.
    pub const SCRIBBLE: u8 = 5;
    /// The right answer, as often as the byte's high bits say.
    pub const REPEAT: u8 = 6;
    /// An answer to another message, then the right one.
    pub const STALE: u8 = 7;
}

const FIRST_PAGE: u64 = 16;
const RING_PAGES: u64 = 10;
/// Answers that are given when the input has no more steps.
const MAX_RIGHT_ANSWERS: u32 = 64;
const MAX_OPENINGS: u32 = 4;
/// For each call of the host. Only those take it that are not answered.
const CALL_TIMEOUT: Duration = Duration::from_millis(100);
/// What the host may take. It is all much quicker, unless it hangs; but the
/// target may run at the lowest priority.
const PATIENCE: Duration = Duration::from_secs(60);
/// Messages that nobody asked for, before the host stops to listen; and how
/// long it may then make no room before that is taken for granted.
const MAX_JUNK: u32 = 256;
const DEAF_AFTER: Duration = Duration::from_millis(50);
const ALLOWED: usize = 16 << 20;

/// Something that the host asks the guest for. Errors are as good as results.
type Call = Box<dyn FnMut(u8) + Send>;

fn device(component: Component) -> (Box<dyn Vsp>, Call) {
    match component {
        Component::Heartbeat => {
            let (device, heartbeat) = Heartbeat::new();
            (device, Box::new(move |_| beat(&heartbeat)))
        }
        Component::Shutdown => {
            let (device, shutdown) = Shutdown::new();
            (device, Box::new(move |choice| shut_down(&shutdown, choice)))
        }
        Component::TimeSync => {
            let (device, clock) = TimeSync::new(Box::new(|| 0x1234_5678));
            (device, Box::new(move |choice| set_time(&clock, choice)))
        }
        Component::Kvp => {
            let (device, kvp) = Kvp::new();
            (device, Box::new(move |choice| exchange(&kvp, choice)))
        }
        Component::Vss => {
            let (device, vss) = Vss::new();
            (device, Box::new(move |choice| freeze(&vss, choice)))
        }
        Component::FileCopy => {
            let (device, copy) = FileCopy::new();
            (device, Box::new(move |choice| copy_file(&copy, choice)))
        }
    }
}

/// Waits for the first beat, which comes by itself.
fn beat(heartbeat: &Heartbeat) {
    for _ in 0..20 {
        let status = heartbeat.status();
        if status.answered + status.missed > 0 || status.state == HeartbeatState::Failed {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn shut_down(shutdown: &Shutdown, choice: u8) {
    let kind = match choice % 3 {
        0 => ShutdownKind::PowerOff,
        1 => ShutdownKind::Reboot,
        _ => ShutdownKind::Hibernate,
    };
    let _ = shutdown.request(kind, choice & 128 != 0, CALL_TIMEOUT);
}

fn set_time(clock: &TimeSync, choice: u8) {
    let second = Duration::from_secs(1);
    let time = match choice % 4 {
        0 => None,
        1 => Some(SystemTime::UNIX_EPOCH),
        2 => SystemTime::UNIX_EPOCH.checked_sub(second * 60_000_000),
        _ => SystemTime::UNIX_EPOCH.checked_add(second * u32::MAX * 2000),
    };
    let _ = clock.set(time, CALL_TIMEOUT);
}

fn exchange(kvp: &Kvp, choice: u8) {
    let pool = KvpPool::ALL[usize::from(choice >> 4) % KvpPool::ALL.len()];
    let values = [
        KvpValue::Text("value".into()),
        KvpValue::U32(7),
        KvpValue::U64(8),
    ];
    match choice % 8 {
        0 | 1 => drop(kvp.enumerate(pool, CALL_TIMEOUT)),
        2 => drop(kvp.get(pool, "key", CALL_TIMEOUT)),
        value @ 3..=5 => drop(kvp.set(pool, "key", &values[usize::from(value - 3)], CALL_TIMEOUT)),
        6 if choice > 127 => drop(kvp.delete(pool, "key", CALL_TIMEOUT)),
        6 => drop(kvp.inject_ip("00:15:5D:01:02:03", &addresses(), CALL_TIMEOUT)),
        _ => {
            let Ok(info) = kvp.ip_addresses("00:15:5D:01:02:03", CALL_TIMEOUT) else {
                return;
            };
            for address in info.addresses {
                let bits = if address.address.is_ipv4() { 32 } else { 128 };
                assert!(address.prefix.is_none_or(|prefix| prefix <= bits));
            }
        }
    }
}

fn addresses() -> IpInfo {
    let of = |address: [u8; 4], prefix| IpAddress {
        address: IpAddr::from(address),
        prefix: Some(prefix),
        origin: AddressOrigin::Unknown,
    };
    IpInfo {
        ipv4: true,
        addresses: vec![of([192, 168, 1, 2], 24), of([10, 0, 0, 1], 8)],
        gateways: vec![IpAddr::from([192, 168, 1, 1])],
        ..IpInfo::default()
    }
}

fn freeze(vss: &Vss, choice: u8) {
    match choice % 4 {
        0 => drop(vss.features(CALL_TIMEOUT)),
        1 => drop(vss.thaw(CALL_TIMEOUT)),
        hold => {
            let hold = Duration::from_millis(u64::from(hold) * 20 - 40);
            if let Ok(frozen) = vss.freeze(CALL_TIMEOUT, hold) {
                let _ = frozen.is_intact();
                if choice > 127 {
                    let _ = frozen.thaw(CALL_TIMEOUT);
                }
            }
        }
    }
}

fn copy_file(copy: &FileCopy, choice: u8) {
    let data = vec![choice; usize::from(choice) * 100];
    let flags = CopyFlags {
        overwrite: choice & 1 != 0,
        create_path: choice & 2 != 0,
    };
    // Every eighth is stopped on its way, and every other eighth cut short.
    let size = data.len() as u64 + u64::from(choice & 7 == 7);
    let mut progress = |_| match choice & 7 {
        6 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let (source, path) = (&mut &data[..], "/tmp/a file");
    let _ = copy.copy(source, size, path, flags, CALL_TIMEOUT, &mut progress);
}

struct Guest {
    client: Client,
    loopback: Arc<Loopback>,
    offer: OfferChannel,
    channel: ClientChannel,
    openings: u32,
    right_answers: u32,
    /// Packets that the guest has sent since it opened the channel.
    sent: u32,
    /// The host takes nothing any more.
    deaf: bool,
}

impl Guest {
    fn new(loopback: &Arc<Loopback>) -> Self {
        let mut client = Client::new(loopback.clone());
        client.connect(&[Version::WIN10_RS5]).expect("a connection");
        let offer = client.request_offers().expect("offers")[0];
        let channel = open(&mut client, &offer);
        Self {
            client,
            loopback: loopback.clone(),
            offer,
            channel,
            openings: 1,
            right_answers: 0,
            sent: 0,
            deaf: false,
        }
    }

    /// The next message of the host, if one comes before `done`.
    fn receive(&mut self, done: &AtomicBool) -> Option<Vec<u8>> {
        let mut batch = Batch::new();
        loop {
            let ended = done.load(Ordering::Acquire);
            self.channel
                .try_read(&mut batch)
                .expect("a ring of the host's");
            // One request at a time, unless the one before has taken too long.
            if let Some(packet) = batch.packets().last() {
                let (message, partial) = pipe_data(packet.data).expect("a pipe's packet");
                assert!(!partial && message.len() >= 20);
                return Some(message.to_vec());
            }
            if ended {
                return None;
            }
            let flag = self.channel.channel_id() as u16;
            self.loopback.wait_event(flag, Duration::from_millis(1));
        }
    }

    /// Sends a packet, unless it is longer than the ring. Only to a guest that
    /// has sent much that nobody asked for may the host stop to listen.
    fn send_packet(&mut self, packet: &PacketOut<'_>) {
        let end = Instant::now() + PATIENCE;
        let soon = Instant::now() + DEAF_AFTER;
        self.sent += 1;
        while !self.deaf && matches!(self.channel.try_send(packet), Ok(false)) {
            assert!(Instant::now() < end, "the host makes no room");
            self.deaf = self.sent > MAX_JUNK && Instant::now() > soon;
            std::thread::yield_now();
        }
    }

    fn send(&mut self, message: &[u8]) {
        let header = pipe_header(message.len() as u32);
        let parts = [header.as_bytes(), message];
        self.send_packet(&PacketOut::in_band(u64::MAX, &parts));
    }

    fn reopen(&mut self) {
        let (channel_id, gpadl_id) = (self.channel.channel_id(), self.channel.gpadl_id());
        self.client.post(&CloseChannel { channel_id });
        let closed = self.client.teardown_gpadl(channel_id, gpadl_id);
        assert_eq!(closed, Ok(()));
        self.channel = open(&mut self.client, &self.offer);
        self.openings += 1;
        (self.sent, self.deaf) = (0, false);
    }

    fn may_reopen(&self) -> bool {
        self.openings < MAX_OPENINGS
    }

    /// Answers a message of the host; false to end.
    fn answer(&mut self, message: &[u8], input: &mut Input<'_>) -> bool {
        loop {
            if self.deaf {
                return false;
            }
            if input.is_empty() {
                self.right_answers += 1;
                self.send(&right(message, 0));
                return self.right_answers < MAX_RIGHT_ANSWERS;
            }
            let kind = input.u8();
            let count = kind >> 3;
            match kind & 7 {
                step::ECHO => {
                    let mut bytes = right(message, input.u8());
                    for _ in 0..count {
                        let at = usize::from(input.u16()) % bytes.len();
                        bytes[at] = input.u8();
                    }
                    self.send(&bytes);
                    return true;
                }
                step::BODY => {
                    let status = IcStatus(input.u32());
                    let length = usize::from(input.u16());
                    self.send(&respond(message, status, input.bytes(length)));
                    return true;
                }
                step::MESSAGE => {
                    let length = usize::from(input.u16());
                    self.send(input.bytes(length));
                }
                step::PACKET => self.packet(input),
                step::REOPEN if self.may_reopen() => {
                    self.reopen();
                    return true;
                }
                step::SCRIBBLE if self.may_reopen() => {
                    self.scribble(input);
                    self.reopen();
                    return true;
                }
                step::REPEAT => {
                    for _ in 0..=count {
                        self.send(&right(message, 0));
                    }
                    return true;
                }
                step::STALE => {
                    let mut bytes = right(message, 0);
                    bytes[16] = bytes[16].wrapping_add(count);
                    self.send(&bytes);
                }
                _ => {}
            }
        }
    }

    fn packet(&mut self, input: &mut Input<'_>) {
        let types = [
            PacketType::IN_BAND,
            PacketType::COMPLETION,
            PacketType::GPA_DIRECT,
            PacketType::TRANSFER_PAGES,
        ];
        let packet_type = types[usize::from(input.u8() % 4)];
        let length = usize::from(input.u16());
        let data = [input.bytes(length)];
        self.send_packet(&PacketOut {
            packet_type,
            ..PacketOut::in_band(1, &data)
        });
    }

    fn scribble(&mut self, input: &mut Input<'_>) {
        let page = FIRST_PAGE + u64::from(input.u8()) % RING_PAGES;
        let at = page * PAGE_SIZE + u64::from(input.u16() % 1024) * 4;
        let stored = self.loopback.memory().store_u32(at as usize, input.u32());
        assert!(stored.is_ok());
        self.channel.signal();
        // So that the host sees it, as a rule.
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn open(client: &mut Client, offer: &OfferChannel) -> ClientChannel {
    let pfns: Vec<u64> = (FIRST_PAGE..FIRST_PAGE + RING_PAGES).collect();
    client.open(offer, &pfns).expect("the channel opens")
}

/// Offset of the message's type, its size, status and flags in a header.
const TYPE: usize = 4;
const SIZE: usize = 10;
const STATUS: usize = 12;
const FLAGS: usize = 17;
const HEADER: usize = 20;

fn respond(message: &[u8], status: IcStatus, body: &[u8]) -> Vec<u8> {
    let mut bytes = message[..HEADER].to_vec();
    bytes[SIZE..SIZE + 2].copy_from_slice(&(body.len() as u16).to_le_bytes());
    bytes[STATUS..STATUS + 4].copy_from_slice(&status.0.to_le_bytes());
    bytes[FLAGS] = FLAG_TRANSACTION | FLAG_RESPONSE;
    bytes.extend_from_slice(body);
    bytes
}

/// An answer that makes sense; `version` chooses among those offered.
fn right(message: &[u8], version: u8) -> Vec<u8> {
    if u16::from(message[TYPE]) != TYPE_NEGOTIATE {
        return respond(message, IcStatus::OK, &message[HEADER..]);
    }
    let framework = IcVersion::new(3, 0);
    let mut versions = message[HEADER + 8 + 8..].chunks_exact(4);
    let index = usize::from(version) % versions.len();
    let chosen = versions.nth(index).unwrap_or(&[0; 4]);
    let body = [&[1, 0, 1, 0, 0, 0, 0, 0], framework.as_bytes(), chosen];
    respond(message, IcStatus::OK, &body.concat())
}

fn run_limited(component: Component, data: &[u8]) {
    let mut input = Input::new(data);
    let count = usize::from(input.u8() % 8);
    let calls = input.bytes(count);
    let loopback = Loopback::new(1, 64);
    let bus = Bus::start(loopback.clone(), BusConfig::default()).expect("a bus");
    loopback.attach(&bus);
    let (device, mut call) = device(component);
    bus.offer(device).expect("room on the bus");
    let mut guest = Guest::new(&loopback);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for choice in [0].iter().chain(calls) {
                call(*choice);
            }
            done.store(true, Ordering::Release);
        });
        while let Some(message) = guest.receive(&done) {
            if !guest.answer(&message, &mut input) {
                break;
            }
        }
        guest.reopen();
        let first = guest.receive(&AtomicBool::new(false)).unwrap_or_default();
        assert_eq!(u16::from(first[TYPE]), TYPE_NEGOTIATE);
        let channel_id = guest.channel.channel_id();
        // Calls that are still waiting end with this.
        guest.client.post(&CloseChannel { channel_id });
    });
}

/// The targets.
pub fn run(component: Component, data: &[u8]) {
    memory::limited(ALLOWED, || run_limited(component, data));
}
