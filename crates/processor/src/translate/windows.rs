//! Guest pages side by side in this process, as the guest sees them.
//!
//! A guest's neighbouring pages lie anywhere in its memory. Where code goes to
//! and fro between them, a run of pages ([`super::tlb::Run`]) that are neighbours in the
//! host's memory by chance is too short. So memory is mapped a second time: a
//! block of a GiB of the guest's linear addresses gets as many addresses of
//! this process, and pages are mapped into it as they are wanted. A run then
//! reaches as far as the pages do that the guest has used.
//!
//! What a block shows is no translation: a run contains only pages that the
//! table has now (or, of a large page, that the walk finds now), and the cells
//! that hold it are emptied like all others. A page's place is never given to
//! another page while a cell may lead there: that is what epochs are for, which
//! move on when cells are emptied.

use super::tlb::{FastTlb, Run};
use crate::Vp;
use crate::mmu::{self, Access};
use crate::space::Backing;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::arch::x86_64::_rdtsc;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};

const PAGE: u64 = 4096;
/// log2 of a block's bytes.
const BLOCK: u32 = 30;
/// Blocks of one processor.
const BLOCKS: usize = 24;
/// Pages of a chunk, which is as large as the smaller large pages.
const CHUNK: u64 = 512;
/// Chunks of one processor that hold pages.
const MOST_CHUNKS: usize = 2048;
/// Mappings of all processors together. Linux allows a process 65,530.
const MOST_PIECES: usize = 24_000;
/// Pages that a run reaches on each side of an address, beside large ones.
const MOST_NEIGHBOURS: u64 = 1024;
/// Pages that are mapped at once.
const MOST_NEW: u64 = 256;
/// Time stamps for mapping pages that there are at first, and the share of
/// all time that there is later.
const CREDIT: u64 = 50_000_000;
const SHARE: u64 = 16;
/// No page is mapped here.
const NONE: u32 = u32::MAX;

static PIECES: AtomicUsize = AtomicUsize::new(0);

/// Versions of the tables ([`FastTlb::version`]) in which all pages of a chunk
/// were known to be one large page's, which may be read, and written.
#[derive(Clone, Copy, Debug, Default)]
struct Whole {
    read: Option<u64>,
    write: Option<u64>,
    /// Guest-physical address, and the version of the guest-physical map, for
    /// which the pages were compared.
    compared: Option<(u64, u32)>,
}

/// 2 MiB of a block.
struct Chunk {
    /// Pages of memory that are mapped.
    pages: Box<[u32; CHUNK as usize]>,
    whole: Whole,
}

impl Chunk {
    fn new() -> Self {
        Self {
            pages: Box::new([NONE; CHUNK as usize]),
            whole: Whole::default(),
        }
    }
}

/// A GiB of some address space.
struct Block {
    /// The address space (0 for the upper half), and the block in it.
    key: Option<(u64, u64)>,
    chunks: HashMap<u64, Chunk>,
    pieces: usize,
    /// When it was last asked for.
    used: u64,
    /// The epoch in which a cell may have got a run of it.
    filled: Option<u64>,
}

/// A part of a block: page numbers within it.
struct Piece {
    block: usize,
    from: u64,
    count: u64,
}

/// The blocks of a virtual processor.
pub(super) struct Windows {
    backing: Backing,
    reserved: *mut c_void,
    blocks: Vec<Block>,
    chunks: usize,
    clock: u64,
    /// Counts how often cells of code of each half have been emptied.
    epochs: [u64; 2],
    /// Time stamps: of the start, and how many went into mapping.
    since: u64,
    work: u64,
}

// SAFETY: the mapping belongs to the process; only the processor's thread
// reaches it.
unsafe impl Send for Windows {}

fn now() -> u64 {
    // SAFETY: RDTSC has no preconditions.
    unsafe { _rdtsc() }
}

impl Windows {
    /// `None` where the host gives no address space.
    pub(super) fn new(backing: Backing) -> Option<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let reserved =
            unsafe { mmap_anonymous(null_mut(), BLOCKS << BLOCK, ProtFlags::empty(), flags) };
        let block = || Block {
            key: None,
            chunks: HashMap::new(),
            pieces: 0,
            used: 0,
            filled: None,
        };
        Some(Self {
            backing,
            reserved: reserved.ok()?,
            blocks: (0..BLOCKS).map(|_| block()).collect(),
            chunks: 0,
            clock: 0,
            epochs: [0; 2],
            since: now(),
            work: 0,
        })
    }

    /// The cells of code in the lower or upper half have been emptied.
    pub(super) fn emptied(&mut self, high: bool) {
        self.epochs[usize::from(high)] += 1;
    }

    fn base(&self, block: usize) -> u64 {
        self.reserved as u64 + ((block as u64) << BLOCK)
    }

    /// No cell leads to the block.
    fn idle(&self, block: usize) -> bool {
        let block = &self.blocks[block];
        let high = block
            .key
            .is_some_and(|(_, number)| number >> (63 - BLOCK) != 0);
        block.filled != Some(self.epochs[usize::from(high)])
    }

    /// The block for an address, emptied if it was another's. `None` where all
    /// are in use.
    fn block(&mut self, space: u64, linear: u64) -> Option<usize> {
        self.clock += 1;
        let key = (space, linear >> BLOCK);
        let found = self.blocks.iter().position(|block| block.key == Some(key));
        let number = match found {
            Some(number) => number,
            None => {
                let number = (0..BLOCKS)
                    .filter(|&number| self.idle(number))
                    .min_by_key(|&number| self.blocks[number].used)?;
                self.clear(number);
                self.blocks[number].key = Some(key);
                number
            }
        };
        self.blocks[number].used = self.clock;
        Some(number)
    }

    /// Takes all pages out of a block that no cell leads to.
    fn clear(&mut self, number: usize) {
        let at = self.base(number) as *mut c_void;
        let block = &mut self.blocks[number];
        if block.pieces > 0 {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
            // SAFETY: the block's part of the reservation, which nothing else uses.
            let done = unsafe { mmap_anonymous(at, 1 << BLOCK, ProtFlags::empty(), flags) };
            if done.is_ok() {
                PIECES.fetch_sub(block.pieces, Ordering::Relaxed);
                block.pieces = 0;
            }
        }
        self.chunks -= block.chunks.len();
        block.chunks.clear();
        (block.key, block.filled) = (None, None);
    }

    /// Makes room for more chunks and pieces where there is none.
    fn make_room(&mut self, keep: usize) -> bool {
        let full = |windows: &Self| {
            windows.chunks + 4 > MOST_CHUNKS
                || PIECES.load(Ordering::Relaxed) + MOST_NEW as usize > MOST_PIECES
        };
        while full(self) {
            let oldest = (0..BLOCKS)
                .filter(|&number| number != keep && self.idle(number))
                .filter(|&number| !self.blocks[number].chunks.is_empty())
                .min_by_key(|&number| self.blocks[number].used);
            match oldest {
                Some(oldest) => self.clear(oldest),
                None => return false,
            }
        }
        true
    }

    /// Mapping has not taken too much time.
    fn affordable(&self) -> bool {
        self.work < CREDIT + now().wrapping_sub(self.since) / SHARE
    }

    /// The page of memory at an address of this process.
    fn page_of(&self, host: u64) -> Option<u32> {
        let offset = host.wrapping_sub(self.backing.base as u64);
        (offset < self.backing.size).then_some((offset / PAGE) as u32)
    }

    fn shown(&self, block: usize, page: u64) -> u32 {
        let chunk = self.blocks[block].chunks.get(&(page / CHUNK));
        chunk.map_or(NONE, |chunk| chunk.pages[(page % CHUNK) as usize])
    }

    /// Maps neighbouring pages of memory, the first of which is `first`.
    /// `present`: they have been used, so that the host has them.
    fn map(&mut self, piece: &Piece, first: u32, present: bool) -> bool {
        let start = now();
        let at = self.base(piece.block) + piece.from * PAGE;
        let mut flags = MapFlags::SHARED | MapFlags::FIXED;
        if present {
            flags |= MapFlags::POPULATE;
        }
        let (length, offset) = ((piece.count * PAGE) as usize, u64::from(first) * PAGE);
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: within the block's part of the reservation; no cell leads to these
        // pages, or they show what is mapped already.
        let done = unsafe {
            mmap(
                at as *mut c_void,
                length,
                rights,
                flags,
                &self.backing.file,
                offset,
            )
        };
        self.work += now().wrapping_sub(start);
        // One more mapping, and what it was cut out of may be two.
        PIECES.fetch_add(2, Ordering::Relaxed);
        let block = &mut self.blocks[piece.block];
        block.pieces += 2;
        for page in piece.from..piece.from + piece.count {
            let chunk = match block.chunks.entry(page / CHUNK) {
                std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
                std::collections::hash_map::Entry::Vacant(place) => {
                    self.chunks += 1;
                    place.insert(Chunk::new())
                }
            };
            chunk.whole = Whole::default();
            chunk.pages[(page % CHUNK) as usize] = if done.is_ok() {
                first + (page - piece.from) as u32
            } else {
                NONE
            };
        }
        done.is_ok()
    }

    /// Maps what a part of a block is to show, where it does not yet.
    fn map_all(&mut self, block: usize, from: u64, wanted: &[u32]) -> bool {
        let mut at = 0;
        while at < wanted.len() {
            let first = wanted[at];
            if self.shown(block, from + at as u64) == first {
                at += 1;
                continue;
            }
            let mut count = 1;
            while let Some(&next) = wanted.get(at + count)
                && next == first + count as u32
                && self.shown(block, from + (at + count) as u64) != next
            {
                count += 1;
            }
            let piece = Piece {
                block,
                from: from + at as u64,
                count: count as u64,
            };
            if !self.map(&piece, first, true) {
                return false;
            }
            at += count;
        }
        true
    }

    /// All of a chunk may be used, as the tables are now.
    fn whole(&self, block: usize, chunk: u64, write: bool, version: u64) -> bool {
        let chunk = self.blocks[block].chunks.get(&chunk);
        chunk.is_some_and(|chunk| {
            let known = if write {
                chunk.whole.write
            } else {
                chunk.whole.read
            };
            known == Some(version)
        })
    }

    /// The run around an address, of what a table has now and of large pages
    /// that are known now. Maps what is missing.
    fn run(
        &mut self,
        fast: &FastTlb,
        table: usize,
        block: usize,
        linear: u64,
        write: bool,
    ) -> Option<Run> {
        let origin = linear & !((1 << BLOCK) - 1);
        let here = (linear - origin) / PAGE;
        let idle = self.idle(block);
        let affordable = self.affordable() && self.make_room(block);
        let mut new = 0;
        let mut wanted_at = |page: u64| -> Option<u32> {
            let host = fast.host(table, origin + page * PAGE, write)?;
            let wanted = self.page_of(host)?;
            let shown = self.shown(block, page);
            if shown != wanted {
                new += 1;
                let free = shown == NONE || idle;
                if !free || !affordable || new > MOST_NEW {
                    return None;
                }
            }
            Some(wanted)
        };
        let known = |page| self.whole(block, page / CHUNK, write, fast.version);
        // Neighbours that are to be mapped, on each side of what is.
        let (mut from, mut to) = (here, here);
        let (mut below, mut above) = (Vec::new(), Vec::new());
        let most = 1 << (BLOCK - 12);
        let mut left = MOST_NEIGHBOURS;
        // Pages of a whole chunk show what they are to.
        let mut put = |page: u64, side: &mut Vec<u32>| -> Option<()> {
            let wanted = wanted_at(page)?;
            side.push(wanted);
            Some(())
        };
        while to < most && left > 0 {
            left -= 1;
            if known(to) {
                let end = (to / CHUNK + 1) * CHUNK;
                above.extend((to..end).map(|page| self.shown(block, page)));
                to = end;
            } else {
                if put(to, &mut above).is_none() {
                    break;
                }
                to += 1;
            }
        }
        if to == here {
            return None;
        }
        left = MOST_NEIGHBOURS;
        while from > 0 && left > 0 {
            left -= 1;
            let before = from - 1;
            if known(before) {
                let start = before / CHUNK * CHUNK;
                below.extend((start..from).rev().map(|page| self.shown(block, page)));
                from = start;
            } else {
                if put(before, &mut below).is_none() {
                    break;
                }
                from = before;
            }
        }
        below.reverse();
        below.append(&mut above);
        if !self.map_all(block, from, &below) {
            return None;
        }
        let high = linear >> 63 != 0;
        self.blocks[block].filled = Some(self.epochs[usize::from(high)]);
        Some(Run {
            start: origin + from * PAGE,
            length: (to - from) * PAGE,
            addend: self.base(block).wrapping_sub(origin),
        })
    }

    /// A chunk shows one large page, whose first page of memory is `first`.
    fn show_whole(&mut self, block: usize, chunk: u64, first: u32) -> bool {
        let from = chunk * CHUNK;
        let free = (0..CHUNK).all(|i| {
            let shown = self.shown(block, from + i);
            shown == NONE || shown == first + i as u32
        });
        let done = (0..CHUNK).all(|i| self.shown(block, from + i) == first + i as u32);
        if done {
            return true;
        }
        if !(free || self.idle(block)) || !self.affordable() || !self.make_room(block) {
            return false;
        }
        let piece = Piece {
            block,
            from,
            count: CHUNK,
        };
        self.map(&piece, first, false)
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        let pieces: usize = self.blocks.iter().map(|block| block.pieces).sum();
        PIECES.fetch_sub(pieces, Ordering::Relaxed);
        // SAFETY: the mapping is this object's, and nobody runs code that reaches
        // it: it goes with its virtual processor.
        unsafe {
            let _ = munmap(self.reserved, BLOCKS << BLOCK);
        }
    }
}

impl Vp {
    /// The run around an address, which the table has, in a window.
    pub(super) fn window_run(&mut self, table: usize, linear: u64, write: bool) -> Option<Run> {
        let high = linear >> 63 != 0;
        let space = if high {
            0
        } else {
            self.state.cr3 & !mmu::PAGE_MASK
        };
        let windows = self.translator.as_mut()?.windows.as_mut()?;
        let block = windows.block(space, linear)?;
        if self.mmu.cached(linear).is_some_and(|found| found.3) {
            self.know_whole(block, linear, write);
        }
        let windows = self.translator.as_mut()?.windows.as_mut()?;
        windows.run(self.mmu.fast.as_ref()?, table, block, linear, write)
    }

    /// Makes a chunk of a block whole, if one large page is all of it.
    fn know_whole(&mut self, block: usize, linear: u64, write: bool) -> Option<()> {
        let chunk = (linear & ((1 << BLOCK) - 1)) / (CHUNK * PAGE);
        let version = self.mmu.fast.as_ref()?.version;
        let windows = self.translator.as_mut()?.windows.as_mut()?;
        if windows.whole(block, chunk, write, version) {
            return Some(());
        }
        let access = if write { Access::Write } else { Access::Read };
        let rights = mmu::data_rights(&self.state);
        // The table has the address: it has been accessed, and for stores written.
        let walk = self
            .mmu
            .walk(&self.state, linear, access, rights, false)
            .ok()?;
        if walk.span < 21 || write && !walk.write {
            return None;
        }
        let gpa = walk.gpa & !(CHUNK * PAGE - 1);
        let first = self.mmu.host_page(gpa / PAGE)?.index;
        let compared = Some((gpa, self.mmu.map_version));
        let windows = self.translator.as_mut()?.windows.as_mut()?;
        let known = windows.blocks[block].chunks.get(&chunk);
        if known.is_none_or(|chunk| chunk.whole.compared != compared || chunk.pages[0] != first) {
            if !self.is_whole(gpa, first) {
                return None;
            }
            let windows = self.translator.as_mut()?.windows.as_mut()?;
            if !windows.show_whole(block, chunk, first) {
                return None;
            }
        }
        let code = (0..CHUNK as u32).any(|i| self.mmu.code.is_code(first + i));
        let windows = self.translator.as_mut()?.windows.as_mut()?;
        let whole = &mut windows.blocks[block].chunks.get_mut(&chunk)?.whole;
        whole.compared = compared;
        whole.read = Some(version);
        if write && !code {
            whole.write = Some(version);
            self.mmu.fast.as_mut()?.note_writers(first, CHUNK as u32);
        }
        Some(())
    }

    /// 2 MiB of guest-physical addresses are neighbours in memory.
    fn is_whole(&mut self, gpa: u64, first: u32) -> bool {
        let Some(windows) = self.translator.as_ref().and_then(|t| t.windows.as_ref()) else {
            return false;
        };
        let base = windows.backing.base;
        let fits = (u64::from(first) + CHUNK) * PAGE <= windows.backing.size;
        fits && (0..CHUNK).all(|i| {
            let at = base.wrapping_add((u64::from(first) + i) as usize * PAGE as usize);
            self.mmu.host_page(gpa / PAGE + i).is_some_and(|page| {
                page.writable && page.pointer == at && u64::from(page.index) == u64::from(first) + i
            })
        })
    }
}
