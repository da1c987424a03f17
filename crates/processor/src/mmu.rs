//! Address translation: the software TLB and the page walk.

use crate::check::Writes;
use crate::fault::Fault;
use crate::space::{Backing, CodeMap, GuestSpace, HostPage};
use crate::state::{State, cr, rflags};
use crate::translate::FastTlb;
use crate::walk::{Walk, page_fault};
use std::sync::Arc;

/// Guest-physical pages whose host memory is remembered.
const TOLD: usize = 1024;
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
    /// Where pieces of large pages have been cached.
    large: LargePages,
    /// The set in use for data.
    pub data_set: usize,
    /// Physical address bits, all above are reserved in tables.
    pub(crate) physical_bits: u32,
    space: Box<dyn GuestSpace>,
    /// What `space` has told, until it changes.
    told: Box<[Option<(u64, HostPage)>; TOLD]>,
    pub code: Arc<CodeMap>,
    /// Counts everything that may change a translation.
    pub generation: u32,
    /// Counts changes of the guest-physical map.
    pub map_version: u32,
    /// The tables of translated code.
    pub fast: Option<Box<FastTlb>>,
    /// What has happened to translations, for whoever caches fetches.
    pub changes: Changes,
    /// Where somebody wants to know what is written: no page can be before it
    /// is noted here.
    pub writes: Option<Box<Writes>>,
}

/// Changes of translations since somebody last looked.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The lower half of the linear address space, in every address space.
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

/// Frames of the linear address space that pieces of large pages were cached
/// in, hashed: one INVLPG stands for the whole of such a page.
#[derive(Debug)]
struct LargePages {
    /// By 4 MiB: pages of 2 and 4 MiB.
    frames: [u64; 64],
    /// By 1 GiB.
    huge: [u64; 4],
}

impl Default for LargePages {
    fn default() -> Self {
        Self {
            frames: [0; 64],
            huge: [0; 4],
        }
    }
}

impl LargePages {
    /// Word and bit for a frame's number.
    fn place<const WORDS: usize>(frame: u64) -> (usize, u32) {
        let hash = frame.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        ((hash >> 6) as usize % WORDS, hash as u32 & 63)
    }

    /// A piece of a page of `1 << span` bytes was cached.
    fn note(&mut self, linear: u64, span: u32) {
        if span > 22 {
            let (word, bit) = Self::place::<4>(linear >> 30);
            self.huge[word] |= 1 << bit;
        } else if span > 12 {
            let (word, bit) = Self::place::<64>(linear >> 22);
            self.frames[word] |= 1 << bit;
        }
    }

    /// False: no piece of a large page that `linear` lies in was cached.
    fn may_cover(&self, linear: u64) -> bool {
        let (word, bit) = Self::place::<64>(linear >> 22);
        let (huge_word, huge_bit) = Self::place::<4>(linear >> 30);
        (self.frames[word] >> bit | self.huge[huge_word] >> huge_bit) & 1 != 0
    }
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
            large: LargePages::default(),
            data_set: Rights::SupervisorAc as usize,
            physical_bits,
            space,
            told: Box::new([None; TOLD]),
            code,
            generation: 1,
            map_version: 0,
            fast: None,
            changes: Changes::default(),
            writes: None,
        }
    }

    /// The host page of a guest-physical page.
    pub(crate) fn host_page(&mut self, page: u64) -> Option<HostPage> {
        let told = &mut self.told[page as usize % TOLD];
        if let Some((number, found)) = told
            && *number == page
        {
            return Some(*found);
        }
        let found = self.space.page(page)?;
        *told = Some((page, found));
        Some(found)
    }

    /// The file that memory lies in.
    pub(crate) fn backing(&self) -> Option<Backing> {
        self.space.backing()
    }

    /// The guest-physical map has changed.
    pub(crate) fn space_changed(&mut self) {
        self.space.refresh();
        self.map_version = self.map_version.wrapping_add(1);
        self.told.fill(None);
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
        let Some(page) = self.host_page(walk.gpa >> 12) else {
            return Ok(Target::Mmio(walk.gpa));
        };
        self.fill(linear, access, rights, &walk, &page);
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

    fn fill(&mut self, linear: u64, access: Access, rights: Rights, walk: &Walk, page: &HostPage) {
        if linear >> 63 != 0 && !walk.global {
            self.high_local = true;
        }
        let tag = self.tag(linear);
        let slot = (linear >> 12) as usize & (TLB_SIZE - 1);
        let mut write = walk.write && page.writable;
        if let Some(writes) = &mut self.writes {
            write &= access == Access::Write;
            if write {
                writes.entries.push((rights as u8, slot as u16));
                writes.page(page.index);
            }
        }
        let entry = &mut self.sets[rights as usize][slot];
        *entry = TlbEntry {
            read: tag,
            write: if write { tag } else { TlbEntry::INVALID },
            execute: if walk.execute && page.executable {
                tag
            } else {
                TlbEntry::INVALID
            },
            host: page.pointer,
            page: page.index,
            span: walk.span,
        };
        self.large.note(linear, walk.span);
    }

    /// Makes the first store to each page be noted anew: the pages noted.
    pub(crate) fn forget_writes(&mut self) -> Vec<u32> {
        let Some(writes) = &mut self.writes else {
            return Vec::new();
        };
        for (set, slot) in writes.entries.drain(..) {
            self.sets[usize::from(set & 3)][usize::from(slot) & (TLB_SIZE - 1)].write =
                TlbEntry::INVALID;
        }
        std::mem::take(&mut writes.pages)
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
        // The lower half's number tells what has become of it.
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
        self.large = LargePages::default();
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
        let large = self.large.may_cover(linear);
        if let Some(fast) = &mut self.fast {
            fast.flush_page(linear, large);
        }
        if large {
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
