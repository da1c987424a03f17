//! Calls of parents and guests that have no file of their own: start of a
//! virtual processor, APIC ids, translation, ports.

use super::*;

#[test]
fn starting_a_virtual_processor() {
    let machine = Machine::new(2);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let mut other = machine.cpu();
    assert_eq!(machine.run(1, &mut other), RunOutcome::WaitForSipi);
    let mut input = HvInputStartVirtualProcessor {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index: 1,
        ..Default::default()
    };
    input.vp_context.rip = 0x7000;
    let control = HvHypercallControl::simple(HvCallCode::START_VIRTUAL_PROCESSOR).0;
    let start = |cpu: &mut FakeProcessor, input: &HvInputStartVirtualProcessor| {
        HvHypercallResult(machine.guest_call(cpu, control, input.as_bytes())).status()
    };
    for (index, vtl, expected) in [
        (7, 0, HvStatus::INVALID_VP_INDEX),
        (1, 1, HvStatus::INVALID_PARAMETER),
        (0, 0, HvStatus::INVALID_VP_STATE),
        (1, 0, HvStatus::SUCCESS),
    ] {
        let input = HvInputStartVirtualProcessor {
            vp_index: index,
            target_vtl: vtl,
            ..input
        };
        assert_eq!(start(&mut cpu, &input), expected);
    }
    assert!(machine.hypervisor.vp_has_work(machine.child, 1));
    assert_eq!(machine.run(1, &mut other), RunOutcome::Halted);
    assert_eq!(other.registers[&HvRegisterName::RIP].0, 0x7000);
    assert_eq!(start(&mut cpu, &input), HvStatus::INVALID_VP_STATE);
}

#[test]
fn apic_ids() {
    let machine = Machine::new(3);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let header = HvInputGetVpIndexFromApicId {
        partition_id: HV_PARTITION_ID_SELF,
        ..Default::default()
    };
    let mut input = header.as_bytes().to_vec();
    input.extend_from_slice([2u32, 1, 9].as_bytes());
    let control = HvHypercallControl::rep(HvCallCode::GET_VP_INDEX_FROM_APIC_ID, 3, 0).0;
    let result = HvHypercallResult(machine.guest_call(&mut cpu, control, &input));
    assert_eq!(
        (result.status(), result.reps_completed()),
        (HvStatus::INVALID_PARAMETER, 2)
    );
    assert_eq!(machine.read_guest(0x21000, 8), [2, 0, 0, 0, 1, 0, 0, 0]);
}

#[test]
fn translating_addresses_needs_the_processor() {
    let machine = Machine::new(1);
    let flags = HvTranslateGvaFlags::VALIDATE_READ;
    let unlent = machine
        .winhv
        .translate_virtual_address(machine.child, 0, 3, flags);
    assert_eq!(status(unlent), HvStatus::INVALID_VP_STATE);
    let lend = |gva_page: u64, flags: HvTranslateGvaFlags| {
        let input = HvInputTranslateVirtualAddress {
            partition_id: machine.child,
            vp_index: 0,
            padding: 0,
            control_flags: flags.bits(),
            gva_page,
        };
        let mut output = HvOutputTranslateVirtualAddress::default();
        let control = HvHypercallControl::simple(HvCallCode::TRANSLATE_VIRTUAL_ADDRESS).0;
        let mut cpu = machine.cpu();
        let result = machine.hypervisor.root_hypercall_for_vp(
            control,
            input.as_bytes(),
            output.as_mut_bytes(),
            (machine.child, 0),
            &mut cpu,
        );
        assert_eq!(result, 0);
        (output.result_code, output.gpa_page)
    };
    use HvTranslateGvaResultCode as R;
    assert_eq!(lend(3, flags), (R::SUCCESS, 3));
    assert_eq!(lend(0xBAD, flags).0, R::PAGE_NOT_PRESENT);
    assert_eq!(
        lend(0xFEE, HvTranslateGvaFlags::VALIDATE_WRITE).0,
        R::PRIVILEGE_VIOLATION
    );
    assert_eq!(lend(0x500, flags).0, R::GPA_UNMAPPED);
    let read = HvMapGpaFlags::READABLE;
    machine
        .winhv
        .map_gpa_pages(machine.child, 0x600, [0x300], read)
        .unwrap();
    assert_eq!(
        lend(0x600, HvTranslateGvaFlags::VALIDATE_WRITE).0,
        R::GPA_NO_WRITE_ACCESS
    );
}

#[test]
fn ports_and_connections() {
    let machine = Machine::new(1);
    let (winhv, child) = (&machine.winhv, machine.child);
    let root = HV_PARTITION_ID_SELF;
    let message = HvPortInfo::message(2, 0);
    winhv.create_port(root, 7, child, message).unwrap();
    assert_eq!(
        status(winhv.create_port(root, 7, child, message)),
        HvStatus::INVALID_PORT_ID
    );
    assert_eq!(
        status(winhv.create_port(root, 8, 99, message)),
        HvStatus::INVALID_PARTITION_ID
    );
    assert_eq!(
        status(winhv.create_port(root, 1 << 24, child, message)),
        HvStatus::INVALID_PARAMETER
    );
    let bad = [
        HvPortInfo::message(16, 0),
        HvPortInfo::event(2, 0, 0, 0),
        HvPortInfo::event(2, 0, 2040, 9),
        HvPortInfo {
            port_type: HvPortType::MONITOR,
            ..message
        },
        HvPortInfo {
            port_type: HvPortType(9),
            ..message
        },
    ];
    for info in bad {
        let result = winhv.create_port(root, 9, child, info);
        assert_eq!(status(result), HvStatus::INVALID_PARAMETER, "{info:?}");
    }
    let connect = |id, port, kind| winhv.connect_port(child, id, root, port, kind);
    connect(4, 7, HvPortType::MESSAGE).unwrap();
    assert_eq!(
        status(connect(4, 7, HvPortType::MESSAGE)),
        HvStatus::INVALID_CONNECTION_ID
    );
    assert_eq!(
        status(connect(5, 6, HvPortType::MESSAGE)),
        HvStatus::INVALID_PORT_ID
    );
    assert_eq!(
        status(connect(5, 7, HvPortType::EVENT)),
        HvStatus::INVALID_PARAMETER
    );
    let denied = winhv.connect_port(root, 5, root, 7, HvPortType::MESSAGE);
    assert_eq!(status(denied), HvStatus::ACCESS_DENIED);
    winhv.disconnect_port(child, 4).unwrap();
    assert_eq!(
        status(winhv.disconnect_port(child, 4)),
        HvStatus::INVALID_CONNECTION_ID
    );
    winhv.delete_port(root, 7).unwrap();
    assert_eq!(
        status(winhv.delete_port(root, 7)),
        HvStatus::INVALID_PORT_ID
    );
}

#[test]
fn the_deprecated_port_calls() {
    let machine = Machine::new(1);
    let child = machine.child;
    let create = HvInputCreatePortDeprecated {
        port_partition_id: HV_PARTITION_ID_SELF,
        port_id: 3,
        connection_partition_id: child,
        port_info: HvPortInfo::event(2, 0, 5, 2),
        ..Default::default()
    };
    let connect = HvInputConnectPortDeprecated {
        connection_partition_id: child,
        connection_id: 9,
        port_partition_id: HV_PARTITION_ID_SELF,
        port_id: 3,
        connection_info: HvConnectionInfoDeprecated {
            port_type: HvPortType::EVENT,
            ..Default::default()
        },
        ..Default::default()
    };
    let call = |code, input: &[u8]| {
        machine
            .hypervisor
            .root_hypercall(HvHypercallControl::simple(code).0, input, &mut [])
    };
    assert_eq!(
        call(HvCallCode::CREATE_PORT_DEPRECATED, create.as_bytes()),
        0
    );
    assert_eq!(
        call(HvCallCode::CONNECT_PORT_DEPRECATED, connect.as_bytes()),
        0
    );
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let control = HvHypercallControl::simple(HvCallCode::SIGNAL_EVENT)
        .with_fast()
        .0;
    let mut signal = |input: u64| {
        cpu.hypercall(control, input, 0);
        assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
        HvHypercallResult(cpu.gprs[0]).status()
    };
    assert_eq!(signal(9 | 1 << 32), HvStatus::SUCCESS);
    assert_eq!(signal(9 | 2 << 32), HvStatus::INVALID_PARAMETER);
    assert_eq!(signal(9 | 1 << 48), HvStatus::INVALID_PARAMETER);
    assert_eq!(signal(8), HvStatus::INVALID_CONNECTION_ID);
    let notified = machine.platform.notifications.lock().unwrap().clone();
    assert_eq!(notified, [RootNotification::Event { port: 3, flag: 6 }]);
    machine.winhv.delete_port(HV_PARTITION_ID_SELF, 3).unwrap();
    assert_eq!(signal(9), HvStatus::INVALID_PORT_ID);
}

#[test]
fn short_input_is_refused() {
    let machine = Machine::new(1);
    let control = HvHypercallControl::simple(HvCallCode::CREATE_VP).0;
    let result = machine
        .hypervisor
        .root_hypercall(control, &[0; 16], &mut []);
    assert_eq!(
        HvHypercallResult(result).status(),
        HvStatus::INVALID_HYPERCALL_INPUT
    );
    let control = HvHypercallControl::simple(HvCallCode::GET_PARTITION_ID).0;
    let result = machine.hypervisor.root_hypercall(control, &[], &mut [0; 4]);
    assert_eq!(
        HvHypercallResult(result).status(),
        HvStatus::INVALID_HYPERCALL_INPUT
    );
}
