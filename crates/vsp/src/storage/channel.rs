//! A channel at work: one thread takes packets from the ring, answers what is
//! quick, and hands transfers to the host's kernel; others carry out what may
//! block.

use super::controller::Controller;
use super::doorbell::Doorbell;
use super::executor::{Executor, ThreadPool};
use super::outbox::{Counted, Load, Message, Outbox};
use super::protocol::{NtStatus, OLD_PACKET_SIZE, PACKET_SIZE, Packet, ScsiRequest, operation};
use super::request::Prepared;
use super::scsi::op;
use super::session::Done;
use super::transfers::Transfers;
use parking_lot::Mutex;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use vmbus::bus::{BusHandle, ChannelError, ChannelReader, OpenChannel};
use vmbus::protocol::{GpaRange, PacketType};
use vmbus::ring::{self, Batch};

/// Bytes that the channel's own thread reads, when it has nothing else to do.
const MAX_INLINE_BYTES: u32 = 64 << 10;
/// Bytes that it writes then: most file systems have a thread of the kernel's do what they are
/// given by io_uring, and the way there takes longer than copying them.
const MAX_INLINE_WRITE: u32 = 1 << 20;
/// Bytes that are moved for a guest's signal by the processor that signals.
const MAX_HELP_BYTES: u32 = 256 << 10;
/// How soon what could not be sent or submitted is tried again, where nobody
/// tells.
const RETRY: Duration = Duration::from_millis(10);

/// A channel, for all threads that work for it.
pub(super) struct Channel {
    controller: Arc<Controller>,
    outbox: Outbox,
    pool: Box<dyn Executor>,
    load: Arc<Load>,
    doorbell: Arc<Doorbell>,
}

/// What an answer needs after its packet is gone.
pub(super) struct Reply {
    transaction_id: u64,
    completion_requested: bool,
    /// Bytes that the guest's packet had, and the answer shall have.
    size: usize,
    packet: Packet,
    counted: Counted,
}

impl Reply {
    fn message(self, status: NtStatus, result: &ScsiRequest) -> Option<Message> {
        let packet = completion(self.packet.with_payload(result), status);
        self.completion_requested.then(|| {
            let counted = Some(self.counted);
            Message::completion(self.transaction_id, packet, self.size, counted)
        })
    }
}

/// The packet as a completion.
fn completion(packet: Packet, status: NtStatus) -> Packet {
    Packet {
        operation: operation::COMPLETE_IO,
        flags: 0,
        status: status.0,
        ..packet
    }
}

impl Channel {
    /// Tells the guest, soon, that units have come or gone.
    pub(super) fn enumerate(&self) {
        // A channel that is closed has no guest to be told.
        let _ = self.outbox.enumerate();
    }

    /// Sends a result, from any thread.
    fn send(&self, reply: Reply, result: &ScsiRequest) {
        if let Some(message) = reply.message(NtStatus::SUCCESS, result) {
            // The channel's own thread finds out by itself that it is closed.
            let _ = self.outbox.send(message);
        }
    }
}

/// The channel's work, for its own thread, and for whoever signals.
struct Worker {
    channel: Arc<Channel>,
    reader: ChannelReader,
    batch: Batch,
    /// Packets of the batch that were handled.
    handled: usize,
    /// Where the host permits it.
    transfers: Option<Transfers>,
    bus: BusHandle,
}

/// A channel's own thread: works until the channel is closed or broken, and
/// all requests that came before are done.
fn run(worker: &Arc<Mutex<Worker>>, channel: &Channel, completions: Option<&OwnedFd>) {
    let others = worker.clone();
    let doorbell = channel.doorbell.clone();
    worker.lock().reader.set_waker(Some(Arc::new(move || {
        // What can be done at once is done by the guest's own processor: the
        // way to another thread and back would take it longer.
        let done = others.try_lock().is_some_and(|mut worker| worker.help());
        if !done {
            doorbell.ring();
        }
    })));
    let completions = completions.map(AsFd::as_fd);
    let error = loop {
        let waiting = worker.lock().work();
        match waiting {
            Ok(Some(wait)) => channel.doorbell.wait(completions, wait.timeout),
            Ok(None) => {}
            Err(error) => break error,
        }
    };
    worker.lock().end();
    match error {
        ChannelError::Closed => {}
        error => tracing::warn!("a storage channel cannot go on: {error}"),
    }
}

/// Nothing is there to do before a signal or the end of this time.
struct Wait {
    timeout: Option<Duration>,
}

impl Worker {
    /// Does what is there to do; what to wait for when there was nothing.
    fn work(&mut self) -> Result<Option<Wait>, ChannelError> {
        if self.step()? {
            Ok(None)
        } else {
            self.prepare_wait()
        }
    }

    /// Waits for what is on its way, and lets go of everything.
    fn end(&mut self) {
        if let Some(transfers) = &mut self.transfers {
            transfers.drain(&self.channel);
        }
        self.channel.pool.finish();
        self.reader.set_waker(None);
        self.channel.outbox.clear();
    }

    /// The guest may send more.
    fn can_take_more(&self) -> bool {
        self.channel.load.has_room() && !self.channel.outbox.is_blocked()
    }

    /// Does what is there to do; false when that was nothing.
    fn step(&mut self) -> Result<bool, ChannelError> {
        if self.reader.is_closing() {
            return Err(ChannelError::Closed);
        }
        let mut busy = self.conclude()?;
        if self.handled == self.batch.len() && self.can_take_more() {
            self.reader.mask()?;
            self.take_batch()?;
        }
        if self.handled < self.batch.len() {
            self.handle_batch()?;
            self.conclude()?;
            busy = true;
        }
        self.channel.outbox.flush()?;
        Ok(busy)
    }

    fn take_batch(&mut self) -> Result<(), ChannelError> {
        self.handled = 0;
        self.reader.try_read(&mut self.batch)
    }

    /// Answers what the host's kernel has done.
    fn conclude(&mut self) -> Result<bool, ChannelError> {
        match &mut self.transfers {
            Some(transfers) => transfers.conclude(&self.channel),
            None => Ok(false),
        }
    }

    /// Looks for the last time before a wait.
    fn prepare_wait(&mut self) -> Result<Option<Wait>, ChannelError> {
        let doorbell = self.channel.doorbell.clone();
        doorbell.prepare();
        let blocked = !self.channel.outbox.flush()?;
        let ready = self.can_take_more() && !self.reader.prepare_wait()?;
        if ready || self.reader.is_closing() {
            doorbell.cancel();
            return Ok(None);
        }
        let stuck = self.transfers.as_ref().is_some_and(Transfers::is_stuck);
        let timeout = (blocked || stuck).then_some(RETRY);
        Ok(Some(Wait { timeout }))
    }

    /// Does what can be done without waiting, in the thread that signals.
    /// False when something is left for the channel's own thread.
    fn help(&mut self) -> bool {
        let left = self.handled < self.batch.len() || self.reader.is_closing();
        // What is wrong here is so for the channel's own thread, too.
        !left && self.can_take_more() && self.read_at_once().unwrap_or(false)
    }

    /// Answers the reads of a batch whose data is at hand, up to the first
    /// packet that is something else; whether that was all.
    fn read_at_once(&mut self) -> Result<bool, ChannelError> {
        self.take_batch()?;
        let batch = std::mem::take(&mut self.batch);
        let (mut done, mut left) = (Ok(true), MAX_HELP_BYTES);
        for packet in batch.packets() {
            done = self.read_packet_at_once(&packet, &mut left);
            if !matches!(done, Ok(true)) {
                break;
            }
            self.handled += 1;
        }
        self.batch = batch;
        let sent = self.channel.outbox.flush()?;
        Ok(done? && sent && self.reader.prepare_wait()?)
    }

    /// `left`: bytes that may still be moved.
    fn read_packet_at_once(
        &self,
        packet: &ring::Packet<'_>,
        left: &mut u32,
    ) -> Result<bool, ChannelError> {
        let parsed = Packet::parse(packet.data);
        let execute = |parsed: &Packet| parsed.operation == operation::EXECUTE_SRB;
        let Some(parsed) = parsed.filter(execute) else {
            return Ok(false);
        };
        let (Ok(ranges), Some(request)) = (packet.gpa_direct(), parsed.payload_as()) else {
            return Ok(false);
        };
        let ready = packet.data.len() >= PACKET_SIZE && is_short_read(&request);
        let Some(rest) = left.checked_sub(request.data_transfer_length) else {
            return Ok(false);
        };
        if !ready || !self.controller().session().is_ready() {
            return Ok(false);
        }
        *left = rest;
        let prepared = Prepared::new(self.controller(), request, &ranges);
        let Some(result) = prepared.read_at_once(self.controller()) else {
            return Ok(false);
        };
        let reply = self.reply(packet, parsed, PACKET_SIZE, &ranges);
        if let Some(message) = reply.message(NtStatus::SUCCESS, &result) {
            self.channel.outbox.stage(message)?;
        }
        Ok(true)
    }

    fn reply(
        &self,
        packet: &ring::Packet<'_>,
        parsed: Packet,
        size: usize,
        ranges: &[GpaRange],
    ) -> Reply {
        Reply {
            transaction_id: packet.transaction_id,
            completion_requested: packet.completion_requested,
            size,
            packet: parsed,
            counted: self.channel.load.begin(weight(ranges)),
        }
    }

    fn handle_batch(&mut self) -> Result<(), ChannelError> {
        let batch = std::mem::take(&mut self.batch);
        let alone = batch.len() == self.handled + 1;
        let packets = batch.packets().skip(self.handled);
        let mut result = Ok(());
        for packet in packets {
            result = self.handle(&packet, alone);
            if result.is_err() {
                break;
            }
        }
        self.handled = batch.len();
        self.batch = batch;
        if let Some(transfers) = &mut self.transfers {
            transfers.submit();
        }
        result
    }

    fn handle(&mut self, packet: &ring::Packet<'_>, alone: bool) -> Result<(), ChannelError> {
        // Guests complete what asks for no completion, too.
        if packet.packet_type == PacketType::COMPLETION {
            return Ok(());
        }
        let size = if packet.data.len() < PACKET_SIZE {
            OLD_PACKET_SIZE
        } else {
            PACKET_SIZE
        };
        let parsed = Packet::parse(packet.data);
        let known = [PacketType::IN_BAND, PacketType::GPA_DIRECT].contains(&packet.packet_type);
        let Some(parsed) = parsed.filter(|_| known) else {
            return self.refuse(packet, size);
        };
        match parsed.operation {
            operation::EXECUTE_SRB => self.execute(packet, parsed, size, alone),
            operation::RESET_LUN | operation::RESET_ADAPTER | operation::RESET_BUS => {
                let done = self.reset(&parsed);
                let status = done.err().unwrap_or(NtStatus::SUCCESS);
                self.answer(packet, size, status, parsed)
            }
            _ => self.negotiate(packet, parsed, size),
        }
    }

    fn controller(&self) -> &Arc<Controller> {
        &self.channel.controller
    }

    /// Answers a packet that is none.
    fn refuse(&self, packet: &ring::Packet<'_>, size: usize) -> Result<(), ChannelError> {
        if self.controller().counters().malformed() {
            tracing::debug!("a malformed storage packet of {} bytes", packet.data.len());
        }
        let status = NtStatus::INVALID_PARAMETER;
        self.answer(packet, size, status, Packet::new(operation::COMPLETE_IO))
    }

    fn reset(&self, packet: &Packet) -> Result<(), NtStatus> {
        if !self.controller().session().is_ready() {
            return Err(NtStatus::INVALID_DEVICE_STATE);
        }
        let target = self.controller().target();
        if packet.operation != operation::RESET_LUN {
            target.reset_all();
            return Ok(());
        }
        let request: ScsiRequest = packet.payload_as().ok_or(NtStatus::INVALID_PARAMETER)?;
        if request.path_id == 0 && request.target_id == 0 {
            target.reset(request.lun);
        }
        Ok(())
    }

    fn negotiate(
        &self,
        packet: &ring::Packet<'_>,
        parsed: Packet,
        size: usize,
    ) -> Result<(), ChannelError> {
        let known = operation::BEGIN_INITIALIZATION..=operation::CREATE_SUB_CHANNELS;
        if !known.contains(&parsed.operation) {
            return self.answer(packet, size, NtStatus::INVALID_DEVICE_REQUEST, parsed);
        }
        let result = self.controller().session().handle(&parsed);
        match result {
            Ok(Done::Plain) => self.answer(packet, size, NtStatus::SUCCESS, parsed),
            Ok(Done::Properties(properties)) => {
                let answer = parsed.with_payload(&properties);
                self.answer(packet, size, NtStatus::SUCCESS, answer)
            }
            Ok(Done::Subchannels(count)) => {
                self.answer(packet, size, NtStatus::SUCCESS, parsed)?;
                // The guest takes no offer before this answer.
                self.channel.outbox.flush()?;
                self.controller().offer_subchannels(&self.bus, count);
                Ok(())
            }
            Err(status) => self.answer(packet, size, status, parsed),
        }
    }

    fn answer(
        &self,
        to: &ring::Packet<'_>,
        size: usize,
        status: NtStatus,
        packet: Packet,
    ) -> Result<(), ChannelError> {
        if !to.completion_requested {
            return Ok(());
        }
        let packet = completion(packet, status);
        let message = Message::completion(to.transaction_id, packet, size, None);
        self.channel.outbox.stage(message)
    }

    fn execute(
        &mut self,
        packet: &ring::Packet<'_>,
        parsed: Packet,
        size: usize,
        alone: bool,
    ) -> Result<(), ChannelError> {
        if !self.controller().session().is_ready() {
            return self.answer(packet, size, NtStatus::INVALID_DEVICE_STATE, parsed);
        }
        let ranges = match packet.packet_type {
            PacketType::GPA_DIRECT => packet.gpa_direct(),
            _ => Ok(Vec::new()),
        };
        let request = parsed.payload_as::<ScsiRequest>();
        let (Ok(ranges), Some(request)) = (ranges, request) else {
            return self.refuse(packet, size);
        };
        if packet.data.len() < OLD_PACKET_SIZE {
            return self.refuse(packet, size);
        }
        let alone = alone && self.channel.load.outstanding() == 0;
        let reply = Reply {
            transaction_id: packet.transaction_id,
            completion_requested: packet.completion_requested,
            size,
            packet: parsed,
            counted: self.channel.load.begin(weight(&ranges)),
        };
        let prepared = Prepared::new(self.controller(), request, &ranges);
        self.carry_out(prepared, reply, alone)
    }

    /// Finds the best way for a request. `alone`: there is no other.
    fn carry_out(
        &mut self,
        prepared: Prepared,
        reply: Reply,
        alone: bool,
    ) -> Result<(), ChannelError> {
        // Handing a request over takes longer than a short one itself. But
        // where others are on their way already, this thread must go on.
        let limit = if prepared.is_for_device() {
            MAX_INLINE_WRITE
        } else {
            MAX_INLINE_BYTES
        };
        let inline = alone && is_short(prepared.request(), limit);
        // The kernel does not hand a read over whose data it has in its cache.
        // Writes it does, on most file systems.
        let (prepared, reply) = match &mut self.transfers {
            Some(transfers) if !(inline && prepared.is_for_device()) => {
                match transfers.start(&self.channel.controller, prepared, reply) {
                    Ok(()) => return Ok(()),
                    Err(back) => back,
                }
            }
            _ => (prepared, reply),
        };
        if inline {
            let result = prepared.execute(self.controller());
            return match reply.message(NtStatus::SUCCESS, &result) {
                Some(message) => self.channel.outbox.stage(message),
                None => Ok(()),
            };
        }
        let channel = self.channel.clone();
        self.channel.pool.submit(Box::new(move || {
            let result = prepared.execute(&channel.controller);
            channel.send(reply, &result);
        }));
        Ok(())
    }
}

impl Channel {
    /// Answers a transfer that is done. What takes time is done by others.
    pub(super) fn conclude(
        self: &Arc<Self>,
        transfer: super::request::Transfer,
        reply: Reply,
        moved: io::Result<()>,
    ) -> Result<(), ChannelError> {
        if transfer.is_slow_to_conclude(&moved) {
            let channel = self.clone();
            self.pool.submit(Box::new(move || {
                let result = transfer.conclude(&channel.controller, moved);
                channel.send(reply, &result);
            }));
            return Ok(());
        }
        let result = transfer.conclude(&self.controller, moved);
        match reply.message(NtStatus::SUCCESS, &result) {
            Some(message) => self.outbox.stage(message),
            None => Ok(()),
        }
    }
}

/// Pages of a request, each range counted like some as well.
fn weight(ranges: &[GpaRange]) -> usize {
    ranges.iter().map(|range| range.pfns.len() + 4).sum()
}

/// Takes no longer than the host's cache needs, as a rule, for up to `limit` bytes.
fn is_short(request: &ScsiRequest, limit: u32) -> bool {
    let slow = matches!(
        request.payload[0],
        op::SYNCHRONIZE_CACHE_10
            | op::SYNCHRONIZE_CACHE_16
            | op::UNMAP
            | op::WRITE_SAME_10
            | op::WRITE_SAME_16
            | op::START_STOP_UNIT
            | op::MODE_SELECT_6
            | op::MODE_SELECT_10
            | op::WRITE_VERIFY_10
            | op::WRITE_VERIFY_12
            | op::WRITE_VERIFY_16
    );
    let force = matches!(
        request.payload[0],
        op::WRITE_10 | op::WRITE_12 | op::WRITE_16
    ) && request.payload[1] & 8 != 0;
    !slow && !force && request.data_transfer_length <= limit
}

/// A read of not too much.
fn is_short_read(request: &ScsiRequest) -> bool {
    let read = matches!(
        request.payload[0],
        op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16
    );
    read && request.data_transfer_length <= MAX_INLINE_BYTES
}

/// Starts a channel's threads: the work, and the thread to wait for.
///
/// # Errors
///
/// What the host refuses.
pub(super) fn start(
    controller: &Arc<Controller>,
    channel: OpenChannel,
    name: String,
) -> io::Result<(Arc<Channel>, std::thread::JoinHandle<()>)> {
    let transfers = Transfers::new(controller.io())?;
    let doorbell = Arc::new(Doorbell::new()?);
    let completions = transfers.as_ref().map(Transfers::completions).transpose()?;
    let shared = Arc::new(Channel {
        controller: controller.clone(),
        outbox: Outbox::new(channel.writer, doorbell.clone()),
        pool: Box::new(ThreadPool::new(
            name.clone(),
            controller.threads_per_channel(),
        )),
        load: Load::new(doorbell.clone()),
        doorbell,
    });
    let worker = Arc::new(Mutex::new(Worker {
        channel: shared.clone(),
        reader: channel.reader,
        batch: Batch::new(),
        handled: 0,
        transfers,
        bus: channel.bus,
    }));
    let own = shared.clone();
    let thread = std::thread::Builder::new().name(name);
    let thread = thread.spawn(move || run(&worker, &own, completions.as_ref()))?;
    Ok((shared, thread))
}
