//! The ACPI tables that describe the machine to its guest (ACPI 6.5).
//!
//! The machine is hardware-reduced: power and reset are the registers of this
//! crate's chipset, there is no SCI, and by default no 8259, no 8254 and no
//! HPET to be probed. The namespace has what a guest cannot find otherwise:
//! the VMBus, with the address ranges that its devices may use for memory of
//! their own, and the serial ports.

use std::ops::Range;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use crate::ioapic::IOAPIC_GPA;
use crate::power::{
    PM_TIMER_PORT, RESET_PORT, RESET_VALUE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT, SLEEP_TYPE_S5,
};
use crate::serial::{COM1_IRQ, COM1_PORT, COM2_IRQ, COM2_PORT};

/// Where guests look for the RSDP: 0xE0000 up to 1 MiB.
pub const RSDP_AREA: Range<u64> = 0xE_0000..0x10_0000;

const OEM_ID: [u8; 6] = *b"PARTIT";
const OEM_TABLE_ID: [u8; 8] = *b"PARTITA ";
const OEM_REVISION: u32 = 1;
const LOCAL_APIC_GPA: u32 = 0xFEE0_0000;
const TABLE_ALIGNMENT: usize = 64;
const RSDP_SIZE: usize = 36;

/// `iapc_boot_arch` bits: there is no VGA to probe, and no RTC that needs a
/// driver. Legacy devices and 8042 stay clear for the same purpose.
const BOOT_NO_VGA: u16 = 1 << 2;
const BOOT_NO_CMOS_RTC: u16 = 1 << 5;

/// MADT revision of ACPI 6.5, its flag for an 8259 pair and entry types.
const MADT_REVISION: u8 = 5;
const MADT_PCAT_COMPAT: u32 = 1;
const MADT_LOCAL_APIC: u8 = 0;
const MADT_IO_APIC: u8 = 1;
const MADT_SOURCE_OVERRIDE: u8 = 2;
const MADT_LOCAL_X2APIC: u8 = 9;
const MADT_ENABLED: u32 = 1;
/// First APIC id that needs an x2APIC entry.
const FIRST_X2APIC_ID: u32 = 255;

/// What the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Number of processors; their APIC ids are 0 and up.
    pub processors: u32,
    /// Where the tables go: 16-byte aligned, within [`RSDP_AREA`].
    pub base_gpa: u64,
    /// Addresses below 4 GiB that VMBus devices may use, if any.
    pub low_mmio: Option<Range<u64>>,
    /// Addresses above memory that VMBus devices may use, if any.
    pub high_mmio: Option<Range<u64>>,
    /// Whether there is a COM1.
    pub com1: bool,
    /// Whether there is a COM2.
    pub com2: bool,
    /// Whether the ACPI timer is reported, as test images want. Guests with
    /// an invariant TSC and the reference time page have no use for it.
    pub pm_timer: bool,
    /// Whether there is an 8259 pair and an 8254 on I/O APIC pin 2.
    pub legacy_pic_pit: bool,
}

impl Default for AcpiConfig {
    /// One processor with COM1, no memory of devices, tables at 0xE0000.
    fn default() -> Self {
        Self {
            processors: 1,
            base_gpa: RSDP_AREA.start,
            low_mmio: None,
            high_mmio: None,
            com1: true,
            com2: false,
            pm_timer: false,
            legacy_pic_pit: false,
        }
    }
}

/// Tables to be copied into the guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiTables {
    /// The bytes.
    pub blob: Vec<u8>,
    /// Where they belong.
    pub base_gpa: u64,
    /// Where the RSDP is then.
    pub rsdp_gpa: u64,
}

/// Why there are no tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// The base is misaligned or outside [`RSDP_AREA`].
    #[error("the ACPI tables cannot be placed at {0:#x}")]
    BadBase(u64),
    /// An address range is empty or backwards.
    #[error("the device address range at {0:#x} is empty")]
    EmptyRange(u64),
    /// The tables do not fit below 1 MiB: too many processors.
    #[error("ACPI tables of at least {0} bytes do not fit below 1 MiB")]
    TooLarge(u64),
}

/// Builds the tables: RSDP (revision 2), XSDT, FADT, MADT and DSDT.
///
/// # Errors
///
/// See [`AcpiError`].
pub fn build_tables(config: &AcpiConfig) -> Result<AcpiTables, AcpiError> {
    if !config.base_gpa.is_multiple_of(16) || !RSDP_AREA.contains(&config.base_gpa) {
        return Err(AcpiError::BadBase(config.base_gpa));
    }
    for range in [&config.low_mmio, &config.high_mmio].into_iter().flatten() {
        if range.is_empty() {
            return Err(AcpiError::EmptyRange(range.start));
        }
    }
    let room = RSDP_AREA.end - config.base_gpa;
    let least = u64::from(config.processors) * 8;
    if least > room {
        return Err(AcpiError::TooLarge(least));
    }
    // The RSDP comes first, so its place is kept free until the rest stands.
    let mut blob = vec![0; RSDP_SIZE];
    let dsdt = place(&mut blob, config.base_gpa, dsdt(config).as_slice());
    let fadt = place(&mut blob, config.base_gpa, &fadt(config, dsdt));
    let madt = place(&mut blob, config.base_gpa, madt(config).as_slice());
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&mut blob, config.base_gpa, &bytes(&xsdt));
    blob[..RSDP_SIZE].copy_from_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)));

    let size = blob.len() as u64;
    if size > room {
        return Err(AcpiError::TooLarge(size));
    }
    Ok(AcpiTables {
        blob,
        base_gpa: config.base_gpa,
        rsdp_gpa: config.base_gpa,
    })
}

/// Appends a table at the next aligned place; its guest-physical address.
fn place(blob: &mut Vec<u8>, base_gpa: u64, table: &[u8]) -> u64 {
    blob.resize(blob.len().next_multiple_of(TABLE_ALIGNMENT), 0);
    let gpa = base_gpa + blob.len() as u64;
    blob.extend_from_slice(table);
    gpa
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(config: &AcpiConfig, dsdt_gpa: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        .flag(Flags::ResetRegSup);
    // Below 1 MiB, so the old field can hold the address too.
    fadt.dsdt = (dsdt_gpa as u32).into();
    fadt.x_dsdt = dsdt_gpa.into();
    fadt.iapc_boot_arch = (BOOT_NO_VGA | BOOT_NO_CMOS_RTC).into();
    fadt.reset_reg = io_byte(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = io_byte(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = io_byte(SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"Partita\0").into();
    if config.pm_timer {
        fadt = fadt.flag(Flags::TmrValExt);
        fadt.pm_tmr_blk = u32::from(PM_TIMER_PORT).into();
        fadt.pm_tmr_len = 4;
        let port = u64::from(PM_TIMER_PORT);
        fadt.x_pm_tmr_blk = GAS::new(GasSpace::SystemIo, 32, 0, AccessSize::DwordAccess, port);
    }
    bytes(&fadt.finalize())
}

fn io_byte(port: u16) -> GAS {
    GAS::new(
        GasSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

fn new_table(signature: [u8; 4], revision: u8) -> Sdt {
    const HEADER: u32 = 36;
    Sdt::new(
        signature,
        HEADER,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    )
}

fn madt(config: &AcpiConfig) -> Sdt {
    let mut madt = new_table(*b"APIC", MADT_REVISION);
    let mut body = Vec::new();
    body.dword(LOCAL_APIC_GPA);
    body.dword(if config.legacy_pic_pit {
        MADT_PCAT_COMPAT
    } else {
        0
    });
    for id in 0..config.processors {
        processor_entry(&mut body, id);
    }
    body.vec(&[MADT_IO_APIC, 12, 0, 0]);
    body.dword(IOAPIC_GPA as u32);
    body.dword(0);
    if config.legacy_pic_pit {
        // The 8254 on ISA line 0 arrives at pin 2, edge-triggered as the
        // bus's lines are.
        body.vec(&[MADT_SOURCE_OVERRIDE, 10, 0, 0]);
        body.dword(2);
        body.word(0);
    }
    madt.append_slice(&body);
    madt
}

/// The entry of one processor, whose ACPI id is its APIC id.
fn processor_entry(body: &mut Vec<u8>, id: u32) {
    match u8::try_from(id) {
        Ok(short) if id < FIRST_X2APIC_ID => {
            body.vec(&[MADT_LOCAL_APIC, 8, short, short]);
            body.dword(MADT_ENABLED);
        }
        _ => {
            body.vec(&[MADT_LOCAL_X2APIC, 16, 0, 0]);
            body.dword(id);
            body.dword(MADT_ENABLED);
            body.dword(id);
        }
    }
}

fn dsdt(config: &AcpiConfig) -> Sdt {
    let mut dsdt = new_table(*b"DSDT", 2);
    let mut aml = Vec::new();
    let sleep_type = SLEEP_TYPE_S5;
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&sleep_type, &0u8, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut aml);
    aml.extend(Scope::raw("\\_SB_".into(), system_bus(config)));
    dsdt.append_slice(&aml);
    dsdt
}

fn system_bus(config: &AcpiConfig) -> Vec<u8> {
    let mut aml = vmbus_module(config);
    let ports = [
        (config.com1, "COM1", 1u8, COM1_PORT, COM1_IRQ),
        (config.com2, "COM2", 2u8, COM2_PORT, COM2_IRQ),
    ];
    for (_, name, uid, port, irq) in ports.into_iter().filter(|port| port.0) {
        serial_port(&mut aml, name, uid, port, irq);
    }
    aml
}

/// The module that holds the VMBus. Guests take memory ranges for the bus's
/// devices from the first ancestor of the bus that has some.
fn vmbus_module(config: &AcpiConfig) -> Vec<u8> {
    let windows: Vec<_> = [&config.low_mmio, &config.high_mmio]
        .into_iter()
        .flatten()
        .map(|range| {
            let cacheable = AddressSpaceCacheable::NotCacheable;
            AddressSpace::new_memory(cacheable, true, range.start, range.end - 1, None)
        })
        .collect();
    let windows = windows.iter().map(|window| window as &dyn Aml).collect();
    let hid = Name::new("_HID".into(), &"ACPI0004");
    let uid = Name::new("_UID".into(), &0u8);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(windows));
    bytes(&Device::new(
        "VMOD".into(),
        vec![&hid, &uid, &resources, &Vmbus],
    ))
}

/// The VMBus device.
struct Vmbus;

impl Aml for Vmbus {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let present = 0xFu8;
        Device::new(
            "VMBS".into(),
            vec![
                &Name::new("_HID".into(), &"VMBus"),
                &Name::new("_UID".into(), &0u8),
                &Name::new("_STA".into(), &present),
                // The bus has no resources; guests insist on the empty list.
                &Name::new("_CRS".into(), &ResourceTemplate::new(vec![])),
            ],
        )
        .to_aml_bytes(sink);
    }
}

fn serial_port(aml: &mut Vec<u8>, name: &str, uid: u8, port: u16, irq: u8) {
    Device::new(
        Path::new(name),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &uid),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(port, port, 1, 8),
                    &Interrupt::new(true, true, false, false, irq.into()),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

#[cfg(test)]
mod tests;
