//! Two threads on two processors.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;

use crate::catalogue::{Setting, Work};
use crate::data::mix;
use crate::host;
use crate::integer::count_primes;

/// Work on two processors at once: `function` gets the number of the thread, 0 or 1, and the
/// operations to do. Both threads live as long as the work, so that their start is not measured.
fn both(function: impl Fn(u32, u64) -> u64 + Send + Sync + 'static) -> io::Result<Work> {
    let function = Arc::new(function);
    let barrier = Arc::new(Barrier::new(2));
    let mut threads = Vec::new();
    for (index, processor) in (0..).zip(host::two()?) {
        let (orders, inbox) = channel::<u64>();
        let (outbox, results) = channel();
        let (function, barrier) = (function.clone(), barrier.clone());
        thread::Builder::new().spawn(move || {
            let placed = host::stay_on(processor);
            if outbox.send(placed.map(|()| 0)).is_err() {
                return;
            }
            for operations in inbox {
                barrier.wait();
                if outbox.send(Ok(function(index, operations))).is_err() {
                    return;
                }
            }
        })?;
        result(&results)?;
        threads.push((orders, results));
    }
    Ok(Box::new(move |operations| {
        for (orders, _) in &threads {
            order(orders, operations)?;
        }
        threads
            .iter()
            .try_fold(0, |sum, (_, results)| Ok(mix(sum, result(results)?)))
    }))
}

fn order(orders: &Sender<u64>, operations: u64) -> io::Result<()> {
    let gone = |_| io::Error::other("a thread ended");
    orders.send(operations).map_err(gone)
}

fn result(results: &Receiver<io::Result<u64>>) -> io::Result<u64> {
    let gone = |_| io::Error::other("a thread ended");
    results.recv().map_err(gone)?
}

/// The part of some operations that thread 0 or 1 does.
fn share(thread: u32, operations: u64) -> u64 {
    (operations + 1 - u64::from(thread)) / 2
}

/// Work of both threads that has nothing in common.
pub(crate) fn scaling(_: &Setting) -> io::Result<Work> {
    both(|thread, operations| {
        let mut flags = vec![0u8; 32_768];
        let primes = (0..share(thread, operations)).map(|_| count_primes(&mut flags));
        primes.fold(u64::from(thread), mix)
    })
}

/// Additions to one number by both threads.
pub(crate) fn atomics(_: &Setting) -> io::Result<Work> {
    let number = Arc::new(AtomicU64::new(0));
    let shared = number.clone();
    let mut threads = both(move |thread, operations| {
        for _ in 0..share(thread, operations) {
            shared.fetch_add(1, Ordering::SeqCst);
        }
        0
    })?;
    // The sum tells whether an addition was lost.
    Ok(Box::new(move |operations| {
        let before = number.load(Ordering::SeqCst);
        threads(operations)?;
        Ok(number.load(Ordering::SeqCst) - before)
    }))
}

/// Sleeps until `word` is no longer `value`.
fn sleep_while(word: &AtomicU32, value: u32) {
    while word.load(Ordering::Acquire) == value {
        // SAFETY: the address is that of a live number; no time limit is given.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                word.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                value,
                ptr::null::<libc::timespec>(),
            )
        };
    }
}

/// Changes `word` and wakes its sleeper.
fn change(word: &AtomicU32, value: u32) {
    word.store(value, Ordering::Release);
    // SAFETY: the address is that of a live number.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
            1,
        )
    };
}

/// Threads that wake each other in turn.
pub(crate) fn futex(_: &Setting) -> io::Result<Work> {
    let turn = AtomicU32::new(0);
    both(move |thread, operations| {
        for _ in 0..operations {
            sleep_while(&turn, 1 - thread);
            change(&turn, 1 - thread);
        }
        operations
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for operations in 0..10 {
            assert_eq!(share(0, operations) + share(1, operations), operations);
        }
    }
}
