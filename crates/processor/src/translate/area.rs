//! Memory for translated code, one area for each virtual processor.
//!
//! Code lies in a memory file that is mapped twice, once writable and once
//! executable. Behind the executable mapping, within reach of RIP-relative
//! operands, lies plain data: the slots through which code leaves a page, and
//! the cells of hot code with their logs. The shadow stacks of host return
//! addresses have an area of their own. Guard pages surround everything.

use super::cells::{CELLS, Cell};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::ptr::null_mut;

/// Bytes of code before everything is translated anew.
pub(super) const CODE_SIZE: usize = 32 << 20;
/// Bytes of slots.
const DATA_SIZE: usize = 4 << 20;
/// Bytes of cells, and of each of their two logs.
const CELLS_SIZE: usize = CELLS * size_of::<Cell>();
const LOG_SIZE: usize = CELLS * size_of::<u64>();
const GUARD: usize = 64 << 10;
/// A shadow stack, of which there is one for each privilege; its lowest 64 KiB
/// are never used (see [`Area::stack_low`]).
const STACK_SIZE: usize = 1 << 20;
/// Above the top of the shadow stack, so that looking above an empty one
/// finds zeros.
const STACK_HEAD: usize = 4096;

/// The mappings.
pub(super) struct Area {
    reserved: *mut c_void,
    writable: *mut u8,
    executable: *mut u8,
    data: *mut u8,
    cells: *mut Cell,
    logs: [*mut u64; 2],
    stack: *mut u8,
    used: usize,
    slots: usize,
    used_cells: usize,
}

// SAFETY: the mappings belong to the process; the area is used by one thread
// at a time.
unsafe impl Send for Area {}

const ALL_DATA: usize = DATA_SIZE + CELLS_SIZE + 2 * LOG_SIZE;
const RESERVED: usize = GUARD + CODE_SIZE + GUARD + ALL_DATA + GUARD + 2 * STACK_SIZE + 2 * GUARD;

impl Area {
    /// Maps a new area; `None` where the host allows no executable memory.
    pub(super) fn map() -> Option<Self> {
        let file = memfd_create("partita-translated", MemfdFlags::CLOEXEC).ok()?;
        ftruncate(&file, CODE_SIZE as u64).ok()?;
        let private = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: new mappings at addresses of the kernel's choice.
        let (reserved, writable) = unsafe {
            let reserved =
                mmap_anonymous(null_mut(), RESERVED, ProtFlags::empty(), private).ok()?;
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            let writable = mmap(null_mut(), CODE_SIZE, rights, MapFlags::SHARED, &file, 0);
            (reserved, writable)
        };
        let start = reserved.cast::<u8>();
        let executable = start.wrapping_add(GUARD);
        let data = executable.wrapping_add(CODE_SIZE + GUARD);
        // 64 KiB boundaries tell the lowest part of the stack by its address.
        let low = data.wrapping_add(ALL_DATA + GUARD);
        let cells = data.wrapping_add(DATA_SIZE);
        let log = cells.wrapping_add(CELLS_SIZE);
        let stack = low.wrapping_add(low.align_offset(1 << 16));
        let area = Self {
            reserved,
            writable: writable.ok()?.cast(),
            executable,
            data,
            cells: cells.cast(),
            logs: [log.cast(), log.wrapping_add(LOG_SIZE).cast()],
            stack,
            used: 0,
            slots: 0,
            used_cells: 0,
        };
        let fixed = MapFlags::FIXED;
        // SAFETY: all three lie within the reservation above, apart from each other.
        unsafe {
            let rights = ProtFlags::READ | ProtFlags::EXEC;
            let shared = MapFlags::SHARED | fixed;
            mmap(executable.cast(), CODE_SIZE, rights, shared, &file, 0).ok()?;
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            mmap_anonymous(data.cast(), ALL_DATA, rights, private | fixed).ok()?;
            mmap_anonymous(stack.cast(), 2 * STACK_SIZE, rights, private | fixed).ok()?;
        }
        Some(area)
    }

    /// Where the next code will lie.
    pub(super) fn next(&self) -> u64 {
        self.executable as u64 + self.used as u64
    }

    /// Bytes of code that still fit.
    pub(super) fn room(&self) -> usize {
        CODE_SIZE - self.used
    }

    /// Bytes of code placed so far.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Places code at [`Area::next`]; false when it does not fit.
    pub(super) fn place(&mut self, code: &[u8]) -> bool {
        if code.len() > self.room() {
            return false;
        }
        // SAFETY: the range lies within the mapping and holds no code yet.
        unsafe {
            let to = self.writable.add(self.used);
            std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len());
        }
        self.used = (self.used + code.len()).next_multiple_of(32).min(CODE_SIZE);
        true
    }

    /// Drops all code behind the first `keep` bytes, and all slots.
    pub(super) fn rewind(&mut self, keep: usize) {
        self.used = keep.min(self.used);
        self.slots = 0;
        self.used_cells = 0;
    }

    /// Makes the 4-byte displacement at `at` lead to `target`. The thread that
    /// runs the code is the one that calls this, from outside the code.
    pub(super) fn patch(&mut self, at: u64, target: u64) {
        let offset = at.wrapping_sub(self.executable as u64) as usize;
        if offset + 4 > self.used {
            return;
        }
        let displacement = target.wrapping_sub(at + 4) as u32;
        // SAFETY: within the code that was placed.
        unsafe {
            let to = self.writable.add(offset).cast::<u32>();
            to.write_unaligned(displacement);
        }
    }

    /// Makes code at `at`, whose first instruction has five bytes at least, lead
    /// to `target`. As for [`Area::patch`].
    pub(super) fn patch_jump(&mut self, at: u64, target: u64) {
        let offset = at.wrapping_sub(self.executable as u64) as usize;
        if offset + 5 > self.used {
            return;
        }
        // SAFETY: within the code that was placed.
        unsafe { self.writable.add(offset).write(0xe9) };
        self.patch(at + 1, target);
    }

    /// A new slot's address; `None` when there are no more.
    pub(super) fn slot(&mut self) -> Option<u64> {
        let offset = self.slots * 8;
        if offset + 8 > DATA_SIZE {
            return None;
        }
        self.slots += 1;
        Some(self.data as u64 + offset as u64)
    }

    /// Writes a slot.
    pub(super) fn set_slot(&mut self, slot: u64, value: u64) {
        let offset = slot.wrapping_sub(self.data as u64) as usize;
        if offset + 8 > self.slots * 8 || !offset.is_multiple_of(8) {
            return;
        }
        // SAFETY: a slot that was given out.
        unsafe { self.data.add(offset).cast::<u64>().write(value) };
    }

    /// A new cell's number; `None` when there are no more.
    pub(super) fn new_cell(&mut self, content: Cell) -> Option<u32> {
        let number = self.used_cells;
        if number >= CELLS {
            return None;
        }
        self.used_cells += 1;
        self.set_cell(number as u32, content);
        Some(number as u32)
    }

    /// Where a cell lies.
    pub(super) fn cell_address(&self, number: u32) -> u64 {
        self.cells as u64 + u64::from(number) * size_of::<Cell>() as u64
    }

    /// The number of the cell whose address has these low 32 bits.
    pub(super) fn cell_number(&self, low: u32) -> u32 {
        low.wrapping_sub(self.cells as u64 as u32) / size_of::<Cell>() as u32
    }

    /// Reads a cell.
    pub(super) fn cell(&self, number: u32) -> Option<Cell> {
        // SAFETY: a cell that was given out.
        ((number as usize) < self.used_cells)
            .then(|| unsafe { self.cells.add(number as usize).read() })
    }

    /// Writes a cell.
    pub(super) fn set_cell(&mut self, number: u32, content: Cell) {
        if (number as usize) < self.used_cells {
            // SAFETY: a cell that was given out.
            unsafe { self.cells.add(number as usize).write(content) };
        }
    }

    /// Where the log of supervisor's (0) or user's (1) cells starts. It has
    /// room for every cell.
    pub(super) fn log(&self, user: bool) -> *mut u64 {
        self.logs[usize::from(user)]
    }

    /// Notes a filled cell at the log's `end`; returns the new end.
    pub(super) fn log_push(&mut self, user: bool, end: *mut u64, place: u64) -> *mut u64 {
        let offset = (end as usize).wrapping_sub(self.log(user) as usize);
        if offset >= LOG_SIZE {
            return end;
        }
        // SAFETY: within the log.
        unsafe { self.log(user).byte_add(offset & !7).write(place) };
        end.wrapping_add(1)
    }

    /// Empties the cells that the log names up to `end`. Emitted code writes the
    /// log: what it holds is checked all the same.
    pub(super) fn empty_cells(&mut self, user: bool, end: *const u64, nothing: u64) {
        let start = self.log(user);
        let count = (end as usize).wrapping_sub(start as usize) / size_of::<u64>();
        for i in 0..count.min(CELLS) {
            // SAFETY: within the log.
            let address = unsafe { start.add(i).read() };
            let offset = address.wrapping_sub(self.cells as u64) as usize;
            let number = offset / size_of::<Cell>();
            if number < self.used_cells && offset.is_multiple_of(size_of::<Cell>()) {
                // SAFETY: a cell that was given out.
                let cell = unsafe { &mut *self.cells.add(number) };
                (cell.negated, cell.limit, cell.logged) = (nothing, 0, 0);
            }
        }
    }

    fn stack(&self, user: bool) -> *mut u8 {
        self.stack.wrapping_add(usize::from(user) * STACK_SIZE)
    }

    /// The top of a privilege's empty shadow stack.
    pub(super) fn stack_top(&self, user: bool) -> u64 {
        self.stack(user) as u64 + (STACK_SIZE - STACK_HEAD) as u64
    }

    /// What lies above empty shadow stacks: an entry that is never equal to a
    /// return address, and the code it leads to.
    pub(super) fn set_bottoms(&mut self, negated: u64, code: u64) {
        for user in [false, true] {
            // SAFETY: within the stack's mapping, above all entries.
            unsafe {
                let top = self.stack(user).add(STACK_SIZE - STACK_HEAD).cast::<u64>();
                top.write(code);
                top.add(1).write(negated);
            }
        }
    }

    /// Bits 31:16 of addresses in the lowest 64 KiB of a shadow stack: code
    /// that pushes there starts over at the top.
    pub(super) fn stack_low(&self, user: bool) -> u32 {
        (self.stack(user) as u64 >> 16) as u16 as u32
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mappings are this area's, and nobody runs its code: it
        // goes with its virtual processor.
        unsafe {
            let _ = munmap(self.reserved, RESERVED);
            let _ = munmap(self.writable.cast(), CODE_SIZE);
        }
    }
}
