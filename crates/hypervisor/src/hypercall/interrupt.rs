//! Interrupts from the parent, and synthetic cluster IPIs (TLFS chapter 10).

use alloc::sync::Arc;
use alloc::vec::Vec;

use tlfs::{
    HvInputAssertVirtualInterrupt, HvInputClearVirtualInterrupt, HvInputSendSyntheticClusterIpi,
    HvInputSendSyntheticClusterIpiEx, HvInterruptControl, HvInterruptType, HvStatus,
};

use super::{Context, HvResult, parse, require, vp_set};
use crate::apic::{DeliveryMode, Destination};
use crate::interrupt::{deliver, matching};
use crate::partition::Partition;
use crate::vp::{Requests, Vp};

const FIRST_VECTOR: u32 = 0x10;
const LAST_VECTOR: u32 = 0xFF;

/// HvCallAssertVirtualInterrupt.
pub(super) fn assert(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputAssertVirtualInterrupt = parse(input)?;
    require(input.target_vtl == 0 && input.reserved0 == 0 && input.reserved1 == 0)?;
    assert_interrupt(context, &input)
}

/// HvCallAssertVirtualInterrupt as in TLFS 2.0a.
pub(super) fn assert_deprecated(
    context: &mut Context<'_>,
    input: &[u8],
    _output: &mut [u8],
) -> HvResult {
    assert_interrupt(context, &parse(input)?)
}

fn assert_interrupt(context: &Context<'_>, input: &HvInputAssertVirtualInterrupt) -> HvResult {
    let partition = context.child(input.partition_id)?;
    let control = HvInterruptControl(input.control);
    require(!control.has_reserved())?;
    let vector = u8::try_from(input.vector).map_err(|_| HvStatus::INVALID_PARAMETER)?;
    let address =
        u32::try_from(input.destination_address).map_err(|_| HvStatus::INVALID_PARAMETER)?;
    let mode = match control.kind() {
        HvInterruptType::FIXED => DeliveryMode::Fixed,
        HvInterruptType::LOWEST_PRIORITY => DeliveryMode::LowestPriority,
        HvInterruptType::NMI => DeliveryMode::Nmi,
        HvInterruptType::INIT => DeliveryMode::Init,
        HvInterruptType::SIPI => DeliveryMode::Startup,
        HvInterruptType::EXT_INT => return external(context, &partition, address, vector),
        HvInterruptType::LOCAL_INT0 => return local(context, &partition, address, 0, control),
        HvInterruptType::LOCAL_INT1 => return local(context, &partition, address, 1, control),
        _ => return Err(HvStatus::INVALID_PARAMETER),
    };
    if matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
        require(u32::from(vector) >= FIRST_VECTOR)?;
    }
    let destination = Destination {
        address,
        logical: control.logical(),
        x2apic_format: address > 0xFF,
    };
    let targets = matching(&partition, destination);
    deliver(context.platform(), &targets, mode, vector, control.level());
    Ok(())
}

/// The virtual processor with an APIC id, whether or not its APIC is enabled.
fn by_apic_id(partition: &Partition, apic_id: u32) -> HvResult<Arc<Vp>> {
    let vps = partition.all_vps();
    vps.into_iter()
        .find(|vp| vp.apic_id == apic_id)
        .ok_or(HvStatus::INVALID_PARAMETER)
}

/// The vector of an 8259 pair; one at a time.
fn external(context: &Context<'_>, partition: &Partition, apic_id: u32, vector: u8) -> HvResult {
    let vp = by_apic_id(partition, apic_id)?;
    {
        let mut state = vp.state.lock();
        if state.ext_int.is_some() {
            return Err(HvStatus::NOT_ACKNOWLEDGED);
        }
        state.ext_int = Some(vector);
    }
    vp.request(context.platform(), Requests::EVENT);
    Ok(())
}

/// A local interrupt pin: pulsed, or held until HvCallClearVirtualInterrupt
/// when level triggered.
fn local(
    context: &Context<'_>,
    partition: &Partition,
    apic_id: u32,
    pin: u8,
    control: HvInterruptControl,
) -> HvResult {
    let vp = by_apic_id(partition, apic_id)?;
    let mut effects = Vec::new();
    {
        let mut state = vp.state.lock();
        state.apic.lint(pin, true, &mut effects);
        if !control.level() {
            state.apic.lint(pin, false, &mut effects);
        }
    }
    context.hypervisor.apply_effects(partition, &vp, &effects);
    vp.request(context.platform(), Requests::EVENT);
    Ok(())
}

/// HvCallClearVirtualInterrupt: takes an external interrupt back, and
/// releases the local pins.
pub(super) fn clear(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputClearVirtualInterrupt = parse(input)?;
    let partition = context.child(input.partition_id)?;
    let mut cleared = false;
    for vp in partition.all_vps() {
        let mut state = vp.state.lock();
        cleared |= state.ext_int.take().is_some();
        let mut effects = Vec::new();
        for pin in 0..2 {
            state.apic.lint(pin, false, &mut effects);
        }
    }
    if cleared {
        Ok(())
    } else {
        Err(HvStatus::ACKNOWLEDGED)
    }
}

/// HvCallSendSyntheticClusterIpi.
pub(super) fn cluster_ipi(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvInputSendSyntheticClusterIpi = parse(input)?;
    require(input.target_vtl == 0)?;
    let targets = vp_set::from_mask(&context.caller, input.processor_mask);
    send(context, &targets, input.vector)
}

/// HvCallSendSyntheticClusterIpiEx.
pub(super) fn cluster_ipi_ex(
    context: &mut Context<'_>,
    input: &[u8],
    _output: &mut [u8],
) -> HvResult {
    let header: HvInputSendSyntheticClusterIpiEx = parse(input)?;
    require(header.target_vtl == 0)?;
    let banks = input
        .get(size_of::<HvInputSendSyntheticClusterIpiEx>()..)
        .unwrap_or_default();
    let targets = vp_set::from_set(
        &context.caller,
        header.format,
        header.valid_bank_mask,
        banks,
    )?;
    send(context, &targets, header.vector)
}

fn send(context: &Context<'_>, targets: &[Arc<Vp>], vector: u32) -> HvResult {
    require((FIRST_VECTOR..=LAST_VECTOR).contains(&vector))?;
    deliver(
        context.platform(),
        targets,
        DeliveryMode::Fixed,
        vector as u8,
        false,
    );
    Ok(())
}
