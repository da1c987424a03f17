//! The walk of the page tables (SDM 3A 4.3 to 4.6).

use crate::fault::Fault;
use crate::mmu::{Access, Mmu, PAGE_MASK, Rights};
use crate::state::{State, cr};

/// What a page walk found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Guest-physical address.
    pub gpa: u64,
    /// The entry allows stores at these rights, and is dirty.
    pub write: bool,
    /// The entry allows fetches at these rights.
    pub execute: bool,
    /// A global page.
    pub global: bool,
    /// log2 of the page's size.
    pub span: u32,
}

/// Page-table entry bits.
mod pte {
    pub(super) const P: u64 = 1;
    pub(super) const W: u64 = 2;
    pub(super) const U: u64 = 4;
    pub(super) const A: u64 = 1 << 5;
    pub(super) const D: u64 = 1 << 6;
    pub(super) const PS: u64 = 1 << 7;
    pub(super) const G: u64 = 1 << 8;
    pub(super) const NX: u64 = 1 << 63;
}

/// #PF error code bits.
mod pf {
    pub(super) const P: u32 = 1;
    pub(super) const W: u32 = 2;
    pub(super) const U: u32 = 4;
    pub(super) const RSVD: u32 = 8;
    pub(super) const I: u32 = 16;
}

/// The walk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalkError {
    /// #PF error code bits that the walk decides (P, RSVD).
    NotPresent,
    /// Reserved bits.
    Reserved,
    /// Rights.
    Protection,
    /// A page table lies where no memory is.
    NoMemory,
}

impl Mmu {
    /// Walks the page tables. Sets accessed and dirty bits when `mark`.
    pub(crate) fn walk(
        &mut self,
        state: &State,
        linear: u64,
        access: Access,
        rights: Rights,
        mark: bool,
    ) -> Result<Walk, WalkError> {
        if state.cr0 & cr::CR0_PG == 0 {
            let gpa = linear & 0xffff_ffff;
            return Ok(Walk {
                gpa,
                write: true,
                execute: true,
                global: true,
                span: 12,
            });
        }
        if state.cr4 & cr::CR4_PAE == 0 {
            return self.walk_32(state, linear, access, rights, mark);
        }
        self.walk_64(state, linear, access, rights, mark)
    }

    fn walk_64(
        &mut self,
        state: &State,
        linear: u64,
        access: Access,
        rights: Rights,
        mark: bool,
    ) -> Result<Walk, WalkError> {
        let nxe = state.efer & cr::EFER_NXE != 0;
        let address_mask = ((1u64 << self.physical_bits) - 1) & !PAGE_MASK;
        let mut reserved = !((1u64 << self.physical_bits) - 1) & 0x000f_ffff_ffff_ffff;
        if !nxe {
            reserved |= pte::NX;
        }
        let long = state.long_mode();
        let mut entries = [(0u64, 0u64); 4];
        let mut count = 0;
        let (mut table, mut level) = if long {
            (state.cr3 & address_mask, 4)
        } else {
            let pdpte = state.pdpte[(linear >> 30 & 3) as usize];
            if pdpte & pte::P == 0 {
                return Err(WalkError::NotPresent);
            }
            // PAE tables outside long mode have no software bits 62:52.
            reserved |= 0x7ff0_0000_0000_0000;
            (pdpte & address_mask, 2)
        };
        let (mut writable, mut user, mut executable) = (true, true, true);
        loop {
            let shift = 12 + 9 * (level - 1);
            let at = table + (linear >> shift & 0x1ff) * 8;
            let entry = self.read_entry(at, 8)?;
            if entry & pte::P == 0 {
                return Err(WalkError::NotPresent);
            }
            let leaf = level == 1 || (entry & pte::PS != 0 && level <= 3);
            let mut bad = reserved;
            if level == 4 {
                bad |= pte::PS;
            }
            if leaf && level > 1 {
                // Address bits between the page size and bit 12 (PAT is bit 12).
                bad |= ((1u64 << shift) - 1) & !0x1fff;
            }
            if entry & bad != 0 {
                return Err(WalkError::Reserved);
            }
            writable &= entry & pte::W != 0;
            user &= entry & pte::U != 0;
            executable &= !nxe || entry & pte::NX == 0;
            if let Some(slot) = entries.get_mut(count) {
                *slot = (at, entry);
            }
            count += 1;
            if !leaf {
                table = entry & address_mask;
                level -= 1;
                continue;
            }
            let rights_found = Found {
                writable,
                user,
                executable,
            };
            let (write, execute) = rights_found.check(state, access, rights)?;
            let dirty = access == Access::Write;
            if mark {
                self.mark(&entries[..count.min(4)], dirty, 8)?;
            }
            let offset_mask = (1u64 << shift) - 1;
            let gpa = (entry & address_mask & !offset_mask) | (linear & offset_mask);
            return Ok(Walk {
                gpa,
                write: write && (dirty || entry & pte::D != 0),
                execute,
                global: entry & pte::G != 0 && state.cr4 & cr::CR4_PGE != 0,
                span: shift,
            });
        }
    }

    fn walk_32(
        &mut self,
        state: &State,
        linear: u64,
        access: Access,
        rights: Rights,
        mark: bool,
    ) -> Result<Walk, WalkError> {
        let mut entries = [(0u64, 0u64); 2];
        let directory_at = (state.cr3 & 0xffff_f000) + (linear >> 22 & 0x3ff) * 4;
        let directory = self.read_entry(directory_at, 4)?;
        if directory & pte::P == 0 {
            return Err(WalkError::NotPresent);
        }
        entries[0] = (directory_at, directory);
        let large = directory & pte::PS != 0 && state.cr4 & cr::CR4_PSE != 0;
        let (leaf, count, gpa) = if large {
            // PSE-36: bits 20:13 give address bits 39:32; bit 21 is reserved.
            if directory & 1 << 21 != 0 {
                return Err(WalkError::Reserved);
            }
            let high = (directory >> 13 & 0xff) << 32;
            (
                directory,
                1,
                high | (directory & 0xffc0_0000) | (linear & 0x3f_ffff),
            )
        } else {
            let at = (directory & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
            let entry = self.read_entry(at, 4)?;
            if entry & pte::P == 0 {
                return Err(WalkError::NotPresent);
            }
            entries[1] = (at, entry);
            (entry, 2, (entry & 0xffff_f000) | (linear & PAGE_MASK))
        };
        let both = if large { leaf } else { leaf & directory };
        let found = Found {
            writable: both & pte::W != 0,
            user: both & pte::U != 0,
            executable: true,
        };
        let (write, execute) = found.check(state, access, rights)?;
        let dirty = access == Access::Write;
        if mark {
            self.mark(&entries[..count], dirty, 4)?;
        }
        Ok(Walk {
            gpa,
            write: write && (dirty || leaf & pte::D != 0),
            execute,
            global: leaf & pte::G != 0 && state.cr4 & cr::CR4_PGE != 0,
            span: if large { 22 } else { 12 },
        })
    }

    fn read_entry(&mut self, gpa: u64, size: usize) -> Result<u64, WalkError> {
        let page = self.host_page(gpa >> 12).ok_or(WalkError::NoMemory)?;
        let at = page.pointer.wrapping_add((gpa & PAGE_MASK) as usize);
        Ok(crate::host::load_entry(at, size))
    }

    /// Sets accessed bits on all entries and the dirty bit on the last, each
    /// as the processor does: with a locked compare-and-exchange.
    fn mark(&mut self, entries: &[(u64, u64)], dirty: bool, size: usize) -> Result<(), WalkError> {
        let last = entries.len().saturating_sub(1);
        for (i, &(at, entry)) in entries.iter().enumerate() {
            let bits = if i == last && dirty {
                pte::A | pte::D
            } else {
                pte::A
            };
            if entry & bits == bits {
                continue;
            }
            let page = self.host_page(at >> 12).ok_or(WalkError::NoMemory)?;
            if !page.writable {
                return Err(WalkError::NoMemory);
            }
            let pointer = page.pointer.wrapping_add((at & PAGE_MASK) as usize);
            crate::host::or_entry(pointer, bits, size);
            self.code.stored(page.index);
            if let Some(writes) = &mut self.writes {
                writes.page(page.index);
            }
        }
        Ok(())
    }
}

/// Rights that the tables give.
struct Found {
    writable: bool,
    user: bool,
    executable: bool,
}

impl Found {
    /// Checks the access; on success tells whether stores and fetches would
    /// be allowed as well.
    fn check(
        &self,
        state: &State,
        access: Access,
        rights: Rights,
    ) -> Result<(bool, bool), WalkError> {
        let (read, write, execute) = if rights == Rights::User {
            (
                self.user,
                self.user && self.writable,
                self.user && self.executable,
            )
        } else {
            let smap = rights == Rights::Supervisor && self.user;
            let smep = state.cr4 & cr::CR4_SMEP != 0 && self.user;
            let write = self.writable || state.cr0 & cr::CR0_WP == 0;
            (!smap, !smap && write, self.executable && !smep)
        };
        let allowed = match access {
            Access::Read => read,
            Access::Write => write,
            Access::Execute => execute,
        };
        if allowed {
            Ok((write, execute))
        } else {
            Err(WalkError::Protection)
        }
    }
}

/// The #PF that a failed walk makes.
pub(crate) fn page_fault(
    state: &State,
    linear: u64,
    access: Access,
    rights: Rights,
    error: WalkError,
) -> Fault {
    let mut code = match error {
        WalkError::NotPresent => 0,
        // Real processors read all ones from where no memory is, which are
        // reserved bits in every table.
        WalkError::Reserved | WalkError::NoMemory => pf::P | pf::RSVD,
        WalkError::Protection => pf::P,
    };
    if access == Access::Write {
        code |= pf::W;
    }
    if rights == Rights::User {
        code |= pf::U;
    }
    let tells_fetch = state.cr4 & cr::CR4_SMEP != 0
        || (state.cr4 & cr::CR4_PAE != 0 && state.efer & cr::EFER_NXE != 0);
    if access == Access::Execute && tells_fetch {
        code |= pf::I;
    }
    Fault::page(linear, code)
}
