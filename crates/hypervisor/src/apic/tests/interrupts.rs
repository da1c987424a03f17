use super::*;

#[test]
fn highest_vector_is_taken_first_and_nests_by_class() {
    let mut apic = xapic(0);
    apic.request(0x31, false);
    apic.request(0x52, false);
    assert_eq!(apic.acknowledge(), Some(0x52));
    assert_eq!(apic.ppr(), 0x50);
    assert_eq!(apic.deliverable(), None);
    apic.request(0x5F, false);
    assert_eq!(apic.deliverable(), None, "the same class does not nest");
    apic.request(0x60, false);
    assert_eq!(apic.acknowledge(), Some(0x60));
    assert_eq!(eoi(&mut apic), vec![]);
    assert_eq!(eoi(&mut apic), vec![]);
    assert_eq!(apic.acknowledge(), Some(0x5F));
    eoi(&mut apic);
    assert_eq!(apic.acknowledge(), Some(0x31));
    eoi(&mut apic);
    assert_eq!((apic.acknowledge(), apic.ppr()), (None, 0));
}

#[test]
fn task_priority_masks_classes_up_to_its_own() {
    let mut apic = xapic(0);
    apic.request(0x4F, false);
    apic.set_tpr(0x40);
    assert_eq!((apic.deliverable(), apic.ppr()), (None, 0x40));
    apic.set_tpr(0x3F);
    assert_eq!((apic.deliverable(), apic.ppr()), (Some(0x4F), 0x3F));
    apic.acknowledge();
    assert_eq!(apic.ppr(), 0x40);
    apic.set_tpr(0x45);
    assert_eq!(
        apic.ppr(),
        0x45,
        "an equal class shows the TPR with its subclass"
    );
}

#[test]
fn requests_merge_until_acknowledged() {
    let mut apic = xapic(0);
    apic.request(0x80, false);
    apic.request(0x80, false);
    assert!(apic.is_requested(0x80));
    assert_eq!(apic.acknowledge(), Some(0x80));
    assert!(!apic.is_requested(0x80) && apic.is_in_service(0x80));
    apic.request(0x80, false);
    eoi(&mut apic);
    assert_eq!(apic.acknowledge(), Some(0x80));
    eoi(&mut apic);
    assert_eq!(apic.acknowledge(), None);
}

#[test]
fn auto_eoi_leaves_nothing_in_service() {
    let mut apic = xapic(0);
    apic.request(0xF3, false);
    assert_eq!(apic.acknowledge_auto_eoi(), Some(0xF3));
    assert_eq!(apic.ppr(), 0);
    assert!(!apic.is_in_service(0xF3));
}

#[test]
fn only_level_interrupts_broadcast_their_eoi() {
    let mut apic = xapic(0);
    apic.request(0x41, true);
    assert_eq!(read(&apic, 0x1A0), 2);
    apic.acknowledge();
    assert_eq!(
        write(&mut apic, 0xB0, 0),
        vec![ApicEffect::EoiBroadcast { vector: 0x41 }]
    );
    apic.request(0x41, false);
    apic.acknowledge();
    assert_eq!(
        eoi(&mut apic),
        vec![],
        "an edge request clears the trigger mode"
    );
    assert_eq!(
        eoi(&mut apic),
        vec![],
        "an EOI with nothing in service does nothing"
    );
}

#[test]
fn software_disable_refuses_new_but_keeps_old_requests() {
    let mut apic = xapic(0);
    apic.request(0x40, false);
    write(&mut apic, 0xF0, 0xFF);
    apic.request(0x50, false);
    assert_eq!(apic.acknowledge(), Some(0x40));
    eoi(&mut apic);
    assert_eq!(apic.acknowledge(), None);
}

#[test]
fn illegal_vectors_are_recorded_and_dropped() {
    let mut apic = xapic(0);
    write(&mut apic, 0x370, 0xFE);
    apic.request(15, false);
    assert_eq!(apic.acknowledge(), Some(0xFE), "the error interrupt");
    assert_eq!(read(&apic, 0x280), 0, "not latched yet");
    write(&mut apic, 0x280, 0);
    assert_eq!(read(&apic, 0x280), 1 << 6);
    write(&mut apic, 0x280, 0);
    assert_eq!(read(&apic, 0x280), 0);
    eoi(&mut apic);
    assert_eq!(write(&mut apic, 0x300, 0x0000_4003), vec![]);
    write(&mut apic, 0x280, 0);
    assert_eq!(read(&apic, 0x280), 1 << 5, "send illegal vector");
    assert_eq!(apic.acknowledge(), Some(0xFE));
}

#[test]
fn illegal_vector_in_the_error_entry_does_not_recurse() {
    let mut apic = xapic(0);
    write(&mut apic, 0x370, 3);
    apic.request(1, false);
    assert_eq!(apic.deliverable(), None);
}

#[test]
fn lint_delivers_by_its_entry() {
    let mut apic = xapic(0);
    assert_eq!(lint(&mut apic, 1, true), vec![], "masked after reset");
    lint(&mut apic, 1, false);
    write(&mut apic, 0x360, 0x400);
    assert_eq!(lint(&mut apic, 1, true), vec![ApicEffect::Nmi]);
    assert_eq!(lint(&mut apic, 1, true), vec![], "no new edge");
    write(&mut apic, 0x350, 0x44);
    assert_eq!(lint(&mut apic, 0, true), vec![]);
    assert_eq!(apic.acknowledge(), Some(0x44));
    write(&mut apic, 0x360, 0x500);
    lint(&mut apic, 1, false);
    let init = ipi(IpiTarget::SelfOnly, DeliveryMode::Init, 0);
    assert_eq!(lint(&mut apic, 1, true), vec![init]);
    assert_eq!(lint(&mut apic, 2, true), vec![], "there is no such pin");
}

#[test]
fn level_lint_repeats_after_eoi_while_asserted() {
    let mut apic = xapic(0);
    write(&mut apic, 0x350, 0x8000 | 0x44);
    lint(&mut apic, 0, true);
    assert_eq!(read(&apic, 0x350), 0xC044, "remote IRR");
    assert_eq!(apic.acknowledge(), Some(0x44));
    assert_eq!(apic.deliverable(), None);
    eoi(&mut apic);
    assert_eq!(apic.acknowledge(), Some(0x44));
    lint(&mut apic, 0, false);
    eoi(&mut apic);
    assert_eq!((apic.acknowledge(), read(&apic, 0x350)), (None, 0x8044));
}

#[test]
fn extint_follows_lint0() {
    let mut apic = xapic(0);
    lint(&mut apic, 0, true);
    assert!(!apic.extint_asserted(), "masked");
    write(&mut apic, 0x350, 0x700);
    assert!(apic.accepts_extint() && apic.extint_asserted());
    lint(&mut apic, 0, false);
    assert!(!apic.extint_asserted());
    apic.set_base_msr(0xFEE0_0000).unwrap();
    lint(&mut apic, 0, true);
    assert!(
        apic.extint_asserted(),
        "LINT0 is INTR when globally disabled"
    );
    let mut apic = LocalApic::new(&config(0));
    apic.set_virtual_wire();
    assert!(apic.accepts_extint() && apic.is_enabled());
    assert_eq!(lint(&mut apic, 1, true), vec![ApicEffect::Nmi]);
}
