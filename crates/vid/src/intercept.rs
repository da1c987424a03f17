//! Intercepts: from the hypervisor's message to a call of the worker, and the
//! answer back as a hypercall.

use tlfs::{
    HvInterceptAccessType, HvMessage, HvMessageType, HvX64IoPortInterceptMessage,
    HvX64MemoryInterceptMessage,
};

/// Answers what the hypervisor does not answer itself. Called on the threads
/// of virtual processors, several at a time.
pub trait InterceptHandler: Sync {
    /// IN, or one element of INS: `size` is 1, 2 or 4 bytes.
    fn io_read(&self, port: u16, size: u8) -> u32;

    /// OUT, or one element of OUTS.
    fn io_write(&self, port: u16, size: u8, value: u32);

    /// A load from a guest-physical address without memory, 1 to 8 bytes
    /// within a page.
    fn mmio_read(&self, gpa: u64, size: u8) -> u64;

    /// A store to a guest-physical address without writable memory.
    fn mmio_write(&self, gpa: u64, size: u8, value: u64);

    /// A level-triggered interrupt ended.
    fn eoi(&self, vector: u8);
}

/// What to do about an intercept.
pub(crate) enum Outcome {
    /// Complete it with this value.
    Complete(u64),
    /// Make the instruction fault with #GP(0).
    Fault,
    /// The processor is in shutdown; RIP and CR3's owner may want to know.
    TripleFault {
        /// RIP at the fault.
        rip: u64,
    },
    /// Nothing that this stack asked to be told.
    Unknown(HvMessageType),
}

/// Decodes the message and calls the handler.
pub(crate) fn handle(message: &HvMessage, handler: &dyn InterceptHandler) -> Outcome {
    match message.header.message_type {
        HvMessageType::X64_IO_PORT_INTERCEPT => match message.body() {
            Some(io) => Outcome::Complete(port(&io, handler)),
            None => Outcome::Unknown(message.header.message_type),
        },
        HvMessageType::UNMAPPED_GPA | HvMessageType::GPA_INTERCEPT => match message.body() {
            // A hypercall's parameters lie where no memory is: devices do
            // not answer those.
            Some(HvX64MemoryInterceptMessage { access_size: 0, .. }) => Outcome::Fault,
            Some(access) => Outcome::Complete(memory(&access, handler)),
            None => Outcome::Unknown(message.header.message_type),
        },
        HvMessageType::UNRECOVERABLE_EXCEPTION => {
            let header: Option<tlfs::HvX64InterceptMessageHeader> = message.body();
            Outcome::TripleFault {
                rip: header.map_or(0, |header| header.rip),
            }
        }
        other => Outcome::Unknown(other),
    }
}

fn port(io: &HvX64IoPortInterceptMessage, handler: &dyn InterceptHandler) -> u64 {
    let size = io.access_info & 7;
    if io.header.intercept_access_type == HvInterceptAccessType::WRITE {
        handler.io_write(io.port_number, size, io.rax as u32);
        return 0;
    }
    u64::from(handler.io_read(io.port_number, size))
}

fn memory(access: &HvX64MemoryInterceptMessage, handler: &dyn InterceptHandler) -> u64 {
    let size = access.access_size.clamp(1, 8) as u8;
    let gpa = access.guest_physical_address;
    if access.header.intercept_access_type == HvInterceptAccessType::WRITE {
        handler.mmio_write(gpa, size, access.write_data);
        return 0;
    }
    handler.mmio_read(gpa, size)
}
