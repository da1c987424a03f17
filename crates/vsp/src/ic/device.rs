//! A component as a device on the bus: a thread for each open channel that
//! moves messages between the ring and the session.

use super::exchange::{Exchange, Serving, Work};
use super::session::{Output, Service, Session};
use super::{IcError, Reply};
use std::collections::HashMap;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmbus::bus::{ChannelError, ChannelReader, ChannelWriter, OpenChannel, Vsp};
use vmbus::protocol::{OfferFlags, PacketType, PipeType, UserDefined};
use vmbus::ring::{Batch, PacketOut, RingError, pipe_data, pipe_header};
use vmbus::server::OfferParams;
use zerocopy::IntoBytes;

/// How often a full ring is looked at.
const ROOM_POLL: Duration = Duration::from_millis(200);
/// Batches that are taken out of the ring before anything else gets its turn.
const MAX_BATCHES: usize = 16;

/// A component for [`vmbus::bus::Bus::offer`].
pub(super) struct IcDevice<S: Service> {
    service: Arc<Mutex<S>>,
    exchange: Arc<Exchange>,
    params: OfferParams,
    name: &'static str,
    thread: Option<JoinHandle<()>>,
}

impl<S: Service> IcDevice<S> {
    /// A component that its handles reach by `exchange`.
    pub(super) fn new(service: S, exchange: Arc<Exchange>) -> Self {
        let profile = service.profile();
        let mut params = OfferParams::new(profile.interface_id, profile.instance_id);
        params.flags = OfferFlags::ENUMERATE_DEVICE_INTERFACE | OfferFlags::NAMED_PIPE_MODE;
        params.user_defined = UserDefined::pipe(PipeType::MESSAGE);
        let name = profile.name;
        Self {
            service: Arc::new(Mutex::new(service)),
            exchange,
            params,
            name,
            thread: None,
        }
    }

    fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.exchange.close();
            if thread.join().is_err() {
                tracing::error!(component = self.name, "the component's thread has panicked");
            }
        }
    }
}

impl<S: Service> Vsp for IcDevice<S> {
    fn offer(&self) -> OfferParams {
        self.params.clone()
    }

    fn open(&mut self, channel: OpenChannel) -> Result<(), Box<dyn std::error::Error>> {
        self.stop();
        let OpenChannel { reader, writer, .. } = channel;
        let service = self.service.clone();
        let exchange = self.exchange.clone();
        let waker = self.exchange.clone();
        reader.set_waker(Some(Arc::new(move || waker.signal())));
        let serving = exchange.begin();
        let name = format!("ic-{}", self.name);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let mut service = service.lock().unwrap_or_else(PoisonError::into_inner);
            serve(&mut *service, &serving, reader, writer);
        })?;
        self.thread = Some(thread);
        Ok(())
    }

    fn close(&mut self) {
        self.stop();
    }
}

impl<S: Service> Drop for IcDevice<S> {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve<S: Service>(
    service: &mut S,
    serving: &Serving,
    reader: ChannelReader,
    writer: ChannelWriter,
) {
    let (now, mut out) = (Instant::now(), Vec::new());
    let session = Session::start(service, now, &mut out);
    let line = Line {
        reader,
        writer,
        batch: Batch::new(),
        unsent: None,
    };
    Server {
        session,
        line,
        callers: HashMap::new(),
    }
    .run(serving, out);
}

/// The two sides of the channel.
struct Line {
    reader: ChannelReader,
    writer: ChannelWriter,
    batch: Batch,
    /// A message that waits for room in the ring.
    unsent: Option<(u8, Vec<u8>)>,
}

impl Line {
    /// Sends a message; false when there is no room now.
    fn send(&mut self, bytes: &[u8]) -> Result<bool, ChannelError> {
        let header = pipe_header(bytes.len() as u32);
        self.writer
            .try_send(&PacketOut::in_band(0, &[header.as_bytes(), bytes]))
    }
}

type Caller = SyncSender<Result<Reply, IcError>>;

struct Server<'a, S: Service> {
    session: Session<'a, S>,
    line: Line,
    callers: HashMap<u64, Caller>,
}

impl<S: Service> Server<'_, S> {
    fn run(mut self, serving: &Serving, mut out: Vec<Output>) {
        self.flush(&mut out);
        loop {
            let retry = self
                .line
                .unsent
                .as_ref()
                .map(|_| Instant::now() + ROOM_POLL);
            let deadline = [self.session.deadline(), retry].into_iter().flatten().min();
            let Work {
                closing,
                signaled,
                calls,
            } = serving.wait(deadline);
            let now = Instant::now();
            for (call, caller) in calls {
                self.callers
                    .extend(caller.map(|caller| (call.ticket, caller)));
                self.session.submit(call, now, &mut out);
            }
            if closing {
                break;
            }
            if signaled {
                self.receive(serving, now, &mut out);
            }
            self.session.tick(now, &mut out);
            self.flush(&mut out);
        }
        self.end(out);
    }

    fn end(self, mut out: Vec<Output>) {
        let Self {
            session,
            mut callers,
            ..
        } = self;
        session.end(Instant::now(), &mut out);
        for output in out {
            if let Output::Done { ticket, result, .. } = output
                && let Some(caller) = callers.remove(&ticket)
            {
                // A caller that is gone misses nothing: the channel is, too.
                let _ = caller.send(result);
            }
        }
    }

    /// Takes what the guest has sent. All of it is taken out before anything
    /// is sent, so that the guest finds an empty ring and signals: the file
    /// copy daemon relies on nothing coming before it has asked for signals.
    fn receive(&mut self, serving: &Serving, now: Instant, out: &mut Vec<Output>) {
        for _ in 0..MAX_BATCHES {
            if self.session.has_failed() {
                return;
            }
            let Line { reader, batch, .. } = &mut self.line;
            match reader.try_read(batch) {
                Ok(()) if batch.is_empty() => return,
                Ok(()) => {}
                Err(ChannelError::Closed) => return,
                Err(error) => return self.session.fail(now, &error.to_string(), out),
            }
            for packet in batch.packets() {
                let in_band = packet.packet_type == PacketType::IN_BAND;
                let data = pipe_data(packet.data).ok().filter(|_| in_band);
                let whole = data.and_then(|(data, partial)| (!partial).then_some(data));
                self.session.receive(whole, now, out);
            }
        }
        // There may be more, but others have waited long enough.
        serving.look_again();
    }

    /// Carries out what the session wants.
    fn flush(&mut self, out: &mut Vec<Output>) {
        let now = Instant::now();
        for output in std::mem::take(out) {
            match output {
                // What waited is not wanted any more, or this would not come.
                Output::Send { id, bytes } => self.line.unsent = Some((id, bytes)),
                Output::Done {
                    ticket,
                    tag,
                    result,
                } => {
                    let caller = self.callers.remove(&ticket);
                    if caller.is_some_and(|caller| caller.send(result).is_err()) {
                        self.session.service().orphaned(tag, now);
                    }
                }
            }
        }
        let Some((id, bytes)) = self.line.unsent.take() else {
            return;
        };
        if !self.session.is_pending(id) {
            return;
        }
        match self.line.send(&bytes) {
            Ok(true) | Err(ChannelError::Closed) => {}
            Ok(false) => self.line.unsent = Some((id, bytes)),
            Err(ChannelError::Ring(RingError::Length(_))) => {
                self.session.unsendable(id, now, out);
                self.flush(out);
            }
            Err(error) => {
                self.session.fail(now, &error.to_string(), out);
                self.flush(out);
            }
        }
    }
}
