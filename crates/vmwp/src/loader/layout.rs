//! Where things are in a new VM's guest-physical address space.
//!
//! The constants here are the one agreement between the loaders, the chipset and the ACPI tables:
//! nothing else may place boot structures in guest memory.

use std::ops::Range;

/// Size of a guest page in bytes.
pub const PAGE_SIZE: u64 = 4096;
/// One mebibyte in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte in bytes.
pub const GIB: u64 = 1 << 30;

/// The table of flat segments that boot protocols ask for.
pub const GDT_GPA: u64 = 0x500;
/// PVH `hvm_start_info`, its module list and its memory map: one page.
pub const START_INFO_GPA: u64 = 0x6000;
/// Linux `boot_params` (the "zero page"): one page.
pub const BOOT_PARAMS_GPA: u64 = 0x7000;
/// Identity page tables: one PML4, one PDPT and [`IDENTITY_MAP_GIB`] page directories.
pub const PAGE_TABLES_GPA: u64 = 0x9000;
/// How much of the address space the identity page tables cover, in GiB, with 2 MiB pages.
pub const IDENTITY_MAP_GIB: u64 = 4;
/// Top of the initial stack, used only by protocols that hand over a stack pointer.
pub const BOOT_STACK_TOP_GPA: u64 = 0x8ff0;
/// The kernel command line, with its terminating zero.
pub const CMDLINE_GPA: u64 = 0x2_0000;
/// Space for the command line in bytes, terminating zero included.
pub const CMDLINE_SPACE: u64 = 0x1_0000;
/// Multiboot information, memory map, module list, command line and environment module.
pub const MULTIBOOT_INFO_GPA: u64 = 0x9_0000;
/// Space for all multiboot structures in bytes.
pub const MULTIBOOT_INFO_SPACE: u64 = 0xf000;
/// End of the conventional memory that a guest may use below 1 MiB. The rest of the first 640 KiB
/// is kept back where a PC has its extended BIOS data area.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables; the root pointer (RSDP) is the first thing in this area, where the legacy scan of
/// 0xE0000 to 0xFFFFF finds it as well.
pub const ACPI_GPA: u64 = 0xe_0000;
/// Space for the ACPI tables in bytes.
pub const ACPI_SPACE: u64 = 0x2_0000;
/// Start of memory above the legacy video and firmware areas.
pub const HIGH_RAM_START: u64 = MIB;

/// Start of the MMIO gap: RAM below 4 GiB ends here at the latest.
pub const MMIO_GAP_START: u64 = 3 * GIB;
/// End of the MMIO gap: the rest of the RAM starts here.
pub const MMIO_GAP_END: u64 = 4 * GIB;
/// I/O APIC registers.
pub const IOAPIC_GPA: u64 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC_GPA: u64 = 0xfee0_0000;

/// Least guest memory in bytes that a VM can be given.
pub const MIN_MEMORY: u64 = 16 * MIB;
/// Most guest memory in bytes that a VM can be given.
pub const MAX_MEMORY: u64 = 1 << 40;

const _: () = {
    assert!(GDT_GPA + 0x100 <= PAGE_SIZE);
    assert!(START_INFO_GPA + PAGE_SIZE <= BOOT_PARAMS_GPA);
    assert!(BOOT_PARAMS_GPA + PAGE_SIZE <= PAGE_TABLES_GPA);
    assert!(PAGE_TABLES_GPA + (2 + IDENTITY_MAP_GIB) * PAGE_SIZE <= CMDLINE_GPA);
    assert!(CMDLINE_GPA + CMDLINE_SPACE <= MULTIBOOT_INFO_GPA);
    assert!(MULTIBOOT_INFO_GPA + MULTIBOOT_INFO_SPACE <= LOW_RAM_END);
    assert!(LOW_RAM_END <= ACPI_GPA && ACPI_GPA + ACPI_SPACE <= HIGH_RAM_START);
    assert!(MMIO_GAP_START <= IOAPIC_GPA && LOCAL_APIC_GPA < MMIO_GAP_END);
};

/// The guest-physical ranges that hold RAM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    ranges: Vec<Range<u64>>,
}

impl MemoryMap {
    /// The map of a VM with `memory_bytes` of RAM: all of it from address 0 up, except that what
    /// does not fit below the MMIO gap continues at 4 GiB. The size is rounded down to whole pages.
    #[must_use]
    pub fn for_size(memory_bytes: u64) -> Self {
        let bytes = memory_bytes - memory_bytes % PAGE_SIZE;
        let low = bytes.min(MMIO_GAP_START);
        let high = MMIO_GAP_END..MMIO_GAP_END.saturating_add(bytes - low);
        let ranges = [0..low, high]
            .into_iter()
            .filter(|range| !range.is_empty())
            .collect();
        Self { ranges }
    }

    /// The RAM ranges in ascending order; the first starts at 0.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Total RAM in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ranges.iter().map(|r| r.end - r.start).sum()
    }

    /// Bytes of RAM below the MMIO gap.
    #[must_use]
    pub fn low_ram_end(&self) -> u64 {
        self.ranges.first().map_or(0, |r| r.end)
    }

    /// Whether `len` bytes at `gpa` are RAM that the guest may be given, that is outside the
    /// legacy area between 640 KiB and 1 MiB.
    #[must_use]
    pub fn is_usable(&self, gpa: u64, len: u64) -> bool {
        let Some(end) = gpa.checked_add(len) else {
            return false;
        };
        self.usable().iter().any(|r| r.start <= gpa && end <= r.end)
    }

    /// RAM ranges without the legacy area between 640 KiB and 1 MiB: what a firmware memory map
    /// reports as usable.
    #[must_use]
    pub fn usable(&self) -> Vec<Range<u64>> {
        let mut usable = Vec::new();
        for range in &self.ranges {
            if range.start != 0 {
                usable.push(range.clone());
                continue;
            }
            usable.push(0..range.end.min(LOW_RAM_END));
            if range.end > HIGH_RAM_START {
                usable.push(HIGH_RAM_START..range.end);
            }
        }
        usable
    }
}

/// Kind of a range in the memory map that the guest is handed (values as in the INT 15h E820
/// interface, which Linux, PVH and multiboot share).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// RAM that the guest may use.
    Ram = 1,
    /// Not to be touched by the guest's memory management.
    Reserved = 2,
}

/// The map that the guest is handed: usable RAM, and the legacy area with the ACPI tables as
/// reserved, in ascending order.
#[must_use]
pub fn firmware_memory_map(map: &MemoryMap) -> Vec<(Range<u64>, RangeKind)> {
    let mut entries: Vec<_> = map
        .usable()
        .into_iter()
        .map(|r| (r, RangeKind::Ram))
        .collect();
    entries.push((LOW_RAM_END..HIGH_RAM_START, RangeKind::Reserved));
    entries.sort_by_key(|(range, _)| range.start);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_below_the_gap_is_one_range() {
        let map = MemoryMap::for_size(512 * MIB);
        assert_eq!(map.ranges(), std::slice::from_ref(&(0..512 * MIB)));
        assert_eq!(map.total(), 512 * MIB);
        assert_eq!(map.low_ram_end(), 512 * MIB);
    }

    #[test]
    fn ram_is_split_around_the_gap() {
        let map = MemoryMap::for_size(5 * GIB);
        assert_eq!(map.ranges(), &[0..3 * GIB, 4 * GIB..6 * GIB]);
        assert_eq!(map.total(), 5 * GIB);
        assert!(map.is_usable(4 * GIB, 2 * GIB));
        assert!(!map.is_usable(3 * GIB - 1, 2));
        assert!(!map.is_usable(u64::MAX, 2));
    }

    #[test]
    fn the_legacy_area_is_reserved() {
        let map = MemoryMap::for_size(16 * MIB);
        assert!(!map.is_usable(0xa_0000, 1));
        assert!(!map.is_usable(LOW_RAM_END - 1, 2));
        assert!(map.is_usable(HIGH_RAM_START, 15 * MIB));
        let entries = firmware_memory_map(&map);
        assert_eq!(
            entries,
            vec![
                (0..LOW_RAM_END, RangeKind::Ram),
                (LOW_RAM_END..MIB, RangeKind::Reserved),
                (MIB..16 * MIB, RangeKind::Ram),
            ]
        );
    }
}
