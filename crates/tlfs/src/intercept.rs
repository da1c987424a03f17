//! Intercepts: types, and the payloads of intercept messages (TLFS 2.0a
//! chapters 9 and 16).

use crate::{HvPartitionId, HvX64SegmentRegister};

open_enum! {
    /// HV_INTERCEPT_TYPE.
    pub struct HvInterceptType(u32) {
        /// One port.
        X64_IO_PORT = 0x0,
        /// All MSRs that the hypervisor does not answer.
        X64_MSR = 0x1,
        /// One CPUID leaf.
        X64_CPUID = 0x2,
        /// One exception.
        EXCEPTION = 0x3,
        /// All CPUID leaves.
        X64_GLOBAL_CPUID = 0x6,
        /// SMI.
        X64_APIC_SMI = 0x7,
        /// Hypercalls that the hypervisor does not know.
        HYPERCALL = 0x8,
        /// INIT and SIPI.
        X64_APIC_INIT_SIPI = 0x9,
        /// APIC register writes.
        X64_APIC_WRITE = 0xB,
        /// One MSR.
        X64_MSR_INDEX = 0xC,
        /// Unknown SynIC connections.
        UNKNOWN_SYNIC_CONNECTION = 0xD,
        /// EOI of level-triggered interrupts.
        X64_APIC_EOI = 0xE,
        /// Retargeting of an unknown device.
        RETARGET_INTERRUPT_WITH_UNKNOWN_DEVICE_ID = 0xF,
        /// Exception traps.
        EXCEPTION_TRAP = 0x10,
        /// A range of ports.
        X64_IO_PORT_RANGE = 0x11,
    }
}

bitflags::bitflags! {
    /// HV_INTERCEPT_ACCESS_TYPE_MASK.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HvInterceptAccessMask: u32 {
        /// Reads.
        const READ = 1;
        /// Writes.
        const WRITE = 2;
        /// Execution.
        const EXECUTE = 4;
    }
}

open_enum! {
    /// HV_INTERCEPT_ACCESS_TYPE.
    pub struct HvInterceptAccessType(u8) {
        /// A read.
        READ = 0,
        /// A write.
        WRITE = 1,
        /// An instruction fetch or execution.
        EXECUTE = 2,
    }
}

wire! {
    /// HV_INPUT_INSTALL_INTERCEPT (0x4D).
    pub struct HvInputInstallIntercept {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// [`HvInterceptAccessMask`]; 0 removes the intercept.
        pub access_type: u32,
        /// The type.
        pub intercept_type: HvInterceptType,
        /// Port, leaf, vector or MSR.
        pub parameters: u64,
    }
}

wire! {
    /// HV_X64_INTERCEPT_MESSAGE_HEADER: what every intercept message begins
    /// with.
    pub struct HvX64InterceptMessageHeader {
        /// The VP.
        pub vp_index: u32,
        /// Bits 0 to 3 instruction length (0 unknown), bits 4 to 7 CR8.
        pub instruction_length_and_cr8: u8,
        /// Read, write or execute.
        pub intercept_access_type: HvInterceptAccessType,
        /// Bits 0 and 1 CPL, 2 CR0.PE, 3 CR0.AM, 4 EFER.LMA, 5 debug active,
        /// 6 interruption pending, 12 interrupt shadow.
        pub execution_state: u16,
        /// CS.
        pub cs_segment: HvX64SegmentRegister,
        /// RIP, at the instruction.
        pub rip: u64,
        /// RFLAGS.
        pub rflags: u64,
    }
}

wire! {
    /// HV_X64_IO_PORT_INTERCEPT_MESSAGE.
    pub struct HvX64IoPortInterceptMessage {
        /// The header.
        pub header: HvX64InterceptMessageHeader,
        /// The port.
        pub port_number: u16,
        /// Bits 0 to 2 size in bytes, 3 string instruction, 4 rep prefix.
        pub access_info: u8,
        /// Valid bytes in `instruction_bytes`.
        pub instruction_byte_count: u8,
        /// Reserved.
        pub reserved: u32,
        /// RAX; for OUT and each element of OUTS the low bits are the value
        /// written.
        pub rax: u64,
        /// The instruction.
        pub instruction_bytes: [u8; 16],
        /// DS.
        pub ds_segment: HvX64SegmentRegister,
        /// ES.
        pub es_segment: HvX64SegmentRegister,
        /// RCX.
        pub rcx: u64,
        /// RSI.
        pub rsi: u64,
        /// RDI.
        pub rdi: u64,
    }
}

wire! {
    /// HV_X64_MEMORY_INTERCEPT_MESSAGE, followed by Partita's extension in
    /// bytes that the TLFS leaves unused: the decoded access, so that the
    /// parent need not decode instructions.
    pub struct HvX64MemoryInterceptMessage {
        /// The header.
        pub header: HvX64InterceptMessageHeader,
        /// HV_CACHE_TYPE; 0 uncached.
        pub cache_type: u32,
        /// Valid bytes in `instruction_bytes`.
        pub instruction_byte_count: u8,
        /// Bit 0 GVA valid, bit 1 GVA and GPA valid.
        pub memory_access_info: u8,
        /// TPR priority.
        pub tpr_priority: u8,
        /// Reserved.
        pub reserved: u8,
        /// The GVA, where valid.
        pub guest_virtual_address: u64,
        /// The GPA of the first byte.
        pub guest_physical_address: u64,
        /// The instruction.
        pub instruction_bytes: [u8; 16],
        /// Extension: bytes accessed, 1 to 8; 0 when not known.
        pub access_size: u32,
        /// Reserved.
        pub reserved1: u32,
        /// Extension: the value stored, zero-extended.
        pub write_data: u64,
    }
}

wire! {
    /// HV_X64_MSR_INTERCEPT_MESSAGE.
    pub struct HvX64MsrInterceptMessage {
        /// The header.
        pub header: HvX64InterceptMessageHeader,
        /// The MSR.
        pub msr_number: u32,
        /// Reserved.
        pub reserved: u32,
        /// RDX.
        pub rdx: u64,
        /// RAX.
        pub rax: u64,
    }
}

wire! {
    /// HV_X64_CPUID_INTERCEPT_MESSAGE.
    pub struct HvX64CpuidInterceptMessage {
        /// The header.
        pub header: HvX64InterceptMessageHeader,
        /// RAX: the leaf.
        pub rax: u64,
        /// RCX: the subleaf.
        pub rcx: u64,
        /// RDX.
        pub rdx: u64,
        /// RBX.
        pub rbx: u64,
        /// What EAX would be.
        pub default_result_rax: u64,
        /// What ECX would be.
        pub default_result_rcx: u64,
        /// What EDX would be.
        pub default_result_rdx: u64,
        /// What EBX would be.
        pub default_result_rbx: u64,
    }
}

wire! {
    /// HV_X64_EXCEPTION_INTERCEPT_MESSAGE up to the instruction bytes.
    pub struct HvX64ExceptionInterceptMessage {
        /// The header.
        pub header: HvX64InterceptMessageHeader,
        /// The vector.
        pub vector: u16,
        /// Bit 0 error code valid.
        pub exception_info: u8,
        /// Valid bytes in `instruction_bytes`.
        pub instruction_byte_count: u8,
        /// The error code.
        pub error_code: u32,
        /// CR2 for page faults.
        pub exception_parameter: u64,
        /// Reserved.
        pub reserved: u64,
        /// The instruction.
        pub instruction_bytes: [u8; 16],
    }
}

wire! {
    /// HV_X64_UNRECOVERABLE_EXCEPTION_MESSAGE.
    pub struct HvX64UnrecoverableExceptionMessage {
        /// The header.
        pub header: HvX64InterceptMessageHeader,
    }
}

wire! {
    /// HV_X64_HYPERCALL_INTERCEPT_MESSAGE.
    pub struct HvX64HypercallInterceptMessage {
        /// The header.
        pub header: HvX64InterceptMessageHeader,
        /// RAX.
        pub rax: u64,
        /// RBX.
        pub rbx: u64,
        /// RCX.
        pub rcx: u64,
        /// RDX.
        pub rdx: u64,
        /// R8.
        pub r8: u64,
        /// RSI.
        pub rsi: u64,
        /// RDI.
        pub rdi: u64,
        /// XMM0 to XMM5, low halves first.
        pub xmm_registers: [[u64; 2]; 6],
        /// Flags.
        pub flags: u32,
        /// Reserved.
        pub reserved: [u32; 3],
    }
}

wire! {
    /// HV_X64_APIC_EOI_MESSAGE.
    pub struct HvX64ApicEoiMessage {
        /// The VP.
        pub vp_index: u32,
        /// The vector.
        pub interrupt_vector: u32,
    }
}

wire! {
    /// HV_INPUT_REGISTER_INTERCEPT_RESULT (0x91) for CPUID; for MSRs only
    /// the first three words of the parameters count.
    pub struct HvInputRegisterInterceptResult {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The VP, or HV_ANY_VP.
        pub vp_index: u32,
        /// CPUID.
        pub intercept_type: HvInterceptType,
        /// EAX of CPUID.
        pub leaf: u32,
        /// ECX of CPUID.
        pub subleaf: u32,
        /// Whether the subleaf counts.
        pub subleaf_specific: u8,
        /// Whether the result replaces the hypervisor's own too.
        pub always_override: u8,
        /// Padding.
        pub padding: u16,
        /// EAX, mask, EBX, mask, ECX, mask, EDX, mask.
        pub result: [u32; 8],
        /// Padding to 8 bytes.
        pub padding1: u32,
    }
}

wire! {
    /// HV_INPUT_UNREGISTER_INTERCEPT_RESULT (0x92).
    pub struct HvInputUnregisterInterceptResult {
        /// The partition.
        pub partition_id: HvPartitionId,
        /// The VP, or HV_ANY_VP.
        pub vp_index: u32,
        /// CPUID.
        pub intercept_type: HvInterceptType,
        /// EAX of CPUID.
        pub leaf: u32,
        /// ECX of CPUID.
        pub subleaf: u32,
        /// Whether the subleaf counts.
        pub subleaf_specific: u8,
        /// Padding.
        pub padding: [u8; 7],
    }
}
