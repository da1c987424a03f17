//! The translations that emitted code looks at.
//!
//! A table has an entry for loads and one for stores per slot; an entry holds
//! the negated linear page and what must be added to a linear address to get
//! the host's. `address - page <= 4096 - size` (unsigned) is then the whole
//! check: right page, and the access does not leave it.
//!
//! There is one table for each kind of supervisor rights, whose lower half of
//! the address space is dropped when the address space changes, and one for
//! user code in each of the last few address spaces.
//!
//! An entry for stores exists only while no code of its page is cached: a
//! store to such a page takes the slow path, which tells the code map.

/// Slots of a table.
pub(super) const SLOTS: usize = 4096;
/// Bytes from a slot's entry for loads to the one for stores.
pub(super) const STORES: i32 = (SLOTS * size_of::<Entry>()) as i32;
/// Bits of an address that choose the slot.
pub(super) const INDEX_MASK: u64 = (SLOTS as u64 - 1) << 12;
/// Address spaces of user code that are kept.
const USER_TABLES: usize = 12;
const SUPERVISOR_TABLES: usize = 2;
/// More filled slots than this are not counted one by one.
const MOST_COUNTED: usize = 1024;
/// [`FastTlb::writers`]: no entry for stores, none but in cells, and more than
/// one.
const NONE: u32 = 0;
const CELLS: u32 = u32::MAX - 1;
const MANY: u32 = u32::MAX;

/// One translation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Entry {
    negated_page: u64,
    addend: u64,
}

impl Entry {
    /// An entry that no access to this slot matches: its page belongs to
    /// another slot, and not to the next one, which an access may run into.
    fn none(slot: usize) -> Self {
        let page = ((slot ^ (SLOTS / 2)) << 12) as u64;
        Self {
            negated_page: page.wrapping_neg(),
            addend: 0,
        }
    }
}

struct Table {
    entries: Box<[Entry]>,
    /// The address space, for user tables; 0 for none.
    space: u64,
    /// Slots filled since the table was emptied (supervisor: in the lower
    /// half), unless there are too many.
    filled: Vec<u16>,
    /// Pieces of large pages are in the table, per half.
    large: [bool; 2],
    used: u64,
}

impl Table {
    fn new() -> Self {
        let entries = (0..2 * SLOTS).map(|i| Entry::none(i % SLOTS)).collect();
        Self {
            entries,
            space: 0,
            filled: Vec::with_capacity(MOST_COUNTED),
            large: [false; 2],
            used: 0,
        }
    }

    fn drop_slot(&mut self, slot: usize) {
        self.entries[slot] = Entry::none(slot);
        self.entries[SLOTS + slot] = Entry::none(slot);
    }

    fn clear(&mut self) {
        for slot in 0..SLOTS {
            self.drop_slot(slot);
        }
        self.filled.clear();
        self.large = [false; 2];
    }

    /// Drops the slots that were counted, or all.
    fn clear_filled(&mut self) {
        if self.filled.len() >= MOST_COUNTED {
            self.clear();
            return;
        }
        while let Some(slot) = self.filled.pop() {
            self.drop_slot(usize::from(slot));
        }
        self.large[0] = false;
    }
}

/// What is to be entered.
pub(crate) struct Filling {
    /// The linear address.
    pub linear: u64,
    /// The page in this process.
    pub host: *mut u8,
    /// Its number in the code map.
    pub page: u32,
    /// Stores are allowed.
    pub write: bool,
    /// Part of a large page.
    pub large: bool,
}

/// All tables of a virtual processor.
pub(crate) struct FastTlb {
    tables: Vec<Table>,
    /// Where the entry for stores of each page of memory lies, plus one;
    /// [`NONE`], or [`MANY`] when there may be several. What is no longer there
    /// may still be noted.
    writers: Vec<u32>,
    clock: u64,
    /// The address space that was last asked for, and its table.
    recent: Option<(u64, usize)>,
    /// Moves on whenever an entry may have been dropped.
    pub(super) version: u64,
    /// What places of supervisor's (0) and user's (1) code remember must be
    /// dropped.
    pub(super) dropped: [bool; 2],
}

/// Neighbouring pages that are neighbours in this process as well.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// The linear address of the first one.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Leads to the host's addresses.
    pub addend: u64,
}

/// Pages that a run reaches at most on each side of an address.
const MOST_NEIGHBOURS: u64 = 64;

impl FastTlb {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            tables: (0..SUPERVISOR_TABLES + USER_TABLES)
                .map(|_| Table::new())
                .collect(),
            writers: vec![NONE; pages],
            clock: 0,
            recent: None,
            version: 0,
            dropped: [false; 2],
        }
    }

    /// The table for data set `set` (0 user, 1 and 2 supervisor) in the given
    /// address space.
    pub(crate) fn choose(&mut self, set: usize, space: u64) -> usize {
        if set != 0 {
            return Self::supervisor_table(set);
        }
        if let Some((recent, table)) = self.recent
            && recent == space
        {
            return table;
        }
        self.clock += 1;
        let clock = self.clock;
        let users = SUPERVISOR_TABLES..self.tables.len();
        let found = users.clone().find(|&i| self.tables[i].space == space);
        let number = found.unwrap_or_else(|| {
            let oldest = users
                .min_by_key(|&i| self.tables[i].used)
                .unwrap_or(SUPERVISOR_TABLES);
            let table = &mut self.tables[oldest];
            table.clear_filled();
            table.space = space;
            oldest
        });
        self.tables[number].used = clock;
        self.recent = Some((space, number));
        number
    }

    /// The table for a supervisor's data set.
    pub(super) fn supervisor_table(set: usize) -> usize {
        set.wrapping_sub(1) & 1
    }

    /// Where a table lies.
    pub(crate) fn address(&self, table: usize) -> u64 {
        self.tables[table].entries.as_ptr() as u64
    }

    /// Enters a translation.
    pub(crate) fn fill(&mut self, number: usize, filling: &Filling) {
        let linear = filling.linear & !0xfff;
        let slot = (linear >> 12) as usize & (SLOTS - 1);
        let entry = Entry {
            negated_page: linear.wrapping_neg(),
            addend: (filling.host as u64).wrapping_sub(linear),
        };
        let table = &mut self.tables[number];
        let high = linear >> 63 != 0;
        if (number >= SUPERVISOR_TABLES || !high) && table.filled.len() < MOST_COUNTED {
            table.filled.push(slot as u16);
        }
        table.large[usize::from(high)] |= filling.large;
        table.entries[slot] = entry;
        table.entries[SLOTS + slot] = if filling.write {
            entry
        } else {
            Entry::none(slot)
        };
        if filling.write
            && let Some(writer) = self.writers.get_mut(filling.page as usize)
        {
            let place = (number * SLOTS + slot) as u32 + 1;
            *writer = if matches!(*writer, NONE | CELLS) || *writer == place {
                place
            } else {
                MANY
            };
        }
    }

    /// Where the table says that a page (given by its address) is in this
    /// process.
    pub(super) fn host(&self, number: usize, page: u64, write: bool) -> Option<u64> {
        let half = if write { SLOTS } else { 0 };
        let entries = &self.tables.get(number)?.entries;
        let entry = entries[half + ((page >> 12) as usize & (SLOTS - 1))];
        (entry.negated_page == page.wrapping_neg()).then_some(page.wrapping_add(entry.addend))
    }

    /// Cells may let code store to these pages, whatever tables have.
    pub(super) fn note_writers(&mut self, first: u32, count: u32) {
        let range = first as usize..first as usize + count as usize;
        for writer in self.writers.get_mut(range).into_iter().flatten() {
            if *writer == NONE {
                *writer = CELLS;
            }
        }
    }

    /// The run around an address, of what the table has now. `None` if it
    /// has not even that page.
    pub(super) fn run(&self, number: usize, linear: u64, write: bool) -> Option<Run> {
        let half = if write { SLOTS } else { 0 };
        let entries = &self.tables.get(number)?.entries;
        let of = |page: u64| {
            let entry = entries[half + ((page >> 12) as usize & (SLOTS - 1))];
            (entry.negated_page == page.wrapping_neg()).then_some(entry.addend)
        };
        let mut start = linear & !0xfff;
        let addend = of(start)?;
        let mut end = start;
        for _ in 0..MOST_NEIGHBOURS {
            let next = end.wrapping_add(0x1000);
            if (next ^ linear) >> 63 != 0 || of(next) != Some(addend) {
                break;
            }
            end = next;
        }
        for _ in 0..MOST_NEIGHBOURS {
            let before = start.wrapping_sub(0x1000);
            if (before ^ linear) >> 63 != 0 || of(before) != Some(addend) {
                break;
            }
            start = before;
        }
        Some(Run {
            start,
            length: end.wrapping_sub(start).wrapping_add(0x1000),
            addend,
        })
    }

    /// Code of a page is about to be cached: drops its entries for stores.
    /// `host` is the page in this process.
    pub(crate) fn protect(&mut self, page: u32, host: *mut u8) {
        let Some(writer) = self.writers.get_mut(page as usize) else {
            return;
        };
        if *writer == NONE {
            return;
        }
        self.version += 1;
        self.dropped = [true; 2];
        match std::mem::replace(writer, NONE) {
            NONE | CELLS => {}
            MANY => self.protect_all(host),
            place => {
                let place = place as usize - 1;
                let (number, slot) = (place / SLOTS, place % SLOTS);
                self.tables[number].entries[SLOTS + slot] = Entry::none(slot);
            }
        }
    }

    fn protect_all(&mut self, host: *mut u8) {
        let filled = |table: &&mut Table| table.space != 0;
        let (supervisor, user) = self.tables.split_at_mut(SUPERVISOR_TABLES);
        for table in supervisor.iter_mut().chain(user.iter_mut().filter(filled)) {
            for (slot, entry) in table.entries[SLOTS..].iter_mut().enumerate() {
                let linear = entry.negated_page.wrapping_neg();
                if linear.wrapping_add(entry.addend) == host as u64 {
                    *entry = Entry::none(slot);
                }
            }
        }
    }

    /// The lower half means another address space now, the upper one too
    /// where `high`.
    pub(crate) fn switch(&mut self, high: bool) {
        self.version += 1;
        self.dropped[1] = true;
        self.dropped[0] |= high;
        for table in &mut self.tables[..SUPERVISOR_TABLES] {
            if high {
                table.clear();
            } else {
                table.clear_filled();
            }
        }
    }

    /// Drops one page in every table, or a whole `large` one.
    pub(crate) fn flush_page(&mut self, linear: u64, large: bool) {
        self.version += 1;
        let slot = (linear >> 12) as usize & (SLOTS - 1);
        let half = (linear >> 63) as usize;
        self.dropped[1 - half] = true;
        for table in &mut self.tables {
            if large && table.large[half] {
                table.clear();
            } else {
                table.drop_slot(slot);
            }
        }
    }

    /// Drops everything; address spaces get new numbers.
    pub(crate) fn flush_all(&mut self) {
        self.version += 1;
        self.dropped = [true; 2];
        self.recent = None;
        for (number, table) in self.tables.iter_mut().enumerate() {
            if number < SUPERVISOR_TABLES {
                table.clear();
            } else if table.space != 0 {
                table.clear_filled();
                table.space = 0;
            }
        }
    }
}
