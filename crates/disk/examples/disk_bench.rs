//! Sequential requests to a disk file from several threads, for comparing with `qemu-img bench`:
//! `disk_bench FILE COUNT DEPTH SIZE [write]` does what
//! `qemu-img bench -c COUNT -d DEPTH -s SIZE [-w] FILE` does, and prints the time it took.

use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use disk::{OpenOptions, VirtualDisk, ops};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, count, depth, size, rest @ ..] = &args[..] else {
        return Err("usage: disk_bench FILE COUNT DEPTH SIZE [write]".into());
    };
    let (count, depth, size): (u64, usize, usize) = (count.parse()?, depth.parse()?, size.parse()?);
    let write = rest.first().is_some_and(|w| w == "write");
    let options = OpenOptions {
        read_only: !write,
        ..OpenOptions::default()
    };
    let disk = ops::open(Path::new(file), &options)?;
    let next = AtomicU64::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..depth)
            .map(|_| scope.spawn(|| run(&*disk, &next, count, size, write)))
            .collect();
        workers
            .into_iter()
            .try_for_each(|w| w.join().unwrap_or(Ok(())))
    })?;
    let took = started.elapsed();
    let rate = count as f64 / took.as_secs_f64();
    println!("{count} requests of {size} bytes, depth {depth}: {took:.3?}, {rate:.0} per second");
    Ok(())
}

fn run(
    disk: &dyn VirtualDisk,
    next: &AtomicU64,
    count: u64,
    size: usize,
    write: bool,
) -> disk::Result<()> {
    let mut buffer = vec![0x5a; size];
    let slots = disk.virtual_size() / size as u64;
    loop {
        let i = next.fetch_add(1, Ordering::Relaxed);
        if i >= count {
            return Ok(());
        }
        let offset = i % slots * size as u64;
        if write {
            disk.write(offset, &[IoSlice::new(&buffer)], false)?;
        } else {
            disk.read(offset, &mut [IoSliceMut::new(&mut buffer)])?;
        }
    }
}
