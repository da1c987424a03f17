//! Virtual processors: creation, deletion, start, address translation.

use alloc::boxed::Box;

use tlfs::*;

use super::{Context, HvResult, Reps, parse, put, require};
use crate::apic::{ApicConfig, LocalApic};
use crate::partition::{Partition, PartitionState};
use crate::processor::{TranslateAccess, TranslateError};
use crate::vp::{Startup, Vp, VpPages, VpState};

/// HvCallCreateVp. Takes three pages from the partition's pool, for the
/// message, event flags and VP assist pages. The virtual processor is
/// suspended until its parent clears `EXPLICIT_SUSPEND`.
pub(super) fn create(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputCreateVp = parse(input)?;
    let partition = context.child(input.partition_id)?;
    partition.require(PartitionState::Active)?;
    require(input.flags == 0 && input.padding == [0; 3])?;
    let config = context.hypervisor.config();
    if input.vp_index >= config.max_vps || partition.vp(input.vp_index).is_some() {
        return Err(HvStatus::INVALID_VP_INDEX);
    }
    let bootstrap = input.vp_index == 0;
    let mut apic = LocalApic::new(&ApicConfig {
        apic_id: input.vp_index,
        tsc_frequency: partition.clock.frequency(),
        apic_frequency: config.apic_frequency,
        bootstrap,
    });
    apic.set_physical_address_width(config.physical_address_bits);
    let pages: [u64; 3] = partition.pool.lock().allocate()?;
    for page in pages {
        context.hypervisor.clear_page(page)?;
    }
    let [messages, event_flags, assist] = pages;
    let state = VpState::new(
        apic,
        VpPages {
            messages,
            event_flags,
            assist,
        },
        bootstrap,
    );
    if !partition.add_vp(Vp::new(partition.id, input.vp_index, state)) {
        partition.pool.lock().release(&pages);
        return Err(HvStatus::INVALID_VP_INDEX);
    }
    Ok(())
}

/// HvCallDeleteVp.
pub(super) fn delete(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputDeleteVp = parse(input)?;
    let partition = context.child(input.partition_id)?;
    context.vp(&partition, input.vp_index)?;
    remove(context, &partition, input.vp_index);
    Ok(())
}

/// Removes a virtual processor and its overlays; its pages go back to the
/// pool.
pub(super) fn remove(context: &Context<'_>, partition: &Partition, index: HvVpIndex) {
    use crate::gpa::OverlayKind;
    let Some(vp) = partition.remove_vp(context.platform(), index) else {
        return;
    };
    partition.update_gpa(context.platform(), |space| {
        space.remove_overlay(OverlayKind::Messages(index));
        space.remove_overlay(OverlayKind::EventFlags(index));
        space.remove_overlay(OverlayKind::VpAssist(index));
    });
    let VpPages {
        messages,
        event_flags,
        assist,
    } = vp.state.lock().pages;
    partition
        .pool
        .lock()
        .release(&[messages, event_flags, assist]);
}

/// HvCallStartVirtualProcessor.
pub(super) fn start(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputStartVirtualProcessor = parse(input)?;
    let partition = context.child_or_self(input.partition_id)?;
    partition.require(PartitionState::Active)?;
    require(input.target_vtl == 0 && input.reserved == [0; 3])?;
    let vp = context.vp(&partition, input.vp_index)?;
    let waits = {
        let state = vp.state.lock();
        state.wait_for_sipi && !state.pending_init
    };
    if !waits {
        return Err(HvStatus::INVALID_VP_STATE);
    }
    vp.request_startup(
        context.platform(),
        Startup::Context(Box::new(input.vp_context)),
    );
    Ok(())
}

/// HvCallGetVpIndexFromApicId.
pub(super) fn index_from_apic_id(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let input: HvInputGetVpIndexFromApicId = reps.header()?;
    require(input.target_vtl == 0)?;
    let partition = context.child_or_self(input.partition_id)?;
    let vps = partition.all_vps();
    while reps.more() {
        let apic_id: u32 = reps.input(0)?;
        let vp = vps
            .iter()
            .find(|vp| vp.apic_id == apic_id)
            .ok_or(HvStatus::INVALID_PARAMETER)?;
        reps.put(&vp.index)?;
        reps.advance(1);
    }
    Ok(())
}

const CACHE_TYPE_WRITE_BACK: u32 = 6;

/// HvCallTranslateVirtualAddress.
pub(super) fn translate(context: &mut Context<'_>, input: &[u8], output: &mut [u8]) -> HvResult {
    let (result_code, gpa_page) = translate_gva(context, input)?;
    let attributes = CACHE_TYPE_WRITE_BACK;
    put(
        output,
        &HvOutputTranslateVirtualAddress {
            result_code,
            attributes,
            gpa_page,
        },
    )
}

/// HvCallTranslateVirtualAddressEx.
pub(super) fn translate_ex(context: &mut Context<'_>, input: &[u8], output: &mut [u8]) -> HvResult {
    let (result_code, gpa_page) = translate_gva(context, input)?;
    let body = HvOutputTranslateVirtualAddressEx {
        result_code,
        attributes: CACHE_TYPE_WRITE_BACK,
        gpa_page,
        ..HvOutputTranslateVirtualAddressEx::default()
    };
    put(output, &body)
}

fn translate_gva(
    context: &mut Context<'_>,
    input: &[u8],
) -> HvResult<(HvTranslateGvaResultCode, u64)> {
    let input: HvInputTranslateVirtualAddress = parse(input)?;
    let partition = context.child_or_self(input.partition_id)?;
    let vp = context.vp(&partition, input.vp_index)?;
    // Bits 56 to 63 select a VTL; there is only VTL 0.
    let flags =
        HvTranslateGvaFlags::from_bits(input.control_flags).ok_or(HvStatus::INVALID_PARAMETER)?;
    let gva = input
        .gva_page
        .checked_mul(HV_PAGE_SIZE as u64)
        .ok_or(HvStatus::INVALID_PARAMETER)?;
    let cpu = context.processor(&vp)?;
    let user = flags.contains(HvTranslateGvaFlags::USER_ACCESS)
        || (cpu.cpl() == 3 && !flags.contains(HvTranslateGvaFlags::SUPERVISOR_ACCESS));
    let access = TranslateAccess {
        write: flags.contains(HvTranslateGvaFlags::VALIDATE_WRITE),
        execute: flags.contains(HvTranslateGvaFlags::VALIDATE_EXECUTE),
        user,
        exempt: flags.contains(HvTranslateGvaFlags::PRIVILEGE_EXEMPT),
        set_page_table_bits: flags.contains(HvTranslateGvaFlags::SET_PAGE_TABLE_BITS),
    };
    Ok(match cpu.translate(gva, access) {
        Ok(gpa) => (check_gpa(&partition, gpa, flags), gpa >> HV_PAGE_SHIFT),
        Err(TranslateError::NotPresent) => (HvTranslateGvaResultCode::PAGE_NOT_PRESENT, 0),
        Err(TranslateError::PrivilegeViolation) => {
            (HvTranslateGvaResultCode::PRIVILEGE_VIOLATION, 0)
        }
        Err(TranslateError::InvalidPageTableFlags) => {
            (HvTranslateGvaResultCode::INVALID_PAGE_TABLE_FLAGS, 0)
        }
        Err(TranslateError::GpaUnmapped) => (HvTranslateGvaResultCode::GPA_UNMAPPED, 0),
    })
}

/// What the guest-physical space says of a translated address.
fn check_gpa(
    partition: &Partition,
    gpa: u64,
    flags: HvTranslateGvaFlags,
) -> HvTranslateGvaResultCode {
    let Some(page) = partition.gpa_map().lookup(gpa >> HV_PAGE_SHIFT) else {
        return HvTranslateGvaResultCode::GPA_UNMAPPED;
    };
    let lacks = |flag, right| flags.contains(flag) && !page.rights.contains(right);
    if lacks(HvTranslateGvaFlags::VALIDATE_READ, HvMapGpaFlags::READABLE) {
        HvTranslateGvaResultCode::GPA_NO_READ_ACCESS
    } else if lacks(HvTranslateGvaFlags::VALIDATE_WRITE, HvMapGpaFlags::WRITABLE) {
        HvTranslateGvaResultCode::GPA_NO_WRITE_ACCESS
    } else {
        HvTranslateGvaResultCode::SUCCESS
    }
}
