//! Reads the tables as a guest does: from the RSDP, checking every length and
//! checksum, and walking the DSDT's byte code.

use super::*;

struct Guest<'a> {
    tables: &'a AcpiTables,
}

impl<'a> Guest<'a> {
    fn at(&self, gpa: u64) -> &'a [u8] {
        &self.tables.blob[(gpa - self.tables.base_gpa) as usize..]
    }

    fn table(&self, gpa: u64, signature: &[u8; 4]) -> &'a [u8] {
        assert_eq!(gpa % 16, 0);
        let table = self.at(gpa);
        let table = &table[..u32_at(table, 4) as usize];
        assert_eq!(&table[..4], signature);
        assert_eq!(
            sum(table),
            0,
            "checksum of {}",
            String::from_utf8_lossy(signature)
        );
        assert_eq!(&table[10..16], b"PARTIT");
        table
    }

    fn root_entries(&self) -> Vec<u64> {
        let rsdp = &self.at(self.tables.rsdp_gpa)[..36];
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(rsdp), rsdp[15]), (0, 0, 2));
        let xsdt = self.table(u64_at(rsdp, 24), b"XSDT");
        xsdt[36..]
            .chunks_exact(8)
            .map(|entry| u64_at(entry, 0))
            .collect()
    }

    fn fadt(&self) -> &'a [u8] {
        self.table(self.root_entries()[0], b"FACP")
    }

    fn madt(&self) -> &'a [u8] {
        self.table(self.root_entries()[1], b"APIC")
    }

    fn dsdt(&self) -> &'a [u8] {
        let fadt = self.fadt();
        assert_eq!(u64_at(fadt, 140), u32_at(fadt, 40).into());
        self.table(u64_at(fadt, 140), b"DSDT")
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn build(config: &AcpiConfig) -> AcpiTables {
    build_tables(config).unwrap()
}

fn full() -> AcpiConfig {
    AcpiConfig {
        processors: 4,
        low_mmio: Some(0xF800_0000..0xFEC0_0000),
        high_mmio: Some(0x10_0000_0000..0x20_0000_0000),
        com2: true,
        ..AcpiConfig::default()
    }
}

/// A generic address: space, width, offset, access size, address.
fn gas(fadt: &[u8], offset: usize) -> (u8, u8, u8, u8, u64) {
    let [space, width, bit, access] = fadt[offset..offset + 4].try_into().unwrap();
    (space, width, bit, access, u64_at(fadt, offset + 4))
}

#[test]
fn fadt_describes_a_hardware_reduced_machine() {
    let tables = build(&full());
    let guest = Guest { tables: &tables };
    assert_eq!(guest.root_entries().len(), 2);
    let fadt = guest.fadt();
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & (1 << 20 | 1 << 10 | 1), 1 << 20 | 1 << 10 | 1);
    let boot = u16::from_le_bytes([fadt[109], fadt[110]]);
    assert_eq!(
        boot,
        1 << 2 | 1 << 5,
        "no VGA, no CMOS RTC, no 8042, no legacy devices"
    );
    assert_eq!((gas(fadt, 116), fadt[128]), ((1, 8, 0, 1, 0xCF9), 6));
    assert_eq!(
        (gas(fadt, 244), gas(fadt, 256)),
        ((1, 8, 0, 1, 0x600), (1, 8, 0, 1, 0x601))
    );
    assert_eq!(
        (u32_at(fadt, 76), fadt[91], gas(fadt, 208)),
        (0, 0, (0, 0, 0, 0, 0))
    );
}

#[test]
fn pm_timer_is_reported_on_request() {
    let tables = build(&AcpiConfig {
        pm_timer: true,
        ..full()
    });
    let fadt = Guest { tables: &tables }.fadt();
    assert_eq!(
        (u32_at(fadt, 76), fadt[91], u32_at(fadt, 112) >> 8 & 1),
        (0x608, 4, 1)
    );
    assert_eq!(gas(fadt, 208), (1, 32, 0, 3, 0x608));
}

/// The MADT's entries by type.
fn entries(madt: &[u8]) -> Vec<(u8, &[u8])> {
    let mut rest = &madt[44..];
    let mut entries = vec![];
    while let [kind, length, ..] = *rest {
        let (entry, next) = rest.split_at(length.into());
        entries.push((kind, entry));
        rest = next;
    }
    entries
}

#[test]
fn madt_lists_processors_and_the_ioapic() {
    let tables = build(&full());
    let madt = Guest { tables: &tables }.madt();
    assert_eq!((u32_at(madt, 36), u32_at(madt, 40)), (0xFEE0_0000, 0));
    let entries = entries(madt);
    assert_eq!(entries.len(), 5);
    for (id, (kind, entry)) in (0u8..4).zip(&entries) {
        assert_eq!((*kind, *entry), (0, [0, 8, id, id, 1, 0, 0, 0].as_slice()));
    }
    assert_eq!(
        entries[4],
        (1, [1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0].as_slice())
    );
}

#[test]
fn madt_of_a_machine_with_an_8259() {
    let tables = build(&AcpiConfig {
        legacy_pic_pit: true,
        ..AcpiConfig::default()
    });
    let madt = Guest { tables: &tables }.madt();
    assert_eq!(u32_at(madt, 40), 1);
    assert_eq!(
        entries(madt)[2],
        (2, [2, 10, 0, 0, 2, 0, 0, 0, 0, 0].as_slice())
    );
}

#[test]
fn processors_beyond_254_are_x2apics() {
    let tables = build(&AcpiConfig {
        processors: 1024,
        ..full()
    });
    let madt = Guest { tables: &tables }.madt();
    let entries = entries(madt);
    assert_eq!(entries.len(), 1025);
    assert_eq!(entries[254].1[..4], [0, 8, 254, 254]);
    let (kind, last) = entries[1023];
    assert_eq!(
        (kind, last.len(), u32_at(last, 4), u32_at(last, 12)),
        (9, 16, 1023, 1023)
    );
    assert_eq!(entries[255].1[..4], [9, 16, 0, 0]);
}

/// An AML object of the kinds that the DSDT uses.
#[derive(Debug, PartialEq)]
enum Object {
    Scope(String, Vec<Object>),
    Device(String, Vec<Object>),
    Name(String, Value),
}

#[derive(Debug, PartialEq)]
enum Value {
    Integer(u64),
    String(String),
    Buffer(Vec<u8>),
    Package(Vec<Value>),
}

/// A strict reader of AML term lists (ACPI 6.5, chapter 20).
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    /// What a package length at this place encloses.
    fn package(&mut self) -> Reader<'a> {
        let before = self.0.len();
        let lead = self.byte();
        let follow = usize::from(lead >> 6);
        let length = if follow == 0 {
            usize::from(lead & 0x3F)
        } else {
            assert_eq!(lead & 0x30, 0);
            let high = self.take(follow).iter().rev();
            high.fold(0, |sum, byte| sum << 8 | usize::from(*byte)) << 4 | usize::from(lead & 0xF)
        };
        let used = before - self.0.len();
        Reader(self.take(length - used))
    }

    fn name(&mut self) -> String {
        let root = self.0[0] == b'\\';
        if root {
            self.byte();
        }
        let segment = self.take(4);
        let valid = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
        assert!(segment.iter().all(valid), "{segment:x?}");
        format!(
            "{}{}",
            if root { "\\" } else { "" },
            String::from_utf8_lossy(segment)
        )
    }

    fn value(&mut self) -> Value {
        match self.byte() {
            0x00 => Value::Integer(0),
            0x01 => Value::Integer(1),
            0x0A => Value::Integer(self.byte().into()),
            0x0B => Value::Integer(u16::from_le_bytes(self.take(2).try_into().unwrap()).into()),
            0x0C => Value::Integer(u32_at(self.take(4), 0).into()),
            0x0D => {
                let end = self.0.iter().position(|byte| *byte == 0).unwrap();
                let text = String::from_utf8(self.take(end).to_vec()).unwrap();
                self.byte();
                Value::String(text)
            }
            0x11 => {
                let mut inner = self.package();
                let Value::Integer(size) = inner.value() else {
                    panic!("buffer size")
                };
                assert_eq!(size as usize, inner.0.len());
                Value::Buffer(inner.0.to_vec())
            }
            0x12 => {
                let mut inner = self.package();
                let values: Vec<_> = (0..inner.byte()).map(|_| inner.value()).collect();
                assert!(inner.0.is_empty());
                Value::Package(values)
            }
            other => panic!("value opcode {other:#x}"),
        }
    }

    fn objects(mut self) -> Vec<Object> {
        let mut objects = vec![];
        while !self.0.is_empty() {
            objects.push(self.object());
        }
        objects
    }

    fn object(&mut self) -> Object {
        match self.byte() {
            0x08 => Object::Name(self.name(), self.value()),
            0x10 => {
                let mut inner = self.package();
                Object::Scope(inner.name(), inner.objects())
            }
            0x5B => {
                assert_eq!(self.byte(), 0x82, "only devices are extended opcodes here");
                let mut inner = self.package();
                Object::Device(inner.name(), inner.objects())
            }
            other => panic!("term opcode {other:#x}"),
        }
    }
}

fn namespace(config: &AcpiConfig) -> Vec<Object> {
    let tables = build(config);
    Reader(&Guest { tables: &tables }.dsdt()[36..]).objects()
}

fn children<'a>(objects: &'a [Object], wanted: &str) -> &'a [Object] {
    let found = objects.iter().find_map(|object| match object {
        Object::Scope(name, inner) | Object::Device(name, inner) if name == wanted => Some(inner),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no {wanted}"))
}

fn value<'a>(objects: &'a [Object], wanted: &str) -> &'a Value {
    let found = objects.iter().find_map(|object| match object {
        Object::Name(name, value) if name == wanted => Some(value),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no {wanted}"))
}

/// Resource descriptors by tag, without the checked end tag.
fn resources(value: &Value) -> Vec<(u8, Vec<u8>)> {
    let Value::Buffer(bytes) = value else {
        panic!("_CRS is no buffer")
    };
    let mut reader = Reader(bytes);
    let mut found = vec![];
    loop {
        let tag = reader.byte();
        if tag == 0x79 {
            reader.byte();
            assert!(reader.0.is_empty());
            return found;
        }
        let length = if tag & 0x80 != 0 {
            usize::from(u16::from_le_bytes(reader.take(2).try_into().unwrap()))
        } else {
            usize::from(tag & 7)
        };
        found.push((tag, reader.take(length).to_vec()));
    }
}

fn string(text: &str) -> Value {
    Value::String(text.to_owned())
}

#[test]
fn only_s5_is_a_sleep_state() {
    let namespace = namespace(&AcpiConfig::default());
    let expected = [5, 0, 0, 0].map(Value::Integer).into();
    assert_eq!(value(&namespace, "_S5_"), &Value::Package(expected));
    assert_eq!(namespace.len(), 2);
}

#[test]
fn vmbus_has_its_place_and_memory() {
    let namespace = namespace(&full());
    let module = children(children(&namespace, "\\_SB_"), "VMOD");
    assert_eq!(value(module, "_HID"), &string("ACPI0004"));
    let windows = resources(value(module, "_CRS"));
    assert_eq!(windows.len(), 2);
    for ((tag, window), (start, end)) in windows
        .iter()
        .zip([(0xF800_0000, 0xFEC0_0000), (0x10_0000_0000, 0x20_0000_0000)])
    {
        assert_eq!((*tag, window[0]), (0x8A, 0), "QWordMemory");
        let field = |index: usize| u64_at(window, 3 + 8 * index);
        assert_eq!(
            (field(1), field(2), field(4)),
            (start, end - 1, end - start)
        );
    }
    let bus = children(module, "VMBS");
    assert_eq!(value(bus, "_HID"), &string("VMBus"));
    assert_eq!(
        (value(bus, "_UID"), value(bus, "_STA")),
        (&Value::Integer(0), &Value::Integer(15))
    );
    assert_eq!(resources(value(bus, "_CRS")), []);
}

#[test]
fn vmbus_without_memory_windows() {
    let namespace = namespace(&AcpiConfig::default());
    let module = children(children(&namespace, "\\_SB_"), "VMOD");
    assert_eq!(resources(value(module, "_CRS")), []);
}

#[test]
fn serial_ports() {
    let namespace = namespace(&full());
    let bus = children(&namespace, "\\_SB_");
    for (name, uid, port, irq) in [("COM1", 1, 0x3F8u16, 4), ("COM2", 2, 0x2F8, 3)] {
        let device = children(bus, name);
        // "PNP" in five-bit letters, then 0501.
        assert_eq!(value(device, "_HID"), &Value::Integer(0x0105_D041));
        assert_eq!(value(device, "_UID"), &Value::Integer(uid));
        let resources = resources(value(device, "_CRS"));
        let [low, high] = port.to_le_bytes();
        assert_eq!(resources[0], (0x47, vec![1, low, high, low, high, 1, 8]));
        // Consumer, edge-triggered, active high, exclusive.
        assert_eq!(resources[1], (0x89, vec![0b0011, 1, irq, 0, 0, 0]));
    }
    let only_first = super::tests::namespace(&AcpiConfig::default());
    assert_eq!(children(&only_first, "\\_SB_").len(), 2);
}

#[test]
fn places_that_do_not_work() {
    let at = |base_gpa| build_tables(&AcpiConfig { base_gpa, ..full() });
    assert_eq!(at(0xE_0008), Err(AcpiError::BadBase(0xE_0008)));
    assert_eq!(at(0x10_0000), Err(AcpiError::BadBase(0x10_0000)));
    assert!(matches!(at(0xF_FFF0), Err(AcpiError::TooLarge(_))));
    assert_eq!(at(0xF_0000).map(|tables| tables.rsdp_gpa), Ok(0xF_0000));
    let many = build_tables(&AcpiConfig {
        processors: 100_000,
        ..full()
    });
    assert!(matches!(many, Err(AcpiError::TooLarge(_))));
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let backwards = AcpiConfig {
        low_mmio: Some(5..4),
        ..full()
    };
    assert_eq!(build_tables(&backwards), Err(AcpiError::EmptyRange(5)));
}
