//! PVH direct boot: `hvm_start_info` and what hangs on it.
//!
//! Layouts are those of the Xen public header arch-x86/hvm/start_info.h, version 1.

use super::entry;
use super::error::LoadError;
use super::layout::{ACPI_GPA, CMDLINE_GPA, GDT_GPA, START_INFO_GPA, firmware_memory_map};
use super::linux::{LinuxLimits, place_cmdline, place_initrd};
use super::plan::{LoadPlan, PlanBuilder};

const START_INFO_MAGIC: u32 = 0x336e_c578;
const START_INFO_VERSION: u32 = 1;
const MODULE_LIST_OFFSET: u64 = 0x40;
const MEMORY_MAP_OFFSET: u64 = 0x80;

/// Completes a plan in which the kernel's segments are placed already.
pub(super) fn finish<'a>(
    mut plan: PlanBuilder<'a>,
    eip: u32,
    cmdline: &str,
    initrd: Option<&'a [u8]>,
) -> Result<LoadPlan<'a>, LoadError> {
    if !plan.is_loaded(u64::from(eip)) {
        return Err(LoadError::Malformed(
            "its PVH entry point lies outside what it loads",
        ));
    }
    let limits = LinuxLimits::default();
    let initrd = place_initrd(&mut plan, initrd, limits.initrd_addr_max)?;
    place_cmdline(&mut plan, cmdline, limits.cmdline)?;
    let modules = u32::from(initrd.size > 0);
    let map = firmware_memory_map(plan.memory());

    let mut info = Vec::with_capacity(0x200);
    info.extend_from_slice(&START_INFO_MAGIC.to_le_bytes());
    info.extend_from_slice(&START_INFO_VERSION.to_le_bytes());
    info.extend_from_slice(&0u32.to_le_bytes());
    info.extend_from_slice(&modules.to_le_bytes());
    let module_list = if modules > 0 {
        START_INFO_GPA + MODULE_LIST_OFFSET
    } else {
        0
    };
    for pointer in [
        module_list,
        CMDLINE_GPA,
        ACPI_GPA,
        START_INFO_GPA + MEMORY_MAP_OFFSET,
    ] {
        info.extend_from_slice(&pointer.to_le_bytes());
    }
    info.extend_from_slice(&(map.len() as u32).to_le_bytes());

    info.resize(MODULE_LIST_OFFSET as usize, 0);
    for field in [u64::from(initrd.gpa), u64::from(initrd.size), 0, 0] {
        info.extend_from_slice(&field.to_le_bytes());
    }
    info.resize(MEMORY_MAP_OFFSET as usize, 0);
    for (range, kind) in map {
        info.extend_from_slice(&range.start.to_le_bytes());
        info.extend_from_slice(&(range.end - range.start).to_le_bytes());
        info.extend_from_slice(&(kind as u32).to_le_bytes());
        info.extend_from_slice(&0u32.to_le_bytes());
    }
    plan.place_built(START_INFO_GPA, info, "the PVH start info")?;
    let state = entry::pvh(eip, START_INFO_GPA as u32);
    plan.place_built(GDT_GPA, entry::gdt(&state), "the boot descriptor table")?;
    Ok(plan.finish(state))
}
