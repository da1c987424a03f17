//! Calls about the system as a whole.

use tlfs::{
    HV_SCHEDULER_TYPE_ROOT, HvInputGetSystemProperty, HvOutputGetSystemProperty, HvStatus,
    HvSystemProperty,
};

use super::{Context, HvResult, parse, put, require};

/// HvCallNotifyLongSpinWait.
pub(super) fn notify_long_spin_wait(
    context: &mut Context<'_>,
    _input: &[u8],
    _output: &mut [u8],
) -> HvResult {
    context.platform().relax();
    Ok(())
}

/// HvCallGetSystemProperty.
pub(super) fn get_property(
    _context: &mut Context<'_>,
    input: &[u8],
    output: &mut [u8],
) -> HvResult {
    let input: HvInputGetSystemProperty = parse(input)?;
    require(input.reserved == 0)?;
    let value = match input.property_id {
        // Virtual processors are threads of the host.
        HvSystemProperty::SCHEDULER_TYPE => HV_SCHEDULER_TYPE_ROOT,
        _ => return Err(HvStatus::UNKNOWN_PROPERTY),
    };
    put(output, &HvOutputGetSystemProperty { value })
}

/// HvExtCallQueryCapabilities: none of the extended calls exists.
pub(super) fn query_extended_capabilities(
    _context: &mut Context<'_>,
    _input: &[u8],
    output: &mut [u8],
) -> HvResult {
    put(output, &0u64)
}
