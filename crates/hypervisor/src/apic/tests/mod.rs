//! Tests of the local APIC against the Intel SDM.

mod destination;
mod interrupts;
mod modes;
mod registers;
mod state;
mod timer;

use alloc::vec;
use alloc::vec::Vec;

use super::*;

const TSC_HZ: u64 = 2_000_000_000;
const APIC_HZ: u64 = 200_000_000;
const BASE_X2APIC: u64 = 0xFEE0_0C00;

fn config(apic_id: u32) -> ApicConfig {
    ApicConfig {
        apic_id,
        tsc_frequency: TSC_HZ,
        apic_frequency: APIC_HZ,
        bootstrap: apic_id == 0,
    }
}

/// A software-enabled APIC in xAPIC mode.
fn xapic(apic_id: u32) -> LocalApic {
    let mut apic = LocalApic::new(&config(apic_id));
    assert_eq!(write(&mut apic, 0xF0, 0x1FF), vec![]);
    apic
}

/// A software-enabled APIC in x2APIC mode.
fn x2apic(apic_id: u32) -> LocalApic {
    let mut apic = xapic(apic_id);
    apic.set_base_msr(BASE_X2APIC).unwrap();
    apic
}

/// Writes a memory-mapped register at TSC 0; what it caused.
fn write(apic: &mut LocalApic, offset: u16, value: u32) -> Vec<ApicEffect> {
    write_at(apic, offset, value, 0)
}

fn write_at(apic: &mut LocalApic, offset: u16, value: u32, tsc: u64) -> Vec<ApicEffect> {
    let mut effects = vec![];
    apic.write_mmio(offset, value, tsc, &mut effects);
    effects
}

fn read(apic: &LocalApic, offset: u16) -> u32 {
    apic.read_mmio(offset, 0)
}

/// Writes an x2APIC MSR at TSC 0; what it caused.
fn wrmsr(apic: &mut LocalApic, index: u32, value: u64) -> Result<Vec<ApicEffect>, ApicFault> {
    let mut effects = vec![];
    apic.write_msr(index, value, 0, &mut effects)
        .map(|()| effects)
}

fn eoi(apic: &mut LocalApic) -> Vec<ApicEffect> {
    let mut effects = vec![];
    apic.eoi(&mut effects);
    effects
}

fn lint(apic: &mut LocalApic, pin: u8, asserted: bool) -> Vec<ApicEffect> {
    let mut effects = vec![];
    apic.lint(pin, asserted, &mut effects);
    effects
}

fn ipi(destination: IpiTarget, mode: DeliveryMode, vector: u8) -> ApicEffect {
    let (level_asserted, level_triggered) = (true, false);
    ApicEffect::Ipi(Ipi {
        destination,
        mode,
        vector,
        level_asserted,
        level_triggered,
    })
}
