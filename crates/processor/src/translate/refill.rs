//! What checks of hot code need of Rust: see [`super::checks`].

use super::cells::REVIEW;
use super::checks::{Check, Note};
use super::runtime::processor;
use super::tiers::Want;
use super::tlb::Run;
use super::units::Units;
use crate::Vp;
use std::arch::x86_64::_rdtsc;

/// Failures that leave the region before their frequency is looked at.
const FALLS: u32 = 32;
/// Time stamps between two failures that are worth it: one costs some
/// hundreds.
const FALL_PAYS: u64 = 10_000;
/// Time stamps between two fills that are worth it: one costs some forty, and
/// a loop has many places.
const FILL_PAYS: u64 = 300;
/// The same for fills from windows.
const WINDOW_PAYS: u64 = 1500;

/// A check has no translation in the table, or its cell wants to be looked
/// at. `low`: of the cell's address.
pub(super) unsafe extern "sysv64" fn refill(vp: *mut Vp, low: u64) -> u64 {
    // SAFETY: called by emitted code only, with the link's pointer.
    let vp = unsafe { processor(vp) };
    vp.come_outside();
    vp.refill_cell(low as u32)
}

/// A region has been entered often.
pub(super) unsafe extern "sysv64" fn promote(vp: *mut Vp, number: u64) -> u64 {
    // SAFETY: as in `refill`.
    let vp = unsafe { processor(vp) };
    vp.come_outside();
    if let Some(site) = vp.site(number) {
        vp.state.rip = site.start;
        vp.wish(Want::Hot);
    }
    0
}

fn now() -> u64 {
    // SAFETY: RDTSC has no preconditions.
    unsafe { _rdtsc() }
}

impl Vp {
    fn refill_cell(&mut self, low: u32) -> u64 {
        let Some(translator) = &self.translator else {
            return 0;
        };
        let number = translator.area.cell_number(low);
        let Some(&check) = translator.numbered.checks.get(number as usize) else {
            return 0;
        };
        if check.pointer != 0 {
            let at = check.start.wrapping_add(u64::from(check.pointer - 1));
            self.state.fpu.set_instruction_pointer(at);
        }
        let linear = self.linear_of(&check.address);
        if self.fill_cell(number, &check, linear) {
            self.go_on(
                check.held,
                check.retry,
                check.start.wrapping_add(check.before.offset.into()),
            )
        } else {
            self.fall(number, &check)
        }
    }

    /// Fills a cell with as many neighbouring pages as are known; false where
    /// the check cannot succeed.
    fn fill_cell(&mut self, number: u32, check: &Check, linear: u64) -> bool {
        let last = linear.wrapping_add(u64::from(check.span) - 1);
        let high = linear >> 63 != 0;
        if high == check.user || last >> 63 != linear >> 63 {
            // Cells hold no such addresses.
            self.note(check, Note::Wanders);
            return false;
        }
        let table = self.choose_table();
        for address in [linear, last] {
            let fast = self.mmu.fast.as_ref();
            if fast.is_some_and(|fast| fast.run(table, address, check.write).is_some()) {
                continue;
            }
            // No walk: it would mark the page as accessed or written, which
            // only the access itself may do.
            let known = self
                .mmu
                .cached(address)
                .is_some_and(|found| found.2 || !check.write);
            if !known
                || !self
                    .fill_fast_at(address, 1, check.write, 0)
                    .is_ok_and(|fits| fits)
            {
                return false;
            }
        }
        if !check.user && self.link.table != self.link.kernel_table {
            return false;
        }
        let known = self
            .mmu
            .fast
            .as_ref()
            .and_then(|fast| fast.run(table, linear, check.write));
        let Some(mut run) = known else {
            return false;
        };
        let windowed = check.windowed.is_some();
        let mut wanders = !windowed && self.review(number, check, &run);
        let holds = |run: &Run| last.wrapping_sub(run.start) < run.length;
        if wanders || windowed || !holds(&run) {
            let found = self.window_run(table, linear, check.write);
            match found.filter(|found| found.length > run.length || windowed) {
                Some(found) => {
                    run = found;
                    wanders = self.review_window(number);
                }
                None => self.leave_windows(number),
            }
        }
        if !holds(&run) {
            return false;
        }
        if wanders {
            self.note(check, Note::Wanders);
            return false;
        }
        self.set_run(number, check, &run);
        true
    }

    fn set_run(&mut self, number: u32, check: &Check, run: &Run) {
        let Some(translator) = &mut self.translator else {
            return;
        };
        let Some(mut cell) = translator.area.cell(number) else {
            return;
        };
        let known = translator.numbered.checks.get(number as usize);
        cell.negated = run.start.wrapping_neg();
        cell.limit = run.length - u64::from(check.span);
        cell.addend = run.addend;
        // Where runs of the table are too short, that is not tried again.
        let windowed = known.is_some_and(|known| known.windowed.is_some());
        cell.countdown = if windowed { 1 } else { REVIEW };
        if cell.logged == 0 {
            cell.logged = 1;
            let place = translator.area.cell_address(number);
            let end = &mut self.link.logs[usize::from(check.user)];
            *end = translator.area.log_push(check.user, *end, place);
        }
        translator.area.set_cell(number, cell);
    }

    /// A cell gets a run of a window; true if too often.
    fn review_window(&mut self, number: u32) -> bool {
        let Some(translator) = &mut self.translator else {
            return false;
        };
        let Some(check) = translator.numbered.checks.get_mut(number as usize) else {
            return false;
        };
        let Some(left) = &mut check.windowed else {
            check.windowed = Some(REVIEW);
            check.since = now();
            return false;
        };
        *left -= 1;
        if *left > 0 {
            return false;
        }
        *left = REVIEW;
        let now = now();
        let passed = now.wrapping_sub(std::mem::replace(&mut check.since, now));
        passed < u64::from(REVIEW) * WINDOW_PAYS
    }

    /// A check gets runs of the table again.
    fn leave_windows(&mut self, number: u32) {
        if let Some(translator) = &mut self.translator
            && let Some(check) = translator.numbered.checks.get_mut(number as usize)
        {
            check.windowed = None;
        }
    }

    /// A cell has been filled often; true if in too short a time, and the run
    /// is no better than what it had.
    fn review(&mut self, number: u32, check: &Check, run: &Run) -> bool {
        let Some(translator) = &mut self.translator else {
            return false;
        };
        let Some(cell) = translator.area.cell(number) else {
            return false;
        };
        let Some(known) = translator.numbered.checks.get_mut(number as usize) else {
            return false;
        };
        if cell.countdown > 0 {
            return false;
        }
        let now = now();
        let passed = now.wrapping_sub(std::mem::replace(&mut known.since, now));
        let span = u64::from(check.span);
        let better = run.length.saturating_sub(span) > cell.limit.max(4096 - span);
        passed < u64::from(REVIEW) * FILL_PAYS && !better
    }

    /// Goes on with the plain code.
    fn fall(&mut self, number: u32, check: &Check) -> u64 {
        self.state.rip = check.start.wrapping_add(check.before.offset.into());
        if let Some(translator) = &mut self.translator
            && let Some(mut cell) = translator.area.cell(number)
            && let Some(known) = translator.numbered.checks.get_mut(number as usize)
        {
            cell.countdown = REVIEW;
            (cell.negated, cell.limit) = (self.link.no_stack_page, 0);
            translator.area.set_cell(number, cell);
            known.falls += 1;
            if known.falls >= FALLS {
                known.falls = 0;
                let now = now();
                let passed = now.wrapping_sub(std::mem::replace(&mut known.since, now));
                if passed < u64::from(FALLS) * FALL_PAYS {
                    let note = if check.span > check.own {
                        Note::Alone
                    } else {
                        Note::Wanders
                    };
                    self.note(check, note);
                }
            }
        }
        let settled = self.translator.as_ref().is_some_and(|t| t.again.is_none());
        if settled && let Some(code) = self.plain_code() {
            return self.go_on(Units::NONE, code, self.state.rip);
        }
        self.wish(Want::Plain);
        0
    }
}
