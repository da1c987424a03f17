//! A worker's child partition comes to life, runs and ends through encoded
//! hypercalls: the sequence is read back from their parameter pages.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tlfs::{
    HvCallCode, HvHypercallControl, HvHypercallResult, HvRegisterName, HvStatus,
    HvX64SegmentRegister,
};
use vid::{InterceptHandler, ObservedCall, Partition, PartitionConfig, RamRange, VpStop};

const PAGE: u64 = 4096;
const LARGE: u64 = 512 * PAGE;
/// Where the guest's code lies.
const CODE: u64 = 0x1000;

/// A call as it was made.
struct Made {
    control: HvHypercallControl,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Made {
    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.input[offset..offset + 8].try_into().unwrap())
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.input[offset..offset + 4].try_into().unwrap())
    }

    /// The elements of a rep call that are page numbers, behind `header` bytes.
    fn pages(&self, header: usize) -> Vec<u64> {
        (header..self.input.len())
            .step_by(8)
            .map(|at| self.u64(at))
            .collect()
    }

    /// Names and low halves of the registers that HvCallSetVpRegisters sets.
    fn registers(&self) -> Vec<(u32, u64)> {
        assert_eq!(self.control.code(), HvCallCode::SET_VP_REGISTERS);
        (16..self.input.len())
            .step_by(32)
            .map(|at| (self.u32(at), self.u64(at + 16)))
            .collect()
    }
}

/// All calls made so far, which must have succeeded to their last rep.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Vec<Made>>>);

impl Record {
    fn add(&self, call: &ObservedCall<'_>) {
        let control = HvHypercallControl(call.control);
        let result = HvHypercallResult(call.result);
        assert_eq!(result.status(), HvStatus::SUCCESS, "{:?}", control.code());
        assert_eq!(result.reps_completed(), control.rep_count());
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        calls.push(Made {
            control,
            input: call.input.to_vec(),
            output: call.output.to_vec(),
        });
    }

    /// The calls since the last time.
    fn take(&self) -> Vec<Made> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn codes(calls: &[Made]) -> Vec<HvCallCode> {
    calls.iter().map(|call| call.control.code()).collect()
}

/// Stops the partition when the guest writes to a port.
#[derive(Default)]
struct StopAtPort {
    partition: OnceLock<Weak<Partition>>,
    written: Mutex<Vec<(u16, u8, u32)>>,
}

impl InterceptHandler for StopAtPort {
    fn io_read(&self, _port: u16, _size: u8) -> u32 {
        0
    }

    fn io_write(&self, port: u16, size: u8, value: u32) {
        self.written.lock().unwrap().push((port, size, value));
        if let Some(partition) = self.partition.get().and_then(Weak::upgrade) {
            partition.stop();
        }
    }

    fn mmio_read(&self, _gpa: u64, _size: u8) -> u64 {
        0
    }

    fn mmio_write(&self, _gpa: u64, _size: u8, _value: u64) {}

    fn eoi(&self, _vector: u8) {}
}

fn config() -> PartitionConfig {
    let range = |gpa, size| RamRange { gpa, size };
    PartitionConfig {
        processors: 2,
        // Two large pages and three small ones; three small ones above 4 GiB.
        ram: vec![range(0, 2 * LARGE + 3 * PAGE), range(4 << 30, 3 * PAGE)],
        processor_mode: vid::ProcessorMode::default(),
    }
}

/// The calls of [`Partition::observed`] for [`config`]; gives the child's id.
fn check_creation(calls: &[Made]) -> u64 {
    assert_eq!(
        codes(calls),
        [
            HvCallCode::CREATE_PARTITION,
            HvCallCode::DEPOSIT_MEMORY,
            HvCallCode::INITIALIZE_PARTITION,
            HvCallCode::MAP_GPA_PAGES,
            HvCallCode::MAP_GPA_PAGES,
            HvCallCode::MAP_GPA_PAGES,
            HvCallCode::CREATE_VP,
            HvCallCode::CREATE_VP,
        ]
    );
    let id = u64::from_le_bytes(calls[0].output[..8].try_into().unwrap());
    assert!(calls[1..].iter().all(|call| call.u64(0) == id));
    let pool = calls[1].pages(8);
    assert_eq!(calls[1].control.rep_count(), pool.len());

    // Header of HvCallMapGpaPages: partition, first guest page, flags.
    const RIGHTS: u32 = 0xf;
    const LARGE_PAGE: u32 = 1 << 31;
    let map = |call: &Made| (call.u64(8), call.u32(16), call.pages(24));
    assert_eq!(map(&calls[3]), (0, RIGHTS | LARGE_PAGE, vec![0, 512]));
    assert_eq!(map(&calls[4]), (1024, RIGHTS, vec![1024, 1025, 1026]));
    assert_eq!(map(&calls[5]), (1 << 20, RIGHTS, vec![1027, 1028, 1029]));
    // No page is both the guest's and the hypervisor's.
    assert!(pool.iter().all(|page| *page > 1029));

    for (index, call) in calls[6..].iter().enumerate() {
        assert_eq!(call.u32(8), index as u32);
    }
    id
}

#[test]
fn a_child_lives_by_hypercalls() {
    let record = Record::default();
    let observer = record.clone();
    let observer = Arc::new(move |call: &ObservedCall<'_>| observer.add(call));
    let (partition, mut processors) = Partition::observed(&config(), observer).unwrap();
    let id = check_creation(&record.take());
    assert_eq!(partition.id(), id);

    // mov al, 0x2a; out 0x80, al; hlt
    partition
        .write_guest(CODE, &[0xb0, 0x2a, 0xe6, 0x80, 0xf4])
        .unwrap();
    let code_segment = HvX64SegmentRegister {
        base: 0,
        limit: 0xffff,
        selector: 0,
        attributes: 0x9b,
    };
    let first = &mut processors[0];
    first
        .set_registers(&[
            (HvRegisterName::RIP, CODE.into()),
            (HvRegisterName::CS, code_segment.into()),
        ])
        .unwrap();
    first.resume().unwrap();
    let calls = record.take();
    assert_eq!(codes(&calls), [HvCallCode::SET_VP_REGISTERS; 2]);
    assert!(
        calls
            .iter()
            .all(|call| (call.u64(0), call.u32(8)) == (id, 0))
    );
    let names = calls[0].registers();
    assert_eq!(names[0], (HvRegisterName::RIP.0, CODE));
    assert_eq!(names[1].0, HvRegisterName::CS.0);
    let resumed = [(HvRegisterName::EXPLICIT_SUSPEND.0, 0)];
    assert_eq!(calls[1].registers(), resumed);

    let handler = StopAtPort::default();
    handler.partition.set(Arc::downgrade(&partition)).unwrap();
    assert_eq!(first.run(&handler), VpStop::Stopped);
    assert_eq!(*handler.written.lock().unwrap(), [(0x80, 1, 0x2a)]);
    let calls = record.take();
    assert_eq!(
        codes(&calls),
        [
            HvCallCode::SET_PARTITION_PROPERTY,
            HvCallCode::SET_VP_REGISTERS
        ],
        "the stop from the handler, then the answer to the intercept"
    );
    let answered = calls[1].registers();
    assert!(answered.contains(&(HvRegisterName::INTERCEPT_SUSPEND.0, 0)));

    drop(processors);
    drop(partition);
    let calls = record.take();
    assert_eq!(
        codes(&calls),
        [HvCallCode::FINALIZE_PARTITION, HvCallCode::DELETE_PARTITION]
    );
    assert!(calls.iter().all(|call| call.input == id.to_le_bytes()));
}
