//! What is measured.

use std::io;
use std::time::{Duration, Instant};

use crate::device::{Buffer, Device, PAGE};
use crate::requests::Requests;

/// A stream of requests of one kind.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) write: bool,
    /// Of each request.
    pub(crate) bytes: usize,
    /// Requests on their way at once.
    pub(crate) depth: usize,
    /// One behind the other; otherwise anywhere.
    pub(crate) sequential: bool,
}

const fn random(name: &'static str, write: bool, depth: usize) -> Workload {
    Workload {
        name,
        write,
        bytes: PAGE,
        depth,
        sequential: false,
    }
}

const fn sequential(name: &'static str, write: bool) -> Workload {
    Workload {
        name,
        write,
        bytes: 1 << 20,
        depth: 1,
        sequential: true,
    }
}

/// All workloads.
pub(crate) const WORKLOADS: &[Workload] = &[
    random("random-read-1", false, 1),
    random("random-read-32", false, 32),
    random("random-write-1", true, 1),
    random("random-write-32", true, 32),
    sequential("sequential-read", false),
    sequential("sequential-write", true),
];

/// What was measured.
pub(crate) struct Measured {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

/// Where requests go, one after the other.
struct Offsets {
    slots: u64,
    bytes: u64,
    sequential: bool,
    state: u64,
}

impl Offsets {
    fn new(workload: &Workload, device: &Device) -> io::Result<Self> {
        let slots = device.slots(workload.bytes);
        if slots == 0 {
            return Err(io::Error::other("it is smaller than one request"));
        }
        Ok(Self {
            slots,
            bytes: workload.bytes as u64,
            sequential: workload.sequential,
            state: 0,
        })
    }

    fn next(&mut self) -> u64 {
        let slot = if self.sequential {
            let slot = self.state;
            self.state = (slot + 1) % self.slots;
            slot
        } else {
            // Knuth's linear congruential generator; its upper bits are the better ones.
            self.state = self
                .state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.state >> 33) % self.slots
        };
        slot * self.bytes
    }
}

/// Runs a workload for some time, after a tenth of it that does not count.
pub(crate) fn run(workload: &Workload, device: &Device, time: Duration) -> io::Result<Measured> {
    let mut offsets = Offsets::new(workload, device)?;
    let buffers = (0..workload.depth).map(|_| Buffer::new(workload.bytes));
    let buffers = buffers.collect::<io::Result<Vec<_>>>()?;
    let mut requests = Requests::new(device.fd(), workload.write, buffers)?;
    measure(workload, &mut requests, &mut offsets, time / 10)?;
    measure(workload, &mut requests, &mut offsets, time)
}

fn measure(
    workload: &Workload,
    requests: &mut Requests,
    offsets: &mut Offsets,
    time: Duration,
) -> io::Result<Measured> {
    let mut places = vec![0; workload.depth];
    let mut done: Vec<usize> = (0..workload.depth).collect();
    let mut batch = Vec::with_capacity(workload.depth);
    let (mut count, start) = (0, Instant::now());
    loop {
        if start.elapsed() < time {
            batch.clear();
            for &slot in &done {
                let offset = offsets.next();
                places[slot] = offset;
                if workload.write {
                    requests.buffer(slot).number(offset / PAGE as u64);
                }
                batch.push((slot, offset));
            }
            requests.send(&batch)?;
        } else if requests.len() == 0 {
            break;
        }
        requests.receive(&mut done)?;
        count += done.len() as u64;
        for &slot in done.iter().filter(|_| !workload.write) {
            let page = places[slot] / PAGE as u64;
            if !requests.buffer(slot).is_numbered(page) {
                return Err(io::Error::other(format!("page {page} has other contents")));
            }
        }
    }
    Ok(Measured {
        requests: count,
        bytes: count * workload.bytes as u64,
        time: start.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn numbered(pages: u64) -> String {
        let path = std::env::temp_dir().join(format!("storage-programs-{}", std::process::id()));
        let mut file = std::fs::File::create(&path).unwrap();
        for page in 0..pages {
            let mut bytes = vec![0; PAGE];
            bytes[..8].copy_from_slice(&page.to_ne_bytes());
            file.write_all(&bytes).unwrap();
        }
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn every_workload_runs_and_keeps_the_numbers() {
        let path = numbered(1024);
        for workload in WORKLOADS {
            // Some file systems have no direct I/O.
            let Ok(device) = Device::open(&path, workload.write) else {
                break;
            };
            let measured = run(workload, &device, Duration::from_millis(20)).unwrap();
            assert!(measured.requests > 0, "{}", workload.name);
            assert_eq!(measured.bytes, measured.requests * workload.bytes as u64);
        }
        let bytes = std::fs::read(&path).unwrap();
        let pages = bytes.chunks_exact(PAGE).zip(0_u64..);
        for (page, number) in pages {
            assert_eq!(page[..8], number.to_ne_bytes());
        }
        std::fs::write(&path, vec![9; 1 << 20]).unwrap();
        if let Ok(device) = Device::open(&path, false) {
            let result = run(&WORKLOADS[0], &device, Duration::from_millis(5));
            assert!(result.is_err());
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn sequential_requests_begin_again_at_the_end() {
        let mut offsets = Offsets {
            slots: 3,
            bytes: 10,
            sequential: true,
            state: 0,
        };
        let seen: Vec<u64> = (0..5).map(|_| offsets.next()).collect();
        assert_eq!(seen, [0, 10, 20, 0, 10]);
        offsets.sequential = false;
        assert!((0..100).all(|_| offsets.next() < 30));
    }
}
