//! Remote TLB flushes: what is flushed, and that nobody runs on with a stale
//! translation.

use super::*;
use std::sync::atomic::AtomicUsize;
use std::thread;

fn header(flags: HvFlushFlags, mask: u64) -> HvInputFlushVirtualAddressSpace {
    HvInputFlushVirtualAddressSpace {
        address_space: 0,
        flags: flags.bits(),
        processor_mask: mask,
    }
}

fn call(
    machine: &Machine,
    cpu: &mut FakeProcessor,
    control: HvHypercallControl,
    input: &[u8],
) -> HvHypercallResult {
    HvHypercallResult(machine.guest_call(cpu, control.0, input))
}

#[test]
fn whole_spaces_and_lists() {
    let machine = Machine::new(2);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let space = HvHypercallControl::simple(HvCallCode::FLUSH_VIRTUAL_ADDRESS_SPACE);
    let none = HvFlushFlags::empty();
    let result = call(&machine, &mut cpu, space, header(none, 0b01).as_bytes());
    assert_eq!(result.status(), HvStatus::SUCCESS);
    assert_eq!(cpu.flushes, [TlbFlush::All]);
    cpu.flushes.clear();
    let non_global = HvFlushFlags::NON_GLOBAL_MAPPINGS_ONLY | HvFlushFlags::ALL_PROCESSORS;
    let _ = call(&machine, &mut cpu, space, header(non_global, 0).as_bytes());
    assert_eq!(cpu.flushes, [TlbFlush::NonGlobal]);
    cpu.flushes.clear();
    let unknown = HvFlushFlags::from_bits_retain(1 << 20);
    let result = call(&machine, &mut cpu, space, header(unknown, 1).as_bytes());
    assert_eq!(result.status(), HvStatus::INVALID_PARAMETER);
    let list = HvHypercallControl::rep(HvCallCode::FLUSH_VIRTUAL_ADDRESS_LIST, 2, 0);
    let mut input = header(none, 0b11).as_bytes().to_vec();
    input.extend_from_slice([0x7000u64 | 1, 0x9000].as_bytes());
    assert_eq!(call(&machine, &mut cpu, list, &input).reps_completed(), 2);
    assert_eq!(cpu.flushes, [0x7000, 0x8000, 0x9000].map(TlbFlush::Page));
    cpu.flushes.clear();
    // An extended range of 2 MiB is too much to go page by page.
    let mut input = header(HvFlushFlags::USE_EXTENDED_RANGE_FORMAT, 1)
        .as_bytes()
        .to_vec();
    input.extend_from_slice([0x20_0000u64 | 1 << 11].as_bytes());
    let list = HvHypercallControl::rep(HvCallCode::FLUSH_VIRTUAL_ADDRESS_LIST, 1, 0);
    assert_eq!(
        call(&machine, &mut cpu, list, &input).status(),
        HvStatus::SUCCESS
    );
    assert_eq!(cpu.flushes, [TlbFlush::All]);
    // The other one flushes before it runs.
    let mut other = machine.cpu();
    assert_eq!(machine.run(1, &mut other), RunOutcome::WaitForSipi);
    assert_eq!(other.flushes[0], TlbFlush::NonGlobal);
    assert!(other.flushes.contains(&TlbFlush::Page(0x8000)));
}

#[test]
fn sparse_sets() {
    let machine = Machine::new(2);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let ex = HvInputFlushVirtualAddressSpaceEx {
        format: HV_GENERIC_SET_SPARSE_4K,
        valid_bank_mask: 1,
        ..Default::default()
    };
    let mut input = ex.as_bytes().to_vec();
    input.extend_from_slice(&1u64.to_le_bytes());
    let space = HvHypercallControl::simple(HvCallCode::FLUSH_VIRTUAL_ADDRESS_SPACE_EX);
    let result = call(&machine, &mut cpu, space.with_variable_header(1), &input);
    assert_eq!(result.status(), HvStatus::SUCCESS);
    assert_eq!(cpu.flushes, [TlbFlush::All]);
    let result = call(&machine, &mut cpu, space, &input);
    assert_eq!(result.status(), HvStatus::INVALID_HYPERCALL_INPUT);
    let all = HvInputFlushVirtualAddressSpaceEx {
        format: HV_GENERIC_SET_ALL,
        ..ex
    };
    assert_eq!(
        call(&machine, &mut cpu, space, all.as_bytes()).status(),
        HvStatus::SUCCESS
    );
    let bad = HvInputFlushVirtualAddressSpaceEx { format: 7, ..ex };
    let result = call(&machine, &mut cpu, space, bad.as_bytes());
    assert_eq!(result.status(), HvStatus::INVALID_PARAMETER);
    // A list with a set: the element is behind the bank.
    cpu.flushes.clear();
    input.extend_from_slice(&0x5000u64.to_le_bytes());
    let list = HvHypercallControl::rep(HvCallCode::FLUSH_VIRTUAL_ADDRESS_LIST_EX, 1, 0);
    let result = call(&machine, &mut cpu, list.with_variable_header(1), &input);
    assert_eq!(result.status(), HvStatus::SUCCESS);
    assert_eq!(cpu.flushes, [TlbFlush::Page(0x5000)]);
}

/// A processor that stays in the guest until it is kicked.
fn spin_in_guest(
    cpu: &mut FakeProcessor,
    kicked: &Arc<[AtomicBool; 8]>,
    vp: usize,
    entered: &Arc<AtomicUsize>,
) {
    let (kicked, entered) = (kicked.clone(), entered.clone());
    cpu.then(move |_| {
        entered.fetch_add(1, Ordering::SeqCst);
        while !kicked[vp].swap(false, Ordering::SeqCst) {
            thread::yield_now();
        }
        Exit::Kicked
    });
}

#[test]
fn a_flush_waits_for_the_guest() {
    let machine = Machine::new(2);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let mut other = machine.cpu();
    machine
        .winhv
        .set_vp_registers(
            machine.child,
            1,
            &[(HvRegisterName::INTERNAL_ACTIVITY_STATE, 0u64.into())],
        )
        .unwrap();
    let entered = Arc::new(AtomicUsize::new(0));
    // Takes the flush of the space's first mapping, then stays in the guest.
    assert_eq!(machine.run(1, &mut other), RunOutcome::Halted);
    machine.platform.kicked[1].store(false, Ordering::SeqCst);
    spin_in_guest(&mut other, &machine.platform.kicked, 1, &entered);
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(machine.run(1, &mut other), RunOutcome::Halted));
        while entered.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let space = HvHypercallControl::simple(HvCallCode::FLUSH_VIRTUAL_ADDRESS_SPACE);
        let input = header(HvFlushFlags::ALL_PROCESSORS, 0);
        assert_eq!(
            call(&machine, &mut cpu, space, input.as_bytes()).status(),
            HvStatus::SUCCESS
        );
    });
    assert!(other.flushes.contains(&TlbFlush::All));
}

#[test]
fn two_that_flush_each_other_do_not_block() {
    let machine = Machine::new(2);
    let activity = [(HvRegisterName::INTERNAL_ACTIVITY_STATE, 0u64.into())];
    machine
        .winhv
        .set_vp_registers(machine.child, 1, &activity)
        .unwrap();
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let space = HvHypercallControl::simple(HvCallCode::FLUSH_VIRTUAL_ADDRESS_SPACE).with_fast();
    let flags = HvFlushFlags::ALL_PROCESSORS.bits();
    thread::scope(|scope| {
        for vp in 0..2 {
            let machine = &machine;
            scope.spawn(move || {
                let mut cpu = machine.cpu();
                for _ in 0..500 {
                    cpu.hypercall(space.0, 0, flags);
                }
                assert_eq!(machine.run(vp, &mut cpu), RunOutcome::Halted);
                assert_eq!(cpu.script.len(), 0);
                assert!(cpu.flushes.len() >= 500);
            });
        }
    });
}

#[test]
fn a_space_change_reaches_everyone() {
    let machine = Machine::new(2);
    let mut cpu = machine.cpu();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    let before = cpu.space_changes;
    machine
        .winhv
        .unmap_gpa_pages(machine.child, 0x50, 1, false)
        .unwrap();
    assert!(machine.hypervisor.vp_has_work(machine.child, 0));
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.space_changes, before + 1);
    assert!(!machine.hypervisor.vp_has_work(machine.child, 0));
}

#[test]
fn a_request_that_was_taken_is_not_waited_for() {
    let machine = Machine::new(1);
    let partition = machine.hypervisor.partition(machine.child).unwrap();
    let vp = partition.vp(0).unwrap();
    // It took the request before it entered the guest, to stay there.
    assert!(vp.activity.claim());
    vp.activity.enter_guest();
    let platform = machine.platform.as_ref();
    let vps = std::iter::once(vp.as_ref());
    crate::vp::wait_until_out(platform, vps, crate::vp::Requests::FLUSH);
    vp.activity.release();
}
