//! Two threads on two processors.

use std::io;
use std::ptr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use crate::catalogue::{Setting, Work};
use crate::data::mix;
use crate::host;
use crate::integer::count_primes;

/// Runs a function on each of two processors at once and gives what both return.
fn both(
    processors: [usize; 2],
    function: impl Fn(usize) -> io::Result<u64> + Sync,
) -> io::Result<[u64; 2]> {
    let barrier = Barrier::new(2);
    let run = |index: usize| {
        let placed = host::stay_on(processors[index]);
        barrier.wait();
        placed.and_then(|()| function(index))
    };
    thread::scope(|scope| {
        // Two new threads: this one keeps the right to run anywhere.
        let threads = [scope.spawn(|| run(0)), scope.spawn(|| run(1))];
        let [first, second] = threads.map(|thread| {
            let panicked = |_| Err(io::Error::other("a thread panicked"));
            thread.join().unwrap_or_else(panicked)
        });
        Ok([first?, second?])
    })
}

/// Work of both threads that has nothing in common.
pub(crate) fn scaling(_: &Setting) -> io::Result<Work> {
    let processors = host::two()?;
    Ok(Box::new(move |operations| {
        let sums = both(processors, |index| {
            let mut flags = vec![0u8; 32_768];
            let share = operations / 2 + if index == 0 { operations % 2 } else { 0 };
            Ok((0..share).fold(index as u64, |sum, _| mix(sum, count_primes(&mut flags))))
        })?;
        Ok(mix(sums[0], sums[1]))
    }))
}

/// Additions to one number by both threads.
pub(crate) fn atomics(_: &Setting) -> io::Result<Work> {
    let processors = host::two()?;
    Ok(Box::new(move |operations| {
        let number = AtomicU64::new(0);
        both(processors, |index| {
            let share = operations / 2 + if index == 0 { operations % 2 } else { 0 };
            for _ in 0..share {
                number.fetch_add(1, Ordering::SeqCst);
            }
            Ok(0)
        })?;
        Ok(number.load(Ordering::SeqCst))
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
    let processors = host::two()?;
    Ok(Box::new(move |operations| {
        let turn = AtomicU32::new(0);
        let rounds = both(processors, |index| {
            let me = index as u32;
            for _ in 0..operations {
                sleep_while(&turn, 1 - me);
                change(&turn, 1 - me);
            }
            Ok(operations)
        })?;
        Ok(rounds[0] + rounds[1])
    }))
}
