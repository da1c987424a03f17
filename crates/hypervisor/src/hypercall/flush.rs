//! Virtual TLB flushes (TLFS 9.4).

use alloc::sync::Arc;
use alloc::vec::Vec;

use tlfs::{
    HV_PAGE_SIZE, HvFlushFlags, HvGvaRange, HvInputFlushVirtualAddressSpace,
    HvInputFlushVirtualAddressSpaceEx, HvStatus,
};

use super::{Context, HvResult, Reps, parse, vp_set};
use crate::vp::{FlushSet, Vp};

/// More pages than this are flushed as everything.
const MAX_PAGES: u64 = 64;

/// HvCallFlushVirtualAddressSpace.
pub(super) fn space(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputFlushVirtualAddressSpace = parse(input)?;
    let flags = flags(input.flags)?;
    let vps = plain_targets(context, &input, flags);
    flush_space(context, &vps, flags);
    Ok(())
}

/// HvCallFlushVirtualAddressSpaceEx.
pub(super) fn space_ex(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let (flags, vps) = ex_targets(context, input)?;
    flush_space(context, &vps, flags);
    Ok(())
}

/// HvCallFlushVirtualAddressList.
pub(super) fn list(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let input: HvInputFlushVirtualAddressSpace = reps.header()?;
    let flags = flags(input.flags)?;
    let vps = plain_targets(context, &input, flags);
    flush_list(context, reps, &vps, flags)
}

/// HvCallFlushVirtualAddressListEx.
pub(super) fn list_ex(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let (flags, vps) = ex_targets(context, reps.header)?;
    flush_list(context, reps, &vps, flags)
}

fn flags(bits: u64) -> HvResult<HvFlushFlags> {
    HvFlushFlags::from_bits(bits).ok_or(HvStatus::INVALID_PARAMETER)
}

fn plain_targets(
    context: &Context<'_>,
    input: &HvInputFlushVirtualAddressSpace,
    flags: HvFlushFlags,
) -> Vec<Arc<Vp>> {
    if flags.contains(HvFlushFlags::ALL_PROCESSORS) {
        context.caller.all_vps()
    } else {
        vp_set::from_mask(&context.caller, input.processor_mask)
    }
}

fn ex_targets(context: &Context<'_>, header: &[u8]) -> HvResult<(HvFlushFlags, Vec<Arc<Vp>>)> {
    let input: HvInputFlushVirtualAddressSpaceEx = parse(header)?;
    let flags = flags(input.flags)?;
    if flags.contains(HvFlushFlags::ALL_PROCESSORS) {
        return Ok((flags, context.caller.all_vps()));
    }
    let banks = header
        .get(size_of::<HvInputFlushVirtualAddressSpaceEx>()..)
        .unwrap_or_default();
    let vps = vp_set::from_set(&context.caller, input.format, input.valid_bank_mask, banks)?;
    Ok((flags, vps))
}

/// The processor does not flush one address space alone, so all are flushed.
fn flush_space(context: &Context<'_>, vps: &[Arc<Vp>], flags: HvFlushFlags) {
    let flush = if flags.contains(HvFlushFlags::NON_GLOBAL_MAPPINGS_ONLY) {
        FlushSet::NonGlobal
    } else {
        FlushSet::All
    };
    context.caller.flush(context.platform(), vps, &flush);
}

fn flush_list(
    context: &Context<'_>,
    reps: &mut Reps<'_>,
    vps: &[Arc<Vp>],
    flags: HvFlushFlags,
) -> HvResult {
    let mut pages = Vec::new();
    let mut everything = false;
    for offset in 0..reps.left() {
        let range = HvGvaRange(reps.input(offset)?);
        let (first, count) = if flags.contains(HvFlushFlags::USE_EXTENDED_RANGE_FORMAT) {
            range.extended()
        } else {
            range.simple()
        };
        everything |= count + pages.len() as u64 > MAX_PAGES;
        if !everything {
            pages.extend((0..count).map(|page| first.wrapping_add(page * HV_PAGE_SIZE as u64)));
        }
    }
    let flush = if everything {
        FlushSet::All
    } else {
        FlushSet::Pages(pages)
    };
    context.caller.flush(context.platform(), vps, &flush);
    reps.advance(reps.left());
    Ok(())
}
