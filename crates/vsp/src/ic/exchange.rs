//! Requests to a guest from any thread of the host.

use super::session::{Call, Encode, MAX_QUEUE};
use super::wire::Versions;
use super::{IcError, Reply};
use std::collections::VecDeque;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest time that a request may take.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// The channel's thread ends requests; this is for when it is late itself.
const GRACE: Duration = Duration::from_secs(2);

/// A request on its way to the channel's thread, and where its result goes.
pub(super) type Submitted = (Call, Option<SyncSender<Result<Reply, IcError>>>);

#[derive(Default)]
struct Inbox {
    /// The guest has the channel open, and a thread serves it.
    open: bool,
    closing: bool,
    signaled: bool,
    kicked: bool,
    calls: VecDeque<Submitted>,
    tickets: u64,
}

/// What a channel's thread wakes up for.
pub(super) struct Work {
    pub(super) closing: bool,
    pub(super) signaled: bool,
    pub(super) calls: VecDeque<Submitted>,
}

/// The way to a component's channel, whether it is open or not.
#[derive(Default)]
pub(super) struct Exchange {
    inbox: Mutex<Inbox>,
    wake: Condvar,
}

impl Exchange {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request and waits for its answer.
    pub(super) fn call(
        &self,
        tag: u8,
        timeout: Duration,
        encode: impl FnOnce(Versions) -> Result<Vec<u8>, IcError> + Send + 'static,
    ) -> Result<Reply, IcError> {
        let timeout = timeout.min(MAX_TIMEOUT);
        let (sender, receiver) = sync_channel(1);
        self.submit(tag, timeout, Box::new(encode), Some(sender))?;
        match receiver.recv_timeout(timeout + GRACE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(IcError::Timeout),
            Err(RecvTimeoutError::Disconnected) => Err(IcError::Closed),
        }
    }

    /// Sends a request and does not wait.
    pub(super) fn post(
        &self,
        tag: u8,
        timeout: Duration,
        encode: impl FnOnce(Versions) -> Result<Vec<u8>, IcError> + Send + 'static,
    ) -> Result<(), IcError> {
        self.submit(tag, timeout.min(MAX_TIMEOUT), Box::new(encode), None)
    }

    fn submit(
        &self,
        tag: u8,
        timeout: Duration,
        encode: Encode,
        sender: Option<SyncSender<Result<Reply, IcError>>>,
    ) -> Result<(), IcError> {
        let deadline = Instant::now() + timeout;
        let mut inbox = self.inbox();
        if !inbox.open {
            return Err(IcError::NotConnected);
        }
        if inbox.calls.len() >= MAX_QUEUE {
            return Err(IcError::Busy);
        }
        inbox.tickets += 1;
        let call = Call {
            ticket: inbox.tickets,
            tag,
            deadline,
            encode,
        };
        inbox.calls.push_back((call, sender));
        self.wake.notify_one();
        Ok(())
    }

    /// The guest has the channel open.
    pub(super) fn is_open(&self) -> bool {
        self.inbox().open
    }

    /// Makes the channel's thread look at its component's timer again.
    pub(super) fn kick(&self) {
        self.inbox().kicked = true;
        self.wake.notify_one();
    }

    /// The guest has signalled.
    pub(super) fn signal(&self) {
        self.inbox().signaled = true;
        self.wake.notify_one();
    }

    /// A thread begins to serve the channel. It should look at once what the
    /// guest has sent.
    pub(super) fn begin(self: &Arc<Self>) -> Serving {
        let mut inbox = self.inbox();
        (inbox.open, inbox.closing, inbox.signaled) = (true, false, true);
        Serving(self.clone())
    }

    /// The guest closes the channel: the thread shall end.
    pub(super) fn close(&self) {
        self.inbox().closing = true;
        self.wake.notify_one();
    }
}

/// A thread that serves a channel. When it ends, however it does, requests
/// end too.
pub(super) struct Serving(Arc<Exchange>);

impl Serving {
    /// Waits for work.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Work {
        let mut inbox = self.0.inbox();
        loop {
            let work = inbox.closing || inbox.signaled || inbox.kicked || !inbox.calls.is_empty();
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if work || left.is_some_and(|left| left.is_zero()) {
                inbox.kicked = false;
                return Work {
                    closing: inbox.closing,
                    signaled: std::mem::take(&mut inbox.signaled),
                    calls: std::mem::take(&mut inbox.calls),
                };
            }
            inbox = match left {
                None => self
                    .0
                    .wake
                    .wait(inbox)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.0.wake.wait_timeout(inbox, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Serving {
    /// The next wait is to end at once.
    pub(super) fn look_again(&self) {
        self.0.signal();
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox();
        inbox.open = false;
        // Their callers find that nobody will answer.
        let calls = std::mem::take(&mut inbox.calls);
        drop(inbox);
        drop(calls);
    }
}
