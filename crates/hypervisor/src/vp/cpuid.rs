//! CPUID as a guest sees it (TLFS chapter 2; Intel SDM 2A, "CPUID").

use tlfs::{
    CPUID_1_ECX_HYPERVISOR, HV_CPUID_ENLIGHTENMENT_INFO, HV_CPUID_FEATURES,
    HV_CPUID_HARDWARE_FEATURES, HV_CPUID_IMPLEMENTATION_LIMITS, HV_CPUID_INTERFACE,
    HV_CPUID_VENDOR_AND_MAX, HV_CPUID_VERSION, HV_INTERFACE_SIGNATURE, HV_VENDOR_SIGNATURE,
    HvEnlightenmentHints, HvHardwareFeatures, HvPartitionPrivilegeMask, HvPartitionPropertyCode,
};

use super::Vp;
use crate::apic::ApicMode;
use crate::partition::{Partition, ROOT_PARTITION_ID};
use crate::{HypervisorConfig, ProcessorVendor};

const ECX_MONITOR: u32 = 1 << 3;
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const EDX_APIC: u32 = 1 << 9;
const EDX_HTT: u32 = 1 << 28;
const EDX_INVARIANT_TSC: u32 = 1 << 8;
const EAX_ARAT: u32 = 1 << 2;

/// EAX, EBX, ECX, EDX of a leaf and subleaf; `default` is the processor's.
pub(crate) fn cpuid(
    config: &HypervisorConfig,
    partition: &Partition,
    vp: &Vp,
    (leaf, subleaf): (u32, u32),
    default: [u32; 4],
) -> [u32; 4] {
    let own = match leaf {
        0x4000_0000..=0x4FFF_FFFF => hypervisor_leaf(config, partition, leaf),
        _ => processor_leaf(config, partition, vp, leaf, subleaf, default),
    };
    registered(partition, vp, leaf, subleaf, own)
}

/// Applies the results that the parent registered.
fn registered(partition: &Partition, vp: &Vp, leaf: u32, subleaf: u32, own: [u32; 4]) -> [u32; 4] {
    let mut values = own;
    for result in &partition.intercepts.lock().results {
        let here = result.leaf == leaf
            && result.subleaf.is_none_or(|wanted| wanted == subleaf)
            && result.vp.is_none_or(|wanted| wanted == vp.index);
        if here {
            for (value, (bits, mask)) in values.iter_mut().zip(result.values) {
                *value = *value & !mask | bits & mask;
            }
        }
    }
    values
}

fn hypervisor_leaf(config: &HypervisorConfig, partition: &Partition, leaf: u32) -> [u32; 4] {
    let privileges = partition.privileges().bits();
    match leaf {
        HV_CPUID_VENDOR_AND_MAX => {
            let [b, c, d] = HV_VENDOR_SIGNATURE;
            [HV_CPUID_HARDWARE_FEATURES, b, c, d]
        }
        HV_CPUID_INTERFACE => [HV_INTERFACE_SIGNATURE, 0, 0, 0],
        HV_CPUID_VERSION => config.version,
        HV_CPUID_FEATURES => [
            privileges as u32,
            (privileges >> 32) as u32,
            0,
            config.features.bits(),
        ],
        HV_CPUID_ENLIGHTENMENT_INFO => {
            let bits = u32::from(config.physical_address_bits) & 0x7F;
            [
                hints(config, partition).bits(),
                config.spin_retries,
                bits,
                0,
            ]
        }
        HV_CPUID_IMPLEMENTATION_LIMITS => [config.max_vps, config.max_vps, 0, 0],
        HV_CPUID_HARDWARE_FEATURES => [HvHardwareFeatures::SLAT.bits(), 0, 0, 0],
        _ => [0; 4],
    }
}

/// The configured hints as far as the partition can use them.
fn hints(config: &HypervisorConfig, partition: &Partition) -> HvEnlightenmentHints {
    let may = |privilege| partition.may(privilege);
    let changed =
        partition.property(HvPartitionPropertyCode::ENLIGHTENMENT_MODIFICATIONS, 0) as u32;
    let mut hints = HvEnlightenmentHints::from_bits_retain(config.hints.bits() ^ changed);
    if !may(HvPartitionPrivilegeMask::ACCESS_HYPERCALL_MSRS) {
        hints -= HvEnlightenmentHints::REMOTE_TLB_FLUSH
            | HvEnlightenmentHints::LOCAL_TLB_FLUSH
            | HvEnlightenmentHints::CLUSTER_IPI
            | HvEnlightenmentHints::EX_PROCESSOR_MASKS;
    }
    if !may(HvPartitionPrivilegeMask::ACCESS_INTR_CTRL_REGS) {
        hints -= HvEnlightenmentHints::APIC_MSRS;
    }
    if !may(HvPartitionPrivilegeMask::ACCESS_RESET_REG) {
        hints -= HvEnlightenmentHints::RESET_MSR;
    }
    hints
}

fn processor_leaf(
    config: &HypervisorConfig,
    partition: &Partition,
    vp: &Vp,
    leaf: u32,
    subleaf: u32,
    default: [u32; 4],
) -> [u32; 4] {
    let count = partition.vp_count().max(1);
    let [a, b, c, d] = default;
    match leaf {
        1 => leaf_1(partition, vp, count, default),
        4 => leaf_4(count, default),
        6 => [EAX_ARAT, 0, 0, 0],
        0xB | 0x1F => topology(subleaf, count, vp.apic_id),
        0x8000_0007 => [a, b, c, invariant_tsc(partition, d)],
        0x8000_0008 if config.vendor == ProcessorVendor::Amd => {
            let size = apic_id_bits(count);
            [a, b, size << 12 | (count - 1) & 0xFF, d]
        }
        0x8000_001E if config.vendor == ProcessorVendor::Amd => {
            // One thread per core, one node.
            [vp.apic_id, vp.apic_id & 0xFF, 0, 0]
        }
        _ => default,
    }
}

fn leaf_1(partition: &Partition, vp: &Vp, count: u32, [a, b, c, d]: [u32; 4]) -> [u32; 4] {
    let ids = (1u32 << apic_id_bits(count)).min(255);
    let b = b & 0xFFFF | ids << 16 | vp.apic_id << 24;
    let mut c = c & !(ECX_MONITOR | ECX_X2APIC) | CPUID_1_ECX_HYPERVISOR | ECX_TSC_DEADLINE;
    let root = partition.id == ROOT_PARTITION_ID;
    if root
        || partition
            .flags
            .contains(tlfs::HvPartitionCreationFlags::X2APIC_CAPABLE)
    {
        c |= ECX_X2APIC;
    }
    let htt = if count > 1 { EDX_HTT } else { 0 };
    // The bit follows the enable bit of the APIC base register (Intel SDM 3A,
    // "Enabling or Disabling the Local APIC").
    let apic = match vp.state.lock().apic.mode() {
        ApicMode::Disabled => 0,
        _ => EDX_APIC,
    };
    [a, b, c, d & !(EDX_HTT | EDX_APIC) | apic | htt]
}

/// Deterministic cache parameters: caches below the third level belong to one
/// virtual processor, the third to all.
fn leaf_4(count: u32, [a, b, c, d]: [u32; 4]) -> [u32; 4] {
    if a & 0x1F == 0 {
        return [a, b, c, d];
    }
    let ids = 1u32 << apic_id_bits(count);
    let level = a >> 5 & 7;
    let sharing = if level >= 3 { (ids - 1).min(0xFFF) } else { 0 };
    [
        a & 0x3FFF | sharing << 14 | (ids - 1).min(0x3F) << 26,
        b,
        c,
        d,
    ]
}

/// Extended topology: one thread per core, all cores in one package.
fn topology(subleaf: u32, count: u32, apic_id: u32) -> [u32; 4] {
    match subleaf {
        0 => [0, 1, 1 << 8, apic_id],
        1 => [apic_id_bits(count), count, 2 << 8 | 1, apic_id],
        _ => [0, 0, subleaf & 0xFF, apic_id],
    }
}

fn apic_id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// Where the guest controls it, the invariant TSC is shown when it asks.
fn invariant_tsc(partition: &Partition, edx: u32) -> u32 {
    let shown = partition.guest.lock().tsc_invariant & 1 != 0;
    let controlled = partition.may(HvPartitionPrivilegeMask::ACCESS_TSC_INVARIANT_CONTROLS);
    match (controlled, shown) {
        (false, _) => edx,
        (true, true) => edx | EDX_INVARIANT_TSC,
        (true, false) => edx & !EDX_INVARIANT_TSC,
    }
}
