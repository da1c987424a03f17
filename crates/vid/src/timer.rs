//! One thread that kicks virtual processors when their deadline comes.
//!
//! A processor that is halted waits for its own deadline instead
//! ([`Timers::deadline`]), so that it is woken by one thread switch, not two.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Slot {
    deadline: Option<Instant>,
    /// The processor's own thread waits for the deadline.
    waits_itself: bool,
}

#[derive(Default)]
struct Queue {
    slots: Vec<Slot>,
    /// When the thread will wake by itself.
    wake: Option<Instant>,
    stop: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// The deadlines of all virtual processors.
pub(crate) struct Timers {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Timers {
    /// `kick` is called from the timer thread with the processor's index.
    pub(crate) fn new(kick: impl Fn(u32) + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("timer".into())
            .spawn(move || serve(&theirs, kick))
            .ok();
        Self { shared, thread }
    }

    /// Sets or clears the deadline of `vp`, `delay` in 100 ns units from now.
    pub(crate) fn arm(&self, vp: u32, delay: Option<u64>) {
        // A year is as good as never, and fits every clock.
        const LONGEST: u64 = 365 * 86_400 * 10_000_000;
        let deadline = delay
            .filter(|&delay| delay < LONGEST)
            .map(|delay| Instant::now() + Duration::from_nanos(delay * 100));
        let mut queue = self.shared.lock();
        let Some(slot) = slot(&mut queue, vp) else {
            return;
        };
        slot.deadline = deadline;
        let waits_itself = slot.waits_itself;
        if let Some(deadline) = deadline
            && !waits_itself
            && queue.wake.is_none_or(|wake| deadline < wake)
        {
            self.shared.changed.notify_one();
        }
    }

    /// The deadline of `vp`, whose thread is about to wait for it.
    pub(crate) fn deadline(&self, vp: u32) -> Option<Instant> {
        let mut queue = self.shared.lock();
        let slot = slot(&mut queue, vp)?;
        slot.waits_itself = true;
        slot.deadline
    }

    /// The thread of `vp` runs again.
    pub(crate) fn resume(&self, vp: u32) {
        let mut queue = self.shared.lock();
        let Some(slot) = slot(&mut queue, vp) else {
            return;
        };
        slot.waits_itself = false;
        let deadline = slot.deadline;
        if deadline.is_some_and(|deadline| queue.wake.is_none_or(|wake| deadline < wake)) {
            self.shared.changed.notify_one();
        }
    }
}

impl Drop for Timers {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Most processors that have timers.
const MAX_SLOTS: usize = 4096;

fn slot(queue: &mut Queue, vp: u32) -> Option<&mut Slot> {
    let index = vp as usize;
    if index >= MAX_SLOTS {
        return None;
    }
    if queue.slots.len() <= index {
        queue.slots.resize_with(index + 1, Slot::default);
    }
    queue.slots.get_mut(index)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(shared: &Shared, kick: impl Fn(u32)) {
    let mut queue = shared.lock();
    while !queue.stop {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut next = None;
        for (vp, slot) in queue.slots.iter_mut().enumerate() {
            match slot.deadline {
                Some(deadline) if slot.waits_itself => {
                    let _ = deadline;
                }
                Some(deadline) if deadline <= now => {
                    slot.deadline = None;
                    due.push(vp as u32);
                }
                Some(deadline) => next = Some(next.map_or(deadline, |n: Instant| n.min(deadline))),
                None => {}
            }
        }
        if !due.is_empty() {
            drop(queue);
            due.into_iter().for_each(&kick);
            queue = shared.lock();
            continue;
        }
        queue.wake = next;
        queue = match next {
            None => shared
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner),
            Some(next) => {
                let wait = next.saturating_duration_since(now);
                shared
                    .changed
                    .wait_timeout(queue, wait)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        queue.wake = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn kicks_in_order_of_deadlines() {
        let (sender, receiver) = channel();
        let timers = Timers::new(move |vp| {
            let _ = sender.send(vp);
        });
        timers.arm(1, Some(400_000));
        timers.arm(0, Some(100_000));
        timers.arm(2, Some(50_000));
        timers.arm(2, None);
        assert_eq!(receiver.recv_timeout(Duration::from_secs(5)), Ok(0));
        assert_eq!(receiver.recv_timeout(Duration::from_secs(5)), Ok(1));
        assert!(receiver.recv_timeout(Duration::from_millis(20)).is_err());
    }

    #[test]
    fn a_waiting_processor_is_left_alone() {
        let (sender, receiver) = channel();
        let timers = Timers::new(move |vp| {
            let _ = sender.send(vp);
        });
        timers.arm(0, Some(100_000));
        assert!(timers.deadline(0).is_some());
        assert!(receiver.recv_timeout(Duration::from_millis(30)).is_err());
        timers.resume(0);
        assert_eq!(receiver.recv_timeout(Duration::from_secs(5)), Ok(0));
    }
}
