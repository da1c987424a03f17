//! CPUID as the guest sees it.

use super::*;

const IA32_APIC_BASE: u32 = 0x1B;

fn cpuid(machine: &Machine, leaf: u32, subleaf: u32, default: [u32; 4]) -> [u32; 4] {
    let exit = Exit::Cpuid {
        leaf,
        subleaf,
        default,
    };
    match machine.exit(&mut machine.cpu(), exit) {
        Some(Completion::Cpuid(values)) => values,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hypervisor_leaves() {
    let machine = Machine::with_privileges(2, HvPartitionPrivilegeMask::CHILD_DEFAULT);
    let leaf = |leaf| cpuid(&machine, leaf, 0, [0xFFFF_FFFF; 4]);
    let [max, b, c, d] = leaf(0x4000_0000);
    assert!(max >= 0x4000_0005);
    let vendor: Vec<u8> = [b, c, d].iter().flat_map(|r| r.to_le_bytes()).collect();
    assert_eq!(vendor, b"Microsoft Hv");
    assert_eq!(leaf(0x4000_0001)[0].to_le_bytes(), *b"Hv#1");
    let features = leaf(0x4000_0003);
    assert_eq!((features[0], features[1]), (0x8EFF, 0x30));
    // Frequency MSRs, crash MSRs, direct timers.
    assert_eq!(features[3] & 0x80500, 0x80500);
    let hints = leaf(0x4000_0004);
    assert_eq!(hints[0], 0xE24);
    assert_eq!(hints[1], u32::MAX);
    assert_eq!(leaf(0x4000_0005)[0], 240);
    for other in [0x4000_000A, 0x4000_0100, 0x4000_0200] {
        assert_eq!(leaf(other), [0; 4], "{other:#x}");
    }
}

#[test]
fn leaves_follow_privileges() {
    let few = HvPartitionPrivilegeMask::ACCESS_VP_INDEX;
    let machine = Machine::with_privileges(1, few);
    let none = [0; 4];
    assert_eq!(cpuid(&machine, 0x4000_0003, 0, none)[..2], [0x40, 0]);
    assert_eq!(cpuid(&machine, 0x4000_0004, 0, none)[0], 0x220);
}

#[test]
fn topology_of_three() {
    let machine = Machine::new(3);
    let [_, b, c, d] = cpuid(&machine, 1, 0, [0, 0x1234, 1 << 3, 0]);
    assert_eq!(b, 4 << 16 | 0x1234);
    assert_eq!(c, 1 << 31 | 1 << 24 | 1 << 21);
    assert_eq!(d, 1 << 28 | 1 << 9);
    assert_eq!(cpuid(&machine, 0xB, 0, [9; 4]), [0, 1, 0x100, 0]);
    assert_eq!(cpuid(&machine, 0xB, 1, [9; 4]), [2, 3, 0x201, 0]);
    assert_eq!(cpuid(&machine, 0x1F, 2, [9; 4]), [0, 0, 2, 0]);
    // L1 data cache: private. L3: shared by all four ids.
    let [l1, ..] = cpuid(&machine, 4, 0, [0xFFFF_C121, 0, 0, 0]);
    assert_eq!((l1 >> 26, l1 >> 14 & 0xFFF, l1 & 0x3FFF), (3, 0, 0x121));
    let [l3, ..] = cpuid(&machine, 4, 3, [0x163, 0, 0, 0]);
    assert_eq!((l3 >> 26, l3 >> 14 & 0xFFF), (3, 3));
    assert_eq!(cpuid(&machine, 4, 4, [0; 4]), [0; 4]);
    assert_eq!(cpuid(&machine, 6, 0, [0xFF; 4]), [4, 0, 0, 0]);
    assert_eq!(cpuid(&machine, 7, 0, [1, 2, 3, 4]), [1, 2, 3, 4]);
}

#[test]
fn the_apic_shows_while_it_is_enabled() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    let shown = |machine: &Machine| cpuid(machine, 1, 0, [0, 0, 0, 1 << 9])[3] >> 9 & 1;
    let base = machine.rdmsr(&mut cpu, IA32_APIC_BASE).unwrap();
    for (enable, wanted) in [(0, 0), (1 << 11, 1), (3 << 10, 1)] {
        machine.wrmsr(&mut cpu, IA32_APIC_BASE, base & !(3 << 10) | enable);
        assert_eq!(shown(&machine), wanted, "{enable:#x}");
    }
}

#[test]
fn the_invariant_tsc_is_asked_for() {
    let machine = Machine::new(1);
    let mut cpu = machine.cpu();
    assert_eq!(cpuid(&machine, 0x8000_0007, 0, [0, 0, 0, 0x100])[3], 0);
    machine.wrmsr_faults(&mut cpu, HV_X64_MSR_TSC_INVARIANT_CONTROL, 2);
    machine.wrmsr(&mut cpu, HV_X64_MSR_TSC_INVARIANT_CONTROL, 1);
    machine.wrmsr(&mut cpu, HV_X64_MSR_TSC_INVARIANT_CONTROL, 0);
    assert_eq!(
        machine.rdmsr(&mut cpu, HV_X64_MSR_TSC_INVARIANT_CONTROL),
        Some(1)
    );
    assert_eq!(cpuid(&machine, 0x8000_0007, 0, [0; 4])[3], 0x100);
    let uncontrolled = Machine::with_privileges(1, HvPartitionPrivilegeMask::empty());
    assert_eq!(
        cpuid(&uncontrolled, 0x8000_0007, 0, [0, 0, 0, 0x100])[3],
        0x100
    );
}

#[test]
fn results_that_the_parent_registers() {
    let machine = Machine::new(2);
    let result = HvInputRegisterInterceptResult {
        partition_id: machine.child,
        vp_index: HV_ANY_VP,
        intercept_type: HvInterceptType::X64_CPUID,
        leaf: 7,
        subleaf: 1,
        subleaf_specific: 1,
        result: [0xF0, 0xFF, 0, 0, 5, u32::MAX, 0, 0],
        ..Default::default()
    };
    machine.winhv.register_intercept_result(&result).unwrap();
    assert_eq!(
        cpuid(&machine, 7, 1, [0x1234; 4]),
        [0x12F0, 0x1234, 5, 0x1234]
    );
    assert_eq!(cpuid(&machine, 7, 0, [0x1234; 4]), [0x1234; 4]);
    let removed = HvInputUnregisterInterceptResult {
        partition_id: machine.child,
        vp_index: HV_ANY_VP,
        intercept_type: HvInterceptType::X64_CPUID,
        leaf: 7,
        subleaf: 1,
        subleaf_specific: 1,
        padding: [0; 7],
    };
    machine.winhv.unregister_intercept_result(&removed).unwrap();
    assert_eq!(cpuid(&machine, 7, 1, [1; 4]), [1; 4]);
    let again = machine.winhv.unregister_intercept_result(&removed);
    assert_eq!(status(again), HvStatus::NOT_FOUND);
    let wrong = HvInputRegisterInterceptResult {
        intercept_type: HvInterceptType::X64_MSR,
        ..result
    };
    let wrong = machine.winhv.register_intercept_result(&wrong);
    assert_eq!(status(wrong), HvStatus::INVALID_PARAMETER);
}
