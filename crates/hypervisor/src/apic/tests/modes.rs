use super::*;

#[test]
fn power_on_state() {
    let apic = LocalApic::new(&config(0));
    assert_eq!(
        (apic.base_msr(), apic.mmio_base()),
        (0xFEE0_0900, Some(0xFEE0_0000))
    );
    assert_eq!(apic.mode(), ApicMode::XApic);
    let expected = [
        (0x20, 0),
        (0x30, 0x5_0014),
        (0x80, 0),
        (0xD0, 0),
        (0xE0, u32::MAX),
    ];
    for (offset, value) in expected {
        assert_eq!(read(&apic, offset), value, "{offset:#x}");
    }
    assert_eq!((read(&apic, 0xF0), read(&apic, 0x350)), (0xFF, 0x1_0000));
    assert_eq!(
        LocalApic::new(&config(3)).base_msr(),
        0xFEE0_0800,
        "not the bootstrap processor"
    );
    assert_eq!(read(&LocalApic::new(&config(3)), 0x20), 3 << 24);
}

#[test]
fn init_keeps_id_base_and_mode() {
    let mut apic = x2apic(5);
    apic.request(0x40, false);
    apic.set_tpr(0x20);
    apic.reset(false);
    assert_eq!(
        (apic.mode(), apic.base_msr()),
        (ApicMode::X2Apic, BASE_X2APIC)
    );
    assert_eq!((apic.read_msr(0x802, 0), apic.tpr()), (Ok(5), 0));
    assert!(!apic.is_requested(0x40) && !apic.is_enabled());
    apic.reset(true);
    assert_eq!(
        (apic.mode(), apic.base_msr()),
        (ApicMode::XApic, 0xFEE0_0800)
    );
}

#[test]
fn base_msr_transitions() {
    let mut apic = xapic(0);
    assert_eq!(
        apic.set_base_msr(0xFEE0_0400),
        Err(ApicFault::IllegalTransition)
    );
    assert_eq!(apic.set_base_msr(BASE_X2APIC), Ok(()));
    assert_eq!(
        apic.set_base_msr(0xFEE0_0400),
        Err(ApicFault::IllegalTransition)
    );
    assert_eq!(
        apic.set_base_msr(0xFEE0_0800),
        Err(ApicFault::IllegalTransition)
    );
    assert_eq!((apic.mode(), apic.mmio_base()), (ApicMode::X2Apic, None));
    assert_eq!(apic.set_base_msr(0xFEE0_0000), Ok(()));
    assert_eq!((apic.mode(), apic.mmio_base()), (ApicMode::Disabled, None));
    assert_eq!(
        apic.set_base_msr(BASE_X2APIC),
        Err(ApicFault::IllegalTransition)
    );
    assert_eq!(
        apic.set_base_msr(0xFEE0_0400),
        Err(ApicFault::IllegalTransition)
    );
    assert_eq!(apic.set_base_msr(0xFED4_0800), Ok(()));
    assert_eq!(
        (apic.mode(), apic.mmio_base()),
        (ApicMode::XApic, Some(0xFED4_0000))
    );
}

#[test]
fn base_msr_reserved_bits() {
    let mut apic = xapic(0);
    apic.set_physical_address_width(40);
    for bit in (0..8).chain([9]).chain(40..64) {
        let value = 0xFEE0_0900 | 1u64 << bit;
        assert_eq!(
            apic.set_base_msr(value),
            Err(ApicFault::ReservedBits),
            "bit {bit}"
        );
    }
    assert_eq!(apic.set_base_msr(0xFF_FEE0_0900), Ok(()));
    assert_eq!(apic.mmio_base(), Some(0xFF_FEE0_0000));
}

#[test]
fn disabled_apic_answers_nothing_and_keeps_its_state() {
    let mut apic = xapic(0);
    apic.request(0x40, false);
    apic.set_base_msr(0xFEE0_0000).unwrap();
    assert_eq!(apic.deliverable(), None);
    apic.request(0x50, false);
    assert_eq!(write(&mut apic, 0x80, 0xF0), vec![]);
    assert_eq!((read(&apic, 0x30), apic.tpr()), (u32::MAX, 0));
    assert_eq!(apic.read_msr(0x803, 0), Err(ApicFault::NoSuchRegister));
    apic.set_tpr(0x30);
    assert_eq!(apic.tpr(), 0x30, "CR8 works without the APIC");
    apic.set_base_msr(0xFEE0_0900).unwrap();
    assert_eq!((read(&apic, 0x80), apic.deliverable()), (0x30, Some(0x40)));
    assert!(apic.is_enabled());
}

#[test]
fn changing_modes_drops_the_icr_destination() {
    let mut apic = xapic(0);
    write(&mut apic, 0x310, 0x0700_0000);
    write(&mut apic, 0x300, 0x40F1);
    apic.set_base_msr(BASE_X2APIC).unwrap();
    assert_eq!(apic.read_msr(0x830, 0), Ok(0x40F1));
}
