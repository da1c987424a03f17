//! The result of loading: what goes where in guest memory, and how the processor starts.

use std::ops::Range;
use std::sync::Arc;

use super::entry::EntryState;
use super::error::LoadError;
use super::layout::{MMIO_GAP_START, MemoryMap};

/// Bytes of a segment, shared with the file they came from where possible.
#[derive(Clone, Debug)]
pub enum SegmentData<'a> {
    /// Part of an input file.
    Input(&'a [u8]),
    /// Part of a kernel that was unpacked while loading.
    Unpacked(Arc<Vec<u8>>, Range<usize>),
    /// Made by the loader.
    Built(Vec<u8>),
}

/// Bytes to be written to guest memory before the guest starts.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// What it is, for diagnostics.
    pub what: &'static str,
    /// The bytes.
    pub data: SegmentData<'a>,
}

impl Segment<'_> {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            SegmentData::Input(bytes) => bytes,
            SegmentData::Unpacked(image, range) => image.get(range.clone()).unwrap_or_default(),
            SegmentData::Built(bytes) => bytes,
        }
    }
}

/// Everything that must be done to guest memory and to the boot processor before it runs.
///
/// All segments and zero ranges lie in RAM of the [`MemoryMap`] that the plan was made for, and
/// no two of them overlap.
#[derive(Clone, Debug)]
pub struct LoadPlan<'a> {
    /// Bytes to copy.
    pub segments: Vec<Segment<'a>>,
    /// Ranges that must read as zero (`.bss`). New guest memory is zero anyway; this matters when
    /// a plan is carried out again after a reset.
    pub zero: Vec<Range<u64>>,
    /// Initial state of the boot processor.
    pub entry: EntryState,
}

/// Collects segments and watches that they lie in RAM and apart from each other.
pub(super) struct PlanBuilder<'a> {
    memory: MemoryMap,
    taken: Vec<(Range<u64>, &'static str)>,
    segments: Vec<Segment<'a>>,
    zero: Vec<Range<u64>>,
}

impl<'a> PlanBuilder<'a> {
    pub(super) fn new(memory: &MemoryMap) -> Self {
        Self {
            memory: memory.clone(),
            taken: Vec::new(),
            segments: Vec::new(),
            zero: Vec::new(),
        }
    }

    pub(super) fn memory(&self) -> &MemoryMap {
        &self.memory
    }

    /// Adds `data` at `gpa`, followed by zeros up to `memory_size` bytes in all.
    pub(super) fn place(
        &mut self,
        gpa: u64,
        data: SegmentData<'a>,
        memory_size: u64,
        what: &'static str,
    ) -> Result<(), LoadError> {
        let segment = Segment { gpa, what, data };
        let file_size = segment.bytes().len() as u64;
        if memory_size < file_size {
            return Err(LoadError::Malformed(
                "a segment is larger in the file than in memory",
            ));
        }
        if memory_size == 0 {
            return Ok(());
        }
        let end = gpa.checked_add(memory_size).ok_or(LoadError::Malformed(
            "a segment reaches beyond the end of the address space",
        ))?;
        self.check_ram(gpa, end)?;
        let overlap = self
            .taken
            .iter()
            .find(|(r, _)| r.start < end && gpa < r.end);
        if let Some(&(_, first)) = overlap {
            return Err(LoadError::Overlap {
                first,
                second: what,
                gpa,
            });
        }
        self.taken.push((gpa..end, what));
        if file_size > 0 {
            self.segments.push(segment);
        }
        if memory_size > file_size {
            self.zero.push(gpa + file_size..end);
        }
        Ok(())
    }

    /// Adds bytes that the loader made.
    pub(super) fn place_built(
        &mut self,
        gpa: u64,
        bytes: Vec<u8>,
        what: &'static str,
    ) -> Result<(), LoadError> {
        let size = bytes.len() as u64;
        self.place(gpa, SegmentData::Built(bytes), size, what)
    }

    fn check_ram(&self, start: u64, end: u64) -> Result<(), LoadError> {
        if self.memory.is_usable(start, end - start) {
            return Ok(());
        }
        // With the largest memory there is, would it be RAM below the MMIO gap?
        if MemoryMap::for_size(MMIO_GAP_START).is_usable(start, end - start) {
            return Err(LoadError::KernelTooLarge {
                start,
                end,
                memory: self.memory.total(),
            });
        }
        Err(LoadError::ImpossibleAddress { start, end })
    }

    /// Whether `gpa` lies in something that was placed.
    pub(super) fn is_loaded(&self, gpa: u64) -> bool {
        self.segments
            .iter()
            .any(|s| gpa >= s.gpa && gpa - s.gpa < s.bytes().len() as u64)
    }

    /// End of the highest thing placed so far below the MMIO gap.
    pub(super) fn low_end(&self) -> u64 {
        let below = self
            .taken
            .iter()
            .map(|(range, _)| range.end)
            .filter(|&e| e <= MMIO_GAP_START);
        below.max().unwrap_or(0)
    }

    pub(super) fn finish(self, entry: EntryState) -> LoadPlan<'a> {
        LoadPlan {
            segments: self.segments,
            zero: self.zero,
            entry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::MIB;
    use super::*;

    fn builder(mib: u64) -> PlanBuilder<'static> {
        PlanBuilder::new(&MemoryMap::for_size(mib * MIB))
    }

    #[test]
    fn overlapping_segments_are_refused() {
        let mut plan = builder(16);
        plan.place_built(MIB, vec![1; 100], "first").unwrap();
        let error = plan.place_built(MIB + 99, vec![1], "second").unwrap_err();
        assert_eq!(
            error,
            LoadError::Overlap {
                first: "first",
                second: "second",
                gpa: MIB + 99
            }
        );
        plan.place_built(MIB + 100, vec![1], "third").unwrap();
    }

    #[test]
    fn a_segment_outside_ram_names_the_memory_that_is_needed() {
        let error = builder(16)
            .place_built(20 * MIB, vec![0; 5], "x")
            .unwrap_err();
        assert!(
            error.to_string().contains("at least 21 MiB with --memory"),
            "{error}"
        );
        let error = builder(16)
            .place_built(0xa_0000, vec![0; 5], "x")
            .unwrap_err();
        assert!(matches!(error, LoadError::ImpossibleAddress { .. }));
        let error = builder(16)
            .place_built(u64::MAX, vec![0; 5], "x")
            .unwrap_err();
        assert!(matches!(error, LoadError::Malformed(_)));
    }

    #[test]
    fn the_tail_of_a_segment_is_zeroed() {
        let mut plan = builder(16);
        plan.place(MIB, SegmentData::Built(vec![7; 3]), 10, "data")
            .unwrap();
        assert!(plan.is_loaded(MIB + 2) && !plan.is_loaded(MIB + 3));
        assert_eq!(plan.low_end(), MIB + 10);
        let plan = plan.finish(super::super::entry::pvh(0, 0));
        assert_eq!(plan.zero, vec![MIB + 3..MIB + 10]);
        assert_eq!(plan.segments[0].bytes(), &[7; 3]);
    }
}
