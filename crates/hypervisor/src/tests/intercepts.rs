//! What goes to the parent, and how it answers.

use super::*;

fn intercept(machine: &Machine, cpu: &mut FakeProcessor, exit: Exit) -> HvMessage {
    cpu.completions.clear();
    cpu.exits(&[exit]);
    match machine.run(0, cpu) {
        RunOutcome::Intercept(message) => *message,
        other => panic!("{other:?}"),
    }
}

fn answer(machine: &Machine, cpu: &mut FakeProcessor, value: u128) -> Completion {
    machine
        .winhv
        .complete_intercept(machine.child, 0, value)
        .unwrap();
    assert_eq!(machine.run(0, cpu), RunOutcome::Halted);
    cpu.completions.pop().unwrap()
}

#[test]
fn ports() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    cpu.gprs[0] = 0xAAAA_BBBB_CCCC_DDDD;
    let message = intercept(
        &machine,
        &mut cpu,
        Exit::IoRead {
            port: 0x3F8,
            size: 1,
        },
    );
    assert_eq!(
        message.header.message_type,
        HvMessageType::X64_IO_PORT_INTERCEPT
    );
    let body: HvX64IoPortInterceptMessage = message.body().unwrap();
    assert_eq!((body.port_number, body.access_info), (0x3F8, 1));
    assert_eq!(
        body.header.intercept_access_type,
        HvInterceptAccessType::READ
    );
    assert_eq!((body.header.rip, body.rax), (0x1234, cpu.gprs[0]));
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Suspended);
    assert_eq!(answer(&machine, &mut cpu, 0x41), Completion::Value(0x41));
    let write = Exit::IoWrite {
        port: 0x80,
        size: 2,
        value: 0x1122,
    };
    let message = intercept(&machine, &mut cpu, write);
    let body: HvX64IoPortInterceptMessage = message.body().unwrap();
    assert_eq!(body.rax, 0xAAAA_BBBB_CCCC_1122);
    assert_eq!(
        body.header.intercept_access_type,
        HvInterceptAccessType::WRITE
    );
    assert_eq!(answer(&machine, &mut cpu, 0), Completion::Done);
}

#[test]
fn memory() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    let write = Exit::MmioWrite {
        gpa: 0xF000_0010,
        size: 8,
        value: 77,
    };
    let message = intercept(&machine, &mut cpu, write);
    assert_eq!(message.header.message_type, HvMessageType::UNMAPPED_GPA);
    let body: HvX64MemoryInterceptMessage = message.body().unwrap();
    assert_eq!(
        (
            body.guest_physical_address,
            body.access_size,
            body.write_data
        ),
        (0xF000_0010, 8, 77)
    );
    assert_eq!(answer(&machine, &mut cpu, 0), Completion::Done);
    let message = intercept(
        &machine,
        &mut cpu,
        Exit::MmioRead {
            gpa: 0xF000_0010,
            size: 4,
        },
    );
    let body: HvX64MemoryInterceptMessage = message.body().unwrap();
    assert_eq!(
        body.header.intercept_access_type,
        HvInterceptAccessType::READ
    );
    // The parent answers with a fault.
    let event = HvPendingExceptionEvent::new(13, Some(0));
    let registers = [
        (HvRegisterName::PENDING_EVENT0, event.0.into()),
        (HvRegisterName::INTERCEPT_SUSPEND, 0u64.into()),
    ];
    machine
        .winhv
        .set_vp_registers(machine.child, 0, &registers)
        .unwrap();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    let fault = Completion::Fault(Exception::GENERAL_PROTECTION);
    assert_eq!(cpu.completions, [fault]);
    assert!(cpu.injections.is_empty());
    // A write to a read-only page is one of rights.
    let read = HvMapGpaFlags::READABLE;
    machine
        .winhv
        .map_gpa_pages(machine.child, 0x700, [0x300], read)
        .unwrap();
    let write = Exit::MmioWrite {
        gpa: 0x70_0000,
        size: 1,
        value: 0,
    };
    let message = intercept(&machine, &mut cpu, write);
    assert_eq!(message.header.message_type, HvMessageType::GPA_INTERCEPT);
}

#[test]
fn no_answer_lets_the_guest_go_on_at_its_rip() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    intercept(&machine, &mut cpu, Exit::IoRead { port: 1, size: 4 });
    let resume = [(HvRegisterName::INTERCEPT_SUSPEND, 0u64.into())];
    machine
        .winhv
        .set_vp_registers(machine.child, 0, &resume)
        .unwrap();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.completions, [Completion::Retry]);
    let late = [(HvRegisterName::INTERCEPT_COMPLETION, 0u64.into())];
    let late = machine.winhv.set_vp_registers(machine.child, 0, &late);
    assert_eq!(status(late), HvStatus::INVALID_VP_STATE);
}

#[test]
fn cpuid_and_msrs_only_where_installed() {
    let machine = Machine::new(1);
    let (winhv, child) = (&machine.winhv, machine.child);
    let mut cpu = machine.cpu();
    let all = HvInterceptAccessMask::all();
    winhv
        .install_intercept(child, HvInterceptType::X64_CPUID, 7, all)
        .unwrap();
    let exit = Exit::Cpuid {
        leaf: 7,
        subleaf: 0,
        default: [1, 2, 3, 4],
    };
    let message = intercept(&machine, &mut cpu, exit);
    let body: HvX64CpuidInterceptMessage = message.body().unwrap();
    assert_eq!((body.default_result_rax, body.default_result_rdx), (1, 4));
    let value = 10u128 | 11 << 32 | 12 << 64 | 13 << 96;
    assert_eq!(
        answer(&machine, &mut cpu, value),
        Completion::Cpuid([10, 11, 12, 13])
    );
    winhv
        .install_intercept(
            child,
            HvInterceptType::X64_CPUID,
            7,
            HvInterceptAccessMask::empty(),
        )
        .unwrap();
    assert_eq!(
        machine.exit(&mut cpu, exit),
        Some(Completion::Cpuid([1, 2, 3, 4]))
    );

    assert_eq!(machine.rdmsr(&mut cpu, 0xC000_1234), None);
    machine.wrmsr_faults(&mut cpu, 0xC000_1234, 0);
    let index = HvInterceptType::X64_MSR_INDEX;
    winhv
        .install_intercept(child, index, 0xC000_1234, HvInterceptAccessMask::WRITE)
        .unwrap();
    assert_eq!(machine.rdmsr(&mut cpu, 0xC000_1234), None);
    let write = Exit::WriteMsr {
        index: 0xC000_1234,
        value: 0x1_0000_0002,
    };
    let body: HvX64MsrInterceptMessage = intercept(&machine, &mut cpu, write).body().unwrap();
    assert_eq!((body.msr_number, body.rdx, body.rax), (0xC000_1234, 1, 2));
    assert_eq!(answer(&machine, &mut cpu, 0), Completion::Done);
    winhv
        .install_intercept(
            child,
            HvInterceptType::X64_MSR,
            0,
            HvInterceptAccessMask::READ,
        )
        .unwrap();
    intercept(&machine, &mut cpu, Exit::ReadMsr { index: 0x9999 });
    assert_eq!(answer(&machine, &mut cpu, 5), Completion::Value(5));
    let code = HvPartitionPropertyCode::UNIMPLEMENTED_MSR_ACTION;
    winhv.set_partition_property(child, code, 1).unwrap();
    machine.wrmsr(&mut cpu, 0x9999, 1);
    let exception = winhv.install_intercept(child, HvInterceptType::EXCEPTION, 3, all);
    assert_eq!(status(exception), HvStatus::PROCESSOR_FEATURE_NOT_SUPPORTED);
    let unknown = winhv.install_intercept(child, HvInterceptType(99), 3, all);
    assert_eq!(status(unknown), HvStatus::INVALID_PARAMETER);
}

#[test]
fn a_triple_fault() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    let message = intercept(&machine, &mut cpu, Exit::TripleFault);
    assert_eq!(
        message.header.message_type,
        HvMessageType::UNRECOVERABLE_EXCEPTION
    );
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Suspended);
}

#[test]
fn a_crash_report() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    let control = machine.rdmsr(&mut cpu, HV_X64_MSR_CRASH_CTL).unwrap();
    assert_eq!(control, HV_CRASH_CTL_NOTIFY | HV_CRASH_CTL_NOTIFY_MSG);
    machine.write_guest(0x5000, b"Kernel panic");
    for (index, value) in [1, 2, 3, 0x5000, 12].into_iter().enumerate() {
        machine.wrmsr(&mut cpu, HV_X64_MSR_CRASH_P0 + index as u32, value);
    }
    let mut crash = |value| {
        cpu.exits(&[Exit::WriteMsr {
            index: HV_X64_MSR_CRASH_CTL,
            value,
        }]);
        machine.run(0, &mut cpu)
    };
    let RunOutcome::Crash(report) = crash(control) else {
        panic!("no crash");
    };
    assert_eq!(report.parameters, [1, 2, 3, 0x5000, 12]);
    assert_eq!(report.message.as_deref(), Some(b"Kernel panic".as_slice()));
    let RunOutcome::Crash(report) = crash(HV_CRASH_CTL_NOTIFY) else {
        panic!("no crash");
    };
    assert_eq!(report.message, None);
    assert_eq!(crash(0), RunOutcome::Halted);
    // Wild parameters do no harm.
    machine.wrmsr(&mut cpu, HV_X64_MSR_CRASH_P0 + 3, u64::MAX - 5);
    machine.wrmsr(&mut cpu, HV_X64_MSR_CRASH_P0 + 4, u64::MAX);
    cpu.exits(&[Exit::WriteMsr {
        index: HV_X64_MSR_CRASH_CTL,
        value: control,
    }]);
    let RunOutcome::Crash(report) = machine.run(0, &mut cpu) else {
        panic!("no crash");
    };
    assert_eq!(report.message, None);
}

#[test]
fn a_reset() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.wrmsr(&mut cpu, HV_X64_MSR_RESET, 0);
    cpu.exits(&[Exit::WriteMsr {
        index: HV_X64_MSR_RESET,
        value: 1,
    }]);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Reset);
    let machine = Machine::with_privileges(1, HvPartitionPrivilegeMask::empty());
    machine.wrmsr_faults(&mut machine.cpu(), HV_X64_MSR_RESET, 1);
}
