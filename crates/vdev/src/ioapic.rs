//! The I/O APIC: 24 pins, each with a redirection entry that turns the pin
//! into an interrupt message (Intel 82093AA data sheet, with the EOI register
//! of version 0x20).

use crate::interrupts::{DeliveryMode, InterruptRequest};

/// Guest-physical address of the register window.
pub const IOAPIC_GPA: u64 = 0xFEC0_0000;
/// Number of interrupt pins.
pub const IOAPIC_PINS: u8 = 24;

const PINS: usize = IOAPIC_PINS as usize;
const VERSION: u32 = 0x20 | (IOAPIC_PINS as u32 - 1) << 16;

const REG_SELECT: u64 = 0x00;
const REG_WINDOW: u64 = 0x10;
const REG_EOI: u64 = 0x40;

const INDEX_ID: u8 = 0;
const INDEX_VERSION: u8 = 1;
const INDEX_ARBITRATION: u8 = 2;
const INDEX_ENTRIES: u8 = 0x10;
const INDEX_ENTRIES_END: u8 = INDEX_ENTRIES + 2 * IOAPIC_PINS;
const ID_MASK: u32 = 0x0F00_0000;

const ENTRY_LOGICAL: u64 = 1 << 11;
const ENTRY_STATUS: u64 = 1 << 12;
const ENTRY_REMOTE_IRR: u64 = 1 << 14;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
/// Vector, modes, polarity, trigger, mask and the 8-bit destination.
const ENTRY_WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

#[derive(Debug)]
pub(crate) struct IoApic {
    select: u8,
    id: u32,
    entries: [u64; PINS],
    /// One bit for each asserted pin.
    lines: u32,
}

impl IoApic {
    pub(crate) fn new() -> Self {
        Self {
            select: 0,
            id: 0,
            entries: [ENTRY_MASKED; PINS],
            lines: 0,
        }
    }

    /// Reads a register of the window at `offset` from [`IOAPIC_GPA`].
    pub(crate) fn read(&self, offset: u64) -> u32 {
        match offset {
            REG_SELECT => self.select.into(),
            REG_WINDOW => self.read_selected(),
            _ => 0,
        }
    }

    /// Writes a register; what has to be delivered now is appended to `out`.
    pub(crate) fn write(&mut self, offset: u64, value: u32, out: &mut Vec<InterruptRequest>) {
        match offset {
            REG_SELECT => self.select = value as u8,
            REG_WINDOW => self.write_selected(value, out),
            REG_EOI => self.eoi(value as u8, out),
            _ => {}
        }
    }

    /// Drives a pin; pins beyond the last do not exist.
    pub(crate) fn set_line(&mut self, pin: u8, asserted: bool) -> Option<InterruptRequest> {
        let entry = *self.entries.get(usize::from(pin))?;
        let bit = 1 << pin;
        let rising = asserted && self.lines & bit == 0;
        if asserted {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if entry & ENTRY_LEVEL != 0 {
            return self.service_level(pin);
        }
        // An edge on a masked pin is lost, as the data sheet says.
        (rising && entry & ENTRY_MASKED == 0)
            .then(|| request(entry))
            .flatten()
    }

    /// Ends a level-triggered interrupt: pins with this vector that are still
    /// asserted interrupt again.
    pub(crate) fn eoi(&mut self, vector: u8, out: &mut Vec<InterruptRequest>) {
        for pin in 0..IOAPIC_PINS {
            let entry = &mut self.entries[usize::from(pin)];
            if *entry as u8 == vector && *entry & ENTRY_REMOTE_IRR != 0 {
                *entry &= !ENTRY_REMOTE_IRR;
                out.extend(self.service_level(pin));
            }
        }
    }

    fn service_level(&mut self, pin: u8) -> Option<InterruptRequest> {
        let entry = self.entries.get_mut(usize::from(pin))?;
        let asserted = self.lines & 1 << pin != 0;
        let idle = *entry & (ENTRY_MASKED | ENTRY_REMOTE_IRR | ENTRY_LEVEL) == ENTRY_LEVEL;
        if !asserted || !idle {
            return None;
        }
        let request = request(*entry)?;
        // Modes without a vector are edge-triggered whatever the entry says.
        if matches!(
            request.mode,
            DeliveryMode::Fixed | DeliveryMode::LowestPriority
        ) {
            *entry |= ENTRY_REMOTE_IRR;
        }
        Some(request)
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => self.id,
            INDEX_VERSION => VERSION,
            INDEX_ENTRIES..INDEX_ENTRIES_END => {
                let index = self.select - INDEX_ENTRIES;
                (self.entries[usize::from(index / 2)] >> (32 * (index % 2))) as u32
            }
            _ => 0,
        }
    }

    fn write_selected(&mut self, value: u32, out: &mut Vec<InterruptRequest>) {
        match self.select {
            INDEX_ID => self.id = value & ID_MASK,
            INDEX_ENTRIES..INDEX_ENTRIES_END => {
                let index = self.select - INDEX_ENTRIES;
                self.write_entry(index / 2, index % 2, value);
                out.extend(self.service_level(index / 2));
            }
            _ => {}
        }
    }

    fn write_entry(&mut self, pin: u8, half: u8, value: u32) {
        let entry = &mut self.entries[usize::from(pin)];
        let shift = 32 * u32::from(half);
        let mask = u64::from(u32::MAX) << shift & ENTRY_WRITABLE;
        *entry = *entry & !mask | u64::from(value) << shift & mask;
        if *entry & ENTRY_LEVEL == 0 {
            // Software without the EOI register ends a level interrupt by
            // switching the pin to edge and back.
            *entry &= !ENTRY_REMOTE_IRR;
        }
        *entry &= !ENTRY_STATUS;
    }
}

/// The message of a redirection entry; `None` for reserved delivery modes.
fn request(entry: u64) -> Option<InterruptRequest> {
    let mode = DeliveryMode::from_bits((entry >> 8) as u8)?;
    Some(InterruptRequest {
        vector: entry as u8,
        destination: (entry >> 56) as u32,
        logical: entry & ENTRY_LOGICAL != 0,
        level: entry & ENTRY_LEVEL != 0,
        mode,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(ioapic: &mut IoApic, index: u8, value: u32) -> Vec<InterruptRequest> {
        let mut out = vec![];
        ioapic.write(REG_SELECT, index.into(), &mut out);
        ioapic.write(REG_WINDOW, value, &mut out);
        out
    }

    fn read(ioapic: &mut IoApic, index: u8) -> u32 {
        ioapic.write(REG_SELECT, index.into(), &mut vec![]);
        ioapic.read(REG_WINDOW)
    }

    fn set_entry(ioapic: &mut IoApic, pin: u8, entry: u64) -> Vec<InterruptRequest> {
        write(ioapic, 0x11 + 2 * pin, (entry >> 32) as u32);
        write(ioapic, 0x10 + 2 * pin, entry as u32)
    }

    fn fixed(vector: u8, level: bool) -> InterruptRequest {
        let mode = DeliveryMode::Fixed;
        InterruptRequest {
            vector,
            destination: 0,
            logical: false,
            level,
            mode,
        }
    }

    fn eoi(ioapic: &mut IoApic, vector: u8) -> Vec<InterruptRequest> {
        let mut out = vec![];
        ioapic.eoi(vector, &mut out);
        out
    }

    #[test]
    fn identification() {
        let mut ioapic = IoApic::new();
        assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
        write(&mut ioapic, 0, u32::MAX);
        assert_eq!(
            (read(&mut ioapic, 0), read(&mut ioapic, 2)),
            (0x0F00_0000, 0x0F00_0000)
        );
        write(&mut ioapic, 1, 0);
        assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
        assert_eq!((read(&mut ioapic, 0x0F), read(&mut ioapic, 0x40)), (0, 0));
        assert_eq!(read(&mut ioapic, 0x3F), 0, "the last pin's destination");
        assert_eq!(read(&mut ioapic, 0x3E), 0x1_0000);
    }

    #[test]
    fn entry_keeps_writable_bits() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 3, u64::MAX);
        assert_eq!(
            (read(&mut ioapic, 0x16), read(&mut ioapic, 0x17)),
            (0x1_AFFF, 0xFF00_0000)
        );
    }

    #[test]
    fn edges() {
        let mut ioapic = IoApic::new();
        assert_eq!(ioapic.set_line(4, true), None, "masked after reset");
        ioapic.set_line(4, false);
        assert_eq!(set_entry(&mut ioapic, 4, 0x31), vec![]);
        assert_eq!(ioapic.set_line(4, true), Some(fixed(0x31, false)));
        assert_eq!(ioapic.set_line(4, true), None);
        assert_eq!(ioapic.set_line(4, false), None);
        assert_eq!(ioapic.set_line(4, true), Some(fixed(0x31, false)));
        ioapic.set_line(4, false);
        set_entry(&mut ioapic, 4, 0x1_0031);
        ioapic.set_line(4, true);
        assert_eq!(
            set_entry(&mut ioapic, 4, 0x31),
            vec![],
            "a masked edge is lost"
        );
        assert_eq!(ioapic.set_line(24, true), None);
        assert_eq!(ioapic.set_line(255, true), None);
    }

    #[test]
    fn levels_hold_remote_irr_until_eoi() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 9, 0x8041);
        assert_eq!(ioapic.set_line(9, true), Some(fixed(0x41, true)));
        assert_eq!(read(&mut ioapic, 0x22), 0xC041);
        assert_eq!(ioapic.set_line(9, false), None);
        assert_eq!(ioapic.set_line(9, true), None, "merged until the EOI");
        assert_eq!(eoi(&mut ioapic, 0x40), vec![]);
        assert_eq!(eoi(&mut ioapic, 0x41), vec![fixed(0x41, true)]);
        ioapic.set_line(9, false);
        let mut out = vec![];
        ioapic.write(REG_EOI, 0x41, &mut out);
        assert_eq!((out, read(&mut ioapic, 0x22)), (vec![], 0x8041));
    }

    #[test]
    fn masked_level_fires_when_unmasked() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 9, 0x1_8041);
        assert_eq!(ioapic.set_line(9, true), None);
        assert_eq!(set_entry(&mut ioapic, 9, 0x8041), vec![fixed(0x41, true)]);
        assert_eq!(set_entry(&mut ioapic, 9, 0x1_8041), vec![]);
        assert_eq!(eoi(&mut ioapic, 0x41), vec![], "masked meanwhile");
        assert_eq!(set_entry(&mut ioapic, 9, 0x8041), vec![fixed(0x41, true)]);
    }

    #[test]
    fn switching_to_edge_ends_a_level() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 9, 0x8041);
        ioapic.set_line(9, true);
        set_entry(&mut ioapic, 9, 0x1_0041);
        assert_eq!(set_entry(&mut ioapic, 9, 0x8041), vec![fixed(0x41, true)]);
    }

    #[test]
    fn destinations_and_modes() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 5, 0x0300_0000_0000_0951);
        let expected = InterruptRequest {
            vector: 0x51,
            destination: 3,
            logical: true,
            level: false,
            mode: DeliveryMode::LowestPriority,
        };
        assert_eq!(ioapic.set_line(5, true), Some(expected));
        set_entry(&mut ioapic, 6, 0x8400);
        let nmi = ioapic.set_line(6, true).unwrap();
        assert_eq!(nmi.mode, DeliveryMode::Nmi);
        assert_eq!(
            read(&mut ioapic, 0x1C),
            0x8400,
            "an NMI leaves nothing to end"
        );
        set_entry(&mut ioapic, 7, 0x0351);
        assert_eq!(ioapic.set_line(7, true), None, "a reserved mode");
    }
}
