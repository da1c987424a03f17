//! Pools, guest-physical spaces, and the parent's access to guest memory
//! (TLFS chapters 6 and 8).

use tlfs::*;

use super::{Context, HvResult, Reps, parse, put, require};
use crate::Platform;
use crate::gpa::GpaExtent;
use crate::guest_memory::{self, GuestAccessError};
use crate::partition::{Partition, PartitionState};

/// HvCallDepositMemory.
pub(super) fn deposit(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let input: HvInputDepositMemory = reps.header()?;
    let partition = context.child_or_self(input.partition_id)?;
    while reps.more() {
        let page: u64 = reps.input(0)?;
        check_spa(context.platform(), page)?;
        if !context.hypervisor.deposited.lock().insert(page) {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        partition.pool.lock().deposit(page);
        reps.advance(1);
    }
    Ok(())
}

/// HvCallWithdrawMemory: gives back free pages, zeroed.
pub(super) fn withdraw(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let input: HvInputMemoryPool = reps.header()?;
    let partition = context.child_or_self(input.partition_id)?;
    while reps.more() {
        let page = partition
            .pool
            .lock()
            .withdraw()
            .ok_or(HvStatus::NO_RESOURCES)?;
        context.hypervisor.clear_page(page)?;
        context.hypervisor.deposited.lock().remove(&page);
        reps.put(&page)?;
        reps.advance(1);
    }
    Ok(())
}

/// HvCallGetMemoryBalance.
pub(super) fn balance(context: &mut Context<'_>, input: &[u8], output: &mut [u8]) -> HvResult {
    let input: HvInputMemoryPool = parse(input)?;
    let partition = context.child_or_self(input.partition_id)?;
    let (pages_available, pages_in_use) = partition.pool.lock().balance();
    put(
        output,
        &HvOutputGetMemoryBalance {
            pages_available,
            pages_in_use,
        },
    )
}

/// Fails unless there is memory behind a system page.
fn check_spa(platform: &dyn Platform, page: u64) -> HvResult {
    require(page < 1 << (64 - HV_PAGE_SHIFT))?;
    platform
        .load_u32(page << HV_PAGE_SHIFT)
        .map(|_| ())
        .map_err(|_| HvStatus::INVALID_PARAMETER)
}

/// How pages are to be mapped.
#[derive(Clone, Copy)]
struct Mapping {
    rights: HvMapGpaFlags,
    /// 4 KiB pages in an element.
    pages: u64,
}

impl Mapping {
    fn from_flags(bits: u32) -> HvResult<Self> {
        let flags = HvMapGpaFlags::from_bits(bits).ok_or(HvStatus::INVALID_PARAMETER)?;
        let rights = flags & HvMapGpaFlags::ALL_RIGHTS;
        let readable = rights.contains(HvMapGpaFlags::READABLE);
        // Writable or executable alone cannot be mapped (TLFS 5.2, rights).
        require(readable || rights.is_empty())?;
        let no_access = flags.contains(HvMapGpaFlags::NO_ACCESS);
        require(!(no_access && readable))?;
        let large = flags.contains(HvMapGpaFlags::LARGE_PAGE);
        Ok(Self {
            rights,
            pages: if large { HV_LARGE_PAGE_PAGES } else { 1 },
        })
    }

    /// The extent of one element, if it may be mapped.
    fn extent(&self, context: &Context<'_>, gpa_page: u64, spa_page: u64) -> HvResult<GpaExtent> {
        let width = u32::from(context.hypervisor.config().physical_address_bits);
        let limit = 1u64 << (width - HV_PAGE_SHIFT);
        require(gpa_page.is_multiple_of(self.pages) && spa_page.is_multiple_of(self.pages))?;
        require(gpa_page < limit && gpa_page + self.pages <= limit)?;
        check_spa(context.platform(), spa_page)?;
        check_spa(context.platform(), spa_page + self.pages - 1)?;
        let owned = context.hypervisor.deposited.lock();
        if owned
            .range(spa_page..spa_page + self.pages)
            .next()
            .is_some()
        {
            return Err(HvStatus::ACCESS_DENIED);
        }
        Ok(GpaExtent {
            gpa_page,
            spa_page,
            pages: self.pages,
            rights: self.rights,
        })
    }
}

/// Maps the elements that `at` names until one cannot be, all under one
/// change of the space.
fn map_elements(
    context: &Context<'_>,
    partition: &Partition,
    reps: &mut Reps<'_>,
    mapping: Mapping,
    at: impl Fn(&Reps<'_>) -> HvResult<(u64, u64)>,
) -> HvResult {
    partition.require(PartitionState::Active)?;
    let mut result = Ok(());
    partition.update_gpa(context.platform(), |space| {
        while reps.more() {
            let extent = at(reps).and_then(|(gpa, spa)| mapping.extent(context, gpa, spa));
            match extent {
                Ok(extent) => space.map(extent),
                Err(status) => {
                    result = Err(status);
                    break;
                }
            }
            reps.advance(1);
        }
    });
    result
}

/// HvCallMapGpaPages.
pub(super) fn map(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let input: HvInputMapGpaPages = reps.header()?;
    let partition = context.child(input.target_partition_id)?;
    let mapping = Mapping::from_flags(input.map_flags)?;
    map_elements(context, &partition, reps, mapping, |reps| {
        let gpa = (reps.next as u64)
            .checked_mul(mapping.pages)
            .and_then(|offset| input.target_gpa_base.checked_add(offset))
            .ok_or(HvStatus::INVALID_PARAMETER)?;
        Ok((gpa, reps.input(0)?))
    })
}

/// HvCallMapSparseGpaPages.
pub(super) fn map_sparse(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let input: HvInputMapSparseGpaPages = reps.header()?;
    let partition = context.child(input.target_partition_id)?;
    let mapping = Mapping::from_flags(input.map_flags)?;
    map_elements(context, &partition, reps, mapping, |reps| {
        let element: HvGpaMapping = reps.input(0)?;
        Ok((element.target_gpa_page, element.source_gpa_page))
    })
}

/// HvCallUnmapGpaPages.
pub(super) fn unmap(context: &mut Context<'_>, reps: &mut Reps<'_>) -> HvResult {
    let input: HvInputUnmapGpaPages = reps.header()?;
    let partition = context.child(input.target_partition_id)?;
    partition.require(PartitionState::Active)?;
    require(input.unmap_flags & !HV_UNMAP_GPA_LARGE_PAGE == 0)?;
    let large = input.unmap_flags & HV_UNMAP_GPA_LARGE_PAGE != 0;
    let pages = if large { HV_LARGE_PAGE_PAGES } else { 1 };
    require(input.target_gpa_base.is_multiple_of(pages))?;
    let first = input.target_gpa_base.checked_add(reps.next as u64 * pages);
    let count = reps.left() as u64 * pages;
    let first = first.filter(|first| first.checked_add(count).is_some());
    let first = first.ok_or(HvStatus::INVALID_PARAMETER)?;
    partition.update_gpa(context.platform(), |space| space.unmap(first, count));
    reps.advance(reps.left());
    Ok(())
}

/// The range of HvCallReadGpa and HvCallWriteGpa: 1 to 16 bytes in one page.
fn access_range(gpa: u64, byte_count: u32) -> HvResult<usize> {
    let size = byte_count as usize;
    let offset = gpa as usize & (HV_PAGE_SIZE - 1);
    require((1..=HV_READ_WRITE_GPA_MAX_SIZE).contains(&size) && offset + size <= HV_PAGE_SIZE)?;
    Ok(size)
}

/// HvCallReadGpa.
pub(super) fn read_gpa(context: &mut Context<'_>, input: &[u8], output: &mut [u8]) -> HvResult {
    let input: HvInputReadGpa = parse(input)?;
    let partition = context.child(input.partition_id)?;
    context.vp(&partition, input.vp_index)?;
    let size = access_range(input.base_gpa, input.byte_count)?;
    let mut data = [0; HV_READ_WRITE_GPA_MAX_SIZE];
    let map = partition.gpa_map();
    let read = guest_memory::read(context.platform(), &map, input.base_gpa, &mut data[..size]);
    let result_code = match read {
        Ok(()) => HvAccessGpaResultCode::SUCCESS,
        Err(GuestAccessError::Unmapped(_)) => HvAccessGpaResultCode::UNMAPPED,
        Err(GuestAccessError::Denied(_)) => HvAccessGpaResultCode::READ_INTERCEPT,
    };
    put(
        output,
        &HvOutputReadGpa {
            result_code,
            reserved: 0,
            data,
        },
    )
}

/// HvCallWriteGpa.
pub(super) fn write_gpa(context: &mut Context<'_>, input: &[u8], output: &mut [u8]) -> HvResult {
    let input: HvInputWriteGpa = parse(input)?;
    let partition = context.child(input.partition_id)?;
    context.vp(&partition, input.vp_index)?;
    let size = access_range(input.base_gpa, input.byte_count)?;
    let map = partition.gpa_map();
    let written = guest_memory::write(
        context.platform(),
        &map,
        input.base_gpa,
        &input.data[..size],
    );
    let result_code = match written {
        Ok(()) => HvAccessGpaResultCode::SUCCESS,
        Err(GuestAccessError::Unmapped(_)) => HvAccessGpaResultCode::UNMAPPED,
        Err(GuestAccessError::Denied(_)) => HvAccessGpaResultCode::WRITE_INTERCEPT,
    };
    put(
        output,
        &HvOutputWriteGpa {
            result_code,
            reserved: 0,
        },
    )
}
