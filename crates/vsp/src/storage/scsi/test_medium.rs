//! A medium on the heap that remembers what it was asked for, and a short way
//! to send commands.

use super::{CDB_SIZE, Direction, Fault, LogicalUnit, Outcome, Request, Sense};
use crate::storage::medium::{DataBuffer, DataRange, HeapBuffer, Medium, MediumError, MediumInfo};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What a medium was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Read(u64, usize),
    Write(u64, usize, bool),
    Flush,
    Unmap(u64, u64),
    Zero(u64, u64),
}

/// The medium.
pub(crate) struct TestMedium {
    pub(crate) data: Mutex<Vec<u8>>,
    pub(crate) info: Mutex<MediumInfo>,
    pub(crate) ops: Mutex<Vec<Op>>,
    /// Everything fails.
    pub(crate) broken: AtomicBool,
    pub(crate) ejections: AtomicUsize,
}

impl TestMedium {
    pub(crate) fn new(sectors: usize, sector: u32) -> Arc<Self> {
        let size = sectors * sector as usize;
        let info = MediumInfo {
            size: size as u64,
            logical_sector: sector,
            physical_sector: 4096,
            read_only: false,
            unmap: true,
            unmap_granularity: 1 << 20,
            identity: None,
        };
        Arc::new(Self {
            data: Mutex::new((0..size).map(|at| (at / 512 + at) as u8).collect()),
            info: Mutex::new(info),
            ops: Mutex::default(),
            broken: AtomicBool::new(false),
            ejections: AtomicUsize::new(0),
        })
    }

    pub(crate) fn read_only(sectors: usize, sector: u32) -> Arc<Self> {
        let medium = Self::new(sectors, sector);
        medium.info.lock().read_only = true;
        medium.info.lock().unmap = false;
        medium
    }

    pub(crate) fn resize(&self, size: usize) {
        self.data.lock().resize(size, 0);
        self.info.lock().size = size as u64;
    }

    /// What it was asked for since the last call.
    pub(crate) fn take_ops(&self) -> Vec<Op> {
        std::mem::take(&mut self.ops.lock())
    }

    fn work<T>(
        &self,
        op: Op,
        work: impl FnOnce(&mut Vec<u8>) -> Option<T>,
    ) -> Result<T, MediumError> {
        self.ops.lock().push(op);
        if self.broken.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("broken").into());
        }
        work(&mut self.data.lock()).ok_or(MediumError::OutOfRange)
    }

    fn clear(&self, op: Op, offset: u64, length: u64) -> Result<(), MediumError> {
        self.work(op, |data| {
            data.get_mut(offset as usize..(offset + length) as usize)?
                .fill(0);
            Some(())
        })
    }
}

impl Medium for TestMedium {
    fn info(&self) -> MediumInfo {
        self.info.lock().clone()
    }

    fn read(&self, offset: u64, data: DataRange<'_>) -> Result<(), MediumError> {
        let at = offset as usize;
        self.work(Op::Read(offset, data.len()), |own| {
            data.write(0, own.get(at..at + data.len())?).ok()
        })
    }

    fn write(&self, offset: u64, data: DataRange<'_>, fua: bool) -> Result<(), MediumError> {
        let at = offset as usize;
        self.work(Op::Write(offset, data.len(), fua), |own| {
            data.read(0, own.get_mut(at..at + data.len())?).ok()
        })
    }

    fn flush(&self) -> Result<(), MediumError> {
        self.work(Op::Flush, |_| Some(()))
    }

    fn unmap(&self, offset: u64, length: u64) -> Result<(), MediumError> {
        self.clear(Op::Unmap(offset, length), offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), MediumError> {
        self.clear(Op::Zero(offset, length), offset, length)
    }

    fn ejected(&self) {
        self.ejections.fetch_add(1, Ordering::Relaxed);
    }
}

/// The bytes of a command, filled up.
pub(crate) fn cdb(bytes: &[u8]) -> [u8; CDB_SIZE] {
    let mut all = [0; CDB_SIZE];
    all[..bytes.len()].copy_from_slice(bytes);
    all
}

/// Runs `run` with a request.
pub(crate) fn with_request<T>(
    bytes: &[u8],
    direction: Direction,
    buffer: &HeapBuffer,
    run: impl FnOnce(&Request<'_>) -> T,
) -> T {
    let length = buffer.len();
    let buffer = Some(buffer as &dyn DataBuffer);
    let request = Request::new(cdb(bytes), bytes.len() as u8, direction, buffer, length);
    run(&request.expect("the buffer is as long as it is"))
}

/// A command with data from the device into a buffer of `room` bytes.
pub(crate) fn data_in(unit: &dyn LogicalUnit, bytes: &[u8], room: usize) -> Result<Vec<u8>, Fault> {
    let buffer = HeapBuffer::new(vec![0xee; room]);
    let moved = with_request(bytes, Direction::In, &buffer, |request| {
        unit.execute(request)
    })?;
    let mut data = buffer.into_inner();
    assert!(
        data[moved..].iter().all(|&byte| byte == 0xee),
        "more was written than said"
    );
    data.truncate(moved);
    Ok(data)
}

/// A command with data for the device.
pub(crate) fn data_out(unit: &dyn LogicalUnit, bytes: &[u8], data: &[u8]) -> Outcome {
    let buffer = HeapBuffer::new(data.to_vec());
    with_request(bytes, Direction::Out, &buffer, |request| {
        unit.execute(request)
    })
}

/// A command without data.
pub(crate) fn no_data(unit: &dyn LogicalUnit, bytes: &[u8]) -> Outcome {
    let request = Request::new(cdb(bytes), bytes.len() as u8, Direction::None, None, 0);
    unit.execute(&request.expect("no buffer is needed"))
}

/// A failure with sense data.
pub(crate) fn check<T>(sense: Sense) -> Result<T, Fault> {
    Err(Fault::Check(sense))
}
