use super::*;
use crate::interrupts::test_sink::Recorder;
use crate::{FwCfgConfig, HvTestControl, ManualClock, OutputReader, output_pipe};

struct Fixture {
    chipset: Chipset,
    sink: Arc<Recorder>,
    clock: Arc<ManualClock>,
    output: OutputReader,
}

fn fixture(test_machine: bool) -> Fixture {
    let sink = Arc::new(Recorder::default());
    let clock = Arc::new(ManualClock::new(Duration::from_secs(1_700_000_000)));
    let (writer, output) = output_pipe(1024);
    let fw_cfg = FwCfgConfig {
        ram_size: 256 << 20,
        processors: 2,
        max_processors: 2,
    };
    let config = ChipsetConfig {
        com1: Some(SerialConfig {
            output: Box::new(writer),
            drained: None,
        }),
        com2: None,
        legacy_pic_pit: test_machine,
        test_devices: test_machine.then_some(TestDeviceConfig { fw_cfg }),
    };
    let chipset = Chipset::new(config, sink.clone(), clock.clone());
    Fixture {
        chipset,
        sink,
        clock,
        output,
    }
}

fn route(chipset: &Chipset, pin: u64, entry: u64) {
    chipset.mmio_write(IOAPIC_GPA, 4, 0x10 + 2 * pin);
    chipset.mmio_write(IOAPIC_GPA + 0x10, 4, entry);
}

#[test]
fn nobodys_addresses_read_ones_and_are_counted() {
    let Fixture { chipset, .. } = fixture(false);
    assert_eq!(chipset.io_read(0x1F0, 1), 0xFF);
    assert_eq!(chipset.io_read(0xCFC, 4), u32::MAX);
    assert_eq!(chipset.io_read(0xFFFF, 4), u32::MAX);
    assert_eq!(chipset.mmio_read(0xFED0_0000, 8), u64::MAX);
    assert_eq!(chipset.mmio_read(0xFED0_0000, 2), 0xFFFF);
    assert_eq!(chipset.io_write(0x1F0, 2, 5), None);
    chipset.mmio_write(u64::MAX, 8, 0);
    assert_eq!(chipset.unclaimed(), (5, 2));
    assert_eq!(chipset.io_write(0x80, 1, 0), None);
    assert_eq!(chipset.unclaimed(), (5, 2), "delay ports are not an error");
}

#[test]
fn default_machine_has_no_legacy_or_test_devices() {
    let Fixture { chipset, clock, .. } = fixture(false);
    for port in [0x20, 0x21, 0x40, 0x43, 0xA1, 0x4D0, 0x2F8, 0x511, 0xE0] {
        assert_eq!(chipset.io_read(port, 1), 0xFF, "{port:#x}");
    }
    assert_eq!(chipset.io_read(0x61, 1), 0);
    for port in [0xF4, 0x3000, 0x2004, 0x43, 0x21, 0x61] {
        assert_eq!(chipset.io_write(port, 1, 1), None, "{port:#x}");
    }
    assert_eq!(chipset.mmio_read(0xFF00_0000, 4), 0xFFFF_FFFF);
    clock.advance(Duration::from_secs(10));
    chipset.expire();
    assert_eq!(chipset.next_deadline(), None);
}

#[test]
fn serial_port_and_its_interrupt() {
    let Fixture {
        chipset,
        sink,
        output,
        ..
    } = fixture(false);
    for byte in *b"hello" {
        assert_eq!(chipset.io_write(0x3F8, 1, byte.into()), None);
    }
    let mut read = vec![];
    assert!(output.try_read_into(&mut read));
    assert_eq!(read, b"hello");
    route(&chipset, 4, 0x34);
    assert_eq!(chipset.io_write(0x3F9, 1, 1), None);
    assert_eq!(chipset.serial_input(0, b"ok"), 2);
    assert_eq!(sink.take_vectors(), [0x34]);
    assert_eq!(
        (chipset.io_read(0x3F8, 1), chipset.io_read(0x3F8, 1)),
        (b'o'.into(), b'k'.into())
    );
    assert!(chipset.serial_room(0) > 1000);
    assert_eq!(
        (chipset.serial_input(1, b"x"), chipset.serial_room(1)),
        (0, 0),
        "no COM2"
    );
}

#[test]
fn power_and_reset() {
    let Fixture { chipset, .. } = fixture(false);
    assert_eq!(
        chipset.io_write(0x600, 1, 0x34),
        Some(ChipsetEvent::PowerOff)
    );
    assert_eq!(chipset.io_write(0xCF9, 1, 0x06), Some(ChipsetEvent::Reset));
    assert_eq!(chipset.io_write(0x64, 1, 0xFE), Some(ChipsetEvent::Reset));
    assert_eq!(chipset.io_write(0x92, 1, 3), Some(ChipsetEvent::Reset));
    assert_eq!(chipset.io_read(0x64, 1) & 2, 0);
}

#[test]
fn pci_addresses_do_not_reset() {
    let Fixture { chipset, .. } = fixture(false);
    assert_eq!(chipset.io_write(0xCF8, 4, 0x8000_FFFC), None);
    assert_eq!(chipset.io_write(0xCF9, 2, 0x0606), None);
    assert_eq!(chipset.io_read(0xCF8, 4), u32::MAX);
    assert_eq!(chipset.unclaimed(), (1, 2));
}

#[test]
fn processors_share_the_chipset() {
    let Fixture {
        chipset,
        sink,
        output,
        ..
    } = fixture(true);
    route(&chipset, 4, 0x34);
    assert_eq!(chipset.io_write(0x3F9, 1, 3), None);
    std::thread::scope(|scope| {
        for letter in [b'a', b'b', b'c'] {
            let chipset = &chipset;
            scope.spawn(move || {
                for _ in 0..100 {
                    assert_eq!(chipset.io_write(0x3F8, 1, letter.into()), None);
                    chipset.io_read(0x3FA, 1);
                    chipset.expire();
                }
            });
        }
        scope.spawn(|| assert_eq!(chipset.serial_input(0, &[b'x'; 500]), 500));
    });
    let mut read = vec![];
    output.try_read_into(&mut read);
    for letter in [b'a', b'b', b'c'] {
        assert_eq!(read.iter().filter(|byte| **byte == letter).count(), 100);
    }
    assert!(!sink.take().is_empty());
}

#[test]
fn clock_chip_reads_fast_and_right() {
    let Fixture {
        chipset,
        sink,
        clock,
        ..
    } = fixture(false);
    let cmos = |index| {
        assert_eq!(chipset.io_write(0x70, 1, index), None);
        chipset.io_read(0x71, 1)
    };
    // 2023-11-14 22:13:20 UTC.
    let time = [0x32, 9, 8, 7, 4, 2, 0].map(cmos);
    assert_eq!(time, [0x20, 0x23, 0x11, 0x14, 0x22, 0x13, 0x20]);
    assert_eq!(cmos(0x0A) & 0x80, 0);
    route(&chipset, 8, 0x38);
    assert_eq!(chipset.io_write(0x70, 1, 0x0B), None);
    assert_eq!(
        chipset.io_write(0x71, 1, 0x12),
        Some(ChipsetEvent::DeadlineChanged)
    );
    assert_eq!(chipset.next_deadline(), Some(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(1));
    chipset.expire();
    chipset.expire();
    assert_eq!(sink.take_vectors(), [0x38]);
    cmos(0x0C);
    clock.advance(Duration::from_secs(1));
    chipset.expire();
    assert_eq!(sink.take_vectors(), [0x38]);
}

#[test]
fn pm_timer_counts() {
    let Fixture { chipset, clock, .. } = fixture(false);
    clock.advance(Duration::from_secs(2));
    assert_eq!(chipset.io_read(0x608, 4), 2 * 3_579_545);
    assert_eq!(chipset.io_read(0x609, 1), (2 * 3_579_545 / 256) & 0xFF);
}

#[test]
fn periodic_timer_through_the_8259() {
    let Fixture {
        chipset,
        sink,
        clock,
        ..
    } = fixture(true);
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 4),
        (0x21, 1),
        (0x21, 0xFE),
    ] {
        assert_eq!(chipset.io_write(port, 1, value), None);
    }
    assert_eq!(chipset.io_read(0x21, 1), 0xFE);
    assert_eq!(
        chipset.io_write(0x43, 1, 0x34),
        Some(ChipsetEvent::DeadlineChanged)
    );
    let _ = chipset.io_write(0x40, 1, 0x9C);
    let _ = chipset.io_write(0x40, 1, 0x2E);
    for _ in 0..3 {
        let deadline = chipset.next_deadline().unwrap();
        clock.advance(deadline - clock.monotonic());
        chipset.expire();
        assert!(chipset.extint_asserted());
        assert_eq!(chipset.acknowledge_extint(), Some(0x20));
        assert_eq!(sink.take_extint(), [true, false]);
        assert_eq!(chipset.io_write(0x20, 1, 0x20), None);
    }
}

#[test]
fn level_line_through_the_ioapic() {
    let Fixture { chipset, sink, .. } = fixture(true);
    route(&chipset, 14, 0x8081);
    assert_eq!(chipset.io_write(0x200E, 4, 1), None);
    assert_eq!(sink.take_vectors(), [0x81]);
    chipset.eoi(0x81);
    assert_eq!(sink.take_vectors(), [0x81]);
    assert_eq!(chipset.io_write(0x200E, 4, 0), None);
    chipset.eoi(0x81);
    assert_eq!(sink.take_vectors(), []);
    assert!(chipset.irq_line(24).is_none());
    let line = chipset.irq_line(14).unwrap();
    line.set(true);
    assert_eq!((line.number(), sink.take_vectors()), (14, vec![0x81]));
}

#[test]
fn test_machine_devices() {
    let Fixture { chipset, .. } = fixture(true);
    assert_eq!(
        chipset.io_write(0xF4, 4, 0x1_0001),
        Some(ChipsetEvent::DebugExit { code: 0x1_0001 })
    );
    assert_eq!(
        chipset.io_write(0xF4, 1, 0xFF01),
        Some(ChipsetEvent::DebugExit { code: 1 })
    );
    assert_eq!(chipset.io_write(0xE0, 4, 0x0403_0201), None);
    assert_eq!(
        (chipset.io_read(0xE1, 2), chipset.io_read(0xE3, 1)),
        (0x0302, 4)
    );
    assert_eq!(chipset.io_write(0xE4, 4, 0), None);
    chipset.mmio_write(0xFF00_0010, 8, 0x1122_3344_5566_7788);
    assert_eq!(chipset.mmio_read(0xFF00_0012, 2), 0x5566);
    let event = chipset.io_write(0x3000, 4, 0x0501_0203);
    let request = HvTestRequest {
        control: HvTestControl::CreateSintRoute,
        vp_index: 2,
        sint: 3,
        connection: 5,
    };
    assert_eq!(event, Some(ChipsetEvent::HvTestDevice(request)));
    assert_eq!(chipset.io_write(0x510, 2, 5), None);
    assert_eq!(
        (chipset.io_read(0x511, 1), chipset.io_read(0x511, 1)),
        (2, 0)
    );
    assert_eq!(chipset.unclaimed(), (0, 0));
}

#[test]
fn reset_restores_the_power_on_state() {
    let Fixture { chipset, sink, .. } = fixture(true);
    route(&chipset, 14, 0x81);
    let _ = chipset.io_write(0xE0, 4, 7);
    let _ = chipset.io_write(0x43, 1, 0x34);
    let _ = chipset.io_write(0x40, 2, 0x0101);
    let _ = chipset.io_write(0x21, 1, 0xAA);
    let _ = chipset.io_write(0x3F9, 1, 3);
    chipset.reset();
    assert_eq!((chipset.io_read(0xE0, 4), chipset.io_read(0x21, 1)), (0, 0));
    assert_eq!(
        (chipset.io_read(0x3F9, 1), chipset.next_deadline()),
        (0, None)
    );
    sink.take();
    chipset.irq_line(14).unwrap().pulse();
    assert_eq!(sink.take_vectors(), []);
}

#[test]
fn every_access_is_survived() {
    for test_machine in [false, true] {
        let Fixture {
            chipset, output, ..
        } = fixture(test_machine);
        drop(output);
        for port in 0..=u16::MAX {
            for size in [1, 2, 4] {
                chipset.io_read(port, size);
                let _ = chipset.io_write(port, size, 0xA5A5_5A5A);
                chipset.io_read(port, size);
            }
        }
        for base in [IOAPIC_GPA, test::TEST_MMIO_GPA + 0xFFF0] {
            for offset in 0..0x50 {
                chipset.mmio_write(base + offset, 8, u64::MAX);
                chipset.mmio_read(base + offset, 8);
            }
        }
        chipset.expire();
    }
}
