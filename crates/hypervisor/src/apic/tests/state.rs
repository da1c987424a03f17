use zerocopy::IntoBytes;

use super::*;

fn busy() -> LocalApic {
    let mut apic = xapic(3);
    write(&mut apic, 0xD0, 0x0800_0000);
    write(&mut apic, 0x3E0, 0xB);
    write(&mut apic, 0x320, 1 << 17 | 0xEE);
    write(&mut apic, 0x380, 1000);
    write(&mut apic, 0x310, 0x0100_0000);
    write(&mut apic, 0x300, 0x40F1);
    apic.request(0x61, true);
    apic.acknowledge();
    apic.request(0x71, false);
    apic.request(3, false);
    apic
}

#[test]
fn layout_is_that_of_the_interrupt_controller_state() {
    let page = busy().page(2000);
    let bytes = page.as_bytes();
    assert_eq!(bytes.len(), 44 * 4);
    let word = |index: usize| u32::from_le_bytes(bytes[index * 4..][..4].try_into().unwrap());
    assert_eq!(
        (word(0), word(1), word(2), word(4)),
        (3 << 24, 0x5_0014, 0x0800_0000, 0x1FF)
    );
    assert_eq!((word(5 + 3), word(13 + 3), word(21 + 3)), (2, 2, 1 << 0x11));
    assert_eq!(
        (word(30), word(31), word(32)),
        (0x0100_0000, 0x40F1, 1 << 17 | 0xEE)
    );
    assert_eq!(
        (word(39), word(40), word(41), word(42)),
        (1 << 6, 1000, 800, 0xB)
    );
}

#[test]
fn restored_apic_behaves_like_the_saved_one() {
    let mut saved = busy();
    let page = saved.page(2000);
    let mut restored = LocalApic::new(&config(3));
    restored.restore(&page, 2000);
    assert_eq!(restored.page(2000), page);
    assert_eq!(restored.next_deadline(), saved.next_deadline());
    for apic in [&mut saved, &mut restored] {
        assert_eq!(apic.acknowledge(), Some(0x71));
        assert_eq!(eoi(apic), vec![]);
        assert_eq!(eoi(apic), vec![ApicEffect::EoiBroadcast { vector: 0x61 }]);
        apic.expire(10_000);
        assert_eq!(apic.acknowledge(), Some(0xEE));
    }
}

#[test]
fn x2apic_state_keeps_the_wide_destination() {
    let mut apic = x2apic(3);
    wrmsr(&mut apic, 0x830, 0x0123_4567_0000_40F1).unwrap();
    let page = apic.page(0);
    let mut restored = x2apic(3);
    restored.restore(&page, 0);
    assert_eq!(restored.read_msr(0x830, 0), Ok(0x0123_4567_0000_40F1));
}

#[test]
fn arbitrary_state_is_reduced_to_what_registers_can_hold() {
    let mut words = LocalInterruptControllerState::default();
    words.as_mut_bytes().fill(0xFF);
    let mut apic = xapic(0);
    apic.restore(&words, 5);
    let page = apic.page(5);
    assert_eq!((page.apic_ldr, page.apic_spurious), (0xFF00_0000, 0x3FF));
    assert_eq!(
        page.apic_irr[0], 0xFFFF_0000,
        "reserved vectors cannot be pending"
    );
    assert_eq!(
        (page.apic_lvt_timer, page.apic_lvt_lint0),
        (0x7_00FF, 0x1_E7FF)
    );
    assert_eq!((page.apic_id, page.apic_divide_configuration), (0, 0xB));
}
