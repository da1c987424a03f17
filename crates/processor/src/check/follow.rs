//! The shadow's turn.

use super::compare::{equal, registers_equal};
use super::memory::Word;
use super::{Checker, RECENT, Record, flags, report};
use crate::Vp;
use crate::fault::Exit;
use crate::mmu::PAGE_MASK;
use crate::state::{State, reg, rflags};
use std::time::{Duration, Instant};

/// A shadow that has not got there in this time never will.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a device's write may stay unannounced.
const ANNOUNCEMENT: Duration = Duration::from_millis(3);
const TRAIL: usize = 48;

/// Entries of page tables.
mod pte {
    /// Accessed and dirty.
    pub(super) const MARKS: u64 = 0x60;

    /// What such an entry looks like: present, with an address, and without
    /// reserved bits. Neither small numbers nor a kernel's pointers do.
    pub(super) fn like(word: u64, physical_bits: u32) -> bool {
        let address = word & 0x000f_ffff_ffff_f000;
        word & 1 != 0 && address != 0 && address >> physical_bits.min(52) == 0
    }
}

/// The state that came nearest.
pub(super) struct Nearest {
    pub state: State,
    pub differing: usize,
    pub memory: Vec<(u64, u64, u64)>,
    pub trail: Vec<u64>,
}

impl Checker {
    /// Both are in the same state, and a turn begins.
    pub(super) fn begin(&mut self, vp: &mut Vp) {
        self.turns += 1;
        vp.record = Record::Keep(std::collections::VecDeque::new()).into();
        let written = self.shadow.mmu.forget_writes();
        for page in written {
            if let Some(at) = self.recent.iter().position(|&known| known == page) {
                self.recent.remove(at);
            }
            self.recent.push_back(page);
        }
        while self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        self.trail.clear();
    }

    /// Gives the shadow the values that the processor has read.
    pub(super) fn play(&mut self, vp: &mut Vp) {
        if let Record::Keep(values) = vp.record.take() {
            self.shadow.record = Record::Play(values).into();
        }
    }

    /// The processor has had its turn, which ended with `exit`: the shadow
    /// follows. False when it was excused or did not get there.
    pub(super) fn follow(&mut self, vp: &mut Vp, exit: Option<Exit>) -> bool {
        self.play(vp);
        self.shadow.faulted = false;
        let before = self.shadow.state.clone();
        let wanted = match exit {
            Some(Exit::Kicked | Exit::InterruptWindow) => None,
            other => other,
        };
        let mut frames = Vec::new();
        let mut nearest: Option<Nearest> = None;
        let mut since = None;
        let mut steps = 0u64;
        let mut last = None;
        loop {
            if last == wanted && self.reached(vp, &frames, &mut nearest) {
                self.adopt_flags(vp);
                return true;
            }
            if last.is_some() {
                break;
            }
            steps += 1;
            if steps.is_multiple_of(1 << 16)
                && since.get_or_insert_with(Instant::now).elapsed() > LIMIT
            {
                break;
            }
            last = self.step(vp.state.rip);
            if self.shadow.faulted {
                self.note_frame(&mut frames);
            }
        }
        self.failed(vp, &before, exit, last, nearest);
        false
    }

    /// After a completion: the same path on both sides.
    pub(super) fn agree(&mut self, vp: &mut Vp) {
        let mut frames = Vec::new();
        let mut nearest = None;
        if self.shadow.faulted {
            self.note_frame(&mut frames);
        }
        if vp.exit == self.shadow.exit && self.reached(vp, &frames, &mut nearest) {
            self.adopt_flags(vp);
            return;
        }
        let (exit, other) = (vp.exit, self.shadow.exit);
        let before = self.shadow.state.clone();
        self.failed(vp, &before, exit, other, nearest);
    }

    fn failed(
        &mut self,
        vp: &Vp,
        before: &State,
        exit: Option<Exit>,
        other: Option<Exit>,
        nearest: Option<Nearest>,
    ) {
        let since = Instant::now();
        while since.elapsed() < ANNOUNCEMENT {
            if vp.mmu.code.journal_waits() {
                self.excuse(vp);
                return;
            }
            std::thread::yield_now();
        }
        let text = report::difference(
            &mut self.shadow,
            vp,
            before,
            exit,
            other,
            nearest,
            self.turns,
        );
        self.difference = Some(text);
    }

    /// The shadow is where the processor is.
    fn reached(&mut self, vp: &Vp, frames: &[(u32, usize)], nearest: &mut Option<Nearest>) -> bool {
        let shadow = &mut self.shadow;
        if shadow.state.rip != vp.state.rip {
            return false;
        }
        if !equal(vp, shadow) {
            if nearest.as_ref().is_none_or(|known| known.differing > 0) {
                self.note_nearest(vp, nearest, Vec::new());
            }
            return false;
        }
        let differing = vp.state.arith.bits() ^ shadow.state.arith.bits();
        // An exception that was just delivered has the flags of its frame.
        if differing != 0 && !shadow.faulted && !flags::dead(shadow, differing) {
            self.note_nearest(vp, nearest, Vec::new());
            return false;
        }
        let (allowed, memory) = self.memory_differences(vp, frames);
        if !memory.is_empty() {
            self.note_nearest(vp, nearest, memory);
            return false;
        }
        // Not before: the shadow may come here many times on its way.
        for word in &allowed {
            self.memory.settle(word);
        }
        true
    }

    /// What differs in the pages that were written now or lately: what may,
    /// and the rest.
    fn memory_differences(
        &mut self,
        vp: &Vp,
        frames: &[(u32, usize)],
    ) -> (Vec<Word>, Vec<(u64, u64, u64)>) {
        let mut pages: Vec<u32> = self.recent.iter().copied().collect();
        if let Some(writes) = &self.shadow.mmu.writes {
            pages.extend(writes.pages.iter().copied());
        }
        let (mut allowed, mut rest) = (Vec::new(), Vec::new());
        for page in pages {
            let found = self.memory.differences(page);
            if found.is_empty() || vp.mmu.code.journal_has(page) {
                continue;
            }
            for word in found {
                let marks = (word.one ^ word.other) & !pte::MARKS == 0;
                let frame = (word.one ^ word.other) & !rflags::ARITH == 0
                    && frames.contains(&(page, word.at));
                if frame || marks && pte::like(word.one, vp.mmu.physical_bits) {
                    allowed.push(word);
                } else {
                    let at = (u64::from(page) << 12) + word.at as u64;
                    rest.push((at, word.one, word.other));
                }
            }
        }
        (allowed, rest)
    }

    fn note_nearest(
        &mut self,
        vp: &Vp,
        nearest: &mut Option<Nearest>,
        memory: Vec<(u64, u64, u64)>,
    ) {
        let differing = if memory.is_empty() {
            let pairs = vp.state.gpr[..16].iter().zip(&self.shadow.state.gpr[..16]);
            1 + pairs.filter(|(one, other)| one != other).count()
                + usize::from(registers_equal(&vp.state, &self.shadow.state))
        } else {
            0
        };
        if nearest
            .as_ref()
            .is_none_or(|known| differing < known.differing)
        {
            *nearest = Some(Nearest {
                state: self.shadow.state.clone(),
                differing,
                memory,
                trail: self.trail.iter().copied().collect(),
            });
        }
    }

    /// The status flags that nobody reads shall be the processor's.
    fn adopt_flags(&mut self, vp: &Vp) {
        self.shadow.state.arith = vp.state.arith;
    }

    /// One block, or one instruction where the goal may lie inside.
    fn step(&mut self, goal: u64) -> Option<Exit> {
        let shadow = &mut self.shadow;
        if shadow.shutdown {
            return Some(Exit::TripleFault);
        }
        if self.trail.len() == TRAIL {
            self.trail.pop_front();
        }
        self.trail.push_back(shadow.state.rip);
        shadow.faulted = false;
        if shadow.state.rip == goal {
            // The goal may be between two iterations of a string instruction,
            // which stops there only when somebody asks.
            shadow.peer.requests.look();
        } else if shadow.peer.requests.pending() {
            shadow.peer.requests.take();
        }
        if shadow.attention != 0 {
            return shadow.attend();
        }
        match shadow.next_block() {
            Some(block) => {
                let inside = goal.wrapping_sub(shadow.state.rip);
                let whole = inside == 0 || inside >= block.length();
                shadow.run_block(&block, if whole { usize::MAX } else { 1 })
            }
            None => shadow.stopped(0),
        }
    }

    /// An exception was delivered: the flags in its frame need not be exact.
    fn note_frame(&mut self, frames: &mut Vec<(u32, usize)>) {
        let shadow = &mut self.shadow;
        if !shadow.state.code64() {
            return;
        }
        let top = shadow.state.gpr[reg::RSP];
        // The code segment stands above RIP, which no selector looks like.
        let mut second = [0; 8];
        if flags::fetch(shadow, top.wrapping_add(8), &mut second) != 8 {
            return;
        }
        let above = if u64::from_le_bytes(second) < 0x1_0000 {
            16
        } else {
            24
        };
        let at = top.wrapping_add(above);
        if let Some((_, page)) = flags::place(shadow, at) {
            frames.push((page, (at & PAGE_MASK) as usize));
        }
    }
}
