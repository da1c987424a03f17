//! Which local APICs an interrupt message addresses.

use super::local::LocalApic;
use super::{ApicMode, registers as reg};

/// The address of an interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// APIC id or logical address; eight bits wide unless `x2apic_format`.
    pub address: u32,
    /// Logical addressing rather than physical.
    pub logical: bool,
    /// The message carries a 32-bit address (an IPI sent in x2APIC mode).
    /// Otherwise it carries eight bits, as from xAPIC mode, an I/O APIC or
    /// an MSI.
    pub x2apic_format: bool,
}

impl Destination {
    /// Whether every processor is addressed.
    pub fn is_broadcast(&self) -> bool {
        if self.x2apic_format {
            self.address == u32::MAX
        } else {
            self.address & 0xFF == 0xFF
        }
    }
}

impl LocalApic {
    /// Whether a message for `destination` is accepted here. A globally
    /// disabled APIC accepts none.
    pub fn matches(&self, destination: Destination) -> bool {
        if self.mode() == ApicMode::Disabled {
            return false;
        }
        if destination.is_broadcast() {
            return true;
        }
        let address = if destination.x2apic_format {
            destination.address
        } else {
            destination.address & 0xFF
        };
        match (self.mode(), destination.logical) {
            (ApicMode::X2Apic, false) => address == self.id,
            (ApicMode::X2Apic, true) => matches_cluster(self.x2apic_ldr(), address),
            (_, false) => address == self.id & 0xFF,
            (_, true) => self.matches_xapic_logical(address),
        }
    }

    /// Logical address in x2APIC mode, fixed by the id: cluster in bits
    /// 31:16, one bit of sixteen below.
    pub(super) fn x2apic_ldr(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 0xF)
    }

    fn matches_xapic_logical(&self, address: u32) -> bool {
        let Ok(address) = u8::try_from(address) else {
            return false;
        };
        let logical_id = (self.ldr >> 24) as u8;
        match self.dfr >> 28 {
            0xF => logical_id & address != 0,
            0x0 => logical_id >> 4 == address >> 4 && logical_id & address & 0xF != 0,
            _ => false,
        }
    }

    pub(super) fn read_ldr(&self) -> u32 {
        if self.mode() == ApicMode::X2Apic {
            self.x2apic_ldr()
        } else {
            self.ldr
        }
    }

    pub(super) fn read_id(&self) -> u32 {
        if self.mode() == ApicMode::X2Apic {
            self.id
        } else {
            self.id << 24
        }
    }

    /// The destination field of an ICR value in the present mode's layout.
    pub(super) fn icr_destination(&self, icr: u64) -> Destination {
        let x2apic_format = self.mode() == ApicMode::X2Apic;
        let address = if x2apic_format {
            (icr >> 32) as u32
        } else {
            (icr >> 56) as u32
        };
        Destination {
            address,
            logical: icr & reg::ICR_LOGICAL != 0,
            x2apic_format,
        }
    }
}

fn matches_cluster(ldr: u32, address: u32) -> bool {
    ldr >> 16 == address >> 16 && ldr & address & 0xFFFF != 0
}
