//! SynIC messages (TLFS 11.8).

use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Bytes in a message.
pub const HV_MESSAGE_SIZE: usize = 256;
/// Most bytes of payload in a message.
pub const HV_MESSAGE_PAYLOAD_SIZE: usize = 240;
/// Bit 31 of a message type: only the hypervisor may send it.
pub const HV_MESSAGE_TYPE_HYPERVISOR: u32 = 1 << 31;
/// Bit 0 of the flags byte: another message waits for the slot.
pub const HV_MESSAGE_FLAG_PENDING: u8 = 1;

open_enum! {
    /// HV_MESSAGE_TYPE.
    #[derive(Default)]
    pub struct HvMessageType(u32) {
        /// The slot is free.
        NONE = 0x0000_0000,
        /// Access to a GPA that is not mapped.
        UNMAPPED_GPA = 0x8000_0000,
        /// Access to a GPA against its rights.
        GPA_INTERCEPT = 0x8000_0001,
        /// Access to a page that was not accepted.
        UNACCEPTED_GPA = 0x8000_0003,
        /// Access against a page's attributes.
        GPA_ATTRIBUTE_INTERCEPT = 0x8000_0004,
        /// A synthetic timer expired.
        TIMER_EXPIRED = 0x8000_0010,
        /// A register has an invalid value.
        INVALID_VP_REGISTER_VALUE = 0x8000_0020,
        /// A triple fault.
        UNRECOVERABLE_EXCEPTION = 0x8000_0021,
        /// A feature is not supported.
        UNSUPPORTED_FEATURE = 0x8000_0022,
        /// The message is on the intercept message page.
        OPAQUE_INTERCEPT = 0x8000_003F,
        /// An event log buffer is complete.
        EVENT_LOG_BUFFER_COMPLETE = 0x8000_0040,
        /// A hypercall intercept.
        HYPERCALL_INTERCEPT = 0x8000_0050,
        /// A SynIC event intercept.
        SYNIC_EVENT_INTERCEPT = 0x8000_0060,
        /// A SynIC SINT intercept.
        SYNIC_SINT_INTERCEPT = 0x8000_0061,
        /// A SINT can be delivered.
        SYNIC_SINT_DELIVERABLE = 0x8000_0062,
        /// An asynchronous call is complete.
        ASYNC_CALL_COMPLETION = 0x8000_0070,
        /// The pool ran dry.
        INSUFFICIENT_MEMORY = 0x8000_0071,
        /// Root scheduler: a set of VPs.
        SCHEDULER_VP_SIGNAL_BITSET = 0x8000_0100,
        /// Root scheduler: a pair of VPs.
        SCHEDULER_VP_SIGNAL_PAIR = 0x8000_0101,
        /// Port access.
        X64_IO_PORT_INTERCEPT = 0x8001_0000,
        /// MSR access.
        X64_MSR_INTERCEPT = 0x8001_0001,
        /// CPUID.
        X64_CPUID_INTERCEPT = 0x8001_0002,
        /// An exception.
        X64_EXCEPTION_INTERCEPT = 0x8001_0003,
        /// End of a level-triggered interrupt.
        X64_APIC_EOI = 0x8001_0004,
        /// FERR.
        X64_LEGACY_FP_ERROR = 0x8001_0005,
        /// A register access.
        X64_REGISTER_INTERCEPT = 0x8001_0006,
        /// HLT.
        X64_HALT = 0x8001_0007,
        /// An interruption can be delivered.
        X64_INTERRUPTION_DELIVERABLE = 0x8001_0008,
        /// A start-up IPI.
        X64_SIPI_INTERCEPT = 0x8001_0009,
        /// RDTSC.
        X64_RDTSC_INTERCEPT = 0x8001_000A,
        /// An SMI.
        X64_APIC_SMI_INTERCEPT = 0x8001_000B,
        /// INIT or SIPI.
        X64_APIC_INIT_SIPI_INTERCEPT = 0x8001_000D,
        /// An APIC write.
        X64_APIC_WRITE_INTERCEPT = 0x8001_000E,
        /// An SNP guest request.
        X64_SNP_GUEST_REQUEST = 0x8001_0011,
        /// An exception trap.
        X64_EXCEPTION_TRAP_INTERCEPT = 0x8001_0012,
        /// VMGEXIT.
        X64_SEV_VMGEXIT_INTERCEPT = 0x8001_0013,
    }
}

impl HvMessageType {
    /// The type of a message that VMBus sends.
    pub const VMBUS: Self = Self(1);
}

wire! {
    /// HV_MESSAGE_HEADER.
    pub struct HvMessageHeader {
        /// The type; 0 in a free slot.
        pub message_type: HvMessageType,
        /// Bytes of payload, at most 240.
        pub payload_size: u8,
        /// [`HV_MESSAGE_FLAG_PENDING`].
        pub flags: u8,
        /// Reserved.
        pub reserved: [u8; 2],
        /// Sending partition or port.
        pub sender: u64,
    }
}

wire! {
    /// HV_MESSAGE: 256 bytes.
    pub struct HvMessage {
        /// The header.
        pub header: HvMessageHeader,
        /// The payload.
        pub payload: [u8; HV_MESSAGE_PAYLOAD_SIZE],
    }
}

impl HvMessage {
    /// A message with `payload` (cut to 240 bytes).
    pub fn new(message_type: HvMessageType, sender: u64, payload: &[u8]) -> Self {
        let mut message = Self::new_zeroed();
        let size = payload.len().min(HV_MESSAGE_PAYLOAD_SIZE);
        message.header.message_type = message_type;
        message.header.payload_size = size as u8;
        message.header.sender = sender;
        message.payload[..size].copy_from_slice(&payload[..size]);
        message
    }

    /// A message whose payload is the layout `body`.
    pub fn from_body<T: IntoBytes + Immutable>(message_type: HvMessageType, body: &T) -> Self {
        Self::new(message_type, 0, body.as_bytes())
    }

    /// The valid part of the payload.
    pub fn payload(&self) -> &[u8] {
        let size = usize::from(self.header.payload_size).min(HV_MESSAGE_PAYLOAD_SIZE);
        &self.payload[..size]
    }

    /// The payload read as `T`; `None` when it is too short.
    pub fn body<T: zerocopy::FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(self.payload())
            .ok()
            .map(|(body, _)| body)
    }
}

wire! {
    /// HV_TIMER_MESSAGE_PAYLOAD (TLFS 12.4.5).
    pub struct HvTimerMessagePayload {
        /// Timer 0 to 3.
        pub timer_index: u32,
        /// Reserved.
        pub reserved: u32,
        /// When it expired, reference time.
        pub expiration_time: u64,
        /// When the message was delivered, reference time.
        pub delivery_time: u64,
    }
}

wire! {
    /// HV_INPUT_POST_MESSAGE (0x5C).
    pub struct HvInputPostMessage {
        /// The connection.
        pub connection_id: u32,
        /// Padding.
        pub padding: u32,
        /// Type of the message, bit 31 clear.
        pub message_type: u32,
        /// Bytes of payload, at most 240.
        pub payload_size: u32,
        /// The payload.
        pub payload: [u8; HV_MESSAGE_PAYLOAD_SIZE],
    }
}

wire! {
    /// HV_INPUT_SIGNAL_EVENT (0x5D).
    pub struct HvInputSignalEvent {
        /// The connection.
        pub connection_id: u32,
        /// Flag number, relative to the port's base.
        pub flag_number: u16,
        /// Must be zero.
        pub reserved: u16,
    }
}

wire! {
    /// HV_INPUT_SIGNAL_EVENT_DIRECT (0xC0).
    pub struct HvInputSignalEventDirect {
        /// The target partition.
        pub target_partition: u64,
        /// The target VP.
        pub target_vp: u32,
        /// Its VTL: 0.
        pub target_vtl: u8,
        /// The SINT, 0 to 15.
        pub target_sint: u8,
        /// The flag, 0 to 2047.
        pub flag_number: u16,
    }
}

wire! {
    /// HV_OUTPUT_SIGNAL_EVENT_DIRECT.
    pub struct HvOutputSignalEventDirect {
        /// 1 when the flag was clear before.
        pub newly_signaled: u8,
        /// Padding.
        pub reserved: [u8; 7],
    }
}

wire! {
    /// HV_INPUT_POST_MESSAGE_DIRECT (0xC1).
    pub struct HvInputPostMessageDirect {
        /// The target partition.
        pub partition_id: u64,
        /// The target VP.
        pub vp_index: u32,
        /// Its VTL: 0.
        pub vtl: u8,
        /// The SINT, 0 to 15.
        pub sint_index: u8,
        /// Padding.
        pub padding: [u8; 2],
        /// The message.
        pub message: HvMessage,
    }
}
