//! Ways from one piece of code to another, and what they were made for.

/// Bits of a target that choose its entry for indirect jumps.
pub(super) const JUMP_MASK: u64 = ENTRIES as u64 - 1;
const ENTRIES: usize = 4096;

/// Where an indirect jump goes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Jump {
    negated_target: u64,
    code: u64,
}

impl Jump {
    /// Matches no target that looks here.
    fn none(index: usize) -> Self {
        Self {
            negated_target: (index as u64 ^ 1).wrapping_neg(),
            code: 0,
        }
    }
}

/// Targets of indirect jumps at one privilege.
pub(super) struct Jumps {
    entries: Box<[Jump]>,
    filled: Vec<u16>,
}

impl Jumps {
    pub(super) fn new() -> Self {
        Self {
            entries: (0..ENTRIES).map(Jump::none).collect(),
            filled: Vec::new(),
        }
    }

    pub(super) fn address(&self) -> u64 {
        self.entries.as_ptr() as u64
    }

    #[inline]
    pub(super) fn get(&self, target: u64) -> Option<u64> {
        let entry = &self.entries[(target & JUMP_MASK) as usize];
        (entry.negated_target == target.wrapping_neg()).then_some(entry.code)
    }

    pub(super) fn set(&mut self, target: u64, code: u64) {
        let index = (target & JUMP_MASK) as usize;
        self.entries[index] = Jump {
            negated_target: target.wrapping_neg(),
            code,
        };
        self.filled.push(index as u16);
        if self.filled.len() >= 4 * ENTRIES {
            self.filled.sort_unstable();
            self.filled.dedup();
        }
    }

    /// Drops the entries whose target `drops` chooses.
    pub(super) fn retain(&mut self, drops: impl Fn(u64) -> bool) {
        let entries = &mut self.entries;
        self.filled.retain(|&index| {
            let entry = &mut entries[usize::from(index)];
            let dropped = drops(entry.negated_target.wrapping_neg());
            if dropped {
                *entry = Jump::none(usize::from(index));
            }
            !dropped
        });
    }

    pub(super) fn clear(&mut self) {
        for index in self.filled.drain(..) {
            self.entries[usize::from(index)] = Jump::none(usize::from(index));
        }
    }
}

/// How a direct branch is led to its target once that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Within a page: the displacement of a jump, for good.
    Patch(u64),
    /// To another page: a slot, for as long as that page stays mapped. The
    /// second address is what it holds without a target.
    Slot(u64, u64),
    /// Into a region that runs on into the next page.
    Gate(Gate),
}

/// The way past the start of a region whose code lies in two pages: it is
/// open for as long as the second page stays mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    /// The slot.
    pub slot: u64,
    /// What it holds while the gate is shut.
    pub out: u64,
    /// The region's code.
    pub entry: u64,
    /// What lies behind the gate.
    pub body: u64,
    /// Linear address of the second page.
    pub second: u64,
    /// Its number in the code map.
    pub page: u32,
}

/// A direct branch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    /// The target's linear address.
    pub target: u64,
    /// User code.
    pub user: bool,
    /// How to lead it there.
    pub way: Way,
}

impl Edge {
    /// The address whose mapping the edge relies on.
    pub(super) fn relies_on(&self) -> u64 {
        match self.way {
            Way::Gate(gate) => gate.second,
            _ => self.target,
        }
    }

    /// Its slot, and what that holds without a target.
    pub(super) fn slot(&self) -> Option<(u64, u64)> {
        match self.way {
            Way::Patch(_) => None,
            Way::Slot(slot, out) => Some((slot, out)),
            Way::Gate(gate) => Some((gate.slot, gate.out)),
        }
    }
}
