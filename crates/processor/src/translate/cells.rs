//! Translations that belong to single places of hot code.
//!
//! A place in hot code mostly goes on with the page that it used last. Its cell
//! holds that page, or the run of pages around it that are neighbours in the
//! host's memory as well: a comparison replaces the look at the table, and the
//! host's address does not wait for a table. Cells lie beside the code, and
//! are emptied through two logs (supervisor's and user's code) of those that
//! are filled.
//!
//! User code's cells hold only addresses of the lower half, supervisor code's
//! only of the upper half, and only what may be used without the rights to user
//! pages. So a change of the lower half empties the log of user code, and
//! supervisor code may change these rights as it likes.

use std::mem::offset_of;

/// Cells of one processor.
pub(super) const CELLS: usize = 1 << 17;
/// Fills between two looks at whether a place stays in its pages.
pub(super) const REVIEW: u32 = 16;

/// One place's translation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Cell {
    /// The negated linear address of the run.
    pub negated: u64,
    /// Offsets in the run up to this one fit.
    pub limit: u64,
    /// Leads from linear addresses to the host's. Valid whenever the place
    /// has just been passed, even if the rest is not filled.
    pub addend: u64,
    /// The same limit within a single page.
    pub page_limit: u16,
    /// Padding.
    pub reserved: u8,
    /// It is in the log.
    pub logged: u8,
    /// Fills until [`super::runtime::refill`] looks at it.
    pub countdown: u32,
}

pub(super) const LIMIT: u64 = offset_of!(Cell, limit) as u64;
pub(super) const ADDEND: u64 = offset_of!(Cell, addend) as u64;
pub(super) const PAGE_LIMIT: i32 = offset_of!(Cell, page_limit) as i32;
pub(super) const LOGGED: i32 = offset_of!(Cell, logged) as i32;
pub(super) const COUNTDOWN: i32 = offset_of!(Cell, countdown) as i32;

impl Cell {
    /// A cell for accesses to `span` bytes (at most 4096). Nothing matches
    /// `nothing`, a negated address, but what no guest can know.
    pub(super) fn empty(span: u32, nothing: u64) -> Self {
        Self {
            negated: nothing,
            limit: 0,
            addend: 0,
            page_limit: 4096u32.saturating_sub(span) as u16,
            reserved: 0,
            logged: 0,
            countdown: REVIEW,
        }
    }
}
