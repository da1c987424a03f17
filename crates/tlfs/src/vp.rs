//! Virtual processors (TLFS chapter 7).

use crate::{HvPartitionId, HvProximityDomainInfo, HvX64SegmentRegister, HvX64TableRegister};

wire! {
    /// HV_INPUT_CREATE_VP (0x4E).
    pub struct HvInputCreateVp {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The new index.
        pub vp_index: u32,
        /// Must be zero.
        pub padding: [u8; 3],
        /// Subnode type.
        pub subnode_type: u8,
        /// Subnode.
        pub subnode_id: u64,
        /// NUMA hint.
        pub proximity_domain_info: HvProximityDomainInfo,
        /// Must be zero.
        pub flags: u64,
    }
}

wire! {
    /// HV_INPUT_DELETE_VP (0x4F).
    pub struct HvInputDeleteVp {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The VP.
        pub vp_index: u32,
        /// Padding.
        pub reserved: u32,
    }
}

wire! {
    /// Fixed part of HvCallGetVpRegisters (0x50, names follow) and
    /// HvCallSetVpRegisters (0x51, `HvRegisterAssoc` follow).
    pub struct HvInputVpRegisters {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The VP.
        pub vp_index: u32,
        /// VTL selection: 0.
        pub input_vtl: u8,
        /// Padding.
        pub padding: [u8; 3],
    }
}

wire! {
    /// HV_INITIAL_VP_CONTEXT.
    pub struct HvInitialVpContext {
        /// RIP.
        pub rip: u64,
        /// RSP.
        pub rsp: u64,
        /// RFLAGS.
        pub rflags: u64,
        /// CS.
        pub cs: HvX64SegmentRegister,
        /// DS.
        pub ds: HvX64SegmentRegister,
        /// ES.
        pub es: HvX64SegmentRegister,
        /// FS.
        pub fs: HvX64SegmentRegister,
        /// GS.
        pub gs: HvX64SegmentRegister,
        /// SS.
        pub ss: HvX64SegmentRegister,
        /// TR.
        pub tr: HvX64SegmentRegister,
        /// LDTR.
        pub ldtr: HvX64SegmentRegister,
        /// IDTR.
        pub idtr: HvX64TableRegister,
        /// GDTR.
        pub gdtr: HvX64TableRegister,
        /// EFER.
        pub efer: u64,
        /// CR0.
        pub cr0: u64,
        /// CR3.
        pub cr3: u64,
        /// CR4.
        pub cr4: u64,
        /// PAT.
        pub msr_cr_pat: u64,
    }
}

wire! {
    /// HV_INPUT_START_VIRTUAL_PROCESSOR (0x99).
    pub struct HvInputStartVirtualProcessor {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The VP.
        pub vp_index: u32,
        /// VTL: 0.
        pub target_vtl: u8,
        /// Must be zero.
        pub reserved: [u8; 3],
        /// Its first state.
        pub vp_context: HvInitialVpContext,
    }
}

wire! {
    /// Fixed part of HvCallGetVpIndexFromApicId (0x9A); APIC ids follow.
    pub struct HvInputGetVpIndexFromApicId {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// VTL: 0.
        pub target_vtl: u8,
        /// Padding.
        pub padding: [u8; 7],
    }
}
