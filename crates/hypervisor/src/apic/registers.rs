//! Register offsets and bit layouts of the local APIC (Intel SDM 3A, chapter
//! "Advanced Programmable Interrupt Controller").
//!
//! Offsets are those of the memory-mapped page; the x2APIC MSR of a register
//! is `0x800 + offset / 16`.

pub(super) const ID: u16 = 0x020;
pub(super) const VERSION: u16 = 0x030;
pub(super) const TPR: u16 = 0x080;
pub(super) const APR: u16 = 0x090;
pub(super) const PPR: u16 = 0x0A0;
pub(super) const EOI: u16 = 0x0B0;
pub(super) const LDR: u16 = 0x0D0;
pub(super) const DFR: u16 = 0x0E0;
pub(super) const SVR: u16 = 0x0F0;
pub(super) const ISR: u16 = 0x100;
pub(super) const ISR_LAST: u16 = ISR + 0x70;
pub(super) const TMR: u16 = 0x180;
pub(super) const TMR_LAST: u16 = TMR + 0x70;
pub(super) const IRR: u16 = 0x200;
pub(super) const IRR_LAST: u16 = IRR + 0x70;
pub(super) const ESR: u16 = 0x280;
pub(super) const ICR_LOW: u16 = 0x300;
pub(super) const ICR_HIGH: u16 = 0x310;
pub(super) const LVT_TIMER: u16 = 0x320;
pub(super) const LVT_ERROR: u16 = 0x370;
pub(super) const INITIAL_COUNT: u16 = 0x380;
pub(super) const CURRENT_COUNT: u16 = 0x390;
pub(super) const DIVIDE: u16 = 0x3E0;
pub(super) const SELF_IPI: u16 = 0x3F0;

/// First x2APIC MSR.
pub(super) const X2APIC_MSR_FIRST: u32 = 0x800;
/// Last MSR of the block reserved for the x2APIC.
pub(super) const X2APIC_MSR_LAST: u32 = 0x8FF;

/// Version register: an integrated APIC (0x14) with six LVT entries, without
/// CMCI and without EOI-broadcast suppression.
pub(super) const VERSION_VALUE: u32 = 0x0005_0014;

/// Architectural page of the local APIC after reset.
pub(super) const DEFAULT_BASE: u64 = 0xFEE0_0000;
pub(super) const BASE_BSP: u64 = 1 << 8;
pub(super) const BASE_EXTD: u64 = 1 << 10;
pub(super) const BASE_ENABLE: u64 = 1 << 11;
/// Bits 7:0 and 9 of IA32_APIC_BASE.
pub(super) const BASE_RESERVED_LOW: u64 = 0x2FF;
/// The page address of IA32_APIC_BASE for the widest physical address.
pub(super) const BASE_ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

pub(super) const SVR_ENABLE: u32 = 1 << 8;
/// Vector, software enable, focus checking.
pub(super) const SVR_WRITABLE: u32 = 0x3FF;

pub(super) const LVT_VECTOR: u32 = 0xFF;
pub(super) const LVT_MODE: u32 = 0x700;
/// Delivery status, which only the APIC changes.
pub(super) const LVT_DELIVERY_STATUS: u32 = 1 << 12;
pub(super) const LVT_POLARITY: u32 = 1 << 13;
pub(super) const LVT_REMOTE_IRR: u32 = 1 << 14;
pub(super) const LVT_LEVEL: u32 = 1 << 15;
pub(super) const LVT_MASKED: u32 = 1 << 16;
pub(super) const LVT_TIMER_MODE: u32 = 3 << 17;

/// Writable bits of each LVT entry, in register order: timer, thermal
/// sensor, performance counters, LINT0, LINT1, error.
pub(super) const LVT_WRITABLE: [u32; LVT_COUNT] = [
    LVT_VECTOR | LVT_MASKED | LVT_TIMER_MODE,
    LVT_VECTOR | LVT_MODE | LVT_MASKED,
    LVT_VECTOR | LVT_MODE | LVT_MASKED,
    LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    LVT_VECTOR | LVT_MODE | LVT_POLARITY | LVT_LEVEL | LVT_MASKED,
    LVT_VECTOR | LVT_MASKED,
];
pub(super) const LVT_COUNT: usize = 6;

/// Position of an entry in the local vector table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lvt {
    Timer = 0,
    Lint0 = 3,
    Lint1 = 4,
    Error = 5,
}

pub(super) const ESR_SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
pub(super) const ESR_RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
pub(super) const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

pub(super) const ICR_LOGICAL: u64 = 1 << 11;
pub(super) const ICR_DELIVERY_STATUS: u64 = 1 << 12;
pub(super) const ICR_ASSERT: u64 = 1 << 14;
pub(super) const ICR_LEVEL: u64 = 1 << 15;
/// Vector, delivery mode, destination mode, level, trigger, shorthand.
pub(super) const ICR_LOW_WRITABLE: u64 = 0x000C_CFFF;
/// The destination field of the memory-mapped ICR.
pub(super) const ICR_XAPIC_DESTINATION: u64 = 0xFF00_0000_0000_0000;

/// Bits 0, 1 and 3 of the divide configuration register.
pub(super) const DIVIDE_WRITABLE: u32 = 0xB;

/// Vectors below this are reserved for exceptions.
pub(super) const FIRST_LEGAL_VECTOR: u8 = 16;
