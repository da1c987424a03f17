//! Transfers on their way, and what must live until they are done.

use super::cursor::{Cursor, Step};
use super::ring::Queue;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// What a transfer works on: lives until the transfer is done.
pub(crate) trait Subject {
    /// The file: the same at each call.
    fn file(&self) -> Option<BorrowedFd<'_>>;
}

struct Flight<S> {
    cursor: Cursor,
    file: RawFd,
    subject: S,
}

/// Transfers on their way through a queue.
///
/// What the kernel still works on is never given back or freed: whoever drops
/// an engine waits, and if no wait is possible, it stays allocated for good.
pub(crate) struct Engine<Q: Queue, S: Subject> {
    queue: Q,
    flights: Vec<Option<Flight<S>>>,
    free: Vec<usize>,
    capacity: usize,
    /// Requests that the queue had no room for.
    again: Vec<usize>,
}

impl<Q: Queue, S: Subject> Engine<Q, S> {
    /// At most `capacity` transfers at once.
    pub(crate) fn new(queue: Q, capacity: usize) -> Self {
        Self {
            queue,
            flights: Vec::new(),
            free: Vec::new(),
            capacity,
            again: Vec::new(),
        }
    }

    /// Transfers that are on their way.
    pub(crate) fn len(&self) -> usize {
        self.flights.len() - self.free.len()
    }

    /// Nothing is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Another transfer can begin.
    pub(crate) fn has_room(&self) -> bool {
        self.len() < self.capacity
    }

    /// The queue's descriptor to wait for.
    pub(crate) fn readiness(&self) -> BorrowedFd<'_> {
        self.queue.readiness()
    }

    /// Begins a transfer between `subject`'s file and the memory that
    /// `cursor` names; [`Engine::submit`] hands it over. Where there is no
    /// room, or no file, the subject comes back.
    ///
    /// # Safety
    ///
    /// The memory stays there for as long as `subject` exists, and may be
    /// read, and when it is a transfer from the file, be written, at any
    /// time.
    pub(crate) unsafe fn start(&mut self, cursor: Cursor, subject: S) -> Result<(), S> {
        let file = subject.file().map(|file| file.as_raw_fd());
        let Some(file) = file.filter(|_| self.has_room()) else {
            return Err(subject);
        };
        let flight = Some(Flight {
            cursor,
            file,
            subject,
        });
        let slot = match self.free.pop() {
            Some(slot) => {
                self.flights[slot] = flight;
                slot
            }
            None => {
                self.flights.push(flight);
                self.flights.len() - 1
            }
        };
        self.push(slot);
        Ok(())
    }

    /// Puts what a transfer needs next into the queue.
    fn push(&mut self, slot: usize) {
        let Some(Some(flight)) = self.flights.get(slot) else {
            return;
        };
        let Some(next) = flight.cursor.next() else {
            return;
        };
        let direction = flight.cursor.direction();
        // SAFETY: the vectors are on the heap and belong to the cursor, which
        // is in `flights` and is neither changed nor freed before this has
        // come back: `take` and `drop` see to that. The subject is there for
        // as long, with it its file, and the memory, as `start`'s caller
        // promises.
        let pushed = unsafe {
            self.queue.push(
                slot as u64,
                direction,
                flight.file,
                next.offset,
                next.vectors,
            )
        };
        if !pushed {
            self.again.push(slot);
        }
    }

    /// Hands over what has begun; what the kernel does not take now stays,
    /// see [`Engine::has_unsubmitted`].
    ///
    /// # Errors
    ///
    /// What the kernel says, if it will not take anything.
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        for slot in std::mem::take(&mut self.again) {
            self.push(slot);
        }
        self.queue.submit()
    }

    /// Something waits for [`Engine::submit`].
    pub(crate) fn has_unsubmitted(&self) -> bool {
        self.queue.staged() > 0 || !self.again.is_empty()
    }

    /// A transfer that is done. Others are carried on with meanwhile.
    pub(crate) fn take(&mut self) -> Option<(S, io::Result<()>)> {
        loop {
            let (token, result) = self.queue.next()?;
            let slot = usize::try_from(token).unwrap_or(usize::MAX);
            let Some(flight) = self.flights.get_mut(slot).and_then(Option::as_mut) else {
                continue;
            };
            let result = match flight.cursor.advance(result) {
                Step::More => {
                    self.push(slot);
                    continue;
                }
                Step::Done => Ok(()),
                Step::Failed(error) => Err(error),
            };
            let flight = self.flights[slot].take()?;
            self.free.push(slot);
            return Some((flight.subject, result));
        }
    }

    /// Waits for something to take.
    ///
    /// # Errors
    ///
    /// What the kernel says, if no wait is possible.
    pub(crate) fn wait(&mut self) -> io::Result<()> {
        for slot in std::mem::take(&mut self.again) {
            self.push(slot);
        }
        self.queue.wait()
    }
}

impl<Q: Queue, S: Subject> Drop for Engine<Q, S> {
    fn drop(&mut self) {
        while !self.is_empty() {
            if let Err(error) = self.wait() {
                tracing::error!("the kernel keeps {} transfers: {error}", self.len());
                std::mem::take(&mut self.flights)
                    .into_iter()
                    .for_each(std::mem::forget);
                return;
            }
            while self.take().is_some() {}
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
