//! Paging: exact page faults, page sizes, accessed and dirty bits, protections, invalidation.
#![no_std]
#![no_main]

mod bits;
mod errors;
mod flush;
mod legacy;
mod protection;

use guest_kit::memory::{self, Tables, pte};
use guest_kit::trap::{self, Fault};
use guest_kit::{cpu, guest, insn, user};

guest!(
    "paging",
    errors::not_present,
    errors::read_only,
    errors::user_access,
    errors::no_execute,
    errors::reserved_bits,
    errors::read_modify_write,
    errors::straddling,
    errors::stack_and_strings,
    bits::accessed_and_dirty,
    bits::upper_levels,
    bits::large_pages,
    flush::invlpg,
    flush::address_space_switch,
    flush::global_pages,
    flush::identifiers,
    flush::invalidate_by_identifier,
    protection::write_protect,
    protection::execution_prevention,
    protection::access_prevention,
    protection::no_execute_disabled,
    legacy::two_levels,
    legacy::three_levels,
);

/// Where the tests map their pages: a top-level slot of its own.
pub(crate) const WINDOW: u64 = 0x100_0000_0000;
/// Page-fault error bits.
pub(crate) mod error {
    pub const P: u64 = 1;
    pub const W: u64 = 2;
    pub const U: u64 = 4;
    pub const RSVD: u64 = 8;
    pub const I: u64 = 16;
}

/// New tables in use while `code` runs.
pub(crate) fn with_tables(code: impl FnOnce(&Tables)) {
    let tables = Tables::sharing_identity();
    tables.load();
    code(&tables);
    Tables::boot().load();
}

/// A page with code that returns at offset 0, mapped with these bits at the window.
pub(crate) fn window(tables: &Tables, bits: u64) -> u64 {
    let page = memory::page();
    memory::write8(page, 0xc3);
    tables.map(WINDOW, page, bits, 1);
    cpu::invlpg(WINDOW);
    page
}

/// The kinds of access.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    Read,
    Write,
    Fetch,
}

pub(crate) const ALL: [Access; 3] = [Access::Read, Access::Write, Access::Fetch];

impl Access {
    /// The error bits that the access itself gives.
    pub(crate) fn error(self) -> u64 {
        match self {
            Access::Read => 0,
            Access::Write => error::W,
            Access::Fetch => error::I,
        }
    }

    fn perform(self, address: u64) {
        match self {
            Access::Read => {
                memory::read64(address);
            }
            Access::Write => memory::write64(address, 0xc3),
            Access::Fetch => insn!("call {}", in(reg) address),
        }
    }

    /// Does it at privilege level 0.
    pub(crate) fn kernel(self, address: u64) -> Outcome {
        outcome(trap::attempt(|| self.perform(address)))
    }

    /// Does it at privilege level 3.
    pub(crate) fn user(self, address: u64) -> Outcome {
        outcome(
            user::call(|| {
                self.perform(address);
                0
            })
            .map(|_| ()),
        )
    }
}

/// Vector, error code and CR2 of a fault.
pub(crate) type Outcome = Result<(), (u8, u64, u64)>;

pub(crate) fn outcome(result: Result<(), Fault>) -> Outcome {
    result.map_err(|fault| (fault.vector, fault.error, fault.cr2))
}

/// The outcome of a page fault.
pub(crate) fn page_fault(error: u64, address: u64) -> Outcome {
    Err((trap::vector::PF, error, address))
}

pub(crate) const RW: u64 = pte::P | pte::W;
pub(crate) const RWU: u64 = pte::P | pte::W | pte::U;
