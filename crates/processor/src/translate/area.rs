//! Memory for translated code, one area for each virtual processor.
//!
//! Code lies in a memory file that is mapped twice, once writable and once
//! executable. Behind the executable mapping, within reach of RIP-relative
//! operands, lies plain data: the slots through which code leaves a page. The
//! shadow stacks of host return addresses have an area of their own. Guard
//! pages surround everything.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::ptr::null_mut;

/// Bytes of code before everything is translated anew.
pub(super) const CODE_SIZE: usize = 32 << 20;
/// Bytes of slots.
const DATA_SIZE: usize = 4 << 20;
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
    stack: *mut u8,
    used: usize,
    slots: usize,
}

// SAFETY: the mappings belong to the process; the area is used by one thread
// at a time.
unsafe impl Send for Area {}

const RESERVED: usize = GUARD + CODE_SIZE + GUARD + DATA_SIZE + GUARD + 2 * STACK_SIZE + 2 * GUARD;

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
        let low = data.wrapping_add(DATA_SIZE + GUARD);
        let stack = low.wrapping_add(low.align_offset(1 << 16));
        let area = Self {
            reserved,
            writable: writable.ok()?.cast(),
            executable,
            data,
            stack,
            used: 0,
            slots: 0,
        };
        let fixed = MapFlags::FIXED;
        // SAFETY: all three lie within the reservation above, apart from each other.
        unsafe {
            let rights = ProtFlags::READ | ProtFlags::EXEC;
            let shared = MapFlags::SHARED | fixed;
            mmap(executable.cast(), CODE_SIZE, rights, shared, &file, 0).ok()?;
            let rights = ProtFlags::READ | ProtFlags::WRITE;
            mmap_anonymous(data.cast(), DATA_SIZE, rights, private | fixed).ok()?;
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
