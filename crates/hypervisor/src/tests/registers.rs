//! HvCallGetVpRegisters and HvCallSetVpRegisters.

use super::*;
use HvRegisterName as N;

#[test]
fn own_registers_are_always_at_hand() {
    let machine = Machine::new(2);
    let (winhv, child) = (&machine.winhv, machine.child);
    let values: [(N, u64); 8] = [
        (N::SINT2, 0x100F3),
        (N::SCONTROL, 1),
        (N::CR8, 7),
        (N::GUEST_CRASH_P3, 0x99),
        (N::STIMER1_CONFIG, HvStimerConfig::direct(0xED, 0).0),
        (N::STIMER1_COUNT, 500),
        (N::SIMP, 0x5001),
        (N::EXPLICIT_SUSPEND, 1),
    ];
    let registers: Vec<_> = values
        .iter()
        .map(|(n, v)| (*n, HvRegisterValue::from(*v)))
        .collect();
    winhv.set_vp_registers(child, 1, &registers).unwrap();
    let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
    let read = winhv.vp_registers(child, 1, &names).unwrap();
    let read: Vec<u64> = read.iter().map(|value| value.as_u64()).collect();
    assert_eq!(
        read,
        values.iter().map(|(_, value)| *value).collect::<Vec<_>>()
    );
    assert_eq!(
        winhv.vp_register(child, 1, N::VP_INDEX).unwrap().as_u64(),
        1
    );
    assert_eq!(
        winhv.vp_register(child, 1, N::APIC_BASE).unwrap().as_u64(),
        0xFEE0_0800
    );
    let version = winhv
        .vp_register(child, 1, N::HYPERVISOR_VERSION)
        .unwrap()
        .0;
    assert_eq!((version as u32, (version >> 32) as u32), (20348, 10 << 16));
    assert_eq!(
        winhv
            .vp_register(child, 1, N::PROCESSOR_CLOCK_FREQUENCY)
            .unwrap()
            .as_u64(),
        TSC_HZ
    );
    let activity = winhv
        .vp_register(child, 1, N::INTERNAL_ACTIVITY_STATE)
        .unwrap()
        .as_u64();
    assert_eq!(activity, HvInternalActivity::STARTUP_SUSPEND.bits());
}

#[test]
fn bad_registers_and_values() {
    let machine = Machine::new(1);
    let (winhv, child) = (&machine.winhv, machine.child);
    let set = |name, value: u64| {
        status(winhv.set_vp_registers(
            child,
            0,
            &[(N::GUEST_CRASH_P0, 1u64.into()), (name, value.into())],
        ))
    };
    assert_eq!(set(N::SINT1, 5), HvStatus::INVALID_REGISTER_VALUE);
    assert_eq!(set(N::CR8, 16), HvStatus::INVALID_REGISTER_VALUE);
    assert_eq!(set(N::VP_INDEX, 1), HvStatus::INVALID_PARAMETER);
    assert_eq!(
        set(N::INTERNAL_ACTIVITY_STATE, 1 << 9),
        HvStatus::INVALID_REGISTER_VALUE
    );
    assert_eq!(set(N::RAX, 1), HvStatus::INVALID_VP_STATE);
    let error = winhv.set_vp_registers(
        child,
        0,
        &[(N::GUEST_CRASH_P0, 1u64.into()), (N::RAX, 1u64.into())],
    );
    assert_eq!(error.unwrap_err().completed, 1);
    assert_eq!(
        status(winhv.vp_register(child, 0, N::RIP)),
        HvStatus::INVALID_VP_STATE
    );
    assert_eq!(
        status(winhv.vp_register(child, 9, N::SINT0)),
        HvStatus::INVALID_VP_INDEX
    );
    assert_eq!(
        status(winhv.vp_register(99, 0, N::SINT0)),
        HvStatus::INVALID_PARTITION_ID
    );
}

#[test]
fn lent_processors_give_theirs() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    let header = HvInputVpRegisters {
        partition_id: machine.child,
        ..Default::default()
    };
    let mut call = |name: N, value: Option<u128>| {
        let mut input = header.as_bytes().to_vec();
        let code = match value {
            Some(value) => {
                input.extend_from_slice(HvRegisterAssoc::new(name, value.into()).as_bytes());
                HvCallCode::SET_VP_REGISTERS
            }
            None => {
                input.extend_from_slice(name.as_bytes());
                HvCallCode::GET_VP_REGISTERS
            }
        };
        let mut output = [0; 16];
        let vp = (machine.child, 0);
        let control = HvHypercallControl::rep(code, 1, 0).0;
        let out: &mut [u8] = if value.is_some() {
            &mut []
        } else {
            &mut output
        };
        let result = machine
            .hypervisor
            .root_hypercall_for_vp(control, &input, out, vp, &mut cpu);
        (
            HvHypercallResult(result).status(),
            u128::from_le_bytes(output),
        )
    };
    assert_eq!(call(N::RIP, None), (HvStatus::SUCCESS, 0x1234));
    assert_eq!(call(N::RIP, Some(0x7777)).0, HvStatus::SUCCESS);
    assert_eq!(call(N::RIP, None), (HvStatus::SUCCESS, 0x7777));
    assert_eq!(
        call(N::RIP, Some(0xBAD)).0,
        HvStatus::INVALID_REGISTER_VALUE
    );
    assert_eq!(call(N::DR7, Some(1)).0, HvStatus::INVALID_PARAMETER);
    assert_eq!(call(N::DR7, None).0, HvStatus::INVALID_PARAMETER);
    assert_eq!(call(N::APIC_SPURIOUS, Some(0x1FF)).0, HvStatus::SUCCESS);
    assert_eq!(call(N::APIC_SPURIOUS, None), (HvStatus::SUCCESS, 0x1FF));
    let nmi = HvPendingInterruption::new(HvPendingInterruption::NMI, 2, None);
    assert_eq!(
        call(N::PENDING_INTERRUPTION, Some(nmi.0.into())).0,
        HvStatus::SUCCESS
    );
    let ten = HvPendingInterruption::new(HvPendingInterruption::EXCEPTION, 32, None);
    let refused = call(N::PENDING_INTERRUPTION, Some(ten.0.into())).0;
    assert_eq!(refused, HvStatus::INVALID_REGISTER_VALUE);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections, [Injection::Nmi]);
}

#[test]
fn a_guest_does_not_suspend_itself() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let header = HvInputVpRegisters {
        partition_id: HV_PARTITION_ID_SELF,
        vp_index: HV_VP_INDEX_SELF,
        ..Default::default()
    };
    let control = HvHypercallControl::rep(HvCallCode::SET_VP_REGISTERS, 1, 0).0;
    let mut set = |name, value: u64| {
        let mut input = header.as_bytes().to_vec();
        input.extend_from_slice(HvRegisterAssoc::new(name, value.into()).as_bytes());
        HvHypercallResult(machine.guest_call(&mut cpu, control, &input)).status()
    };
    assert_eq!(set(N::EXPLICIT_SUSPEND, 1), HvStatus::ACCESS_DENIED);
    assert_eq!(set(N::INTERCEPT_COMPLETION, 1), HvStatus::ACCESS_DENIED);
    assert_eq!(set(N::RIP, 0x99), HvStatus::SUCCESS);
    assert_eq!(cpu.registers[&N::RIP].0, 0x99);
}
