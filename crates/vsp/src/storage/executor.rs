//! Who carries requests out.

use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Something to be done that may block.
pub type Job = Box<dyn FnOnce() + Send>;

/// Carries jobs out, in any order, apart from the thread that submits them.
pub trait Executor: Send + Sync {
    /// Takes a job. Where no thread can be had, it is done before this
    /// returns; after [`Executor::finish`] it is dropped.
    fn submit(&self, job: Job);

    /// Waits until all jobs are done; further ones are not taken.
    fn finish(&self);
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that wait for a job.
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    finished: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

/// A few threads, started when they are needed.
pub struct ThreadPool {
    shared: Arc<Shared>,
    name: String,
    max_threads: usize,
}

impl ThreadPool {
    /// A pool without a thread yet, of at most `max_threads`.
    pub fn new(name: String, max_threads: usize) -> Self {
        Self {
            shared: Arc::default(),
            name,
            max_threads: max_threads.max(1),
        }
    }

    /// Starts a thread; whether there is one at all.
    fn grow(&self, queue: &mut Queue) -> bool {
        if queue.threads.len() >= self.max_threads {
            return true;
        }
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new().name(self.name.clone());
        match thread.spawn(move || work(&shared)) {
            Ok(thread) => queue.threads.push(thread),
            Err(error) => tracing::warn!("no thread for storage requests: {error}"),
        }
        !queue.threads.is_empty()
    }
}

impl Executor for ThreadPool {
    fn submit(&self, job: Job) {
        let mut queue = self.shared.queue.lock();
        if queue.finished {
            return;
        }
        let free = queue.idle > queue.jobs.len();
        if !free && !self.grow(&mut queue) {
            drop(queue);
            return run(job);
        }
        queue.jobs.push_back(job);
        self.shared.work.notify_one();
    }

    fn finish(&self) {
        let threads = {
            let mut queue = self.shared.queue.lock();
            queue.finished = true;
            self.shared.work.notify_all();
            std::mem::take(&mut queue.threads)
        };
        for thread in threads {
            // Jobs that panic are caught, so the threads end as they should.
            let _ = thread.join();
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.finished = true;
        self.shared.work.notify_all();
    }
}

fn work(shared: &Shared) {
    let mut queue = shared.queue.lock();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            run(job);
            queue = shared.queue.lock();
        } else if queue.finished {
            return;
        } else {
            queue.idle += 1;
            shared.work.wait(&mut queue);
            queue.idle -= 1;
        }
    }
}

/// Does a job. One that panics must not take the others with it.
fn run(job: Job) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!("a storage request has panicked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn jobs_run_side_by_side_and_all_of_them() {
        let pool = ThreadPool::new("test".into(), 3);
        let (done, meeting) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(3)));
        for _ in 0..3 {
            let meeting = meeting.clone();
            pool.submit(Box::new(move || {
                meeting.wait();
            }));
        }
        pool.submit(Box::new(|| panic!("on purpose")));
        for _ in 0..100 {
            let done = done.clone();
            pool.submit(Box::new(move || {
                done.fetch_add(1, Ordering::Relaxed);
            }));
        }
        pool.finish();
        assert_eq!(done.load(Ordering::Relaxed), 100);
        let late = done.clone();
        pool.submit(Box::new(move || {
            late.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(done.load(Ordering::Relaxed), 100);
    }
}
