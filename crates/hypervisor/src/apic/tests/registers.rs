use super::*;

#[test]
fn mmio_read_only_and_reserved_registers() {
    let mut apic = xapic(1);
    for offset in [0x20, 0x30, 0x90, 0xA0, 0x100, 0x190, 0x270, 0x390] {
        let before = read(&apic, offset);
        assert_eq!(write(&mut apic, offset, !before), vec![]);
        assert_eq!(read(&apic, offset), before, "{offset:#x}");
    }
    write(&mut apic, 0x280, 0);
    assert_eq!(
        read(&apic, 0x280),
        0,
        "writing read-only registers is no error"
    );
    write(&mut apic, 0x40, 1);
    write(&mut apic, 0x280, 0);
    assert_eq!(read(&apic, 0x280), 1 << 7, "illegal register address");
    write(&mut apic, 0x84, 0xFF);
    assert_eq!(
        (read(&apic, 0x80), read(&apic, 0x84)),
        (0, 0),
        "between registers"
    );
}

#[test]
fn mmio_writes_keep_writable_bits_only() {
    let mut apic = xapic(0);
    let all = u32::MAX;
    let expected = [
        (0x80, 0xFF),
        (0xD0, 0xFF00_0000),
        (0xE0, all),
        (0x320, 0x7_00FF),
        (0x330, 0x1_07FF),
        (0x340, 0x1_07FF),
        (0x350, 0x1_A7FF),
        (0x360, 0x1_A7FF),
        (0x370, 0x1_00FF),
        (0x3E0, 0xB),
        (0xF0, 0x3FF),
    ];
    for (offset, value) in expected {
        write(&mut apic, offset, all);
        assert_eq!(read(&apic, offset), value, "{offset:#x}");
    }
    write(&mut apic, 0xE0, 0);
    assert_eq!(read(&apic, 0xE0), 0x0FFF_FFFF);
}

#[test]
fn software_disable_masks_the_local_vector_table() {
    let mut apic = xapic(0);
    write(&mut apic, 0x320, 0xEE);
    write(&mut apic, 0xF0, 0xFF);
    for offset in (0x320..=0x370).step_by(0x10) {
        write(&mut apic, offset, 0x20);
        assert_eq!(read(&apic, offset), 0x1_0020, "{offset:#x}");
    }
    write(&mut apic, 0xF0, 0x1FF);
    assert_eq!(
        read(&apic, 0x320),
        0x1_0020,
        "enabling again does not unmask"
    );
}

#[test]
fn mmio_icr_sends() {
    let mut apic = xapic(0);
    assert_eq!(write(&mut apic, 0x310, 0x0200_0000), vec![]);
    let to = |address, logical| {
        IpiTarget::To(Destination {
            address,
            logical,
            x2apic_format: false,
        })
    };
    let sent = write(&mut apic, 0x300, 0x40F1);
    assert_eq!(sent, vec![ipi(to(2, false), DeliveryMode::Fixed, 0xF1)]);
    assert_eq!(
        (read(&apic, 0x300), read(&apic, 0x310)),
        (0x40F1, 0x0200_0000)
    );
    let sent = write(&mut apic, 0x300, 0x4930);
    assert_eq!(
        sent,
        vec![ipi(to(2, true), DeliveryMode::LowestPriority, 0x30)]
    );
    let sent = write(&mut apic, 0x300, 0x4400);
    assert_eq!(sent, vec![ipi(to(2, false), DeliveryMode::Nmi, 0)]);
    let sent = write(&mut apic, 0x300, 0x4608);
    assert_eq!(sent, vec![ipi(to(2, false), DeliveryMode::Startup, 8)]);
    let sent = write(&mut apic, 0x300, 0x4_40F2);
    assert_eq!(
        sent,
        vec![ipi(IpiTarget::SelfOnly, DeliveryMode::Fixed, 0xF2)]
    );
    let sent = write(&mut apic, 0x300, 0x8_40F2);
    assert_eq!(sent, vec![ipi(IpiTarget::All, DeliveryMode::Fixed, 0xF2)]);
    let sent = write(&mut apic, 0x300, 0xC_4500);
    assert_eq!(
        sent,
        vec![ipi(IpiTarget::AllButSelf, DeliveryMode::Init, 0)]
    );
}

#[test]
fn icr_values_that_send_nothing() {
    let mut apic = xapic(0);
    // INIT level de-assert, the reserved mode, ExtINT, a vector below 16.
    for value in [0x8500, 0x4340, 0x4740, 0x400F] {
        assert_eq!(write(&mut apic, 0x300, value), vec![], "{value:#x}");
    }
}

#[test]
fn x2apic_registers_exist_as_documented() {
    let mut apic = x2apic(0);
    let read_only = [0x802, 0x803, 0x80A, 0x80D, 0x839];
    let bitmaps = 0x810..=0x827;
    let both = [0x808, 0x80F, 0x828, 0x830, 0x838, 0x83E];
    let lvt = 0x832..=0x837;
    for index in 0x800..=0x8FF {
        let rw = both.contains(&index) || lvt.contains(&index);
        let ro = read_only.contains(&index) || bitmaps.contains(&index);
        let wo = [0x80B, 0x83F].contains(&index);
        assert_eq!(apic.read_msr(index, 0).is_ok(), rw || ro, "read {index:#x}");
        assert_eq!(
            wrmsr(&mut apic, index, 0).is_ok(),
            rw || wo,
            "write {index:#x}"
        );
        let all = wrmsr(&mut apic, index, u64::MAX);
        assert!(all.is_err(), "reserved bits of {index:#x}");
    }
    assert_eq!(apic.read_msr(0x900, 0), Err(ApicFault::NoSuchRegister));
    assert_eq!(apic.read_msr(0x7FF, 0), Err(ApicFault::NoSuchRegister));
}

#[test]
fn x2apic_reserved_bits_fault() {
    let mut apic = x2apic(0);
    let cases = [
        (0x808, 0x100),
        (0x80B, 1),
        (0x80F, 0x400),
        (0x828, 1),
        (0x830, 1 << 13),
        (0x830, 1 << 16),
        (0x830, 1 << 20),
        (0x832, 1 << 19),
        (0x835, 1 << 11),
        (0x837, 1 << 8),
        (0x838, 1 << 32),
        (0x83E, 4),
        (0x83F, 0x100),
    ];
    for (index, value) in cases {
        let before = apic.page(0);
        let fault = Err(ApicFault::ReservedBits);
        assert_eq!(
            wrmsr(&mut apic, index, value),
            fault,
            "{index:#x} {value:#x}"
        );
        assert_eq!(apic.page(0), before);
    }
}

#[test]
fn x2apic_msrs_are_absent_in_xapic_mode() {
    let mut apic = xapic(0);
    for index in 0x800..=0x8FF {
        assert_eq!(apic.read_msr(index, 0), Err(ApicFault::NoSuchRegister));
        assert_eq!(wrmsr(&mut apic, index, 0), Err(ApicFault::NoSuchRegister));
    }
}

#[test]
fn x2apic_icr_is_one_register() {
    let mut apic = x2apic(0);
    let sent = wrmsr(&mut apic, 0x830, 0x0001_0002_0000_48F1).unwrap();
    let to = Destination {
        address: 0x1_0002,
        logical: true,
        x2apic_format: true,
    };
    assert_eq!(
        sent,
        vec![ipi(IpiTarget::To(to), DeliveryMode::Fixed, 0xF1)]
    );
    assert_eq!(apic.read_msr(0x830, 0), Ok(0x0001_0002_0000_48F1));
}

#[test]
fn self_ipi_register() {
    let mut apic = x2apic(0);
    let sent = wrmsr(&mut apic, 0x83F, 0x51).unwrap();
    assert_eq!(
        sent,
        vec![ipi(IpiTarget::SelfOnly, DeliveryMode::Fixed, 0x51)]
    );
    assert_eq!(
        apic.read_msr(0x830, 0),
        Ok(0),
        "the ICR is another register"
    );
    assert_eq!(wrmsr(&mut apic, 0x83F, 7), Ok(vec![]));
    wrmsr(&mut apic, 0x828, 0).unwrap();
    assert_eq!(apic.read_msr(0x828, 0), Ok(1 << 5));
}

#[test]
fn synthetic_msrs() {
    let mut apic = xapic(0);
    assert_eq!(apic.set_hv_tpr(0x100), Err(ApicFault::ReservedBits));
    apic.set_hv_tpr(0x20).unwrap();
    assert_eq!((apic.hv_tpr(), read(&apic, 0x80)), (0x20, 0x20));
    let mut effects = vec![];
    apic.set_hv_icr(0x0300_0000_0000_40F1, &mut effects)
        .unwrap();
    let to = Destination {
        address: 3,
        logical: false,
        x2apic_format: false,
    };
    assert_eq!(
        effects,
        vec![ipi(IpiTarget::To(to), DeliveryMode::Fixed, 0xF1)]
    );
    assert_eq!(
        (apic.hv_icr(), read(&apic, 0x310)),
        (0x0300_0000_0000_40F1, 0x0300_0000)
    );
    apic.request(0x60, true);
    apic.acknowledge();
    effects.clear();
    apic.hv_eoi(&mut effects);
    assert_eq!(effects, vec![ApicEffect::EoiBroadcast { vector: 0x60 }]);
    apic.set_base_msr(0xFEE0_0000).unwrap();
    assert_eq!(
        apic.set_hv_icr(0x40F1, &mut effects),
        Err(ApicFault::NoSuchRegister)
    );
}
