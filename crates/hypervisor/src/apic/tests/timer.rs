use super::*;

/// TSC ticks of one undivided APIC tick.
const TICK: u64 = TSC_HZ / APIC_HZ;
const ONE_SHOT: u32 = 0xEE;
const PERIODIC: u32 = 1 << 17 | 0xEE;
const DEADLINE: u32 = 2 << 17 | 0xEE;

fn with_timer(lvt: u32) -> LocalApic {
    let mut apic = xapic(0);
    write(&mut apic, 0x3E0, 0xB);
    write(&mut apic, 0x320, lvt);
    apic
}

fn current(apic: &LocalApic, tsc: u64) -> u32 {
    apic.read_mmio(0x390, tsc)
}

fn fired(apic: &mut LocalApic, tsc: u64) -> bool {
    apic.expire(tsc);
    let vector = apic.acknowledge();
    eoi(apic);
    vector == Some(0xEE)
}

#[test]
fn one_shot_counts_down_once() {
    let mut apic = with_timer(ONE_SHOT);
    write_at(&mut apic, 0x380, 1000, 50 * TICK);
    assert_eq!(apic.next_deadline(), Some(1050 * TICK));
    assert_eq!(current(&apic, 50 * TICK), 1000);
    assert_eq!(current(&apic, 450 * TICK), 600);
    assert!(!fired(&mut apic, 1050 * TICK - 1));
    assert!(fired(&mut apic, 1050 * TICK));
    assert_eq!(current(&apic, 1050 * TICK), 0);
    assert_eq!(apic.next_deadline(), None);
    assert!(!fired(&mut apic, 9000 * TICK));
    assert_eq!(read(&apic, 0x380), 1000, "the initial count stays");
}

#[test]
fn every_divisor() {
    for (encoding, divisor) in [
        (0, 2),
        (1, 4),
        (2, 8),
        (3, 16),
        (8, 32),
        (9, 64),
        (10, 128),
        (11, 1),
    ] {
        let mut apic = with_timer(ONE_SHOT);
        write(&mut apic, 0x3E0, encoding);
        assert_eq!(read(&apic, 0x3E0), encoding);
        write(&mut apic, 0x380, 100);
        assert_eq!(
            apic.next_deadline(),
            Some(100 * divisor * TICK),
            "encoding {encoding}"
        );
    }
}

#[test]
fn changing_the_divisor_keeps_the_count() {
    let mut apic = with_timer(ONE_SHOT);
    write(&mut apic, 0x380, 1000);
    write_at(&mut apic, 0x3E0, 0, 400 * TICK);
    assert_eq!(current(&apic, 400 * TICK), 600);
    assert_eq!(apic.next_deadline(), Some((400 + 1200) * TICK));
}

#[test]
fn periodic_reloads_without_drift_and_merges_missed_periods() {
    let mut apic = with_timer(PERIODIC);
    write(&mut apic, 0x380, 100);
    assert!(fired(&mut apic, 103 * TICK));
    assert_eq!(apic.next_deadline(), Some(200 * TICK));
    assert_eq!(current(&apic, 150 * TICK), 50);
    assert_eq!(
        current(&apic, 275 * TICK),
        25,
        "read past an expiry that nobody handled yet"
    );
    assert!(fired(&mut apic, 555 * TICK));
    assert_eq!(apic.next_deadline(), Some(600 * TICK));
    write_at(&mut apic, 0x380, 0, 560 * TICK);
    assert_eq!(
        (apic.next_deadline(), current(&apic, 560 * TICK)),
        (None, 0)
    );
}

#[test]
fn counting_modes_share_the_running_count() {
    let mut apic = with_timer(ONE_SHOT);
    write(&mut apic, 0x380, 1000);
    write_at(&mut apic, 0x320, PERIODIC, 600 * TICK);
    assert_eq!(current(&apic, 600 * TICK), 400);
    assert_eq!(current(&apic, 1100 * TICK), 900, "wrapped around");
    write_at(&mut apic, 0x320, ONE_SHOT, 1100 * TICK);
    assert_eq!(current(&apic, 1100 * TICK), 900);
    assert_eq!(current(&apic, 2100 * TICK), 0);
    write_at(&mut apic, 0x320, PERIODIC, 2100 * TICK);
    assert_eq!(
        current(&apic, 2200 * TICK),
        0,
        "a finished count is not restarted"
    );
}

#[test]
fn masked_timer_counts_silently() {
    let mut apic = with_timer(PERIODIC | 1 << 16);
    write(&mut apic, 0x380, 100);
    assert_eq!(apic.next_deadline(), None);
    assert_eq!(current(&apic, 130 * TICK), 70);
    assert!(!fired(&mut apic, 130 * TICK));
    write_at(&mut apic, 0x320, PERIODIC, 250 * TICK);
    assert!(
        !fired(&mut apic, 250 * TICK),
        "expiries under the mask are gone"
    );
    assert_eq!(apic.next_deadline(), Some(300 * TICK));
}

#[test]
fn tsc_deadline_arms_fires_and_disarms() {
    let mut apic = with_timer(DEADLINE);
    apic.set_tsc_deadline(5000);
    assert_eq!(
        (apic.tsc_deadline(), apic.next_deadline()),
        (5000, Some(5000))
    );
    assert!(!fired(&mut apic, 4999));
    assert!(fired(&mut apic, 5000));
    assert_eq!((apic.tsc_deadline(), apic.next_deadline()), (0, None));
    apic.set_tsc_deadline(7000);
    apic.set_tsc_deadline(0);
    assert!(!fired(&mut apic, 8000));
    apic.set_tsc_deadline(1);
    assert!(
        fired(&mut apic, 8000),
        "a deadline in the past fires at once"
    );
}

#[test]
fn deadline_mode_ignores_counts_and_other_modes_ignore_deadlines() {
    let mut apic = with_timer(DEADLINE);
    write(&mut apic, 0x380, 100);
    assert_eq!((read(&apic, 0x380), current(&apic, 1)), (0, 0));
    apic.set_tsc_deadline(5000);
    write(&mut apic, 0x320, ONE_SHOT);
    assert_eq!((apic.tsc_deadline(), apic.next_deadline()), (0, None));
    apic.set_tsc_deadline(6000);
    assert_eq!(apic.tsc_deadline(), 0);
    write(&mut apic, 0x380, 100);
    write(&mut apic, 0x320, DEADLINE);
    assert_eq!(
        (read(&apic, 0x380), apic.next_deadline()),
        (0, None),
        "changing the mode disarms"
    );
    apic.set_tsc_deadline(6000);
    apic.set_base_msr(0xFEE0_0000).unwrap();
    apic.set_tsc_deadline(6000);
    assert_eq!(
        apic.tsc_deadline(),
        0,
        "nothing to write while globally disabled"
    );
}

#[test]
fn reserved_mode_stands_still() {
    let mut apic = with_timer(3 << 17 | 0xEE);
    write(&mut apic, 0x380, 100);
    apic.set_tsc_deadline(100);
    assert!(!fired(&mut apic, u64::MAX));
    assert_eq!(apic.next_deadline(), None);
}

#[test]
fn tsc_changes_do_not_disturb_a_count() {
    let mut apic = with_timer(ONE_SHOT);
    write_at(&mut apic, 0x380, 1000, 5000 * TICK);
    apic.rebase_tsc(5400 * TICK, 0);
    assert_eq!(current(&apic, 0), 600);
    assert_eq!(apic.next_deadline(), Some(600 * TICK));
    assert_eq!(current(&apic, 100 * TICK), 500);
}

#[test]
fn extreme_values_do_not_overflow() {
    for lvt in [ONE_SHOT, PERIODIC] {
        let config = ApicConfig {
            tsc_frequency: 0,
            apic_frequency: u64::MAX,
            ..config(0)
        };
        let mut apic = LocalApic::new(&config);
        write(&mut apic, 0xF0, 0x1FF);
        write(&mut apic, 0x320, lvt);
        write_at(&mut apic, 0x3E0, 10, u64::MAX);
        write_at(&mut apic, 0x380, u32::MAX, u64::MAX);
        apic.expire(u64::MAX);
        current(&apic, u64::MAX);
        assert!(apic.next_deadline().is_none_or(|tsc| tsc > 0));
        apic.rebase_tsc(u64::MAX, 1);
        current(&apic, 0);
        assert_eq!(read(&apic, 0x380), u32::MAX);
    }
}
