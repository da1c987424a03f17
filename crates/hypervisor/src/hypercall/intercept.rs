//! Which intercepts a parent wants (TLFS 2.0a chapter 9).
//!
//! Port and memory accesses that nothing answers come to the parent without
//! being asked for; CPUID, MSRs and unknown hypercalls only where installed.

use tlfs::{
    HV_ANY_VP, HvInputInstallIntercept, HvInputRegisterInterceptResult,
    HvInputUnregisterInterceptResult, HvInterceptAccessMask, HvInterceptType, HvStatus,
};

use super::{Context, HvResult, parse, require};
use crate::partition::CpuidResult;

/// Results registered per partition at most.
const MAX_RESULTS: usize = 1024;

/// HvCallInstallIntercept; an access mask of 0 removes.
pub(super) fn install(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputInstallIntercept = parse(input)?;
    let partition = context.child(input.partition_id)?;
    let access =
        HvInterceptAccessMask::from_bits(input.access_type).ok_or(HvStatus::INVALID_PARAMETER)?;
    let wanted = !access.is_empty();
    let number = input.parameters as u32;
    let mut intercepts = partition.intercepts.lock();
    match input.intercept_type {
        // Always on.
        HvInterceptType::X64_IO_PORT
        | HvInterceptType::X64_IO_PORT_RANGE
        | HvInterceptType::X64_APIC_EOI => {}
        HvInterceptType::X64_MSR => intercepts.all_msrs = wanted.then_some(access),
        HvInterceptType::X64_MSR_INDEX if wanted => {
            require(intercepts.msrs.len() < MAX_RESULTS)?;
            intercepts.msrs.insert(number, access);
        }
        HvInterceptType::X64_MSR_INDEX => {
            intercepts.msrs.remove(&number);
        }
        HvInterceptType::X64_GLOBAL_CPUID => intercepts.all_cpuid = wanted,
        HvInterceptType::X64_CPUID if wanted => {
            require(intercepts.cpuid.len() < MAX_RESULTS)?;
            intercepts.cpuid.insert(number, ());
        }
        HvInterceptType::X64_CPUID => {
            intercepts.cpuid.remove(&number);
        }
        HvInterceptType::HYPERCALL => intercepts.hypercalls = wanted,
        HvInterceptType::EXCEPTION | HvInterceptType::EXCEPTION_TRAP => {
            return Err(HvStatus::PROCESSOR_FEATURE_NOT_SUPPORTED);
        }
        _ => return Err(HvStatus::INVALID_PARAMETER),
    }
    Ok(())
}

/// HvCallRegisterInterceptResult for CPUID.
pub(super) fn register_result(
    context: &mut Context<'_>,
    input: &[u8],
    _output: &mut [u8],
) -> HvResult {
    let input: HvInputRegisterInterceptResult = parse(input)?;
    let partition = context.child(input.partition_id)?;
    require(input.intercept_type == HvInterceptType::X64_CPUID)?;
    let vp = vp_selector(&partition, input.vp_index)?;
    let [a, a_mask, b, b_mask, c, c_mask, d, d_mask] = input.result;
    let result = CpuidResult {
        vp,
        leaf: input.leaf,
        subleaf: (input.subleaf_specific != 0).then_some(input.subleaf),
        values: [(a, a_mask), (b, b_mask), (c, c_mask), (d, d_mask)],
    };
    let mut intercepts = partition.intercepts.lock();
    intercepts
        .results
        .retain(|old| (old.vp, old.leaf, old.subleaf) != (result.vp, result.leaf, result.subleaf));
    if intercepts.results.len() >= MAX_RESULTS {
        return Err(HvStatus::NO_RESOURCES);
    }
    intercepts.results.push(result);
    Ok(())
}

/// HvCallUnregisterInterceptResult for CPUID.
pub(super) fn unregister_result(
    context: &mut Context<'_>,
    input: &[u8],
    _output: &mut [u8],
) -> HvResult {
    let input: HvInputUnregisterInterceptResult = parse(input)?;
    let partition = context.child(input.partition_id)?;
    require(input.intercept_type == HvInterceptType::X64_CPUID)?;
    let vp = vp_selector(&partition, input.vp_index)?;
    let subleaf = (input.subleaf_specific != 0).then_some(input.subleaf);
    let mut intercepts = partition.intercepts.lock();
    let before = intercepts.results.len();
    intercepts
        .results
        .retain(|old| (old.vp, old.leaf, old.subleaf) != (vp, input.leaf, subleaf));
    if intercepts.results.len() == before {
        Err(HvStatus::NOT_FOUND)
    } else {
        Ok(())
    }
}

fn vp_selector(partition: &crate::partition::Partition, index: u32) -> HvResult<Option<u32>> {
    if index == HV_ANY_VP {
        return Ok(None);
    }
    partition
        .vp(index)
        .map(|vp| Some(vp.index))
        .ok_or(HvStatus::INVALID_VP_INDEX)
}
