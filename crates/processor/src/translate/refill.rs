//! What checks of hot code need of Rust: see [`super::checks`].

use super::cells::REVIEW;
use super::checks::{Check, Note};
use super::runtime::processor;
use super::tiers::Want;
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
        let Some(run) = self
            .mmu
            .fast
            .as_ref()
            .and_then(|fast| fast.run(table, linear, check.write))
        else {
            return false;
        };
        if last.wrapping_sub(run.start) >= run.length {
            return false;
        }
        let wanders = self.review(number);
        let Some(translator) = &mut self.translator else {
            return false;
        };
        let Some(mut cell) = translator.area.cell(number) else {
            return false;
        };
        let limit = run.length - u64::from(check.span);
        if wanders && limit <= cell.limit.max(4096 - u64::from(check.span)) {
            self.note(check, Note::Wanders);
            return false;
        }
        cell.negated = run.start.wrapping_neg();
        cell.limit = limit;
        cell.addend = run.addend;
        cell.countdown = REVIEW;
        if cell.logged == 0 {
            cell.logged = 1;
            let place = translator.area.cell_address(number);
            let end = &mut self.link.logs[usize::from(check.user)];
            *end = translator.area.log_push(check.user, *end, place);
        }
        translator.area.set_cell(number, cell);
        true
    }

    /// A cell has been filled often; true if in too short a time.
    fn review(&mut self, number: u32) -> bool {
        let Some(translator) = &mut self.translator else {
            return false;
        };
        let fills = translator
            .area
            .cell(number)
            .map_or(0, |cell| REVIEW - cell.countdown.min(REVIEW));
        let Some(check) = translator.numbered.checks.get_mut(number as usize) else {
            return false;
        };
        if fills < REVIEW {
            return false;
        }
        let now = now();
        let passed = now.wrapping_sub(std::mem::replace(&mut check.since, now));
        passed < u64::from(REVIEW) * FILL_PAYS
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
