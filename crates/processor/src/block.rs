//! Blocks of decoded instructions, and the cache that finds them.
//!
//! A block is keyed by where its first byte lies in memory (page number in the
//! code map and offset) and by the mode bits that change decoding. It lives
//! for as long as the code map's word of its page (or two pages) is the one it
//! was decoded under.

use crate::Vp;
use crate::decode::{Decoder, MAX_LENGTH};
use crate::fault::Fault;
use crate::mmu::{Access, PAGE_MASK, Rights, Target};
use crate::op::Op;
use crate::state::seg;
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

/// The most instructions that one block holds.
pub(crate) const MAX_OPS: usize = 48;
/// The most bytes that are read for blocks and regions.
pub(crate) const MAX_CODE: usize = MAX_OPS * MAX_LENGTH;
/// Entries of the quick lookup table.
const QUICK: usize = 8192;
/// [`Block::never_warm`].
const NEVER: u16 = u16::MAX;
/// Blocks kept before all are dropped and decoded anew.
const MAX_BLOCKS: usize = 1 << 16;

/// A run of instructions that is entered only at its start.
#[derive(Debug)]
pub(crate) struct Block {
    /// The instructions; the last may be a branch.
    pub ops: Box<[Op]>,
    /// First page, and the code map's word it was decoded under.
    page: (u32, u32),
    /// The second page, if the last instruction crosses into it.
    second: Option<(u32, u32)>,
    /// Length of all instructions.
    bytes: u32,
    /// Times that it was asked for, see [`Block::is_warm`].
    entries: Cell<u16>,
}

impl Block {
    /// Counts an entry; true with every `enough`th, when the block is worth
    /// translating at the address that it was entered at.
    #[inline]
    pub(crate) fn is_warm(&self, enough: u16) -> bool {
        let entries = self.entries.get();
        if entries == NEVER {
            return false;
        }
        let entries = if entries + 1 >= enough {
            0
        } else {
            entries + 1
        };
        self.entries.set(entries);
        entries == 0
    }

    /// Bytes of all instructions.
    pub(crate) fn length(&self) -> u64 {
        u64::from(self.bytes)
    }

    /// The block cannot be translated.
    pub(crate) fn never_warm(&self) {
        self.entries.set(NEVER);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    page: u32,
    offset: u16,
    mode: u8,
}

#[derive(Clone)]
struct QuickEntry {
    rip: u64,
    generation: u32,
    mode: u8,
    block: Option<Rc<Block>>,
}

/// All blocks that one virtual processor has decoded.
pub(crate) struct Blocks {
    map: HashMap<Key, Rc<Block>, BuildKeyHasher>,
    quick: Box<[QuickEntry]>,
}

/// Spreads a [`Key`]; keys come from the guest but collisions only cost it time.
#[derive(Clone, Copy, Default)]
pub(crate) struct BuildKeyHasher;

/// See [`BuildKeyHasher`].
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl std::hash::BuildHasher for BuildKeyHasher {
    type Hasher = KeyHasher;
    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(0)
    }
}

impl std::hash::Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(21) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

impl Blocks {
    pub(crate) fn new() -> Self {
        let empty = QuickEntry {
            rip: 0,
            generation: 0,
            mode: 0,
            block: None,
        };
        Self {
            map: HashMap::with_hasher(BuildKeyHasher),
            quick: vec![empty; QUICK].into_boxed_slice(),
        }
    }

    /// Forgets every block.
    pub(crate) fn clear(&mut self) {
        self.map.clear();
        for entry in self.quick.iter_mut() {
            entry.block = None;
        }
    }

    fn quick_index(rip: u64) -> usize {
        (rip ^ rip >> 13) as usize & (QUICK - 1)
    }
}

impl Vp {
    /// What a block is looked up by besides its address: the code size (bits
    /// 1:0, 0: 16, 1: 32, 2: 64), real-style segments (bit 2), CPL (bits 5:4).
    pub(crate) fn decode_mode(&self) -> u8 {
        let size = if self.state.code64() {
            2
        } else {
            u8::from(self.state.seg[seg::CS].big() && !self.state.v86())
        };
        size | u8::from(self.state.real_segments()) << 2 | self.state.cpl << 4
    }

    /// The block at RIP, from the caches or decoded anew. `None`: fetching it
    /// faulted, and the reason is in `stop`.
    #[inline]
    pub(crate) fn next_block(&mut self) -> Option<Rc<Block>> {
        let rip = self.state.rip;
        let mode = self.mode_key;
        let entry = &self.blocks.quick[Blocks::quick_index(rip)];
        if entry.rip == rip
            && entry.generation == self.mmu.generation
            && entry.mode == mode
            && let Some(block) = &entry.block
            && self.is_current(block)
            && (mode & 2 != 0 || self.within_limit(block))
        {
            return Some(block.clone());
        }
        self.find_block(rip, mode)
    }

    #[inline]
    fn is_current(&self, block: &Block) -> bool {
        self.mmu.code.word(block.page.0) == block.page.1
            && block
                .second
                .is_none_or(|(page, word)| self.mmu.code.word(page) == word)
    }

    fn within_limit(&self, block: &Block) -> bool {
        let last = self.state.rip + u64::from(block.bytes) - 1;
        last <= u64::from(self.state.seg[seg::CS].limit)
    }

    #[cold]
    #[inline(never)]
    fn find_block(&mut self, rip: u64, mode: u8) -> Option<Rc<Block>> {
        let linear = if mode & 2 != 0 {
            rip
        } else {
            self.wrap_linear(self.state.seg[seg::CS].base.wrapping_add(rip))
        };
        if mode & 2 != 0 && !crate::mmu::canonical(rip) {
            self.gp(0);
            return None;
        }
        let (host, page) = self.fetch_page(linear)?;
        let key = Key {
            page,
            offset: (linear & PAGE_MASK) as u16,
            mode: mode & 7,
        };
        let mut block = self
            .blocks
            .map
            .get(&key)
            .filter(|block| self.is_current(block))
            .cloned();
        // A second page may be mapped elsewhere by now.
        if let Some((second, _)) = block.as_ref().and_then(|block| block.second) {
            let next = self.wrap_linear((linear | PAGE_MASK).wrapping_add(1));
            if self.fetch_page(next)?.1 != second {
                block = None;
            }
        }
        if block.as_ref().is_none_or(|block| !self.fits(block, mode)) {
            block = Some(self.decode_block(linear, host, page, mode)?);
            if self.blocks.map.len() >= MAX_BLOCKS {
                self.blocks.map.clear();
            }
            if let Some(block) = &block {
                self.blocks.map.insert(key, block.clone());
            }
        }
        let block = block?;
        let generation = self.mmu.generation;
        let entry = &mut self.blocks.quick[Blocks::quick_index(rip)];
        *entry = QuickEntry {
            rip,
            generation,
            mode,
            block: Some(block.clone()),
        };
        Some(block)
    }

    fn fits(&self, block: &Block, mode: u8) -> bool {
        mode & 2 != 0 || self.within_limit(block)
    }

    fn fetch_page(&mut self, linear: u64) -> Option<(*mut u8, u32)> {
        let user = self.state.cpl == 3;
        if let Some(found) = self.mmu.lookup_execute(linear, user) {
            return Some(found);
        }
        let rights = if user {
            Rights::User
        } else {
            Rights::SupervisorAc
        };
        match self
            .mmu
            .resolve(&self.state, linear, Access::Execute, rights)
        {
            Ok(Target::Ram(host, page)) => Some((host, page)),
            Ok(Target::Mmio(_)) => {
                // No memory to run from. Real machines would read all ones
                // from the bus, which is an undefined opcode.
                self.ud();
                None
            }
            Err(fault) => {
                self.raise(fault);
                None
            }
        }
    }

    fn decode_block(
        &mut self,
        linear: u64,
        host: *mut u8,
        page: u32,
        mode: u8,
    ) -> Option<Rc<Block>> {
        let start = host.wrapping_sub((linear & PAGE_MASK) as usize);
        let word = self.mark_code(page, start);
        let in_page = (0x1000 - (linear & PAGE_MASK)) as usize;
        let mut window = [0u8; MAX_OPS * MAX_LENGTH];
        let mut have = in_page.min(window.len());
        if mode & 2 == 0 {
            let limit = u64::from(self.state.seg[seg::CS].limit);
            if self.state.rip > limit {
                self.gp(0);
                return None;
            }
            have = have.min((limit - self.state.rip + 1).min(1 << 16) as usize);
        }
        let limited = have < in_page.min(window.len());
        crate::host::copy_from(host, &mut window[..have]);
        let mut decoder = Decoder::new(mode);
        let ops = decoder.block(&window[..have]);
        if !ops.is_empty() {
            let bytes = ops.last().map_or(0, |op| op.end() as u32);
            return Some(Rc::new(Block {
                ops,
                page: (page, word),
                second: None,
                bytes,
                entries: Cell::new(0),
            }));
        }
        // The first instruction does not fit in what there is.
        if limited {
            self.raise(Fault::new(crate::fault::vector::GP, 0));
            return None;
        }
        self.decode_crossing(linear, &mut window, have, (page, word), mode)
    }

    /// An instruction that continues on the next page: a block of its own.
    fn decode_crossing(
        &mut self,
        linear: u64,
        window: &mut [u8],
        have: usize,
        page: (u32, u32),
        mode: u8,
    ) -> Option<Rc<Block>> {
        let mut decoder = Decoder::new(mode);
        let mut room = MAX_LENGTH - have.min(MAX_LENGTH);
        if mode & 2 == 0 {
            let limit = u64::from(self.state.seg[seg::CS].limit);
            let allowed = (limit - self.state.rip + 1).min(MAX_LENGTH as u64) as usize;
            room = room.min(allowed.saturating_sub(have));
        }
        let next = self.wrap_linear(linear.wrapping_add(have as u64));
        if room == 0 {
            // At most 15 bytes: too long, or beyond the code segment's limit.
            self.gp(0);
            return None;
        }
        let (host, second) = self.fetch_page(next)?;
        let word = self.mark_code(second, host);
        crate::host::copy_from(host, &mut window[have..have + room]);
        let Some(op) = decoder.single(&window[..have + room]) else {
            self.gp(0);
            return None;
        };
        let bytes = op.end() as u32;
        let ops = Box::new([op]);
        Some(Rc::new(Block {
            ops,
            page,
            second: Some((second, word)),
            bytes,
            entries: Cell::new(0),
        }))
    }
}
