//! Extents and overlays.

use tlfs::HvMapGpaFlags;

use crate::gpa::{GpaExtent, GpaSpace, OverlayKind};

const RW: HvMapGpaFlags = HvMapGpaFlags::READABLE.union(HvMapGpaFlags::WRITABLE);

fn extent(gpa_page: u64, spa_page: u64, pages: u64) -> GpaExtent {
    GpaExtent {
        gpa_page,
        spa_page,
        pages,
        rights: RW,
    }
}

#[test]
fn neighbours_are_joined() {
    let mut space = GpaSpace::default();
    space.map(extent(0, 100, 10));
    space.map(extent(20, 120, 10));
    space.map(extent(10, 110, 10));
    let map = space.publish();
    assert_eq!(map.extents(), [extent(0, 100, 30)]);
    assert_eq!(map.lookup(29).unwrap().run_length_pages, 1);
    assert_eq!(map.lookup(5).unwrap().spa_page, 105);
    assert!(map.lookup(30).is_none());
}

#[test]
fn a_mapping_replaces_the_middle_of_another() {
    let mut space = GpaSpace::default();
    space.map(extent(0, 100, 10));
    space.map(extent(4, 500, 2));
    let map = space.publish();
    assert_eq!(
        map.extents(),
        [extent(0, 100, 4), extent(4, 500, 2), extent(6, 106, 4)]
    );
    space.unmap(3, 4);
    let map = space.publish();
    assert_eq!(map.extents(), [extent(0, 100, 3), extent(7, 107, 3)]);
    assert!(map.lookup(3).is_none());
    assert!(map.lookup(6).is_none());
}

#[test]
fn random_changes_match_a_page_by_page_model() {
    let mut space = GpaSpace::default();
    let mut model = [None; 64];
    let mut seed = 12345u64;
    let mut random = |limit: u64| {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 33) % limit
    };
    for _ in 0..2000 {
        let first = random(60);
        let count = 1 + random(64 - first);
        if random(3) == 0 {
            space.unmap(first, count);
            model[first as usize..(first + count) as usize].fill(None);
        } else {
            let spa = random(8) * 64 + first;
            space.map(extent(first, spa, count));
            for page in 0..count {
                model[(first + page) as usize] = Some(spa + page);
            }
        }
        let map = space.publish();
        for (page, expected) in model.iter().enumerate() {
            assert_eq!(
                map.lookup(page as u64).map(|found| found.spa_page),
                *expected
            );
        }
        for pair in map.extents().windows(2) {
            assert!(pair[0].gpa_page + pair[0].pages <= pair[1].gpa_page);
        }
    }
}

#[test]
fn an_overlay_hides_and_uncovers() {
    let mut space = GpaSpace::default();
    space.map(extent(0, 100, 10));
    let generation = space.publish().generation();
    space.set_overlay(OverlayKind::Hypercall, 5, 900, HvMapGpaFlags::READ_EXECUTE);
    let map = space.publish();
    assert!(map.generation() > generation);
    assert_eq!(map.lookup(5).unwrap().spa_page, 900);
    assert_eq!(map.lookup(5).unwrap().run_length_pages, 1);
    assert_eq!(map.lookup(4).unwrap().run_length_pages, 1);
    assert_eq!(map.lookup(6).unwrap().spa_page, 106);
    space.set_overlay(OverlayKind::Hypercall, 20, 900, HvMapGpaFlags::READ_EXECUTE);
    let map = space.publish();
    assert_eq!(map.lookup(5).unwrap().spa_page, 105);
    assert_eq!(map.lookup(20).unwrap().spa_page, 900);
    assert!(space.remove_overlay(OverlayKind::Hypercall));
    assert!(space.publish().lookup(20).is_none());
}
