//! The 64-bit Linux boot protocol: `boot_params`, command line and initial RAM disk.

use super::bzimage::HEADER_START;
use super::entry;
use super::error::LoadError;
use super::layout::{
    ACPI_GPA, BOOT_PARAMS_GPA, CMDLINE_GPA, CMDLINE_SPACE, GDT_GPA, HIGH_RAM_START, PAGE_SIZE,
    PAGE_TABLES_GPA, firmware_memory_map,
};
use super::plan::{LoadPlan, PlanBuilder, SegmentData};

// Offsets in boot_params (arch/x86/include/uapi/asm/bootparam.h).
const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_SIZE: usize = 20;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
/// "Undefined" loader: none of the assigned numbers.
const LOADER_UNDEFINED: u8 = 0xff;
const LOADED_HIGH: u8 = 1;
/// Without a setup header of its own the kernel gets one of this protocol version.
const DEFAULT_VERSION: u16 = 0x020f;

/// What a Linux kernel says about its boot, or the usual values where it says nothing.
pub(super) struct LinuxLimits {
    /// Longest command line in bytes without the terminating zero.
    pub(super) cmdline: usize,
    /// Highest address that the initial RAM disk may occupy.
    pub(super) initrd_addr_max: u64,
}

impl Default for LinuxLimits {
    fn default() -> Self {
        Self {
            cmdline: 2047,
            initrd_addr_max: 0x7fff_ffff,
        }
    }
}

/// Completes a plan in which the kernel's segments are placed already.
pub(super) fn finish<'a>(
    mut plan: PlanBuilder<'a>,
    rip: u64,
    header: &[u8],
    limits: &LinuxLimits,
    cmdline: &str,
    initrd: Option<&'a [u8]>,
) -> Result<LoadPlan<'a>, LoadError> {
    if !plan.is_loaded(rip) {
        return Err(LoadError::Malformed(
            "its entry point lies outside what it loads",
        ));
    }
    let initrd = place_initrd(&mut plan, initrd, limits.initrd_addr_max)?;
    place_cmdline(&mut plan, cmdline, limits.cmdline)?;
    let params = boot_params(&plan, header, initrd);
    plan.place_built(BOOT_PARAMS_GPA, params, "the boot parameters")?;
    plan.place_built(
        PAGE_TABLES_GPA,
        entry::identity_page_tables(),
        "the boot page tables",
    )?;
    let state = entry::linux64(rip, BOOT_PARAMS_GPA);
    plan.place_built(GDT_GPA, entry::gdt(&state), "the boot descriptor table")?;
    Ok(plan.finish(state))
}

/// Where the initial RAM disk is, if there is one.
#[derive(Clone, Copy, Default)]
pub(super) struct Placed {
    pub(super) gpa: u32,
    pub(super) size: u32,
}

/// Puts the initial RAM disk as high as the kernel accepts it below the MMIO gap, so that it is
/// out of the way of the growing kernel.
pub(super) fn place_initrd<'a>(
    plan: &mut PlanBuilder<'a>,
    initrd: Option<&'a [u8]>,
    addr_max: u64,
) -> Result<Placed, LoadError> {
    let Some(bytes) = initrd else {
        return Ok(Placed::default());
    };
    if bytes.is_empty() {
        return Err(LoadError::InitrdEmpty);
    }
    let size = bytes.len() as u64;
    let floor = plan
        .low_end()
        .max(HIGH_RAM_START)
        .next_multiple_of(PAGE_SIZE);
    let limit = addr_max.saturating_add(1);
    let ceiling = plan.memory().low_ram_end().min(limit);
    let free = ceiling.saturating_sub(floor);
    let gpa = ceiling.checked_sub(size).map(|gpa| gpa & !(PAGE_SIZE - 1));
    let placed = gpa.filter(|&gpa| gpa >= floor).and_then(|gpa| {
        Some(Placed {
            gpa: u32::try_from(gpa).ok()?,
            size: u32::try_from(size).ok()?,
        })
    });
    let Some(placed) = placed else {
        let needed = floor.saturating_add(size.next_multiple_of(PAGE_SIZE));
        let most = limit.min(super::layout::MMIO_GAP_START);
        return Err(if needed > most {
            LoadError::InitrdOverLimit {
                size,
                limit: most.saturating_sub(floor),
            }
        } else {
            LoadError::InitrdTooLarge {
                size,
                free,
                memory: plan.memory().total(),
                needed,
            }
        });
    };
    plan.place(
        u64::from(placed.gpa),
        SegmentData::Input(bytes),
        size,
        "the initial RAM disk",
    )?;
    Ok(placed)
}

/// Puts the command line with its terminating zero at its place.
pub(super) fn place_cmdline(
    plan: &mut PlanBuilder<'_>,
    cmdline: &str,
    limit: usize,
) -> Result<(), LoadError> {
    check_cmdline(cmdline, limit.min(CMDLINE_SPACE as usize - 1))?;
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    plan.place_built(CMDLINE_GPA, bytes, "the command line")
}

/// Checks length and content of a command line.
pub(super) fn check_cmdline(cmdline: &str, limit: usize) -> Result<(), LoadError> {
    if cmdline.len() > limit {
        return Err(LoadError::CmdlineTooLong {
            length: cmdline.len(),
            limit,
        });
    }
    if cmdline.contains('\0') {
        return Err(LoadError::CmdlineZeroByte);
    }
    Ok(())
}

fn boot_params(plan: &PlanBuilder<'_>, header: &[u8], initrd: Placed) -> Vec<u8> {
    let mut params = vec![0u8; PAGE_SIZE as usize];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(field) = params.get_mut(at..at + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    };
    put(BOOT_FLAG, &[0x55, 0xaa]);
    put(HEADER_MAGIC, b"HdrS");
    put(VERSION, &DEFAULT_VERSION.to_le_bytes());
    put(LOADFLAGS, &[LOADED_HIGH]);
    put(HEADER_START, header);
    put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(RAMDISK_IMAGE, &initrd.gpa.to_le_bytes());
    put(RAMDISK_SIZE, &initrd.size.to_le_bytes());
    put(CMD_LINE_PTR, &(CMDLINE_GPA as u32).to_le_bytes());
    put(ACPI_RSDP_ADDR, &ACPI_GPA.to_le_bytes());
    let map = firmware_memory_map(plan.memory());
    put(E820_ENTRIES, &[map.len() as u8]);
    for (i, (range, kind)) in map.iter().enumerate() {
        let at = E820_TABLE + i * E820_ENTRY_SIZE;
        put(at, &range.start.to_le_bytes());
        put(at + 8, &(range.end - range.start).to_le_bytes());
        put(at + 16, &(*kind as u32).to_le_bytes());
    }
    params
}
