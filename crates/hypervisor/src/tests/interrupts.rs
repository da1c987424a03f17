//! IPIs, device interrupts, injection, halts.

use super::*;

fn assert_fixed(machine: &Machine, destination: u64, vector: u8, level: bool) {
    let control = HvInterruptControl::new(HvInterruptType::FIXED, level, false);
    machine
        .winhv
        .assert_virtual_interrupt(machine.child, control, destination, vector)
        .unwrap();
}

#[test]
fn a_device_interrupt_wakes_a_halted_vp() {
    let machine = Machine::new(1);
    machine.enable_apic(0);
    let mut cpu = machine.cpu();
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert!(!machine.hypervisor.vp_has_work(machine.child, 0));
    assert_eq!(machine.resume(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.runs, 1);
    machine.platform.kicks.lock().unwrap().clear();
    assert_fixed(&machine, 0, 0x31, false);
    assert_eq!(*machine.platform.kicks.lock().unwrap(), [0]);
    assert!(machine.hypervisor.vp_has_work(machine.child, 0));
    assert_eq!(machine.resume(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(
        (cpu.runs, cpu.injections.as_slice()),
        (2, [Injection::Interrupt(0x31)].as_slice())
    );
}

#[test]
fn interrupts_wait_for_the_window_and_the_task_priority() {
    let machine = Machine::new(1);
    machine.enable_apic(0);
    let mut cpu = machine.cpu();
    cpu.interruptible = false;
    assert_fixed(&machine, 0, 0x51, false);
    cpu.then(|cpu| {
        assert!(cpu.interrupt_window && cpu.injections.is_empty());
        cpu.interruptible = true;
        Exit::InterruptWindow
    });
    cpu.then(|cpu| {
        assert!(!cpu.interrupt_window);
        assert_eq!(cpu.injections, [Injection::Interrupt(0x51)]);
        Exit::WriteCr8 { value: 6 }
    });
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_fixed(&machine, 0, 0x61, false);
    assert_eq!(machine.resume(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections.len(), 1);
    assert_eq!(
        machine.exit(&mut cpu, Exit::ReadCr8),
        Some(Completion::Value(6))
    );
    cpu.exits(&[Exit::WriteCr8 { value: 5 }]);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections[1], Injection::Interrupt(0x61));
}

#[test]
fn the_end_of_a_level_interrupt_reaches_the_parent() {
    let machine = Machine::new(1);
    machine.enable_apic(0);
    let mut cpu = machine.cpu();
    assert_fixed(&machine, 0, 0x41, true);
    cpu.exits(&[Exit::MmioWrite {
        gpa: 0xFEE0_00B0,
        size: 4,
        value: 0,
    }]);
    assert_eq!(
        machine.run(0, &mut cpu),
        RunOutcome::ApicEoi { vector: 0x41 }
    );
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    // An edge interrupt ends silently.
    assert_fixed(&machine, 0, 0x42, false);
    cpu.exits(&[Exit::WriteMsr {
        index: HV_X64_MSR_EOI,
        value: 0,
    }]);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections, [0x41, 0x42].map(Injection::Interrupt));
}

#[test]
fn apic_registers_by_memory_and_msr() {
    let machine = Machine::new(2);
    let mut cpu = machine.cpu();
    let write = |gpa, value| Exit::MmioWrite {
        gpa,
        size: 4,
        value,
    };
    assert_eq!(
        machine.exit(&mut cpu, write(0xFEE0_00F0, 0x1FF)),
        Some(Completion::Done)
    );
    let read = Exit::MmioRead {
        gpa: 0xFEE0_00F0,
        size: 4,
    };
    assert_eq!(machine.exit(&mut cpu, read), Some(Completion::Value(0x1FF)));
    let byte = Exit::MmioRead {
        gpa: 0xFEE0_00F1,
        size: 1,
    };
    assert_eq!(machine.exit(&mut cpu, byte), Some(Completion::Value(1)));
    assert_eq!(machine.rdmsr(&mut cpu, 0x802), None);
    machine.wrmsr(&mut cpu, MSR_IA32_APIC_BASE, 0xFEE0_0D00);
    assert_eq!(
        machine.rdmsr(&mut cpu, MSR_IA32_APIC_BASE),
        Some(0xFEE0_0D00)
    );
    assert_eq!(machine.rdmsr(&mut cpu, 0x802), Some(0));
    machine.wrmsr_faults(&mut cpu, 0x802, 1);
    machine.wrmsr_faults(&mut cpu, MSR_IA32_APIC_BASE, 0xFEE0_0900);
    // In x2APIC mode the page is gone.
    cpu.exits(&[read]);
    assert!(matches!(machine.run(0, &mut cpu), RunOutcome::Intercept(_)));
}

#[test]
fn init_and_startup() {
    let machine = Machine::new(3);
    machine.enable_apic(0);
    let mut cpu = machine.cpu();
    let mut other = machine.cpu();
    assert_eq!(machine.run(1, &mut other), RunOutcome::WaitForSipi);
    let icr = |cpu: &mut FakeProcessor, low: u64| {
        // All but self.
        let exit = Exit::MmioWrite {
            gpa: 0xFEE0_0300,
            size: 4,
            value: low | 0xC_0000,
        };
        assert_eq!(machine.exit(cpu, exit), Some(Completion::Done));
    };
    icr(&mut cpu, 0x4500);
    icr(&mut cpu, 0x0608);
    assert_eq!(machine.run(1, &mut other), RunOutcome::Halted);
    assert_eq!(
        (other.resets.as_slice(), other.startups.as_slice()),
        ([false].as_slice(), [8].as_slice())
    );
    // A second SIPI is ignored while it runs.
    icr(&mut cpu, 0x0609);
    assert_eq!(machine.resume(1, &mut other), RunOutcome::Halted);
    assert_eq!(other.startups, [8]);
    icr(&mut cpu, 0x4500);
    assert_eq!(machine.resume(1, &mut other), RunOutcome::WaitForSipi);
    // NMI to a running one.
    icr(&mut cpu, 0x0608);
    icr(&mut cpu, 0x4400);
    assert_eq!(machine.run(1, &mut other), RunOutcome::Halted);
    assert_eq!(other.injections, [Injection::Nmi]);
    // Of NMIs that come together one is taken and one waits.
    for _ in 0..3 {
        icr(&mut cpu, 0x4400);
    }
    for _ in 0..3 {
        assert_eq!(machine.run(1, &mut other), RunOutcome::Halted);
    }
    assert_eq!(other.injections, [Injection::Nmi; 3]);
}

#[test]
fn cluster_ipis() {
    let machine = Machine::new(2);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    machine.enable_apic(0);
    machine.enable_apic(1);
    let activity = [(HvRegisterName::INTERNAL_ACTIVITY_STATE, 0u64.into())];
    machine
        .winhv
        .set_vp_registers(machine.child, 1, &activity)
        .unwrap();
    let control = HvHypercallControl::simple(HvCallCode::SEND_SYNTHETIC_CLUSTER_IPI).with_fast();
    let send = |cpu: &mut FakeProcessor, vector: u64, mask: u64| {
        cpu.hypercall(control.0, vector, mask);
        assert_eq!(machine.run(0, cpu), RunOutcome::Halted);
        HvHypercallResult(cpu.gprs[0]).status()
    };
    assert_eq!(send(&mut cpu, 0xFD, 0b10), HvStatus::SUCCESS);
    let mut other = machine.cpu();
    assert_eq!(machine.run(1, &mut other), RunOutcome::Halted);
    assert_eq!(other.injections, [Injection::Interrupt(0xFD)]);
    for vector in [0xF, 0x100, 0xFD | 1 << 32] {
        assert_eq!(send(&mut cpu, vector, 1), HvStatus::INVALID_PARAMETER);
    }
    let ex = HvInputSendSyntheticClusterIpiEx {
        vector: 0x80,
        format: HV_GENERIC_SET_ALL,
        ..Default::default()
    };
    let control = HvHypercallControl::simple(HvCallCode::SEND_SYNTHETIC_CLUSTER_IPI_EX);
    assert_eq!(machine.guest_call(&mut cpu, control.0, ex.as_bytes()), 0);
    assert_eq!(cpu.injections, [Injection::Interrupt(0x80)]);
}

#[test]
fn lowest_priority_takes_one() {
    let machine = Machine::new(2);
    machine.enable_apic(0);
    machine.enable_apic(1);
    let partition = machine.hypervisor.partition(machine.child).unwrap();
    partition.vp(0).unwrap().state.lock().apic.set_tpr(0x40);
    let control = HvInterruptControl::new(HvInterruptType::LOWEST_PRIORITY, false, false);
    machine
        .winhv
        .assert_virtual_interrupt(machine.child, control, 0xFF, 0x90)
        .unwrap();
    let requested = |vp| {
        partition
            .vp(vp)
            .unwrap()
            .state
            .lock()
            .apic
            .is_requested(0x90)
    };
    assert_eq!((requested(0), requested(1)), (false, true));
}

#[test]
fn external_interrupts() {
    let machine = Machine::new(1);
    let (winhv, child) = (&machine.winhv, machine.child);
    let control = HvInterruptControl::new(HvInterruptType::EXT_INT, false, false);
    winhv
        .assert_virtual_interrupt(child, control, 0, 0x08)
        .unwrap();
    let again = winhv.assert_virtual_interrupt(child, control, 0, 0x08);
    assert_eq!(status(again), HvStatus::NOT_ACKNOWLEDGED);
    winhv.clear_virtual_interrupt(child).unwrap();
    assert_eq!(
        status(winhv.clear_virtual_interrupt(child)),
        HvStatus::ACKNOWLEDGED
    );
    winhv
        .assert_virtual_interrupt(child, control, 0, 0x09)
        .unwrap();
    let mut cpu = machine.cpu();
    // LINT0 is masked: it waits until the guest sets ExtINT mode.
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert!(cpu.injections.is_empty());
    machine.enable_apic(0);
    cpu.exits(&[Exit::MmioWrite {
        gpa: 0xFEE0_0350,
        size: 4,
        value: 0x700,
    }]);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections, [Injection::Interrupt(9)]);
    let bad = HvInterruptControl(9 << 40);
    let result = winhv.assert_virtual_interrupt(child, bad, 0, 0x40);
    assert_eq!(status(result), HvStatus::INVALID_PARAMETER);
    let fixed = HvInterruptControl::new(HvInterruptType::FIXED, false, false);
    let result = winhv.assert_virtual_interrupt(child, fixed, 0, 0x0F);
    assert_eq!(status(result), HvStatus::INVALID_PARAMETER);
}

#[test]
fn guest_idle_ends_with_a_pending_interrupt() {
    let machine = Machine::new(1);
    machine.enable_apic(0);
    let mut cpu = machine.cpu();
    cpu.interruptible = false;
    cpu.exits(&[Exit::ReadMsr {
        index: HV_X64_MSR_GUEST_IDLE,
    }]);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(
        (cpu.runs, cpu.completions.as_slice()),
        (1, [Completion::Value(0)].as_slice())
    );
    assert_eq!(machine.resume(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.runs, 1);
    assert_fixed(&machine, 0, 0x77, false);
    // Runs on with the interrupt pending, not delivered.
    assert_eq!(machine.resume(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.runs, 2);
    assert!(cpu.injections.is_empty() && cpu.interrupt_window);
}

#[test]
fn guest_idle_ends_with_a_request_of_the_class_in_service() {
    let machine = Machine::new(1);
    machine.enable_apic(0);
    let mut cpu = machine.cpu();
    assert_fixed(&machine, 0, 0xfb, false);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.injections, [Injection::Interrupt(0xfb)]);
    // The handler, before its end of interrupt, waits for 0xF7.
    cpu.interruptible = false;
    cpu.exits(&[Exit::ReadMsr {
        index: HV_X64_MSR_GUEST_IDLE,
    }]);
    assert_eq!(machine.run(0, &mut cpu), RunOutcome::Halted);
    let runs = cpu.runs;
    assert_eq!(machine.resume(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.runs, runs, "nothing is requested yet");
    assert_fixed(&machine, 0, 0xf7, false);
    assert_eq!(machine.resume(0, &mut cpu), RunOutcome::Halted);
    assert_eq!(cpu.runs, runs + 1);
    assert_eq!(cpu.injections, [Injection::Interrupt(0xfb)]);
}
