//! Segment and system descriptors: fetching them from the tables, what their
//! bits say, and the bits that the processor writes back.

use crate::Vp;
use crate::fault::{Fault, Step, Stop, vector};
use crate::memory::Word;
use crate::mmu::{self, Access, Rights};
use crate::state::{Segment, seg};

/// Descriptor types with S clear (SDM 3A table 3-2).
pub(crate) mod kind {
    /// Available 16-bit TSS.
    pub(crate) const TSS16: u32 = 1;
    /// LDT.
    pub(crate) const LDT: u32 = 2;
    /// Busy 16-bit TSS.
    pub(crate) const TSS16_BUSY: u32 = 3;
    /// 16-bit call gate.
    pub(crate) const CALL16: u32 = 4;
    /// Task gate.
    pub(crate) const TASK: u32 = 5;
    /// 16-bit interrupt gate.
    pub(crate) const INTERRUPT16: u32 = 6;
    /// 16-bit trap gate.
    pub(crate) const TRAP16: u32 = 7;
    /// Available 32-bit TSS, or 64-bit TSS in long mode.
    pub(crate) const TSS32: u32 = 9;
    /// Busy 32-bit or 64-bit TSS.
    pub(crate) const TSS32_BUSY: u32 = 11;
    /// 32-bit call gate, or 64-bit call gate in long mode.
    pub(crate) const CALL32: u32 = 12;
    /// 32-bit or 64-bit interrupt gate.
    pub(crate) const INTERRUPT32: u32 = 14;
    /// 32-bit or 64-bit trap gate.
    pub(crate) const TRAP32: u32 = 15;
}

/// A descriptor as it stands in a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    /// The eight bytes.
    pub raw: u64,
    /// Linear address of the eight bytes.
    pub at: u64,
}

impl Descriptor {
    /// Base address, 32 bits.
    pub(crate) fn base(&self) -> u64 {
        (self.raw >> 16 & 0xff_ffff) | (self.raw >> 32 & 0xff00_0000)
    }

    /// Limit in bytes, granularity applied.
    pub(crate) fn limit(&self) -> u32 {
        let limit = (self.raw & 0xffff) as u32 | (self.raw >> 32 & 0xf_0000) as u32;
        if self.raw & 1 << 55 != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    /// Attributes as [`Segment::attributes`] has them.
    pub(crate) fn attributes(&self) -> u32 {
        (self.raw >> 40) as u32 & 0xf0ff
    }

    /// Type and S: 0x10 and above are code and data.
    pub(crate) fn kind(&self) -> u32 {
        self.attributes() & 0x1f
    }

    /// DPL.
    pub(crate) fn dpl(&self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    /// P.
    pub(crate) fn present(&self) -> bool {
        self.raw & 1 << 47 != 0
    }

    /// A code segment.
    pub(crate) fn is_code(&self) -> bool {
        self.kind() & 0x18 == 0x18
    }

    /// A conforming code segment.
    pub(crate) fn is_conforming(&self) -> bool {
        self.kind() & 0x1c == 0x1c
    }

    /// A data segment that may be written.
    pub(crate) fn is_writable_data(&self) -> bool {
        self.kind() & 0x1a == 0x12
    }

    /// A data segment, or a code segment that may be read.
    pub(crate) fn is_readable(&self) -> bool {
        self.kind() & 0x18 == 0x10 || self.kind() & 0x1a == 0x1a
    }

    /// L: 64-bit code.
    pub(crate) fn long(&self) -> bool {
        self.raw & 1 << 53 != 0
    }

    /// D or B: 32-bit.
    pub(crate) fn big(&self) -> bool {
        self.raw & 1 << 54 != 0
    }

    /// For gates: the target selector.
    pub(crate) fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }

    /// For gates: the low 32 bits of the target offset (16 for 16-bit gates).
    pub(crate) fn gate_offset(&self) -> u64 {
        let low = self.raw & 0xffff;
        // Bit 3 of the type tells 32-bit gates from 16-bit ones.
        if self.kind() & 8 != 0 {
            low | (self.raw >> 32 & 0xffff_0000)
        } else {
            low
        }
    }

    /// The segment register that it makes.
    pub(crate) fn segment(&self, selector: u16) -> Segment {
        let mut attributes = self.attributes();
        if attributes & 0x10 != 0 {
            attributes |= 1;
        }
        Segment {
            base: self.base(),
            limit: self.limit(),
            attributes,
            selector,
        }
    }
}

/// A null selector, whatever its RPL.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// RPL.
pub(crate) fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

impl Vp {
    /// An exception whose error code names a selector. `ext` is 1 while an
    /// external event is delivered (SDM 3A 6.13).
    #[cold]
    pub(crate) fn selector_fault(&mut self, vector: u8, selector: u16, ext: u32) -> Stop {
        self.raise(Fault::new(vector, u32::from(selector & 0xfffc) | ext))
    }

    /// Loads from a system table: supervisor rights whatever the CPL.
    pub(crate) fn table_load<T: Word>(&mut self, linear: u64) -> Result<T, Stop> {
        // The set of these rights may be another than the running code's.
        let rights = mmu::system_rights(&self.state) as usize;
        let own = std::mem::replace(&mut self.mmu.data_set, rights);
        let hit = self.mmu.lookup_read(linear, T::SIZE);
        self.mmu.data_set = own;
        match hit {
            Some(at) => Ok(T::load(at)),
            None => self.load_system(linear),
        }
    }

    /// The linear address of a selector's descriptor; `None` beyond the
    /// table's limit.
    fn descriptor_address(&self, selector: u16) -> Option<u64> {
        let offset = u64::from(selector & 0xfff8);
        let (base, limit) = if selector & 4 == 0 {
            (self.state.gdtr.base, u64::from(self.state.gdtr.limit))
        } else {
            let ldt = &self.state.seg[seg::LDTR];
            if ldt.unusable() {
                return None;
            }
            (ldt.base, u64::from(ldt.limit))
        };
        (offset + 7 <= limit).then(|| self.wrap_linear(base.wrapping_add(offset)))
    }

    /// Reads a descriptor; `None` when the selector lies beyond its table.
    pub(crate) fn descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Stop> {
        let Some(at) = self.descriptor_address(selector) else {
            return Ok(None);
        };
        let raw = self.table_load::<u64>(at)?;
        Ok(Some(Descriptor { raw, at }))
    }

    /// Reads a descriptor, with `vector`(selector) when there is none.
    pub(crate) fn descriptor_or(
        &mut self,
        selector: u16,
        vector: u8,
        ext: u32,
    ) -> Result<Descriptor, Stop> {
        match self.descriptor(selector)? {
            Some(found) => Ok(found),
            None => Err(self.selector_fault(vector, selector, ext)),
        }
    }

    /// The second half of a 16-byte descriptor in long mode; #GP(selector)
    /// when it lies beyond the table.
    pub(crate) fn descriptor_high(&mut self, selector: u16, low: Descriptor) -> Result<u64, Stop> {
        if self
            .descriptor_address(selector.wrapping_add(8) & 0xfffc)
            .is_none()
            || selector & 0xfff8 == 0xfff8
        {
            return Err(self.selector_fault(vector::GP, selector, 0));
        }
        self.table_load::<u64>(self.wrap_linear(low.at.wrapping_add(8)))
    }

    /// Sets the accessed bit of a code or data descriptor, if it is clear.
    pub(crate) fn mark_accessed(&mut self, descriptor: &Descriptor) -> Step {
        if descriptor.kind() & 0x11 != 0x10 {
            return Ok(());
        }
        self.update_type(descriptor.at, 1, 0)
    }

    /// Sets and clears bits of a descriptor's type byte.
    pub(crate) fn update_type(&mut self, descriptor: u64, set: u8, clear: u8) -> Step {
        let at = self.wrap_linear(descriptor.wrapping_add(5));
        let old = self.table_load::<u8>(at)?;
        self.store_system(at, (old | set) & !clear)
    }

    /// Checks that a descriptor's type byte can be rewritten.
    pub(crate) fn probe_type(&mut self, descriptor: u64) -> Step {
        let at = self.wrap_linear(descriptor.wrapping_add(5));
        let rights: Rights = mmu::system_rights(&self.state);
        self.probe_with(at, 1, Access::Write, rights)
    }
}
