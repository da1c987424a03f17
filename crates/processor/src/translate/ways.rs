//! Ways between pieces of code: leading them to their targets, and dropping
//! them when the mapping they rely on may have changed.
//!
//! What leads into the lower half of the linear address space belongs to an
//! address space. The ways of the last few address spaces are kept, so that
//! a processor that goes back and forth between processes (with PCIDs) finds
//! them again.

use super::Translator;
use super::area::Area;
use super::links::{Edge, Gate, Jumps, Way};
use crate::Vp;
use crate::mmu::{Access, PAGE_MASK, Rights, Target};

/// Address spaces whose ways are kept.
const SPACES: usize = 8;

/// The ways into one address space.
struct Space {
    /// Its number; 0 for none.
    number: u64,
    /// Targets of user code's indirect jumps.
    jumps: Jumps,
    /// Edges that lead into the lower half, and where.
    led: Vec<(u32, u64)>,
    used: u64,
}

/// All ways that lead somewhere and rely on a mapping.
pub(super) struct Ways {
    /// Targets of the supervisor's indirect jumps.
    jumps: Jumps,
    /// Some of them lie in the lower half.
    low_jumps: bool,
    /// Edges that lead into the upper half.
    led: Vec<u32>,
    spaces: Vec<Space>,
    current: usize,
    clock: u64,
}

impl Ways {
    pub(super) fn new() -> Self {
        Self {
            jumps: Jumps::new(),
            low_jumps: false,
            led: Vec::new(),
            spaces: vec![Space::new()],
            current: 0,
            clock: 0,
        }
    }

    /// The tables for indirect jumps: supervisor's and user's.
    pub(super) fn tables(&self) -> [u64; 2] {
        [
            self.jumps.address(),
            self.spaces[self.current].jumps.address(),
        ]
    }

    #[inline]
    pub(super) fn jump(&self, target: u64, user: bool) -> Option<u64> {
        if user {
            self.spaces[self.current].jumps.get(target)
        } else {
            self.jumps.get(target)
        }
    }

    pub(super) fn set_jump(&mut self, target: u64, user: bool, code: u64) {
        if user {
            self.spaces[self.current].jumps.set(target, code);
        } else {
            self.low_jumps |= target >> 63 == 0;
            self.jumps.set(target, code);
        }
    }

    /// Notes that an edge leads to `code` now.
    fn note(&mut self, number: u32, relies_on: u64, code: u64) {
        if relies_on >> 63 == 0 {
            self.spaces[self.current].led.push((number, code));
        } else {
            self.led.push(number);
        }
    }

    /// Resets the ways that rely on an address that `drops` chooses, in every
    /// address space.
    pub(super) fn drop(&mut self, area: &mut Area, edges: &[Edge], drops: impl Fn(u64) -> bool) {
        self.jumps.retain(&drops);
        self.led
            .retain(|&number| keep(area, edges, number, &drops, true));
        for (index, space) in self.spaces.iter_mut().enumerate() {
            space.jumps.retain(&drops);
            let current = index == self.current;
            space
                .led
                .retain(|&(number, _)| keep(area, edges, number, &drops, current));
        }
    }

    /// The same for everything, without looking at each.
    pub(super) fn clear(&mut self) {
        self.jumps.clear();
        self.low_jumps = false;
        self.led.clear();
        for space in &mut self.spaces {
            space.clear();
        }
    }

    /// The lower half belongs to another address space now.
    fn switch(&mut self, area: &mut Area, edges: &[Edge], number: u64) {
        if self.low_jumps {
            self.jumps.retain(|target| target >> 63 == 0);
            self.low_jumps = false;
        }
        for &(edge, _) in &self.spaces[self.current].led {
            if let Some((slot, out)) = edges.get(edge as usize).and_then(Edge::slot) {
                area.set_slot(slot, out);
            }
        }
        self.current = self.find_space(number);
        for &(edge, code) in &self.spaces[self.current].led {
            if let Some((slot, _)) = edges.get(edge as usize).and_then(Edge::slot) {
                area.set_slot(slot, code);
            }
        }
    }

    fn find_space(&mut self, number: u64) -> usize {
        self.clock += 1;
        let known = self.spaces.iter().position(|space| space.number == number);
        let index = known.unwrap_or_else(|| {
            if self.spaces.len() < SPACES {
                self.spaces.push(Space::new());
                return self.spaces.len() - 1;
            }
            let oldest = (0..SPACES).min_by_key(|&index| self.spaces[index].used);
            oldest.unwrap_or(0)
        });
        let space = &mut self.spaces[index];
        if known.is_none() {
            space.clear();
            space.number = number;
        }
        space.used = self.clock;
        index
    }
}

impl Space {
    fn new() -> Self {
        Self {
            number: 0,
            jumps: Jumps::new(),
            led: Vec::new(),
            used: 0,
        }
    }

    fn clear(&mut self) {
        self.number = 0;
        self.jumps.clear();
        self.led.clear();
    }
}

/// False, with its slot reset where it is `in_place`, for an edge to drop.
fn keep(
    area: &mut Area,
    edges: &[Edge],
    number: u32,
    drops: impl Fn(u64) -> bool,
    in_place: bool,
) -> bool {
    let Some(edge) = edges.get(number as usize) else {
        return false;
    };
    // A gate goes with its region, too.
    let dropped = drops(edge.relies_on()) || drops(edge.target);
    if dropped
        && in_place
        && let Some((slot, out)) = edge.slot()
    {
        area.set_slot(slot, out);
    }
    !dropped
}

impl Translator {
    /// Resets the ways that rely on an address that `drops` chooses.
    pub(super) fn drop_ways(&mut self, drops: impl Fn(u64) -> bool) {
        self.ways.drop(&mut self.area, &self.numbered.edges, drops);
        self.pending = None;
    }

    /// Resets every way.
    pub(super) fn drop_all_ways(&mut self) {
        self.drop_ways(|_| true);
        self.entered.clear();
    }

    /// Leads an edge to its target's code.
    fn lead(&mut self, number: u32, code: u64) {
        let Some(edge) = self.numbered.edges.get(number as usize) else {
            return;
        };
        let code = match edge.way {
            Way::Patch(at) => return self.area.patch(at, code),
            Way::Slot(slot, _) => {
                self.area.set_slot(slot, code);
                code
            }
            Way::Gate(gate) => {
                let code = if code == gate.entry { gate.body } else { code };
                self.area.set_slot(gate.slot, code);
                code
            }
        };
        self.ways.note(number, edge.relies_on(), code);
    }

    /// Forgets a region that cannot be used any more as it is.
    fn forget_region(&mut self, rip: u64, user: bool) {
        self.regions
            .retain(|key, _| key.rip != rip || key.user != user);
        self.drop_ways(|target| target == rip);
    }
}

impl Vp {
    /// Brings ways up to date with what has happened to code and mappings.
    pub(super) fn catch_up(&mut self) {
        let Some(translator) = &mut self.translator else {
            return;
        };
        // Whose shadow stack may hold what is no longer so.
        let mut emptied = [false; 2];
        let epoch = self.mmu.code.epoch();
        if epoch != translator.epoch {
            translator.epoch = epoch;
            if translator.drop_written(&self.mmu.code) {
                emptied = [true; 2];
            }
        }
        let changes = &mut self.mmu.changes;
        if changes.low || changes.high {
            let (low, high) = (changes.low, changes.high);
            if low && high {
                translator.drop_all_ways();
            } else {
                translator.drop_ways(|target| if target >> 63 == 0 { low } else { high });
            }
            emptied = [true; 2];
            (changes.low, changes.high) = (false, false);
            changes.pages.clear();
        } else if !changes.pages.is_empty() {
            for page in changes.pages.drain(..) {
                if translator.entered.remove(&(page >> 12)) {
                    translator.drop_ways(|target| target & !PAGE_MASK == page);
                    emptied = [true; 2];
                }
            }
        }
        let space = self.mmu.low_space();
        if space != translator.space {
            translator.space = space;
            let edges = &translator.numbered.edges;
            translator.ways.switch(&mut translator.area, edges, space);
            translator.pending = None;
            self.link.jumps = translator.ways.tables();
            emptied[1] = true;
            emptied[0] |= translator.low_supervisor;
        }
        self.settle_shadow(emptied);
    }

    /// Empties shadow stacks, and changes to the one of the privilege.
    fn settle_shadow(&mut self, emptied: [bool; 2]) {
        let user = usize::from(self.state.cpl == 3);
        let link = &mut self.link;
        if link.shadow_user != user as u64 {
            link.shadows[1 - user] = link.shadow;
            link.shadow = link.shadows[user];
            link.shadow_user = user as u64;
        }
        for (number, empty) in emptied.into_iter().enumerate() {
            if empty {
                link.shadows[number] = link.shadow_tops[number];
                if number == user {
                    link.shadow = link.shadow_tops[number];
                }
            }
        }
    }

    /// Leads the edge that was just left by to the code found at RIP. False
    /// when that code must not be entered.
    pub(super) fn lead_pending(&mut self, code: u64) -> bool {
        let rip = self.state.rip;
        let user = self.state.cpl == 3;
        let Some(translator) = &mut self.translator else {
            return true;
        };
        let Some(number) = translator.pending.take() else {
            return true;
        };
        let edge = translator.numbered.edges.get(number as usize);
        let Some(&edge) = edge.filter(|edge| edge.target == rip && edge.user == user) else {
            return true;
        };
        if let Way::Gate(gate) = edge.way
            && gate.entry == code
            && !self.gate_holds(&gate)
        {
            return false;
        }
        if let Some(translator) = &mut self.translator {
            translator.note_entered(edge.relies_on());
            translator.lead(number, code);
        }
        true
    }

    /// The page that a region runs on into is the one that it was made of.
    /// Where it cannot be fetched from, the interpreter finds out.
    fn gate_holds(&mut self, gate: &Gate) -> bool {
        let user = self.state.cpl == 3;
        let page = match self.mmu.lookup_execute(gate.second, user) {
            Some((_, page)) => page,
            None => match self.fetch_quietly(gate.second, user) {
                Some(page) => page,
                None => return false,
            },
        };
        if page != gate.page {
            let rip = self.state.rip;
            if let Some(translator) = &mut self.translator {
                translator.forget_region(rip, user);
            }
        }
        page == gate.page
    }

    fn fetch_quietly(&mut self, linear: u64, user: bool) -> Option<u32> {
        let rights = if user {
            Rights::User
        } else {
            Rights::SupervisorAc
        };
        let found = self
            .mmu
            .resolve(&self.state, linear, Access::Execute, rights);
        match found {
            Ok(Target::Ram(_, page)) => Some(page),
            _ => None,
        }
    }
}
