//! Partition states, privileges, properties, pools, mapping.

use super::*;

#[test]
fn life_of_a_partition() {
    let platform = Arc::new(FakePlatform::new());
    let hypervisor = Arc::new(Hypervisor::new(platform, HypervisorConfig::default()));
    let winhv = WinHv::new(Root(hypervisor.clone()));
    assert_eq!(winhv.partition_id(), Ok(ROOT_PARTITION_ID));
    assert_eq!(
        winhv.next_child_partition(HV_PARTITION_ID_SELF, 0),
        Ok(None)
    );
    let child = winhv
        .create_partition(HvPartitionCreationFlags::LAPIC_ENABLED)
        .unwrap();
    assert_eq!(
        winhv.next_child_partition(HV_PARTITION_ID_SELF, 0),
        Ok(Some(child))
    );
    assert_eq!(
        winhv.next_child_partition(HV_PARTITION_ID_SELF, child),
        Ok(None)
    );
    assert_eq!(
        status(winhv.create_vp(child, 0)),
        HvStatus::INVALID_PARTITION_STATE
    );
    let error = winhv.initialize_partition(child).unwrap_err();
    assert!(error.is_insufficient_memory());
    assert_eq!(winhv.deposit_memory(child, [0x800, 0x801]), Ok(2));
    winhv.initialize_partition(child).unwrap();
    assert_eq!(
        hypervisor.partition_state(child),
        Some(PartitionState::Active)
    );
    assert_eq!(
        status(winhv.initialize_partition(child)),
        HvStatus::INVALID_PARTITION_STATE
    );
    assert_eq!(
        status(winhv.delete_partition(child)),
        HvStatus::INVALID_PARTITION_STATE
    );
    assert!(
        winhv
            .create_vp(child, 0)
            .unwrap_err()
            .is_insufficient_memory()
    );
    winhv.deposit_memory(child, [0x802, 0x803, 0x804]).unwrap();
    winhv.create_vp(child, 0).unwrap();
    assert_eq!(
        status(winhv.create_vp(child, 0)),
        HvStatus::INVALID_VP_INDEX
    );
    assert_eq!(
        status(winhv.delete_vp(child, 1)),
        HvStatus::INVALID_VP_INDEX
    );
    let balance = winhv.memory_balance(child).unwrap();
    assert_eq!((balance.pages_available, balance.pages_in_use), (0, 5));
    winhv.finalize_partition(child).unwrap();
    assert_eq!(
        status(winhv.finalize_partition(child)),
        HvStatus::INVALID_PARTITION_STATE
    );
    let balance = winhv.memory_balance(child).unwrap();
    assert_eq!((balance.pages_available, balance.pages_in_use), (5, 0));
    let mut pages = winhv.withdraw_memory(child, 100).unwrap();
    pages.sort_unstable();
    assert_eq!(pages, [0x800, 0x801, 0x802, 0x803, 0x804]);
    winhv.delete_partition(child).unwrap();
    assert_eq!(
        status(winhv.delete_partition(child)),
        HvStatus::INVALID_PARTITION_ID
    );
    assert_eq!(hypervisor.partition_state(child), None);
    // The pages are free for another partition.
    let next = winhv
        .create_partition(HvPartitionCreationFlags::empty())
        .unwrap();
    assert!(next > child);
    winhv.deposit_memory(next, pages).unwrap();
}

#[test]
fn a_page_is_deposited_once_and_never_mapped() {
    let machine = Machine::new(1);
    let winhv = &machine.winhv;
    let again = winhv
        .deposit_memory(machine.child, [0x900, 0x800])
        .unwrap_err();
    assert_eq!(
        (again.status, again.completed),
        (HvStatus::INVALID_PARAMETER, 1)
    );
    let no_memory = winhv.deposit_memory(machine.child, [MEMORY_PAGES]);
    assert_eq!(status(no_memory), HvStatus::INVALID_PARAMETER);
    let map = winhv.map_gpa_pages(machine.child, 0x500, [0x900], HvMapGpaFlags::ALL_RIGHTS);
    assert_eq!(status(map), HvStatus::ACCESS_DENIED);
    let large = HvMapGpaFlags::ALL_RIGHTS | HvMapGpaFlags::LARGE_PAGE;
    let map = winhv.map_gpa_pages(machine.child, 0x600, [0x800], large);
    assert_eq!(status(map), HvStatus::ACCESS_DENIED);
}

#[test]
fn mapping_rules() {
    let machine = Machine::new(1);
    let (winhv, child) = (&machine.winhv, machine.child);
    let rights = HvMapGpaFlags::ALL_RIGHTS;
    let lookup = |page| machine.hypervisor.gpa_map(child).unwrap().lookup(page);
    // A long list is split over calls and lands in one extent.
    assert_eq!(
        winhv.map_gpa_pages(child, 0x1000, 0x200..0x700, rights),
        Ok(0x500)
    );
    assert_eq!(lookup(0x1000).unwrap().run_length_pages, 0x500);
    let large = rights | HvMapGpaFlags::LARGE_PAGE;
    assert_eq!(
        winhv.map_gpa_pages(child, 0x4000, [0xA00, 0xC00], large),
        Ok(2)
    );
    assert_eq!(lookup(0x4000).unwrap().run_length_pages, 0x400);
    assert_eq!(lookup(0x43FF).unwrap().spa_page, 0xDFF);
    for (base, page) in [(0x4001, 0xA00), (0x4000, 0xA01)] {
        let result = winhv.map_gpa_pages(child, base, [page], large);
        assert_eq!(status(result), HvStatus::INVALID_PARAMETER);
    }
    let partial = winhv.map_gpa_pages(child, 0x2000, [0x200, MEMORY_PAGES, 0x201], rights);
    let error = partial.unwrap_err();
    assert_eq!(
        (error.status, error.completed),
        (HvStatus::INVALID_PARAMETER, 1)
    );
    assert!(lookup(0x2000).is_some() && lookup(0x2001).is_none());
    for flags in [HvMapGpaFlags::WRITABLE, HvMapGpaFlags::USER_EXECUTABLE] {
        let result = winhv.map_gpa_pages(child, 0x2000, [0x200], flags);
        assert_eq!(status(result), HvStatus::INVALID_PARAMETER);
    }
    let beyond = winhv.map_gpa_pages(child, 1 << 34, [0x200], rights);
    assert_eq!(status(beyond), HvStatus::INVALID_PARAMETER);
    let wraps = winhv.map_gpa_pages(child, u64::MAX, [0x200, 0x201], rights);
    assert_eq!(status(wraps), HvStatus::INVALID_PARAMETER);
    let sparse = [
        HvGpaMapping {
            target_gpa_page: 0x9000,
            source_gpa_page: 0x210,
        },
        HvGpaMapping {
            target_gpa_page: 0x9100,
            source_gpa_page: 0x211,
        },
    ];
    let read = HvMapGpaFlags::READABLE;
    assert_eq!(winhv.map_sparse_gpa_pages(child, sparse, read), Ok(2));
    assert_eq!(lookup(0x9100).unwrap().rights, read);
    winhv.unmap_gpa_pages(child, 0x1000, 0x500, false).unwrap();
    assert!(lookup(0x1000).is_none() && lookup(0x14FF).is_none());
    winhv.unmap_gpa_pages(child, 0x4000, 1, true).unwrap();
    assert!(lookup(0x41FF).is_none() && lookup(0x4200).is_some());
    let result = winhv.unmap_gpa_pages(child, 0x4001, 1, true);
    assert_eq!(status(result), HvStatus::INVALID_PARAMETER);
    let result = winhv.map_gpa_pages(99, 0, [0x200], rights);
    assert_eq!(status(result), HvStatus::INVALID_PARTITION_ID);
    let result = winhv.map_gpa_pages(ROOT_PARTITION_ID, 0, [0x200], rights);
    assert_eq!(status(result), HvStatus::ACCESS_DENIED);
}

#[test]
fn properties() {
    let machine = Machine::new(1);
    let (winhv, child) = (&machine.winhv, machine.child);
    use HvPartitionPropertyCode as Code;
    assert_eq!(winhv.partition_property(child, Code::CPU_WEIGHT), Ok(100));
    winhv
        .set_partition_property(child, Code::CPU_WEIGHT, 500)
        .unwrap();
    assert_eq!(winhv.partition_property(child, Code::CPU_WEIGHT), Ok(500));
    let errors = [
        (Code::CPU_WEIGHT, 0, HvStatus::PROPERTY_VALUE_OUT_OF_RANGE),
        (
            Code::CPU_CAP,
            0x10001,
            HvStatus::PROPERTY_VALUE_OUT_OF_RANGE,
        ),
        (Code(0x1234), 0, HvStatus::UNKNOWN_PROPERTY),
        (Code::PRIVILEGE_FLAGS, 0, HvStatus::INVALID_PARTITION_STATE),
        (Code::GUEST_OS_ID, 1, HvStatus::OPERATION_DENIED),
        (Code::REFERENCE_TIME, 1, HvStatus::OPERATION_DENIED),
    ];
    for (code, value, expected) in errors {
        let result = winhv.set_partition_property(child, code, value);
        assert_eq!(status(result), expected, "{code:?}");
    }
    assert_eq!(
        status(winhv.partition_property(child, Code(0))),
        HvStatus::UNKNOWN_PROPERTY
    );
    assert_eq!(
        winhv.system_property(HvSystemProperty::SCHEDULER_TYPE),
        Ok(HV_SCHEDULER_TYPE_ROOT)
    );
    let unknown = winhv.system_property(HvSystemProperty(99));
    assert_eq!(status(unknown), HvStatus::UNKNOWN_PROPERTY);
    winhv
        .set_partition_property(child, Code::SUSPEND, 1)
        .unwrap();
    assert_eq!(machine.run(0, &mut machine.cpu()), RunOutcome::Suspended);
    winhv
        .set_partition_property(child, Code::SUSPEND, 0)
        .unwrap();
    assert_eq!(machine.run(0, &mut machine.cpu()), RunOutcome::Halted);
}

#[test]
fn a_child_has_no_parents_calls() {
    let machine = Machine::with_privileges(1, HvPartitionPrivilegeMask::CHILD_DEFAULT);
    let mut cpu = machine.cpu();
    machine.enable_hypercalls(&mut cpu);
    let denied = |cpu: &mut FakeProcessor, control: HvHypercallControl| {
        HvHypercallResult(machine.guest_call(cpu, control.0, &[0; 64])).status()
    };
    use HvCallCode as C;
    let simple = HvHypercallControl::simple;
    for code in [
        C::CREATE_PARTITION,
        C::GET_PARTITION_ID,
        C::CREATE_PORT,
        C::START_VIRTUAL_PROCESSOR,
        C::EXT_QUERY_CAPABILITIES,
    ] {
        assert_eq!(
            denied(&mut cpu, simple(code)),
            HvStatus::ACCESS_DENIED,
            "{code:?}"
        );
    }
    for code in [C::DEPOSIT_MEMORY, C::GET_VP_INDEX_FROM_APIC_ID] {
        let control = HvHypercallControl::rep(code, 1, 0);
        assert_eq!(
            denied(&mut cpu, control),
            HvStatus::ACCESS_DENIED,
            "{code:?}"
        );
    }
    // Its own registers need a privilege; other partitions are not its own.
    let mut input = [0; 32];
    input[..8].copy_from_slice(&HV_PARTITION_ID_SELF.to_le_bytes());
    let control = HvHypercallControl::rep(C::GET_VP_REGISTERS, 1, 0);
    let result = machine.guest_call(&mut cpu, control.0, &input);
    assert_eq!(HvHypercallResult(result).status(), HvStatus::ACCESS_DENIED);
    input[..8].copy_from_slice(&ROOT_PARTITION_ID.to_le_bytes());
    let result = machine.guest_call(&mut cpu, control.0, &input);
    assert_eq!(HvHypercallResult(result).status(), HvStatus::ACCESS_DENIED);
}

#[test]
fn deleted_vps_do_not_run() {
    let machine = Machine::new(1);
    assert_eq!(
        machine.hypervisor.run_vp(77, 0, &mut machine.cpu()),
        RunOutcome::Deleted
    );
    assert_eq!(machine.run(5, &mut machine.cpu()), RunOutcome::Deleted);
    machine.winhv.delete_vp(machine.child, 0).unwrap();
    assert_eq!(machine.run(0, &mut machine.cpu()), RunOutcome::Deleted);
    machine.winhv.create_vp(machine.child, 0).unwrap();
    assert_eq!(machine.run(0, &mut machine.cpu()), RunOutcome::Suspended);
}

#[test]
fn reading_and_writing_guest_memory() {
    let machine = Machine::new(1);
    let (winhv, child) = (&machine.winhv, machine.child);
    machine.write_guest(0x3000, b"partita");
    let mut data = [0; 7];
    assert_eq!(
        winhv.read_gpa(child, 0, 0x3000, &mut data),
        Ok(HvAccessGpaResultCode::SUCCESS)
    );
    assert_eq!(&data, b"partita");
    assert_eq!(
        winhv.write_gpa(child, 0, 0x3003, b"X"),
        Ok(HvAccessGpaResultCode::SUCCESS)
    );
    assert_eq!(machine.read_guest(0x3000, 7), b"parXita");
    let unmapped = winhv.read_gpa(child, 0, 0x50_0000, &mut data);
    assert_eq!(unmapped, Ok(HvAccessGpaResultCode::UNMAPPED));
    winhv
        .map_gpa_pages(child, 0x700, [0x300], HvMapGpaFlags::READABLE)
        .unwrap();
    let denied = winhv.write_gpa(child, 0, 0x70_0000, b"X");
    assert_eq!(denied, Ok(HvAccessGpaResultCode::WRITE_INTERCEPT));
    let crossing = winhv.read_gpa(child, 0, 0x3FFF, &mut data);
    assert_eq!(status(crossing), HvStatus::INVALID_PARAMETER);
    let nothing = winhv.write_gpa(child, 0, 0x3000, b"");
    assert_eq!(status(nothing), HvStatus::INVALID_PARAMETER);
    let no_vp = winhv.write_gpa(child, 9, 0x3000, b"X");
    assert_eq!(status(no_vp), HvStatus::INVALID_VP_INDEX);
}
