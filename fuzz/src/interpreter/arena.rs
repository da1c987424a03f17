//! Guest memory whose every page has an inaccessible page on either side, so
//! that an access that leaves its page, by a byte or by a bad pointer, is a
//! crash of the target.

use processor::{GuestSpace, HostPage};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect};
use std::ptr::null_mut;
use std::sync::OnceLock;

/// Pages of memory.
pub const PAGES: usize = 64;
/// A page that the guest cannot write; nor can this process, but to set it up.
pub const READ_ONLY_PAGE: usize = 62;
/// A page that the guest cannot run code from.
pub const NO_EXECUTE_PAGE: usize = 63;
/// Guest page number from which pages 0 to 3 are seen a second time.
pub const ALIAS: u64 = 0xe0;

const PAGE: usize = 4096;

/// The memory. There is one for the process.
#[derive(Clone, Copy, Debug)]
pub struct Arena(*mut u8);

// SAFETY: the pointer is to a mapping of the whole process.
unsafe impl Send for Arena {}
// SAFETY: as above; accesses are by the one thread that fuzzes.
unsafe impl Sync for Arena {}

static ARENA: OnceLock<Arena> = OnceLock::new();

impl Arena {
    /// The process's arena.
    pub fn get() -> Self {
        *ARENA.get_or_init(Self::map)
    }

    fn map() -> Self {
        let length = (2 * PAGES + 1) * PAGE;
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe {
            mmap_anonymous(null_mut(), length, ProtFlags::empty(), MapFlags::PRIVATE)
                .expect("address space for the arena")
        };
        let arena = Self(base.cast());
        for page in 0..PAGES {
            arena.protect(page, MprotectFlags::READ | MprotectFlags::WRITE);
        }
        // All NOPs, which is valid code and valid data.
        arena.write(READ_ONLY_PAGE * PAGE, &[0x90; PAGE]);
        arena.protect(READ_ONLY_PAGE, MprotectFlags::READ);
        arena
    }

    /// Page `page` in this process.
    fn page(self, page: usize) -> *mut u8 {
        assert!(page < PAGES);
        self.0.wrapping_add((2 * page + 1) * PAGE)
    }

    fn protect(self, page: usize, flags: MprotectFlags) {
        // SAFETY: pages of the arena's own mapping, to which no reference exists.
        unsafe { mprotect(self.page(page).cast(), PAGE, flags).expect("protection of the arena") }
    }

    /// Writes within one page, unless that is [`READ_ONLY_PAGE`].
    pub fn write(self, at: usize, bytes: &[u8]) {
        let (page, offset) = (at / PAGE % PAGES, at % PAGE);
        let length = bytes.len().min(PAGE - offset);
        let to = self.page(page).wrapping_add(offset);
        if page == READ_ONLY_PAGE && bytes != [0x90; PAGE] {
            return;
        }
        // SAFETY: within one page of the arena, which is writable.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, length) };
    }

    /// The words of a page.
    pub fn words(self, page: usize) -> [u64; PAGE / 8] {
        // SAFETY: a whole page of the arena, which can be read.
        unsafe { self.page(page).cast::<[u64; PAGE / 8]>().read() }
    }

    /// Sets all of memory but [`READ_ONLY_PAGE`].
    pub fn fill(self, image: &[[u8; PAGE]; PAGES]) {
        for (page, bytes) in image.iter().enumerate() {
            if page != READ_ONLY_PAGE {
                // SAFETY: a whole writable page of the arena.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.page(page), PAGE) };
            }
        }
    }
}

// SAFETY: pages below `PAGES` are mapped for as long as the process runs, and
// writable where it is said so.
unsafe impl GuestSpace for Arena {
    fn page(&mut self, page: u64) -> Option<HostPage> {
        let page = match page {
            0..64 => page as usize,
            ALIAS..0xe4 => (page - ALIAS) as usize,
            _ => return None,
        };
        Some(HostPage {
            pointer: Arena::page(*self, page),
            index: page as u32,
            writable: page != READ_ONLY_PAGE,
            executable: page != NO_EXECUTE_PAGE,
        })
    }

    fn refresh(&mut self) {}
}
