//! Address translation: the software TLB and the page walk.

use crate::fault::Fault;
use crate::space::{CodeMap, GuestSpace, HostPage};
use crate::state::{State, cr, rflags};
use crate::translate::FastTlb;
use std::sync::Arc;

/// Entries of one TLB set.
const TLB_SIZE: usize = 1024;
/// Offset bits of a page.
pub(crate) const PAGE_MASK: u64 = 0xfff;

/// Which rights an access has; also the number of the TLB set that serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Rights {
    /// CPL 3.
    User = 0,
    /// Supervisor, user pages are out of reach (SMAP).
    Supervisor = 1,
    /// Supervisor, SMAP off or overridden.
    SupervisorAc = 2,
}

/// The set that is never filled: every access takes the slow path (alignment
/// checks or data breakpoints are on).
pub(crate) const SLOW_SET: usize = 3;

/// One data or instruction TLB entry.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct TlbEntry {
    /// Linear page plus address-space number, for loads.
    pub read: u64,
    /// The same for stores: only where the page is writable and dirty.
    pub write: u64,
    /// The same for fetches.
    pub execute: u64,
    /// The page in this process.
    pub host: *mut u8,
    /// The page's number in the code map.
    pub page: u32,
    /// log2 of the size of the page that the tables map: 12, 21, 22 or 30.
    pub span: u32,
}

impl TlbEntry {
    /// Tag that no access has: address-space numbers start at 1.
    const INVALID: u64 = 0;
    const EMPTY: Self = Self {
        read: Self::INVALID,
        write: Self::INVALID,
        execute: Self::INVALID,
        host: std::ptr::null_mut(),
        page: 0,
        span: 12,
    };
}

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Load.
    Read,
    /// Store, or the read half of a read-modify-write.
    Write,
    /// Instruction fetch.
    Execute,
}

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

/// Where an access goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// Host memory, and the page's number in the code map.
    Ram(*mut u8, u32),
    /// No memory: the guest-physical address.
    Mmio(u64),
}

/// The memory management unit of one virtual processor.
pub(crate) struct Mmu {
    sets: Box<[[TlbEntry; TLB_SIZE]; 4]>,
    /// Address-space number per half of the linear address space.
    asid: [u64; 2],
    next_asid: u64,
    /// Address-space numbers of the PCIDs that have one, low half.
    pcid_asid: Vec<u16>,
    /// A non-global translation of the upper half has been cached.
    high_local: bool,
    /// Pieces of large pages have been cached, per half of the linear address
    /// space.
    large: [bool; 2],
    /// The set in use for data.
    pub data_set: usize,
    /// Physical address bits, all above are reserved in tables.
    physical_bits: u32,
    space: Box<dyn GuestSpace>,
    pub code: Arc<CodeMap>,
    /// Counts everything that may change a translation.
    pub generation: u32,
    /// The tables of translated code.
    pub fast: Option<Box<FastTlb>>,
    /// What has happened to translations, for whoever caches fetches.
    pub changes: Changes,
}

/// Changes of translations since somebody last looked.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The lower half of the linear address space.
    pub low: bool,
    /// The upper half.
    pub high: bool,
    /// Single pages.
    pub pages: Vec<u64>,
}

impl Changes {
    /// More pages than this count as everything.
    const MOST_PAGES: usize = 64;

    fn page(&mut self, linear: u64) {
        if self.pages.len() < Self::MOST_PAGES {
            self.pages.push(linear & !PAGE_MASK);
        } else {
            (self.low, self.high) = (true, true);
        }
    }
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
    pub(crate) fn new(space: Box<dyn GuestSpace>, code: Arc<CodeMap>, physical_bits: u32) -> Self {
        let sets = vec![[TlbEntry::EMPTY; TLB_SIZE]; 4].into_boxed_slice();
        let sets = sets
            .try_into()
            .unwrap_or_else(|_| Box::new([[TlbEntry::EMPTY; TLB_SIZE]; 4]));
        Self {
            sets,
            asid: [1, 2],
            next_asid: 3,
            pcid_asid: vec![0; 4096],
            high_local: false,
            large: [false; 2],
            data_set: Rights::SupervisorAc as usize,
            physical_bits,
            space,
            code,
            generation: 1,
            fast: None,
            changes: Changes::default(),
        }
    }

    /// The host page of a guest-physical page.
    pub(crate) fn host_page(&mut self, page: u64) -> Option<HostPage> {
        self.space.page(page)
    }

    /// The guest-physical map has changed.
    pub(crate) fn space_changed(&mut self) {
        self.space.refresh();
        self.flush_all();
    }

    #[inline(always)]
    fn tag(&self, linear: u64) -> u64 {
        // The address-space number sits in the page offset's bits.
        (linear & !PAGE_MASK) | self.asid[(linear >> 63) as usize]
    }

    /// The host address for a load of `size` bytes, if the TLB has it and the
    /// access stays in the page.
    #[inline(always)]
    pub(crate) fn lookup_read(&self, linear: u64, size: u64) -> Option<*mut u8> {
        let entry = &self.sets[self.data_set & 3][(linear >> 12) as usize & (TLB_SIZE - 1)];
        let offset = linear & PAGE_MASK;
        if entry.read == self.tag(linear) && offset <= 0x1000 - size {
            // Within the page that `host` points to.
            Some(entry.host.wrapping_add(offset as usize))
        } else {
            None
        }
    }

    /// The same for a store, with the page's number for the code map.
    #[inline(always)]
    pub(crate) fn lookup_write(&self, linear: u64, size: u64) -> Option<(*mut u8, u32)> {
        let entry = &self.sets[self.data_set & 3][(linear >> 12) as usize & (TLB_SIZE - 1)];
        let offset = linear & PAGE_MASK;
        if entry.write == self.tag(linear) && offset <= 0x1000 - size {
            Some((entry.host.wrapping_add(offset as usize), entry.page))
        } else {
            None
        }
    }

    /// The host address for an instruction fetch at CPL 3 or below 3.
    #[inline(always)]
    pub(crate) fn lookup_execute(&self, linear: u64, user: bool) -> Option<(*mut u8, u32)> {
        let set = if user {
            Rights::User
        } else {
            Rights::SupervisorAc
        };
        let entry = &self.sets[set as usize][(linear >> 12) as usize & (TLB_SIZE - 1)];
        if entry.execute == self.tag(linear) {
            Some((
                entry.host.wrapping_add((linear & PAGE_MASK) as usize),
                entry.page,
            ))
        } else {
            None
        }
    }

    /// Translates one access, walking the tables, and fills the TLB.
    /// `linear` is canonical and the access stays within its page.
    pub(crate) fn resolve(
        &mut self,
        state: &State,
        linear: u64,
        access: Access,
        rights: Rights,
    ) -> Result<Target, Fault> {
        let walk = self
            .walk(state, linear, access, rights, true)
            .map_err(|error| page_fault(state, linear, access, rights, error))?;
        let offset = linear & PAGE_MASK;
        let Some(page) = self.space.page(walk.gpa >> 12) else {
            return Ok(Target::Mmio(walk.gpa));
        };
        self.fill(linear, rights, &walk, &page);
        if access == Access::Write && !page.writable {
            return Ok(Target::Mmio(walk.gpa));
        }
        if access == Access::Execute && !page.executable {
            return Ok(Target::Mmio(walk.gpa));
        }
        Ok(Target::Ram(
            page.pointer.wrapping_add(offset as usize),
            page.index,
        ))
    }

    fn fill(&mut self, linear: u64, rights: Rights, walk: &Walk, page: &HostPage) {
        if linear >> 63 != 0 && !walk.global {
            self.high_local = true;
        }
        let tag = self.tag(linear);
        let entry = &mut self.sets[rights as usize][(linear >> 12) as usize & (TLB_SIZE - 1)];
        *entry = TlbEntry {
            read: tag,
            write: if walk.write && page.writable {
                tag
            } else {
                TlbEntry::INVALID
            },
            execute: if walk.execute && page.executable {
                tag
            } else {
                TlbEntry::INVALID
            },
            host: page.pointer,
            page: page.index,
            span: walk.span,
        };
        if walk.span > 12 {
            self.large[(linear >> 63) as usize] = true;
        }
    }

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
        let page = self.space.page(gpa >> 12).ok_or(WalkError::NoMemory)?;
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
            let page = self.space.page(at >> 12).ok_or(WalkError::NoMemory)?;
            if !page.writable {
                return Err(WalkError::NoMemory);
            }
            let pointer = page.pointer.wrapping_add((at & PAGE_MASK) as usize);
            crate::host::or_entry(pointer, bits, size);
            self.code.written(page.index);
        }
        Ok(())
    }

    /// Gives the low half (and, if non-global translations of it were cached,
    /// the high half) a new address-space number: a CR3 load.
    pub(crate) fn new_address_space(&mut self, pcid: Option<(u16, bool)>) {
        self.generation = self.generation.wrapping_add(1);
        let high = self.high_local;
        if high {
            self.high_local = false;
            self.asid[1] = self.take_asid();
        }
        self.changes.low = true;
        self.changes.high |= high;
        if let Some(fast) = &mut self.fast {
            fast.switch(high);
        }
        match pcid {
            None => {
                self.pcid_asid[0] = 0;
                self.asid[0] = self.take_asid();
            }
            Some((pcid, keep)) => {
                let slot = usize::from(pcid & 0xfff);
                if !keep || self.pcid_asid[slot] == 0 {
                    let fresh = self.take_asid();
                    self.pcid_asid[slot] = fresh as u16;
                }
                self.asid[0] = u64::from(self.pcid_asid[slot]);
            }
        }
    }

    /// Forgets one PCID (INVPCID type 1); `current` when it is the one in use.
    pub(crate) fn flush_pcid(&mut self, pcid: u16, current: bool) {
        self.pcid_asid[usize::from(pcid & 0xfff)] = 0;
        if current {
            self.new_address_space(Some((pcid, false)));
        }
    }

    fn take_asid(&mut self) -> u64 {
        if self.next_asid > PAGE_MASK {
            self.clear();
        }
        let asid = self.next_asid;
        self.next_asid += 1;
        asid
    }

    fn clear(&mut self) {
        for set in self.sets.iter_mut() {
            set.fill(TlbEntry::EMPTY);
        }
        self.pcid_asid.fill(0);
        self.asid = [1, 2];
        self.next_asid = 3;
        self.forget_fast();
    }

    fn forget_fast(&mut self) {
        (self.changes.low, self.changes.high) = (true, true);
        if let Some(fast) = &mut self.fast {
            fast.flush_all();
        }
    }

    /// The number of the address space that the lower half belongs to.
    pub(crate) fn low_space(&self) -> u64 {
        self.asid[0]
    }

    /// The cached translation of an address for data, if there is one: the
    /// page in this process, its number, whether stores are allowed, and
    /// whether it is part of a large page.
    pub(crate) fn cached(&self, linear: u64) -> Option<(*mut u8, u32, bool, bool)> {
        let entry = &self.sets[self.data_set & 3][(linear >> 12) as usize & (TLB_SIZE - 1)];
        let tag = self.tag(linear);
        (entry.read == tag).then_some((entry.host, entry.page, entry.write == tag, entry.span > 12))
    }

    /// Drops every translation, global ones too.
    pub(crate) fn flush_all(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.high_local = false;
        self.large = [false; 2];
        self.pcid_asid.fill(0);
        // Numbers taken one after the other could meet a clear in between.
        if self.next_asid + 1 > PAGE_MASK {
            self.clear();
        }
        self.asid = [self.take_asid(), self.take_asid()];
        self.forget_fast();
    }

    /// Drops what is cached for one page, in every address space.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.generation = self.generation.wrapping_add(1);
        for set in self.sets.iter_mut() {
            set[(linear >> 12) as usize & (TLB_SIZE - 1)] = TlbEntry::EMPTY;
        }
        self.changes.page(linear);
        if let Some(fast) = &mut self.fast {
            fast.flush_page(linear);
        }
        if self.large[(linear >> 63) as usize] {
            (self.changes.low, self.changes.high) = (true, true);
            self.flush_large(linear);
        }
    }

    /// One address stands for the whole of a large page, whose pieces lie all
    /// over the sets.
    fn flush_large(&mut self, linear: u64) {
        for entry in self.sets.iter_mut().flatten() {
            if entry.span > 12 && (entry.read ^ linear) >> entry.span == 0 {
                *entry = TlbEntry::EMPTY;
            }
        }
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

fn page_fault(
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

/// The rights of an explicit data access.
pub(crate) fn data_rights(state: &State) -> Rights {
    if state.cpl == 3 {
        Rights::User
    } else if state.cr4 & cr::CR4_SMAP != 0 && state.system_flags & rflags::AC == 0 {
        Rights::Supervisor
    } else {
        Rights::SupervisorAc
    }
}

/// The rights of an implicit supervisor access (descriptor tables, TSS):
/// SMAP holds whatever AC says.
pub(crate) fn system_rights(state: &State) -> Rights {
    if state.cr4 & cr::CR4_SMAP != 0 {
        Rights::Supervisor
    } else {
        Rights::SupervisorAc
    }
}

/// Bits 63:47 are all alike.
#[inline(always)]
pub(crate) fn canonical(linear: u64) -> bool {
    ((linear as i64) << 16 >> 16) as u64 == linear
}
