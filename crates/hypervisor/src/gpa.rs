//! Guest-physical address spaces: extents of mapped pages, and overlay pages
//! that obscure them (TLFS 5.2.1, "GPA Overlay Pages").

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use tlfs::HvMapGpaFlags;

/// Consecutive guest pages over consecutive system pages with equal rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaExtent {
    /// First guest page number.
    pub gpa_page: u64,
    /// Its system page number.
    pub spa_page: u64,
    /// Number of 4 KiB pages, at least 1.
    pub pages: u64,
    /// The rights: the low four bits of the flags.
    pub rights: HvMapGpaFlags,
}

impl GpaExtent {
    fn end(&self) -> u64 {
        self.gpa_page + self.pages
    }

    fn continues(&self, next: &Self) -> bool {
        self.end() == next.gpa_page
            && self.spa_page + self.pages == next.spa_page
            && self.rights == next.rights
    }
}

/// Where a guest page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaTranslation {
    /// System page number.
    pub spa_page: u64,
    /// What the guest may do.
    pub rights: HvMapGpaFlags,
    /// Pages from this one on that continue likewise, at least 1.
    pub run_length_pages: u64,
}

/// A snapshot of a partition's guest-physical address space; never changes.
#[derive(Debug, Default)]
pub struct GpaMap {
    generation: u64,
    extents: Vec<GpaExtent>,
}

impl GpaMap {
    /// Grows with every change of the space.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The extents in ascending order, none touching a like neighbour.
    pub fn extents(&self) -> &[GpaExtent] {
        &self.extents
    }

    /// Finds a guest page number; `None` when nothing is mapped there.
    pub fn lookup(&self, gpa_page: u64) -> Option<GpaTranslation> {
        let index = self
            .extents
            .partition_point(|extent| extent.end() <= gpa_page);
        let extent = self.extents.get(index)?;
        let offset = gpa_page.checked_sub(extent.gpa_page)?;
        Some(GpaTranslation {
            spa_page: extent.spa_page + offset,
            rights: extent.rights,
            run_length_pages: extent.pages - offset,
        })
    }
}

/// Which overlay a page is. The order decides which of two on one page is
/// seen (the TLFS leaves it undefined): the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OverlayKind {
    /// HV_X64_MSR_REFERENCE_TSC.
    ReferenceTsc,
    /// HV_X64_MSR_VP_ASSIST_PAGE of a VP.
    VpAssist(u32),
    /// HV_X64_MSR_SIEFP of a VP.
    EventFlags(u32),
    /// HV_X64_MSR_SIMP of a VP.
    Messages(u32),
    /// HV_X64_MSR_HYPERCALL.
    Hypercall,
}

#[derive(Clone, Copy, Debug)]
struct Overlay {
    gpa_page: u64,
    spa_page: u64,
    rights: HvMapGpaFlags,
}

/// The space behind the snapshots.
#[derive(Debug, Default)]
pub(crate) struct GpaSpace {
    base: Vec<GpaExtent>,
    overlays: BTreeMap<OverlayKind, Overlay>,
    generation: u64,
}

impl GpaSpace {
    /// Maps `pages` pages, replacing what was there. The caller has checked
    /// that neither range wraps.
    pub(crate) fn map(&mut self, extent: GpaExtent) {
        let index = carve(&mut self.base, extent.gpa_page, extent.end());
        self.base.insert(index, extent);
        coalesce(&mut self.base, index);
    }

    /// Unmaps a range.
    pub(crate) fn unmap(&mut self, gpa_page: u64, pages: u64) {
        carve(&mut self.base, gpa_page, gpa_page + pages);
    }

    /// Places an overlay, or moves it.
    pub(crate) fn set_overlay(
        &mut self,
        kind: OverlayKind,
        gpa_page: u64,
        spa_page: u64,
        rights: HvMapGpaFlags,
    ) {
        self.overlays.insert(
            kind,
            Overlay {
                gpa_page,
                spa_page,
                rights,
            },
        );
    }

    /// Takes an overlay away; what it obscured is seen again.
    pub(crate) fn remove_overlay(&mut self, kind: OverlayKind) -> bool {
        self.overlays.remove(&kind).is_some()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.base.clear();
        self.overlays.clear();
    }

    /// Builds the next snapshot.
    pub(crate) fn publish(&mut self) -> Arc<GpaMap> {
        self.generation += 1;
        let mut extents = self.base.clone();
        for overlay in self.overlays.values() {
            let index = carve(&mut extents, overlay.gpa_page, overlay.gpa_page + 1);
            extents.insert(
                index,
                GpaExtent {
                    gpa_page: overlay.gpa_page,
                    spa_page: overlay.spa_page,
                    pages: 1,
                    rights: overlay.rights,
                },
            );
        }
        Arc::new(GpaMap {
            generation: self.generation,
            extents,
        })
    }
}

/// Removes `start..end` from the extents; where an extent for it would go.
fn carve(extents: &mut Vec<GpaExtent>, start: u64, end: u64) -> usize {
    let first = extents.partition_point(|extent| extent.end() <= start);
    let last = extents.partition_point(|extent| extent.gpa_page < end);
    if first >= last {
        return first;
    }
    let head = extents[first];
    let tail = extents[last - 1];
    let mut rest: [Option<GpaExtent>; 2] = [None, None];
    if head.gpa_page < start {
        rest[0] = Some(GpaExtent {
            pages: start - head.gpa_page,
            ..head
        });
    }
    if tail.end() > end {
        let skipped = end - tail.gpa_page;
        rest[1] = Some(GpaExtent {
            gpa_page: end,
            spa_page: tail.spa_page + skipped,
            pages: tail.pages - skipped,
            ..tail
        });
    }
    let kept_head = usize::from(rest[0].is_some());
    extents.splice(first..last, rest.into_iter().flatten());
    first + kept_head
}

/// Joins the extent at `index` with its neighbours where they continue it.
fn coalesce(extents: &mut Vec<GpaExtent>, index: usize) {
    if index + 1 < extents.len() && extents[index].continues(&extents[index + 1]) {
        extents[index].pages += extents[index + 1].pages;
        extents.remove(index + 1);
    }
    if index > 0 && extents[index - 1].continues(&extents[index]) {
        extents[index - 1].pages += extents[index].pages;
        extents.remove(index);
    }
}
