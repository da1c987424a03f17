//! What an embedder decides about a hypervisor.

use tlfs::{HvEnlightenmentHints, HvFeatures, HvPartitionPrivilegeMask};

/// Whose processor the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProcessorVendor {
    /// Intel: the hypercall page uses VMCALL.
    #[default]
    Intel,
    /// AMD: the hypercall page uses VMMCALL.
    Amd,
}

/// Configuration of a [`crate::Hypervisor`]; the same for all partitions.
#[derive(Clone, Debug)]
pub struct HypervisorConfig {
    /// The processors' vendor.
    pub vendor: ProcessorVendor,
    /// Frequency of the local APIC timer, Hz.
    pub apic_frequency: u64,
    /// CPUID 0x40000002 EAX, EBX, ECX, EDX.
    pub version: [u32; 4],
    /// Privileges that a child has unless its parent changes them.
    pub child_privileges: HvPartitionPrivilegeMask,
    /// CPUID 0x40000003 EDX for children.
    pub features: HvFeatures,
    /// CPUID 0x40000004 EAX for children.
    pub hints: HvEnlightenmentHints,
    /// CPUID 0x40000004 EBX: spins before HvCallNotifyLongSpinWait,
    /// `u32::MAX` for never.
    pub spin_retries: u32,
    /// Guest-physical address width in bits, 36 to 52.
    pub physical_address_bits: u8,
    /// Most virtual processors in a partition.
    pub max_vps: u32,
}

impl Default for HypervisorConfig {
    fn default() -> Self {
        Self {
            vendor: ProcessorVendor::Intel,
            apic_frequency: 200_000_000,
            // Build 20348, version 10.0: what guests know as Windows Server 2022.
            version: [20348, 10 << 16, 0, 0],
            child_privileges: HvPartitionPrivilegeMask::CHILD_DEFAULT,
            features: HvFeatures::XMM_HYPERCALL_INPUT
                | HvFeatures::GUEST_IDLE
                | HvFeatures::FREQUENCY_REGS
                | HvFeatures::GUEST_CRASH_REGS
                | HvFeatures::EXTENDED_GVA_RANGES
                | HvFeatures::XMM_HYPERCALL_OUTPUT
                | HvFeatures::SINT_POLLING
                | HvFeatures::HYPERCALL_MSR_LOCK
                | HvFeatures::DIRECT_SYNTHETIC_TIMERS,
            hints: HvEnlightenmentHints::DEFAULT,
            spin_retries: u32::MAX,
            physical_address_bits: 46,
            max_vps: 240,
        }
    }
}
