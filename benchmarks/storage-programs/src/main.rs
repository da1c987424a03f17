//! Measures a block device by direct I/O, for the storage benchmark.
//!
//! `storage-programs list` prints what there is, one workload per line: name, whether it writes,
//! bytes of a request, and requests at once, separated by tabs. `storage-programs run NAME
//! MILLISECONDS DEVICE` runs one and prints two lines that the benchmark reads:
//!
//! ```text
//! @start NAME
//! @done NAME requests bytes seconds
//! ```
//!
//! Each page of the device begins with its own number, 8 bytes in the machine's order. Reads check
//! that, and writes keep it so.

mod device;
mod requests;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use crate::device::Device;
use crate::workload::{WORKLOADS, Workload};

const USAGE: &str = "usage: storage-programs list | storage-programs run NAME MILLISECONDS DEVICE";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["list"] => {
            list();
            Ok(())
        }
        ["run", name, milliseconds, device] => run(name, milliseconds, device),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("storage-programs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    for Workload {
        name,
        write,
        bytes,
        depth,
        ..
    } in WORKLOADS
    {
        println!("{name}\t{write}\t{bytes}\t{depth}");
    }
}

fn run(name: &str, milliseconds: &str, device: &str) -> Result<(), String> {
    let workload = WORKLOADS
        .iter()
        .find(|workload| workload.name == name)
        .ok_or_else(|| format!("{name} is not a workload; see 'storage-programs list'"))?;
    let milliseconds: u32 = milliseconds
        .parse()
        .map_err(|_| format!("{milliseconds} is not a number of milliseconds"))?;
    let failed = |error| format!("{device}: {error}");
    let device = Device::open(device, workload.write).map_err(failed)?;
    println!("@start {name}");
    let time = Duration::from_millis(u64::from(milliseconds));
    let measured = workload::run(workload, &device, time).map_err(failed)?;
    let (requests, bytes) = (measured.requests, measured.bytes);
    let seconds = measured.time.as_secs_f64();
    println!("@done {name} {requests} {bytes} {seconds:.6}");
    Ok(())
}
