//! Partitions: creation to deletion, and properties (TLFS chapters 4 and 5).

use core::sync::atomic::Ordering;

use tlfs::*;

use super::{Context, HvResult, parse, put, require};
use crate::partition::{Partition, PartitionState};

/// HvCallCreatePartition.
pub(super) fn create(context: &mut Context<'_>, input: &[u8], output: &mut [u8]) -> HvResult {
    let input: HvInputCreatePartition = parse(input)?;
    let flags =
        HvPartitionCreationFlags::from_bits(input.flags).ok_or(HvStatus::INVALID_PARAMETER)?;
    require(input.isolation_properties == 0)?;
    if flags.contains(HvPartitionCreationFlags::NESTED_CAPABLE) {
        return Err(HvStatus::PROCESSOR_FEATURE_NOT_SUPPORTED);
    }
    context.caller.require(PartitionState::Active)?;
    let partition_id = context.hypervisor.add_partition(context.caller.id, flags);
    if let Some(child) = context.hypervisor.partition(partition_id) {
        let version = u64::from(input.compatibility_version);
        let code = HvPartitionPropertyCode::COMPATIBILITY_VERSION;
        child.properties.lock().insert(code.0, version);
    }
    put(output, &HvPartitionIdParameter { partition_id })
}

/// HvCallInitializePartition. Takes two pages from the partition's pool, for
/// the hypercall page and the reference TSC page.
pub(super) fn initialize(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvPartitionIdParameter = parse(input)?;
    let partition = context.child(input.partition_id)?;
    let mut state = partition.state.lock();
    if *state != PartitionState::Created {
        return Err(HvStatus::INVALID_PARTITION_STATE);
    }
    let pages: [u64; 2] = partition.pool.lock().allocate()?;
    context.hypervisor.fill_hypercall_page(pages[0])?;
    context.hypervisor.clear_page(pages[1])?;
    partition.guest.lock().pages = Some(pages);
    context.hypervisor.refresh_reference_tsc(&partition);
    *state = PartitionState::Active;
    Ok(())
}

/// HvCallFinalizePartition: deletes the virtual processors, empties the
/// guest-physical space, closes ports and connections. All pages are free in
/// the pool then, to be withdrawn.
pub(super) fn finalize(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvPartitionIdParameter = parse(input)?;
    let partition = context.child(input.partition_id)?;
    if !context.hypervisor.children(partition.id).is_empty() {
        return Err(HvStatus::OBJECT_IN_USE);
    }
    {
        let mut state = partition.state.lock();
        if *state == PartitionState::Finalized {
            return Err(HvStatus::INVALID_PARTITION_STATE);
        }
        *state = PartitionState::Finalized;
    }
    for vp in partition.all_vps() {
        super::vp::remove(context, &partition, vp.index);
    }
    partition.update_gpa(context.platform(), |space| space.clear());
    if let Some(pages) = partition.guest.lock().pages.take() {
        partition.pool.lock().release(&pages);
    }
    partition.connections.lock().clear();
    partition.ports.lock().clear();
    for other in context.hypervisor.all_partitions() {
        other
            .connections
            .lock()
            .retain(|_, c| c.port_partition != partition.id);
    }
    Ok(())
}

/// HvCallDeletePartition: of one that was finalized, or never initialized.
/// Pages that are left in its pool are the parent's again.
pub(super) fn delete(context: &mut Context<'_>, input: &[u8], _output: &mut [u8]) -> HvResult {
    let input: HvPartitionIdParameter = parse(input)?;
    let partition = context.child(input.partition_id)?;
    if *partition.state.lock() == PartitionState::Active {
        return Err(HvStatus::INVALID_PARTITION_STATE);
    }
    context.hypervisor.remove_partition(partition.id);
    let mut deposited = context.hypervisor.deposited.lock();
    for page in partition.pool.lock().pages() {
        deposited.remove(&page);
    }
    Ok(())
}

/// HvCallGetPartitionId.
pub(super) fn get_id(context: &mut Context<'_>, _input: &[u8], output: &mut [u8]) -> HvResult {
    put(
        output,
        &HvPartitionIdParameter {
            partition_id: context.caller.id,
        },
    )
}

/// HvCallGetNextChildPartition.
pub(super) fn next_child(context: &mut Context<'_>, input: &[u8], output: &mut [u8]) -> HvResult {
    let input: HvInputGetNextChildPartition = parse(input)?;
    let parent = context.child_or_self(input.parent_id)?;
    let previous = input.previous_child_id;
    let children = context.hypervisor.children(parent.id);
    let next = children.into_iter().find(|child| *child > previous);
    put(
        output,
        &HvPartitionIdParameter {
            partition_id: next.unwrap_or(HV_PARTITION_ID_INVALID),
        },
    )
}

/// HvCallGetPartitionProperty.
pub(super) fn get_property(context: &mut Context<'_>, input: &[u8], output: &mut [u8]) -> HvResult {
    let input: HvInputGetPartitionProperty = parse(input)?;
    let partition = context.child_or_self(input.partition_id)?;
    let property_value = property(context, &partition, input.property_code)?;
    put(output, &HvOutputGetPartitionProperty { property_value })
}

fn property(
    context: &Context<'_>,
    partition: &Partition,
    code: HvPartitionPropertyCode,
) -> HvResult<u64> {
    use HvPartitionPropertyCode as Code;
    let config = context.hypervisor.config();
    Ok(match code {
        Code::PRIVILEGE_FLAGS => partition.privileges().bits(),
        Code::SUSPEND => partition.suspended.load(Ordering::SeqCst).into(),
        Code::TIME_FREEZE => partition.clock.is_frozen().into(),
        Code::REFERENCE_TIME => partition.clock.now(context.platform()),
        Code::PROCESSOR_CLOCK_FREQUENCY => partition.clock.frequency(),
        Code::GUEST_OS_ID => partition.guest.lock().os_id,
        Code::PHYSICAL_ADDRESS_WIDTH | Code::IMPLEMENTED_PHYSICAL_ADDRESS_BITS => {
            config.physical_address_bits.into()
        }
        // HV_PARTITION_PROCESSOR_VENDOR: 0 AMD, 1 Intel.
        Code::PROCESSOR_VENDOR => (config.vendor == crate::ProcessorVendor::Intel).into(),
        Code::PROCESSOR_CL_FLUSH_SIZE => 8,
        Code::CPU_WEIGHT => partition.property(code, 100),
        Code::CPU_CAP => partition.property(code, 0x10000),
        Code::CPU_RESERVE
        | Code::CPU_GROUP_ID
        | Code::UNIMPLEMENTED_MSR_ACTION
        | Code::ENLIGHTENMENT_MODIFICATIONS
        | Code::COMPATIBILITY_VERSION
        | Code::PROCESSORS_PER_SOCKET
        | Code::VIRTUAL_TLB_PAGE_COUNT
        | Code::ZERO_MEMORY_ON_RESET => partition.property(code, 0),
        _ => return Err(HvStatus::UNKNOWN_PROPERTY),
    })
}

/// HvCallSetPartitionProperty.
pub(super) fn set_property(
    context: &mut Context<'_>,
    input: &[u8],
    _output: &mut [u8],
) -> HvResult {
    let input: HvInputSetPartitionProperty = parse(input)?;
    let partition = context.child(input.partition_id)?;
    let state = *partition.state.lock();
    if state == PartitionState::Finalized {
        return Err(HvStatus::INVALID_PARTITION_STATE);
    }
    set(
        context,
        &partition,
        input.property_code,
        input.property_value,
        state,
    )
}

fn set(
    context: &Context<'_>,
    partition: &Partition,
    code: HvPartitionPropertyCode,
    value: u64,
    state: PartitionState,
) -> HvResult {
    use HvPartitionPropertyCode as Code;
    let in_range = |range: core::ops::RangeInclusive<u64>| {
        if range.contains(&value) {
            Ok(())
        } else {
            Err(HvStatus::PROPERTY_VALUE_OUT_OF_RANGE)
        }
    };
    let store = || {
        partition.properties.lock().insert(code.0, value);
    };
    match code {
        // Early: the guest must not see it change.
        Code::PRIVILEGE_FLAGS => {
            if state != PartitionState::Created {
                return Err(HvStatus::INVALID_PARTITION_STATE);
            }
            let privileges = HvPartitionPrivilegeMask::from_bits(value)
                .ok_or(HvStatus::PROPERTY_VALUE_OUT_OF_RANGE)?;
            // Nobody gives away what he does not have.
            if !context.caller.may(privileges) {
                return Err(HvStatus::ACCESS_DENIED);
            }
            partition.set_privileges(privileges);
        }
        Code::SUSPEND => {
            in_range(0..=1)?;
            partition.suspended.store(value != 0, Ordering::SeqCst);
            partition.notify_vps(context.platform());
        }
        Code::TIME_FREEZE => {
            in_range(0..=1)?;
            partition.clock.freeze(context.platform(), value != 0);
            context.hypervisor.refresh_reference_tsc(partition);
            partition.notify_vps(context.platform());
        }
        Code::REFERENCE_TIME => {
            if !partition.clock.set_frozen_time(value) {
                return Err(HvStatus::OPERATION_DENIED);
            }
        }
        Code::CPU_RESERVE | Code::CPU_CAP => in_range(0..=0x10000).map(|()| store())?,
        Code::CPU_WEIGHT => in_range(1..=10000).map(|()| store())?,
        Code::UNIMPLEMENTED_MSR_ACTION | Code::ZERO_MEMORY_ON_RESET => {
            in_range(0..=1).map(|()| store())?;
        }
        Code::ENLIGHTENMENT_MODIFICATIONS => in_range(0..=u32::MAX.into()).map(|()| store())?,
        Code::CPU_GROUP_ID | Code::PROCESSORS_PER_SOCKET | Code::VIRTUAL_TLB_PAGE_COUNT => store(),
        Code::GUEST_OS_ID
        | Code::PROCESSOR_VENDOR
        | Code::PROCESSOR_CL_FLUSH_SIZE
        | Code::PROCESSOR_CLOCK_FREQUENCY
        | Code::COMPATIBILITY_VERSION
        | Code::PHYSICAL_ADDRESS_WIDTH
        | Code::IMPLEMENTED_PHYSICAL_ADDRESS_BITS => return Err(HvStatus::OPERATION_DENIED),
        _ => return Err(HvStatus::UNKNOWN_PROPERTY),
    }
    Ok(())
}
