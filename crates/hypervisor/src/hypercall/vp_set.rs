//! Sets of virtual processors as calls name them.

use alloc::sync::Arc;
use alloc::vec::Vec;

use tlfs::{HV_GENERIC_SET_ALL, HV_GENERIC_SET_SPARSE_4K, HV_VPS_PER_BANK, HvStatus, HvVpIndex};

use super::HvResult;
use crate::partition::Partition;
use crate::vp::Vp;

/// The members of a 64-bit mask.
pub(super) fn from_mask(partition: &Partition, mask: u64) -> Vec<Arc<Vp>> {
    let mut vps = partition.all_vps();
    vps.retain(|vp| vp.index < HV_VPS_PER_BANK && mask >> vp.index & 1 != 0);
    vps
}

/// The members of an HV_VP_SET; `banks` are the bytes behind its header.
pub(super) fn from_set(
    partition: &Partition,
    format: u64,
    valid_bank_mask: u64,
    banks: &[u8],
) -> HvResult<Vec<Arc<Vp>>> {
    match format {
        HV_GENERIC_SET_ALL => Ok(partition.all_vps()),
        HV_GENERIC_SET_SPARSE_4K => {
            let banks = banks.chunks_exact(8);
            if banks.len() < valid_bank_mask.count_ones() as usize {
                return Err(HvStatus::INVALID_HYPERCALL_INPUT);
            }
            let mut masks = [0u64; 64];
            let valid = (0..64).filter(|bank| valid_bank_mask >> bank & 1 != 0);
            for (bank, bytes) in valid.zip(banks) {
                masks[bank] = bytes.try_into().map_or(0, u64::from_le_bytes);
            }
            let mut vps = partition.all_vps();
            vps.retain(|vp| contains(&masks, vp.index));
            Ok(vps)
        }
        _ => Err(HvStatus::INVALID_PARAMETER),
    }
}

fn contains(masks: &[u64; 64], index: HvVpIndex) -> bool {
    let mask = masks.get((index / HV_VPS_PER_BANK) as usize);
    mask.is_some_and(|mask| mask >> (index % HV_VPS_PER_BANK) & 1 != 0)
}
