//! The hypercall interface as a guest uses it: pages, registers, malformed
//! forms, continuation.

use super::*;
use crate::hypercall::REPS_PER_ENTRY;

const UNDEFINED: Completion = Completion::Fault(Exception::INVALID_OPCODE);

fn spin_wait() -> u64 {
    HvHypercallControl::simple(HvCallCode::NOTIFY_LONG_SPIN_WAIT)
        .with_fast()
        .0
}

fn call(machine: &Machine, cpu: &mut FakeProcessor, control: u64) -> HvStatus {
    HvHypercallResult(machine.guest_call(cpu, control, &[0; 64])).status()
}

#[test]
fn the_hypercall_page_comes_and_goes() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.write_guest(0x10000, &[0x55; 4096]);
    let page = HvPageMsr::enabled_at(0x10).0;
    // Without an OS id the page stays away.
    machine.wrmsr(&mut cpu, HV_X64_MSR_HYPERCALL, page);
    assert_eq!(
        machine.rdmsr(&mut cpu, HV_X64_MSR_HYPERCALL),
        Some(page & !1)
    );
    assert_eq!(machine.spa(0x10000), 0x110 << 12);
    machine.wrmsr(&mut cpu, HV_X64_MSR_GUEST_OS_ID, 1);
    machine.wrmsr(&mut cpu, HV_X64_MSR_HYPERCALL, page | 0xFF0);
    assert_eq!(
        machine.rdmsr(&mut cpu, HV_X64_MSR_HYPERCALL),
        Some(page | 0xFF0)
    );
    let code = machine.platform.bytes(machine.spa(0x10000), 4096);
    assert_eq!(code[..8], [0xF3, 0x0F, 0x1E, 0xFA, 0x0F, 0x01, 0xC1, 0xC3]);
    assert!(code[8..].iter().all(|byte| *byte == 0xCC));
    let map = machine.hypervisor.gpa_map(machine.child).unwrap();
    assert_eq!(
        map.lookup(0x10).unwrap().rights,
        HvMapGpaFlags::READ_EXECUTE
    );
    // Moved: the old place shows its RAM again.
    machine.wrmsr(
        &mut cpu,
        HV_X64_MSR_HYPERCALL,
        HvPageMsr::enabled_at(0x11).0,
    );
    assert_eq!(machine.platform.bytes(machine.spa(0x10000), 8), [0x55; 8]);
    machine.wrmsr(&mut cpu, HV_X64_MSR_GUEST_OS_ID, 0);
    assert_eq!(machine.rdmsr(&mut cpu, HV_X64_MSR_HYPERCALL), Some(0x11000));
    assert_eq!(machine.spa(0x11000), 0x111 << 12);
    // Locked, it stays.
    machine.wrmsr(&mut cpu, HV_X64_MSR_GUEST_OS_ID, 1);
    machine.wrmsr(
        &mut cpu,
        HV_X64_MSR_HYPERCALL,
        page | HV_HYPERCALL_MSR_LOCKED,
    );
    machine.wrmsr_faults(&mut cpu, HV_X64_MSR_HYPERCALL, 0);
    machine.wrmsr(&mut cpu, HV_X64_MSR_GUEST_OS_ID, 0);
    assert_ne!(machine.spa(0x10000), 0x110 << 12);
}

#[test]
fn who_may_call() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    let exit = |cpu: &mut FakeProcessor| {
        cpu.gprs[1] = spin_wait();
        machine.exit(cpu, Exit::Hypercall)
    };
    assert_eq!(exit(&mut cpu), Some(UNDEFINED));
    machine.wrmsr(&mut cpu, HV_X64_MSR_GUEST_OS_ID, 1);
    assert_eq!(exit(&mut cpu), Some(UNDEFINED));
    machine.wrmsr(
        &mut cpu,
        HV_X64_MSR_HYPERCALL,
        HvPageMsr::enabled_at(0x10).0,
    );
    assert_eq!(exit(&mut cpu), Some(Completion::Done));
    assert_eq!(cpu.gprs[0], 0);
    cpu.cpl = 3;
    assert_eq!(exit(&mut cpu), Some(UNDEFINED));
    cpu.cpl = 0;
    for mode in [CpuMode::Real, CpuMode::Virtual8086] {
        cpu.mode = mode;
        assert_eq!(exit(&mut cpu), Some(UNDEFINED));
    }
}

#[test]
fn malformed_control_words() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let simple = HvHypercallControl::simple(HvCallCode::NOTIFY_LONG_SPIN_WAIT);
    assert_eq!(call(&machine, &mut cpu, simple.0), HvStatus::SUCCESS);
    for code in [0, 0x98, 0x7FFF, 0x8002, 0xFFFF] {
        assert_eq!(
            call(&machine, &mut cpu, code),
            HvStatus::INVALID_HYPERCALL_CODE
        );
    }
    let bad = HvStatus::INVALID_HYPERCALL_INPUT;
    for bit in (27..32).chain(32..64) {
        assert_eq!(
            call(&machine, &mut cpu, simple.0 | 1 << bit),
            bad,
            "bit {bit}"
        );
    }
    assert_eq!(
        call(&machine, &mut cpu, simple.with_variable_header(1).0),
        bad
    );
    let list = HvCallCode::FLUSH_VIRTUAL_ADDRESS_LIST;
    for (count, start) in [(0, 0), (1, 1), (2, 5)] {
        let control = HvHypercallControl::rep(list, count, start);
        assert_eq!(call(&machine, &mut cpu, control.0), bad, "{count} {start}");
    }
    // Too big for registers.
    let post = HvHypercallControl::simple(HvCallCode::POST_MESSAGE).with_fast();
    assert_eq!(call(&machine, &mut cpu, post.0), bad);
    let long = HvHypercallControl::rep(list, 12, 0).with_fast();
    assert_eq!(call(&machine, &mut cpu, long.0), bad);
}

#[test]
fn parameter_pages() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let get_id = HvHypercallControl::simple(HvCallCode::GET_PARTITION_ID).0;
    let spin = HvHypercallControl::simple(HvCallCode::NOTIFY_LONG_SPIN_WAIT).0;
    let cases = [
        (spin, 0x20004, 0, HvStatus::INVALID_ALIGNMENT),
        (
            HvHypercallControl::simple(HvCallCode::POST_MESSAGE).0,
            0x20FF8,
            0,
            HvStatus::INVALID_ALIGNMENT,
        ),
        (get_id, 0x20004, 0x21000, HvStatus::SUCCESS),
        (get_id, 0, 0x21001, HvStatus::INVALID_ALIGNMENT),
        (get_id, 0, 0x21FF8, HvStatus::SUCCESS),
    ];
    for (control, input, output, expected) in cases {
        cpu.hypercall(control, input, output);
        assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
        assert_eq!(
            HvHypercallResult(cpu.gprs[0]).status(),
            expected,
            "{control:#x} {input:#x}"
        );
    }
    assert_eq!(machine.read_guest(0x21FF8, 8), machine.child.to_le_bytes());
    // Unmapped input, read-only output: the parent is told, and the call is
    // made anew when it has mapped something.
    for (control, input, output, gpa, message_type) in [
        (spin, 0x50_0000, 0, 0x50_0000, HvMessageType::UNMAPPED_GPA),
        (get_id, 0, 0x10000, 0x10000, HvMessageType::GPA_INTERCEPT),
    ] {
        cpu.completions.clear();
        cpu.hypercall(control, input, output);
        let RunOutcome::Intercept(message) = machine.run(0, &mut cpu) else {
            panic!("no intercept");
        };
        assert_eq!(message.header.message_type, message_type);
        let body: HvX64MemoryInterceptMessage = message.body().unwrap();
        assert_eq!(body.guest_physical_address, gpa);
        assert!(cpu.completions.is_empty());
        assert_eq!(machine.run(0, &mut cpu), RunOutcome::Suspended);
        let resume = [(HvRegisterName::INTERCEPT_SUSPEND, 0u64.into())];
        machine
            .winhv
            .set_vp_registers(machine.child, 0, &resume)
            .unwrap();
        assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
        assert_eq!(cpu.completions, [Completion::Retry]);
    }
}

#[test]
fn calls_of_32_bit_code() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    cpu.mode = CpuMode::Protected;
    cpu.then(|cpu| {
        let control = HvHypercallControl::simple(HvCallCode::GET_PARTITION_ID).0;
        cpu.gprs = [0xDEAD_BEEF_0000_0000; 16];
        cpu.gprs[2] |= control >> 32;
        cpu.gprs[0] |= control & 0xFFFF_FFFF;
        (cpu.gprs[7], cpu.gprs[6]) = (0, 0x21000);
        Exit::Hypercall
    });
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!((cpu.gprs[2], cpu.gprs[0]), (0, 0));
    assert_eq!(machine.read_guest(0x21000, 8), machine.child.to_le_bytes());
    // A rep call's result: reps completed in EDX.
    machine.write_guest(
        0x20000,
        HvInputFlushVirtualAddressSpace {
            flags: 1,
            ..Default::default()
        }
        .as_bytes(),
    );
    cpu.then(|cpu| {
        let control = HvHypercallControl::rep(HvCallCode::FLUSH_VIRTUAL_ADDRESS_LIST, 3, 0).0;
        (cpu.gprs[2], cpu.gprs[0]) = (control >> 32, control & 0xFFFF_FFFF);
        (cpu.gprs[3], cpu.gprs[1]) = (0, 0x20000);
        Exit::Hypercall
    });
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!((cpu.gprs[2], cpu.gprs[0]), (3, 0));
}

#[test]
fn long_lists_are_continued() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let count = REPS_PER_ENTRY + 10;
    let control = HvHypercallControl::rep(HvCallCode::FLUSH_VIRTUAL_ADDRESS_LIST, count, 0);
    let mut input = HvInputFlushVirtualAddressSpace {
        flags: 1,
        ..Default::default()
    }
    .as_bytes()
    .to_vec();
    for page in 0..count as u64 {
        input.extend_from_slice(&(page << 12).to_le_bytes());
    }
    machine.write_guest(0x20000, &input);
    cpu.completions.clear();
    cpu.hypercall(control.0, 0x20000, 0);
    cpu.then(move |cpu| {
        assert_eq!(cpu.completions, [Completion::Retry]);
        assert_eq!(cpu.gprs[1], control.with_rep_start(REPS_PER_ENTRY).0);
        Exit::Hypercall
    });
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.completions, [Completion::Retry, Completion::Done]);
    assert_eq!(
        cpu.gprs[0],
        HvHypercallResult::new(HvStatus::SUCCESS, count).0
    );
    assert_eq!(cpu.flushes.len(), count);
    // The root's lists are worked off in one call.
    let pages = 0x200..0x200 + 500;
    let rights = HvMapGpaFlags::ALL_RIGHTS;
    assert_eq!(
        machine
            .winhv
            .map_gpa_pages(machine.child, 0x2000, pages, rights),
        Ok(500)
    );
}

#[test]
fn xmm_registers_carry_input_and_output() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    // Input of 24 bytes: the last 8 are in XMM0.
    let ipi = HvHypercallControl::simple(HvCallCode::FLUSH_VIRTUAL_ADDRESS_SPACE).with_fast();
    cpu.xmms[0] = 1;
    cpu.hypercall(ipi.0, 0, 0);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.flushes, [TlbFlush::All]);
    // Output behind 16 + 8 bytes of input begins at XMM1.
    let control = HvHypercallControl::rep(HvCallCode::GET_VP_REGISTERS, 2, 0).with_fast();
    let names = u64::from(HvRegisterName::RIP.0) | u64::from(HvRegisterName::VP_INDEX.0) << 32;
    cpu.xmms[0] = names.into();
    cpu.xmms[2] = 0x55;
    cpu.hypercall(control.0, HV_PARTITION_ID_SELF, HV_VP_INDEX_SELF.into());
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.gprs[0], HvHypercallResult::new(HvStatus::SUCCESS, 2).0);
    assert_eq!((cpu.xmms[1], cpu.xmms[2]), (0x1234, 0));
    // Output alone comes in RDX and R8.
    let control = HvHypercallControl::simple(HvCallCode::GET_PARTITION_ID).with_fast();
    cpu.hypercall(control.0, 0, 0);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!((cpu.gprs[0], cpu.gprs[2]), (0, machine.child));
}

#[test]
fn fast_output_needs_its_privilege() {
    let machine = Machine::with_privileges(
        1,
        HvPartitionPrivilegeMask::CHILD_DEFAULT | HvPartitionPrivilegeMask::ACCESS_PARTITION_ID,
    );
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let control = HvHypercallControl::simple(HvCallCode::GET_PARTITION_ID);
    assert_eq!(call(&machine, &mut cpu, control.0), HvStatus::SUCCESS);
    let fast = call(&machine, &mut cpu, control.with_fast().0);
    assert_eq!(fast, HvStatus::INVALID_HYPERCALL_INPUT);
}

#[test]
fn extended_capabilities() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    machine.write_guest(0x21000, &[0xFF; 8]);
    assert_eq!(call(&machine, &mut cpu, 0x8001), HvStatus::SUCCESS);
    assert_eq!(machine.read_guest(0x21000, 8), [0; 8]);
}

#[test]
fn unknown_calls_go_to_a_parent_that_wants_them() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let all = HvInterceptAccessMask::EXECUTE;
    machine
        .winhv
        .install_intercept(machine.child, HvInterceptType::HYPERCALL, 0, all)
        .unwrap();
    cpu.completions.clear();
    cpu.hypercall(0x7777, 0xAB, 0xCD);
    let RunOutcome::Intercept(message) = machine.run(0, &mut cpu) else {
        panic!("no intercept");
    };
    let body: HvX64HypercallInterceptMessage = message.body().unwrap();
    assert_eq!((body.rcx, body.rdx, body.r8), (0x7777, 0xAB, 0xCD));
    machine
        .winhv
        .complete_intercept(machine.child, 0, 0x8)
        .unwrap();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(
        (cpu.gprs[0], cpu.completions.as_slice()),
        (8, [Completion::Done].as_slice())
    );
}
