//! Memory for emitted code: one memfd, mapped once writable and once
//! executable, so that no mapping is ever both.

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::collections::HashMap;
use std::ptr::null_mut;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Bytes reserved; pages are taken when first written. All forms together
/// need under half of it (a test emits them all).
const SIZE: usize = 16 << 20;

/// The code area of this process. It lives as long as the process does.
struct Area {
    writable: *mut u8,
    executable: *const u8,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    used: usize,
    stubs: HashMap<u32, u32>,
}

// SAFETY: `writable` is written only under the lock of `inner`, and only where
// no stub has been given out yet; `executable` is never written through.
unsafe impl Sync for Area {}
// SAFETY: the mappings belong to the process, not to a thread.
unsafe impl Send for Area {}

static AREA: LazyLock<Option<Area>> = LazyLock::new(Area::map);

impl Area {
    fn map() -> Option<Self> {
        let file = memfd_create("partita-code", MemfdFlags::CLOEXEC).ok()?;
        ftruncate(&file, SIZE as u64).ok()?;
        // SAFETY: new mappings at addresses of the kernel's choice.
        let writable = unsafe {
            mmap(
                null_mut(),
                SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        // SAFETY: as above.
        let executable = unsafe {
            mmap(
                null_mut(),
                SIZE,
                ProtFlags::READ | ProtFlags::EXEC,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        let (writable, executable) = (writable.ok()?.cast(), executable.ok()?.cast::<u8>());
        Some(Self {
            writable,
            executable: executable.cast_const(),
            inner: Mutex::default(),
        })
    }

    fn place(&self, inner: &mut Inner, code: &[u8]) -> Option<u32> {
        let start = inner.used;
        let end = start.checked_add(code.len())?;
        if end > SIZE {
            return None;
        }
        // SAFETY: `start..end` lies within the mapping and in no stub yet.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(start), code.len());
        }
        inner.used = end.next_multiple_of(16);
        Some(start as u32)
    }
}

/// The executable mapping; null if the host allows none.
pub(super) fn base() -> *const u8 {
    AREA.as_ref()
        .map_or(std::ptr::null(), |area| area.executable)
}

/// The stub under `key`, emitted with `code` if it is new. `None` if `code`
/// gives none or there is no code area.
pub(super) fn stub(key: u32, code: impl FnOnce() -> Option<Vec<u8>>) -> Option<u32> {
    let area = AREA.as_ref()?;
    let mut inner = area.inner.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&stub) = inner.stubs.get(&key) {
        return Some(stub);
    }
    let stub = area.place(&mut inner, &code()?)?;
    inner.stubs.insert(key, stub);
    Some(stub)
}

/// Bytes of code so far, and stubs of legacy forms.
#[cfg(test)]
pub(crate) fn usage() -> (usize, usize) {
    AREA.as_ref().map_or((0, 0), |area| {
        let inner = area.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let legacy = inner.stubs.keys().filter(|&&key| key >> 31 == 0).count();
        (inner.used, legacy)
    })
}
