//! Messages, events, synthetic timers' messages.

use super::*;

const SIMP: u64 = 0x30000;
const SIEFP: u64 = 0x31000;

/// VP 0 with its SynIC enabled and SINT2 on vector 0xF3.
fn synic_machine() -> (Machine, FakeProcessor) {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.enable_apic(0);
    machine.wrmsr(&mut cpu, HV_X64_MSR_SIMP, SIMP | 1);
    machine.wrmsr(&mut cpu, HV_X64_MSR_SIEFP, SIEFP | 1);
    machine.wrmsr(&mut cpu, HV_X64_MSR_SCONTROL, 1);
    machine.wrmsr(&mut cpu, HV_X64_MSR_SINT0 + 2, 0xF3);
    (machine, cpu)
}

fn slot(machine: &Machine, sint: u64) -> HvMessage {
    let bytes = machine.platform.bytes(machine.spa(SIMP) + sint * 256, 256);
    zerocopy::FromBytes::read_from_bytes(&bytes).unwrap()
}

fn free_slot(machine: &Machine, sint: u64) {
    machine
        .platform
        .store_u32(machine.spa(SIMP) + sint * 256, 0)
        .unwrap();
}

fn message(number: u8) -> HvMessage {
    HvMessage::new(HvMessageType::VMBUS, 4, &[number; 10])
}

#[test]
fn registers_after_reset_and_bad_values() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    for index in 0..16 {
        assert_eq!(
            machine.rdmsr(&mut cpu, HV_X64_MSR_SINT0 + index),
            Some(0x10000)
        );
    }
    assert_eq!(machine.rdmsr(&mut cpu, HV_X64_MSR_SVERSION), Some(1));
    assert_eq!(machine.rdmsr(&mut cpu, HV_X64_MSR_EOM), Some(0));
    machine.wrmsr_faults(&mut cpu, HV_X64_MSR_SVERSION, 1);
    machine.wrmsr_faults(&mut cpu, HV_X64_MSR_SINT0, 0xF);
    machine.wrmsr(&mut cpu, HV_X64_MSR_SINT0, 0xF | HvSynicSint::MASKED);
    assert_eq!(machine.rdmsr(&mut cpu, HV_X64_MSR_SIRBP), None);
    let machine = Machine::with_privileges(1, HvPartitionPrivilegeMask::empty());
    for index in [
        HV_X64_MSR_SCONTROL,
        HV_X64_MSR_SINT0,
        HV_X64_MSR_STIMER0_CONFIG,
        HV_X64_MSR_VP_INDEX,
        HV_X64_MSR_TIME_REF_COUNT,
        HV_X64_MSR_REFERENCE_TSC,
        HV_X64_MSR_TSC_FREQUENCY,
        HV_X64_MSR_VP_ASSIST_PAGE,
        HV_X64_MSR_GUEST_OS_ID,
        HV_X64_MSR_GUEST_IDLE,
        HV_X64_MSR_VP_RUNTIME,
    ] {
        assert_eq!(machine.rdmsr(&mut cpu, index), None, "{index:#x}");
    }
}

#[test]
fn messages_queue_behind_a_taken_slot() {
    let (machine, mut cpu) = synic_machine();
    let post = |number| {
        machine
            .winhv
            .post_message_direct(machine.child, 0, 2, &message(number))
    };
    post(1).unwrap();
    let first = slot(&machine, 2);
    assert_eq!(first.header.message_type, HvMessageType::VMBUS);
    assert_eq!(
        (first.payload(), first.header.flags, first.header.sender),
        ([1; 10].as_slice(), 0, 4)
    );
    cpu.injections.clear();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections, [Injection::Interrupt(0xF3)]);
    machine.wrmsr(&mut cpu, HV_X64_MSR_EOI, 0);
    for number in 2..18 {
        post(number).unwrap();
    }
    assert_eq!(status(post(18)), HvStatus::INSUFFICIENT_BUFFERS);
    assert_eq!(slot(&machine, 2).payload(), [1; 10]);
    assert_eq!(slot(&machine, 2).header.flags, HV_MESSAGE_FLAG_PENDING);
    cpu.injections.clear();
    for number in 2..18 {
        free_slot(&machine, 2);
        machine.wrmsr(&mut cpu, HV_X64_MSR_EOM, 0);
        let next = slot(&machine, 2);
        assert_eq!(next.payload(), [number; 10]);
        assert_eq!(next.header.flags != 0, number != 17);
        machine.wrmsr(&mut cpu, HV_X64_MSR_EOI, 0);
    }
    assert_eq!(cpu.injections.len(), 16);
    free_slot(&machine, 2);
    machine.wrmsr(&mut cpu, HV_X64_MSR_EOM, 0);
    assert_eq!(slot(&machine, 2).header.message_type, HvMessageType::NONE);
}

#[test]
fn masked_sources_take_messages_silently_and_refuse_events() {
    let (machine, mut cpu) = synic_machine();
    machine.wrmsr(&mut cpu, HV_X64_MSR_SINT0 + 2, 0x100F3);
    machine
        .winhv
        .post_message_direct(machine.child, 0, 2, &message(1))
        .unwrap();
    assert_eq!(slot(&machine, 2).payload(), [1; 10]);
    let event = machine.winhv.signal_event_direct(machine.child, 0, 2, 7);
    assert_eq!(status(event), HvStatus::INVALID_SYNIC_STATE);
    cpu.injections.clear();
    // The interrupt is lost, not late.
    machine.wrmsr(&mut cpu, HV_X64_MSR_SINT0 + 2, 0xF3);
    assert!(cpu.injections.is_empty());
    // A polled source is filled without an interrupt.
    machine.wrmsr(&mut cpu, HV_X64_MSR_SINT0 + 3, HvSynicSint::POLLING);
    cpu.injections.clear();
    machine
        .winhv
        .post_message_direct(machine.child, 0, 3, &message(3))
        .unwrap();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(slot(&machine, 3).payload(), [3; 10]);
    assert!(cpu.injections.is_empty());
    let bad = machine
        .winhv
        .post_message_direct(machine.child, 0, 16, &message(1));
    assert_eq!(status(bad), HvStatus::INVALID_PARAMETER);
}

#[test]
fn messages_need_the_controller_and_its_page() {
    let (machine, mut cpu) = synic_machine();
    let post = || {
        let message = message(1);
        status(
            machine
                .winhv
                .post_message_direct(machine.child, 0, 2, &message),
        )
    };
    for (msr, on) in [(HV_X64_MSR_SCONTROL, 1), (HV_X64_MSR_SIMP, SIMP | 1)] {
        machine.wrmsr(&mut cpu, msr, on & !1);
        assert_eq!(post(), HvStatus::INVALID_SYNIC_STATE, "{msr:#x}");
        machine.wrmsr(&mut cpu, msr, on);
        assert_eq!(slot(&machine, 2).header.message_type, HvMessageType::NONE);
    }
}

#[test]
fn events_interrupt_once() {
    let (machine, mut cpu) = synic_machine();
    let signal = |flag| machine.winhv.signal_event_direct(machine.child, 0, 2, flag);
    assert_eq!(signal(77), Ok(true));
    assert_eq!(signal(77), Ok(false));
    assert_eq!(status(signal(2048)), HvStatus::INVALID_PARAMETER);
    let flags = machine.platform.bytes(machine.spa(SIEFP) + 2 * 256, 256);
    assert_eq!(flags[77 / 8], 1 << (77 % 8));
    assert_eq!(flags.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
    cpu.injections.clear();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections, [Injection::Interrupt(0xF3)]);
}

#[test]
fn auto_eoi_ends_by_itself() {
    let (machine, mut cpu) = synic_machine();
    machine.wrmsr(&mut cpu, HV_X64_MSR_SINT0 + 2, 0xF3 | HvSynicSint::AUTO_EOI);
    cpu.injections.clear();
    for flag in 0..2 {
        machine
            .winhv
            .signal_event_direct(machine.child, 0, 2, flag)
            .unwrap();
        assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    }
    assert_eq!(cpu.injections, [Injection::Interrupt(0xF3); 2]);
}

#[test]
fn overlays_uncover_the_memory_below() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.write_guest(SIMP, &[0x77; 4096]);
    machine.wrmsr(&mut cpu, HV_X64_MSR_SIMP, SIMP | 0xABC | 1);
    assert_eq!(machine.rdmsr(&mut cpu, HV_X64_MSR_SIMP), Some(SIMP | 0xABD));
    assert_eq!(machine.platform.bytes(machine.spa(SIMP), 4096), [0; 4096]);
    // Another overlay on the same page, then both away.
    machine.wrmsr(&mut cpu, HV_X64_MSR_VP_ASSIST_PAGE, SIMP | 1);
    machine.wrmsr(&mut cpu, HV_X64_MSR_SIMP, SIMP);
    assert_ne!(machine.platform.bytes(machine.spa(SIMP), 1), [0x77]);
    machine.wrmsr(&mut cpu, HV_X64_MSR_VP_ASSIST_PAGE, 0);
    assert_eq!(
        machine.platform.bytes(machine.spa(SIMP), 4096),
        [0x77; 4096]
    );
    // A page beyond the address width is just not seen.
    machine.wrmsr(&mut cpu, HV_X64_MSR_SIMP, 1 << 60 | 1);
    assert_eq!(machine.rdmsr(&mut cpu, HV_X64_MSR_SIMP), Some(1 << 60 | 1));
}

#[test]
fn messages_between_guest_and_root() {
    let (machine, mut cpu) = synic_machine();
    machine.enable_hypercalls(&mut cpu);
    let root = HV_PARTITION_ID_SELF;
    let (winhv, child) = (&machine.winhv, machine.child);
    winhv
        .create_port(root, 10, child, HvPortInfo::message(0, 0))
        .unwrap();
    winhv
        .connect_port(child, 4, root, 10, HvPortType::MESSAGE)
        .unwrap();
    let mut input = HvInputPostMessage {
        connection_id: 4,
        message_type: 1,
        payload_size: 3,
        ..Default::default()
    };
    input.payload[..4].copy_from_slice(b"abcd");
    let control = HvHypercallControl::simple(HvCallCode::POST_MESSAGE).0;
    let mut post = |input: &HvInputPostMessage| {
        HvHypercallResult(machine.guest_call(&mut cpu, control, input.as_bytes())).status()
    };
    assert_eq!(post(&input), HvStatus::SUCCESS);
    let expected = RootNotification::Message {
        port: 10,
        message_type: 1,
        payload: b"abc".to_vec(),
    };
    assert_eq!(*machine.platform.notifications.lock().unwrap(), [expected]);
    for _ in 1..ROOT_QUEUE {
        assert_eq!(post(&input), HvStatus::SUCCESS);
    }
    assert_eq!(post(&input), HvStatus::INSUFFICIENT_BUFFERS);
    machine.platform.notifications.lock().unwrap().clear();
    assert_eq!(post(&input), HvStatus::SUCCESS);
    let bad = [
        HvInputPostMessage {
            payload_size: 241,
            ..input
        },
        HvInputPostMessage {
            message_type: 0x8000_0000,
            ..input
        },
        HvInputPostMessage {
            message_type: 0,
            ..input
        },
    ];
    for input in bad {
        assert_eq!(post(&input), HvStatus::INVALID_PARAMETER);
    }
    let unknown = HvInputPostMessage {
        connection_id: 5,
        ..input
    };
    assert_eq!(post(&unknown), HvStatus::INVALID_CONNECTION_ID);
    winhv.delete_port(root, 10).unwrap();
    assert_eq!(post(&input), HvStatus::INVALID_PORT_ID);
    // The other way: a port of the guest's.
    winhv
        .create_port(child, 20, root, HvPortInfo::message(2, HV_ANY_VP))
        .unwrap();
    winhv
        .connect_port(root, 6, child, 20, HvPortType::MESSAGE)
        .unwrap();
    winhv.post_message(6, 1, b"hello").unwrap();
    assert_eq!(slot(&machine, 2).payload(), b"hello");
    assert_eq!(slot(&machine, 2).header.sender, 20);
    winhv
        .create_port(child, 21, root, HvPortInfo::event(2, 0, 100, 10))
        .unwrap();
    winhv
        .connect_port(root, 7, child, 21, HvPortType::EVENT)
        .unwrap();
    winhv.signal_event(7, 9).unwrap();
    assert_eq!(
        status(winhv.signal_event(7, 10)),
        HvStatus::INVALID_PARAMETER
    );
    let flags = machine.platform.bytes(machine.spa(SIEFP) + 2 * 256, 256);
    assert_eq!(flags[109 / 8], 1 << (109 % 8));
}

#[test]
fn timer_messages() {
    let (machine, mut cpu) = synic_machine();
    let now = machine.rdmsr(&mut cpu, HV_X64_MSR_TIME_REF_COUNT).unwrap();
    let config = HvStimerConfig::message(2, HvStimerConfig::AUTO_ENABLE).0;
    machine.wrmsr(&mut cpu, HV_X64_MSR_STIMER0_CONFIG, config);
    machine.wrmsr(&mut cpu, HV_X64_MSR_STIMER0_COUNT, now + 1000);
    assert_eq!(
        machine.rdmsr(&mut cpu, HV_X64_MSR_STIMER0_CONFIG),
        Some(config | 1)
    );
    assert_eq!(
        machine.platform.timers.lock().unwrap()[&0],
        Some(now + 1000)
    );
    machine.platform.advance(999);
    assert!(!machine.hypervisor.vp_has_work(machine.child, 0));
    machine.platform.advance(10);
    assert!(machine.hypervisor.vp_has_work(machine.child, 0));
    cpu.injections.clear();
    assert_eq!(machine.resume(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections, [Injection::Interrupt(0xF3)]);
    let payload: HvTimerMessagePayload = slot(&machine, 2).body().unwrap();
    assert_eq!(
        (payload.timer_index, payload.expiration_time),
        (0, now + 1000)
    );
    assert!(payload.delivery_time >= now + 1000);
    assert_eq!(
        machine.rdmsr(&mut cpu, HV_X64_MSR_STIMER0_CONFIG),
        Some(config)
    );
    assert_eq!(machine.platform.timers.lock().unwrap()[&0], None);
}
