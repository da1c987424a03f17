//! Translator and interpreter in lock step ([`crate::ProcessorMode::Check`]).
//!
//! The checked processor translates as always. Beside it an interpreter, the
//! *shadow*, runs on a copy of its memory ([`memory`]). Both start a turn in
//! the same state. The processor takes its turn: it delivers an event, or runs
//! translated code until that is left for any reason. Then the shadow follows,
//! block by block and at last instruction by instruction, until it is in the
//! same state, with the same bytes in every page that it has written, now or
//! lately. When it never gets there, the state where it was nearest is printed
//! beside the processor's, and the processor stops.
//!
//! Nothing of this depends on how code is emitted: what is compared are states
//! where translated code has been left.
//!
//! Both get the same answers: exits are the processor's alone, and their
//! completion is given to both; what instructions read that is not of the
//! guest (time, random numbers) is recorded and played back ([`Record`]); pages
//! that devices and the hypervisor write are copied when nobody runs. A device
//! that writes just while the guest reads may make a difference that is none:
//! after such a write a difference is not believed, and all is copied anew.
//! Another processor of the same guest would do so all the time, so that a
//! checked guest has one.
//!
//! What may differ: status flags that are overwritten before they are read
//! ([`flags`]), in the state as in the frame of an exception; and accessed and
//! dirty bits of page tables, which depend on what a TLB holds.

mod compare;
mod flags;
mod follow;
mod memory;
mod report;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use compare::values;
#[cfg(test)]
pub(crate) use tests::Fault;

use crate::Vp;
use crate::fault::{Completion, Exit};
use crate::vp::attention;
use crate::{CodeMap, Config, GuestSpace, ProcessorMode};
use memory::Memory;
use std::collections::VecDeque;
use std::sync::Arc;

/// Pages that are compared although this turn did not write them.
const RECENT: usize = 24;

/// Values that instructions get from the host.
#[derive(Debug, Default)]
pub(crate) enum Record {
    /// Not checked: nothing is kept.
    #[default]
    Off,
    /// The checked processor's, in order.
    Keep(VecDeque<u64>),
    /// The shadow takes them from here.
    Play(VecDeque<u64>),
}

impl Record {
    /// A value that is not the guest's own.
    #[inline]
    pub(crate) fn value(&mut self, value: impl FnOnce() -> u64) -> u64 {
        match self {
            Self::Off => value(),
            Self::Keep(list) => {
                let value = value();
                list.push_back(value);
                value
            }
            Self::Play(list) => list.pop_front().unwrap_or_else(value),
        }
    }
}

/// Pages that a shadow's TLB lets it write.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// TLB set and slot.
    pub(crate) entries: Vec<(u8, u16)>,
    /// Numbers in the code map.
    pub(crate) pages: Vec<u32>,
}

impl Writes {
    /// A page was written, or will be.
    pub(crate) fn page(&mut self, page: u32) {
        if !self.pages.contains(&page) {
            self.pages.push(page);
        }
    }
}

/// The other half of a checked processor.
pub(crate) struct Checker {
    shadow: Box<Vp>,
    memory: Memory,
    /// Pages written lately.
    recent: VecDeque<u32>,
    /// Blocks that the shadow has begun.
    trail: VecDeque<u64>,
    turns: u64,
    excused: u64,
    /// What was found.
    difference: Option<String>,
}

impl Checker {
    /// A checker for a processor that is to have `space`, and what it gets in
    /// its place. There is none where memory cannot be copied.
    pub(crate) fn beside(
        config: &Config,
        space: Box<dyn GuestSpace>,
        pages: usize,
    ) -> (Box<dyn GuestSpace>, Option<Box<Self>>) {
        match Memory::share(space, pages) {
            Ok(halves) => {
                let checker = Self::new(config, halves.shadow, halves.memory);
                (halves.processor, Some(checker))
            }
            Err(space) => (space, None),
        }
    }

    /// A checker whose shadow uses `space`.
    fn new(config: &Config, space: Box<dyn GuestSpace>, memory: Memory) -> Box<Self> {
        let config = Config {
            mode: ProcessorMode::Interpret,
            ..config.clone()
        };
        let code = Arc::new(CodeMap::new(memory.pages(), false));
        let mut shadow = Box::new(Vp::new(config, space, code));
        shadow.mmu.writes = Some(Box::default());
        shadow.record = Record::Play(VecDeque::new()).into();
        Box::new(Self {
            shadow,
            memory,
            recent: VecDeque::new(),
            trail: VecDeque::new(),
            turns: 0,
            excused: 0,
            difference: None,
        })
    }

    /// The guest-physical map or translations changed behind the guest's back.
    pub(crate) fn forget(&mut self) {
        self.shadow.gpa_space_changed();
    }

    /// Makes the shadow what the processor is.
    fn adopt(&mut self, vp: &Vp) {
        let shadow = &mut self.shadow;
        shadow.state.clone_from(&vp.state);
        shadow.mode_changed();
        shadow.attention = vp.attention & !(attention::WINDOW | attention::NMI_WINDOW);
        shadow.event = vp.event;
        shadow.exit = vp.exit;
        shadow.answers.clone_from(&vp.answers);
        shadow.shutdown = vp.shutdown;
        shadow.nmi_blocked = vp.nmi_blocked;
        shadow.debug_pending = vp.debug_pending;
        shadow.delivering = vp.delivering;
        shadow.resume_loaded = vp.resume_loaded;
        shadow.faulted = vp.faulted;
        shadow.code_written = false;
    }

    /// Copies what others have written. The processor does not run.
    fn catch_up(&mut self, vp: &Vp) {
        for page in vp.mmu.code.take_journal() {
            self.memory.copy(page);
            self.shadow.mmu.code.written(page);
        }
    }

    /// Copies everything and starts anew.
    fn excuse(&mut self, vp: &Vp) {
        self.excused += 1;
        self.catch_up(vp);
        self.memory.copy_all();
        self.shadow.gpa_space_changed();
        self.adopt(vp);
    }
}

impl Vp {
    /// [`Vp::run`], checked.
    pub(crate) fn run_checked(&mut self, mut checker: Box<Checker>) -> Exit {
        checker.catch_up(self);
        checker.adopt(self);
        let exit = loop {
            if checker.difference.is_some() {
                break Exit::TripleFault;
            }
            checker.catch_up(self);
            checker.begin(self);
            if checker.turns & 3 == 0 {
                // A short turn: up to the next loop head.
                self.short_turn = true;
            }
            let exit = self.turn();
            self.short_turn = false;
            if !checker.follow(self, exit) {
                continue;
            }
            if let Some(exit) = exit {
                break exit;
            }
        };
        self.checker = Some(checker);
        exit
    }

    /// [`Vp::complete`], checked.
    pub(crate) fn complete_checked(&mut self, mut checker: Box<Checker>, completion: Completion) {
        checker.catch_up(self);
        checker.adopt(self);
        checker.begin(self);
        self.complete_here(completion);
        checker.play(self);
        checker.shadow.complete_here(completion);
        checker.agree(self);
        self.checker = Some(checker);
    }

    /// The first difference between translator and interpreter, when
    /// [`Vp::run`] has returned [`Exit::TripleFault`] because of it.
    pub fn difference(&self) -> Option<&str> {
        self.checker.as_ref()?.difference.as_deref()
    }

    /// Turns that were compared, and differences that were not believed
    /// because a device wrote at the same time.
    pub fn checked(&self) -> Option<(u64, u64)> {
        let checker = self.checker.as_ref()?;
        Some((checker.turns, checker.excused))
    }
}
