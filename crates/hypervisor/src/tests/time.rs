//! Reference time, the TSC page, synthetic timers, the APIC timer.

use super::*;

fn page(machine: &Machine) -> HvReferenceTscPage {
    let bytes = machine
        .platform
        .bytes(machine.spa(0x40000), size_of::<HvReferenceTscPage>());
    zerocopy::FromBytes::read_from_bytes(&bytes).unwrap()
}

fn page_time(page: &HvReferenceTscPage, tsc: u64) -> u64 {
    let scaled = (u128::from(tsc) * u128::from(page.tsc_scale)) >> 64;
    (scaled as u64).wrapping_add_signed(page.tsc_offset)
}

#[test]
fn the_page_and_the_counter_tell_one_time() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    cpu.tsc_offset = 0u64.wrapping_sub(900_000);
    machine.wrmsr(&mut cpu, HV_X64_MSR_REFERENCE_TSC, 0x40001);
    assert_eq!(
        machine.rdmsr(&mut cpu, HV_X64_MSR_REFERENCE_TSC),
        Some(0x40001)
    );
    let first = page(&machine);
    assert_ne!(first.tsc_sequence, 0);
    for step in [0, 1, 999, 10_000_000, 36_000_000_000] {
        machine.platform.advance(step);
        let counter = machine.rdmsr(&mut cpu, HV_X64_MSR_TIME_REF_COUNT).unwrap();
        assert_eq!(counter, page_time(&first, cpu.tsc()));
        assert_eq!(
            machine.hypervisor.reference_time(machine.child),
            Some(counter)
        );
    }
    let seconds = machine.rdmsr(&mut cpu, HV_X64_MSR_TIME_REF_COUNT).unwrap() / 10_000_000;
    assert_eq!(seconds, 3601);
    machine.wrmsr_faults(&mut cpu, HV_X64_MSR_TIME_REF_COUNT, 0);
    assert_eq!(
        machine.rdmsr(&mut cpu, HV_X64_MSR_TSC_FREQUENCY),
        Some(TSC_HZ)
    );
    assert_eq!(
        machine.rdmsr(&mut cpu, HV_X64_MSR_APIC_FREQUENCY),
        Some(200_000_000)
    );
    machine.wrmsr(&mut cpu, HV_X64_MSR_REFERENCE_TSC, 0);
    assert_eq!(machine.spa(0x40000), (RAM_SPA_PAGE + 0x40) << 12);
}

#[test]
fn frozen_time_stands() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    machine.wrmsr(&mut cpu, HV_X64_MSR_REFERENCE_TSC, 0x40001);
    let before = page(&machine).tsc_sequence;
    let (winhv, child) = (&machine.winhv, machine.child);
    use HvPartitionPropertyCode as P;
    winhv
        .set_partition_property(child, P::TIME_FREEZE, 1)
        .unwrap();
    assert_eq!(page(&machine).tsc_sequence, 0);
    let time = winhv.partition_property(child, P::REFERENCE_TIME).unwrap();
    machine.platform.advance(5000);
    assert_eq!(winhv.partition_property(child, P::REFERENCE_TIME), Ok(time));
    winhv
        .set_partition_property(child, P::REFERENCE_TIME, 777_000)
        .unwrap();
    winhv
        .set_partition_property(child, P::TIME_FREEZE, 0)
        .unwrap();
    machine.platform.advance(100);
    assert_eq!(
        winhv.partition_property(child, P::REFERENCE_TIME),
        Ok(777_100)
    );
    assert_ne!(page(&machine).tsc_sequence, before);
    assert_eq!(page_time(&page(&machine), cpu.tsc()), 777_100);
}

#[test]
fn direct_timers() {
    let machine = Machine::new(1);
    machine.enable_apic(0);
    let mut cpu = machine.cpu();
    let (config, count) = (HV_X64_MSR_STIMER0_CONFIG + 2, HV_X64_MSR_STIMER0_COUNT + 2);
    machine.wrmsr_faults(&mut cpu, config, 1 << 13);
    machine.wrmsr_faults(&mut cpu, config, 1 << 20);
    // Neither a vector below 16 nor SINT0 can run.
    machine.wrmsr(&mut cpu, count, 5);
    for bad in [HvStimerConfig::direct(15, 1), HvStimerConfig::message(0, 1)] {
        machine.wrmsr(&mut cpu, config, bad.0);
        assert_eq!(machine.rdmsr(&mut cpu, config), Some(bad.0 & !1));
    }
    // One-shot in the past fires at once.
    machine.wrmsr(
        &mut cpu,
        config,
        HvStimerConfig::direct(0xED, HvStimerConfig::AUTO_ENABLE).0,
    );
    machine.platform.advance(100);
    cpu.injections.clear();
    machine.wrmsr(&mut cpu, count, 1);
    assert_eq!(cpu.injections, [Injection::Interrupt(0xED)]);
    machine.wrmsr(&mut cpu, HV_X64_MSR_EOI, 0);
    // Writing 0 stops.
    let now = machine.hypervisor.reference_time(machine.child).unwrap();
    machine.wrmsr(&mut cpu, count, now + 100);
    machine.wrmsr(&mut cpu, count, 0);
    machine.platform.advance(1000);
    cpu.injections.clear();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert!(cpu.injections.is_empty());
}

#[test]
fn periodic_timers_skip_what_was_missed() {
    let machine = Machine::new(1);
    machine.enable_apic(0);
    let mut cpu = machine.cpu();
    let start = machine.hypervisor.reference_time(machine.child).unwrap();
    machine.wrmsr(&mut cpu, HV_X64_MSR_STIMER0_COUNT, 1000);
    let flags = HvStimerConfig::PERIODIC | HvStimerConfig::ENABLE;
    machine.wrmsr(
        &mut cpu,
        HV_X64_MSR_STIMER0_CONFIG,
        HvStimerConfig::direct(0x60, flags).0,
    );
    let armed = || machine.platform.timers.lock().unwrap()[&0];
    assert_eq!(armed(), Some(start + 1000));
    machine.platform.advance(3500);
    cpu.injections.clear();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections, [Injection::Interrupt(0x60)]);
    assert_eq!(armed(), Some(start + 4000));
    // A period of one unit and a huge count do not hang or overflow.
    machine.wrmsr(&mut cpu, HV_X64_MSR_STIMER0_COUNT, 1);
    machine.wrmsr(
        &mut cpu,
        HV_X64_MSR_STIMER0_CONFIG,
        HvStimerConfig::direct(0x60, flags).0,
    );
    machine.platform.advance(1 << 40);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    machine.wrmsr(&mut cpu, HV_X64_MSR_STIMER0_COUNT, u64::MAX);
    machine.wrmsr(
        &mut cpu,
        HV_X64_MSR_STIMER0_CONFIG,
        HvStimerConfig::direct(0x60, flags).0,
    );
    assert_eq!(armed(), Some(u64::MAX));
}

#[test]
fn the_apic_timer_is_armed_in_reference_time() {
    let machine = Machine::new(1);
    machine.enable_apic(0);
    let mut cpu = machine.cpu();
    let now = machine.hypervisor.reference_time(machine.child).unwrap();
    // TSC-deadline mode, vector 0x55.
    let lvt = Exit::MmioWrite {
        gpa: 0xFEE0_0320,
        size: 4,
        value: 2 << 17 | 0x55,
    };
    assert_eq!(machine.exit(&mut cpu, lvt), Some(Completion::Done));
    let deadline = cpu.tsc() + 2_500_000;
    machine.wrmsr(&mut cpu, MSR_IA32_TSC_DEADLINE, deadline);
    assert_eq!(
        machine.rdmsr(&mut cpu, MSR_IA32_TSC_DEADLINE),
        Some(deadline)
    );
    assert_eq!(
        machine.platform.timers.lock().unwrap()[&0],
        Some(now + 10_000)
    );
    machine.platform.advance(10_000);
    cpu.injections.clear();
    assert_eq!(machine.resume(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections, [Injection::Interrupt(0x55)]);
}
