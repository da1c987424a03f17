use super::*;

fn physical8(address: u32) -> Destination {
    Destination {
        address,
        logical: false,
        x2apic_format: false,
    }
}

fn logical8(address: u32) -> Destination {
    Destination {
        logical: true,
        ..physical8(address)
    }
}

fn physical32(address: u32) -> Destination {
    Destination {
        x2apic_format: true,
        ..physical8(address)
    }
}

fn logical32(address: u32) -> Destination {
    Destination {
        logical: true,
        ..physical32(address)
    }
}

#[test]
fn physical_ids_and_broadcast() {
    for apic in [xapic(5), x2apic(5)] {
        assert!(apic.matches(physical8(5)) && apic.matches(physical32(5)));
        assert!(!apic.matches(physical8(4)) && !apic.matches(physical32(4)));
        assert!(apic.matches(physical8(0xFF)) && apic.matches(physical32(u32::MAX)));
        assert!(
            !apic.matches(physical32(0xFF)),
            "255 is an id in x2APIC format"
        );
        assert!(!apic.matches(physical32(0x105)));
    }
    let wide = x2apic(0x105);
    assert!(wide.matches(physical32(0x105)) && !wide.matches(physical8(5)));
}

#[test]
fn flat_logical_ids() {
    let mut apic = xapic(2);
    assert!(!apic.matches(logical8(4)), "no logical id after reset");
    write(&mut apic, 0xD0, 0x0400_0000);
    assert!(apic.matches(logical8(4)) && apic.matches(logical8(0x0C)));
    assert!(!apic.matches(logical8(3)) && !apic.matches(logical8(0)));
    assert!(apic.matches(logical8(0xFF)));
}

#[test]
fn cluster_logical_ids() {
    let mut apic = xapic(2);
    write(&mut apic, 0xE0, 0);
    write(&mut apic, 0xD0, 0x2400_0000);
    assert!(apic.matches(logical8(0x24)) && apic.matches(logical8(0x2F)));
    assert!(!apic.matches(logical8(0x14)) && !apic.matches(logical8(0x23)));
    assert!(apic.matches(logical8(0xFF)));
    write(&mut apic, 0xE0, 0x5000_0000);
    assert!(
        !apic.matches(logical8(0x24)),
        "an undefined model matches nobody"
    );
}

#[test]
fn x2apic_logical_ids_follow_the_id() {
    let apic = x2apic(0x35);
    assert_eq!(apic.read_msr(0x80D, 0), Ok(0x0003_0020));
    assert!(apic.matches(logical32(0x0003_0020)) && apic.matches(logical32(0x0003_FFFF)));
    assert!(!apic.matches(logical32(0x0002_0020)) && !apic.matches(logical32(0x0003_0010)));
    assert!(apic.matches(logical32(u32::MAX)));
    assert!(
        x2apic(1).matches(logical8(2)),
        "an 8-bit message reaches cluster 0"
    );
    assert!(!apic.matches(logical8(0x20)));
}

#[test]
fn globally_disabled_matches_nothing() {
    let mut apic = xapic(0);
    apic.set_base_msr(0xFEE0_0000).unwrap();
    assert!(!apic.matches(physical8(0)) && !apic.matches(physical8(0xFF)));
}
