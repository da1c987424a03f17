//! A channel's requests in the hands of the host's kernel.

use super::channel::{Channel, Reply};
use super::controller::Controller;
use super::request::{Prepared, Transfer};
use super::uring::Io;
use super::uring::engine::{Engine, Subject};
use super::uring::ring::{CAPACITY, Ring};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use vmbus::bus::ChannelError;

struct Task {
    transfer: Transfer,
    reply: Reply,
}

impl Subject for Task {
    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.transfer.file()
    }
}

/// Transfers of a channel.
pub(super) struct Transfers {
    engine: Engine<Ring, Task>,
}

impl Transfers {
    /// As the configuration says: none where threads are to be used, or where
    /// the host refuses and that is permitted.
    ///
    /// # Errors
    ///
    /// What the host says, where threads are not permitted.
    pub(super) fn new(io: Io) -> io::Result<Option<Self>> {
        if io == Io::Threads {
            return Ok(None);
        }
        match Ring::new() {
            Ok(ring) => Ok(Some(Self {
                engine: Engine::new(ring, CAPACITY as usize),
            })),
            Err(error) if io == Io::Auto => {
                tracing::info!("storage uses threads, as io_uring is refused: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Begins a request, if it is one for the kernel and there is room;
    /// otherwise it comes back.
    #[allow(
        clippy::result_large_err,
        reason = "it comes back as it went in, to be carried out in another way"
    )]
    pub(super) fn start(
        &mut self,
        controller: &Controller,
        prepared: Prepared,
        reply: Reply,
    ) -> Result<(), (Prepared, Reply)> {
        if !self.engine.has_room() {
            return Err((prepared, reply));
        }
        let mut transfer = match prepared.into_transfer(controller) {
            Ok(transfer) => transfer,
            Err(prepared) => return Err((prepared, reply)),
        };
        let Some(cursor) = transfer.take_cursor() else {
            return Err((transfer.into_prepared(), reply));
        };
        // SAFETY: the cursor's memory is the buffer's that the transfer has,
        // and a guest's memory may be read and written at any time.
        let started = unsafe { self.engine.start(cursor, Task { transfer, reply }) };
        started.map_err(|task| (task.transfer.into_prepared(), task.reply))
    }

    /// Hands what has begun over to the kernel.
    pub(super) fn submit(&mut self) {
        if let Err(error) = self.engine.submit() {
            tracing::error!("io_uring takes nothing: {error}");
        }
    }

    /// Some could not be handed over, and nobody tells when to try again.
    pub(super) fn is_stuck(&self) -> bool {
        self.engine.has_unsubmitted()
    }

    /// Readable when something is done.
    ///
    /// # Errors
    ///
    /// Where the process has no descriptor left.
    pub(super) fn completions(&self) -> io::Result<OwnedFd> {
        self.engine.readiness().try_clone_to_owned()
    }

    /// Answers what is done; whether that was anything.
    pub(super) fn conclude(&mut self, channel: &Arc<Channel>) -> Result<bool, ChannelError> {
        let mut any = false;
        while let Some((task, result)) = self.engine.take() {
            any = true;
            channel.conclude(task.transfer, task.reply, result)?;
        }
        // Those that were only done in part go on.
        if self.engine.has_unsubmitted() {
            self.submit();
        }
        Ok(any)
    }

    /// Waits for all that is on its way.
    pub(super) fn drain(&mut self, channel: &Arc<Channel>) {
        while !self.engine.is_empty() {
            // The guest is not there any more to get the answers.
            let _ = self.conclude(channel);
            if !self.engine.is_empty() && self.engine.wait().is_err() {
                return;
            }
        }
    }
}
