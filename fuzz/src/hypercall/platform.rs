//! Memory, and a clock that is set by hand.

use hypervisor::{BadSpa, Platform, RootNotification};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tlfs::{HvPartitionId, HvVpIndex};

/// Pages of memory.
pub(super) const PAGES: usize = 512;
const PAGE: usize = 4096;
/// Waits for other threads, of which there are none.
const MOST_WAITS: u64 = 10_000;

/// The memory, with what was written since it was all 0.
struct Memory {
    bytes: Vec<u8>,
    dirty: Vec<bool>,
}

/// Memory that the last input left behind: to clean it is quicker than new.
static SPARE: Mutex<Option<Memory>> = Mutex::new(None);

/// The machine under the hypervisor.
pub(super) struct FakePlatform {
    memory: Mutex<Memory>,
    tsc: AtomicU64,
    waits: AtomicU64,
    posted: AtomicU64,
}

impl FakePlatform {
    /// Memory of zeros, some time after the start.
    pub(super) fn new() -> Self {
        let spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut memory = spare.unwrap_or_else(|| Memory {
            bytes: vec![0; PAGES * PAGE],
            dirty: vec![false; PAGES],
        });
        for (page, dirty) in memory.dirty.iter_mut().enumerate() {
            if std::mem::take(dirty) {
                memory.bytes[page * PAGE..][..PAGE].fill(0);
            }
        }
        Self {
            memory: Mutex::new(memory),
            tsc: AtomicU64::new(1_000_000),
            waits: AtomicU64::new(0),
            posted: AtomicU64::new(0),
        }
    }

    /// Lets time pass.
    pub(super) fn advance(&self, ticks: u64) {
        let now = self.tsc.load(Ordering::Relaxed);
        self.tsc
            .store(now.saturating_add(ticks).min(1 << 62), Ordering::Relaxed);
    }

    fn access<R>(
        &self,
        spa: u64,
        length: usize,
        write: bool,
        work: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, BadSpa> {
        let start = usize::try_from(spa).map_err(|_| BadSpa)?;
        let end = start.checked_add(length).ok_or(BadSpa)?;
        let mut memory = self.memory.lock().map_err(|_| BadSpa)?;
        let memory = &mut *memory;
        let bytes = memory.bytes.get_mut(start..end).ok_or(BadSpa)?;
        if write && length > 0 {
            memory.dirty[start / PAGE..=(end - 1) / PAGE].fill(true);
        }
        Ok(work(bytes))
    }

    fn word<R>(
        &self,
        spa: u64,
        write: bool,
        work: impl FnOnce(&mut u32) -> R,
    ) -> Result<R, BadSpa> {
        assert!(
            spa.is_multiple_of(4),
            "an atomic access to {spa:#x} is not aligned"
        );
        self.access(spa, 4, write, |bytes| {
            let mut word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let result = work(&mut word);
            bytes.copy_from_slice(&word.to_le_bytes());
            result
        })
    }
}

impl Drop for FakePlatform {
    fn drop(&mut self) {
        let memory = self
            .memory
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let memory = Memory {
            bytes: std::mem::take(&mut memory.bytes),
            dirty: std::mem::take(&mut memory.dirty),
        };
        *SPARE.lock().unwrap_or_else(PoisonError::into_inner) = Some(memory);
    }
}

impl Platform for FakePlatform {
    fn read(&self, spa: u64, data: &mut [u8]) -> Result<(), BadSpa> {
        self.access(spa, data.len(), false, |bytes| data.copy_from_slice(bytes))
    }

    fn write(&self, spa: u64, data: &[u8]) -> Result<(), BadSpa> {
        self.access(spa, data.len(), true, |bytes| bytes.copy_from_slice(data))
    }

    fn fetch_or_u32(&self, spa: u64, bits: u32) -> Result<u32, BadSpa> {
        self.word(spa, true, |word| std::mem::replace(word, *word | bits))
    }

    fn load_u32(&self, spa: u64) -> Result<u32, BadSpa> {
        self.word(spa, false, |word| *word)
    }

    fn store_u32(&self, spa: u64, value: u32) -> Result<(), BadSpa> {
        self.word(spa, true, |word| *word = value)
    }

    fn tsc(&self) -> u64 {
        self.tsc.load(Ordering::Relaxed)
    }

    fn tsc_frequency(&self) -> u64 {
        2_500_000_000
    }

    fn kick(&self, _partition: HvPartitionId, _vp: HvVpIndex) {}

    fn arm_timer(&self, _partition: HvPartitionId, _vp: HvVpIndex, _time: Option<u64>) {}

    fn relax(&self) {
        let waits = self.waits.fetch_add(1, Ordering::Relaxed);
        assert!(
            waits < MOST_WAITS,
            "waiting for a thread that does not exist"
        );
    }

    /// The root is busy with every fourth message.
    fn root_port_notify(&self, notification: RootNotification) -> bool {
        if let RootNotification::Message { payload, .. } = notification {
            assert!(payload.len() <= 240);
            return self.posted.fetch_add(1, Ordering::Relaxed) % 4 != 3;
        }
        true
    }
}
