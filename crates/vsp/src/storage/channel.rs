//! A channel at work: one thread takes packets from the ring and answers what
//! is quick; others carry out what may block.

use super::controller::Controller;
use super::executor::{Executor, ThreadPool};
use super::protocol::{NtStatus, OLD_PACKET_SIZE, PACKET_SIZE, Packet, ScsiRequest, operation};
use super::request;
use super::scsi::op;
use super::session::Done;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmbus::bus::{BusHandle, ChannelError, ChannelReader, ChannelWriter, OpenChannel};
use vmbus::protocol::{GpaRange, PacketType};
use vmbus::ring::{self, Batch, PacketOut};
use zerocopy::IntoBytes;

/// Requests of a channel that are being carried out. A guest that has more
/// of them waits with the rest in its ring.
const MAX_OUTSTANDING: usize = 1024;
/// Bytes that the channel's own thread moves, when it has nothing else to do.
const MAX_INLINE_BYTES: u32 = 64 << 10;

/// A channel, for all threads that work for it.
pub(super) struct Channel {
    controller: Arc<Controller>,
    writer: Mutex<ChannelWriter>,
    pool: Box<dyn Executor>,
    outstanding: Mutex<usize>,
    /// A request was completed.
    completed: Condvar,
    /// ENUMERATE_BUS is on its way.
    enumerating: AtomicBool,
}

/// What a request needs after its packet is gone.
struct Work {
    transaction_id: u64,
    completion_requested: bool,
    /// Bytes that the guest's packet had, and the answer shall have.
    size: usize,
    packet: Packet,
    request: ScsiRequest,
    ranges: Vec<GpaRange>,
}

impl Channel {
    pub(super) fn new(
        controller: Arc<Controller>,
        writer: ChannelWriter,
        name: String,
    ) -> Arc<Self> {
        let threads = controller.threads_per_channel();
        Arc::new(Self {
            controller,
            writer: Mutex::new(writer),
            pool: Box::new(ThreadPool::new(name, threads)),
            outstanding: Mutex::new(0),
            completed: Condvar::new(),
            enumerating: AtomicBool::new(false),
        })
    }

    /// Works until the channel is closed or broken, and all requests that
    /// came before are done.
    pub(super) fn run(self: &Arc<Self>, mut reader: ChannelReader, bus: &BusHandle) {
        let error = self.serve(&mut reader, bus);
        self.pool.finish();
        match error {
            ChannelError::Closed => {}
            error => tracing::warn!("a storage channel cannot go on: {error}"),
        }
    }

    fn serve(self: &Arc<Self>, reader: &mut ChannelReader, bus: &BusHandle) -> ChannelError {
        let mut batch = Batch::new();
        loop {
            if let Err(error) = reader.read(&mut batch) {
                return error;
            }
            let alone = batch.len() == 1;
            for packet in batch.packets() {
                if let Err(error) = self.handle(&packet, alone, bus) {
                    return error;
                }
            }
        }
    }

    fn handle(
        self: &Arc<Self>,
        packet: &ring::Packet<'_>,
        alone: bool,
        bus: &BusHandle,
    ) -> Result<(), ChannelError> {
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
                self.answer(
                    packet,
                    size,
                    done.err().unwrap_or(NtStatus::SUCCESS),
                    parsed,
                )
            }
            _ => self.negotiate(packet, parsed, size, bus),
        }
    }

    /// Answers a packet that is none.
    fn refuse(&self, packet: &ring::Packet<'_>, size: usize) -> Result<(), ChannelError> {
        if self.controller.counters().malformed() {
            tracing::debug!("a malformed storage packet of {} bytes", packet.data.len());
        }
        let status = NtStatus::INVALID_PARAMETER;
        self.answer(packet, size, status, Packet::new(operation::COMPLETE_IO))
    }

    fn reset(&self, packet: &Packet) -> Result<(), NtStatus> {
        if !self.controller.session().is_ready() {
            return Err(NtStatus::INVALID_DEVICE_STATE);
        }
        let target = self.controller.target();
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
        bus: &BusHandle,
    ) -> Result<(), ChannelError> {
        let known = operation::BEGIN_INITIALIZATION..=operation::CREATE_SUB_CHANNELS;
        if !known.contains(&parsed.operation) {
            return self.answer(packet, size, NtStatus::INVALID_DEVICE_REQUEST, parsed);
        }
        let result = self.controller.session().handle(&parsed);
        match result {
            Ok(Done::Plain) => self.answer(packet, size, NtStatus::SUCCESS, parsed),
            Ok(Done::Properties(properties)) => {
                let answer = parsed.with_payload(&properties);
                self.answer(packet, size, NtStatus::SUCCESS, answer)
            }
            Ok(Done::Subchannels(count)) => {
                self.answer(packet, size, NtStatus::SUCCESS, parsed)?;
                self.controller.offer_subchannels(bus, count);
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
        if to.completion_requested {
            self.complete(to.transaction_id, size, status, packet)
        } else {
            Ok(())
        }
    }

    /// Sends a completion, waiting for room in the ring.
    fn complete(
        &self,
        transaction_id: u64,
        size: usize,
        status: NtStatus,
        packet: Packet,
    ) -> Result<(), ChannelError> {
        let packet = Packet {
            operation: operation::COMPLETE_IO,
            flags: 0,
            status: status.0,
            ..packet
        };
        let bytes = packet.as_bytes();
        let data = [&bytes[..size.min(bytes.len())]];
        self.writer
            .lock()
            .send(&PacketOut::completion(transaction_id, &data))
    }

    fn execute(
        self: &Arc<Self>,
        packet: &ring::Packet<'_>,
        parsed: Packet,
        size: usize,
        alone: bool,
    ) -> Result<(), ChannelError> {
        if !self.controller.session().is_ready() {
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
        let work = Work {
            transaction_id: packet.transaction_id,
            completion_requested: packet.completion_requested,
            size,
            packet: parsed,
            request,
            ranges,
        };
        // Handing a request over takes longer than a short one itself. But
        // where others are on their way already, this thread must go on.
        let before = self.begin();
        if alone && before == 0 && is_short(&request) {
            self.carry_out(&work);
        } else {
            let channel = self.clone();
            self.pool.submit(Box::new(move || channel.carry_out(&work)));
        }
        Ok(())
    }

    /// Counts a request, waiting while there are too many; how many there
    /// were.
    fn begin(&self) -> usize {
        let mut outstanding = self.outstanding.lock();
        while *outstanding >= MAX_OUTSTANDING {
            self.completed.wait(&mut outstanding);
        }
        *outstanding += 1;
        *outstanding - 1
    }

    fn carry_out(&self, work: &Work) {
        let _counted = Outstanding(self);
        let result = request::execute(&self.controller, &work.request, &work.ranges);
        if work.completion_requested {
            let packet = work.packet.with_payload(&result);
            // The channel's own thread finds out by itself that it is closed.
            let _ = self.complete(work.transaction_id, work.size, NtStatus::SUCCESS, packet);
        }
    }

    /// Tells the guest, soon, that units have come or gone.
    pub(super) fn enumerate(self: &Arc<Self>) {
        if self.enumerating.swap(true, Ordering::AcqRel) {
            return;
        }
        let channel = self.clone();
        self.pool.submit(Box::new(move || {
            channel.enumerating.store(false, Ordering::Release);
            let packet = Packet::new(operation::ENUMERATE_BUS);
            let data = [packet.as_bytes()];
            // A channel that is closed has no guest to be told.
            let _ = channel.writer.lock().send(&PacketOut::in_band(0, &data));
        }));
    }
}

/// A request that is counted as long as this exists.
struct Outstanding<'a>(&'a Channel);

impl Drop for Outstanding<'_> {
    fn drop(&mut self) {
        *self.0.outstanding.lock() -= 1;
        self.0.completed.notify_one();
    }
}

/// Takes no longer than the host's cache needs, as a rule.
fn is_short(request: &ScsiRequest) -> bool {
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
    !slow && !force && request.data_transfer_length <= MAX_INLINE_BYTES
}

/// Starts a channel's threads: the work, and the thread to wait for.
pub(super) fn start(
    controller: &Arc<Controller>,
    channel: OpenChannel,
    name: String,
) -> std::io::Result<(Arc<Channel>, std::thread::JoinHandle<()>)> {
    let OpenChannel {
        reader,
        writer,
        bus,
        ..
    } = channel;
    let channel = Channel::new(controller.clone(), writer, name.clone());
    let thread = std::thread::Builder::new().name(name);
    let own = channel.clone();
    let thread = thread.spawn(move || own.run(reader, &bus))?;
    Ok((channel, thread))
}
