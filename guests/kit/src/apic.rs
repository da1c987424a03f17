//! The local APIC in either of its modes.

use crate::{cpu, memory};

/// Register offsets (xAPIC) and, divided by 16 plus 0x800, x2APIC register numbers.
pub mod register {
    #![allow(missing_docs, reason = "the names are the manuals'")]
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const TMR: u32 = 0x180;
    pub const IRR: u32 = 0x200;
    pub const ESR: u32 = 0x280;
    pub const ICR: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_THERMAL: u32 = 0x330;
    pub const LVT_PERFORMANCE: u32 = 0x340;
    pub const LVT_LINT0: u32 = 0x350;
    pub const LVT_LINT1: u32 = 0x360;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
    pub const SELF_IPI: u32 = 0x3f0;
}

/// ICR fields.
pub mod icr {
    #![allow(missing_docs, reason = "the names are the manuals'")]
    pub const FIXED: u32 = 0;
    pub const LOWEST: u32 = 1 << 8;
    pub const NMI: u32 = 4 << 8;
    pub const INIT: u32 = 5 << 8;
    pub const STARTUP: u32 = 6 << 8;
    pub const LOGICAL: u32 = 1 << 11;
    pub const BUSY: u32 = 1 << 12;
    pub const ASSERT: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const SELF: u32 = 1 << 18;
    pub const ALL: u32 = 2 << 18;
    pub const OTHERS: u32 = 3 << 18;
}

/// APIC base bits.
pub const BASE_ENABLE: u64 = 1 << 11;
/// x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
/// Bootstrap processor.
pub const BASE_BSP: u64 = 1 << 8;
/// Where the registers are mapped.
pub const MMIO: u64 = 0xfee0_0000;
/// The vector of spurious interrupts that the kit sets.
pub const SPURIOUS: u32 = 0xff;

/// Is this processor's APIC in x2APIC mode?
pub fn x2apic() -> bool {
    cpu::rdmsr(cpu::msr::APIC_BASE) & BASE_X2APIC != 0
}

/// Does the processor have x2APIC mode?
pub fn has_x2apic() -> bool {
    cpu::feature_1c(21)
}

/// Reads a register.
pub fn read(offset: u32) -> u32 {
    if x2apic() {
        cpu::rdmsr(0x800 + (offset >> 4)) as u32
    } else {
        memory::read32(MMIO + u64::from(offset))
    }
}

/// Writes a register.
pub fn write(offset: u32, value: u32) {
    if x2apic() {
        cpu::wrmsr(0x800 + (offset >> 4), u64::from(value));
    } else {
        memory::write32(MMIO + u64::from(offset), value);
    }
}

/// This processor's APIC id.
pub fn id() -> u32 {
    if x2apic() {
        read(register::ID)
    } else {
        read(register::ID) >> 24
    }
}

/// Software-enables the APIC and accepts everything.
pub fn enable() {
    write(register::SVR, 0x100 | SPURIOUS);
    write(register::TPR, 0);
}

/// Ends the interrupt in service.
pub fn eoi() {
    write(register::EOI, 0);
}

/// Writes the interrupt command register and waits until it was sent.
pub fn send(destination: u32, command: u32) {
    if x2apic() {
        cpu::wrmsr(0x830, u64::from(destination) << 32 | u64::from(command));
    } else {
        memory::write32(MMIO + u64::from(register::ICR_HIGH), destination << 24);
        memory::write32(MMIO + u64::from(register::ICR), command);
        for _ in 0..1_000_000 {
            if memory::read32(MMIO + u64::from(register::ICR)) & icr::BUSY == 0 {
                break;
            }
        }
    }
}

/// Is `vector`'s bit set in one of the 256-bit registers (ISR, TMR, IRR)?
pub fn bit(base: u32, vector: u8) -> bool {
    read(base + u32::from(vector >> 5) * 0x10) >> (vector & 31) & 1 != 0
}
