//! Status codes (TLFS appendix B).

open_enum! {
    /// HV_STATUS: the low 16 bits of a hypercall's result.
    #[must_use]
    pub struct HvStatus(u16) {
        /// The operation succeeded.
        SUCCESS = 0x00,
        /// The call code is not known.
        INVALID_HYPERCALL_CODE = 0x02,
        /// The control word is malformed.
        INVALID_HYPERCALL_INPUT = 0x03,
        /// A parameter page address is not aligned or crosses a page.
        INVALID_ALIGNMENT = 0x04,
        /// A parameter is invalid.
        INVALID_PARAMETER = 0x05,
        /// The caller lacks the privilege or the right over the object.
        ACCESS_DENIED = 0x06,
        /// The partition is in the wrong state.
        INVALID_PARTITION_STATE = 0x07,
        /// The operation is not possible now.
        OPERATION_DENIED = 0x08,
        /// Not a property of partitions.
        UNKNOWN_PROPERTY = 0x09,
        /// The property cannot have that value.
        PROPERTY_VALUE_OUT_OF_RANGE = 0x0A,
        /// The partition's memory pool is too small: deposit and try again.
        INSUFFICIENT_MEMORY = 0x0B,
        /// The partition hierarchy would become too deep.
        PARTITION_TOO_DEEP = 0x0C,
        /// No such partition.
        INVALID_PARTITION_ID = 0x0D,
        /// No such virtual processor.
        INVALID_VP_INDEX = 0x0E,
        /// No such object.
        NOT_FOUND = 0x10,
        /// No such port, or it exists already.
        INVALID_PORT_ID = 0x11,
        /// No such connection, or it exists already.
        INVALID_CONNECTION_ID = 0x12,
        /// The port has no message buffer left: try again later.
        INSUFFICIENT_BUFFERS = 0x13,
        /// The last external interrupt was not acknowledged yet.
        NOT_ACKNOWLEDGED = 0x14,
        /// The virtual processor is in the wrong state.
        INVALID_VP_STATE = 0x15,
        /// The external interrupt was acknowledged already.
        ACKNOWLEDGED = 0x16,
        /// The partition cannot be saved or restored now.
        INVALID_SAVE_RESTORE_STATE = 0x17,
        /// The target's SynIC is disabled or the source is masked.
        INVALID_SYNIC_STATE = 0x18,
        /// The object is in use.
        OBJECT_IN_USE = 0x19,
        /// The proximity domain is malformed.
        INVALID_PROXIMITY_DOMAIN_INFO = 0x1A,
        /// There is no data.
        NO_DATA = 0x1B,
        /// The facility is not active.
        INACTIVE = 0x1C,
        /// A resource is exhausted.
        NO_RESOURCES = 0x1D,
        /// The feature is not available.
        FEATURE_UNAVAILABLE = 0x1E,
        /// The packet was only received in part.
        PARTIAL_PACKET = 0x1F,
        /// The processor lacks the feature.
        PROCESSOR_FEATURE_NOT_SUPPORTED = 0x20,
        /// CLFLUSH line sizes differ.
        PROCESSOR_CACHE_LINE_FLUSH_SIZE_INCOMPATIBLE = 0x30,
        /// The buffer is too small.
        INSUFFICIENT_BUFFER = 0x33,
        /// The processor does not fit the others.
        INCOMPATIBLE_PROCESSOR = 0x37,
        /// No IOMMU domain is left.
        INSUFFICIENT_DEVICE_DOMAINS = 0x38,
        /// CPUID features failed the check.
        CPUID_FEATURE_VALIDATION_ERROR = 0x3C,
        /// CPUID XSAVE features failed the check.
        CPUID_XSAVE_FEATURE_VALIDATION_ERROR = 0x3D,
        /// The processor did not start in time.
        PROCESSOR_STARTUP_TIMEOUT = 0x3E,
        /// SMX is enabled.
        SMX_ENABLED = 0x3F,
        /// No such logical processor.
        INVALID_LP_INDEX = 0x41,
        /// The register cannot have that value.
        INVALID_REGISTER_VALUE = 0x50,
        /// The virtual trust level is in the wrong state.
        INVALID_VTL_STATE = 0x51,
        /// The processor has no NX.
        NX_NOT_DETECTED = 0x55,
        /// No such device.
        INVALID_DEVICE_ID = 0x57,
        /// The device is in the wrong state.
        INVALID_DEVICE_STATE = 0x58,
        /// Page requests are pending.
        PENDING_PAGE_REQUESTS = 0x59,
        /// The page request is invalid.
        PAGE_REQUEST_INVALID = 0x60,
        /// The operation failed.
        OPERATION_FAILED = 0x71,
        /// Not while nested virtualization is active.
        NOT_ALLOWED_WITH_NESTED_VIRT_ACTIVE = 0x72,
        /// The operation took too long.
        TIME_OUT = 0x78,
        /// The call is still under way.
        CALL_PENDING = 0x79,
        /// The virtual trust level is enabled already.
        VTL_ALREADY_ENABLED = 0x86,
    }
}

impl HvStatus {
    /// Whether this is [`HvStatus::SUCCESS`].
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// `Ok` for success, the status itself otherwise.
    pub const fn result(self) -> Result<(), HvStatus> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }
}

impl core::fmt::Display for HvStatus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.name() {
            Some(name) => write!(f, "HV_STATUS_{name} ({:#x})", self.0),
            None => write!(f, "HV_STATUS {:#x}", self.0),
        }
    }
}

impl core::error::Error for HvStatus {}
