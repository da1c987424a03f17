//! Guest memory by address, a page allocator that never frees, and page tables.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::cpu;

unsafe extern "C" {
    static kit_pml4: u8;
    static kit_image_end: u8;
}

/// Page-table entry bits.
pub mod pte {
    /// Present.
    pub const P: u64 = 1;
    /// Writable.
    pub const W: u64 = 2;
    /// Open to user mode.
    pub const U: u64 = 4;
    /// Write-through.
    pub const PWT: u64 = 8;
    /// Cache disabled.
    pub const PCD: u64 = 16;
    /// Accessed.
    pub const A: u64 = 32;
    /// Dirty.
    pub const D: u64 = 64;
    /// Page size (a leaf above the lowest level).
    pub const PS: u64 = 128;
    /// Global.
    pub const G: u64 = 256;
    /// No execute.
    pub const NX: u64 = 1 << 63;
    /// The address within an entry.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

macro_rules! access {
    ($read:ident, $write:ident, $type:tt) => {
        #[doc = concat!("Reads a `", stringify!($type), "` at `address`, exactly once.")]
        #[inline(never)]
        pub fn $read(address: u64) -> $type {
            let value: $type;
            access!(@read $type, address, value);
            value
        }
        #[doc = concat!("Writes a `", stringify!($type), "` at `address`, exactly once.")]
        #[inline(never)]
        pub fn $write(address: u64, value: $type) {
            access!(@write $type, address, value);
        }
    };
    (@read u8, $address:ident, $value:ident) => {
        crate::insn!("mov {}, byte ptr [{}]", out(reg_byte) $value, in(reg) $address)
    };
    (@write u8, $address:ident, $value:ident) => {
        crate::insn!("mov byte ptr [{}], {}", in(reg) $address, in(reg_byte) $value)
    };
    (@read u32, $address:ident, $value:ident) => {
        crate::insn!("mov {:e}, dword ptr [{}]", out(reg) $value, in(reg) $address)
    };
    (@write u32, $address:ident, $value:ident) => {
        crate::insn!("mov dword ptr [{}], {:e}", in(reg) $address, in(reg) $value)
    };
    (@read u64, $address:ident, $value:ident) => {
        crate::insn!("mov {}, qword ptr [{}]", out(reg) $value, in(reg) $address)
    };
    (@write u64, $address:ident, $value:ident) => {
        crate::insn!("mov qword ptr [{}], {}", in(reg) $address, in(reg) $value)
    };
}

access!(read8, write8, u8);
access!(read32, write32, u32);
access!(read64, write64, u64);

/// The bytes at a mapped address.
pub fn bytes(address: u64, length: u64) -> &'static [u8] {
    // SAFETY: memory of this guest that nothing else writes while the slice is used; callers
    // pass what the loader or they themselves put there.
    unsafe { core::slice::from_raw_parts(address as *const u8, length as usize) }
}

/// Copies bytes to an address.
pub fn copy_to(address: u64, data: &[u8]) {
    for (offset, byte) in data.iter().enumerate() {
        write8(address + offset as u64, *byte);
    }
}

static NEXT: AtomicU64 = AtomicU64::new(0);
static TOP: AtomicU64 = AtomicU64::new(0);

/// Gives the allocator everything from the image's end to `top` (or 1 GiB).
pub fn init(top: u64) {
    NEXT.store((&raw const kit_image_end) as u64, Ordering::Relaxed);
    TOP.store(top.min(1 << 30), Ordering::Relaxed);
}

/// A zeroed page.
pub fn page() -> u64 {
    pages(1)
}

/// Zeroed consecutive pages.
pub fn pages(count: u64) -> u64 {
    aligned_pages(count, 0x1000)
}

/// Zeroed consecutive pages at a multiple of `alignment`.
pub fn aligned_pages(count: u64, alignment: u64) -> u64 {
    let mut start = 0;
    let _ = NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        start = next.next_multiple_of(alignment);
        Some(start + count * 0x1000)
    });
    assert!(
        start + count * 0x1000 <= TOP.load(Ordering::Relaxed),
        "out of guest memory"
    );
    // SAFETY: the pages are RAM that the allocator gave to nobody else.
    unsafe { core::ptr::write_bytes(start as *mut u8, 0, (count * 0x1000) as usize) };
    start
}

/// A set of 4-level page tables.
#[derive(Clone, Copy)]
pub struct Tables {
    /// Physical address of the top table.
    pub root: u64,
}

impl Tables {
    /// The tables that the kit booted with: 4 GiB, identity, open to user mode.
    pub fn boot() -> Self {
        Self {
            root: (&raw const kit_pml4) as u64,
        }
    }

    /// New tables that share the kit's identity map.
    pub fn sharing_identity() -> Self {
        let root = page();
        write64(root, read64(Self::boot().root));
        Self { root }
    }

    /// New tables with an identity map of their own that is closed to user mode.
    pub fn supervisor_identity() -> Self {
        let tables = Self { root: page() };
        for address in (0..4u64 << 30).step_by(2 << 20) {
            tables.map(address, address, pte::P | pte::W, 2);
        }
        tables
    }

    /// The address of the entry that maps `address` at `level` (1: 4 KiB page, 2: 2 MiB, 3: 1 GiB);
    /// makes the tables above it, open to all.
    pub fn entry(&self, address: u64, level: u32) -> u64 {
        let mut table = self.root;
        for depth in (level + 1..=4).rev() {
            let slot = table + (address >> (12 + 9 * (depth - 1)) & 0x1ff) * 8;
            if read64(slot) & pte::P == 0 {
                write64(slot, page() | pte::P | pte::W | pte::U);
            }
            table = read64(slot) & pte::ADDRESS;
        }
        table + (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8
    }

    /// Maps the page at `address` to `target` with `bits`; `level` as for [`Tables::entry`].
    pub fn map(&self, address: u64, target: u64, bits: u64, level: u32) {
        let size = if level > 1 { pte::PS } else { 0 };
        write64(self.entry(address, level), target | bits | size);
    }

    /// Makes these the current tables.
    pub fn load(&self) {
        cpu::write_cr3(self.root);
    }
}
