//! What the typed calls put on the wire, read back byte by byte, and how they
//! go on after partial completion.

use std::cell::RefCell;
use std::collections::VecDeque;

use tlfs::*;
use winhv::{Transport, WinHv};

/// A call as it was made.
#[derive(Debug, Clone, PartialEq)]
struct Made {
    control: HvHypercallControl,
    input: Vec<u8>,
}

/// Records calls; answers with success and the output prepared, or with
/// results prepared.
#[derive(Default)]
struct Recorder {
    calls: RefCell<Vec<Made>>,
    results: RefCell<VecDeque<u64>>,
    output: RefCell<Vec<u8>>,
}

impl Transport for Recorder {
    fn hypercall(&self, control: u64, input: &[u8], output: &mut [u8]) -> u64 {
        assert!(input.len() <= HV_PAGE_SIZE && output.len() <= HV_PAGE_SIZE);
        let control = HvHypercallControl(control);
        self.calls.borrow_mut().push(Made {
            control,
            input: input.to_vec(),
        });
        let prepared = self.output.borrow();
        let size = prepared.len().min(output.len());
        output[..size].copy_from_slice(&prepared[..size]);
        let done = HvHypercallResult::new(HvStatus::SUCCESS, control.rep_count()).0;
        self.results.borrow_mut().pop_front().unwrap_or(done)
    }
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

#[test]
fn creating_a_partition_with_memory_and_a_vp() {
    let recorder = Recorder::default();
    let winhv = WinHv::new(&recorder);
    *recorder.output.borrow_mut() = 2u64.to_le_bytes().to_vec();
    let flags = HvPartitionCreationFlags::LAPIC_ENABLED | HvPartitionCreationFlags::X2APIC_CAPABLE;
    let id = winhv.create_partition(flags).unwrap();
    assert_eq!(id, 2);
    winhv.deposit_memory(id, [0x100, 0x101]).unwrap();
    winhv.initialize_partition(id).unwrap();
    winhv
        .map_gpa_pages(id, 0x10, [7, 8, 9], HvMapGpaFlags::ALL_RIGHTS)
        .unwrap();
    winhv.create_vp(id, 3).unwrap();
    winhv.set_explicit_suspend(id, 3, false).unwrap();

    let calls = recorder.calls.borrow();
    let control: Vec<u64> = calls.iter().map(|call| call.control.0).collect();
    assert_eq!(
        control,
        [
            0x40,
            0x2_0000_0048,
            0x41,
            0x3_0000_004B,
            0x4E,
            0x1_0000_0051
        ]
    );
    let create = &calls[0].input;
    assert_eq!((create.len(), u64_at(create, 0)), (56, 1 << 13 | 1 << 22));
    let deposit = &calls[1].input;
    assert_eq!(
        (u64_at(deposit, 0), u64_at(deposit, 8), u64_at(deposit, 16)),
        (2, 0x100, 0x101)
    );
    assert_eq!(calls[2].input, 2u64.to_le_bytes());
    let map = &calls[3].input;
    assert_eq!(
        (u64_at(map, 0), u64_at(map, 8), u32_at(map, 16)),
        (2, 0x10, 0xF)
    );
    assert_eq!((u64_at(map, 24), u64_at(map, 40), map.len()), (7, 9, 48));
    let vp = &calls[4].input;
    assert_eq!(
        (vp.len(), u64_at(vp, 0), u32_at(vp, 8), u64_at(vp, 32)),
        (40, 2, 3, 0)
    );
    let registers = &calls[5].input;
    assert_eq!(
        (registers.len(), u32_at(registers, 8), u32_at(registers, 16)),
        (48, 3, 0)
    );
}

#[test]
fn long_lists_take_several_pages() {
    let recorder = Recorder::default();
    let winhv = WinHv::new(&recorder);
    let large = HvMapGpaFlags::ALL_RIGHTS | HvMapGpaFlags::LARGE_PAGE;
    assert_eq!(
        winhv.map_gpa_pages(2, 0, (0..1000).map(|page| page * 512), large),
        Ok(1000)
    );
    let calls = recorder.calls.borrow();
    assert_eq!(
        calls
            .iter()
            .map(|c| c.control.rep_count())
            .collect::<Vec<_>>(),
        [509, 491]
    );
    assert_eq!(u64_at(&calls[1].input, 8), 509 * 512);
    assert_eq!(u64_at(&calls[1].input, 24), 509 * 512);
}

#[test]
fn partial_completion_is_continued() {
    let recorder = Recorder::default();
    let winhv = WinHv::new(&recorder);
    recorder
        .results
        .borrow_mut()
        .push_back(HvHypercallResult::new(HvStatus::SUCCESS, 2).0);
    assert_eq!(winhv.deposit_memory(2, 0..5), Ok(5));
    let calls = recorder.calls.borrow();
    let starts: Vec<_> = calls.iter().map(|call| call.control.rep_start()).collect();
    assert_eq!(starts, [0, 2]);
    assert_eq!(calls[0].input, calls[1].input);
}

#[test]
fn errors_tell_what_was_done() {
    let recorder = Recorder::default();
    let winhv = WinHv::new(&recorder);
    let first = HvHypercallResult::new(HvStatus::SUCCESS, 509).0;
    let second = HvHypercallResult::new(HvStatus::INSUFFICIENT_MEMORY, 3).0;
    recorder.results.borrow_mut().extend([first, second]);
    let error = winhv
        .map_gpa_pages(2, 0, 0..600, HvMapGpaFlags::ALL_RIGHTS)
        .unwrap_err();
    assert!(error.is_insufficient_memory());
    assert_eq!(
        (error.call, error.completed),
        (HvCallCode::MAP_GPA_PAGES, 512)
    );
    assert!(error.to_string().contains("INSUFFICIENT_MEMORY"));
    // A hypervisor that does nothing and says so is not asked for ever.
    recorder.results.borrow_mut().push_back(0);
    let error = winhv.deposit_memory(2, [1]).unwrap_err();
    assert_eq!(error.status, HvStatus::OPERATION_FAILED);
}

#[test]
fn events_are_fast_calls() {
    let recorder = Recorder::default();
    let winhv = WinHv::new(&recorder);
    winhv.signal_event(0x12, 5).unwrap();
    let calls = recorder.calls.borrow();
    assert_eq!(calls[0].control.0, 0x1_005D);
    assert_eq!(
        (calls[0].input.len(), u64_at(&calls[0].input, 0)),
        (16, 5 << 32 | 0x12)
    );
}

#[test]
fn messages_interrupts_and_ports() {
    let recorder = Recorder::default();
    let winhv = WinHv::new(&recorder);
    winhv.post_message(4, 1, b"abc").unwrap();
    assert!(winhv.post_message(4, 1, &[0; 241]).is_err());
    let control = HvInterruptControl::new(HvInterruptType::LOWEST_PRIORITY, true, true);
    winhv
        .assert_virtual_interrupt(2, control, 0x0F, 0x31)
        .unwrap();
    winhv
        .create_port(1, 9, 2, HvPortInfo::event(2, HV_ANY_VP, 4, 8))
        .unwrap();
    winhv.connect_port(2, 6, 1, 9, HvPortType::EVENT).unwrap();
    winhv.unmap_gpa_pages(2, 0x100, 5000, false).unwrap();
    let calls = recorder.calls.borrow();
    let post = &calls[0].input;
    assert_eq!(
        (
            post.len(),
            u32_at(post, 0),
            u32_at(post, 8),
            u32_at(post, 12)
        ),
        (256, 4, 1, 3)
    );
    assert_eq!(&post[16..20], b"abc\0");
    let assert = &calls[1].input;
    assert_eq!(
        (u64_at(assert, 8), u64_at(assert, 16), u32_at(assert, 24)),
        (0x3_0000_0001, 0x0F, 0x31)
    );
    let port = &calls[2].input;
    assert_eq!((port.len(), u32_at(port, 8), u64_at(port, 16)), (56, 9, 2));
    assert_eq!(
        (u32_at(port, 24), u32_at(port, 32), u32_at(port, 36)),
        (2, 2, u32::MAX)
    );
    assert_eq!(u32_at(port, 40), 8 << 16 | 4);
    let connect = &calls[3].input;
    assert_eq!(
        (connect.len(), u32_at(connect, 8), u64_at(connect, 16)),
        (72, 6, 1)
    );
    assert_eq!((u32_at(connect, 24), u32_at(connect, 32)), (9, 2));
    let unmaps: Vec<_> = calls[4..]
        .iter()
        .map(|c| (c.control.rep_count(), u64_at(&c.input, 8)))
        .collect();
    assert_eq!(unmaps, [(4095, 0x100), (905, 0x100 + 4095)]);
}

#[test]
fn registers_come_back_in_order() {
    let recorder = Recorder::default();
    let winhv = WinHv::new(&recorder);
    *recorder.output.borrow_mut() = [5u128, 6]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let names = [HvRegisterName::RAX, HvRegisterName::CS];
    let values = winhv.vp_registers(2, 1, &names).unwrap();
    assert_eq!(values, [HvRegisterValue(5), HvRegisterValue(6)]);
    winhv.complete_intercept(2, 1, 0x41).unwrap();
    let calls = recorder.calls.borrow();
    assert_eq!(calls[0].control.0, 0x2_0000_0050);
    let input = &calls[0].input;
    assert_eq!((u32_at(input, 16), u32_at(input, 20)), (0x20000, 0x60001));
    let complete = &calls[1].input;
    assert_eq!(
        (u32_at(complete, 16), u64_at(complete, 32)),
        (0xF000_0000, 0x41)
    );
    assert_eq!((u32_at(complete, 48), u64_at(complete, 64)), (1, 0));
}
