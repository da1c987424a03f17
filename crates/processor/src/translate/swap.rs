//! Loops with registers of their own.
//!
//! Four guest registers live in memory. In a hot loop that uses one of them more
//! than another, the two change places for as long as the loop runs: behind the
//! region's entry, up to its last branch back to its start. Whatever leaves the
//! region from there first puts them back, and whatever comes back from Rust
//! exchanges them again.

use super::emit::{Cold, Emitter};
use super::flow::Item;
use super::layout::{PLACES, register};
use crate::state::reg;

/// Guest registers whose host register another one may use. The others are
/// operands that instructions imply.
const YIELDING: [usize; 8] = [reg::RBX, reg::RBP, reg::RSI, reg::RDI, 8, 12, 14, 15];

/// A guest register that gets the host register of another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Swap {
    comes: usize,
    goes: usize,
    host: u8,
}

/// What is exchanged in a region, and whether it is now.
#[derive(Default)]
pub(super) struct Swaps {
    swaps: Vec<Swap>,
    pub now: bool,
    /// Sites that Rust comes back to while registers are exchanged.
    sites: Vec<u32>,
    checks: Vec<u32>,
}

/// The exchanges that pay for these numbers of uses.
fn choose(uses: &[u32; 16]) -> Vec<Swap> {
    let mut coming: Vec<usize> = (0..16)
        .filter(|&n| PLACES[n].is_none() && uses[n] > 0)
        .collect();
    coming.sort_by_key(|&n| std::cmp::Reverse(uses[n]));
    let mut going = YIELDING.to_vec();
    going.sort_by_key(|&n| uses[n]);
    coming
        .into_iter()
        .zip(going)
        .filter(|&(comes, goes)| uses[comes] > uses[goes])
        .filter_map(|(comes, goes)| {
            Some(Swap {
                comes,
                goes,
                host: PLACES[goes]?,
            })
        })
        .collect()
}

impl Swaps {
    /// Sites from this number on are undone.
    pub(super) fn forget_sites(&mut self, first: usize) {
        self.sites.retain(|&number| (number as usize) < first);
    }
}

impl Emitter<'_> {
    /// The host register of a guest register; `None` if it is in memory.
    #[inline]
    pub(super) fn place(&self, guest: usize) -> Option<u8> {
        if self.swaps.now {
            for swap in &self.swaps.swaps {
                if swap.comes == guest {
                    return Some(swap.host);
                }
                if swap.goes == guest {
                    return None;
                }
            }
        }
        PLACES[guest & 15]
    }

    /// Exchanges registers for the loop that the first items of the region are.
    pub(super) fn begin_swaps(&mut self, items: &[Item]) {
        let mut uses = [0u32; 16];
        for item in items {
            for used in self.info.info(&item.instruction).used_registers() {
                let register = used.register().full_register();
                if register.is_gpr64() {
                    uses[register.number()] += 1;
                }
            }
        }
        self.swaps.swaps = choose(&uses);
        if !self.swaps.swaps.is_empty() {
            self.swap();
            self.swaps.now = true;
        }
    }

    /// The loop is over: everything is in its usual place behind this.
    pub(super) fn end_swaps(&mut self) {
        self.put_back();
        self.swaps.now = false;
    }

    /// Runs `emission` for code that is only reached with everything put back.
    pub(super) fn while_put_back<T>(&mut self, emission: impl FnOnce(&mut Self) -> T) -> T {
        self.put_back();
        let now = std::mem::replace(&mut self.swaps.now, false);
        let result = emission(self);
        self.swaps.now = now;
        result
    }

    fn swap(&mut self) {
        for swap in &self.swaps.swaps {
            self.asm.store(register(swap.goes), swap.host);
            self.asm.load(swap.host, register(swap.comes));
        }
    }

    /// Puts exchanged registers back, if they are exchanged now. Flags and
    /// scratch registers stay.
    pub(super) fn put_back(&mut self) {
        if self.swaps.now {
            for swap in &self.swaps.swaps {
                self.asm.store(register(swap.comes), swap.host);
                self.asm.load(swap.host, register(swap.goes));
            }
        }
    }

    /// Rust comes back to this site or check; see [`Emitter::finish_swaps`].
    pub(super) fn note_return(&mut self, site: Option<u32>, check: Option<u32>) {
        if self.swaps.now {
            self.swaps.sites.extend(site);
            self.swaps.checks.extend(check);
        }
    }

    /// Emits the ways back from Rust into the loop.
    pub(super) fn finish_swaps(&mut self) {
        for number in std::mem::take(&mut self.swaps.sites) {
            let site = self.context.numbered.sites[number as usize];
            let retry = self.way_back(site.retry);
            let resume = self.way_back(site.resume);
            let site = &mut self.context.numbered.sites[number as usize];
            (site.retry, site.resume) = (retry, resume);
        }
        for number in std::mem::take(&mut self.swaps.checks) {
            let retry = self.context.numbered.checks[number as usize].retry;
            let retry = self.way_back(retry);
            self.context.numbered.checks[number as usize].retry = retry;
        }
    }

    fn way_back(&mut self, to: u64) -> u64 {
        if to == 0 {
            return 0;
        }
        let here = self.asm.here();
        self.swap();
        self.asm.jump_to(to);
        here
    }

    /// Code out of the way, with the registers as they are now.
    pub(super) fn push_cold(&mut self, cold: Cold) {
        self.cold.push((self.swaps.now, cold));
    }
}
