//! The memory that a test's instructions see, natively and in the guest at the
//! same linear addresses.

/// Bytes of a page.
pub(super) const PAGE: u64 = 0x1000;
/// Two pages of code: the instruction under test in a sea of INT3.
pub(super) const CODE: u64 = 0x1000_0000;
/// Bytes of code.
pub(super) const CODE_SIZE: u64 = 2 * PAGE;
/// Data that 32-bit addresses reach.
pub(super) const LOW: u64 = 0x1001_0000;
/// Data that only 64-bit addresses reach.
pub(super) const HIGH: u64 = 0x6543_2101_0000;
/// Bytes of writable data at [`LOW`] and at [`HIGH`]. A read-only page follows
/// [`LOW`], nothing follows [`HIGH`], nothing comes before either.
pub(super) const DATA_SIZE: u64 = 4 * PAGE;
/// The stack.
pub(super) const STACK: u64 = 0x1003_0000;
/// Bytes of stack; nothing lies around it.
pub(super) const STACK_SIZE: u64 = 4 * PAGE;

/// What may be done in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rights {
    /// Read and execute.
    Code,
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// One piece of mapped memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    /// The linear address, whole pages.
    pub(super) linear: u64,
    /// Bytes, whole pages.
    pub(super) size: u64,
    /// Rights.
    pub(super) rights: Rights,
}

/// All regions; their contents lie one behind the other in a [`View`].
pub(super) const REGIONS: [Region; 5] = [
    Region {
        linear: CODE,
        size: CODE_SIZE,
        rights: Rights::Code,
    },
    Region {
        linear: LOW,
        size: DATA_SIZE,
        rights: Rights::Write,
    },
    Region {
        linear: LOW + DATA_SIZE,
        size: PAGE,
        rights: Rights::Read,
    },
    Region {
        linear: HIGH,
        size: DATA_SIZE,
        rights: Rights::Write,
    },
    Region {
        linear: STACK,
        size: STACK_SIZE,
        rights: Rights::Write,
    },
];

/// Bytes of all regions.
pub(super) const SIZE: u64 = CODE_SIZE + 2 * DATA_SIZE + PAGE + STACK_SIZE;

/// The offset of a linear address in a view, if it is mapped.
pub(super) fn offset(linear: u64) -> Option<usize> {
    let mut start = 0;
    for region in REGIONS {
        let inside = linear.wrapping_sub(region.linear);
        if inside < region.size {
            return Some((start + inside) as usize);
        }
        start += region.size;
    }
    None
}

/// The operand can be written.
pub(super) fn writable(linear: u64, size: u64) -> bool {
    REGIONS.iter().any(|region| {
        let inside = linear.wrapping_sub(region.linear);
        region.rights == Rights::Write && inside < region.size && size <= region.size - inside
    })
}

/// The linear address at an offset in a view.
pub(super) fn linear(offset: usize) -> u64 {
    let mut inside = offset as u64;
    for region in REGIONS {
        if inside < region.size {
            return region.linear + inside;
        }
        inside -= region.size;
    }
    0
}

/// Access to all contents, whatever the rights.
pub(super) struct View(*mut u8);

impl View {
    /// # Safety
    ///
    /// [`SIZE`] bytes at `start` stay mapped and writable, and nothing but the
    /// tests' instructions and this view touches them.
    pub(super) unsafe fn new(start: *mut u8) -> Self {
        Self(start)
    }

    /// All bytes. No instruction under test runs while the slice is in use.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: as `new` demands; `&mut self` keeps this slice the only one.
        unsafe { std::slice::from_raw_parts_mut(self.0, SIZE as usize) }
    }

    /// Writes as far as memory is mapped.
    pub(super) fn poke(&mut self, linear: u64, bytes: &[u8]) {
        for (i, &byte) in bytes.iter().enumerate() {
            if let Some(at) = offset(linear.wrapping_add(i as u64)) {
                self.bytes()[at] = byte;
            }
        }
    }

    /// Reads up to 8 bytes; unmapped ones are 0.
    pub(super) fn peek(&mut self, linear: u64, size: usize) -> u64 {
        let mut value = [0; 8];
        for (i, byte) in value.iter_mut().enumerate().take(size) {
            if let Some(at) = offset(linear.wrapping_add(i as u64)) {
                *byte = self.bytes()[at];
            }
        }
        u64::from_le_bytes(value)
    }
}
