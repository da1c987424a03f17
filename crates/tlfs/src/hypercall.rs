//! The hypercall control and result words and the call codes (TLFS chapter 3
//! and appendix A).

use crate::HvStatus;

/// Largest input of a fast hypercall in RDX and R8, bytes.
pub const HV_FAST_INPUT_SIZE: usize = 16;
/// Largest parameter block of an XMM fast hypercall (RDX, R8, XMM0 to XMM5), bytes.
pub const HV_XMM_FAST_SIZE: usize = 112;
/// Reps that the 12-bit count field can name.
pub const HV_MAX_REP_COUNT: usize = 0xFFF;

/// HV_HYPERCALL_INPUT: the control word of a hypercall (TLFS 3.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvHypercallControl(pub u64);

impl HvHypercallControl {
    /// Bits 27 to 31, 44 to 47 and 60 to 63. Bit 31 ("is nested") belongs to
    /// a hypervisor that runs under another, and is reserved here.
    pub const RESERVED: u64 = 0xF000_F000_F800_0000;

    /// A simple call through parameter pages.
    pub const fn simple(code: HvCallCode) -> Self {
        Self(code.0 as u64)
    }

    /// A rep call; `count` and `start` are cut to 12 bits.
    pub const fn rep(code: HvCallCode, count: usize, start: usize) -> Self {
        Self(code.0 as u64 | ((count as u64 & 0xFFF) << 32) | ((start as u64 & 0xFFF) << 48))
    }

    /// With the fast bit set.
    pub const fn with_fast(self) -> Self {
        Self(self.0 | 1 << 16)
    }

    /// With a variable header of `qwords` times 8 bytes (10 bits).
    pub const fn with_variable_header(self, qwords: usize) -> Self {
        Self((self.0 & !(0x3FF << 17)) | ((qwords as u64 & 0x3FF) << 17))
    }

    /// The same control word with another rep start index.
    pub const fn with_rep_start(self, start: usize) -> Self {
        Self((self.0 & !(0xFFF << 48)) | ((start as u64 & 0xFFF) << 48))
    }

    /// The call code, bits 0 to 15.
    pub const fn code(self) -> HvCallCode {
        HvCallCode(self.0 as u16)
    }

    /// Whether parameters are in registers, bit 16.
    pub const fn fast(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// Size of the variable header in QWORDs, bits 17 to 26.
    pub const fn variable_header_qwords(self) -> usize {
        (self.0 >> 17 & 0x3FF) as usize
    }

    /// Total number of reps, bits 32 to 43.
    pub const fn rep_count(self) -> usize {
        (self.0 >> 32 & 0xFFF) as usize
    }

    /// The first rep to be done, bits 48 to 59.
    pub const fn rep_start(self) -> usize {
        (self.0 >> 48 & 0xFFF) as usize
    }
}

/// HV_HYPERCALL_RESULT: what a hypercall returns (TLFS 3.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct HvHypercallResult(pub u64);

impl HvHypercallResult {
    /// A result: the status and the reps completed (0 for simple calls),
    /// counted from the start of the list.
    pub const fn new(status: HvStatus, reps: usize) -> Self {
        Self(status.0 as u64 | ((reps as u64 & 0xFFF) << 32))
    }

    /// The status, bits 0 to 15.
    pub const fn status(self) -> HvStatus {
        HvStatus(self.0 as u16)
    }

    /// Reps completed, bits 32 to 43.
    pub const fn reps_completed(self) -> usize {
        (self.0 >> 32 & 0xFFF) as usize
    }
}

open_enum! {
    /// HV_CALL_CODE.
    pub struct HvCallCode(u16) {
        /// HvCallSwitchVirtualAddressSpace.
        SWITCH_VIRTUAL_ADDRESS_SPACE = 0x0001,
        /// HvCallFlushVirtualAddressSpace.
        FLUSH_VIRTUAL_ADDRESS_SPACE = 0x0002,
        /// HvCallFlushVirtualAddressList.
        FLUSH_VIRTUAL_ADDRESS_LIST = 0x0003,
        /// HvCallGetLogicalProcessorRunTime.
        GET_LOGICAL_PROCESSOR_RUN_TIME = 0x0004,
        /// HvCallNotifyLongSpinWait.
        NOTIFY_LONG_SPIN_WAIT = 0x0008,
        /// HvCallParkLogicalProcessors.
        PARK_LOGICAL_PROCESSORS = 0x0009,
        /// HvCallInvokeHypervisorDebugger.
        INVOKE_HYPERVISOR_DEBUGGER = 0x000A,
        /// HvCallSendSyntheticClusterIpi.
        SEND_SYNTHETIC_CLUSTER_IPI = 0x000B,
        /// HvCallModifyVtlProtectionMask.
        MODIFY_VTL_PROTECTION_MASK = 0x000C,
        /// HvCallEnablePartitionVtl.
        ENABLE_PARTITION_VTL = 0x000D,
        /// HvCallDisablePartitionVtl.
        DISABLE_PARTITION_VTL = 0x000E,
        /// HvCallEnableVpVtl.
        ENABLE_VP_VTL = 0x000F,
        /// HvCallDisableVpVtl.
        DISABLE_VP_VTL = 0x0010,
        /// HvCallVtlCall.
        VTL_CALL = 0x0011,
        /// HvCallVtlReturn.
        VTL_RETURN = 0x0012,
        /// HvCallFlushVirtualAddressSpaceEx.
        FLUSH_VIRTUAL_ADDRESS_SPACE_EX = 0x0013,
        /// HvCallFlushVirtualAddressListEx.
        FLUSH_VIRTUAL_ADDRESS_LIST_EX = 0x0014,
        /// HvCallSendSyntheticClusterIpiEx.
        SEND_SYNTHETIC_CLUSTER_IPI_EX = 0x0015,
        /// HvCallCreatePartition.
        CREATE_PARTITION = 0x0040,
        /// HvCallInitializePartition.
        INITIALIZE_PARTITION = 0x0041,
        /// HvCallFinalizePartition.
        FINALIZE_PARTITION = 0x0042,
        /// HvCallDeletePartition.
        DELETE_PARTITION = 0x0043,
        /// HvCallGetPartitionProperty.
        GET_PARTITION_PROPERTY = 0x0044,
        /// HvCallSetPartitionProperty.
        SET_PARTITION_PROPERTY = 0x0045,
        /// HvCallGetPartitionId.
        GET_PARTITION_ID = 0x0046,
        /// HvCallGetNextChildPartition.
        GET_NEXT_CHILD_PARTITION = 0x0047,
        /// HvCallDepositMemory.
        DEPOSIT_MEMORY = 0x0048,
        /// HvCallWithdrawMemory.
        WITHDRAW_MEMORY = 0x0049,
        /// HvCallGetMemoryBalance.
        GET_MEMORY_BALANCE = 0x004A,
        /// HvCallMapGpaPages.
        MAP_GPA_PAGES = 0x004B,
        /// HvCallUnmapGpaPages.
        UNMAP_GPA_PAGES = 0x004C,
        /// HvCallInstallIntercept.
        INSTALL_INTERCEPT = 0x004D,
        /// HvCallCreateVp.
        CREATE_VP = 0x004E,
        /// HvCallDeleteVp.
        DELETE_VP = 0x004F,
        /// HvCallGetVpRegisters.
        GET_VP_REGISTERS = 0x0050,
        /// HvCallSetVpRegisters.
        SET_VP_REGISTERS = 0x0051,
        /// HvCallTranslateVirtualAddress.
        TRANSLATE_VIRTUAL_ADDRESS = 0x0052,
        /// HvCallReadGpa.
        READ_GPA = 0x0053,
        /// HvCallWriteGpa.
        WRITE_GPA = 0x0054,
        /// HvCallAssertVirtualInterrupt as of TLFS 2.0a.
        ASSERT_VIRTUAL_INTERRUPT_DEPRECATED = 0x0055,
        /// HvCallClearVirtualInterrupt.
        CLEAR_VIRTUAL_INTERRUPT = 0x0056,
        /// HvCallCreatePort as of TLFS 2.0a.
        CREATE_PORT_DEPRECATED = 0x0057,
        /// HvCallDeletePort.
        DELETE_PORT = 0x0058,
        /// HvCallConnectPort as of TLFS 2.0a.
        CONNECT_PORT_DEPRECATED = 0x0059,
        /// HvCallGetPortProperty.
        GET_PORT_PROPERTY = 0x005A,
        /// HvCallDisconnectPort.
        DISCONNECT_PORT = 0x005B,
        /// HvCallPostMessage.
        POST_MESSAGE = 0x005C,
        /// HvCallSignalEvent.
        SIGNAL_EVENT = 0x005D,
        /// HvCallSavePartitionState.
        SAVE_PARTITION_STATE = 0x005E,
        /// HvCallRestorePartitionState.
        RESTORE_PARTITION_STATE = 0x005F,
        /// HvCallInitializeEventLogBufferGroup.
        INITIALIZE_EVENT_LOG_BUFFER_GROUP = 0x0060,
        /// HvCallFinalizeEventLogBufferGroup.
        FINALIZE_EVENT_LOG_BUFFER_GROUP = 0x0061,
        /// HvCallCreateEventLogBuffer.
        CREATE_EVENT_LOG_BUFFER = 0x0062,
        /// HvCallDeleteEventLogBuffer.
        DELETE_EVENT_LOG_BUFFER = 0x0063,
        /// HvCallMapEventLogBuffer.
        MAP_EVENT_LOG_BUFFER = 0x0064,
        /// HvCallUnmapEventLogBuffer.
        UNMAP_EVENT_LOG_BUFFER = 0x0065,
        /// HvCallSetEventLogGroupSources.
        SET_EVENT_LOG_GROUP_SOURCES = 0x0066,
        /// HvCallReleaseEventLogBuffer.
        RELEASE_EVENT_LOG_BUFFER = 0x0067,
        /// HvCallFlushEventLogBuffer.
        FLUSH_EVENT_LOG_BUFFER = 0x0068,
        /// HvCallPostDebugData.
        POST_DEBUG_DATA = 0x0069,
        /// HvCallRetrieveDebugData.
        RETRIEVE_DEBUG_DATA = 0x006A,
        /// HvCallResetDebugSession.
        RESET_DEBUG_SESSION = 0x006B,
        /// HvCallMapStatsPage.
        MAP_STATS_PAGE = 0x006C,
        /// HvCallUnmapStatsPage.
        UNMAP_STATS_PAGE = 0x006D,
        /// HvCallMapSparseGpaPages.
        MAP_SPARSE_GPA_PAGES = 0x006E,
        /// HvCallSetSystemProperty.
        SET_SYSTEM_PROPERTY = 0x006F,
        /// HvCallSetPortProperty.
        SET_PORT_PROPERTY = 0x0070,
        /// HvCallOutputDebugCharacter.
        OUTPUT_DEBUG_CHARACTER = 0x0071,
        /// HvCallAddLogicalProcessor.
        ADD_LOGICAL_PROCESSOR = 0x0076,
        /// HvCallRemoveLogicalProcessor.
        REMOVE_LOGICAL_PROCESSOR = 0x0077,
        /// HvCallQueryNumaDistance.
        QUERY_NUMA_DISTANCE = 0x0078,
        /// HvCallSetLogicalProcessorProperty.
        SET_LOGICAL_PROCESSOR_PROPERTY = 0x0079,
        /// HvCallGetLogicalProcessorProperty.
        GET_LOGICAL_PROCESSOR_PROPERTY = 0x007A,
        /// HvCallGetSystemProperty.
        GET_SYSTEM_PROPERTY = 0x007B,
        /// HvCallMapDeviceInterrupt.
        MAP_DEVICE_INTERRUPT = 0x007C,
        /// HvCallUnmapDeviceInterrupt.
        UNMAP_DEVICE_INTERRUPT = 0x007D,
        /// HvCallRetargetDeviceInterrupt.
        RETARGET_DEVICE_INTERRUPT = 0x007E,
        /// HvCallNotifyPartitionEvent.
        NOTIFY_PARTITION_EVENT = 0x0087,
        /// HvCallNotifyPortRingEmpty.
        NOTIFY_PORT_RING_EMPTY = 0x008B,
        /// HvCallModifySparseGpaPages.
        MODIFY_SPARSE_GPA_PAGES = 0x0090,
        /// HvCallRegisterInterceptResult.
        REGISTER_INTERCEPT_RESULT = 0x0091,
        /// HvCallUnregisterInterceptResult.
        UNREGISTER_INTERCEPT_RESULT = 0x0092,
        /// HvCallAssertVirtualInterrupt.
        ASSERT_VIRTUAL_INTERRUPT = 0x0094,
        /// HvCallCreatePort.
        CREATE_PORT = 0x0095,
        /// HvCallConnectPort.
        CONNECT_PORT = 0x0096,
        /// HvCallGetSpaPageList.
        GET_SPA_PAGE_LIST = 0x0097,
        /// HvCallStartVirtualProcessor.
        START_VIRTUAL_PROCESSOR = 0x0099,
        /// HvCallGetVpIndexFromApicId.
        GET_VP_INDEX_FROM_APIC_ID = 0x009A,
        /// HvCallTranslateVirtualAddressEx.
        TRANSLATE_VIRTUAL_ADDRESS_EX = 0x00AC,
        /// HvCallCheckForIoIntercept.
        CHECK_FOR_IO_INTERCEPT = 0x00AD,
        /// HvCallFlushGuestPhysicalAddressSpace.
        FLUSH_GUEST_PHYSICAL_ADDRESS_SPACE = 0x00AF,
        /// HvCallFlushGuestPhysicalAddressList.
        FLUSH_GUEST_PHYSICAL_ADDRESS_LIST = 0x00B0,
        /// HvCallSignalEventDirect.
        SIGNAL_EVENT_DIRECT = 0x00C0,
        /// HvCallPostMessageDirect.
        POST_MESSAGE_DIRECT = 0x00C1,
        /// HvCallDispatchVp.
        DISPATCH_VP = 0x00C2,
        /// HvCallGetGpaPagesAccessStates.
        GET_GPA_PAGES_ACCESS_STATES = 0x00C9,
        /// HvCallCheckSparseGpaPageVtlAccess.
        CHECK_SPARSE_GPA_PAGE_VTL_ACCESS = 0x00D4,
        /// HvCallAcquireSparseSpaPageHostAccess.
        ACQUIRE_SPARSE_SPA_PAGE_HOST_ACCESS = 0x00D7,
        /// HvCallReleaseSparseSpaPageHostAccess.
        RELEASE_SPARSE_SPA_PAGE_HOST_ACCESS = 0x00D8,
        /// HvCallAcceptGpaPages.
        ACCEPT_GPA_PAGES = 0x00D9,
        /// HvCallModifySparseGpaPageHostVisibility.
        MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY = 0x00DB,
        /// HvCallMapVpStatePage.
        MAP_VP_STATE_PAGE = 0x00E1,
        /// HvCallUnmapVpStatePage.
        UNMAP_VP_STATE_PAGE = 0x00E2,
        /// HvCallGetVpState.
        GET_VP_STATE = 0x00E3,
        /// HvCallSetVpState.
        SET_VP_STATE = 0x00E4,
        /// HvCallGetVpSetFromMda.
        GET_VP_SET_FROM_MDA = 0x00E5,
        /// HvCallGetVpCpuidValues.
        GET_VP_CPUID_VALUES = 0x00F4,
        /// HvCallRestorePartitionTime.
        RESTORE_PARTITION_TIME = 0x0103,
        /// HvCallMemoryMappedIoRead.
        MEMORY_MAPPED_IO_READ = 0x0106,
        /// HvCallMemoryMappedIoWrite.
        MEMORY_MAPPED_IO_WRITE = 0x0107,
        /// HvCallSetPartitionPropertyEx.
        SET_PARTITION_PROPERTY_EX = 0x010A,
        /// HvCallInstallInterceptEx.
        INSTALL_INTERCEPT_EX = 0x0110,
        /// HvCallPinGpaPageRanges.
        PIN_GPA_PAGE_RANGES = 0x0112,
        /// HvCallUnpinGpaPageRanges.
        UNPIN_GPA_PAGE_RANGES = 0x0113,
        /// HvCallQuerySparseGpaPageHostVisibility.
        QUERY_SPARSE_GPA_PAGE_HOST_VISIBILITY = 0x011C,
        /// HvCallSetVirtualInterruptTarget.
        SET_VIRTUAL_INTERRUPT_TARGET = 0x011F,
        /// HvCallMapStatsPage2.
        MAP_STATS_PAGE_2 = 0x0131,
        /// HvExtCallQueryCapabilities.
        EXT_QUERY_CAPABILITIES = 0x8001,
        /// HvExtCallGetBootZeroedMemory.
        EXT_GET_BOOT_ZEROED_MEMORY = 0x8002,
        /// HvExtCallMemoryHeatHint.
        EXT_MEMORY_HEAT_HINT = 0x8003,
        /// HvExtCallEpfSetup.
        EXT_EPF_SETUP = 0x8004,
        /// HvExtCallMemoryHeatHintAsync.
        EXT_MEMORY_HEAT_HINT_ASYNC = 0x8006,
        /// HvCallVbsVmCallReport.
        VBS_VM_CALL_REPORT = 0xC001,
    }
}
