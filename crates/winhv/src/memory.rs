//! Pools and guest-physical spaces.

use alloc::vec::Vec;

use tlfs::{
    HV_LARGE_PAGE_PAGES, HV_PAGE_SIZE, HV_READ_WRITE_GPA_MAX_SIZE, HV_UNMAP_GPA_LARGE_PAGE,
    HvAccessGpaResultCode, HvCallCode, HvGpaMapping, HvInputDepositMemory, HvInputMapGpaPages,
    HvInputMapSparseGpaPages, HvInputMemoryPool, HvInputReadGpa, HvInputUnmapGpaPages,
    HvInputWriteGpa, HvMapGpaFlags, HvOutputGetMemoryBalance, HvOutputReadGpa, HvOutputWriteGpa,
    HvPartitionId, HvProximityDomainInfo, HvVpIndex,
};
use zerocopy::IntoBytes;

use crate::{HvError, HvResult, Transport, WinHv};

/// Reps of a call without input elements: what the count field holds, and
/// what fits a page of output.
const MAX_OUTPUT_REPS: usize = HV_PAGE_SIZE / size_of::<u64>();

impl<T: Transport> WinHv<T> {
    /// HvCallDepositMemory: page numbers of the caller's.
    pub fn deposit_memory(
        &self,
        partition_id: HvPartitionId,
        pages: impl IntoIterator<Item = u64>,
    ) -> HvResult<usize> {
        let header = |_| HvInputDepositMemory { partition_id };
        self.rep_list(HvCallCode::DEPOSIT_MEMORY, header, pages)
    }

    /// HvCallWithdrawMemory: at most `count` free pages (512 at a time); all
    /// that there are if fewer.
    pub fn withdraw_memory(&self, partition_id: HvPartitionId, count: usize) -> HvResult<Vec<u64>> {
        let available = self.memory_balance(partition_id)?.pages_available;
        let count = count
            .min(MAX_OUTPUT_REPS)
            .min(usize::try_from(available).unwrap_or(usize::MAX));
        let proximity_domain_info = HvProximityDomainInfo::default();
        let input = HvInputMemoryPool {
            partition_id,
            proximity_domain_info,
        };
        let bytes = self.rep_out(HvCallCode::WITHDRAW_MEMORY, input.as_bytes(), count, 8)?;
        let pages = bytes
            .chunks_exact(8)
            .filter_map(|bytes| bytes.try_into().ok());
        Ok(pages.map(u64::from_le_bytes).collect())
    }

    /// HvCallGetMemoryBalance.
    pub fn memory_balance(
        &self,
        partition_id: HvPartitionId,
    ) -> HvResult<HvOutputGetMemoryBalance> {
        let proximity_domain_info = HvProximityDomainInfo::default();
        let input = HvInputMemoryPool {
            partition_id,
            proximity_domain_info,
        };
        self.call_out(HvCallCode::GET_MEMORY_BALANCE, &input)
    }

    /// HvCallMapGpaPages: maps the caller's pages from `gpa_base` (a page
    /// number) on. With [`HvMapGpaFlags::LARGE_PAGE`] each element is a 2 MiB
    /// page, named by its first 4 KiB page. The number of elements mapped.
    pub fn map_gpa_pages(
        &self,
        partition_id: HvPartitionId,
        gpa_base: u64,
        spa_pages: impl IntoIterator<Item = u64>,
        flags: HvMapGpaFlags,
    ) -> HvResult<usize> {
        let large = flags.contains(HvMapGpaFlags::LARGE_PAGE);
        let step = if large { HV_LARGE_PAGE_PAGES } else { 1 };
        let header = |done: usize| HvInputMapGpaPages {
            target_partition_id: partition_id,
            target_gpa_base: gpa_base.wrapping_add(done as u64 * step),
            map_flags: flags.bits(),
            padding: 0,
        };
        self.rep_list(HvCallCode::MAP_GPA_PAGES, header, spa_pages)
    }

    /// HvCallMapSparseGpaPages.
    pub fn map_sparse_gpa_pages(
        &self,
        partition_id: HvPartitionId,
        mappings: impl IntoIterator<Item = HvGpaMapping>,
        flags: HvMapGpaFlags,
    ) -> HvResult<usize> {
        let header = |_| HvInputMapSparseGpaPages {
            target_partition_id: partition_id,
            map_flags: flags.bits(),
            padding: 0,
        };
        self.rep_list(HvCallCode::MAP_SPARSE_GPA_PAGES, header, mappings)
    }

    /// HvCallUnmapGpaPages: `count` pages from `gpa_base` on; 2 MiB ones when
    /// `large`.
    pub fn unmap_gpa_pages(
        &self,
        partition_id: HvPartitionId,
        gpa_base: u64,
        count: u64,
        large: bool,
    ) -> HvResult {
        let step = if large { HV_LARGE_PAGE_PAGES } else { 1 };
        let mut done = 0;
        while done < count {
            let reps = (count - done).min(tlfs::HV_MAX_REP_COUNT as u64);
            let input = HvInputUnmapGpaPages {
                target_partition_id: partition_id,
                target_gpa_base: gpa_base.wrapping_add(done * step),
                unmap_flags: if large { HV_UNMAP_GPA_LARGE_PAGE } else { 0 },
                padding: 0,
            };
            let shift = |error: HvError| HvError {
                completed: done as usize + error.completed,
                ..error
            };
            let code = HvCallCode::UNMAP_GPA_PAGES;
            self.rep(code, reps as usize, input.as_bytes(), &mut [])
                .map_err(shift)?;
            done += reps;
        }
        Ok(())
    }

    /// HvCallReadGpa: 1 to 16 bytes within a page, as a virtual processor
    /// sees them.
    pub fn read_gpa(
        &self,
        partition_id: HvPartitionId,
        vp_index: HvVpIndex,
        base_gpa: u64,
        data: &mut [u8],
    ) -> HvResult<HvAccessGpaResultCode> {
        let byte_count = data.len() as u32;
        let input = HvInputReadGpa {
            partition_id,
            vp_index,
            byte_count,
            base_gpa,
            control_flags: 0,
        };
        let output: HvOutputReadGpa = self.call_out(HvCallCode::READ_GPA, &input)?;
        let size = data.len().min(HV_READ_WRITE_GPA_MAX_SIZE);
        data[..size].copy_from_slice(&output.data[..size]);
        Ok(output.result_code)
    }

    /// HvCallWriteGpa: 1 to 16 bytes within a page.
    pub fn write_gpa(
        &self,
        partition_id: HvPartitionId,
        vp_index: HvVpIndex,
        base_gpa: u64,
        data: &[u8],
    ) -> HvResult<HvAccessGpaResultCode> {
        let mut input = HvInputWriteGpa {
            partition_id,
            vp_index,
            byte_count: data.len() as u32,
            base_gpa,
            ..Default::default()
        };
        let size = data.len().min(HV_READ_WRITE_GPA_MAX_SIZE);
        input.data[..size].copy_from_slice(&data[..size]);
        let output: HvOutputWriteGpa = self.call_out(HvCallCode::WRITE_GPA, &input)?;
        Ok(output.result_code)
    }
}
